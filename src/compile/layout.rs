//! What the data plane looks like, in numbers and names.
//!
//! One table `pointsman` per family, the same in both:
//!
//! ```text
//! map services        { address . protocol . port : decision }   one element per frontend that has an address
//! map node-ports      { protocol . port : decision }              one per node port
//! map plans           { plan : goto chain }                       one per plan in use: a few dozen, changes rarely
//! map picks           { plan : goto chain }                       the same without plans that decide again
//! map admitted        { decision : decision }                     what follows source ranges
//! map inside, outside { decision : decision }                     what follows a local policy
//! map instead         { decision : decision }                     what follows where no forwarder lives
//! map endpoints       { pool . slot : address . port }            one per slot
//! map dedicated       { decision : goto chain }                   one per pool with a chain of its own
//! map member-slots    { pool . slot : member }                    one per slot of a pool with session affinity
//! map members         { member : address . port }                 one per endpoint of such a pool
//! map affinity        { client . pool : member }                  written by packets; each element has its life time
//! set source-ranges   { client range . decision }
//! set cluster-ips, hairpins, masqueraded..., node-port-addresses, service-networks
//!
//! chain services:  meta priority set (map services)    meta priority & 0xfff  vmap @plans
//!                  if the destination is in @node-port-addresses and the host's own:
//!                      meta priority set (map node-ports)  meta priority & 0xfff  vmap @plans
//!                  if it is in @cluster-ips and not the host's own:       refuse
//!                  if it is in @service-networks and not the host's own:  drop
//! chain random-4:  dnat to  (meta priority & 0xfffff000) . (numgen random mod 4)  map @endpoints
//!                  goto first-slot
//! chain sh-1024:   like random-4 with  jhash source mod 1024 seed ...;  sh-port-1024: of source and port;  dh-1024: of destination;
//!                  mh-4093: like sh, the number of slots is a prime
//! chain refuse:    reject, TCP with a reset
//! chain discard:   drop
//! chain dedicated: meta priority vmap @dedicated
//!                  goto first-slot
//! chain source-ranges: drop unless (source . meta priority) in @source-ranges
//!                      meta priority set (map admitted), then local-policy or pick
//! chain local-policy:  from a local pod or the host: meta priority set (map inside), pick
//!                      otherwise:                     meta priority set (map outside), pick
//! chain pick:      meta priority & 0xfff  vmap @picks
//! chain userspace: accept: leaves the packet to the forwarder's own table, and to chain instead behind that
//! chain instead:   for plan `userspace` only: meta priority set (map instead), pick
//!                  goto first-slot
//! chain rr-4-00012-shop/web/tcp/http:  meta priority set (numgen inc mod 4 offset 0x12000)   goto slot
//! chain ring-64-00012-shop/web/tcp/http: the same, its picks counted, for slots that are dealt again while they are walked
//! chain slot:      dnat to  (meta priority & 0xfffff000) . (meta priority & 0xfff)  map @endpoints
//!                  goto first-slot
//! chain first-slot: dnat to  (meta priority & 0xfffff000) . (numgen random mod 1)  map @endpoints
//! chain sticky-4-10800s-00012-shop/web/tcp/http:
//!                  jump returning-10800s
//!                  meta priority set (numgen random mod 4 offset 0x12000)   goto newcomer-10800s
//! chain returning-10800s: meta priority set (map affinity)   update @affinity   dnat to (map members)
//!                  delete @affinity (the member is gone)
//! chain newcomer-10800s: meta priority set (map member-slots)   goto settle-10800s
//!                  the same for slot 0
//! chain settle-10800s: update @affinity (unless it is full)
//!                  dnat to (map members)
//!                  the same for slot 0
//! chain sources:   in postrouting, for connections whose destination was translated: whether their source is, too
//! ```
//!
//! `meta priority` (`skb->priority`) carries the decision from one lookup to the next: nft 1.0.6 can print it, packet marks belong
//! to network plugins, and routing overwrites the priority of a forwarded packet anyway. It is set for the first packet of a
//! connection only, the one that passes a nat chain. All our chains are nat chains: packets of established connections run no rule
//! of ours, and no change of rules can touch them.
//!
//! Why pools have numbers instead of being keyed by frontend: a Service port has many frontends (cluster address, node ports, load
//! balancer addresses) and two sets of endpoints at most (of the cluster, of this node); a key of two numbers is 8 bytes in both
//! families; and a Service that changes its address changes one element.
//!
//! Why each picking chain has a second rule: a packet may read the number of slots before a transaction commits and the slot after
//! it. Slot 0 exists as long as the pool has endpoints, so such a packet still reaches an endpoint of its Service.
//!
//! Hashes have a constant seed ([`HASH_SEED`]), so that every node picks the same bucket, and nothing to remember, so that all Services
//! with tables of one size share a chain. A table's endpoints bear no comment except in slot 0: that saves a third of its memory.
//!
//! Why chains that are many look into no map themselves, and lead to others (`slot`, `first-slot`, `returning-...`) that do: the kernel checks
//! each element that is added to a map against every rule that looks into it, and each rule that comes against every element that is there.
//! With a chain per pool that looked into `members` or `endpoints`, loading Services cost the square of their number. Only pools with
//! more slots than a number has room for ([`MAX_MEMBERS`]) do it themselves. Chains of plans do, which are a few dozen, and those of a first
//! load come before its elements; so do the three of each timeout of session affinity, which are there as long as a pool has that timeout.
//!
//! Why there are `plans` and `picks`: chains that decide again (source ranges, local policy) must not lead back to themselves, or
//! the kernel refuses the table as a loop. The common case pays for one lookup in `plans` only.
//!
//! Why there is a second pair of base chains: what the userspace forwarder carries is decided here, by policies and all, and then passes
//! three chains of one hook. Ours leaves it untranslated; a table that belongs to the forwarder's process, and goes with it whatever ends it,
//! sends it to a listener (`crate::kernel::redirects`); what comes through that without a translation meets nobody alive, and is
//! ours again (`after-...`). So the kernel takes over at the moment the process dies, and no listener's address is in this table.
//!
//! Why nothing deletes the affinity of a pool that is gone: elements are found by client and pool, so those of one pool are found only
//! by a walk through all of them, which costs what the cluster has and not what goes. They do no harm: a pool's number is used again only
//! after all others (`pools.rs`), the map is bounded, and each element ends with its timeout.
//!
//! Why affinity stores members and not slots: a slot changes hands when others come and go, a [`MemberId`] belongs to one endpoint
//! for as long as the pool has it, also across restarts (it is read back from map `members`), and is given to another as late as
//! possible. When an endpoint goes, its member goes; the next packet of each client finds that out by itself.
//!
//! How a source is hidden without a packet mark: postrouting sees the connection's original destination, and that says which
//! Service and which kind of frontend it was; it sees the unchanged source address and, since Linux 5.7, the interface the packet
//! came in by, and these say who it is from. So `masqueradeBit` has nothing to do here. One limit: with node ports on all addresses,
//! a connection that somebody else translated, and whose original port is a node port of ours, is taken for ours.
//!
//! Node port addresses are ranges minus loopback, and `fib daddr type local` says which of them are the host's own at that moment.
//! The guard of cluster addresses spares what is the host's own, so that a node-local DNS cache keeps the address it borrowed.
//!
//! The counter of a chain `rr-...` belongs to `rr` with one slot per endpoint as well as to `wrr`, which deals a cycle: what the slots
//! mean is the scheduler's business. So it is with `ring-...`, for the schedulers that go by counts of connections.
//!
//! Numbers are written with their meaning readable in hexadecimal: `0x00012004` is pool `0x00012`, plan `0x004`: random of 4.
//! Member `0x00012004` is the fifth member of that pool. (In set `source-ranges` nft 1.0.6 prints the number's bytes in reverse,
//! because it takes every range for big-endian: `0x042c0100` there is decision `0x00012c04`.)

