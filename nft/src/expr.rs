//! Expressions: what rules are made of, typed.
//!
//! Vocabulary: expressions load packet data into *registers*, compare and combine registers, look them up in sets, and act. There
//! are 64 bytes of registers, addressed as four of 16 bytes or as sixteen 4-byte *slots*; both names mean the same memory
//! (`enum nft_registers`): slot 0 begins where register 1 does.
//!
//! Invariants: every variant here is accepted by the real kernel and listed by nft 1.0.6; proven by the kernel test
//! `expressions`. How they are serialised is `expr_encode`.

use std::time::Duration;

use crate::key::Key;
use crate::object::StatefulKind;
use crate::table::Family;
use crate::verdict::Verdict;

/// A register by the kernel's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Reg(pub(crate) u32);

/// One step of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// Loads packet bytes; does not match if the packet lacks them.
    PayloadLoad {
        /// Header to count from.
        base: PayloadBase,
        /// First byte.
        offset: u32,
        /// Number of bytes.
        len: u32,
        /// Where to.
        dreg: Reg,
    },
    /// Overwrites packet bytes.
    PayloadSet {
        /// Header to count from.
        base: PayloadBase,
        /// First byte.
        offset: u32,
        /// Number of bytes.
        len: u32,
        /// Where from.
        sreg: Reg,
        /// The checksum to mend.
        checksum: Option<Checksum>,
    },
    /// Loads a property of the packet.
    MetaLoad {
        /// Which.
        key: MetaKey,
        /// Where to.
        dreg: Reg,
    },
    /// Sets a property of the packet.
    MetaSet {
        /// Which.
        key: MetaKey,
        /// Where from.
        sreg: Reg,
    },
    /// Loads a property of the packet's connection.
    CtLoad {
        /// Which.
        key: CtKey,
        /// Of which direction's tuple, for keys that need one.
        direction: Option<Direction>,
        /// Where to.
        dreg: Reg,
    },
    /// Sets a property of the packet's connection.
    CtSet {
        /// Which.
        key: CtKey,
        /// Where from.
        sreg: Reg,
    },
    /// Asks the routing tables.
    Fib {
        /// What to ask for.
        result: FibResult,
        /// What to ask with.
        flags: FibFlags,
        /// Where to.
        dreg: Reg,
    },
    /// Goes on if the comparison holds.
    Cmp {
        /// Left side.
        sreg: Reg,
        /// How.
        op: CmpOp,
        /// Right side; its length is compared.
        data: Key,
    },
    /// `(sreg & mask) ^ xor`; both as long as the data.
    Bitwise {
        /// Where from.
        sreg: Reg,
        /// Where to.
        dreg: Reg,
        /// Bits kept.
        mask: Key,
        /// Bits flipped.
        xor: Key,
    },
    /// Goes on if the key is in a set; a map's data goes to `dreg`, a verdict map's with [`Reg::VERDICT`].
    Lookup {
        /// Name of the set.
        set: String,
        /// The key's first register.
        sreg: Reg,
        /// Where the data goes.
        dreg: Option<Reg>,
        /// Go on if the key is not in it.
        inverted: bool,
    },
    /// A number below `modulus`, plus `offset`, in host byte order.
    Numgen {
        /// Counting or random.
        kind: NumgenKind,
        /// How many numbers, at least 1.
        modulus: u32,
        /// The least of them.
        offset: u32,
        /// Where to.
        dreg: Reg,
    },
    /// Hash of registers (Jenkins), modulo, plus `offset`, in host byte order.
    Jhash {
        /// Where from.
        sreg: Reg,
        /// Bytes hashed.
        len: u32,
        /// How many numbers, at least 1.
        modulus: u32,
        /// The same everywhere if given, else random for this rule.
        seed: Option<u32>,
        /// The least of them.
        offset: u32,
        /// Where to.
        dreg: Reg,
    },
    /// Hash of the connection, the same in both directions, modulo, plus `offset`.
    Symhash {
        /// How many numbers, at least 1.
        modulus: u32,
        /// The least of them.
        offset: u32,
        /// Where to.
        dreg: Reg,
    },
    /// Adds, updates or deletes an element of a `dynamic` set.
    Dynset {
        /// What to do.
        op: DynsetOp,
        /// Name of the set.
        set: String,
        /// The key's first register.
        key: Reg,
        /// The data's first register, for maps.
        data: Option<Reg>,
        /// Life time of the element.
        timeout: Option<Duration>,
        /// Statement attached to the element (a connlimit, a limit, a counter).
        stateful: Option<Box<Expr>>,
    },
    /// Translates source or destination.
    Nat {
        /// Which of both.
        kind: NatKind,
        /// Family of the address.
        family: Family,
        /// New address, or the first of a range.
        addr: Option<Reg>,
        /// Last address.
        addr_max: Option<Reg>,
        /// New port, or the first of a range.
        port: Option<Reg>,
        /// Last port.
        port_max: Option<Reg>,
        /// How ports and addresses are chosen.
        flags: NatFlags,
    },
    /// Translates the source to the outgoing interface's address.
    Masquerade {
        /// How ports are chosen.
        flags: NatFlags,
    },
    /// Translates the destination to this host.
    Redirect {
        /// New port.
        port: Option<Reg>,
        /// How ports are chosen.
        flags: NatFlags,
    },
    /// Hands the packet to a local transparent socket.
    Tproxy {
        /// Family of the address.
        family: Family,
        /// Its address.
        addr: Option<Reg>,
        /// Its port.
        port: Option<Reg>,
    },
    /// Refuses the packet with an answer.
    Reject(Reject),
    /// Counts.
    Counter {
        /// Start value.
        packets: u64,
        /// Start value.
        bytes: u64,
    },
    /// Uses a stateful object by name.
    Objref {
        /// Its kind.
        kind: StatefulKind,
        /// Its name.
        name: String,
    },
    /// Uses the stateful object that a map names for a key.
    ObjrefMap {
        /// Name of the map.
        set: String,
        /// The key's first register.
        sreg: Reg,
    },
    /// Matches up to a number of connections, or above it.
    Connlimit {
        /// The number.
        count: u32,
        /// Match above it.
        over: bool,
    },
    /// Matches up to a rate of packets, or above it.
    Limit {
        /// Packets per unit.
        rate: u64,
        /// The unit.
        unit: LimitUnit,
        /// Packets beyond the rate at once.
        burst: u32,
        /// Match above it.
        over: bool,
    },
    /// Puts a constant into a register.
    Immediate {
        /// Where to.
        dreg: Reg,
        /// The constant.
        data: Key,
    },
    /// Decides.
    Verdict(Verdict),
    /// Goes on if the register is within (or outside) a range, both ends included; compared as big-endian numbers.
    Range {
        /// What to compare.
        sreg: Reg,
        /// Outside.
        negated: bool,
        /// First.
        from: Key,
        /// Last.
        to: Key,
    },
    /// Writes to the kernel log, or to a netlink log group.
    Log {
        /// Text before the packet, at most 127 bytes.
        prefix: Option<String>,
        /// Log group; without it the kernel log.
        group: Option<u16>,
    },
    /// Exempts the packet from connection tracking.
    Notrack,
}

