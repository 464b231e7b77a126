//! What there is to see. Nothing is judged here, and what cannot be seen is said.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use nft::Connection;

use super::trial;
use crate::kernel::glance;
use crate::operator::client;
use crate::status::{DriftView, HealthView};

/// Kernel parameters that matter, below `/proc/sys/net`.
pub const SYSCTLS: [&str; 10] = [
    "ipv4/ip_forward",
    "ipv6/conf/all/forwarding",
    "bridge/bridge-nf-call-iptables",
    "bridge/bridge-nf-call-ip6tables",
    "netfilter/nf_conntrack_max",
    "netfilter/nf_conntrack_count",
    "netfilter/nf_conntrack_events",
    "netfilter/nf_conntrack_acct",
    "netfilter/nf_conntrack_tcp_loose",
    "netfilter/nf_conntrack_tcp_be_liberal",
];

/// How long a port of the daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// `CAP_NET_ADMIN` (`include/uapi/linux/capability.h`).
const NET_ADMIN: u32 = 12;

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// `uname -r`.
    pub release: String,
    /// Whether we are root.
    pub root: bool,
    /// Whether we have `CAP_NET_ADMIN`.
    pub net_admin: bool,
    /// Whether nf_tables answers, here.
    pub nft: Probe,
    /// Whether it takes our rulesets, elsewhere.
    pub trial: Probe,
    /// By the names of [`SYSCTLS`]; those that are not there are left out.
    pub sysctls: BTreeMap<&'static str, u64>,
    /// Bridges of this namespace.
    pub bridges: Vec<String>,
    /// What others have in this network namespace that is for Services.
    pub others: Others,
    /// A service that keeps the clock, if one is seen.
    pub time_service: Option<String>,
    /// The daemon, or why it does not answer.
    pub daemon: Option<Daemon>,
    /// Why there is none.
    pub no_daemon: String,
}

/// Whether something works.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Probe {
    /// It does; how that showed.
    Fine(String),
    /// It does not.
    Failed(String),
    /// It could not be tried.
    Untried(String),
    /// Nobody tried.
    #[default]
    Unknown,
}

/// What others have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// nftables tables of kube-proxy: `ip kube-proxy`.
    pub kube_proxy_tables: Vec<String>,
    /// Chains of kube-proxy's in iptables-nft.
    pub kube_chains: usize,
    /// Whether the older iptables have a nat table, into which we cannot look.
    pub legacy_nat: bool,
    /// Virtual servers of IPVS; `None`: there is no IPVS.
    pub virtual_servers: Option<usize>,
    /// Whether `kube-ipvs0` is there.
    pub kube_ipvs: bool,
    /// Nat chains that may decide before ours.
    pub shadows: Vec<String>,
    /// Processes called `kube-proxy` in this network namespace, but for the daemon that answers.
    pub rivals: Vec<u32>,
    /// Tables of ours.
    pub own_tables: Vec<String>,
}

/// A daemon that answers.
#[derive(Clone, Debug)]
pub struct Daemon {
    /// What it says about itself.
    pub health: HealthView,
    /// Whether its process has `CAP_NET_ADMIN`; `None` if that cannot be seen.
    pub net_admin: Option<bool>,
    /// Descriptors: how many it has, and its limit.
    pub descriptors: Option<(usize, u64)>,
    /// What came of comparing its tables with what it desires.
    pub drift: Result<DriftView, String>,
    /// Its ports: what was asked for, and the status or what went wrong.
    pub ports: Vec<(String, Result<u16, String>)>,
}

/// Looks at everything; `socket` is where a daemon would answer.
pub fn gather(socket: &Path) -> Facts {
    let (daemon, no_daemon) = match client::ask::<HealthView>(socket, "/v1/health") {
        Ok(health) => (Some(Daemon::look(socket, health)), String::new()),
        Err(error) => (None, error.to_string()),
    };
    let mut facts = Facts {
        release: read("/proc/sys/kernel/osrelease").unwrap_or_default(),
        root: nix::unistd::geteuid().is_root(),
        net_admin: capable("self").unwrap_or(false),
        trial: trial::run(),
        sysctls: SYSCTLS
            .into_iter()
            .filter_map(|name| Some((name, number(&format!("/proc/sys/net/{name}"))?)))
            .collect(),
        bridges: interfaces()
            .into_iter()
            .filter(|name| Path::new(&format!("/sys/class/net/{name}/bridge")).exists())
            .collect(),
        time_service: time_service(),
        no_daemon,
        ..Facts::default()
    };
    (facts.nft, facts.others) = match others() {
        Ok(others) => (Probe::Fine("nf_tables answers".to_owned()), others),
        Err(error @ nft::Error::Unavailable(_)) => (Probe::Failed(error.to_string()), Others::default()),
        Err(error) => (Probe::Untried(error.to_string()), Others::default()),
    };
    facts.others.legacy_nat =
        read("/proc/self/net/ip_tables_names").is_some_and(|names| names.lines().any(|name| name == "nat"));
    let servers = |text: String| text.lines().filter(|line| line.starts_with(['T', 'U', 'S', 'F'])).count();
    facts.others.virtual_servers = read("/proc/self/net/ip_vs").map(servers);
    facts.others.kube_ipvs = interfaces().iter().any(|name| name == "kube-ipvs0");
    facts.others.rivals = rivals(daemon.as_ref().map(|daemon| daemon.health.pid));
    facts.daemon = daemon;
    facts
}

