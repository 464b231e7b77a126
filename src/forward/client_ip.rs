//! Connections to endpoints that come from the client's address.
//!
//! The forwarder's own connection to an endpoint has the node's address. Before it is made, its source port is chosen, and an element
//! (port, endpoint, client's address) is put into a map of a table of our own; the first packet finds it there in postrouting, and
//! connection tracking translates the source, and replies back. So nothing needs a transparent socket, a policy route or a packet
//! mark, which belong to others. When the connection is made, or could not be, the element goes: connection tracking remembers.
//!
//! ```text
//! table ip pointsman-forward
//!   map clients { sport . daddr . dport : saddr; timeout 10s }
//!   chain sources { hook postrouting, 95; fib saddr type local, tcp: snat to sport . daddr . dport map @clients }
//! ```
//!
//! **Limit**: the endpoint's replies must pass this node, or nobody translates them back. Those of the node's own pods do; those of
//! other nodes' only if the network routes them through here, as in IPVS's NAT mode. An endpoint
//! whose replies go elsewhere looks silent.
//!
//! Invariants: the table is owned by this process's socket, so it goes when the process does, whatever ends it. What cannot be set
//! up makes a plain connection, which is counted. Only packets of this host's own addresses are looked at. Elements exist for as
//! long as the port is taken by the connection that they are for.
//!
//! Proven by `tests/forward/client_ip.rs`.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nft::{
    Chain, ChainKind, Connection, Element, ElementData, Error, Expr, Family, FibFlags, FibResult, Field, Hook, Key,
    NatFlags, NatKind, Reg, Rule, Set, SetData, SetRef, Table, Transaction,
};
use tokio::task::spawn_blocking;

/// The name of the table in both families.
pub const TABLE: &str = "pointsman-forward";
const MAP: &str = "clients";
const CHAIN: &str = "sources";
/// In front of all who masquerade (100): the first translation counts.
const PRIORITY: i32 = 95;
/// Longer than an attempt to connect takes; what is left of an attempt that was broken off.
const LIFE: Duration = Duration::from_secs(10);
/// `RTN_LOCAL`
const LOCAL: u32 = 2;
const TCP: u8 = 6;

/// The table, made when it is first needed; see the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Clients(Arc<Mutex<Option<Connection>>>);

/// An element, taken away when this is dropped. Must be dropped within a tokio runtime.
#[derive(Debug)]
pub(super) struct Announced {
    clients: Clients,
    family: Family,
    key: Key,
}

// === impl Clients ===

impl Clients {
    /// Has the connection that will be made from this local port to this endpoint come from the client's address. Not on the
    /// calling thread: the kernel may be busy with somebody else's tables for milliseconds.
    ///
    /// # Errors
    /// What the kernel said; the connection is a plain one then.
    pub async fn announce(&self, port: u16, endpoint: SocketAddr, client: IpAddr) -> Result<Announced, String> {
        let (clients, family) = (self.clone(), family(endpoint));
        let key = address(Key::new().port(port), endpoint.ip()).port(endpoint.port());
        let announced = spawn_blocking(move || clients.add(family, key, client).map(|()| clients)).await;
        let clients = announced.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        Ok(Announced { clients, family, key })
    }

    fn add(&self, family: Family, key: Key, client: IpAddr) -> Result<(), Error> {
        let mut kernel = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let kernel = match &mut *kernel {
            Some(kernel) => kernel,
            none => none.insert(set_up()?),
        };
        let data = address(Key::new(), client);
        let mut transaction = Transaction::new();
        let (key, data) = (key.as_bytes(), ElementData::Value(data.as_bytes()));
        let element = Element { key, data, comment: None, timeout: None, key_end: None };
        transaction.add_to(map(family), &fields(family)).push(&element);
        kernel.commit(&transaction)
    }

    /// An error means that the element has gone already.
    fn delete(&self, family: Family, key: Key) {
        let mut kernel = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(kernel) = &mut *kernel {
            let mut transaction = Transaction::new();
            let element =
                Element { key: key.as_bytes(), data: ElementData::None, comment: None, timeout: None, key_end: None };
            transaction.delete_from(map(family), &fields(family)).push(&element);
            let _ = kernel.commit(&transaction);
        }
    }
}

// === impl Announced ===

impl Drop for Announced {
    fn drop(&mut self) {
        let (clients, family, key) = (self.clients.clone(), self.family, self.key);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || clients.delete(family, key));
        }
    }
}

// === the table ===

/// Makes the tables of both families. They live as long as this socket.
fn set_up() -> Result<Connection, Error> {
    let mut kernel = Connection::open()?;
    let mut transaction = Transaction::new();
    for family in [Family::Ip, Family::Ip6] {
        let mut table = Table::new(family, TABLE);
        table.flags.owner = true;
        transaction.create_table(&table);
        let value = if family == Family::Ip { Field::Ipv4Addr } else { Field::Ipv6Addr };
        let map = Set::map(family, TABLE, MAP, fields(family), SetData::Value(vec![value]));
        transaction.add_set(&Set { timeout: Some(LIFE), ..map });
        transaction.add_chain(&Chain::new(family, TABLE, CHAIN).hooked(ChainKind::Nat, Hook::Postrouting, PRIORITY));
        transaction.add_rule(&Rule::new(family, TABLE, CHAIN, rule(family)));
    }
    kernel.commit(&transaction)?;
    Ok(kernel)
}

fn rule(family: Family) -> Vec<Expr> {
    let saddr = FibFlags { saddr: true, ..FibFlags::default() };
    let (daddr, dport) = match family {
        Family::Ip => (Expr::ip_daddr(Reg::slot(1)), Reg::slot(2)),
        _ => (Expr::ip6_daddr(Reg::slot(1)), Reg::slot(5)),
    };
    vec![
        Expr::Fib { result: FibResult::AddrType, flags: saddr, dreg: Reg::R1 },
        Expr::eq(Reg::R1, Key::new().mark(LOCAL)),
        Expr::l4proto(Reg::R1),
        Expr::eq(Reg::R1, Key::raw(&[TCP])),
        Expr::th_sport(Reg::slot(0)),
        daddr,
        Expr::th_dport(dport),
        Expr::map(MAP, Reg::R1, Reg::R1),
        Expr::Nat {
            kind: NatKind::Snat,
            family,
            addr: Some(Reg::R1),
            addr_max: None,
            port: None,
            port_max: None,
            flags: NatFlags::default(),
        },
    ]
}

fn fields(family: Family) -> [Field; 3] {
    let address = if family == Family::Ip { Field::Ipv4Addr } else { Field::Ipv6Addr };
    [Field::InetService, address, Field::InetService]
}

fn map(family: Family) -> SetRef<'static> {
    SetRef { family, table: TABLE, name: MAP }
}

fn family(endpoint: SocketAddr) -> Family {
    if endpoint.is_ipv4() { Family::Ip } else { Family::Ip6 }
}

fn address(key: Key, address: IpAddr) -> Key {
    match address {
        IpAddr::V4(v4) => key.ipv4(v4),
        IpAddr::V6(v6) => key.ipv6(v6),
    }
}
