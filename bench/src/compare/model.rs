//! What is asked of everybody: the Services, the measurements, and what their figures mean.
//!
//! A *cluster* is a list of Services of one shape. The *bulk* are Services `service-0` to `service-(N-1)` of ten endpoints, all of them
//! addresses of the lab's one pod, so that every Service can be connected to; behind them come three with a purpose: [`WEB`], whose
//! endpoints change, [`STREAM`], whose endpoint streams and echoes over TCP, and [`DNS`], whose endpoint echoes over UDP. They are the last of
//! the list, where a linear search finds them last.
//!
//! A [`Measurement`] has *figures*, each with a unit and a direction that is better. Measurements of [`Measurement::by_size`] are taken
//! at every number of Services, the others at one.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use crate::cluster;

/// The namespace of all Services.
pub const NAMESPACE: &str = "bench";
/// Where the endpoints of the bulk listen, and those of [`WEB`], [`STREAM`] and [`DNS`].
pub const BULK_PORT: u16 = 8081;
pub const WEB_PORT: u16 = 9000;
pub const STREAM_PORT: u16 = crate::forward::load::PORT;
pub const DNS_PORT: u16 = 5353;

/// Service with changing endpoints.
pub const WEB: &str = "web";
/// Service of one endpoint that streams or echoes.
pub const STREAM: &str = "stream";
/// Service of one endpoint that echoes datagrams.
pub const DNS: &str = "dns";

/// The clients' network, which everybody is told is that of the pods: a client of the lab stands for a pod, whose source is kept.
pub const CLIENTS: &str = "192.168.50.0/24";

/// What a Service carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
}

/// A Service and its endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub name: String,
    pub address: Ipv4Addr,
    pub port: u16,
    pub protocol: Protocol,
    pub endpoints: Vec<SocketAddrV4>,
    /// Whoever chooses, in the contender's own words; `None` for its default.
    pub scheduler: Option<&'static str>,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Measurement {
    FirstSync,
    Cost,
    Setup,
    Requests,
    OneChange,
    Throughput,
    Udp,
    Packets,
    Balance,
    Moved,
    Disruption,
    Removal,
}

/// A number of a measurement.
#[derive(Debug, Clone, Copy)]
pub struct Figure {
    pub key: &'static str,
    pub title: &'static str,
    pub unit: &'static str,
    /// Whether more is better; `None` for what only explains the others.
    pub more: Option<bool>,
    /// Differences below this are none, in its unit.
    pub grain: f64,
}

const fn less(key: &'static str, title: &'static str, unit: &'static str, grain: f64) -> Figure {
    Figure { key, title, unit, more: Some(false), grain }
}

const fn more(key: &'static str, title: &'static str, unit: &'static str) -> Figure {
    Figure { key, title, unit, more: Some(true), grain: 0.0 }
}

const fn only(key: &'static str, title: &'static str, unit: &'static str) -> Figure {
    Figure { key, title, unit, more: None, grain: 0.0 }
}

// === impl Protocol ===

impl Protocol {
    /// In lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

// === impl Service ===

impl Service {
    /// Where clients connect to.
    pub fn to(&self) -> SocketAddr {
        (self.address, self.port).into()
    }

    /// `bench/web`
    pub fn key(&self) -> String {
        format!("{NAMESPACE}/{}", self.name)
    }
}

/// An address of the pod's for the bulk.
pub fn bulk_endpoint(number: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 244, 1, 1).to_bits() + u32::from(number))
}

/// An address of the pod's for [`WEB`].
pub fn web_endpoint(number: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 244, 2, 1).to_bits() + u32::try_from(number).expect("few"))
}

/// [`WEB`] with these endpoints.
pub fn web(endpoints: impl IntoIterator<Item = usize>, scheduler: Option<&'static str>) -> Service {
    Service {
        name: WEB.to_owned(),
        address: Ipv4Addr::new(10, 111, 0, 1),
        port: 80,
        protocol: Protocol::Tcp,
        endpoints: endpoints.into_iter().map(|number| SocketAddrV4::new(web_endpoint(number), WEB_PORT)).collect(),
        scheduler,
    }
}

/// [`STREAM`], whose endpoint is the pod itself.
pub fn stream(pod: Ipv4Addr) -> Service {
    let (address, endpoints) = (Ipv4Addr::new(10, 111, 0, 2), vec![SocketAddrV4::new(pod, STREAM_PORT)]);
    Service { name: STREAM.to_owned(), address, port: 80, protocol: Protocol::Tcp, endpoints, scheduler: None }
}

