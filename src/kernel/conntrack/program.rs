//! A filter that the kernel runs over conntrack's events, so that those of other Services never reach us.
//!
//! Classic BPF (`linux/filter.h`) over a whole netlink message. What is looked at stands at fixed places, because ctnetlink begins
//! every event with the original tuple (`ctnetlink_conntrack_event`, `ctnetlink_dump_tuples`):
//!
//! ```text
//!                                   IPv4        IPv6
//! nlmsghdr: type 4, flags 6
//! nfgenmsg: family 16
//! CTA_TUPLE_ORIG 20
//!   CTA_TUPLE_IP 24: source 28, destination 36      28, 48
//!   CTA_TUPLE_PROTO:  number     48                 72
//!                     ports      56, 64             80, 88
//! ```
//!
//! A message of another shape is let through, and checked like any other by whoever reads it. Of updates only those are let through
//! that end a TCP connection's activity; that takes a search for the state, for which the kernel has an extension.
//!
//! Proven by the tests below, on the kernel's own BPF over a pair of local sockets.

use std::collections::BTreeMap;
use std::net::IpAddr;

use socket2::SockFilter;

use super::wire::{CTA_PROTOINFO, CTA_PROTOINFO_STATE, CTA_PROTOINFO_TCP, IPCTNL_MSG_CT_NEW, NFNL_SUBSYS_CTNETLINK};
use crate::conntrack::Destination;
use crate::model::{Family, Protocol};

/// Instructions that a filter may have: half of `BPF_MAXINSNS` (linux/bpf_common.h), and 16 KiB, which fits into what options of a
/// socket may take by default (`net.core.optmem_max`: 20 KiB on older kernels).
const LONGEST: usize = 2048;

// linux/bpf_common.h and linux/filter.h
const LD_BYTE: u16 = 0x30;
const LD_HALF: u16 = 0x28;
const LD_WORD: u16 = 0x20;
const LD_BYTE_AT_X: u16 = 0x50;
const LD_IMM: u16 = 0x00;
const LDX_IMM: u16 = 0x01;
const TAX: u16 = 0x07;
const JA: u16 = 0x05;
const JEQ: u16 = 0x15;
const JSET: u16 = 0x45;
const RET: u16 = 0x06;
/// `SKF_AD_OFF + SKF_AD_NLATTR`: the place of attribute X behind place A, or 0.
const FIND: u32 = 0xffff_f000 + 12;
/// `SKF_AD_OFF + SKF_AD_NLATTR_NEST`: the same inside the attribute at place A.
const FIND_IN: u32 = 0xffff_f000 + 16;

const PASS: u32 = u32::MAX;
const DROP: u32 = 0;

/// Where a family has what, and the types of the attributes there.
struct Shape {
    family: u32,
    address: u32,
    shape: &'static [(u32, u16)],
    protocol: u32,
    port: u32,
}

// The bit says that an attribute nests (NLA_F_NESTED).
const V4: Shape = Shape {
    family: 2,
    address: 40,
    shape: &[(22, 0x8001), (26, 0x8001), (38, 2), (46, 0x8002), (50, 1)],
    protocol: 52,
    port: 68,
};
const V6: Shape = Shape {
    family: 10,
    address: 52,
    shape: &[(22, 0x8001), (26, 0x8001), (50, 4), (70, 0x8002), (74, 1)],
    protocol: 76,
    port: 92,
};

/// Where a jump goes, before places are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Label {
    Pass,
    Drop,
    /// What kind of event is it?
    Kind,
    Family(u32),
    Ports(u32, u8),
    Port(u32, u8, u16),
}

/// A program in the making.
#[derive(Default)]
struct Assembler {
    code: Vec<(u16, u8, u8, u32, Option<Label>)>,
    places: BTreeMap<Label, usize>,
}

type Frontends = BTreeMap<(u32, u8), BTreeMap<u16, Vec<Destination>>>;

