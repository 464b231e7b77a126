//! What can be said on the command line. Help, completions and the man page are made from this.

// These texts are help before they are documentation: `[:PORT]` is a part that may be left out, no link.
#![allow(rustdoc::broken_intra_doc_links)]

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::table::STATUS_SOCKET;
use crate::demo;

use super::doctor::DoctorOptions;
use super::orders::{DrainOptions, UndrainOptions, WeightOptions};

/// Shows what Pointsman does, on this machine
///
/// Pointsman is a drop-in replacement for Kubernetes' kube-proxy that compiles Services into nftables maps. The daemon is the
/// binary `kube-proxy`; this command is for the people around it.
#[derive(Debug, Parser)]
#[command(name = "pointsman", version, after_help = EXAMPLES)]
pub struct Cli {
    /// The daemon's status socket
    #[arg(long, global = true, value_name = "PATH", default_value = STATUS_SOCKET)]
    pub socket: PathBuf,

    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show every frontend and its endpoints in the shape of `ipvsadm -ln`
    ///
    /// Active and inactive connections are counted from connection tracking. A node port stands with the unspecified address: it is on every
    /// address that serves node ports. An endpoint that drains or weighs 0 is shown with weight 0; a frontend without endpoints refuses or drops.
    ///
    /// --rate measures for one second: connections that were opened meanwhile, however short, and what all of them carried. A connection that an endpoint
    /// refuses is not counted: it leaves no trace in connection tracking.
    ///
    /// Without a daemon the kernel's own tables are read: weights are numbers of slots then.
    #[command(visible_alias = "ls", after_help = LIST_EXAMPLES)]
    List(ListOptions),
    /// Show Services or endpoints with all that was decided about them
    #[command(after_help = GET_EXAMPLES)]
    Get(GetOptions),
    /// Tell what becomes of a connection, and why
    ///
    /// Which frontend it meets, which policy applies to its client, which endpoints qualify and why the others do not, who chooses, whether
    /// the source is hidden, and where in the ruleset all this is.
    ///
    /// Exits with 0 if a new connection would reach an endpoint, with 2 if it would not, and with 3 if --verify found a difference or --probe met something else.
    #[command(after_help = EXPLAIN_EXAMPLES)]
    Explain(ExplainOptions),
    /// Look at the node and the daemon, and say what is not as it should be, and what to do
    ///
    /// Kernel and ruleset (one of every kind is loaded into a network namespace of its own), forwarding, connection tracking, what other proxies left, the
    /// daemon, its ports and its API server, drift between what it desires and what the kernel has, clocks. Works without a daemon as far as that goes.
    ///
    /// Exits with 0 if all is well, with 1 if something is to be known (warn), and with 2 if something does not work (FAIL).
    #[command(after_help = DOCTOR_EXAMPLES)]
    Doctor(DoctorOptions),
    /// Give an endpoint no new connections, on this node and for a while
    ///
    /// It keeps the connections that it has, unless --cut ends them (TCP clients then see a reset). A pod is meant in both families; an address is meant
    /// as long as the same pod is behind it. It ends after --for (an hour; a day at most), with `undrain`, or when the node is started anew; not when
    /// the daemon is. `get overrides` shows what stands.
    ///
    /// If all endpoints of a Service that qualify weigh 0, all of them are used alike: a drain never leaves a Service without anybody.
    ///
    /// Exits with 0 if it is done, with 1 if it cannot be, and with 2 if it is said and has no effect for now, as for a Service's last endpoint.
    #[command(after_help = DRAIN_EXAMPLES)]
    Drain(DrainOptions),
    /// Give an endpoint another weight, on this node and for a while
    ///
    /// It counts instead of what annotations say, and goes as a drain does. A Service that chose no scheduler of its own gets wrr where the default
    /// is rr, and wlc where it is lc, as with weights by annotation.
    ///
    /// Exits with 0 if it is done, with 1 if it cannot be, and with 2 if it is said and has no effect for now, as with a scheduler that ignores weights.
    #[command(after_help = DRAIN_EXAMPLES)]
    Weight(WeightOptions),
    /// Take back what `drain` or `weight` said
    #[command(after_help = DRAIN_EXAMPLES)]
    Undrain(UndrainOptions),
    /// Show live connections: client, frontend, and the pod that answers
    ///
    /// From connection tracking; what the userspace forwarder carries is shown with the endpoint that it chose. TARGET is a Service ([NAMESPACE/]NAME[:PORT]),
    /// the address of a frontend or endpoint (ADDRESS[:PORT]) or a frontend's port.
    ///
    /// Packets, bytes and ages are known where the kernel keeps them: net.netfilter.nf_conntrack_acct and nf_conntrack_timestamp. While nobody
    /// follows, nothing is listened to. Without a daemon Services are known by the kernel's own tables, and pods are not.
    #[command(after_help = FLOWS_EXAMPLES)]
    Flows(FlowsOptions),
    /// Show which rules packets really take, in words
    ///
    /// For a while the kernel traces the packets that open connections to TARGET, and every rule that one takes is shown: ours by what they mean, those of others
    /// by table, chain and handle. Then one sentence says what became of the packet.
    ///
    /// Needs root and works in the network namespace it runs in. The table that does it goes with this process, however that ends. At most 20 packets a
    /// second are traced.
    #[command(after_help = TRACE_EXAMPLES)]
    Trace(TraceOptions),
    /// Run a small shop on this machine and connect to it: a node, a client and pods as network namespaces
    ///
    /// Starts the real daemon on the example shop's manifests, connects through the ClusterIPs all the while, scales a Service up and
    /// down, and reports what arrived where and how fast. Needs root, and nothing else: no cluster, no container runtime, no
    /// other program. The machine's own network is not touched, and everything is cleared up at the end.
    ///
    /// Exits with 0 if everything worked as it should.
    #[command(after_help = DEMO_EXAMPLES)]
    Demo(demo::Options),
    /// Print completions for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man,
}