/// [`DNS`], whose endpoint is the pod itself.
pub fn dns(pod: Ipv4Addr) -> Service {
    let (address, endpoints) = (Ipv4Addr::new(10, 111, 0, 3), vec![SocketAddrV4::new(pod, DNS_PORT)]);
    Service { name: DNS.to_owned(), address, port: 53, protocol: Protocol::Udp, endpoints, scheduler: None }
}

/// A cluster of this many Services, and the three.
pub fn cluster(services: u32, endpoints: u16, pod: Ipv4Addr) -> Vec<Service> {
    let of_bulk: Vec<_> = (0..endpoints).map(|number| SocketAddrV4::new(bulk_endpoint(number), BULK_PORT)).collect();
    let bulk = (0..services).map(|number| Service {
        name: format!("service-{number}"),
        address: cluster::cluster_ip(number),
        port: cluster::SERVICE_PORT,
        protocol: Protocol::Tcp,
        endpoints: of_bulk.clone(),
        scheduler: None,
    });
    bulk.chain([web(0..4, None), stream(pod), dns(pod)]).collect()
}

// === impl Measurement ===

impl Measurement {
    /// In the order in which they are taken.
    pub const ALL: [Self; 12] = [
        Self::FirstSync,
        Self::Cost,
        Self::Setup,
        Self::Requests,
        Self::OneChange,
        Self::Throughput,
        Self::Udp,
        Self::Packets,
        Self::Balance,
        Self::Moved,
        Self::Disruption,
        Self::Removal,
    ];