/// `enum nft_payload_bases`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum PayloadBase {
    Link,
    Network,
    Transport,
}

/// The checksum that a [`Expr::PayloadSet`] has to mend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Checksum {
    /// Its algorithm.
    pub kind: ChecksumKind,
    /// Its place, from the same base.
    pub offset: u32,
    /// The bytes also count in the layer 4 pseudo header.
    pub pseudo_header: bool,
}

/// `enum nft_payload_csum_types`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum ChecksumKind {
    Inet,
    Sctp,
}

/// `enum nft_meta_keys`, the useful ones. Numbers are in host byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
#[allow(missing_docs)]
pub enum MetaKey {
    Len = 0,
    Protocol = 1,
    Priority = 2,
    Mark = 3,
    Iif = 4,
    Oif = 5,
    IifName = 6,
    OifName = 7,
    SkUid = 10,
    SkGid = 11,
    NfTrace = 12,
    NfProto = 15,
    L4Proto = 16,
    PktType = 19,
    Cpu = 20,
    Random = 24,
}

/// `enum nft_ct_keys`, the useful ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
#[allow(missing_docs)]
pub enum CtKey {
    State = 0,
    Direction = 1,
    Status = 2,
    Mark = 3,
    Expiration = 5,
    L3Protocol = 7,
    Protocol = 10,
    ProtoSrc = 11,
    ProtoDst = 12,
    Packets = 14,
    Bytes = 15,
    Zone = 17,
    SrcIp = 19,
    DstIp = 20,
    SrcIp6 = 21,
    DstIp6 = 22,
}

/// `enum ip_conntrack_dir`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Direction {
    Original,
    Reply,
}

/// `enum nft_fib_result`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum FibResult {
    /// Index of the outgoing interface.
    Oif = 1,
    /// Its name.
    OifName = 2,
    /// `RTN_*` (2 is local), host byte order.
    AddrType = 3,
}

/// What a [`Expr::Fib`] asks with; exactly one of both addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[allow(missing_docs)]
pub struct FibFlags {
    pub saddr: bool,
    pub daddr: bool,
    pub mark: bool,
    pub iif: bool,
    pub oif: bool,
}

/// `enum nft_cmp_ops`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum CmpOp {
    Eq,
    Neq,
    Lt,
    Lte,
    Gt,
    Gte,
}

/// `enum nft_ng_types`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NumgenKind {
    /// Counts per rule; starts again when the rule is replaced.
    Incremental,
    /// Random.
    Random,
}

/// `enum nft_dynset_ops`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DynsetOp {
    /// Unless it is there.
    Add,
    /// As add, and starts the life time again.
    Update,
    /// Takes it away.
    Delete,
}

/// `enum nft_nat_types`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NatKind {
    /// The source.
    Snat,
    /// The destination.
    Dnat,
}