/// How `list` shows.
#[derive(Clone, Debug, Default, Args)]
pub struct ListOptions {
    /// Only Services of this namespace
    #[arg(short, long)]
    pub namespace: Option<String>,

    /// Only Services with this in their name, address, port, pod or scheduler
    pub search: Option<String>,

    /// Packets and bytes of the connections that are still remembered (needs net.netfilter.nf_conntrack_acct=1)
    #[arg(long, conflicts_with_all = ["rate", "connections"])]
    pub stats: bool,

    /// Connections opened, packets and bytes per second, over one second (packets and bytes need net.netfilter.nf_conntrack_acct=1)
    #[arg(long, conflicts_with = "connections")]
    pub rate: bool,

    /// Live connections, summed up by frontend and endpoint
    #[arg(short, long)]
    pub connections: bool,

    /// Write this instead of a table
    #[arg(short, long, value_enum)]
    pub output: Option<Format>,

    /// Show again every so many seconds
    #[arg(short, long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = interval)]
    pub watch: Option<f64>,
}

/// What `get` shows.
#[derive(Clone, Debug, Args)]
pub struct GetOptions {
    /// What to show
    #[arg(value_enum)]
    pub what: What,

    /// Only Services with this in their name, address, port, pod or scheduler; NAMESPACE/NAME[:PORT] is one Service
    pub search: Option<String>,

    /// Only Services of this namespace
    #[arg(short, long)]
    pub namespace: Option<String>,

    /// Only Services in this state
    #[arg(long, value_enum)]
    pub only: Option<State>,

    /// Write this instead of a table
    #[arg(short, long, value_enum)]
    pub output: Option<Format>,

    /// Show again every so many seconds
    #[arg(short, long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = interval)]
    pub watch: Option<f64>,
}

/// What `explain` explains.
#[derive(Clone, Debug, Args)]
pub struct ExplainOptions {
    /// ADDRESS:PORT, a node port's number, or [NAMESPACE/]NAME[:PORT] with the port's name or number
    pub target: String,

    /// The client's address; without it, somebody from outside
    #[arg(long, value_name = "ADDRESS")]
    pub from: Option<IpAddr>,

    /// The protocol: tcp, udp or sctp
    #[arg(long, value_name = "PROTOCOL", value_parser = ["tcp", "udp", "sctp"], ignore_case = true)]
    pub proto: Option<String>,

    /// Look the elements up in the kernel, and say what differs
    #[arg(long)]
    pub verify: bool,

    /// Connect (TCP) from here, and say who answered
    #[arg(long)]
    pub probe: bool,

    /// Write this instead of words
    #[arg(short, long, value_enum)]
    pub output: Option<Format>,
}

/// Which connections `flows` shows, and how.
#[derive(Clone, Debug, Args)]
pub struct FlowsOptions {
    /// A Service, an address or a port; without it, all connections to Services
    pub target: Option<String>,

    /// Show connections as they come and go, a line each
    #[arg(short, long)]
    pub follow: bool,

    /// Only those from this address or network
    #[arg(long, value_name = "ADDRESS[/BITS]")]
    pub client: Option<String>,

