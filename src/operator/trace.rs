//! The rules that packets really took, in words.
//!
//! For a while the kernel traces packets that open a connection to a target ([`Trap`]); what it tells is put together packet by packet
//! (`path`), and each step is said in words (`words`): of our own tables what the rule means, with what was found in the maps, of others' tables
//! the chain and the rule's number. Each packet ends with one sentence about what became of it.
//!
//! Needs root and works in the network namespace it runs in. The daemon is asked which frontends a Service has and whose an endpoint is; without
//! one the kernel's tables say the first, and pods have no names.
//!
//! Proven by the tests of each file and by `tests/e2e/trace.rs`.

mod path;
mod words;

use std::collections::HashMap;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use nft::Step;

use super::cli::{Format, TraceOptions};
use super::client::{self, ClientError};
use super::target::{self, TargetError};
use super::text::{Look, colours, paint, plain};
use super::{Failure, remark, say};
use crate::kernel::trap::{Aim, Trap};
use crate::model::{Family, Protocol};
use crate::status::ServiceView;
use crate::status::explain::Target;
use path::{Paths, Told};
use words::Known;

/// After so long without a step a packet has come to its end.
const QUIET: Duration = Duration::from_millis(150);

/// How often the rules are read again because one is not known: the daemon makes new ones.
const AGAIN: Duration = Duration::from_millis(500);

/// Frontends traced at a time.
const MOST: usize = 64;

