//! A client, a node with nginx and the forwarder, and a pod that echoes.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use nft::{Chain, ChainKind, Connection, Expr, Family, Hook, Key, Reg, Rule, Table, Transaction};
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pointsman::lab::{Lab, NODE};

use super::load::{self, Block, Load};
use crate::first_packet::flush_conntrack;
use crate::usage::{family, scheduled};

/// In this order everywhere. `nginx` ends a session after one response (`proxy_responses 1`), as is usual for DNS; `nginx-sessions`
/// keeps it, as the forwarder keeps its flows.
pub const VARIANTS: [&str; 4] = ["direct", "nginx", "nginx-sessions", "pointsman"];

const POD: &str = "web-1";
/// Where the pod echoes, and where it only counts.
const ECHO: u16 = 5353;
const SINK: u16 = 5354;
/// Where nginx listens: two servers, each with an echo and a sink behind it.
const NGINX: [u16; 4] = [7001, 7002, 7003, 7004];
const FRONTEND: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

/// See the module.
pub struct Rig {
    forwarder: Child,
    said: BufReader<ChildStdout>,
    nginx: Child,
    _configuration: tempfile::TempDir,
    stop: Arc<AtomicBool>,
    servers: Vec<JoinHandle<()>>,
    sunk: Arc<AtomicU64>,
    pod: Ipv4Addr,
    lab: Lab,
}

impl Rig {
    pub fn new(workers: usize) -> anyhow::Result<Self> {
        let lab = Lab::builder().prefix("pm-bench").pods([POD]).build()?;
        let pod = lab.pod(POD).addresses().v4;
        let (configuration, nginx) = start_nginx(&lab, pod, workers)?;
        let (stop, sunk) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut servers = Vec::new();
        for (port, echoes) in [(ECHO, true), (SINK, false)] {
            let socket = lab.pod(POD).run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)))?;
            socket.set_read_timeout(Some(Duration::from_millis(100)))?;
            let (stop, sunk) = (Arc::clone(&stop), Arc::clone(&sunk));
            servers.push(std::thread::spawn(move || serve(&socket, echoes, &stop, &sunk)));
        }
        // Each session and flow takes a local port and a descriptor, and a quick machine opens many: they stay for 5 s.
        lab.node().namespace().sysctls(&[("ipv4/ip_local_port_range", "10000 65000")])?;
        let mut targets: Vec<SocketAddr> = NGINX.iter().map(|port| SocketAddr::from((NODE.v4, *port))).collect();
        // A process of its own, as nginx' workers are: what clients do to this one's table of descriptors is none of its business.
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["forward-peer", "udp", &workers.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.args([ECHO, SINK].map(|port| SocketAddr::from((pod, port)).to_string()));
        let mut forwarder = lab.node().spawn(command).context("starting the forwarder")?;
        let mut said = BufReader::new(forwarder.stdout.take().context("no output")?);
        let mut line = String::new();
        said.read_line(&mut line)?;
        for address in line.split_whitespace() {
            targets.push(address.parse().with_context(|| format!("the forwarder said {line:?}"))?);
        }
        let mut transaction = Transaction::new();
        transaction.add_table(&Table::new(Family::Ip, "bench"));
        let chain = Chain::new(Family::Ip, "bench", "entry");
        transaction.add_chain(&chain.hooked(ChainKind::Nat, Hook::Prerouting, -100));
        for (port, target) in (1..).zip(&targets) {
            transaction.add_rule(&Rule::new(Family::Ip, "bench", "entry", dnat(port, *target)));
        }
        lab.node().run(|| Connection::open()?.commit(&transaction)).context("programming the node")?;
        Ok(Self { forwarder, said, nginx, _configuration: configuration, stop, servers, sunk, pod, lab })
    }

    /// One block of a load through a variant (by its place in [`VARIANTS`]).
    pub fn measure(&self, load: Load, variant: usize, length: Duration) -> anyhow::Result<Block> {
        self.lab.node().run(flush_conntrack)?;
        let sinks = load == Load::Bulk;
        let to = match variant {
            0 => SocketAddr::from((self.pod, if sinks { SINK } else { ECHO })),
            // Rules are numbered as they were made: echo and sink of each variant.
            _ => SocketAddr::from((FRONTEND, 2 * (variant as u16 - 1) + 1 + u16::from(sinks))),
        };
        let client = self.lab.client(0);
        let processes = match variant {
            0 => Vec::new(),
            3 => vec![self.forwarder.id()],
            _ => family(self.nginx.id())?,
        };
        let on_cpu = || processes.iter().map(|process| scheduled(*process)).sum::<anyhow::Result<f64>>();
        let before = on_cpu()?;
        let mut block = client.run(|| load::run(load, to, length, &self.sunk))?;
        block.proxy = Duration::from_secs_f64((on_cpu()? - before).max(0.0));
        Ok(block)
    }

    /// Ends the forwarder, and says what it says of itself.
    pub fn end(&mut self) -> anyhow::Result<String> {
        drop(self.forwarder.stdin.take());
        let mut status = String::new();
        self.said.read_to_string(&mut status)?;
        Ok(status.trim().to_owned())
    }

    pub fn nginx_version(&self) -> String {
        let output = Command::new("nginx").arg("-v").output();
        output.map(|output| String::from_utf8_lossy(&output.stderr).trim().to_owned()).unwrap_or_default()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.nginx.id() as i32), Signal::SIGTERM);
        let _ = self.nginx.wait();
        drop(self.forwarder.stdin.take());
        let _ = self.forwarder.wait();
        self.stop.store(true, Ordering::SeqCst);
        self.servers.drain(..).for_each(|server| drop(server.join()));
    }
}

