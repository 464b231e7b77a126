//! Flows as ctnetlink messages and back.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use jiff::Timestamp;
use nft::netlink::{Message, Writer, attributes, find};
use nft::uapi::{NLM_F_DUMP, NLM_F_REQUEST};
use nix::libc;

use super::table::Filter;
use crate::conntrack::census::Sighting;
use crate::conntrack::ledger::Event;
use crate::conntrack::{Flow, Record, Tuple};
use crate::model::{Family, Protocol};
use crate::status::Traffic;

// linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h
pub(super) const NFNL_SUBSYS_CTNETLINK: u16 = 1;
pub(super) const IPCTNL_MSG_CT_NEW: u16 = 0;
const IPCTNL_MSG_CT_GET: u16 = 1;
const IPCTNL_MSG_CT_DELETE: u16 = 2;
const IPCTNL_MSG_CT_GET_STATS: u16 = 5;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
pub(super) const CTA_PROTOINFO: u16 = 4;
const CTA_COUNTERS_ORIG: u16 = 9;
const CTA_COUNTERS_REPLY: u16 = 10;
const CTA_COUNTERS_PACKETS: u16 = 1;
const CTA_COUNTERS_BYTES: u16 = 2;
const CTA_TIMEOUT: u16 = 7;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_TIMESTAMP: u16 = 20;
const CTA_TIMESTAMP_START: u16 = 1;
const CTA_TIMESTAMP_STOP: u16 = 2;
const CTA_FILTER: u16 = 25;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_TUPLE_ZONE: u16 = 3;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
pub(super) const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_SCTP: u16 = 3;
// The same number for TCP and SCTP.
pub(super) const CTA_PROTOINFO_STATE: u16 = 1;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
// net/netfilter/nf_internals.h: which parts of the tuple a dump has to match
const CTA_FILTER_F_CTA_IP_DST: u32 = 1 << 1;
const CTA_FILTER_F_CTA_PROTO_NUM: u32 = 1 << 3;
const CTA_FILTER_F_CTA_PROTO_DST_PORT: u32 = 1 << 5;

/// `IPS_DST_NAT` (linux/netfilter/nf_conntrack_common.h): the destination was translated.
const IPS_DST_NAT: u32 = 1 << 5;

/// `NLM_F_CREATE` (linux/netlink.h): an event of a flow that has just begun.
pub(super) const NLM_F_CREATE: u16 = 0x400;

/// `struct nfgenmsg` ahead of the attributes.
const NFGENMSG_LEN: usize = 4;

/// Writes a request for all entries that match; with `filtered` off, for all of the family.
pub(super) fn dump(writer: &mut Writer, seq: u32, filter: &Filter, filtered: bool) {
    let kind = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET;
    let message = writer.begin(kind, NLM_F_REQUEST | NLM_F_DUMP, seq, &[family_number(filter.family), 0, 0, 0]);
    if filtered {
        let mut flags = CTA_FILTER_F_CTA_PROTO_NUM;
        let tuple = writer.begin_nest(CTA_TUPLE_ORIG);
        if let Some(address) = filter.address {
            flags |= CTA_FILTER_F_CTA_IP_DST;
            let ip = writer.begin_nest(CTA_TUPLE_IP);
            writer.attr(CTA_IP_V4_DST, &address.octets());
            writer.end_nest(ip);
        }
        let proto = writer.begin_nest(CTA_TUPLE_PROTO);
        writer.attr(CTA_PROTO_NUM, &[filter.protocol.number()]);
        if let Some(port) = filter.port {
            flags |= CTA_FILTER_F_CTA_PROTO_DST_PORT;
            writer.attr(CTA_PROTO_DST_PORT, &port.to_be_bytes());
        }
        writer.end_nest(proto);
        writer.end_nest(tuple);
        let nest = writer.begin_nest(CTA_FILTER);
        writer.attr_ne32(CTA_FILTER_ORIG_FLAGS, flags);
        writer.end_nest(nest);
    }
    writer.end(message);
}

/// Writes a request for all entries of all families whose destination was translated. Kernels before 5.17 send all others as well.
pub(super) fn dump_translated(writer: &mut Writer, seq: u32) {
    let kind = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET;
    let message = writer.begin(kind, NLM_F_REQUEST | NLM_F_DUMP, seq, &[0; NFGENMSG_LEN]);
    writer.attr_be32(CTA_STATUS, IPS_DST_NAT);
    writer.end(message);
}

/// Reads an entry with what a census wants to know about it besides.
pub(super) fn sighting(message: &Message<'_>) -> Option<Sighting> {
    let flow = read(message)?;
    let attributes = message.payload.get(NFGENMSG_LEN..)?;
    let number = |kind| find(attributes, kind).and_then(|attribute| attribute.be32()).unwrap_or_default();
    Some(Sighting { flow, status: number(CTA_STATUS), left: number(CTA_TIMEOUT) })
}

