//! From facts to findings.

use super::facts::{Daemon, Facts, Others, Probe};
use super::{Finding, Verdict};
use Verdict::{Fail, Ok as Fine, Warn};

/// The oldest kernel that is supported, and from which on tables can be owned.
const OLDEST: (u32, u32) = (5, 15);
const OWNED: (u32, u32) = (6, 9);

/// How full connection tracking may be, in per cent.
const FULL: u64 = 95;
const FILLING: u64 = 80;

/// How far our clock may be from the API server's, in seconds: leases, certificates and Events go by it. A `Date` has whole seconds.
const SKEW: f64 = 3.0;
const FAR: f64 = 60.0;

/// Descriptors: how much of the limit may be in use, in per cent.
const DESCRIPTORS: u64 = 80;

/// What is to be said.
pub fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend([kernel(facts), privileges(facts), nf_tables(facts), trial(facts)]);
    findings.extend(forwarding(facts));
    findings.extend(bridge(facts));
    findings.extend(conntrack(facts));
    findings.extend(others(&facts.others, facts.daemon.is_some()));
    findings.push(marks());
    match &facts.daemon {
        Some(daemon) => about_daemon(daemon, &mut findings),
        None => findings.push(no_daemon(facts)),
    }
    findings.push(clock(facts));
    findings
}

fn finding(check: &str, verdict: Verdict, seen: impl Into<String>, advice: &str) -> Finding {
    debug_assert_eq!(verdict == Fine, advice.is_empty(), "{check}: who warns says what to do");
    let advice = (!advice.is_empty()).then(|| advice.to_owned());
    Finding { check: check.to_owned(), verdict, seen: seen.into(), advice }
}

fn fine(check: &str, seen: impl Into<String>) -> Finding {
    finding(check, Fine, seen, "")
}

