//! A lab with a node that is prepared for one way of connecting.
//!
//! All rigs have the same shape: one client, one pod with ten listening ports, the node between them. They differ only in what the
//! node has in nf_tables. Before and after every block the node's connection tracking table is emptied, so that no block finds the
//! entries of another, and a port that is used again is new to the node.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;

use anyhow::Context;
use nft::netlink::{Writer, messages};
use nft::{Chain, ChainKind, Connection, CtKey, Expr, Family, Hook, Key, Reg, Rule, Table, Transaction};
use nix::libc;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use pointsman::engine::Engine;
use pointsman::kernel::DataPlane;
use pointsman::lab::Lab;
use pointsman::schedule::Scheduler;
use socket2::Socket;

use super::Targets;
use super::connect::{self, Block};
use crate::cluster::{self, ENDPOINTS, Endpoints, SERVICE_PORT, TARGET_PORT};

const POD: &str = "web-1";
const TABLE: &str = "bench";

/// A lab, ready to be connected through.
pub struct Rig {
    lab: Lab,
    pod: Ipv4Addr,
    listeners: Vec<Socket>,
}

impl Rig {
    /// A node that routes.
    pub fn bare() -> anyhow::Result<Self> {
        let lab = Lab::builder().prefix("pm-bench").pods([POD]).build()?;
        let pod = lab.pod(POD).addresses().v4;
        let ports = TARGET_PORT..TARGET_PORT + ENDPOINTS;
        let listeners = lab.pod(POD).run(|| ports.map(connect::listen).collect::<Result<Vec<_>, _>>())?;
        Ok(Self { lab, pod, listeners })
    }

    /// A node that tracks connections, and nothing else.
    pub fn tracking() -> anyhow::Result<Self> {
        let rig = Self::bare()?;
        let state = Expr::CtLoad { key: CtKey::State, direction: None, dreg: Reg::R1 };
        rig.program(ChainKind::Filter, Hook::Forward, 0, vec![state])?;
        Ok(rig)
    }

    /// A node with one rule: `ip daddr 10.96.0.1 tcp dport 80 dnat to <pod>:8080`.
    pub fn dnat_rule() -> anyhow::Result<Self> {
        let rig = Self::bare()?;
        let key = |bytes: &[u8]| Key::raw(bytes);
        let rule = vec![
            Expr::ip_daddr(Reg::R1),
            Expr::eq(Reg::R1, key(&cluster::cluster_ip(0).octets())),
            Expr::l4proto(Reg::R1),
            Expr::eq(Reg::R1, key(&[libc::IPPROTO_TCP as u8])),
            Expr::th_dport(Reg::R1),
            Expr::eq(Reg::R1, key(&SERVICE_PORT.to_be_bytes())),
            Expr::Immediate { dreg: Reg::R1, data: key(&rig.pod.octets()) },
            Expr::Immediate { dreg: Reg::R2, data: key(&TARGET_PORT.to_be_bytes()) },
            Expr::dnat(Family::Ip, Reg::R1, Some(Reg::R2)),
        ];
        rig.program(ChainKind::Nat, Hook::Prerouting, -100, rule)?;
        Ok(rig)
    }

    /// A node that the product has programmed with one Service and `others` more, all of them served by the pod.
    pub fn product(others: u32) -> anyhow::Result<Self> {
        let rig = Self::bare()?;
        let mut engine = Engine::new("bench", Scheduler::Random);
        cluster::changes(others + 1, Endpoints::OnePod(rig.pod)).into_iter().for_each(|change| engine.take(change));
        let outcome = engine.compile();
        anyhow::ensure!(outcome.problems.is_empty(), "our own objects are not accepted: {}", outcome.problems[0]);
        // The table outlives its owner, as after a restart of the daemon.
        rig.lab.node().run(|| DataPlane::open()?.apply(&outcome.delta)).context("programming the node")?;
        Ok(rig)
    }

    /// One block of connections.
    pub fn measure(&self, targets: Targets, samples: usize) -> anyhow::Result<Block> {
        self.forget_connections()?;
        let block = self.lab.client(0).run(|| match targets {
            Targets::Pod => {
                let pod = SocketAddr::from((self.pod, TARGET_PORT));
                connect::measure(&mut std::iter::repeat(pod), &self.listeners, samples)
            }
            Targets::Services(count) => {
                // Steps of a prime: neighbours in number are not neighbours in time.
                let service = |step: u32| cluster::cluster_ip(step.wrapping_mul(7919) % count);
                let mut targets = (0..).map(|step| SocketAddr::from((service(step), SERVICE_PORT)));
                connect::measure(&mut targets, &self.listeners, samples)
            }
        })?;
        self.forget_connections()?;
        Ok(block)
    }

    /// Gives the node a table with one base chain of one rule.
    fn program(&self, kind: ChainKind, hook: Hook, priority: i32, rule: Vec<Expr>) -> anyhow::Result<()> {
        let mut transaction = Transaction::new();
        transaction.add_table(&Table::new(Family::Ip, TABLE));
        transaction.add_chain(&Chain::new(Family::Ip, TABLE, "entry").hooked(kind, hook, priority));
        transaction.add_rule(&Rule::new(Family::Ip, TABLE, "entry", rule));
        self.lab.node().run(|| Connection::open()?.commit(&transaction)).context("programming the node")
    }

    fn forget_connections(&self) -> anyhow::Result<()> {
        self.lab.node().run(flush_conntrack).context("emptying the connection tracking table")
    }
}

/// Empties the connection tracking table of the calling thread's namespace (`conntrack -F`).
pub(crate) fn flush_conntrack() -> anyhow::Result<()> {
    /// linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h
    const DELETE: u16 = 1 << 8 | 2;
    let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)?;
    let mut writer = Writer::new();
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    let message = writer.begin(DELETE, flags, 1, &[libc::AF_UNSPEC as u8, 0, 0, 0]);
    writer.end(message);
    send(fd.as_raw_fd(), writer.as_bytes(), MsgFlags::empty())?;
    let mut buffer = [0; 4096];
    let received = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
    let answer = messages(&buffer[..received]).next().context("no answer")?;
    let errno = answer.payload.get(..4).map(|bytes| i32::from_ne_bytes(bytes.try_into().expect("four bytes")));
    anyhow::ensure!(errno == Some(0), "the kernel answered {errno:?}");
    Ok(())
}