/// Reads an entry with all that people want to know of it.
pub(super) fn record(message: &Message<'_>) -> Option<Record> {
    let sighting = sighting(message)?;
    let times = message.payload.get(NFGENMSG_LEN..).and_then(|bytes| find(bytes, CTA_TIMESTAMP));
    let time = |kind| {
        let nanoseconds = u64::from_be_bytes(find(times?.value, kind)?.value.try_into().ok()?);
        Timestamp::from_nanosecond(nanoseconds.into()).ok()
    };
    Some(Record {
        sighting,
        traffic: read_traffic(message),
        began: time(CTA_TIMESTAMP_START),
        ended: time(CTA_TIMESTAMP_STOP),
    })
}

/// Writes a request for one entry.
pub(super) fn get(writer: &mut Writer, seq: u32, flow: &Flow) {
    name(writer, IPCTNL_MSG_CT_GET, seq, flow);
}

/// Writes a request for the number of entries.
pub(super) fn count(writer: &mut Writer, seq: u32) {
    let kind = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET_STATS;
    let message = writer.begin(kind, NLM_F_REQUEST, seq, &[0; NFGENMSG_LEN]);
    writer.end(message);
}

/// Writes the removal of one entry. Only a failure is answered.
pub(super) fn delete(writer: &mut Writer, seq: u32, flow: &Flow) {
    name(writer, IPCTNL_MSG_CT_DELETE, seq, flow);
}

/// Writes a request about exactly this entry.
fn name(writer: &mut Writer, what: u16, seq: u32, flow: &Flow) {
    let kind = NFNL_SUBSYS_CTNETLINK << 8 | what;
    let family = family_number(Family::of(flow.original.destination.ip()));
    let message = writer.begin(kind, NLM_F_REQUEST, seq, &[family, 0, 0, 0]);
    write_tuple(writer, CTA_TUPLE_ORIG, flow.protocol, &flow.original);
    if let Some(zone) = flow.zone {
        writer.attr(CTA_ZONE, &zone.to_be_bytes());
    }
    if let Some(id) = flow.id {
        writer.attr_be32(CTA_ID, id);
    }
    writer.end(message);
}

/// Whether a message is an entry of the table.
pub(super) fn is_entry(message: &Message<'_>) -> bool {
    message.kind == NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW
}

/// What a message of a subscription says happened.
pub(super) fn event(message: &Message<'_>) -> Option<Event> {
    const NEW: u16 = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW;
    const DELETE: u16 = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE;
    match message.kind {
        NEW if message.flags & NLM_F_CREATE != 0 => Some(Event::New),
        NEW => Some(Event::Present),
        DELETE => Some(Event::End),
        _ => None,
    }
}

/// Reads an entry; `None` if it is of a protocol that Services do not know.
pub(super) fn read(message: &Message<'_>) -> Option<Flow> {
    let attributes_of = message.payload.get(NFGENMSG_LEN..)?;
    let (mut original, mut reply, mut zone, mut id, mut state) = (None, None, None, None, None);
    for attribute in attributes(attributes_of) {
        match attribute.kind {
            CTA_TUPLE_ORIG => original = read_tuple(attribute.value),
            CTA_TUPLE_REPLY => reply = read_tuple(attribute.value),
            CTA_ZONE => zone = read_be16(attribute.value),
            CTA_ID => id = attribute.be32(),
            CTA_PROTOINFO => state = read_state(attribute.value),
            _ => {}
        }
    }
    let ((protocol, original), (_, reply)) = (original?, reply?);
    Some(Flow { protocol, original, reply, zone, id, state })
}

/// What an entry carried; `None` where the kernel did not account when it began.
pub(super) fn read_traffic(message: &Message<'_>) -> Option<Traffic> {
    let bytes = message.payload.get(NFGENMSG_LEN..)?;
    let of = |direction| {
        let counters = find(bytes, direction)?.value;
        let number = |kind| Some(u64::from_be_bytes(find(counters, kind)?.value.try_into().ok()?));
        Some((number(CTA_COUNTERS_PACKETS)?, number(CTA_COUNTERS_BYTES)?))
    };
    let ((packets_in, bytes_in), (packets_out, bytes_out)) = (of(CTA_COUNTERS_ORIG)?, of(CTA_COUNTERS_REPLY)?);
    Some(Traffic { packets_in, packets_out, bytes_in, bytes_out })
}

/// The state in either protocol's attributes.
fn read_state(bytes: &[u8]) -> Option<u8> {
    let of = find(bytes, CTA_PROTOINFO_TCP).or_else(|| find(bytes, CTA_PROTOINFO_SCTP))?;
    find(of.value, CTA_PROTOINFO_STATE)?.value.first().copied()
}

