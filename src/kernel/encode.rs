//! Keys and values of our maps, as bytes and back.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nft::{Field, Key};

use crate::compile::layout::{Decision, PoolId};
use crate::compile::{SlotKey, TableImage};
use crate::model::{Family, Protocol};
use crate::policy::Frontend;

/// Fields of map `services`' key.
pub(super) fn frontend_fields(family: Family) -> Vec<Field> {
    vec![address_field(family), Field::InetProto, Field::InetService]
}

/// Fields of map `endpoints`' key: pool and slot.
pub(super) const SLOT_FIELDS: [Field; 2] = [Field::Mark, Field::Mark];

/// Fields of the maps that are keyed by a decision or a plan.
pub(super) const DECISION_FIELDS: [Field; 1] = [Field::Mark];

/// Fields of map `endpoints`' value.
pub(super) fn endpoint_fields(family: Family) -> Vec<Field> {
    vec![address_field(family), Field::InetService]
}

/// The type of an address.
pub(super) fn address_field(family: Family) -> Field {
    match family {
        Family::V4 => Field::Ipv4Addr,
        Family::V6 => Field::Ipv6Addr,
    }
}

/// The nf_tables family of a family.
pub(super) fn nft_family(family: Family) -> nft::Family {
    match family {
        Family::V4 => nft::Family::Ip,
        Family::V6 => nft::Family::Ip6,
    }
}

pub(super) fn frontend_key(frontend: &Frontend) -> Key {
    address(Key::new(), frontend.address).proto(frontend.protocol.number()).port(frontend.port)
}

pub(super) fn slot_key(key: &SlotKey) -> Key {
    Key::new().mark(key.pool.key()).mark(key.slot)
}

pub(super) fn endpoint_value(endpoint: SocketAddr) -> Key {
    address(Key::new(), endpoint.ip()).port(endpoint.port())
}

pub(super) fn number(number: u32) -> Key {
    Key::new().mark(number)
}

fn address(key: Key, address: IpAddr) -> Key {
    match address {
        IpAddr::V4(address) => key.ipv4(address),
        IpAddr::V6(address) => key.ipv6(address),
    }
}

/// Reads a key of map `services`; `None` if it is none of ours.
pub(super) fn read_frontend(family: Family, bytes: &[u8]) -> Option<Frontend> {
    let (address, rest) = read_address(family, bytes)?;
    let protocol = Protocol::from_number(*rest.first()?)?;
    Some(Frontend { address, protocol, port: read_port(rest.get(4..)?)? })
}

/// Reads a key of map `endpoints`.
pub(super) fn read_slot_key(bytes: &[u8]) -> Option<SlotKey> {
    let pool = PoolId::from_key(read_number(bytes)?)?;
    Some(SlotKey { pool, slot: read_number(bytes.get(4..)?)? })
}

/// Reads a value of map `endpoints`.
pub(super) fn read_endpoint(family: Family, bytes: &[u8]) -> Option<SocketAddr> {
    let (address, rest) = read_address(family, bytes)?;
    Some(SocketAddr::new(address, read_port(rest)?))
}

/// Reads a value of map `services`.
pub(super) fn read_decision(bytes: &[u8]) -> Option<Decision> {
    Decision::from_value(read_number(bytes)?)
}

/// Reads a number in host byte order.
pub(super) fn read_number(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?))
}

fn read_address(family: Family, bytes: &[u8]) -> Option<(IpAddr, &[u8])> {
    match family {
        Family::V4 => {
            let (octets, rest) = bytes.split_first_chunk::<4>()?;
            Some((Ipv4Addr::from(*octets).into(), rest))
        }
        Family::V6 => {
            let (octets, rest) = bytes.split_first_chunk::<16>()?;
            Some((Ipv6Addr::from(*octets).into(), rest))
        }
    }
}

fn read_port(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(..2)?.try_into().ok()?))
}

/// How many elements of each map were found that we cannot have written; a table that holds any is not trusted.
pub(super) fn foreign(image: &TableImage, counted: usize) -> usize {
    counted - (image.services.len() + image.endpoints.len() + image.dedicated.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn keys_and_values_survive_the_journey(address in any::<IpAddr>(), protocol in 0usize..3, port in any::<u16>(), pool in 1u32..=0xf_ffff, slot in any::<u32>()) {
            let family = Family::of(address);
            let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp][protocol];
            let frontend = Frontend { address, protocol, port };
            prop_assert_eq!(read_frontend(family, frontend_key(&frontend).as_bytes()), Some(frontend));
            let endpoint = SocketAddr::new(address, port);
            prop_assert_eq!(read_endpoint(family, endpoint_value(endpoint).as_bytes()), Some(endpoint));
            let key = SlotKey { pool: PoolId::new(pool).expect("in range"), slot };
            prop_assert_eq!(read_slot_key(slot_key(&key).as_bytes()), Some(key));
        }

        #[test]
        fn foreign_bytes_are_refused_and_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..30)) {
            for family in Family::ALL {
                let _ = (read_frontend(family, &bytes), read_endpoint(family, &bytes));
            }
            let _ = (read_slot_key(&bytes), read_decision(&bytes));
        }
    }
}