    /// Only those that this address or pod answers
    #[arg(long, value_name = "ADDRESS[:PORT]|POD")]
    pub endpoint: Option<String>,

    /// Only those of this protocol
    #[arg(long, value_name = "PROTOCOL", value_parser = ["tcp", "udp", "sctp"], ignore_case = true)]
    pub protocol: Option<String>,

    /// Only those in this state: open, closing, or as the kernel names it (established, time-wait...)
    #[arg(long)]
    pub state: Option<String>,

    /// Only those whose endpoint is on this node
    #[arg(long)]
    pub node: Option<String>,

    /// Write one line of JSON per connection that ends, with OpenTelemetry's attribute names, to this file (`-`: standard output). The file is opened again on
    /// SIGHUP and when it was moved away
    #[arg(long, value_name = "FILE", conflicts_with_all = ["output", "watch"])]
    pub log: Option<PathBuf>,

    /// Show so many at most
    #[arg(long, default_value_t = 10_000, value_name = "NUMBER", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1_000_000))]
    pub most: usize,

    /// Write this instead of a table; with --follow, an object per event
    #[arg(short, long, value_enum)]
    pub output: Option<Format>,

    /// Show again every so many seconds
    #[arg(short, long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = interval, conflicts_with = "follow")]
    pub watch: Option<f64>,
}

/// What `trace` traces.
#[derive(Clone, Debug, Args)]
pub struct TraceOptions {
    /// ADDRESS:PORT, a node port's number, or [NAMESPACE/]NAME[:PORT] with the port's name or number
    pub target: String,

    /// Only packets of this client
    #[arg(long, value_name = "ADDRESS")]
    pub from: Option<IpAddr>,

    /// The protocol: tcp, udp or sctp; without it, tcp and udp, or what the Service has
    #[arg(long, value_name = "PROTOCOL", value_parser = ["tcp", "udp", "sctp"], ignore_case = true)]
    pub proto: Option<String>,

    /// For how long: seconds, or as in 1m30s
    #[arg(long = "for", value_name = "DURATION", default_value = "30s", value_parser = span_of_time)]
    pub duration: Duration,

    /// End after so many packets
    #[arg(short, long, value_name = "NUMBER", default_value_t = 10, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1_000_000))]
    pub count: usize,

    /// Write this instead of words, an object per packet
    #[arg(short, long, value_enum)]
    pub output: Option<Format>,
}

/// For scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// JSON
    Json,
    /// YAML
    Yaml,
}

/// What there is to get.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// One row per Service port
    #[value(alias = "service", alias = "svc")]
    Services,
    /// One row per endpoint of each Service port
    #[value(alias = "endpoint", alias = "ep")]
    Endpoints,
    /// What was said by hand: drains and weights
    #[value(alias = "override")]
    Overrides,
}

/// A state to look for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum State {
    /// Something is wrong with it
    Problems,
    /// The forwarder carries it
    Userspace,
    /// Nobody is ready
    Unready,
}

// === impl State ===

impl State {
    /// As the daemon calls it.
    pub fn word(self) -> &'static str {
        match self {
            State::Problems => "problems",
            State::Userspace => "userspace",
            State::Unready => "unready",
        }
    }
}

/// A time to wait: a second to a day.
fn span_of_time(text: &str) -> Result<Duration, String> {
    let given = match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?,
        Err(_) => {
            let span = text.parse::<jiff::SignedDuration>().map_err(|_| "not a time as in 1m30s".to_owned())?;
            Duration::try_from(span).map_err(|_| "less than nothing".to_owned())?
        }
    };
    let most = Duration::from_secs(86_400);
    if (Duration::from_millis(100)..=most).contains(&given) {
        Ok(given)
    } else {
        Err("not within 0.1 s and a day".to_owned())
    }
}

fn interval(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    if (0.1..=86_400.0).contains(&seconds) { Ok(seconds) } else { Err("not within 0.1 and 86400 seconds".to_owned()) }
}

const EXAMPLES: &str = "Examples:
  sudo pointsman list                        as ipvsadm -ln
  sudo pointsman get endpoints shop/web      who gets connections, and why the others do not
  sudo pointsman explain 10.96.0.50:80       what becomes of a connection
  sudo pointsman doctor                      what is not as it should be here
  sudo pointsman drain web-1 --for 10m       no new connections for a pod, on this node
  sudo pointsman flows shop/web --follow     which pod connections reach, as they come
  sudo pointsman trace 10.96.0.50:80         which rules their packets take
  sudo pointsman demo                        a quarter of a minute of real traffic";

