//! Frontends and endpoints in the very shape of `ipvsadm -ln`: people and scripts know it.
//!
//! Rows and headings are [`rows`]; the abbreviation of large numbers is that of ipvsadm 1.31, too.
//!
//! The plain list is printed line by line while the daemon still makes it; whatever adds up waits for all of it. Rates are measured where connection
//! tracking is read, by the daemon: what was opened within a second, not how many more there are.

use std::collections::{HashMap, HashSet};
use std::io::{self, BufWriter, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use super::cli::ListOptions;
use super::client::{self, ClientError, RowError};
use super::text::{self, Table};
use super::{Failure, NOT_COUNTED, Screen, ask, none_found, remark, repeat, say, tables};
use crate::kernel::conntrack::{ConntrackError, Measuring, accounting, take_census};
use crate::kernel::glance;
use crate::status::rows::{self, EndpointRows};
use crate::status::{
    ConnectionList, ConnectionRow, Counters, DestinationView, RateList, VERSION, VirtualList, VirtualView,
};

/// For how many seconds rates are measured.
const WINDOW: &str = "1";

/// What is printed at once.
const BUFFER: usize = 64 * 1024;

/// Lists with connections, as scripts get it.
#[derive(Debug, Serialize)]
struct Listed {
    version: &'static str,
    /// `daemon` or `kernel`: who was asked.
    source: &'static str,
    /// Whether packets and bytes are counted (`net.netfilter.nf_conntrack_acct`).
    accounting: bool,
    /// Connections changed faster than they were counted: numbers are not exact.
    partial: bool,
    /// For how long rates were measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds: Option<f64>,
    services: Vec<Value>,
}

/// A frontend, with connections.
#[derive(Debug)]
struct ListedService<'a> {
    service: &'a VirtualView,
    destinations: Vec<Destination>,
}

#[derive(Debug, Serialize)]
struct Destination {
    #[serde(flatten)]
    destination: DestinationView,
    connections: Counters,
}

/// Connections by what they were made to and who answers.
#[derive(Debug, Default)]
struct Live {
    pairs: HashMap<(String, SocketAddr, SocketAddr), Counters>,
    ports: HashMap<(String, u16, SocketAddr), Counters>,
}

/// What was found, and where.
struct Found {
    list: VirtualList,
    /// Connections that are there; or those that were opened, as active ones.
    rows: Vec<ConnectionRow>,
    /// Within how many seconds, if rates were asked for.
    seconds: Option<f64>,
    accounting: bool,
    /// Connection tracking, or the forwarder, changed too fast to be read well.
    partial: bool,
    /// Whether connection tracking was read at all.
    read: bool,
    source: &'static str,
    /// What is to be known beside it.
    remarks: Vec<String>,
}

/// Frontends, and who told them.
struct Frontends {
    list: VirtualList,
    source: &'static str,
    remarks: Vec<String>,
}

/// What came of the daemon's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Streamed {
    /// Rows.
    Rows,
    /// A heading and no rows.
    Nothing,
    /// There is no daemon.
    NoDaemon,
}

pub(super) fn run(socket: &Path, options: &ListOptions) -> Result<(), Failure> {
    let is_plain = !(options.stats || options.rate || options.connections) && options.output.is_none();
    if is_plain && options.watch.is_none() {
        let mut out = BufWriter::with_capacity(BUFFER, io::stdout().lock());
        let streamed = stream(&mut out, socket, options)?;
        out.flush()?;
        if streamed == Streamed::Nothing {
            remark(&nothing(options));
        }
        if streamed != Streamed::NoDaemon {
            return Ok(());
        }
    }
    repeat(options.watch, |screen| {
        if is_plain {
            let streamed = stream(&mut screen.text, socket, options)?;
            if streamed == Streamed::Nothing {
                screen.remarks.push(nothing(options));
            }
            if streamed != Streamed::NoDaemon {
                return Ok(());
            }
        }
        show(screen, options, &find(socket, options)?)
    })
}

