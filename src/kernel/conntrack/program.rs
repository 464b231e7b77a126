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

/// Instructions that a filter may have: half of `BPF_MAXINSNS` (linux/bpf_common.h), and within the 20 KiB that a socket's options could
/// take before Linux 6.?: see `net.core.optmem_max`.
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
                program.to_one_of(destinations, shape.address, addresses);
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
    fn to_one_of(&mut self, destinations: &[Destination], at: u32, addresses: bool) {
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