use std::fmt;
use std::sync::Arc;

use crate::model::{Family, Node, PortKey};
use crate::policy::{Detector, Settings, detector};
use crate::schedule::{Buckets, HashKey, Pick};

/// The name of our table in every family.
pub const TABLE: &str = "pointsman";

/// Version of the layout, kept in the table's comment. A table of another version is replaced as a whole.
pub const VERSION: u32 = 5;

/// Bits of a decision that are the plan.
pub const PLAN_MASK: u32 = 0xfff;

/// Bits of a decision that are the pool.
pub const POOL_MASK: u32 = !PLAN_MASK;

/// What `jhash` begins with: "poin" in ASCII. Another number would send every client of a hashing scheduler elsewhere, and would need
/// another [`VERSION`].
pub const HASH_SEED: u32 = 0x706f_696e;

/// Highest pool number.
pub const MAX_POOL: u32 = POOL_MASK >> PLAN_BITS;

/// Most slots a shared plan can have; more need a dedicated chain.
pub const MAX_SHARED_SLOTS: usize = 1023;

/// Most endpoints that a pool with session affinity can use: members have 12 bits.
pub const MAX_MEMBERS: usize = 1 << PLAN_BITS;

const PLAN_BITS: u32 = 12;

/// Longest chain name we make (`NFT_NAME_MAXLEN` is 256 with the NUL, linux/netfilter/nf_tables.h).
const MAX_CHAIN_NAME: usize = 240;

