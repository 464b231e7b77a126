//! Filling maps with crate `nft` alone: keys made beforehand, nothing in the timed part but encoding and the kernel.
//!
//! [`yardstick`] fills one map of 16-byte keys and 8-byte data, the best row of the design notes' table on bulk loading. [`shape`]
//! and [`endpoints`] fill maps like the product's. All maps declare the size that the product would declare.

use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use nft::{Connection, Element, Family, Field, Key, Set, SetData, SetRef, Table, Transaction};
use nix::libc::IPPROTO_TCP;

use super::Cost;
use crate::cluster::{ENDPOINTS, SERVICE_PORT, TARGET_PORT, cluster_ip};
use crate::usage::{CpuTime, slab_bytes};

const TABLE: &str = "bench";
const YARDSTICK: [Field; 4] = [Field::Ipv4Addr, Field::InetProto, Field::InetService, Field::Mark];
const FRONTEND: [Field; 3] = [Field::Ipv4Addr, Field::InetProto, Field::InetService];
const SLOT: [Field; 2] = [Field::Mark, Field::Mark];
const ENDPOINT: [Field; 2] = [Field::Ipv4Addr, Field::InetService];

/// Bits of a decision that are the plan; see `pointsman::compile::layout`.
const PLAN_BITS: u32 = 12;

/// Key, value and comment of every element, made beforehand.
pub struct Elements {
    yardstick: Vec<Made>,
    services: Vec<Made>,
    endpoints: Vec<Made>,
}

/// Which maps' elements carry comments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Comments {
    services: bool,
    endpoints: bool,
}

struct Made {
    key: Key,
    value: Key,
    /// Shared by a Service's elements, as in the product.
    comment: Arc<str>,
}

/// A map to fill.
struct Fill<'a> {
    map: &'static str,
    key: &'static [Field],
    value: &'static [Field],
    elements: &'a [Made],
    comments: bool,
}

/// Fills one map the fastest way.
pub fn yardstick(elements: &Elements, chunk: usize) -> anyhow::Result<Cost> {
    let (key, value) = (&YARDSTICK, &ENDPOINT);
    fill(&[Fill { map: "yardstick", key, value, elements: &elements.yardstick, comments: false }], chunk)
}

/// Fills both of the product's large maps.
pub fn shape(elements: &Elements, comments: Comments, chunk: usize) -> anyhow::Result<Cost> {
    let services = Fill {
        map: "services",
        key: &FRONTEND,
        value: &[Field::Mark],
        elements: &elements.services,
        comments: comments.services,
    };
    fill(&[endpoints_map(elements, comments.endpoints), services], chunk)
}

/// Fills the map of endpoints alone, with comments.
pub fn endpoints(elements: &Elements, chunk: usize) -> anyhow::Result<Cost> {
    fill(&[endpoints_map(elements, true)], chunk)
}

fn endpoints_map(elements: &Elements, comments: bool) -> Fill<'_> {
    Fill { map: "endpoints", key: &SLOT, value: &ENDPOINT, elements: &elements.endpoints, comments }
}

fn fill(maps: &[Fill<'_>], chunk: usize) -> anyhow::Result<Cost> {
    let mut connection = Connection::open()?;
    let mut transaction = Transaction::new();
    transaction.add_table(&Table::new(Family::Ip, TABLE));
    for map in maps {
        let size = u32::try_from(map.elements.len() * 2)?.max(1 << 16).next_power_of_two();
        let set = Set::map(Family::Ip, TABLE, map.map, map.key, SetData::Value(map.value.to_vec()));
        transaction.add_set(&Set { size: Some(size), ..set });
    }
    let mut cost = Cost::default();
    let (slab, cpu, begin) = (slab_bytes()?, CpuTime::now()?, Instant::now());
    connection.commit(&transaction)?;
    for map in maps {
        for elements in map.elements.chunks(chunk) {
            transaction.clear();
            let elements = elements.iter().map(|made| {
                let element = Element::value(made.key.as_bytes(), made.value.as_bytes());
                if map.comments { element.comment(&made.comment) } else { element }
            });
            transaction.add_elements(SetRef::new(Family::Ip, TABLE, map.map), map.key, elements);
            let begin = Instant::now();
            connection.commit(&transaction)?;
            cost.longest = cost.longest.max(begin.elapsed());
            cost.bytes += transaction.len();
            cost.transactions += 1;
        }
        cost.elements += map.elements.len();
    }
    cost.wall = begin.elapsed();
    cost.cpu = CpuTime::now()?.since(cpu);
    cost.slab = slab_bytes()? - slab;
    transaction.clear();
    transaction.delete_table(Family::Ip, TABLE);
    connection.commit(&transaction)?;
    Ok(cost)
}

// === impl Elements ===

impl Elements {
    /// Those of so many Services.
    pub fn of(services: u32) -> Self {
        let frontend = |service| Key::new().ipv4(cluster_ip(service)).proto(IPPROTO_TCP as u8).port(SERVICE_PORT);
        let mut made = Self { yardstick: Vec::new(), services: Vec::new(), endpoints: Vec::new() };
        for service in 0..services {
            let comment: Arc<str> = format!("bench/service-{service}").into();
            let pool = (service + 1) << PLAN_BITS;
            let decision = Key::new().mark(pool | u32::from(ENDPOINTS));
            made.services.push(Made { key: frontend(service), value: decision, comment: comment.clone() });
            for slot in 0..u32::from(ENDPOINTS) {
                let address = Ipv4Addr::from_bits(0x0a80_0001 + service * u32::from(ENDPOINTS) + slot);
                let value = Key::new().ipv4(address).port(TARGET_PORT);
                let slot_key = Key::new().mark(pool).mark(slot);
                made.endpoints.push(Made { key: slot_key, value, comment: comment.clone() });
                made.yardstick.push(Made { key: frontend(service).mark(slot), value, comment: comment.clone() });
            }
        }
        made
    }
}

// === impl Comments ===

impl Comments {
    /// Nowhere.
    pub const NONE: Self = Self { services: false, endpoints: false };
    /// On frontends only.
    pub const SERVICES: Self = Self { services: true, endpoints: false };
    /// On every element.
    pub const ALL: Self = Self { services: true, endpoints: true };
}

impl fmt::Display for Comments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.services, self.endpoints) {
            (false, false) => "no comments",
            (true, false) => "comments on services",
            (false, true) => "comments on endpoints",
            (true, true) => "comments on both",
        })
    }
}