/// The filter for flows to these destinations; where it would be too long, one that goes by ports alone, or none.
pub(super) fn filter(destinations: impl Iterator<Item = (Protocol, Destination)>) -> Option<Vec<SockFilter>> {
    let mut frontends = Frontends::new();
    for (protocol, destination) in destinations {
        let (family, port) = match destination {
            Destination::Address(address) => (Family::of(address.ip()), address.port()),
            Destination::NodePort(family, port) => (family, port),
        };
        let key = (shape(family).family, protocol.number());
        frontends.entry(key).or_default().entry(port).or_default().push(destination);
    }
    [true, false].into_iter().map(|addresses| assemble(&frontends, addresses)).find(|code| code.len() <= LONGEST)
}

fn shape(family: Family) -> &'static Shape {
    match family {
        Family::V4 => &V4,
        Family::V6 => &V6,
    }
}

/// A number of the machine's own byte order, as BPF loads it.
fn swapped(number: u16) -> u32 {
    u32::from(number.to_be())
}

fn assemble(frontends: &Frontends, addresses: bool) -> Vec<SockFilter> {
    let mut program = Assembler::default();
    program.load(LD_BYTE, 16);
    for shape in [&V4, &V6] {
        program.jump_if(shape.family, Label::Family(shape.family));
    }
    program.jump(Label::Pass);
    for shape in [&V4, &V6] {
        program.place(Label::Family(shape.family));
        for (at, kind) in shape.shape {
            program.load(LD_HALF, *at);
            program.unless(swapped(*kind), Label::Pass);
        }
        program.load(LD_BYTE, shape.protocol);
        let protocols = frontends.keys().filter(|(family, _)| *family == shape.family);
        for (family, protocol) in protocols.clone() {
            program.jump_if(u32::from(*protocol), Label::Ports(*family, *protocol));
        }
        program.jump(Label::Drop);
        for (family, protocol) in protocols {
            program.place(Label::Ports(*family, *protocol));
            program.load(LD_HALF, shape.port - 2);
            program.unless(swapped(3), Label::Pass);
            program.load(LD_HALF, shape.port);
            let ports = &frontends[&(*family, *protocol)];
            for port in ports.keys() {
                program.jump_if(u32::from(*port), Label::Port(*family, *protocol, *port));
            }
            program.jump(Label::Drop);
            for (port, destinations) in ports {
                program.place(Label::Port(*family, *protocol, *port));
                program.if_one_of(destinations, shape.address, addresses);
            }
        }
    }
    program.kinds();
    program.place(Label::Pass);
    program.push(RET, PASS);
    program.place(Label::Drop);
    program.push(RET, DROP);
    program.finish()
}

impl Assembler {
    fn push(&mut self, code: u16, k: u32) {
        self.code.push((code, 0, 0, k, None));
    }

    fn load(&mut self, code: u16, at: u32) {
        self.push(code, at);
    }

    fn jump(&mut self, to: Label) {
        self.code.push((JA, 0, 0, 0, Some(to)));
    }

    /// Conditions reach 255 instructions only, jumps any number.
    fn jump_if(&mut self, value: u32, to: Label) {
        self.code.push((JEQ, 0, 1, value, None));
        self.jump(to);
    }

    fn unless(&mut self, value: u32, to: Label) {
        self.code.push((JEQ, 1, 0, value, None));
        self.jump(to);
    }

    fn place(&mut self, label: Label) {
        self.places.insert(label, self.code.len());
    }

    /// Goes on to the kind of event if the destination's address is one of these.
    fn if_one_of(&mut self, destinations: &[Destination], at: u32, addresses: bool) {
        let any = destinations.iter().any(|destination| matches!(destination, Destination::NodePort(..)));
        if any || !addresses {
            return self.jump(Label::Kind);
        }
        let listed = destinations.iter().filter_map(|destination| match destination {
            Destination::Address(address) => Some(address.ip()),
            Destination::NodePort(..) => None,
        });
        let mut loaded = false;
        for address in listed {
            match address {
                IpAddr::V4(address) => {
                    if !std::mem::replace(&mut loaded, true) {
                        self.load(LD_WORD, at);
                    }
                    self.jump_if(u32::from(address), Label::Kind);
                }
                IpAddr::V6(address) => {
                    let octets = address.octets();
                    for (word, bytes) in (0u8..).zip(octets.chunks_exact(4)) {
                        self.load(LD_WORD, at + 4 * u32::from(word));
                        let value = u32::from_be_bytes(bytes.try_into().expect("four"));
                        // To behind the jump that ends this address.
                        self.code.push((JEQ, 0, 7 - 2 * word, value, None));
                    }
                    self.jump(Label::Kind);
                }
            }
        }
        self.jump(Label::Drop);
    }