/// Room for what stands before the owner in a dedicated chain's name.
const LONGEST_PREFIX: usize = 48;

/// Longest comment nft prints (`NFTNL_UDATA_COMMENT_MAXLEN`, libnftnl udata.h).
const MAX_LABEL: usize = 127;

/// What the label of a pool of local endpoints ends with.
const LOCAL: &str = " local";

/// Number of a pool, 1..=[`MAX_POOL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolId(u32);

/// How a slot is picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Plan {
    /// One of this many slots (1..=[`MAX_SHARED_SLOTS`]) at random.
    Random(u16),
    /// One of so many slots, by a hash of this part of the packet.
    Hash(HashKey, Buckets),
    /// No endpoint: reject the connection.
    Refuse,
    /// By the pool's own chain.
    Dedicated,
    /// Endpoints exist, but none that this connection may use: drop it.
    Discard,
    /// Check the client's address, then decide again by map `admitted`.
    SourceRanges,
    /// Decide again by map `inside` or `outside`, depending on where the connection comes from.
    LocalPolicy,
    /// The userspace forwarder's while it lives (`crate::kernel::redirects`); otherwise decide again by map `instead`.
    Userspace,
}

/// An endpoint of a pool with session affinity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId {
    /// The pool.
    pub pool: PoolId,
    /// Its number in there, below [`MAX_MEMBERS`].
    pub index: u16,
}

/// What map `services` says about a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Decision {
    /// Where the slots are; `None` only with [`Plan::Refuse`] and [`Plan::Discard`].
    pub pool: Option<PoolId>,
    /// How one of them is picked.
    pub plan: Plan,
}

/// What happens to a client that is to stay with an endpoint, the pool and its slots aside: the same for all pools in which clients stay for as
/// long. A pool's own chain leads there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StickyChain {
    /// Sends a client where it went before, if it did; returns if not.
    Returning,
    /// Takes the member of the slot that the priority names.
    Newcomer,
    /// Remembers the member that the priority names for the client, and sends it there.
    Settle,
}

/// A chain that picks for one pool alone. Its name says all that is in it, so a chain of the right name is the right chain.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DedicatedChain {
    /// How it picks.
    pub pick: Pick,
    /// Of how many slots.
    pub slots: u32,
    /// For how many seconds a client stays with its endpoint, if at all.
    pub affinity: Option<u32>,
    /// Whether it is the pool of the local endpoints.
    pub local: bool,
    /// Which pool: the number is in its rules.
    pub pool: PoolId,
    /// Whose chain it is, as it stands in the name.
    pub owner: Arc<str>,
}

/// What the fixed chains of a table depend on. Part of the table's comment: a table made for another is replaced as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Locality {
    /// Hide the source of every connection to a cluster address.
    pub masquerade_all: bool,
    /// How local pods are told in the `ip` table.
    pub v4: Detector,
    /// How local pods are told in the `ip6` table.
    pub v6: Detector,
}