/// `ip daddr 10.96.0.1 udp dport <port> dnat to <target>`
fn dnat(port: u16, target: SocketAddr) -> Vec<Expr> {
    let SocketAddr::V4(target) = target else { unreachable!("the rig has IPv4 only") };
    vec![
        Expr::ip_daddr(Reg::R1),
        Expr::eq(Reg::R1, Key::raw(&FRONTEND.octets())),
        Expr::l4proto(Reg::R1),
        Expr::eq(Reg::R1, Key::raw(&[libc::IPPROTO_UDP as u8])),
        Expr::th_dport(Reg::R1),
        Expr::eq(Reg::R1, Key::raw(&port.to_be_bytes())),
        Expr::Immediate { dreg: Reg::R1, data: Key::raw(&target.ip().octets()) },
        Expr::Immediate { dreg: Reg::R2, data: Key::raw(&target.port().to_be_bytes()) },
        Expr::dnat(Family::Ip, Reg::R1, Some(Reg::R2)),
    ]
}

/// How long idle sessions and flows stay, with nginx and with us.
pub const STAY: Duration = Duration::from_secs(5);

/// nginx with the stream module, set up as well as its documentation knows how: one listening socket per worker (`reuseport`).
fn start_nginx(lab: &Lab, pod: Ipv4Addr, workers: usize) -> anyhow::Result<(tempfile::TempDir, Child)> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().display();
    let server = |port: u16, to: u16, more: &str| {
        format!("server {{ listen {}:{port} udp reuseport; proxy_pass {pod}:{to}; {more} }}\n", NODE.v4)
    };
    let (one, many) = ("proxy_responses 1; proxy_timeout 5s;", "proxy_timeout 5s;");
    let servers = [
        server(NGINX[0], ECHO, one),
        // The sink does not respond; the session ends by its time.
        server(NGINX[1], SINK, one),
        server(NGINX[2], ECHO, many),
        server(NGINX[3], SINK, many),
    ];
    let text = format!(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\ndaemon off;\nworker_processes {workers};\n\
         worker_rlimit_nofile 65536;\npid {path}/pid;\nerror_log {path}/error.log;\n\
         events {{ worker_connections 32768; }}\nstream {{\n{}}}\n",
        servers.concat()
    );
    let file = directory.path().join("nginx.conf");
    fs::write(&file, text)?;
    let mut command = Command::new("nginx");
    command.arg("-c").arg(&file).stdout(Stdio::null()).stderr(Stdio::null());
    let child = lab.node().spawn(command).context("starting nginx: apt-get install nginx libnginx-mod-stream")?;
    let begin = Instant::now();
    while !directory.path().join("pid").exists() {
        let log = || fs::read_to_string(directory.path().join("error.log")).unwrap_or_default();
        anyhow::ensure!(begin.elapsed() < Duration::from_secs(10), "nginx does not start: {}", log());
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok((directory, child))
}

/// Echoes or counts what comes, until it shall stop.
pub fn serve(socket: &UdpSocket, echoes: bool, stop: &AtomicBool, sunk: &AtomicU64) {
    let mut buffer = vec![0; 65_536];
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, peer)) = socket.recv_from(&mut buffer) else { continue };
        if echoes {
            let _ = socket.send_to(&buffer[..length], peer);
        } else {
            sunk.fetch_add(1, Ordering::Relaxed);
        }
    }
}
