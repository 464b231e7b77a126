//! Measurements of Pointsman on the machine at hand, each against its yardstick in the same run.
//!
//! A *measurement* is a subcommand. It makes what it needs (namespaces, objects, tables), measures its *variants* in rounds so that
//! whatever else the machine does meets all of them alike, prints a table and a verdict, and leaves raw data behind ([`report`]).
//! What each one measures, and how to read it, is in `bench/README.md`.
//!
//! Where things are: [`cluster`] makes Kubernetes objects, [`arrivals`] carries schedules of connections out, [`stats`] makes few numbers of many,
//! [`usage`] asks the kernel what something cost, [`daemon`] is the program as a child process, [`report`] writes tables and files; [`churn`],
//! [`compare`], [`counting`], [`first_packet`], [`forward`], [`forward_udp`], [`hitless`], [`load`], [`scale`], [`schedulers`],
//! [`split`], [`status`] and [`live`] are the measurements.
//!
//! Invariant: speed is printed, never asserted. A run fails only when something could not be measured.

mod arrivals;
mod churn;
mod cluster;
mod compare;
mod counting;
mod daemon;
mod first_packet;
mod forward;
mod forward_udp;
mod hitless;
mod live;
mod load;
mod read;
mod report;
mod scale;
mod schedulers;
mod split;
mod stats;
mod status;
mod usage;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// The daemon's allocator: what is measured in this process is measured as the daemon does it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures Pointsman on this machine. Needs root: every measurement runs in network namespaces of its own.
#[derive(Debug, Parser)]
#[command(name = "bench", version)]
struct Cli {
    #[command(subcommand)]
    measurement: Measurement,
    #[command(flatten)]
    common: Common,
}

/// What every measurement takes.
#[derive(Debug, Args)]
struct Common {
    /// Directory for raw data and summary; default: `bench/results/DATE-KERNEL`
    #[arg(long, global = true, value_name = "DIR")]
    out: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Measurement {
    /// Everybody side by side: us, the shapes of kube-proxy's modes, userspace proxies, no proxy; an HTML report with charts
    Compare(Box<compare::Options>),
    /// What it costs to know how many connections each Service has: counters, events, walks; needs nft
    Counting(counting::Options),
    /// Latency of opening a connection through a ClusterIP, against a bare path and one hard-coded dnat rule
    FirstPacket(first_packet::Options),
    /// Throughput, connections, latency and memory of the userspace forwarder, against HAProxy, nginx and tokio
    Forward(forward::Options),
    /// One of our own forwarders, for `forward`
    #[command(hide = true, subcommand)]
    ForwardPeer(forward::Own),
    /// Datagrams through the userspace forwarder, against nginx and the direct path; needs nginx with its stream module
    ForwardUdp(forward_udp::Options),
    /// A million events of churn: memory, maps and numbers of the daemon
    Churn(churn::Options),
    /// New connections that fail while the daemon is killed and other Services change
    Hitless(hitless::Options),
    /// Time to program 100,000 endpoints from nothing, against a raw encoder; and the time of a single change
    Load(load::Options),
    /// Reading a map back: listing it, against asking for its elements by key
    Read(read::Options),
    /// What updates, storms, restarts and memory cost as the cluster grows; the daemon itself against an API server double
    Scale(scale::Options),
    /// What the schedulers promise: turns, shares, clients that stay; and what each costs
    Schedulers(schedulers::Options),
    /// How near a canary comes to its share, beside few and many replicas
    Split(split::Options),
    /// How long people wait who look inside, and how long the controller is held by it; the page needs Chromium
    Status(status::Options),
    /// Evenness, cost and reaction of least connection on real connections, against an exact simulation and round robin
    LeastConnections(live::Options),
    /// Simulation: least connection by each node's own connections, seen from the whole cluster
    NodeLocal(live::NodesOptions),
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    anyhow::ensure!(nix::unistd::geteuid().is_root(), "measurements make network namespaces: run as root");
    match cli.measurement {
        Measurement::Compare(options) => compare::run(&options, cli.common.out),
        Measurement::Counting(options) => counting::run(&options, cli.common.out),
        Measurement::FirstPacket(options) => first_packet::run(&options, cli.common.out),
        Measurement::Forward(options) => forward::run(&options, cli.common.out),
        Measurement::ForwardPeer(own) => forward::serve(own),
        Measurement::ForwardUdp(options) => forward_udp::run(&options, cli.common.out),
        Measurement::Churn(options) => churn::run(&options, cli.common.out),
        Measurement::Hitless(options) => hitless::run(&options, cli.common.out),
        Measurement::Load(options) => load::run(&options, cli.common.out),
        Measurement::Read(options) => read::run(&options, cli.common.out),
        Measurement::Scale(options) => scale::run(&options, cli.common.out),
        Measurement::Schedulers(options) => schedulers::run(&options, cli.common.out),
        Measurement::Split(options) => split::run(&options, cli.common.out),
        Measurement::Status(options) => status::run(&options, cli.common.out),
        Measurement::LeastConnections(options) => live::run(&options, cli.common.out),
        Measurement::NodeLocal(options) => live::run_nodes(&options, cli.common.out),
    }
}