// === impl PoolId ===

impl PoolId {
    /// A pool number, if it is in range.
    pub fn new(number: u32) -> Option<Self> {
        (1..=MAX_POOL).contains(&number).then_some(Self(number))
    }

    /// The number, 1..=[`MAX_POOL`].
    pub fn number(self) -> u32 {
        self.0
    }

    /// The number where map `endpoints` and decisions have it: above the plan's bits.
    pub fn key(self) -> u32 {
        self.0 << PLAN_BITS
    }

    /// The pool of a key of map `endpoints`.
    pub fn from_key(key: u32) -> Option<Self> {
        (key & PLAN_MASK == 0).then(|| Self::new(key >> PLAN_BITS))?
    }
}

// === impl Plan ===

impl Plan {
    /// Bits 11..10 are the kind of plan. Of kind 0, bits 9..0 are its number of slots; kind 2 is free for schedulers to come.
    const SPECIAL: u32 = 3 << 10;

    /// Bits 9..8 are what is hashed, bits 7..0 the index of the number of slots.
    const HASH: u32 = 1 << 10;

    /// The plans whose chains are always there.
    pub const FIXED: [Plan; 6] =
        [Plan::Refuse, Plan::Dedicated, Plan::Discard, Plan::SourceRanges, Plan::LocalPolicy, Plan::Userspace];

    /// The plan's number, below 4096.
    pub fn number(self) -> u32 {
        match self {
            Plan::Random(slots) => u32::from(slots),
            Plan::Hash(key, buckets) => Self::HASH | (key as u32) << 8 | buckets.index(),
            Plan::Refuse => Self::SPECIAL | 1,
            Plan::Dedicated => Self::SPECIAL | 2,
            Plan::Discard => Self::SPECIAL | 3,
            Plan::SourceRanges => Self::SPECIAL | 4,
            Plan::LocalPolicy => Self::SPECIAL | 5,
            Plan::Userspace => Self::SPECIAL | 6,
        }
    }

    /// The plan of a number.
    pub fn from_number(number: u32) -> Option<Self> {
        match number {
            1..=0x3ff => Some(Plan::Random(u16::try_from(number).expect("ten bits"))),
            0x400..=0x7ff => {
                let key = HASH_KEYS.into_iter().find(|key| *key as u32 == number >> 8 & 3)?;
                Some(Plan::Hash(key, Buckets::from_index(number & 0xff)?))
            }
            _ => Self::FIXED.into_iter().find(|plan| plan.number() == number),
        }
    }

    /// Whether it leads to an end: such plans are in map `picks` as well as in map `plans`.
    pub fn is_final(self) -> bool {
        !matches!(self, Plan::SourceRanges | Plan::LocalPolicy)
    }

    /// Whether all Services that pick so share a chain made for them, rather than one that is always there.
    pub fn is_shared(self) -> bool {
        matches!(self, Plan::Random(_) | Plan::Hash(..))
    }

    /// The plan whose shared chain has this name.
    pub fn from_chain(name: &str) -> Option<Self> {
        let (word, count) = name.rsplit_once('-')?;
        let plan = match word {
            "random" => {
                Plan::from_number(count.parse().ok().filter(|slots| (1..=MAX_SHARED_SLOTS).contains(slots))? as u32)?
            }
            _ => Plan::Hash(hash_key(word)?, count.parse().ok()?),
        };
        (plan.chain() == name).then_some(plan)
    }

    /// The name of its chain.
    pub fn chain(self) -> String {
        match self {
            Plan::Random(slots) => format!("random-{slots}"),
            Plan::Hash(key, buckets) => format!("{}-{buckets}", hash_word(key, buckets)),
            Plan::Refuse => "refuse".to_owned(),
            Plan::Dedicated => "dedicated".to_owned(),
            Plan::Discard => "discard".to_owned(),
            Plan::SourceRanges => "source-ranges".to_owned(),
            Plan::LocalPolicy => "local-policy".to_owned(),
            Plan::Userspace => "userspace".to_owned(),
        }
    }
}

