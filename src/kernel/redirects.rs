//! Who of the forwarder's listeners takes over from our own tables: a table that goes with this process.
//!
//! The tables in `plane` outlive the process; this one must not. It is *owned* by a netlink socket of this process and does not persist,
//! so the kernel removes it when the process dies, of whatever cause. What our own tables leave untranslated for the forwarder
//! (`compile::layout`, plan `userspace`) passes through it, in the same hook, and then through our own once more. So who is there
//! decides at each moment: a connection finds a listener in this table, or goes where the kernel can lead it by itself.
//!
//! ```text
//! table ip pointsman-userspace                    flags owner
//!   map listeners { decision : address . port }   one per pool that is forwarded
//!   chain prerouting, output { nat hook, -99: dnat to meta priority map @listeners }
//! ```
//!
//! Invariants: a listener that is in the map is open; what is not in the map is the kernel's. So the order between changes of this
//! table and of the others does not matter: with only one of them, connections go to the endpoints directly.
//!
//! Proven by `tests/kernel/redirects.rs` and `tests/e2e/forward.rs`.

use std::net::SocketAddr;

use nft::{
    Chain, ChainKind, Connection, Element, Error, Expr, Field, Hook, Key, MetaKey, Reg, Rule, Set, SetData, SetRef,
    Table, Transaction,
};

use super::chains::PRIORITY_FORWARDER;
use super::encode::{address_field, nft_family, number};
use super::skeleton::NUMBER;
use crate::compile::layout::{Decision, Plan, PoolId};
use crate::model::Family;

/// The table's name in both families.
pub const TABLE: &str = "pointsman-userspace";
const MAP: &str = "listeners";

/// What leads to listeners; nothing does when this is dropped.
#[derive(Debug)]
pub struct Redirects {
    connection: Connection,
    /// Families that have their table.
    made: [bool; 2],
}

/// A pool whose connections go to a listener, which is of the same family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// Whose connections.
    pub pool: PoolId,
    /// Where they go.
    pub to: SocketAddr,
}

// === impl Redirects ===

impl Redirects {
    /// With nothing redirected, in the calling thread's network namespace.
    ///
    /// # Errors
    /// When netlink cannot be opened.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { connection: Connection::open()?, made: [false; 2] })
    }

    /// Ends redirects that are there and makes others, all of them or none; and the table, when it is first needed.
    ///
    /// # Errors
    /// What the kernel said; everything is as it was before.
    pub fn change(&mut self, ended: &[Redirect], begun: &[Redirect]) -> Result<(), Error> {
        let mut transaction = Transaction::new();
        let mut made = self.made;
        for family in Family::ALL {
            let of_family = |redirect: &&Redirect| Family::of(redirect.to.ip()) == family;
            if begun.iter().any(|redirect| of_family(&redirect)) && !std::mem::replace(&mut made[family as usize], true)
            {
                add_table(&mut transaction, family);
            }
            let map = || SetRef::new(nft_family(family), TABLE, MAP);
            for redirect in ended.iter().filter(of_family) {
                transaction.delete_from(map(), &NUMBER).push(&Element::new(key(redirect.pool).as_bytes()));
            }
            for redirect in begun.iter().filter(of_family) {
                let element = (key(redirect.pool), endpoint(redirect.to));
                transaction.add_to(map(), &NUMBER).push(&Element::value(element.0.as_bytes(), element.1.as_bytes()));
            }
        }
        if !transaction.is_empty() {
            self.connection.commit(&transaction)?;
            self.made = made;
        }
        Ok(())
    }
}

/// What the priority of a pool's packets says.
fn key(pool: PoolId) -> Key {
    number(Decision { pool: Some(pool), plan: Plan::Userspace }.value())
}

fn endpoint(address: SocketAddr) -> Key {
    match address {
        SocketAddr::V4(v4) => Key::new().ipv4(*v4.ip()),
        SocketAddr::V6(v6) => Key::new().ipv6(*v6.ip()),
    }
    .port(address.port())
}

fn add_table(transaction: &mut Transaction, family: Family) {
    let of = nft_family(family);
    let mut table = Table::new(of, TABLE);
    table.flags.owner = true;
    // Nothing of that name can be ours: who made it is gone, and its table with it.
    transaction.create_table(&table);
    let listener = SetData::Value(vec![address_field(family), Field::InetService]);
    transaction.add_set(&Set::map(of, TABLE, MAP, NUMBER, listener));
    let port = if family == Family::V4 { Reg::slot(1) } else { Reg::slot(4) };
    for (chain, hook) in [("prerouting", Hook::Prerouting), ("output", Hook::Output)] {
        transaction.add_chain(&Chain::new(of, TABLE, chain).hooked(ChainKind::Nat, hook, PRIORITY_FORWARDER));
        let rule = vec![
            Expr::MetaLoad { key: MetaKey::Priority, dreg: Reg::slot(0) },
            Expr::map(MAP, Reg::slot(0), Reg::slot(0)),
            Expr::dnat(of, Reg::slot(0), Some(port)),
        ];
        transaction.add_rule(&Rule::new(of, TABLE, chain, rule));
    }
}