const LIST_EXAMPLES: &str = "Examples:
  sudo pointsman list                     frontends, endpoints, weights, connections
  sudo pointsman list --stats web         packets and bytes of what is called web
  sudo pointsman list --rate --watch      what happens now
  sudo pointsman list -o json             for scripts";

const GET_EXAMPLES: &str = "Examples:
  sudo pointsman get services                   one row per Service port
  sudo pointsman get services --only problems   those with something wrong
  sudo pointsman get endpoints shop/web -w      one Service's endpoints, again and again
  sudo pointsman get overrides                  who is drained or weighted by hand, and for how long";

const EXPLAIN_EXAMPLES: &str = "Examples:
  sudo pointsman explain 10.96.0.50:80                    a ClusterIP
  sudo pointsman explain 30080 --from 192.0.2.7           a node port, for one client
  sudo pointsman explain shop/web:http --verify           every frontend, compared with the kernel
  sudo pointsman explain shop/web --probe                 and connects
  sudo pointsman explain 10.96.0.10:53 --proto udp -o json";

const DOCTOR_EXAMPLES: &str = "Examples:
  sudo pointsman doctor             a line for everything
  sudo pointsman doctor --quiet     what is not as it should be
  sudo pointsman doctor -o json     for scripts";

const DRAIN_EXAMPLES: &str = "Examples:
  sudo pointsman drain shop/web-1                       a pod, behind all of its Services, for an hour
  sudo pointsman drain 10.244.0.11:8080 web --for 10m   one port of an address, behind one Service
  sudo pointsman drain web-1 --cut                      and its connections end
  sudo pointsman weight web-1 1 --for 30m               a tenth of what the others get, if they weigh 10
  sudo pointsman undrain web-1
  sudo pointsman undrain --all";

const FLOWS_EXAMPLES: &str = "Examples:
  sudo pointsman flows shop/web                        which pod does each connection have
  sudo pointsman flows --client 192.0.2.7 --follow     what one client does, as it happens
  sudo pointsman flows --state established -o json     for scripts
  sudo pointsman flows --log /var/log/flows.jsonl      for a log store";

const TRACE_EXAMPLES: &str = "Examples:
  sudo pointsman trace shop/web                               the next ten connections
  sudo pointsman trace 10.96.0.50:80 --from 192.0.2.7 -c 1    one client's next one
  sudo pointsman trace 30080 --for 1m -o json                 a node port, for scripts";

const DEMO_EXAMPLES: &str = "Examples:
  sudo pointsman demo                           as it comes
  sudo pointsman demo --keep                    and look around afterwards
  sudo pointsman demo --seconds 60 --rounds 20  scale up and down every 1.5 s
  sudo pointsman demo --clear                   after kill -9";

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definitions_fit_together() {
        Cli::command().debug_assert();
        let cli =
            Cli::try_parse_from(["pointsman", "list", "-n", "shop", "--watch", "--socket", "/x"]).expect("parses");
        let Command::List(options) = cli.command else { panic!("list") };
        assert_eq!((options.watch, cli.socket), (Some(2.0), "/x".into()));
        assert!(Cli::try_parse_from(["pointsman", "list", "--watch=0"]).is_err());
        assert!(Cli::try_parse_from(["pointsman", "list", "--stats", "--rate"]).is_err());
        let time = |text: &str| match Cli::try_parse_from(["pointsman", "trace", "30080", "--for", text]).ok()?.command
        {
            Command::Trace(options) => Some(options.duration),
            _ => None,
        };
        assert_eq!((time("90"), time("1m30s")), (Some(Duration::from_secs(90)), Some(Duration::from_secs(90))));
        assert_eq!((time("0"), time("2d"), time("-1s"), time("soon")), (None, None, None, None));
    }

    #[test]
    fn completions_and_the_manual_know_every_command() {
        let mut page = Vec::new();
        super::super::man(&mut page).expect("a page");
        let page = String::from_utf8(page).expect("text");
        for shell in [clap_complete::Shell::Bash, clap_complete::Shell::Zsh, clap_complete::Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "pointsman", &mut script);
            let script = String::from_utf8(script).expect("text");
            for command in Cli::command().get_subcommands() {
                assert!(script.contains(command.get_name()), "{shell}: {}", command.get_name());
                assert!(page.contains(&format!("POINTSMAN {}", command.get_name().to_uppercase())), "{page}");
            }
        }
        assert!(page.contains("verify") && page.contains("socket") && page.contains("ipvsadm"), "{page}");
        assert!(page.contains("pointsman flows shop/web") && !page.contains("list(1)"), "{page}");
    }
}