const HASH_KEYS: [HashKey; 3] = [HashKey::Source, HashKey::SourcePort, HashKey::Destination];

/// The scheduler that hashes this into so many buckets, as chains are named after it.
fn hash_word(key: HashKey, buckets: Buckets) -> &'static str {
    match (key, buckets.is_prime()) {
        (HashKey::Source, false) => "sh",
        (HashKey::Source, true) => "mh",
        (HashKey::SourcePort, false) => "sh-port",
        (HashKey::SourcePort, true) => "mh-port",
        (HashKey::Destination, _) => "dh",
    }
}

fn hash_key(word: &str) -> Option<HashKey> {
    match word {
        "sh" | "mh" => Some(HashKey::Source),
        "sh-port" | "mh-port" => Some(HashKey::SourcePort),
        "dh" => Some(HashKey::Destination),
        _ => None,
    }
}

// === impl MemberId ===

impl MemberId {
    /// The 32-bit number.
    pub fn value(self) -> u32 {
        self.pool.key() | u32::from(self.index)
    }

    /// The member of a number; `None` if it is none of ours.
    pub fn from_value(value: u32) -> Option<Self> {
        let index = u16::try_from(value & PLAN_MASK).expect("twelve bits");
        Some(Self { pool: PoolId::from_key(value & POOL_MASK)?, index })
    }
}

// === impl Decision ===

impl Decision {
    /// Reject.
    pub const REFUSE: Decision = Decision { pool: None, plan: Plan::Refuse };

    /// The 32-bit number.
    pub fn value(self) -> u32 {
        self.pool.map_or(0, PoolId::key) | self.plan.number()
    }

    /// The decision of a number; `None` if it is none of ours.
    pub fn from_value(value: u32) -> Option<Self> {
        let plan = Plan::from_number(value & PLAN_MASK)?;
        let pool = PoolId::from_key(value & POOL_MASK);
        (pool.is_some() || matches!(plan, Plan::Refuse | Plan::Discard)).then_some(Self { pool, plan })
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.value())
    }
}

// === impl DedicatedChain ===

impl DedicatedChain {
    /// The chain's owner, as names have it.
    pub fn owner(port: &PortKey, pool: PoolId) -> Arc<str> {
        let mut owner = format!("{}/{}/{}", port.service.namespace, port.service.name, port.protocol.lower());
        if !port.name.is_empty() {
            owner.push('/');
            owner.push_str(&port.name);
        }
        // Names that the API server would not have let through come from manifests. nft's command line could not say some of them,
        // and two Services could come to the same one where a name holds a slash.
        let plain = |name: &str| name.bytes().all(|byte| is_plain(byte) && byte != b':' && byte != b'/');
        let parts = [&port.service.namespace, &port.service.name, &port.name];
        if owner.len() > MAX_CHAIN_NAME - LONGEST_PREFIX || !parts.into_iter().all(|part| plain(part)) {
            owner = format!("pool-{:05x}", pool.number());
        }
        owner.into()
    }

    /// The chain's name: `[local-][sticky-](random|rr|sh|...)-SLOTS-[SECONDSs-]POOL-OWNER`, without `random` if it is sticky.
    pub fn name(&self) -> String {
        let local = if self.local { "local-" } else { "" };
        let (slots, owner) = (self.slots, format!("{:05x}-{}", self.pool.number(), self.owner));
        match (self.affinity, self.word()) {
            (None, word) => format!("{local}{word}-{slots}-{owner}"),
            (Some(seconds), "random") => format!("{local}sticky-{slots}-{seconds}s-{owner}"),
            (Some(seconds), word) => format!("{local}sticky-{word}-{slots}-{seconds}s-{owner}"),
        }
    }