fn write_tuple(writer: &mut Writer, kind: u16, protocol: Protocol, tuple: &Tuple) {
    let nest = writer.begin_nest(kind);
    let ip = writer.begin_nest(CTA_TUPLE_IP);
    write_address(writer, tuple.source.ip(), CTA_IP_V4_SRC, CTA_IP_V6_SRC);
    write_address(writer, tuple.destination.ip(), CTA_IP_V4_DST, CTA_IP_V6_DST);
    writer.end_nest(ip);
    let proto = writer.begin_nest(CTA_TUPLE_PROTO);
    writer.attr(CTA_PROTO_NUM, &[protocol.number()]);
    writer.attr(CTA_PROTO_SRC_PORT, &tuple.source.port().to_be_bytes());
    writer.attr(CTA_PROTO_DST_PORT, &tuple.destination.port().to_be_bytes());
    writer.end_nest(proto);
    if let Some(zone) = tuple.zone {
        writer.attr(CTA_TUPLE_ZONE, &zone.to_be_bytes());
    }
    writer.end_nest(nest);
}

fn write_address(writer: &mut Writer, address: IpAddr, v4: u16, v6: u16) {
    match address {
        IpAddr::V4(address) => writer.attr(v4, &address.octets()),
        IpAddr::V6(address) => writer.attr(v6, &address.octets()),
    }
}

fn read_tuple(bytes: &[u8]) -> Option<(Protocol, Tuple)> {
    let (ip, proto) = (find(bytes, CTA_TUPLE_IP)?.value, find(bytes, CTA_TUPLE_PROTO)?.value);
    let protocol = Protocol::from_number(*find(proto, CTA_PROTO_NUM)?.value.first()?)?;
    let port = |kind| read_be16(find(proto, kind)?.value);
    let source = SocketAddr::new(read_address(ip, CTA_IP_V4_SRC, CTA_IP_V6_SRC)?, port(CTA_PROTO_SRC_PORT)?);
    let destination = SocketAddr::new(read_address(ip, CTA_IP_V4_DST, CTA_IP_V6_DST)?, port(CTA_PROTO_DST_PORT)?);
    let zone = find(bytes, CTA_TUPLE_ZONE).and_then(|zone| read_be16(zone.value));
    Some((protocol, Tuple { source, destination, zone }))
}

fn read_address(bytes: &[u8], v4: u16, v6: u16) -> Option<IpAddr> {
    attributes(bytes).find_map(|attribute| match attribute.kind {
        kind if kind == v4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(attribute.value).ok()?).into()),
        kind if kind == v6 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(attribute.value).ok()?).into()),
        _ => None,
    })
}

fn read_be16(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => libc::AF_INET as u8,
        Family::V6 => libc::AF_INET6 as u8,
    }
}

#[cfg(test)]
mod tests {
    use nft::netlink::messages;
    use proptest::prelude::*;

    use super::*;

    fn any_tuple(v6: bool) -> impl Strategy<Value = Tuple> {
        let address = move || {
            any::<[u8; 16]>().prop_map(move |octets| {
                if v6 { IpAddr::from(octets) } else { IpAddr::from([octets[0], octets[1], octets[2], octets[3]]) }
            })
        };
        (address(), any::<u16>(), address(), any::<u16>(), any::<Option<u16>>()).prop_map(
            |(source, source_port, destination, destination_port, zone)| Tuple {
                source: (source, source_port).into(),
                destination: (destination, destination_port).into(),
                zone,
            },
        )
    }

    fn any_flow() -> impl Strategy<Value = Flow> {
        let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Sctp)];
        any::<bool>().prop_flat_map(move |v6| {
            (protocol.clone(), any_tuple(v6), any_tuple(v6), any::<Option<u16>>(), any::<Option<u32>>()).prop_map(
                |(protocol, original, reply, zone, id)| Flow { protocol, original, reply, zone, id, state: None },
            )
        })
    }

    proptest! {
        #[test]
        fn a_flow_survives_the_journey_and_every_removal_names_it(flow in any_flow()) {
            let mut writer = Writer::new();
            delete(&mut writer, 3, &flow);
            let removal = messages(writer.as_bytes()).next().expect("a message");
            prop_assert!(!is_entry(&removal));
            // The kernel would take a removal without a tuple as one of everything.
            prop_assert!(find(&removal.payload[NFGENMSG_LEN..], CTA_TUPLE_ORIG).is_some());
            // An entry has the reply as well.
            let mut entry = Writer::new();
            let message = entry.begin(NFNL_SUBSYS_CTNETLINK << 8, 0, 3, removal.payload);
            write_tuple(&mut entry, CTA_TUPLE_REPLY, flow.protocol, &flow.reply);
            entry.end(message);
            let entry = messages(entry.as_bytes()).next().expect("a message");
            prop_assert!(is_entry(&entry));
            prop_assert_eq!(read(&entry), Some(flow));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let message = Message { kind: 256, flags: 0, seq: 0, port: 0, payload: &bytes };
            let _ = (read(&message), record(&message));
        }
    }
}
