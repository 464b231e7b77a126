//! Having the kernel trace some packets for a while.
//!
//! A [`Trap`] is a table of our own with a rule per [`Aim`] that marks packets, before anybody else sees them (priority [`FIRST`], ahead of `raw`), and with empty chains
//! behind everybody else ([`LAST`]), whose end tells how a packet left. The table is owned by this process's netlink socket and does not persist: the kernel
//! removes it when the process ends, however that happens. What others' tables do is not changed by it.
//!
//! Of TCP only packets that open a connection are marked, of anything `RATE` per second: the first packet is the one that meets rules, and
//! tracing every packet of a busy Service would be work for the whole machine.
//!
//! [`Ruleset`] is everybody's rules by the numbers that traces name.
//!
//! Proven by `tests/e2e/trace.rs`.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use nft::{
    Chain, ChainKind, CmpOp, Connection, Error, Expr, FibFlags, FibResult, Hook, Key, LimitUnit, MetaKey, PayloadBase,
    Reg, Rule, RuleInfo, Step, Table, Tracer, Transaction,
};

use super::encode::nft_family;
use crate::model::{Family, Protocol};

/// What the names of such tables begin with; the process's number follows.
pub const PREFIX: &str = "pointsman-trace-";

/// Ahead of `NF_IP_PRI_RAW` (-300, linux/netfilter_ipv4.h), behind defragmentation (-400).
pub const FIRST: i32 = -350;
/// Behind `NF_IP_PRI_NAT_SRC` (100) and `NF_IP_PRI_CONNTRACK_HELPER` (300).
pub const LAST: i32 = 350;

/// Packets marked per second, and at once.
const RATE: u64 = 20;
const BURST: u32 = 10;

/// `RTN_LOCAL` (linux/rtnetlink.h).
const ROUTE_LOCAL: u32 = 2;

/// SYN and ACK in the fourteenth byte of a TCP header (RFC 9293).
const TCP_FLAGS: u32 = 13;
const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;

/// Which packets to trace; what is not said does not matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aim {
    /// Their family.
    pub family: Family,
    /// Their protocol.
    pub protocol: Protocol,
    /// Who sends.
    pub client: Option<IpAddr>,
    /// To which address; without it, to any of this host's.
    pub address: Option<IpAddr>,
    /// To which port.
    pub port: u16,
}

/// Traces until it is dropped.
#[derive(Debug)]
pub struct Trap {
    tracer: Tracer,
    table: String,
    /// Its socket owns the table.
    _owner: Connection,
}

/// Everybody's chains and rules.
#[derive(Debug, Default)]
pub struct Ruleset {
    hooks: HashMap<(nft::Family, String, String), Hook>,
    rules: HashMap<(nft::Family, String, u64), (usize, RuleInfo)>,
}

// === impl Trap ===

impl Trap {
    /// Begins, in the calling thread's network namespace.
    ///
    /// # Errors
    /// Without `CAP_NET_ADMIN`, or whatever the kernel answers.
    pub fn set(aims: &[Aim]) -> Result<Self, Error> {
        let table = format!("{PREFIX}{}", std::process::id());
        let tracer = Tracer::open()?;
        let mut connection = Connection::open()?;
        let mut transaction = Transaction::new();
        for family in Family::ALL {
            let aims: Vec<_> = aims.iter().filter(|aim| aim.family == family).collect();
            if aims.is_empty() {
                continue;
            }
            let of = nft_family(family);
            let mut own = Table::new(of, &*table);
            own.flags.owner = true;
            own.comment = Some("traces some packets for a while".to_owned());
            transaction.create_table(&own);
            for (name, hook, priority) in CHAINS {
                let chain = Chain::new(of, &*table, name).hooked(ChainKind::Filter, hook, priority);
                transaction.add_chain(&chain);
            }
            for chain in ["prerouting", "output"] {
                for aim in &aims {
                    transaction.add_rule(&Rule::new(of, &*table, chain, aim.marks()));
                }
            }
        }
        connection.commit(&transaction)?;
        Ok(Self { tracer, table, _owner: connection })
    }

    /// The next step of any packet that is traced, ours or somebody else's.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn next(&mut self, timeout: Duration) -> Result<Option<Step>, Error> {
        self.tracer.next_timeout(timeout)
    }

    /// The table's name.
    pub fn table(&self) -> &str {
        &self.table
    }
}