    /// The chain of this name, if it is one that this function's counterpart names.
    pub fn from_name(name: &str) -> Option<Self> {
        let (local, rest) = name.strip_prefix("local-").map_or((false, name), |rest| (true, rest));
        let (sticky, rest) = rest.strip_prefix("sticky-").map_or((false, rest), |rest| (true, rest));
        let (pick, rest) =
            match picks().find_map(|(word, pick)| Some((pick, rest.strip_prefix(word)?.strip_prefix('-')?))) {
                Some(found) => found,
                None if sticky => (Pick::Random, rest),
                None => return None,
            };
        let (slots, rest) = rest.split_once('-')?;
        let (affinity, owner) = if sticky {
            let (seconds, owner) = rest.split_once("s-")?;
            (Some(seconds.parse().ok()?), owner)
        } else {
            (None, rest)
        };
        let (pool, owner) = owner.split_once('-')?;
        let pool = PoolId::new(u32::from_str_radix(pool, 16).ok()?)?;
        let chain = Self { pick, slots: slots.parse().ok()?, affinity, local, pool, owner: owner.into() };
        (chain.name() == name).then_some(chain)
    }

    fn word(&self) -> &'static str {
        match self.pick {
            Pick::Random => "random",
            Pick::Counter => "rr",
            Pick::Ring => "ring",
            Pick::Hash(key) => match Buckets::new(self.slots as usize) {
                Some(buckets) => hash_word(key, buckets),
                // No table has so many; whoever reads the name finds out.
                None => "dh",
            },
        }
    }
}

/// The words for ways to pick, those that begin with another one first.
fn picks() -> impl Iterator<Item = (&'static str, Pick)> {
    let hashes = ["sh-port", "mh-port", "sh", "mh", "dh"];
    let hashes = hashes.into_iter().filter_map(|word| Some((word, Pick::Hash(hash_key(word)?))));
    [("random", Pick::Random), ("rr", Pick::Counter), ("ring", Pick::Ring)].into_iter().chain(hashes)
}

// === impl StickyChain ===

impl StickyChain {
    /// All of them, in an order in which each leads to earlier ones only.
    pub const ALL: [Self; 3] = [Self::Settle, Self::Newcomer, Self::Returning];

    fn word(self) -> &'static str {
        match self {
            Self::Returning => "returning",
            Self::Newcomer => "newcomer",
            Self::Settle => "settle",
        }
    }

    /// Its name, where clients stay for so many seconds.
    pub fn chain(self, seconds: u32) -> String {
        format!("{}-{seconds}s", self.word())
    }

    /// The chain of this name, and for how many seconds clients stay.
    pub fn from_name(name: &str) -> Option<(Self, u32)> {
        let (word, time) = name.split_once('-')?;
        let part = Self::ALL.into_iter().find(|part| part.word() == word)?;
        let seconds = time.strip_suffix('s')?.parse().ok()?;
        (part.chain(seconds) == name).then_some((part, seconds))
    }
}

// === impl Locality ===

impl Locality {
    /// What settings and our Node say.
    pub fn new(settings: &Settings, node: Option<&Node>) -> Self {
        let [v4, v6] = Family::ALL.map(|family| detector(settings, node, family));
        Self { masquerade_all: settings.masquerade_all, v4, v6 }
    }