fn others() -> Result<Others, nft::Error> {
    let mut connection = Connection::open()?;
    let mut others = Others::default();
    for table in connection.tables()? {
        let family = match table.family {
            nft::Family::Ip => "ip",
            nft::Family::Ip6 => "ip6",
            _ => continue,
        };
        let name = || format!("{family} {}", table.name);
        match &*table.name {
            "kube-proxy" => others.kube_proxy_tables.push(name()),
            "pointsman" => others.own_tables.push(name()),
            "nat" | "filter" | "mangle" => {
                let chains = connection.chains(table.family, &table.name)?;
                others.kube_chains += chains
                    .iter()
                    .filter(|chain| chain.name.starts_with("KUBE-SVC-") || chain.name == "KUBE-SERVICES")
                    .count();
            }
            _ => {}
        }
    }
    let shadows = glance::shadows(&mut connection).unwrap_or_default();
    others.shadows = shadows.iter().map(ToString::to_string).collect();
    Ok(others)
}

/// Processes of that name that see the same network.
fn rivals(daemon: Option<u32>) -> Vec<u32> {
    let here = fs::read_link("/proc/self/ns/net").ok();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_rival = |pid: &u32| {
        Some(*pid) != daemon
            && read(&format!("/proc/{pid}/comm")).is_some_and(|name| name == "kube-proxy")
            && fs::read_link(format!("/proc/{pid}/ns/net")).ok() == here
    };
    numbers.filter(is_rival).collect()
}

/// Programs that keep clocks, and what systemd's leaves when it has succeeded.
fn time_service() -> Option<String> {
    if Path::new("/run/systemd/timesync/synchronized").exists() {
        return Some("systemd-timesyncd, synchronised".to_owned());
    }
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let names = processes.filter_map(|entry| read(&format!("/proc/{}/comm", entry.file_name().to_str()?)));
    let known = ["chronyd", "ntpd", "ntp-daemon", "openntpd", "ptp4l", "phc2sys", "systemd-timesyn"];
    names.into_iter().find(|name| known.contains(&&**name))
}

/// Of our own network namespace, which sysfs need not be of.
fn interfaces() -> Vec<String> {
    let table = read("/proc/self/net/dev").unwrap_or_default();
    table.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect()
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim_end().to_owned())
}

fn number(path: &str) -> Option<u64> {
    read(path)?.trim().parse().ok()
}

/// Whether a process may administer networks.
fn capable(pid: &str) -> Option<bool> {
    let status = read(&format!("/proc/{pid}/status"))?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    Some(u64::from_str_radix(effective.trim(), 16).ok()? >> NET_ADMIN & 1 == 1)
}

/// The status that a port answers with.
fn probe(address: SocketAddr, path: &str) -> Result<u16, String> {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let talk = || {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::new(ip, address.port()), PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut head = [0; 12];
        stream.read_exact(&mut head)?;
        std::io::Result::Ok(head)
    };
    let head = talk().map_err(|error| error.to_string())?;
    let status = head.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
    status.ok_or_else(|| "an answer that is not HTTP".to_owned())
}

// === impl Daemon ===

impl Daemon {
    fn look(socket: &Path, health: HealthView) -> Self {
        let pid = health.pid;
        let limits = read(&format!("/proc/{pid}/limits"));
        let limit = limits.as_deref().and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("Max open files"))?;
            line.split_whitespace().nth(3)?.parse().ok()
        });
        let open = fs::read_dir(format!("/proc/{pid}/fd")).ok().map(Iterator::count);
        let mut ports = Vec::new();
        if let Some(address) = health.health_address {
            ports.push((format!("http://{address}/livez"), probe(address, "/livez")));
            ports.push((format!("http://{address}/readyz"), probe(address, "/readyz")));
        }
        if let Some(address) = health.metrics_address {
            ports.push((format!("http://{address}/metrics"), probe(address, "/metrics")));
            if health.page {
                ports.push((format!("http://{address}/ui/"), probe(address, "/ui/")));
            }
        }
        Self {
            net_admin: capable(&pid.to_string()),
            descriptors: open.zip(limit),
            drift: client::ask(socket, "/v1/drift").map_err(|error| error.to_string()),
            ports,
            health,
        }
    }
}