fn release(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split(['.', '-', '+']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn kernel(facts: &Facts) -> Finding {
    let text = format!("Linux {}", facts.release);
    match release(&facts.release) {
        None => finding("kernel", Warn, format!("{text}: not a version"), "5.15 or newer is needed; try it"),
        Some(version) if version < OLDEST => {
            finding("kernel", Fail, format!("{text} is too old"), "update to 5.15 or newer")
        }
        Some(version) if version < OWNED => finding(
            "kernel",
            Warn,
            format!("{text}: tables cannot be owned, so anybody can change them (it is noticed and repaired)"),
            "update to 6.9 or newer if others flush rulesets on this machine",
        ),
        Some(_) => fine("kernel", text),
    }
}

fn privileges(facts: &Facts) -> Finding {
    match (facts.root, facts.net_admin) {
        (true, true) => fine("privileges", "root with CAP_NET_ADMIN"),
        (false, _) => {
            finding("privileges", Warn, "this command does not run as root: little can be seen", "run it with sudo")
        }
        (true, false) => finding(
            "privileges",
            Warn,
            "root without CAP_NET_ADMIN: little can be seen",
            "run it where the daemon runs",
        ),
    }
}

fn nf_tables(facts: &Facts) -> Finding {
    match &facts.nft {
        Probe::Fine(seen) => fine("nf_tables", seen),
        Probe::Failed(why) => {
            finding("nf_tables", Fail, why, "a kernel with CONFIG_NF_TABLES is needed (README, Requirements)")
        }
        Probe::Untried(why) => {
            finding("nf_tables", Warn, why, "run this command as root, in the node's network namespace")
        }
        Probe::Unknown => finding("nf_tables", Warn, "not looked at", "run this command as root"),
    }
}

fn trial(facts: &Facts) -> Finding {
    match &facts.trial {
        Probe::Fine(seen) => fine("ruleset", seen),
        Probe::Failed(why) => finding(
            "ruleset",
            Fail,
            format!("this kernel does not take our rulesets: {why}"),
            "load or build in what the README's Requirements name: NFT_CT, NFT_NAT, NFT_NUMGEN, NFT_HASH, NFT_REJECT",
        ),
        Probe::Untried(why) => {
            finding("ruleset", Warn, format!("not tried: {why}"), "run this command as root, with CAP_SYS_ADMIN")
        }
        Probe::Unknown => finding("ruleset", Warn, "not tried", "run this command as root"),
    }
}

fn forwarding(facts: &Facts) -> Vec<Finding> {
    let one = |check: &str, name: &str, verdict: Verdict, what: &str| match facts.sysctls.get(name) {
        Some(0) => finding(
            check,
            verdict,
            format!("net.{} is 0: {what}", name.replace('/', ".")),
            &format!(
                "sysctl -w net.{}=1, and see who turned it off (network plugins turn it on)",
                name.replace('/', ".")
            ),
        ),
        Some(_) => fine(check, format!("net.{} is on", name.replace('/', "."))),
        None => fine(check, "this family is not there"),
    };
    vec![
        one("forwarding IPv4", "ipv4/ip_forward", Fail, "nobody but this node itself reaches pods"),
        one("forwarding IPv6", "ipv6/conf/all/forwarding", Warn, "nobody but this node itself reaches pods by IPv6"),
    ]
}

fn bridge(facts: &Facts) -> Option<Finding> {
    if facts.bridges.is_empty() {
        return None;
    }
    let bridges = facts.bridges.join(", ");
    let off = |name| facts.sysctls.get(name).is_none_or(|value| *value == 0);
    let off = off("bridge/bridge-nf-call-iptables") || off("bridge/bridge-nf-call-ip6tables");
    Some(if off {
        finding(
            "bridges",
            Warn,
            format!(
                "what is switched by {bridges} is not seen by connection tracking: pods of one bridge may not get answers from each other through a Service"
            ),
            "if pods are on such a bridge: modprobe br_netfilter; sysctl -w net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1",
        )
    } else {
        fine("bridges", format!("what {bridges} switches is seen by connection tracking"))
    })
}

fn conntrack(facts: &Facts) -> Vec<Finding> {
    let get = |name| facts.sysctls.get(name).copied();
    let mut findings = Vec::new();
    match get("netfilter/nf_conntrack_count").zip(get("netfilter/nf_conntrack_max")) {
        None => findings.push(finding(
            "conntrack",
            if facts.daemon.is_some() { Fail } else { Warn },
            "connection tracking is not there",
            "modprobe nf_conntrack; a start of the daemon does that, too",
        )),
        Some((count, most)) => {
            let percent = (count * 100).checked_div(most).unwrap_or(0);
            let seen = format!("{count} of {most} entries in use ({percent} %)");
            let advice =
                "raise it: --conntrack-max-per-core, --conntrack-min, or sysctl net.netfilter.nf_conntrack_max";
            findings.push(match percent {
                _ if most == 0 => fine("conntrack", format!("{count} entries, without a limit")),
                FULL.. => {
                    finding("conntrack", Fail, format!("{seen}: new connections are about to be dropped"), advice)
                }
                FILLING.. => finding("conntrack", Warn, seen, advice),
                _ => fine("conntrack", seen),
            });
        }
    }
    if get("netfilter/nf_conntrack_events") == Some(0) {
        findings.push(finding(
            "conntrack events",
            Warn,
            "net.netfilter.nf_conntrack_events is 0: schedulers that go by counts read the whole table once a second instead",
            "sysctl -w net.netfilter.nf_conntrack_events=2 if lc, wlc, sed or nq are used",
        ));
    }
    if get("netfilter/nf_conntrack_tcp_loose") == Some(0) {
        findings.push(finding(
            "conntrack loose",
            Warn,
            "net.netfilter.nf_conntrack_tcp_loose is 0: TCP connections of drained endpoints cannot be ended",
            "sysctl -w net.netfilter.nf_conntrack_tcp_loose=1 if pointsman.dev/drain or drain --cut is used",
        ));
    }
    if let Some(liberal) = get("netfilter/nf_conntrack_tcp_be_liberal") {
        let word = if liberal == 0 { "strict" } else { "liberal" };
        let counted = if get("netfilter/nf_conntrack_acct") == Some(1) {
            "counted"
        } else {
            "not counted (nf_conntrack_acct, for list --stats)"
        };
        findings.push(fine("conntrack settings", format!("{word} about TCP windows; packets and bytes are {counted}")));
    }
    findings
}

fn others(others: &Others, serving: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut left = others.kube_proxy_tables.iter().map(|table| format!("table {table}")).collect::<Vec<_>>();
    if others.kube_chains > 0 {
        left.push(format!("{} chains of kube-proxy in iptables", others.kube_chains));
    }
    if others.kube_ipvs {
        left.push("interface kube-ipvs0".to_owned());
    }
    match others.rivals.as_slice() {
        [] => {}
        some => {
            let pids = some.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let seen = if serving {
                format!("another process kube-proxy serves this network namespace, or means to: {pids}")
            } else {
                format!("a process kube-proxy runs here and does not answer on the socket: {pids}")
            };
            findings.push(finding(
                "other proxies",
                if serving { Fail } else { Warn },
                seen,
                "end whichever is not wanted, or name the right --socket",
            ));
        }
    }
    findings.push(match (left.is_empty(), serving) {
        (true, _) => fine("leftovers", "nothing of another kube-proxy"),
        (false, true) => finding(
            "leftovers",
            Fail,
            format!("another kube-proxy left: {}; it may decide before ours", left.join(", ")),
            "end that kube-proxy, then start this one again: a start removes what is left",
        ),
        (false, false) => finding(
            "leftovers",
            Warn,
            format!("another kube-proxy is here, or left: {}", left.join(", ")),
            "end it before this one is started (examples/kubeadm/MIGRATE.md); kube-proxy --cleanup removes what is left",
        ),
    });
    if let Some(count) = others.virtual_servers.filter(|count| *count > 0) {
        findings.push(finding(
            "IPVS",
            Warn,
            format!("{count} virtual servers of IPVS: it takes packets to their addresses before they reach a pod"),
            "if they are a kube-proxy's: kube-proxy --cleanup removes them all, whoever made them",
        ));
    }
    if others.legacy_nat {
        findings.push(finding(
            "older iptables",
            Warn,
            "the older iptables have a nat table, which cannot be looked into from here",
            "iptables-legacy-save -t nat | grep KUBE- should print nothing",
        ));
    }
    findings.push(match others.shadows.as_slice() {
        [] => fine("nat chains", "no chain of others translates destinations before ours"),
        some => finding(
            "nat chains",
            Warn,
            format!("may translate destinations before ours: {}", some.join("; ")),
            "often meant (host ports of a network plugin); if a Service is not reached, look there first",
        ),
    });
    findings
}

/// The line is here because everybody who ran kube-proxy looks for it.
fn marks() -> Finding {
    fine(
        "packet marks",
        "none is used, so none of a network plugin's can be in the way (masqueradeBit has nothing to do)",
    )
}

fn no_daemon(facts: &Facts) -> Finding {
    let tables = match facts.others.own_tables.as_slice() {
        [] => "and there are no tables of ours".to_owned(),
        some => format!("its tables ({}) are there and go on serving as they are", some.join(", ")),
    };
    finding(
        "daemon",
        Fail,
        format!("{}; {tables}", facts.no_daemon),
        "start kube-proxy (README, Use it), or name its socket with --socket",
    )
}

fn about_daemon(daemon: &Daemon, findings: &mut Vec<Finding>) {
    let health = &daemon.health;
    let ours = env!("CARGO_PKG_VERSION");
    let seen = format!(
        "process {} serves as node {} for {} s: {} Services, {} endpoints, {} elements",
        health.pid, health.node, health.uptime_seconds as u64, health.services, health.endpoints, health.elements
    );
    findings.push(match (health.loaded, &health.last_sync) {
        (false, _) => finding(
            "daemon",
            Warn,
            format!("{seen}; not everything known at its start is programmed yet"),
            "wait; if it lasts, its log says what for (API server, Node)",
        ),
        (true, None) => fine("daemon", seen),
        (true, Some(sync)) => {
            fine("daemon", format!("{seen}; last update at {:.0}, in {:.1} ms", sync.at, sync.milliseconds))
        }
    });
    findings.push(if health.program == ours {
        fine("version", format!("{ours}, stands for kube-proxy {}", health.kube_proxy))
    } else {
        let seen = format!("the daemon is {}, this command {ours}", health.program);
        finding("version", Warn, seen, "use the command of the daemon's release, or restart the daemon")
    });
    if daemon.net_admin == Some(false) {
        findings.push(finding(
            "daemon's privileges",
            Fail,
            "it lacks CAP_NET_ADMIN: it cannot program anything",
            "give it NET_ADMIN (examples/kubeadm/daemonset.yaml)",
        ));
    }
    if health.loaded && !health.trusted {
        let error =
            health.last_error.as_ref().map(|error| error.error.as_str()).unwrap_or("its tables are being compared");
        findings.push(finding(
            "programming",
            Fail,
            format!("the kernel has not what is desired: {error}"),
            "it is tried again; if it lasts, the message above says at what",
        ));
    }
    findings.push(match &daemon.drift {
        Ok(drift) if drift.differing == 0 => {
            fine("drift", format!("{} elements looked up: the kernel has all of them", drift.looked_up))
        }
        Ok(drift) => {
            let first = drift
                .differences
                .first()
                .map(|one| format!(", e.g. in {}: {}", one.set, one.expected))
                .unwrap_or_default();
            finding(
                "drift",
                Fail,
                format!("{} of {} elements differ in the kernel{first}", drift.differing, drift.looked_up),
                "somebody changed our tables: restart the daemon, which compares all, and find out who (nft monitor)",
            )
        }
        Err(error) => finding(
            "drift",
            Warn,
            format!("not compared: {error}"),
            "try again; -v=2 in the daemon's log says what keeps it",
        ),
    });
    findings.push(if health.problems == 0 {
        fine("objects", "nothing is wrong with any of them")
    } else {
        finding(
            "objects",
            Warn,
            format!("{} problems of objects stand", health.problems),
            "pointsman get services --only problems",
        )
    });
    if health.overrides > 0 {
        findings.push(finding(
            "by hand",
            Warn,
            format!("{} endpoints are drained or weighted by hand on this node", health.overrides),
            "pointsman get overrides; pointsman undrain --all",
        ));
    }
    findings.push(api(daemon));
    for (what, answer) in &daemon.ports {
        findings.push(match answer {
            Ok(200) => fine("port", format!("{what} answers")),
            Ok(status) => finding("port", Fail, format!("{what} answers {status}"), "its body says why: curl it"),
            Err(error) => finding(
                "port",
                Fail,
                format!("{what} does not answer: {error}"),
                "another process may have the port: ss -ltnp; the daemon tries again every 5 s",
            ),
        });
    }
    if let Some((open, limit)) = daemon.descriptors {
        let seen = format!("{open} of {limit} descriptors are open");
        findings.push(if open as u64 * 100 >= limit * DESCRIPTORS {
            finding(
                "descriptors",
                Warn,
                seen,
                "raise LimitNOFILE (or ulimit -n) of the daemon: the userspace forwarder needs two per connection",
            )
        } else {
            fine("descriptors", seen)
        });
    }
}

fn api(daemon: &Daemon) -> Finding {
    let Some(api) = &daemon.health.api else {
        return fine("API server", "none is followed: objects come from a directory");
    };
    match (&api.last_error, api.last_answer) {
        (Some(error), _) => finding(
            "API server",
            Fail,
            format!("{} does not answer: {error}", api.server),
            "Services stay as they are meanwhile; see that the server can be reached from this node, and the credentials",
        ),
        (None, Some(at)) => fine("API server", format!("{} answered last at {at:.0}", api.server)),
        (None, None) => finding("API server", Warn, "nothing has been asked yet", "wait a moment"),
    }
}

fn clock(facts: &Facts) -> Finding {
    let kept = facts.time_service.as_ref().map(|name| format!("kept by {name}"));
    let skew = facts.daemon.as_ref().and_then(|daemon| daemon.health.api.as_ref()?.clock_skew_seconds);
    let advice = "set it, and keep it with chrony or systemd-timesyncd: certificates, leases and Events go by it";
    match (skew, kept) {
        (Some(skew), _) if skew.abs() > FAR => {
            finding("clock", Fail, format!("{skew:+.0} s from the API server's"), advice)
        }
        (Some(skew), _) if skew.abs() > SKEW => {
            finding("clock", Warn, format!("{skew:+.0} s from the API server's"), advice)
        }
        (Some(_), kept) => {
            fine("clock", ["as the API server's".to_owned()].into_iter().chain(kept).collect::<Vec<_>>().join(", "))
        }
        (None, Some(kept)) => fine("clock", kept),
        (None, None) => finding(
            "clock",
            Warn,
            "nobody is seen to keep it, and there is no API server to compare it with",
            "if a hypervisor or another program keeps it, all is well; else run chrony or systemd-timesyncd",
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Report;
    use super::*;
    use crate::status::{DriftView, HealthView};

    /// A node on which all is well.
    fn well() -> Facts {
        let health: HealthView = serde_json::from_value(json!({
            "version": "v1", "program": env!("CARGO_PKG_VERSION"), "kubeProxy": "1.36.0", "pid": 7, "node": "n1", "mode": "nftables",
            "defaultScheduler": "random", "started": "2026-01-01T00:00:00Z", "uptimeSeconds": 5.0, "loaded": true, "trusted": true, "services": 3,
            "endpoints": 9, "elements": 40, "problems": 0, "families": [], "overrides": 0,
            "api": {"server": "10.0.0.1:6443", "lastAnswer": "2026-01-01T00:00:01Z", "clockSkewSeconds": 0.2},
        }))
        .expect("a view");
        let names = super::super::facts::SYSCTLS;
        let values = [1, 1, 1, 1, 1000, 10, 2, 1, 1, 0];
        Facts {
            release: "6.18.44-fc".to_owned(),
            root: true,
            net_admin: true,
            nft: Probe::Fine("it answers".to_owned()),
            trial: Probe::Fine("accepted".to_owned()),
            sysctls: names.into_iter().zip(values).collect(),
            bridges: vec!["cni0".to_owned()],
            others: Others { own_tables: vec!["ip pointsman".to_owned()], ..Others::default() },
            time_service: Some("chronyd".to_owned()),
            daemon: Some(Daemon {
                health,
                net_admin: Some(true),
                descriptors: Some((30, 1024)),
                drift: Ok(DriftView { version: "v1".to_owned(), looked_up: 40, differing: 0, differences: Vec::new() }),
                ports: vec![("http://127.0.0.1:10249/metrics".to_owned(), Ok(200))],
            }),
            no_daemon: String::new(),
        }
    }

    /// What is not well: `check verdict`, in order.
    fn unwell(change: impl FnOnce(&mut Facts)) -> String {
        let mut facts = well();
        change(&mut facts);
        let found = judge(&facts);
        for finding in &found {
            assert_eq!(finding.advice.is_none(), finding.verdict == Fine, "{finding:?}");
        }
        let bad = found.iter().filter(|one| one.verdict != Fine);
        bad.map(|one| format!("{} {:?}", one.check, one.verdict)).collect::<Vec<_>>().join(", ")
    }

    fn sysctl(name: &'static str, value: Option<u64>) -> impl FnOnce(&mut Facts) {
        move |facts| match value {
            Some(value) => drop(facts.sysctls.insert(name, value)),
            None => drop(facts.sysctls.remove(name)),
        }
    }

    fn daemon(facts: &mut Facts) -> &mut Daemon {
        facts.daemon.as_mut().expect("one")
    }

    #[test]
    fn all_is_well() {
        assert_eq!(unwell(|_| {}), "");
        assert_eq!(Report::of(&well()).verdict, Fine);
    }

    #[test]
    fn each_trouble_is_named() {
        type Row = (&'static str, Box<dyn FnOnce(&mut Facts)>);
        let table: Vec<Row> = vec![
            ("kernel Fail", Box::new(|facts| facts.release = "5.10.0-28-amd64".to_owned())),
            ("kernel Warn", Box::new(|facts| facts.release = "6.1.0".to_owned())),
            ("", Box::new(|facts| facts.release = "6.9.0-rc1+".to_owned())),
            ("kernel Warn", Box::new(|facts| facts.release = "custom".to_owned())),
            ("privileges Warn", Box::new(|facts| facts.root = false)),
            ("privileges Warn", Box::new(|facts| facts.net_admin = false)),
            ("nf_tables Fail", Box::new(|facts| facts.nft = Probe::Failed("no".to_owned()))),
            ("nf_tables Warn", Box::new(|facts| facts.nft = Probe::Untried("no".to_owned()))),
            ("ruleset Fail", Box::new(|facts| facts.trial = Probe::Failed("EOPNOTSUPP".to_owned()))),
            ("ruleset Warn", Box::new(|facts| facts.trial = Probe::Untried("EPERM".to_owned()))),
            ("forwarding IPv4 Fail", Box::new(sysctl("ipv4/ip_forward", Some(0)))),
            ("forwarding IPv6 Warn", Box::new(sysctl("ipv6/conf/all/forwarding", Some(0)))),
            ("", Box::new(sysctl("ipv6/conf/all/forwarding", None))),
            ("bridges Warn", Box::new(sysctl("bridge/bridge-nf-call-iptables", Some(0)))),
            ("bridges Warn", Box::new(sysctl("bridge/bridge-nf-call-ip6tables", None))),
            (
                "",
                Box::new(|facts| {
                    sysctl("bridge/bridge-nf-call-iptables", None)(facts);
                    facts.bridges.clear();
                }),
            ),
            ("conntrack Warn", Box::new(sysctl("netfilter/nf_conntrack_count", Some(800)))),
            ("conntrack Fail", Box::new(sysctl("netfilter/nf_conntrack_count", Some(950)))),
            ("", Box::new(sysctl("netfilter/nf_conntrack_max", Some(0)))),
            ("conntrack Fail", Box::new(sysctl("netfilter/nf_conntrack_count", None))),
            ("conntrack events Warn", Box::new(sysctl("netfilter/nf_conntrack_events", Some(0)))),
            ("conntrack loose Warn", Box::new(sysctl("netfilter/nf_conntrack_tcp_loose", Some(0)))),
            ("leftovers Fail", Box::new(|facts| facts.others.kube_proxy_tables = vec!["ip kube-proxy".to_owned()])),
            ("leftovers Fail", Box::new(|facts| facts.others.kube_chains = 12)),
            ("leftovers Fail", Box::new(|facts| facts.others.kube_ipvs = true)),
            (
                "leftovers Warn, daemon Fail",
                Box::new(|facts| {
                    facts.others.kube_chains = 12;
                    facts.daemon = None;
                }),
            ),
            ("other proxies Fail", Box::new(|facts| facts.others.rivals = vec![9])),
            (
                "other proxies Warn, daemon Fail",
                Box::new(|facts| {
                    facts.others.rivals = vec![9];
                    facts.daemon = None;
                }),
            ),
            ("IPVS Warn", Box::new(|facts| facts.others.virtual_servers = Some(3))),
            ("", Box::new(|facts| facts.others.virtual_servers = Some(0))),
            ("older iptables Warn", Box::new(|facts| facts.others.legacy_nat = true)),
            ("nat chains Warn", Box::new(|facts| facts.others.shadows = vec!["table ip x".to_owned()])),
            ("daemon Fail", Box::new(|facts| facts.daemon = None)),
            ("daemon Fail, clock Warn", Box::new(|facts| (facts.daemon, facts.time_service) = (None, None))),
            ("daemon Warn", Box::new(|facts| daemon(facts).health.loaded = false)),
            ("version Warn", Box::new(|facts| daemon(facts).health.program = "0.0.1".to_owned())),
            ("daemon's privileges Fail", Box::new(|facts| daemon(facts).net_admin = Some(false))),
            ("programming Fail", Box::new(|facts| daemon(facts).health.trusted = false)),
            (
                "drift Fail",
                Box::new(|facts| {
                    daemon(facts).drift = Ok(DriftView {
                        version: "v1".to_owned(),
                        looked_up: 40,
                        differing: 2,
                        differences: Vec::new(),
                    });
                }),
            ),
            ("drift Warn", Box::new(|facts| daemon(facts).drift = Err("busy".to_owned()))),
            ("objects Warn", Box::new(|facts| daemon(facts).health.problems = 1)),
            ("by hand Warn", Box::new(|facts| daemon(facts).health.overrides = 1)),
            (
                "API server Fail",
                Box::new(|facts| {
                    daemon(facts).health.api.as_mut().expect("one").last_error = Some("refused".to_owned());
                }),
            ),
            ("", Box::new(|facts| daemon(facts).health.api = None)),
            ("port Fail", Box::new(|facts| daemon(facts).ports[0].1 = Ok(503))),
            ("port Fail", Box::new(|facts| daemon(facts).ports[0].1 = Err("refused".to_owned()))),
            ("descriptors Warn", Box::new(|facts| daemon(facts).descriptors = Some((820, 1024)))),
            (
                "clock Warn",
                Box::new(|facts| {
                    daemon(facts).health.api.as_mut().expect("one").clock_skew_seconds = Some(-4.0);
                }),
            ),
            (
                "clock Fail",
                Box::new(|facts| {
                    daemon(facts).health.api.as_mut().expect("one").clock_skew_seconds = Some(3600.0);
                }),
            ),
            ("", Box::new(|facts| facts.time_service = None)),
        ];
        for (index, (want, change)) in table.into_iter().enumerate() {
            assert_eq!(unwell(change), want, "row {index}");
        }
    }
}