    /// As records have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::FirstSync => "first-sync",
            Self::Cost => "cost",
            Self::Setup => "setup",
            Self::Requests => "requests",
            Self::OneChange => "one-change",
            Self::Throughput => "throughput",
            Self::Udp => "udp",
            Self::Packets => "packets",
            Self::Balance => "balance",
            Self::Moved => "moved",
            Self::Disruption => "disruption",
            Self::Removal => "removal",
        }
    }

    /// By its name.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.name() == name)
    }

    /// For a heading.
    pub fn title(self) -> &'static str {
        match self {
            Self::FirstSync => "First sync",
            Self::Cost => "CPU and memory",
            Self::Setup => "Connection set-up",
            Self::Requests => "Connect, ask, be answered, close",
            Self::OneChange => "One endpoint changes",
            Self::Throughput => "TCP throughput",
            Self::Udp => "UDP",
            Self::Packets => "Packets of established flows",
            Self::Balance => "Balance",
            Self::Moved => "Clients moved",
            Self::Disruption => "Disruption",
            Self::Removal => "A removed endpoint",
        }
    }

    /// What is timed or counted, for the report.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::FirstSync => {
                "From starting the program (daemon, or nft, iptables-restore, ipvsadm...) with nothing in the kernel until a sample of 20 Services over the whole range answers. The daemon reads its objects from an API server; the baselines' input was written beforehand and is not in their time."
            }
            Self::Cost => {
                "Of that first sync: CPU time of the control plane, its memory (resident, for programs that end: at most), and what kernel memory grew by (unreclaimable slab, vmalloc and per-CPU; the whole machine's, so single runs vary)."
            }
            Self::Setup => {
                "Time of connect() through ClusterIPs drawn over all Services, one connection at a time, reset at once; and its ratio to connecting without a proxy, by turns of 200, which holds where the machine's speed changes meanwhile. A userspace proxy answers the handshake itself, so its figure says nothing of the endpoint: see the next."
            }
            Self::Requests => {
                "16 clients at once: connect, send 64 bytes, get 64 back, see the end. The Service is the last but one of the list."
            }
            Self::OneChange => {
                "The one endpoint of a Service is replaced by another: from handing the change over (to the API server; for baselines, starting the program with the input kube-proxy would write) until a new connection meets the new endpoint. The baseline's own work before that (events, computing the input) is not in its time."
            }
            Self::Throughput => "4 streams from the pod to the client.",
            Self::Udp => "64-byte datagrams, there and back: one at a time on one flow; and a new flow for each.",
            Self::Packets => {
                "64 established UDP flows with one datagram under way each: packets per second, both directions."
            }
            Self::Balance => {
                "10 endpoints; Poisson arrivals and holding times (half of the runs exponential, half Pareto 1.3) at 200 per second, mean 1 s; of open connections over endpoints, averaged over time."
            }
            Self::Moved => {
                "256 client addresses under schedulers that keep a client's endpoint: how many, of those whose endpoint stayed, were sent elsewhere when one of 10 endpoints left, and when it came back."
            }
            Self::Disruption => {
                "While 4 endpoints become 6, become 4 again, are replaced one by one, and the control plane restarts: new connections all the time, 32 held. How many of them failed or broke."
            }
            Self::Removal => {
                "From handing over that an endpoint is gone until the last new connection that still met it."
            }
        }
    }

    /// What its figures must not be read without, because it is not the same for all: stands wherever they do.
    pub fn caveat(self) -> Option<&'static str> {
        match self {
            Self::FirstSync => Some(
                "A daemon's figure includes an API server's work (a double, on the same two cores): it lists all objects, writes them as JSON, and the daemon reads them. The baselines', HAProxy's and nginx's is only the program that is given input prepared beforehand.",
            ),
            Self::Cost => Some(
                "A daemon's CPU time includes reading all objects from an API server (whose own is not in it), and its memory is that of the process that stays. A baseline's are those of the program that writes to the kernel, and ends.",
            ),
            Self::OneChange => Some(
                "A daemon's figure includes an API server's (double's) writing the change and the daemon's reading it. The baselines' begins with the start of the program (nft, iptables-restore, ipvsadm), HAProxy's and nginx's with writing a new configuration.",
            ),
            Self::Setup => {
                Some("Of the userspace proxies it is the handshake alone, which they answer themselves: see the next.")
            }
            _ => None,
        }
    }

    /// What it says; the first is what charts show.
    pub fn figures(self) -> &'static [Figure] {
        match self {
            Self::FirstSync => const { &[less("ms", "first sync", "ms", 0.0)] },
            Self::Cost => {
                const {
                    &[
                        less("cpu_ms", "control plane's CPU", "ms", 5.0),
                        less("memory_mb", "control plane's memory", "MB", 0.5),
                        less("kernel_mb", "kernel memory", "MB", 0.5),
                    ]
                }
            }
            Self::Setup => {
                const {
                    &[
                        less("p50_ratio", "p50 against no proxy", "times", 0.0),
                        less("p50_us", "p50", "µs", 0.0),
                        less("p90_us", "p90", "µs", 0.0),
                        less("p99_us", "p99", "µs", 0.0),
                        more("rate", "one client", "per s"),
                    ]
                }
            }
            Self::Requests => {
                const {
                    &[more("rate", "rate", "per s"), less("p50_us", "p50", "µs", 0.0), less("p99_us", "p99", "µs", 0.0)]
                }
            }
            Self::OneChange => const { &[less("p50_ms", "p50", "ms", 0.0), less("max_ms", "longest", "ms", 0.0)] },
            Self::Throughput => const { &[more("gbps", "throughput", "Gb/s")] },
            Self::Udp => {
                const {
                    &[
                        less("p50_us", "round trip p50", "µs", 0.0),
                        less("p99_us", "p99", "µs", 0.0),
                        more("fresh_rate", "new flows", "per s"),
                    ]
                }
            }
            Self::Packets => const { &[more("rate", "packets", "per s")] },
            Self::Balance => {
                const {
                    &[
                        less("most", "max / mean", "", 0.0),
                        less("cv", "CV", "", 0.0),
                        more("jain", "Jain index", ""),
                        less("failed", "failed", "", 0.0),
                    ]
                }
            }
            Self::Moved => {
                const { &[less("left_pct", "moved when one left", "%", 0.0), less("back_pct", "when it was back", "%", 0.0)] }
            }
            Self::Disruption => {
                const {
                    &[
                        less("failed", "new connections failed", "", 0.0),
                        only("new", "of", ""),
                        less("broken", "held connections broken", "", 0.0),
                        only("held", "of", ""),
                    ]
                }
            }
            Self::Removal => const { &[less("ms", "until the last", "ms", 0.5)] },
        }
    }

    /// Whether it is taken at every number of Services.
    pub fn by_size(self) -> bool {
        matches!(self, Self::FirstSync | Self::Cost | Self::Setup | Self::Requests | Self::OneChange)
    }

    /// Whether it can be taken again in the same session when the floor has moved.
    pub fn repeatable(self) -> bool {
        !matches!(self, Self::FirstSync | Self::Cost | Self::Balance | Self::Disruption)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_again() {
        for measurement in Measurement::ALL {
            assert_eq!(Measurement::of(measurement.name()), Some(measurement));
            assert!(!measurement.figures().is_empty());
        }
    }

    #[test]
    fn the_three_come_last() {
        let cluster = cluster(3, 10, Ipv4Addr::new(10, 244, 0, 2));
        let names: Vec<_> = cluster.iter().map(|service| service.name.as_str()).collect();
        assert_eq!(names, ["service-0", "service-1", "service-2", "web", "stream", "dns"]);
        assert_eq!(cluster[2].endpoints.len(), 10);
        assert_eq!(cluster[0].to(), SocketAddr::from(([10, 96, 0, 1], 80)));
    }
}