    /// Beginnings and ends pass, and updates that say a TCP connection is closing.
    fn kinds(&mut self) {
        self.place(Label::Kind);
        self.load(LD_HALF, 4);
        self.unless(swapped(NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW), Label::Pass);
        self.load(LD_HALF, 6);
        self.code.push((JSET, 0, 1, swapped(super::wire::NLM_F_CREATE), None));
        self.jump(Label::Pass);
        self.push(LDX_IMM, u32::from(CTA_PROTOINFO));
        self.push(LD_IMM, 20);
        self.load(LD_WORD, FIND);
        self.jump_if(0, Label::Drop);
        for inside in [CTA_PROTOINFO_TCP, CTA_PROTOINFO_STATE] {
            self.push(LDX_IMM, u32::from(inside));
            self.load(LD_WORD, FIND_IN);
            self.jump_if(0, Label::Pass);
        }
        self.push(TAX, 0);
        self.load(LD_BYTE_AT_X, 4);
        // FIN_WAIT, where every orderly end begins; TIME_WAIT, should the packet have been dropped after that; CLOSE.
        for state in [4, 7, 8] {
            self.jump_if(state, Label::Pass);
        }
        self.jump(Label::Drop);
    }

    fn finish(self) -> Vec<SockFilter> {
        let instructions = self.code.iter().enumerate();
        let finished = instructions.map(|(at, (code, jt, jf, k, label))| {
            let distance = label.map(|label| u32::try_from(self.places[&label] - at - 1).expect("forward and near"));
            SockFilter::new(*code, *jt, *jf, distance.unwrap_or(*k))
        });
        finished.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::os::unix::net::UnixDatagram;

    use nft::netlink::Writer;
    use socket2::SockRef;

    use super::super::wire;
    use super::*;
    use crate::conntrack::{Flow, Tuple};

    const NEW: u16 = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW;
    const DELETE: u16 = NEW + 2;

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    /// An event as ctnetlink writes it.
    fn event(kind: u16, flags: u16, protocol: Protocol, to: &str, state: Option<u8>) -> Vec<u8> {
        let to = at(to);
        let client = SocketAddr::new(if to.is_ipv4() { at("10.9.0.1:0") } else { at("[fd00::9]:0") }.ip(), 4000);
        let tuple = Tuple { source: client, destination: to, zone: None };
        let flow = Flow { protocol, original: tuple, reply: tuple, zone: None, id: Some(1), state: None };
        let mut removal = Writer::new();
        wire::delete(&mut removal, 0, &flow);
        let mut writer = Writer::new();
        // Header and original tuple are those of a removal.
        let message = writer.begin(kind, flags, 0, &removal.as_bytes()[16..]);
        if let Some(state) = state {
            let info = writer.begin_nest(CTA_PROTOINFO);
            let tcp = writer.begin_nest(CTA_PROTOINFO_TCP);
            writer.attr(CTA_PROTOINFO_STATE, &[state]);
            writer.end_nest(tcp);
            writer.end_nest(info);
        }
        writer.end(message);
        writer.as_bytes().to_vec()
    }

    /// Whether the kernel lets a message through.
    fn passes(filter: &[SockFilter], message: &[u8]) -> bool {
        let (from, to) = UnixDatagram::pair().expect("two sockets");
        SockRef::from(&to).attach_filter(filter).expect("the kernel takes it");
        to.set_nonblocking(true).expect("an option");
        // What is filtered out is refused at once.
        let _ = from.send(message);
        to.recv(&mut [0; 1024]).is_ok()
    }

    fn to(texts: &[(Protocol, &str)]) -> Vec<(Protocol, Destination)> {
        texts.iter().map(|(protocol, text)| (*protocol, Destination::Address(at(text)))).collect()
    }

    #[test]
    fn only_flows_to_the_destinations_pass_and_only_what_matters_of_them() {
        use Protocol::{Sctp, Tcp, Udp};
        let mut wanted = to(&[
            (Tcp, "10.96.0.1:80"),
            (Tcp, "10.96.0.7:80"),
            (Tcp, "10.96.0.1:443"),
            (Udp, "10.96.0.1:53"),
            (Sctp, "10.96.0.1:9"),
            (Tcp, "[fd00:96::1]:80"),
            (Tcp, "[fd00:96::7]:80"),
        ]);
        wanted.push((Tcp, Destination::NodePort(Family::V4, 30080)));
        let filter = filter(wanted.into_iter()).expect("short enough");
        let create = wire::NLM_F_CREATE;
        let table = [
            ("a beginning", NEW, create, Tcp, "10.96.0.1:80", None, true),
            ("another address", NEW, create, Tcp, "10.96.0.7:80", None, true),
            ("of nobody", NEW, create, Tcp, "10.96.0.2:80", None, false),
            ("another port", NEW, create, Tcp, "10.96.0.1:443", None, true),
            ("the other one's port", NEW, create, Tcp, "10.96.0.7:443", None, false),
            ("UDP", NEW, create, Udp, "10.96.0.1:53", None, true),
            ("UDP to a TCP port", NEW, create, Udp, "10.96.0.1:80", None, false),
            ("IPv6", NEW, create, Tcp, "[fd00:96::1]:80", None, true),
            ("IPv6, the second", NEW, create, Tcp, "[fd00:96::7]:80", None, true),
            ("IPv6 of nobody", NEW, create, Tcp, "[fd00:96::2]:80", None, false),
            ("IPv6, only the end is the same", NEW, create, Tcp, "[fd00:97::1]:80", None, false),
            ("a node port at any address", NEW, create, Tcp, "192.168.0.9:30080", None, true),
            ("in the other family", NEW, create, Tcp, "[fd00::9]:30080", None, false),
            ("an end", DELETE, 0, Tcp, "10.96.0.1:80", None, true),
            ("an end of another", DELETE, 0, Tcp, "10.96.0.2:80", None, false),
            ("established", NEW, 0, Tcp, "10.96.0.1:80", Some(3), false),
            ("FIN_WAIT", NEW, 0, Tcp, "10.96.0.1:80", Some(4), true),
            ("LAST_ACK", NEW, 0, Tcp, "10.96.0.1:80", Some(6), false),
            ("TIME_WAIT", NEW, 0, Tcp, "10.96.0.1:80", Some(7), true),
            ("CLOSE", NEW, 0, Tcp, "[fd00:96::7]:80", Some(8), true),
            ("CLOSE of another", NEW, 0, Tcp, "10.96.0.2:80", Some(8), false),
            ("an update that says no state", NEW, 0, Tcp, "10.96.0.1:80", None, false),
        ];
        for (what, kind, flags, protocol, to, state, want) in table {
            assert_eq!(passes(&filter, &event(kind, flags, protocol, to, state)), want, "{what}: {protocol} {to}");
        }
        // Not of the shape that we know: for others to judge.
        let mut strange = event(NEW, create, Tcp, "10.96.0.2:80", None);
        strange[38] = 9;
        assert!(passes(&filter, &strange));
    }

    #[test]
    fn many_destinations_go_by_ports_alone_and_too_many_ports_not_at_all() {
        let new = |to| event(NEW, wire::NLM_F_CREATE, Protocol::Tcp, to, None);
        let address = |number: u16| SocketAddr::from(([10, 96, (number >> 8) as u8, number as u8], 80));
        let many = (0..3000).map(|number| (Protocol::Tcp, Destination::Address(address(number))));
        let by_port = filter(many).expect("short enough");
        assert!(passes(&by_port, &new("10.99.0.1:80")) && !passes(&by_port, &new("10.99.0.1:81")));
        let ports = (1..3000).map(|port| (Protocol::Tcp, Destination::NodePort(Family::V4, port)));
        assert!(filter(ports).is_none());
        let some = (0..500).map(|number| (Protocol::Tcp, Destination::Address(address(number))));
        let exact = filter(some).expect("short enough");
        assert!(passes(&exact, &new("10.96.1.200:80")) && !passes(&exact, &new("10.96.1.250:80")), "far jumps");
    }
}
