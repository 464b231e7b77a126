//! What is measured, as processes: our forwarder, a plain tokio program, HAProxy, nginx.
//!
//! Each runs in the node's namespace with two threads (or workers) and forwards to one endpoint. Ours and tokio's are this program
//! again, by hidden subcommands; they print where they listen and end with their input.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::Context;
use clap::Subcommand;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use pointsman::forward::balance::Method;
use pointsman::forward::udp::{UdpForwarder, UdpOptions, UdpRoute};
use pointsman::forward::{Forwarder, Options, Route, RouteId, Settings};
use pointsman::lab::{Host, NODE};
use pointsman::model::{Family, PortKey, Protocol, ServiceKey};
use pointsman::schedule::Candidate;

use crate::forward_udp::STAY;
use crate::usage::{family, scheduled};

/// Threads or workers of each.
const WORKERS: usize = 2;

/// A forwarder that runs in a process of its own.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Own {
    /// Pointsman's forwarder
    Pointsman {
        /// The endpoint
        to: SocketAddr,
    },
    /// tokio's `copy_bidirectional`, a task per connection on a multi-threaded runtime
    Copy {
        /// The endpoint
        to: SocketAddr,
    },
    /// Pointsman's forwarder for UDP, for `forward-udp`
    Udp {
        /// Threads
        workers: usize,
        /// The endpoint of each route
        to: Vec<SocketAddr>,
    },
}

/// A running process; ended when dropped.
#[derive(Debug)]
pub struct Peer {
    child: Child,
    /// Where it listens.
    pub listener: SocketAddr,
    _files: Option<tempfile::TempDir>,
}

/// What processes have used and hold.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// CPU time in milliseconds (clock ticks of 10 ms).
    pub cpu_ms: u64,
    /// Resident memory in bytes, without what is shared with others.
    pub memory: u64,
    /// Ends of pipes.
    pub pipes: u64,
    /// Descriptors, those among them.
    pub descriptors: u64,
}

/// Runs one of our own until the input ends.
pub fn serve(own: Own) -> anyhow::Result<()> {
    match own {
        Own::Pointsman { to } => {
            let settings = Settings { listen_v4: NODE.v4, listen_v6: NODE.v6, workers: WORKERS, max_connections: None };
            let mut forwarder = Forwarder::start(settings)?;
            let service = ServiceKey { namespace: "bench".into(), name: "web".into() };
            let port = PortKey { service, name: "http".into(), protocol: Protocol::Tcp };
            let id = RouteId { port, family: Family::of(to.ip()), local: false };
            let (candidates, options) = (vec![Candidate::equal(to)], Options::default());
            let route = Route { candidates, method: Method::RoundRobin, affinity: None, options };
            println!("{}", forwarder.set(&id, &route)?);
            std::io::stdin().read_to_end(&mut Vec::new())?;
        }
        Own::Udp { workers, to } => {
            let mut forwarder = UdpForwarder::start(workers, UdpForwarder::FLOWS)?;
            let mut listen = |to: &SocketAddr| {
                let route = UdpRoute {
                    listen: SocketAddr::from((NODE.v4, 0)),
                    candidates: vec![Candidate::equal(*to)],
                    draining: Vec::new(),
                    method: Method::Random,
                    affinity: None,
                    seed: 1,
                    options: UdpOptions { idle: STAY, idle_stream: STAY, ..UdpOptions::default() },
                };
                anyhow::Ok(forwarder.set(&to.to_string(), route)?.to_string())
            };
            let listeners = to.iter().map(&mut listen).collect::<anyhow::Result<Vec<_>>>()?;
            println!("{}", listeners.join(" "));
            std::io::stdin().read_to_end(&mut Vec::new())?;
            let first = to.first().and_then(|to| forwarder.status(&to.to_string()));
            println!("{:?}", first.map(|(_, status)| status));
        }
        Own::Copy { to } => {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build()?;
            let listener = runtime.block_on(tokio::net::TcpListener::bind((NODE.v4, 0)))?;
            println!("{}", listener.local_addr()?);
            runtime.spawn(async move {
                while let Ok((mut client, _)) = listener.accept().await {
                    tokio::spawn(async move {
                        let mut server = tokio::net::TcpStream::connect(to).await?;
                        client.set_nodelay(true)?;
                        server.set_nodelay(true)?;
                        tokio::io::copy_bidirectional(&mut client, &mut server).await
                    });
                }
            });
            std::io::stdin().read_to_end(&mut Vec::new())?;
        }
    }
    Ok(())
}

// === impl Peer ===