/// Where packets are marked, and where their leaving is seen.
const CHAINS: [(&str, Hook, i32); 5] = [
    ("prerouting", Hook::Prerouting, FIRST),
    ("output", Hook::Output, FIRST),
    ("input", Hook::Input, LAST),
    ("forward", Hook::Forward, LAST),
    ("postrouting", Hook::Postrouting, LAST),
];

// === impl Aim ===

impl Aim {
    fn marks(&self) -> Vec<Expr> {
        let equals = |data| Expr::Cmp { sreg: Reg::slot(0), op: CmpOp::Eq, data };
        let address = |address: IpAddr| match address {
            IpAddr::V4(address) => Key::new().ipv4(address),
            IpAddr::V6(address) => Key::new().ipv6(address),
        };
        let load = |base, offset, len| Expr::PayloadLoad { base, offset, len, dreg: Reg::slot(0) };
        let mut exprs = Vec::new();
        if let Some(client) = self.client {
            exprs.push(match self.family {
                Family::V4 => Expr::ip_saddr(Reg::slot(0)),
                Family::V6 => Expr::ip6_saddr(Reg::slot(0)),
            });
            exprs.push(equals(address(client)));
        }
        match self.address {
            Some(to) => {
                exprs.push(match self.family {
                    Family::V4 => Expr::ip_daddr(Reg::slot(0)),
                    Family::V6 => Expr::ip6_daddr(Reg::slot(0)),
                });
                exprs.push(equals(address(to)));
            }
            None => {
                let flags = FibFlags { daddr: true, ..FibFlags::default() };
                exprs.push(Expr::Fib { result: FibResult::AddrType, flags, dreg: Reg::slot(0) });
                exprs.push(equals(Key::new().mark(ROUTE_LOCAL)));
            }
        }
        exprs.push(Expr::MetaLoad { key: MetaKey::L4Proto, dreg: Reg::slot(0) });
        exprs.push(equals(Key::new().proto(self.protocol.number())));
        exprs.push(load(PayloadBase::Transport, 2, 2));
        exprs.push(equals(Key::raw(&self.port.to_be_bytes())));
        if self.protocol == Protocol::Tcp {
            exprs.push(load(PayloadBase::Transport, TCP_FLAGS, 1));
            let (mask, xor) = (Key::raw(&[SYN_ACK]), Key::raw(&[0]));
            exprs.push(Expr::Bitwise { sreg: Reg::slot(0), dreg: Reg::slot(0), mask, xor });
            exprs.push(equals(Key::raw(&[SYN])));
        }
        exprs.push(Expr::Limit { rate: RATE, unit: LimitUnit::Second, burst: BURST, over: false });
        exprs.push(Expr::Immediate { dreg: Reg::slot(0), data: Key::raw(&[1]) });
        exprs.push(Expr::MetaSet { key: MetaKey::NfTrace, sreg: Reg::slot(0) });
        exprs
    }
}

// === impl Ruleset ===

impl Ruleset {
    /// As it is now.
    ///
    /// # Errors
    /// Whatever the kernel answers.
    pub fn read() -> Result<Self, Error> {
        let mut connection = Connection::open()?;
        let mut ruleset = Self::default();
        for table in connection.tables()? {
            for chain in connection.chains(table.family, &table.name)? {
                if let Some(base) = chain.base {
                    ruleset.hooks.insert((table.family, table.name.clone(), chain.name), base.hook);
                }
            }
            let mut counts: HashMap<String, usize> = HashMap::new();
            for rule in connection.rules(table.family, &table.name)? {
                let index = counts.entry(rule.chain.clone()).or_default();
                ruleset.rules.insert((table.family, table.name.clone(), rule.handle), (*index, rule));
                *index += 1;
            }
        }
        Ok(ruleset)
    }

    /// The hook of a base chain.
    pub fn hook(&self, family: nft::Family, table: &str, chain: &str) -> Option<Hook> {
        self.hooks.get(&(family, table.to_owned(), chain.to_owned())).copied()
    }

    /// A rule, and its place in its chain, from 0.
    pub fn rule(&self, family: nft::Family, table: &str, handle: u64) -> Option<&(usize, RuleInfo)> {
        self.rules.get(&(family, table.to_owned(), handle))
    }
}