fn show(screen: &mut Screen, options: &ListOptions, found: &Found) -> Result<(), Failure> {
    screen.remarks.extend_from_slice(&found.remarks);
    let live = Live::of(&found.list, &found.rows);
    let services: Vec<_> = found.list.services.iter().map(|service| live.about(service)).collect();
    if let Some(format) = options.output {
        if options.connections {
            let is_all = options.search.is_none() && options.namespace.is_none();
            let is_found = leads_to(&found.list);
            let rows: Vec<_> = found.rows.iter().filter(|row| is_all || is_found(row)).collect();
            return say(&mut screen.text, format, &rows);
        }
        let Found { source, accounting, partial, seconds, .. } = *found;
        let services = services.iter().map(|service| service.value(seconds)).collect();
        let listed = Listed { version: VERSION, source, accounting, partial, seconds, services };
        return say(&mut screen.text, format, &listed);
    }
    if services.is_empty() {
        screen.remarks.push(nothing(options));
    }
    if (options.stats || options.rate) && !found.accounting {
        screen.remarks.push(NOT_COUNTED.to_owned());
    }
    if found.partial && found.read {
        screen.remarks.push("connections changed faster than they were counted: numbers are not exact".to_owned());
    }
    if options.connections {
        let table = connections(&services);
        if table.is_empty() && !services.is_empty() {
            screen.remarks.push("there is no connection to any of them".to_owned());
        }
        return Ok(table.write(&mut screen.text, text::colours())?);
    }
    Ok(write(&mut screen.text, &services, options, found.seconds.unwrap_or(1.0))?)
}

fn nothing(options: &ListOptions) -> String {
    none_found("Service", options.search.as_deref(), options.namespace.as_deref(), None)
}

/// Prints the daemon's list while it is still made.
fn stream(out: &mut impl Write, socket: &Path, options: &ListOptions) -> Result<Streamed, Failure> {
    let parameters =
        [("namespace", options.namespace.as_deref()), ("search", options.search.as_deref()), ("rows", Some("true"))];
    let mut begun = false;
    let printed = client::each_row(socket, &client::query("/v1/list", &parameters), |row| {
        if !begun {
            begun = true;
            rows::heading(out)?;
        }
        out.write_all(row)
    });
    match printed {
        Ok(()) if !begun => {
            rows::heading(out)?;
            Ok(Streamed::Nothing)
        }
        Ok(()) => Ok(Streamed::Rows),
        Err(RowError::Client(ClientError::NoDaemon(_))) => Ok(Streamed::NoDaemon),
        Err(RowError::Client(error)) => {
            out.flush()?;
            Err(error.into())
        }
        Err(RowError::Write(error)) => Err(error.into()),
    }
}

fn find(socket: &Path, options: &ListOptions) -> Result<Found, Failure> {
    if options.rate {
        return match client::ask::<RateList>(socket, &client::query("/v1/rates", &[("seconds", Some(WINDOW))])) {
            // Whoever came meanwhile has rates, too.
            Ok(rates) => Ok(rated(frontends(socket, options)?, &rates)),
            Err(ClientError::NoDaemon(_)) => {
                let mut from = frontends(socket, options)?;
                Ok(match measure() {
                    Ok(rates) => rated(from, &rates),
                    Err(error) => {
                        from.remarks.push(format!("rates cannot be measured: {error}"));
                        Found { seconds: Some(1.0), ..from.uncounted() }
                    }
                })
            }
            Err(error) => Err(error.into()),
        };
    }
    let mut from = frontends(socket, options)?;
    if from.source == DAEMON {
        let ConnectionList { connections, accounting, partial, .. } = ask(socket, "/v1/connections")?;
        return Ok(Found { rows: connections, accounting, partial, read: true, ..from.uncounted() });
    }
    Ok(match take_census(&[], |_| None) {
        Ok(census) => Found { rows: census.rows(), partial: census.partial, read: true, ..from.uncounted() },
        Err(error) => {
            from.remarks.push(format!("connections cannot be counted: {error}"));
            from.uncounted()
        }
    })
}