impl Peer {
    /// This program again, or another build of it.
    pub fn own(node: &Host, program: &Path, name: &str, to: SocketAddr) -> anyhow::Result<Self> {
        let mut command = Command::new(program);
        command.args(["forward-peer", name, &to.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = node.spawn(command).with_context(|| format!("starting {name}"))?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
        let listener = line.trim().parse().with_context(|| format!("{name} said {line:?}"))?;
        Ok(Self { child, listener, _files: None })
    }

    /// HAProxy in TCP mode, splicing both ways.
    pub fn haproxy(node: &Host, port: u16, to: SocketAddr) -> anyhow::Result<Self> {
        // Two sockets, and for every fourth connection a pipe: it does not start with more than that leaves room for.
        let most = descriptors()? * 79 / 200;
        let text = format!(
            "global\n  nbthread {WORKERS}\n  maxconn {most}\ndefaults\n  mode tcp\n  option splice-auto\n  \
             option splice-request\n  option splice-response\n  timeout connect 5s\n  timeout client 1h\n  \
             timeout server 1h\nlisten bench\n  bind {}:{port}\n  maxconn {most}\n  server pod {to}\n",
            NODE.v4
        );
        Self::other(node, "haproxy", &["-db", "-f"], port, &text)
    }

    /// nginx's stream module.
    pub fn nginx(node: &Host, port: u16, to: SocketAddr) -> anyhow::Result<Self> {
        let most = descriptors()?;
        let connections = most - 100;
        let text = format!(
            "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\ndaemon off;\nuser root;\n\
             worker_processes {WORKERS};\nworker_rlimit_nofile {most};\npid PIDFILE;\nerror_log stderr crit;\n\
             events {{ worker_connections {connections}; }}\n\
             stream {{ server {{ listen {}:{port}; proxy_pass {to}; proxy_timeout 1h; }} }}\n",
            NODE.v4
        );
        Self::other(node, "nginx", &["-e", "stderr", "-c"], port, &text)
    }

    fn other(node: &Host, program: &str, arguments: &[&str], port: u16, text: &str) -> anyhow::Result<Self> {
        let files = tempfile::tempdir()?;
        let path = files.path().join(format!("{program}.conf"));
        fs::write(&path, text.replace("PIDFILE", &files.path().join("pid").to_string_lossy()))?;
        let mut command = Command::new(program);
        command.args(arguments).arg(&path).stdin(Stdio::null()).stdout(Stdio::null());
        let child = node.spawn(command).with_context(|| format!("starting {program} (Debian: apt install it)"))?;
        let listener = SocketAddr::new(IpAddr::V4(NODE.v4), port);
        let mut peer = Self { child, listener, _files: Some(files) };
        while node.run(|| std::net::TcpStream::connect(listener)).is_err() {
            let ended = peer.child.try_wait()?;
            anyhow::ensure!(ended.is_none(), "{program} ended: {ended:?}");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        Ok(peer)
    }

    /// CPU time of the process and its children so far, in seconds, as the scheduler counts it.
    pub fn cpu(&self) -> anyhow::Result<f64> {
        family(self.child.id())?.into_iter().map(scheduled).sum()
    }

    /// Of the process and its children.
    pub fn usage(&self) -> anyhow::Result<Usage> {
        let mut sum = Usage::default();
        for process in family(self.child.id())? {
            let directory = format!("/proc/{process}");
            let stat = fs::read_to_string(format!("{directory}/stat"))?;
            let fields: Vec<&str> = stat.rsplit(')').next().context("no fields")?.split_whitespace().collect();
            sum.cpu_ms += (fields[11].parse::<u64>()? + fields[12].parse::<u64>()?) * 10;
            for line in fs::read_to_string(format!("{directory}/smaps_rollup"))?.lines() {
                if line.starts_with("Private_") {
                    let kib = line.split_whitespace().nth(1).context("no number")?;
                    sum.memory += kib.parse::<u64>()? * 1024;
                }
            }
            sum.descriptors += fs::read_dir(format!("{directory}/fd"))?.count() as u64;
            let descriptors = fs::read_dir(format!("{directory}/fd"))?.flatten();
            let targets = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok());
            sum.pipes += targets.filter(|target| is_pipe(target)).count() as u64;
        }
        Ok(sum)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // nginx's master takes its workers along only when it is asked to.
        let process = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"));
        let _ = nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

/// The most descriptors that a process here may have; this one has them from now on.
pub fn descriptors() -> anyhow::Result<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    // As many as 20,000 connections take, if we may.
    let wanted = hard.max(60_000);
    let limit = if setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted).is_ok() { wanted } else { hard };
    setrlimit(Resource::RLIMIT_NOFILE, limit, limit)?;
    Ok(limit)
}

fn is_pipe(target: &Path) -> bool {
    target.to_string_lossy().starts_with("pipe:")
}

/// CPU time of this program so far, in seconds: clients and server.
pub fn own_cpu() -> anyhow::Result<f64> {
    scheduled(std::process::id())
}