/// Why nothing can be traced.
#[derive(Debug, thiserror::Error)]
pub(super) enum TraceError {
    #[error("--from {from}: {target} has no frontend of that family")]
    Family { from: String, target: String },
    #[error("{0} has no frontend that could be traced here")]
    NoFrontend(String),
    #[error("{target} has {count} frontends; {MOST} can be traced at a time: name one")]
    Many { target: String, count: usize },
    #[error("packets cannot be traced here: {0}")]
    Kernel(#[from] nft::Error),
}

pub(super) fn run(socket: &Path, options: &TraceOptions) -> Result<(), Failure> {
    let target = target::whole(socket, &options.target)?;
    let target = Target::parse(&target).ok_or_else(|| TargetError::Unreadable(target.clone()))?;
    let mut known = Known::read().map_err(TraceError::from)?;
    let aims = aims(socket, &target, options, known.tables())?;
    let mut trap = Trap::set(&aims).map_err(TraceError::from)?;
    let until = Instant::now() + options.duration;
    let mut out = io::stdout().lock();
    if options.output.is_none() {
        let seconds = options.duration.as_secs_f64();
        let from = options.from.map(|from| format!(" from {from}")).unwrap_or_default();
        eprintln!(
            "pointsman: tracing connections to {}{from} for {seconds} s, {} at most; Ctrl-C ends it",
            plain(&target.to_string()),
            options.count
        );
    }
    let mut paths = Paths::new(trap.table());
    let mut names = Names { socket, asked: HashMap::new() };
    let (mut told, mut read_at) = (0, Instant::now());
    while told < options.count && Instant::now() < until {
        match trap.next(QUIET.min(until.saturating_duration_since(Instant::now()))).map_err(TraceError::from)? {
            Some(Step::Met(step)) => {
                if known.lacks(&step) && read_at.elapsed() > AGAIN {
                    read_at = Instant::now();
                    known = Known::read().map_err(TraceError::from)?;
                }
                paths.take(*step, Instant::now(), &known);
            }
            Some(Step::Lost) => remark("steps were lost: some packets are told in part"),
            None => {}
        }
        for packet in paths.ended(Instant::now(), QUIET) {
            if told == options.count {
                break;
            }
            told += 1;
            show(&mut out, options.output, &packet.told(told, &known, &mut |label, at| names.pod(label, at)))?;
        }
    }
    for packet in paths.ended(Instant::now() + QUIET, QUIET) {
        if told < options.count {
            told += 1;
            show(&mut out, options.output, &packet.told(told, &known, &mut |label, at| names.pod(label, at)))?;
        }
    }
    if told == 0 {
        remark(&format!("no packet came that opens a connection to {target}"));
    }
    Ok(())
}

/// What to trace.
fn aims(
    socket: &Path,
    target: &Target,
    options: &TraceOptions,
    tables: &[(Family, crate::compile::TableImage)],
) -> Result<Vec<Aim>, Failure> {
    let asked = options.proto.as_deref().and_then(|proto| Protocol::from_kubernetes(Some(&proto.to_uppercase())));
    let protocols = asked.map_or(vec![Protocol::Tcp, Protocol::Udp], |protocol| vec![protocol]);
    let mut aims = Vec::new();
    let mut add = |protocol: Protocol, family: Family, address, port| {
        if asked.is_none_or(|asked| asked == protocol) {
            aims.push(Aim { family, protocol, client: options.from, address, port });
        }
    };
    match target {
        Target::Address(to) => {
            protocols.iter().for_each(|protocol| add(*protocol, Family::of(to.ip()), Some(to.ip()), to.port()));
        }
        Target::NodePort(port) => {
            for family in Family::ALL {
                protocols.iter().for_each(|protocol| add(*protocol, family, None, *port));
            }
        }
        Target::Service { key, port } => {
            let is_port =
                |name: &str, number: u16| port.as_deref().is_none_or(|port| port == name || port.parse() == Ok(number));
            match client::ask::<ServiceView>(socket, &service_path(&key.namespace, &key.name)) {
                Ok(view) => {
                    for one in view.ports.iter().filter(|one| is_port(&one.name, one.port)) {
                        let (Some(protocol), Some(family)) = (one.transport(), Family::from_kubernetes(&one.family))
                        else {
                            continue;
                        };
                        for frontend in one.frontends.iter().filter(|frontend| frontend.held_by.is_none()) {
                            add(protocol, family, frontend.address, frontend.port);
                        }
                    }
                }
                Err(ClientError::NoDaemon(_)) => {
                    for (family, table) in tables {
                        for (frontend, at) in &table.services {
                            if port_of(&at.label, &key.to_string()).is_some_and(|name| is_port(name, frontend.port)) {
                                add(frontend.protocol, *family, Some(frontend.address), frontend.port);
                            }
                        }
                        for (node_port, at) in &table.node_ports {
                            if port_of(&at.label, &key.to_string()).is_some_and(|name| is_port(name, 0)) {
                                add(node_port.protocol, *family, None, node_port.port);
                            }
                        }
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    if aims.is_empty() {
        return Err(TraceError::NoFrontend(target.to_string()).into());
    }
    if let Some(from) = options.from {
        aims.retain(|aim| aim.family == Family::of(from));
        if aims.is_empty() {
            return Err(TraceError::Family { from: from.to_string(), target: target.to_string() }.into());
        }
    }
    if aims.len() > MOST {
        return Err(TraceError::Many { target: target.to_string(), count: aims.len() }.into());
    }
    Ok(aims)
}

/// The port's name, if a label is this Service's.
fn port_of<'a>(label: &'a str, service: &str) -> Option<&'a str> {
    match label.strip_prefix(service)? {
        "" => Some(""),
        rest => rest.strip_prefix(':'),
    }
}

fn service_path(namespace: &str, name: &str) -> String {
    let encoded = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20");
    format!("/v1/services/{}/{}", encoded(namespace), encoded(name))
}

/// Whose endpoints are, as far as a daemon says.
struct Names<'a> {
    socket: &'a Path,
    asked: HashMap<String, Option<ServiceView>>,
}

impl Names<'_> {
    fn pod(&mut self, label: &str, at: SocketAddr) -> Option<String> {
        let view = self.asked.entry(label.to_owned()).or_insert_with(|| {
            let (namespace, rest) = label.split_once('/')?;
            let name = rest.split(':').next().unwrap_or(rest);
            client::ask(self.socket, &service_path(namespace, name)).ok()
        });
        let mut endpoints = view.as_ref()?.ports.iter().flat_map(|port| &port.endpoints);
        endpoints.find(|one| one.socket() == at)?.pod.as_deref().map(str::to_owned)
    }
}

fn show(out: &mut impl Write, format: Option<Format>, told: &Told) -> Result<(), Failure> {
    match format {
        Some(Format::Json) => {
            let line = serde_json::to_string(told).map_err(|error| Failure::Say(error.to_string()))?;
            writeln!(out, "{line}")?;
        }
        Some(Format::Yaml) => {
            writeln!(out, "---")?;
            say(out, Format::Yaml, told)?;
        }
        None => write(out, told, colours())?,
    }
    Ok(out.flush()?)
}

fn write(out: &mut impl Write, told: &Told, colours: bool) -> io::Result<()> {
    writeln!(out, "packet {}: {} {} -> {}", told.number, told.protocol, told.client, told.target)?;
    for step in &told.steps {
        let place = format!("{} {} {}", step.hook, step.table, step.chain);
        writeln!(out, "  {:<50} {}", plain(&place), plain(&step.words))?;
    }
    let look = if told.outcome.is_good() { Look::Good } else { Look::Bad };
    writeln!(out, "  {}", paint(&plain(&told.summary), look, colours))
}