    /// How local pods are told.
    pub fn detector(&self, family: Family) -> &Detector {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// The table's comment: the layout's version and what the fixed chains were made for.
    pub fn comment(&self, family: Family) -> String {
        let mut comment = format!("pointsman layout {VERSION}");
        match self.detector(family) {
            Detector::None => {}
            Detector::Network(network) => comment.push_str(&format!(", pods {network}")),
            Detector::Interface(name) => comment.push_str(&format!(", pods by {name:?}")),
            Detector::InterfacePrefix(prefix) => comment.push_str(&format!(", pods by {:?}", format!("{prefix}*"))),
        }
        if self.masquerade_all {
            comment.push_str(", masquerade all");
        }
        // Quotation marks would end the comment in nft's listing.
        comment.replace('"', "'")
    }
}

/// The comment on the elements of a Service port: `namespace/name:port`, as kube-proxy displays it, made safe for listings.
pub fn label(port: &PortKey) -> Arc<str> {
    let mut label = port.to_string();
    let longest = MAX_LABEL - LOCAL.len();
    if label.len() > longest || !label.bytes().all(is_plain) {
        label = label.chars().map(|c| if c.is_ascii() && is_plain(c as u8) { c } else { '_' }).take(longest).collect();
    }
    label.into()
}

/// The comment on the endpoints of a Service port's local pool.
pub fn local_label(label: &str) -> Arc<str> {
    format!("{label}{LOCAL}").into()
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._/:".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Protocol, ServiceKey};

    fn buckets(count: usize) -> Buckets {
        Buckets::new(count).expect("a size")
    }

    fn port(namespace: &str, name: &str, port: &str) -> PortKey {
        PortKey { service: ServiceKey::new(namespace, name), name: port.into(), protocol: Protocol::Tcp }
    }

    #[test]
    fn decisions_are_numbers_and_back() {
        let pool = PoolId::new(0x12).expect("in range");
        let table = [
            (Decision { pool: Some(pool), plan: Plan::Random(4) }, "0x00012004"),
            (Decision { pool: Some(pool), plan: Plan::Random(1023) }, "0x000123ff"),
            (Decision { pool: Some(pool), plan: Plan::Hash(HashKey::Source, buckets(1024)) }, "0x0001240a"),
            (Decision { pool: Some(pool), plan: Plan::Hash(HashKey::SourcePort, buckets(4093)) }, "0x00012524"),
            (Decision { pool: Some(pool), plan: Plan::Hash(HashKey::Destination, buckets(65536)) }, "0x00012610"),
            (Decision { pool: Some(pool), plan: Plan::Dedicated }, "0x00012c02"),
            (Decision { pool: PoolId::new(MAX_POOL), plan: Plan::Random(1) }, "0xfffff001"),
            (Decision { pool: Some(pool), plan: Plan::SourceRanges }, "0x00012c04"),
            (Decision { pool: Some(pool), plan: Plan::LocalPolicy }, "0x00012c05"),
            (Decision { pool: Some(pool), plan: Plan::Userspace }, "0x00012c06"),
            (Decision { pool: None, plan: Plan::Discard }, "0x00000c03"),
            (Decision::REFUSE, "0x00000c01"),
        ];
        for (decision, text) in table {
            assert_eq!(decision.to_string(), text);
            assert_eq!(Decision::from_value(decision.value()), Some(decision));
        }
        for value in [
            0,
            4,
            0x0001_2000,
            0x0001_2400,
            0x0001_270a,
            0x0001_248a,
            0x0001_280a,
            0x40a,
            0xc02,
            0xc04,
            0xc05,
            0xc06,
            0xc07,
            0x0001_2c07,
        ] {
            assert_eq!(Decision::from_value(value), None, "{value:#x}");
        }
        assert_eq!(PoolId::new(0), None);
        assert_eq!(PoolId::new(MAX_POOL + 1), None);
    }

    #[test]
    fn chains_are_named_after_what_they_do() {
        let pool = PoolId::new(7).expect("in range");
        let chain = |pick, slots, affinity, local, key: &PortKey| {
            let chain = DedicatedChain { pick, slots, affinity, local, pool, owner: DedicatedChain::owner(key, pool) };
            let name = chain.name();
            assert_eq!(DedicatedChain::from_name(&name), Some(chain));
            name
        };
        let web = port("shop", "web", "http");
        assert_eq!(chain(Pick::Counter, 3, None, false, &web), "rr-3-00007-shop/web/tcp/http");
        assert_eq!(chain(Pick::Counter, 3, None, true, &web), "local-rr-3-00007-shop/web/tcp/http");
        assert_eq!(
            chain(Pick::Random, 2000, None, false, &port("shop", "web-2", "")),
            "random-2000-00007-shop/web-2/tcp"
        );
        assert_eq!(chain(Pick::Ring, 64, None, false, &web), "ring-64-00007-shop/web/tcp/http");
        assert_eq!(chain(Pick::Ring, 64, Some(9), true, &web), "local-sticky-ring-64-9s-00007-shop/web/tcp/http");
        assert_eq!(chain(Pick::Random, 3, Some(10800), false, &web), "sticky-3-10800s-00007-shop/web/tcp/http");
        assert_eq!(chain(Pick::Counter, 3, Some(1), true, &web), "local-sticky-rr-3-1s-00007-shop/web/tcp/http");
        let hash = |key| Pick::Hash(key);
        let sticky = "sticky-sh-port-1024-9s-00007-shop/web/tcp/http";
        assert_eq!(chain(hash(HashKey::SourcePort), 1024, Some(9), false, &web), sticky);
        assert_eq!(
            chain(hash(HashKey::Source), 251, Some(9), true, &web),
            "local-sticky-mh-251-9s-00007-shop/web/tcp/http"
        );
        assert_eq!(
            chain(hash(HashKey::Destination), 16, Some(9), false, &web),
            "sticky-dh-16-9s-00007-shop/web/tcp/http"
        );
        let named_alike = port("sh", "port", "");
        assert_eq!(chain(Pick::Random, 3, Some(9), false, &named_alike), "sticky-3-9s-00007-sh/port/tcp");
        assert_eq!(chain(Pick::Counter, 3, None, false, &named_alike), "rr-3-00007-sh/port/tcp");
        let hostile = port("shop", "we\"b\n", &"x".repeat(300));
        assert_eq!(chain(Pick::Counter, 3, None, false, &hostile), "rr-3-00007-pool-00007");
        assert_eq!(DedicatedChain::from_name("random-4"), None, "a shared plan's chain is not dedicated");
        assert_eq!(DedicatedChain::from_name("local-policy"), None, "nor is a fixed one");
    }

    #[test]
    fn shared_chains_are_found_by_name() {
        for (plan, name) in [
            (Plan::Random(4), "random-4"),
            (Plan::Hash(HashKey::Source, buckets(1024)), "sh-1024"),
            (Plan::Hash(HashKey::SourcePort, buckets(16)), "sh-port-16"),
            (Plan::Hash(HashKey::Destination, buckets(1024)), "dh-1024"),
            (Plan::Hash(HashKey::Source, buckets(4093)), "mh-4093"),
            (Plan::Hash(HashKey::SourcePort, buckets(65537)), "mh-port-65537"),
        ] {
            assert_eq!(plan.chain(), name);
            assert_eq!(Plan::from_chain(name), Some(plan));
            assert_eq!(Plan::from_number(plan.number()), Some(plan));
            assert!(plan.is_shared() && plan.is_final());
        }
        for name in
            ["random-0", "random-1024", "random-04", "sh-4093", "mh-1024", "sh-1000", "refuse", "sh", "rr-4", ""]
        {
            assert_eq!(Plan::from_chain(name), None, "{name}");
        }
    }

    #[test]
    fn members_are_numbers_and_back() {
        let member = MemberId { pool: PoolId::new(0x12).expect("in range"), index: 4 };
        assert_eq!(member.value(), 0x0001_2004);
        assert_eq!(MemberId::from_value(0x0001_2004), Some(member));
        assert_eq!(MemberId::from_value(4), None);
    }

    #[test]
    fn a_tables_comment_says_what_it_was_made_for() {
        let pods = Detector::Network("10.244.0.0/16".parse().expect("a network"));
        let locality = Locality { masquerade_all: true, v4: pods, v6: Detector::InterfacePrefix("veth".into()) };
        assert_eq!(locality.comment(Family::V4), "pointsman layout 5, pods 10.244.0.0/16, masquerade all");
        assert_eq!(locality.comment(Family::V6), "pointsman layout 5, pods by 'veth*', masquerade all");
        assert_eq!(Locality::default().comment(Family::V4), "pointsman layout 5");
    }

    #[test]
    fn labels_are_safe_to_print() {
        assert_eq!(&*label(&port("shop", "web", "http")), "shop/web:http");
        assert_eq!(&*label(&port("shop", "we\"b\u{1b}[31mé", "")), "shop/we_b__31m_");
        assert_eq!(local_label(&label(&port("n", &"x".repeat(300), ""))).len(), MAX_LABEL);
    }
}
