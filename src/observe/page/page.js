// The page of Pointsman. Names come from strangers: they reach the document as text nodes only (see el), never as markup.
"use strict";
const $ = (id) => document.getElementById(id);
const ROW = 40, PER_PAGE = 100, PACE = 1500;
const STANDING = { chosen: "gets connections", unused: "not asked for", notReady: "not ready", stopped: "stopped", leaving: "leaving", otherZone: "for another zone", otherNode: "for another node", notHere: "not on this node", drained: "weight 0", noShare: "no share", gone: "gone" };

/** An element with attributes and children; texts become text nodes. */
function el(name, attributes, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) if (value !== undefined && value !== false) node.setAttribute(key, value);
  node.append(...children.flat().filter((child) => child !== undefined && child !== null && child !== false));
  return node;
}
function svg(name, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}
async function get(path) {
  const answer = await fetch("v1/" + path, { cache: "no-store" });
  if (!answer.ok) throw Object.assign(new Error((await answer.json().catch(() => ({}))).error || answer.statusText), { status: answer.status });
  return answer.json();
}
const number = (value) => value.toLocaleString("en");
const time = (micros) => micros < 1000 ? micros + " µs" : micros < 1e6 ? (micros / 1000).toFixed(micros < 1e4 ? 2 : 1) + " ms" : (micros / 1e6).toFixed(2) + " s";
const many = (count, what) => number(count) + " " + what + (count === 1 ? "" : "s");
/** Controls and marks of writing direction, written out. */
const plain = (text) => text.replace(/[\u0000-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g, (c) => "\\u{" + c.codePointAt(0).toString(16) + "}");
function ago(stamp) {
  if (!stamp) return "";
  const seconds = Math.max(0, (Date.now() - Date.parse(stamp)) / 1000);
  for (const [unit, length] of [["d", 86400], ["h", 3600], ["min", 60]]) if (seconds >= length) return Math.floor(seconds / length) + " " + unit + " ago";
  return seconds < 5 ? "just now" : Math.floor(seconds) + " s ago";
}
const at = (address, port) => address === undefined ? "node port " + port : (address.includes(":") ? "[" + address + "]" : address) + ":" + port;
const say = (text) => { $("live").textContent = text; };
const link = (service) => "#/service/" + encodeURIComponent(service.namespace) + "/" + encodeURIComponent(service.name);

// === the list: only rows that can be seen are in the document, and only pages that were seen are asked for ===

const list = { pages: new Map(), total: 0, ticket: 0, query: "" };
function listQuery() {
  const query = new URLSearchParams();
  for (const field of ["search", "namespace", "only"]) if ($(field).value.trim()) query.set(field, $(field).value.trim());
  return query.toString();
}
async function loadPage(page) {
  if (list.pages.has(page)) return;
  const ticket = list.ticket;
  list.pages.set(page, null);
  try {
    const found = await get("services?perPage=" + PER_PAGE + "&page=" + page + (list.query ? "&" + list.query : ""));
    if (ticket !== list.ticket) return;
    list.pages.set(page, found.services);
    if (found.total !== list.total || page === 1) {
      list.total = found.total;
      $("count").textContent = many(list.total, "Service");
      $("none").hidden = list.total > 0;
      $("list").setAttribute("aria-rowcount", list.total + 1);
    }
  } catch (error) {
    if (ticket === list.ticket) list.pages.delete(page);
    fail(error);
  }
  draw();
}
/** Asks anew; what is shown stays until there is an answer. */
async function refresh(fromTop) {
  list.ticket += 1;
  list.query = listQuery();
  const shown = list.pages;
  list.pages = new Map();
  if (fromTop) $("window").scrollTop = 0;
  const first = Math.floor($("window").scrollTop / ROW / PER_PAGE) + 1;
  list.pages = new Map();
  list.before = shown;
  await loadPage(first);
  list.before = undefined;
  draw();
}
function row(index, service) {
  const cells = { role: "row", "aria-rowindex": index + 2, "data-index": index };
  if (!service) return el("div", cells, el("span", { role: "cell", class: "quiet" }, "…"));
  const frontends = service.ports.flatMap((port) => port.frontends.filter((frontend) => !frontend.heldBy).map((frontend) => at(frontend.address, frontend.port)));
  const all = new Set(), chosen = new Set();
  for (const port of service.ports) for (const endpoint of port.endpoints) {
    if (endpoint.gone) continue;
    const name = port.family + at(endpoint.address, endpoint.port);
    all.add(name);
    if (endpoint.cluster.standing === "chosen" || endpoint.local.standing === "chosen") chosen.add(name);
  }
  const byHand = service.ports.some((port) => port.endpoints.some((endpoint) => endpoint.byHand));
  const userspace = service.ports.some((port) => port.path.carrier === "userspace");
  return el("div", cells,
    el("span", { role: "cell" }, el("a", { href: link(service) }, plain(service.namespace + "/" + service.name)),
      service.problems && el("span", { class: "badge bad" }, many(service.problems.length, "problem")), userspace && el("span", { class: "badge warn" }, "userspace"), byHand && el("span", { class: "badge warn" }, "by hand")),
    el("span", { role: "cell", class: "mono", title: frontends.join("\n") }, frontends[0] || "none", frontends.length > 1 ? "  +" + (frontends.length - 1) : ""),
    el("span", { role: "cell" }, service.scheduler.used),
    el("span", { role: "cell", class: chosen.size ? "" : "bad" }, all.size ? chosen.size + " of " + all.size : "none"),
    el("span", { role: "cell", class: "quiet" }, ago(service.lastChange)));
}
function draw() {
  if ($("services").hidden) return;
  const view = $("window"), rows = $("rows");
  rows.style.height = list.total * ROW + "px";
  const first = Math.max(0, Math.floor(view.scrollTop / ROW) - 8), last = Math.min(list.total, Math.ceil((view.scrollTop + view.clientHeight) / ROW) + 8);
  const focused = document.activeElement && document.activeElement.closest("#rows [role=row]");
  const keep = focused && Number(focused.dataset.index);
  const drawn = [];
  for (let index = first; index < last; index += 1) {
    const page = Math.floor(index / PER_PAGE) + 1;
    const services = list.pages.get(page) || (list.before && list.before.get(page));
    if (!list.pages.has(page)) loadPage(page);
    const node = row(index, services && services[index % PER_PAGE]);
    node.style.top = index * ROW + "px";
    drawn.push(node);
  }
  rows.replaceChildren(...drawn);
  if (focused) focusRow(keep);
}
function focusRow(index) {
  const target = $("rows").querySelector('[data-index="' + index + '"] a');
  if (target) target.focus({ preventScroll: true });
}
function step(by) {
  const focused = document.activeElement.closest("#rows [role=row]");
  const index = Math.min(list.total - 1, Math.max(0, (focused ? Number(focused.dataset.index) : -1) + by));
  const view = $("window"), top = index * ROW;
  if (top < view.scrollTop) view.scrollTop = top;
  if (top + ROW > view.scrollTop + view.clientHeight) view.scrollTop = top + ROW - view.clientHeight;
  draw();
  focusRow(index);
}

// === one Service ===

const detail = { key: undefined, view: undefined, traffic: undefined, rates: new Map() };
const path = () => detail.key.map(encodeURIComponent).join("/");
async function loadService(announce) {
  const key = detail.key;
  try {
    const [view, traffic] = await Promise.all([get("services/" + path() + "?connections=true"), get("traffic/" + path())]);
    if (key !== detail.key) return;
    detail.view = view;
    takeTraffic(traffic);
    drawService();
  } catch (error) {
    if (key !== detail.key) return;
    if (error.status !== 404) return fail(error);
    detail.view = undefined;
    $("service-body").replaceChildren(el("p", { class: "bad" }, "This Service is not served here, or not any more."));
    $("flows").replaceChildren();
    $("flows-note").textContent = "";
    return;
  }
  loadFlows(key);
}
async function loadFlows(key) {
  try {
    const found = await get("flows/" + path());
    if (key !== detail.key) return;
    $("flows-note").textContent = found.flows.length ? (found.more ? "The first " + found.flows.length + " of " + number(found.flows.length + found.more) : many(found.flows.length, "connection")) + " that connection tracking remembers." : "Connection tracking remembers none.";
    $("flows").replaceChildren(...(found.flows.length ? [head(["Client", "Connects to", "Answered by", "State", "Forgotten in"])] : []), el("tbody", {}, found.flows.map((flow) => {
      return el("tr", {}, el("td", { class: "mono" }, flow.client), el("td", { class: "mono" }, flow.frontend), el("td", {}, flow.pod ? plain(flow.pod) + " " : "", el("span", { class: "mono quiet" }, flow.endpoint || "")), el("td", {}, flow.protocol + " " + flow.state + (flow.userspace ? ", userspace" : "")), el("td", { class: "number" }, flow.leftSeconds === undefined ? "" : flow.leftSeconds + " s"));
    })));
  } catch (error) { $("flows-note").textContent = error.message; }
}
/** Rates are differences between two walks of the daemon, not between two looks of ours. */
function takeTraffic(traffic) {
  const before = detail.traffic, now = performance.now() / 1000 - (traffic.age || 0);
  const opened = new Map(traffic.ports.flatMap((port) => Object.entries(port.endpoints).map(([endpoint, of]) => [port.name + "/" + port.protocol + "/" + endpoint, of.opened])));
  if (before && traffic.walk === before.walk) return;
  if (before && before.walk && traffic.walk) for (const [name, count] of opened) detail.rates.set(name, Math.max(0, count - (before.opened.get(name) || 0)) / Math.max(0.5, now - before.now));
  detail.traffic = { walk: traffic.walk, now, opened };
}
const head = (names) => el("thead", {}, el("tr", {}, names.map((name) => el("th", { scope: "col", class: ["Weight", "Active", "Opened/s", "Forgotten in"].includes(name) ? "number" : "" }, name))));
function fact(term, ...value) { return el("div", {}, el("dt", {}, term), el("dd", {}, ...value)); }
function share(part) {
  const bar = svg("svg", { class: "share", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" }, svg("rect", { width: 100, height: 10, rx: 3 }), svg("rect", { width: Math.round(part * 100), height: 10, rx: 3 }));
  return [bar, " " + (part * 100).toFixed(part && part < 0.1 ? 1 : 0) + " %"];
}
function state(endpoint, set) {
  if (endpoint.byHand) return el("span", { class: "warn" }, (endpoint.byHand.weight ? "weighted" : set.standing === "chosen" ? "drained, and used for want of others," : "drained") + " by hand until " + new Date(endpoint.byHand.until).toLocaleTimeString("en-GB"));
  if (endpoint.slowStartPercent !== undefined) return el("span", { class: "warn" }, "slow start, " + endpoint.slowStartPercent + " %");
  if (endpoint.drainingUntil) return el("span", { class: "warn" }, "draining until " + new Date(endpoint.drainingUntil).toLocaleTimeString("en-GB"));
  const standing = set.standing;
  return el("span", { class: standing === "chosen" ? "good" : standing === "notReady" || standing === "stopped" ? "bad" : "quiet" }, STANDING[standing] || standing);
}
function drawService() {
  const service = detail.view, body = $("service-body");
  const facts = el("dl", {},
    fact("Type", service.type),
    fact("Scheduler", service.scheduler.used, service.scheduler.asked ? "" : el("span", { class: "quiet" }, " (the default)")),
    fact("Traffic policy", "internal " + service.internalTrafficPolicy + ", external " + service.externalTrafficPolicy),
    service.sessionAffinitySeconds !== undefined && fact("Session affinity", many(service.sessionAffinitySeconds, "second")),
    service.slowStartSeconds !== undefined && fact("Slow start", service.slowStartSeconds + " s"),
    service.drainSeconds !== undefined && fact("Drain", service.drainSeconds + " s"),
    service.sourceRanges && fact("Source ranges", service.sourceRanges.join(", ")),
    fact("Last change", ago(service.lastChange) || "none"));
  const problems = (service.problems || []).map((problem) => el("p", { class: "bad", role: "note" }, plain(problem.object + ": " + problem.field + ": " + problem.value + ": " + problem.reason)));
  const ports = service.ports.map((port) => {
    const local = port.internal === "local" || port.outside === "local";
    const of = (endpoint) => local && endpoint.local.standing === "chosen" ? endpoint.local : endpoint.cluster.standing === "unused" ? endpoint.local : endpoint.cluster;
    const rows = port.endpoints.map((endpoint) => {
      const set = of(endpoint), address = at(endpoint.address, endpoint.port);
      const rate = detail.rates.get(port.name + "/" + port.protocol + "/" + address);
      return el("tr", {}, el("td", {}, endpoint.pod ? plain(endpoint.pod) + " " : "", el("span", { class: "mono quiet" }, address)),
        el("td", {}, plain([endpoint.node, endpoint.zone].filter(Boolean).join(", ")) || (endpoint.here ? "this node" : "")),
        el("td", { class: "number" }, String(endpoint.weight)), el("td", {}, share(set.share || 0)),
        el("td", { class: "number" }, endpoint.connections ? number(endpoint.connections.active) : ""), el("td", { class: "number" }, rate === undefined ? "" : rate.toFixed(1)), el("td", {}, state(endpoint, set)));
    });
    const title = (port.name ? plain(port.name) + ", " : "") + port.protocol + ", " + port.family;
    return el("section", { class: "port" }, el("h3", {}, title),
      el("p", {}, el("span", { class: "mono" }, port.frontends.map((frontend) => at(frontend.address, frontend.port) + (frontend.heldBy ? " (held by " + plain(frontend.heldBy) + ")" : "")).join("  ") || "no frontend"),
        el("span", { class: "quiet" }, "  ·  " + (port.path.carrier === "kernel" ? "carried by the kernel" : "carried by the userspace forwarder: " + port.path.reason) + (port.topology !== "anywhere" ? "  ·  topology: own " + port.topology : ""))),
      rows.length ? el("div", { class: "scroll" }, el("table", { "aria-label": "Endpoints of " + title }, head(["Endpoint", "Where", "Weight", "Share", "Active", "Opened/s", "State"]), el("tbody", {}, rows))) : el("p", { class: "bad" }, "No endpoints: connections are refused."));
  });
  body.replaceChildren(facts, ...problems, ...ports);
}

// === changes and health ===

const past = { newest: 0, entries: [] };
function drawTimeline(fresh) {
  $("quiet").hidden = past.entries.length > 0;
  $("timeline").replaceChildren(...past.entries.slice(-100).reverse().map((entry) => {
    const words = { load: "first load", repair: "compared and repaired", refused: "refused by the kernel" }[entry.occasion];
    return el("li", { class: entry.number > fresh ? "new" : "" }, el("time", { datetime: entry.time, title: entry.time }, new Date(entry.time).toLocaleTimeString("en-GB")),
      words && el("strong", { class: entry.occasion === "refused" ? "bad" : "" }, words + " "), el("span", { class: "quiet" }, many(entry.services, "Service") + ", " + many(entry.elements, "element") + ", " + many(entry.transactions, "transaction") + ", kernel " + time(entry.kernelMicros) + ", all in all " + time(entry.totalMicros)),
      entry.what.map((line) => el("p", {}, line)), entry.more > 0 && el("p", { class: "quiet" }, "and " + many(entry.more, "more port")));
  }));
}
async function loadHealth() {
  const health = await get("health");
  const ok = health.loaded && health.trusted;
  $("state").className = ok ? "good" : "bad";
  $("state").textContent = plain(health.node) + (ok ? ": up to date" : health.loaded ? ": comparing with the kernel" : ": loading");
  $("facts").replaceChildren(fact("Node", plain(health.node), health.zone ? " in " + plain(health.zone) : ""), fact("Version", health.program + ", stands for kube-proxy " + health.kubeProxy), fact("Mode", health.mode + ", scheduler " + health.defaultScheduler),
    fact("Up", ago(health.started).replace(" ago", "")), fact("Services", number(health.services)), fact("Endpoints", number(health.endpoints)), fact("Elements in the kernel", number(health.elements)),
    fact("Problems", el("span", { class: health.problems ? "bad" : "" }, number(health.problems))), fact("Tables", health.families.map((family) => family.table).join(", ")),
    fact("Last update", health.lastSync ? ago(health.lastSync.at) + ", " + time(Math.round(health.lastSync.milliseconds * 1000)) : "none"),
    fact("Last refusal", health.lastError ? plain(health.lastError.error) + ", " + ago(health.lastError.at) : "none"));
}
function drawChart() {
  const shown = past.entries.slice(-120), W = 900, H = 220, left = 56, bottom = 24;
  if (!shown.length) return;
  const low = 10, high = Math.max(1e4, ...shown.map((entry) => entry.totalMicros)) * 1.3;
  const y = (micros) => (H - bottom) - Math.log(Math.max(low, micros) / low) / Math.log(high / low) * (H - bottom - 12);
  const x = (index) => left + 12 + index * (W - left - 24) / Math.max(1, shown.length - 1);
  const grid = [];
  for (let micros = low; micros <= high; micros *= 10) grid.push(svg("line", { x1: left, x2: W, y1: y(micros), y2: y(micros) }), svg("text", { x: left - 6, y: y(micros) + 4, "text-anchor": "end" }, time(micros)));
  const dots = shown.map((entry, index) => svg("circle", { class: entry.occasion === "refused" ? "bad" : "dot", cx: x(index), cy: y(entry.totalMicros), r: 3.2 }, svg("title", {}, new Date(entry.time).toLocaleTimeString("en-GB") + ": " + time(entry.totalMicros))));
  const line = svg("path", { d: shown.map((entry, index) => (index ? "L" : "M") + x(index).toFixed(1) + " " + y(entry.totalMicros).toFixed(1)).join("") });
  const ends = [svg("text", { x: left, y: H - 6 }, new Date(shown[0].time).toLocaleTimeString("en-GB")), svg("text", { x: W, y: H - 6, "text-anchor": "end" }, new Date(shown[shown.length - 1].time).toLocaleTimeString("en-GB"))];
  const sorted = shown.map((entry) => entry.totalMicros).sort((a, b) => a - b);
  $("latency-note").textContent = "The last " + many(shown.length, "update") + ", from the first change to the kernel's answer: median " + time(sorted[Math.floor(sorted.length / 2)]) + ", longest " + time(sorted[sorted.length - 1]) + ".";
  $("chart").replaceChildren(svg("svg", { viewBox: "0 0 " + W + " " + H, "aria-hidden": "true" }, ...grid, line, ...dots, ...ends));
}

// === which view, and what is new ===

function fail(error) {
  $("state").className = "bad";
  $("state").textContent = "no answer: " + error.message;
}
function show() {
  const parts = location.hash.replace(/^#\//, "").split("/");
  const view = parts[0] === "service" && parts.length === 3 ? "service" : ["services", "changes", "health"].includes(parts[0]) ? parts[0] : "services";
  for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== view;
  for (const tab of document.querySelectorAll("nav a")) tab.dataset.view === (view === "service" ? "services" : view) ? tab.setAttribute("aria-current", "page") : tab.removeAttribute("aria-current");
  detail.key = undefined;
  if (view === "services") { draw(); if (!list.pages.size) refresh(true); }
  if (view === "service") {
    Object.assign(detail, { key: parts.slice(1).map(decodeURIComponent), view: undefined, traffic: undefined, rates: new Map() });
    $("service-title").textContent = plain(detail.key.join("/"));
    $("service-body").replaceChildren();
    $("flows").replaceChildren();
    $("flows-note").textContent = "";
    $("service-title").focus();
    loadService();
  }
  if (view === "changes") drawTimeline(past.newest);
  if (view === "health") drawChart();
  document.title = (view === "service" ? plain(detail.key.join("/")) + " - " : "") + "Pointsman";
}
async function poll() {
  try {
    if (!document.hidden || !past.newest) {
      const [news] = await Promise.all([get("timeline?after=" + past.newest), loadHealth()]);
      const before = past.newest, restarted = news.newest < before;
      if (restarted) Object.assign(past, { newest: 0, entries: [] });
      past.entries = past.entries.concat(news.entries).slice(-256);
      past.newest = news.newest;
      if (news.entries.length) {
        const last = news.entries[news.entries.length - 1];
        if (before) say(last.what[0] || many(last.elements, "element") + " programmed");
        if (!$("changes").hidden) drawTimeline(before);
        if (!$("health").hidden) drawChart();
        if (before && !$("services").hidden) refresh(false);
      }
      if (detail.key) await loadService();
    }
  } catch (error) { fail(error); }
  setTimeout(poll, PACE);
}
let typing;
for (const field of ["search", "namespace", "only"]) $(field).addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(() => refresh(true), 120); });
$("find").addEventListener("submit", (event) => { event.preventDefault(); refresh(true); });
let drawing = 0;
$("window").addEventListener("scroll", () => { if (!drawing) drawing = requestAnimationFrame(() => { drawing = 0; draw(); }); });
addEventListener("resize", draw);
addEventListener("hashchange", show);
addEventListener("keydown", (event) => {
  const inField = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  if (event.key === "/" && !inField && !event.ctrlKey && !event.metaKey) { event.preventDefault(); location.hash = "#/services"; setTimeout(() => $("search").focus()); }
  if ($("services").hidden || event.target.tagName === "SELECT") return;
  if (event.key === "ArrowDown" && (inField || event.target.closest("#list") || event.target === document.body)) { event.preventDefault(); step(1); }
  if (event.key === "ArrowUp" && event.target.closest("#rows")) { event.preventDefault(); event.target.closest("[data-index='0']") ? $("search").focus() : step(-1); }
});
show();
poll();