fn rated(from: Frontends, rates: &RateList) -> Found {
    let RateList { seconds, accounting, partial, .. } = *rates;
    let seconds = Some(seconds);
    Found { rows: opened(rates), seconds, accounting, partial, read: true, ..from.uncounted() }
}

/// Who was asked.
const DAEMON: &str = "daemon";
const KERNEL: &str = "kernel";

fn frontends(socket: &Path, options: &ListOptions) -> Result<Frontends, Failure> {
    let parameters = [("namespace", options.namespace.as_deref()), ("search", options.search.as_deref())];
    match client::ask::<VirtualList>(socket, &client::query("/v1/list", &parameters)) {
        Ok(list) => Ok(Frontends { list, source: DAEMON, remarks: Vec::new() }),
        Err(client @ ClientError::NoDaemon(_)) => {
            let tables = match glance::tables() {
                Ok(tables) if tables.is_empty() => return Err(Failure::Nothing { client }),
                Ok(tables) => tables,
                Err(kernel) => return Err(Failure::Nobody { client, kernel }),
            };
            let mut list = tables::list(&tables);
            list.services.retain(|service| is_wanted(service, options));
            let remarks = vec![format!("{client}; this is what the kernel's tables say")];
            Ok(Frontends { list, source: KERNEL, remarks })
        }
        Err(error) => Err(error.into()),
    }
}

/// As the daemon does it; what its forwarder carries is known by the listener alone.
fn measure() -> Result<RateList, ConntrackError> {
    let measuring = Measuring::begin()?;
    std::thread::sleep(Duration::from_secs(1));
    measuring.end(|_| None)
}

/// What was opened, as connections.
fn opened(rates: &RateList) -> Vec<ConnectionRow> {
    let row = |row: &crate::status::RateRow| ConnectionRow {
        protocol: row.protocol.clone(),
        destination: row.destination,
        endpoint: row.endpoint,
        counters: Counters { active: row.came.opened, inactive: 0, traffic: row.came.traffic },
    };
    rates.rates.iter().map(row).collect()
}

/// As far as tables know: by the name of the Service port, an address, or a port.
fn is_wanted(service: &VirtualView, options: &ListOptions) -> bool {
    let namespace = service.service.split('/').next().unwrap_or_default();
    let frontend = SocketAddr::new(service.address, service.port).to_string();
    options.namespace.as_deref().is_none_or(|wanted| wanted == namespace)
        && options.search.as_deref().is_none_or(|text| {
            let endpoint = |one: &DestinationView| one.address.to_string().contains(text);
            service.service.contains(&text.to_lowercase())
                || frontend.contains(text)
                || service.endpoints.iter().any(endpoint)
        })
}

/// Whether a connection was made to one of these frontends.
fn leads_to(list: &VirtualList) -> impl Fn(&ConnectionRow) -> bool {
    let key = |protocol: &str, at: SocketAddr, node_port: bool| {
        let address = if node_port { None } else { Some(at.ip()) };
        (protocol.to_owned(), address, at.is_ipv4(), at.port())
    };
    let at = |service: &VirtualView| SocketAddr::new(service.address, service.port);
    let frontends: HashSet<_> =
        list.services.iter().map(|service| key(&service.protocol, at(service), service.node_port)).collect();
    move |row| [false, true].iter().any(|port| frontends.contains(&key(&row.protocol, row.destination, *port)))
}

