//! The end-to-end tier: the real `kube-proxy` binary in a node of a lab, with real packets. Needs root, and fails without it.
//!
//! A test writes manifests or feeds an API server double, and looks at three things only: who answers at the Services, what the daemon
//! says on standard error, and what `nft` lists. Every test has a lab of its own, so all of them run at once.
//!
//! Where things are: `manifests` a directory as the source; `api` an API server as the source; `flags` what the command line does and how
//! starts fail; `guard` what others do to our tables; `life` kills at the worst moments, upgrades; `input` objects that are wrong; `observe` health, metrics and Events; `node` our Node when it is late; `settings` each
//! setting, seen from outside; `status` what the daemon tells over its socket; `operator` the command that asks it, `flows` its view of connections one by one, `trace` its view of packets; `orders` what is said by hand; `doctor` what it says of a node; `swap` taking over from another proxy and back; `live` schedulers that go by counts of connections;
//! `tuning` weights, shares, slow start and drain; `daemon` the child process.

#[path = "e2e/api.rs"]
mod api;
#[path = "e2e/browser.rs"]
mod browser;
#[path = "e2e/daemon.rs"]
mod daemon;
#[path = "e2e/doctor.rs"]
mod doctor;
#[path = "e2e/flags.rs"]
mod flags;
#[path = "e2e/flows.rs"]
mod flows;
#[path = "e2e/forward.rs"]
mod forward;
#[path = "e2e/grafana.rs"]
mod grafana;
#[path = "e2e/guard.rs"]
mod guard;
#[path = "e2e/input.rs"]
mod input;
#[path = "e2e/life.rs"]
mod life;
#[path = "e2e/live.rs"]
mod live;
#[path = "e2e/manifests.rs"]
mod manifests;
#[path = "e2e/node.rs"]
mod node;
#[path = "e2e/observe.rs"]
mod observe;
#[path = "e2e/operator.rs"]
mod operator;
#[path = "e2e/orders.rs"]
mod orders;
#[path = "e2e/page.rs"]
mod page;
#[path = "e2e/settings.rs"]
mod settings;
#[path = "e2e/status.rs"]
mod status;
#[allow(dead_code, reason = "the kernel tier uses the rest")]
mod support;
#[path = "e2e/swap.rs"]
mod swap;
#[path = "e2e/trace.rs"]
mod trace;
#[path = "e2e/tuning.rs"]
mod tuning;