/// How translation chooses (`NF_NAT_RANGE_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct NatFlags {
    /// Ports by a hash with a random offset.
    pub random: bool,
    /// Ports at random.
    pub fully_random: bool,
    /// The same address for all connections of a client.
    pub persistent: bool,
}

/// How a packet is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reject {
    /// ICMP destination unreachable with this code (3: port), in `ip` tables.
    Icmp(u8),
    /// ICMPv6 destination unreachable with this code (4: port), in `ip6` tables.
    Icmpv6(u8),
    /// Either, by an abstract code (`enum nft_reject_inet_code`, 1: port), in `inet` tables.
    Icmpx(u8),
    /// A TCP reset.
    TcpReset,
}

/// The time a rate refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum LimitUnit {
    Second,
    Minute,
    Hour,
    Day,
}

// === impl Reg ===

impl Reg {
    /// Where verdicts go (`NFT_REG_VERDICT`).
    pub const VERDICT: Self = Self(0);
    /// Bytes 0 to 15.
    pub const R1: Self = Self(1);
    /// Bytes 16 to 31.
    pub const R2: Self = Self(2);
    /// Bytes 32 to 47.
    pub const R3: Self = Self(3);
    /// Bytes 48 to 63.
    pub const R4: Self = Self(4);

    /// The 4-byte slot `n` of 16, by the number that the kernel itself reports: 16-byte register numbers where one begins.
    ///
    /// # Panics
    /// If `n` is above 15.
    pub const fn slot(n: u32) -> Self {
        assert!(n < 16, "there are 16 register slots");
        if n.is_multiple_of(4) { Self(1 + n / 4) } else { Self(8 + n) }
    }

    /// The kernel's number.
    pub const fn number(self) -> u32 {
        self.0
    }
}

// === impl Expr: the loads that everybody needs ===

impl Expr {
    /// `ip saddr`, one slot.
    pub const fn ip_saddr(dreg: Reg) -> Self {
        Self::PayloadLoad { base: PayloadBase::Network, offset: 12, len: 4, dreg }
    }

    /// `ip daddr`, one slot.
    pub const fn ip_daddr(dreg: Reg) -> Self {
        Self::PayloadLoad { base: PayloadBase::Network, offset: 16, len: 4, dreg }
    }

    /// `ip6 saddr`, four slots.
    pub const fn ip6_saddr(dreg: Reg) -> Self {
        Self::PayloadLoad { base: PayloadBase::Network, offset: 8, len: 16, dreg }
    }

    /// `ip6 daddr`, four slots.
    pub const fn ip6_daddr(dreg: Reg) -> Self {
        Self::PayloadLoad { base: PayloadBase::Network, offset: 24, len: 16, dreg }
    }

    /// `th sport`, one slot.
    pub const fn th_sport(dreg: Reg) -> Self {
        Self::PayloadLoad { base: PayloadBase::Transport, offset: 0, len: 2, dreg }
    }

    /// `th dport`, one slot.
    pub const fn th_dport(dreg: Reg) -> Self {
        Self::PayloadLoad { base: PayloadBase::Transport, offset: 2, len: 2, dreg }
    }

    /// `meta l4proto`, one slot.
    pub const fn l4proto(dreg: Reg) -> Self {
        Self::MetaLoad { key: MetaKey::L4Proto, dreg }
    }

    /// `@set`
    pub fn lookup(set: impl Into<String>, sreg: Reg) -> Self {
        Self::Lookup { set: set.into(), sreg, dreg: None, inverted: false }
    }

    /// `map @set`
    pub fn map(set: impl Into<String>, sreg: Reg, dreg: Reg) -> Self {
        Self::Lookup { set: set.into(), sreg, dreg: Some(dreg), inverted: false }
    }

    /// `vmap @set`
    pub fn vmap(set: impl Into<String>, sreg: Reg) -> Self {
        Self::map(set, sreg, Reg::VERDICT)
    }

    /// `==`
    pub const fn eq(sreg: Reg, data: Key) -> Self {
        Self::Cmp { sreg, op: CmpOp::Eq, data }
    }

    /// `& mask` on a 32-bit number in host byte order.
    pub fn mask(reg: Reg, mask: u32) -> Self {
        Self::Bitwise { sreg: reg, dreg: reg, mask: Key::new().mark(mask), xor: Key::new().mark(0) }
    }

    /// `dnat ip to ADDR : PORT` from registers.
    pub const fn dnat(family: Family, addr: Reg, port: Option<Reg>) -> Self {
        Self::Nat {
            kind: NatKind::Dnat,
            family,
            addr: Some(addr),
            addr_max: None,
            port,
            port_max: None,
            flags: NatFlags { random: false, fully_random: false, persistent: false },
        }
    }

    /// `counter`
    pub const fn counter() -> Self {
        Self::Counter { packets: 0, bytes: 0 }
    }
}

// === impl LimitUnit ===

impl LimitUnit {
    /// Its length.
    pub const fn seconds(self) -> u64 {
        match self {
            Self::Second => 1,
            Self::Minute => 60,
            Self::Hour => 3600,
            Self::Day => 86400,
        }
    }
}