fn connections(services: &[ListedService<'_>]) -> Table {
    let mut table = Table::new(["SERVICE", "PROTO", "FRONTEND", "ENDPOINT", "ACTIVE", "INACTIVE"]);
    for ListedService { service, destinations } in services {
        for one in destinations.iter().filter(|one| one.connections != Counters::default()) {
            table.push([
                (&service.service).into(),
                (&service.protocol).into(),
                frontend(service).into(),
                one.destination.address.to_string().into(),
                one.connections.active.to_string().into(),
                one.connections.inactive.to_string().into(),
            ]);
        }
    }
    table
}

fn write(out: &mut impl Write, services: &[ListedService<'_>], options: &ListOptions, seconds: f64) -> io::Result<()> {
    let heads = |names: [&str; 5]| names.iter().map(|name| format!(" {name:>8}")).collect::<String>();
    let counted = options.stats || options.rate;
    if counted {
        let names = if options.stats {
            ["Conns", "InPkts", "OutPkts", "InBytes", "OutBytes"]
        } else {
            ["CPS", "InPPS", "OutPPS", "InBPS", "OutBPS"]
        };
        rows::title(out)?;
        writeln!(out, "{:<33}{}\n  -> RemoteAddress:Port", "Prot LocalAddress:Port", heads(names))?;
    } else {
        rows::heading(out)?;
    }
    let mut endpoints = EndpointRows::default();
    let numbers = |counters: &Counters| {
        let traffic = counters.traffic.unwrap_or_default();
        let all = [
            counters.active + counters.inactive,
            traffic.packets_in,
            traffic.packets_out,
            traffic.bytes_in,
            traffic.bytes_out,
        ];
        let shown = all.map(|number| if options.rate { (number as f64 / seconds).round() as u64 } else { number });
        shown.map(large).concat()
    };
    for ListedService { service, destinations } in services {
        let at = SocketAddr::new(service.address, service.port);
        if counted {
            let name = format!("{:<4} {at}", service.protocol);
            let mut sum = Counters::default();
            destinations.iter().for_each(|one| sum += one.connections);
            writeln!(out, "{name:<33}{}", numbers(&sum))?;
        } else {
            let verdict = service.verdict.as_deref();
            rows::frontend(out, &service.protocol, at, &service.scheduler, service.persistent, verdict)?;
        }
        for Destination { destination, connections } in destinations {
            if counted {
                let address = destination.address.to_string();
                writeln!(out, "  -> {address:<28}{}", numbers(connections))?;
            } else {
                endpoints.write(
                    out,
                    destination.address,
                    (destination.weight, connections.active, connections.inactive),
                )?;
            }
        }
    }
    Ok(())
}

fn frontend(service: &VirtualView) -> String {
    SocketAddr::new(service.address, service.port).to_string()
}

/// As ipvsadm writes large numbers: in thousands, millions, thousand millions from nine digits on.
fn large(number: u64) -> String {
    match number {
        0..=99_999_999 => format!(" {number:>8}"),
        100_000_000..=999_999_999 => format!(" {:>7}K", number / 1_000),
        1_000_000_000..=99_999_999_999 => format!(" {:>7}M", number / 1_000_000),
        100_000_000_000..=99_999_999_999_999 => format!(" {:>7}G", number / 1_000_000_000),
        _ => format!(" {:>7}T", number / 1_000_000_000_000),
    }
}

// === impl Frontends ===

impl Frontends {
    /// Without connections, as long as nobody has read any.
    fn uncounted(self) -> Found {
        let Self { list, source, remarks } = self;
        let (rows, accounting) = (Vec::new(), accounting());
        Found { list, rows, seconds: None, accounting, partial: true, read: false, source, remarks }
    }
}

// === impl ListedService ===

impl ListedService<'_> {
    /// The view, its endpoints with their connections; or, where connections are those of so many seconds, with rates.
    fn value(&self, seconds: Option<f64>) -> Value {
        let mut value = json!(self.service);
        value["endpoints"] = match seconds {
            None => json!(self.destinations),
            Some(seconds) => self.destinations.iter().map(|one| one.rates(seconds)).collect(),
        };
        value
    }
}

// === impl Destination ===

impl Destination {
    /// The endpoint with what comes per second.
    fn rates(&self, seconds: f64) -> Value {
        let per_second = |number: u64| json!((number as f64 / seconds * 1e3).round() / 1e3);
        let Counters { active: opened, traffic, .. } = self.connections;
        let mut rates = json!({"connections": per_second(opened)});
        if let Some(traffic) = traffic {
            rates["packetsIn"] = per_second(traffic.packets_in);
            rates["packetsOut"] = per_second(traffic.packets_out);
            rates["bytesIn"] = per_second(traffic.bytes_in);
            rates["bytesOut"] = per_second(traffic.bytes_out);
        }
        let mut value = json!(self.destination);
        value["rates"] = rates;
        value
    }
}

// === impl Live ===

impl Live {
    fn of(list: &VirtualList, rows: &[ConnectionRow]) -> Self {
        let frontends: HashSet<_> = list
            .services
            .iter()
            .filter(|service| !service.node_port)
            .map(|service| (service.protocol.as_str(), SocketAddr::new(service.address, service.port)))
            .collect();
        let mut live = Self::default();
        for row in rows {
            *live.pairs.entry((row.protocol.clone(), row.destination, row.endpoint)).or_default() += row.counters;
            // Of node ports the address does not matter, as long as it is not another frontend's.
            if !frontends.contains(&(row.protocol.as_str(), row.destination)) {
                *live.ports.entry((row.protocol.clone(), row.destination.port(), row.endpoint)).or_default() +=
                    row.counters;
            }
        }
        live
    }

    fn about<'a>(&self, service: &'a VirtualView) -> ListedService<'a> {
        let destinations = service.endpoints.iter().map(|one| {
            let found = if service.node_port {
                self.ports.get(&(service.protocol.clone(), service.port, one.address))
            } else {
                let frontend = SocketAddr::new(service.address, service.port);
                self.pairs.get(&(service.protocol.clone(), frontend, one.address))
            };
            Destination { destination: *one, connections: found.copied().unwrap_or_default() }
        });
        ListedService { service, destinations: destinations.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;
    use crate::status::Traffic;

    fn services() -> VirtualList {
        let at = |text: &str| text.parse().expect("an address");
        let service = |service: &str, protocol: &str, frontend: &str, scheduler: &str, endpoints: &[(&str, u16)]| {
            let frontend: SocketAddr = at(frontend);
            VirtualView {
                service: service.into(),
                protocol: protocol.into(),
                address: frontend.ip(),
                port: frontend.port(),
                node_port: frontend.ip().is_unspecified(),
                scheduler: scheduler.into(),
                persistent: None,
                verdict: endpoints.is_empty().then(|| "refuse".to_owned()),
                endpoints: endpoints
                    .iter()
                    .map(|(a, weight)| DestinationView { address: at(a), weight: *weight, by_hand: false })
                    .collect(),
            }
        };
        let mut sticky = service("kube-system/dns", "UDP", "[fd00::a]:53", "sh", &[("[fd00:1::1]:53", 1)]);
        sticky.persistent = Some(10800);
        let services = vec![
            service("shop/web", "TCP", "10.96.0.50:80", "wrr", &[("10.244.0.10:8080", 3), ("10.244.0.11:8080", 0)]),
            service("shop/web", "TCP", "0.0.0.0:30080", "wrr", &[("10.244.0.10:8080", 3)]),
            sticky,
            service("shop/none", "TCP", "10.96.0.51:80", "rr", &[]),
        ];
        VirtualList { version: VERSION.into(), services }
    }

    fn rows() -> Vec<ConnectionRow> {
        let row = |destination: &str, counters| ConnectionRow {
            protocol: Protocol::Tcp.to_string(),
            destination: destination.parse().expect("an address"),
            endpoint: "10.244.0.10:8080".parse().expect("an address"),
            counters,
        };
        let traffic = Traffic { packets_in: 12, packets_out: 9, bytes_in: 1_000, bytes_out: 123_456_789 };
        vec![
            row("10.96.0.50:80", Counters { active: 2, inactive: 1, traffic: Some(traffic) }),
            row("192.168.0.1:30080", Counters { active: 1, inactive: 0, traffic: None }),
            row("192.168.0.2:30080", Counters { active: 1, inactive: 4, traffic: None }),
        ]
    }

    fn shown(options: &ListOptions) -> String {
        let (list, rows) = (services(), rows());
        let live = Live::of(&list, &rows);
        let services: Vec<_> = list.services.iter().map(|service| live.about(service)).collect();
        let mut out = Vec::new();
        write(&mut out, &services, options, 1.0).expect("memory");
        // Ends of lines are as ipvsadm has them, and not to be seen in a snapshot.
        String::from_utf8(out).expect("text").lines().map(|line| line.trim_end().to_owned() + "\n").collect()
    }

    #[test]
    fn the_shape_of_ipvsadm() {
        insta::assert_snapshot!(shown(&ListOptions::default()), @r"
        IP Virtual Server version 0.1.0 (pointsman)
        Prot LocalAddress:Port Scheduler Flags
          -> RemoteAddress:Port           Forward Weight ActiveConn InActConn
        TCP  10.96.0.50:80 wrr
          -> 10.244.0.10:8080             Masq    3      2          1
          -> 10.244.0.11:8080             Masq    0      0          0
        TCP  0.0.0.0:30080 wrr
          -> 10.244.0.10:8080             Masq    3      2          4
        UDP  [fd00::a]:53 sh persistent 10800
          -> [fd00:1::1]:53               Masq    1      0          0
        TCP  10.96.0.51:80 rr refuse
        ");
        insta::assert_snapshot!(shown(&ListOptions { stats: true, ..ListOptions::default() }), @r"
        IP Virtual Server version 0.1.0 (pointsman)
        Prot LocalAddress:Port               Conns   InPkts  OutPkts  InBytes OutBytes
          -> RemoteAddress:Port
        TCP  10.96.0.50:80                       3       12        9     1000  123456K
          -> 10.244.0.10:8080                    3       12        9     1000  123456K
          -> 10.244.0.11:8080                    0        0        0        0        0
        TCP  0.0.0.0:30080                       6        0        0        0        0
          -> 10.244.0.10:8080                    6        0        0        0        0
        UDP  [fd00::a]:53                        0        0        0        0        0
          -> [fd00:1::1]:53                      0        0        0        0        0
        TCP  10.96.0.51:80                       0        0        0        0        0
        ");
    }

    #[test]
    fn connections_are_those_of_who_was_found() {
        let (mut list, rows) = (services(), rows());
        let count = |list: &VirtualList| rows.iter().filter(|row| leads_to(list)(row)).count();
        assert_eq!(count(&list), 3);
        list.services.remove(0);
        assert_eq!(count(&list), 2, "by the node port, to whatever address");
        list.services.remove(0);
        assert_eq!(count(&list), 0);
    }

    #[test]
    fn rates_are_per_second() {
        let list = services();
        let live = Live::of(&list, &rows());
        let service = live.about(&list.services[0]).value(Some(2.0));
        let want = json!([
            {"address": "10.244.0.10:8080", "weight": 3, "rates": {
                "connections": 1.0, "packetsIn": 6.0, "packetsOut": 4.5, "bytesIn": 500.0, "bytesOut": 61_728_394.5}},
            {"address": "10.244.0.11:8080", "weight": 0, "rates": {"connections": 0.0}},
        ]);
        assert_eq!(service["endpoints"], want);
        let options = ListOptions { rate: true, ..ListOptions::default() };
        let mut out = Vec::new();
        write(&mut out, &[live.about(&list.services[1])], &options, 0.5).expect("memory");
        let out = String::from_utf8(out).expect("text");
        assert!(out.contains("     CPS    InPPS   OutPPS    InBPS   OutBPS"), "{out}");
        assert!(
            out.ends_with("  -> 10.244.0.10:8080                   12        0        0        0        0\n"),
            "{out}"
        );
    }
}
