//! Choosing by a hash of addresses: weighted rendezvous.
//!
//! Every candidate gets a score from its own address and the key; the highest goes. So the choice depends on the set of candidates
//! alone; one that leaves gives its keys to the others in proportion to their weights, and moves nobody else's; and one that is
//! excluded or set aside is passed by in the same way. Scores follow Schindelhauer and Schomaker (2005): `-weight / ln(u)` for a
//! uniform `u`, which gives each candidate keys in proportion to its weight.

use std::net::{IpAddr, SocketAddr};

use super::member::Member;

/// Of a client without its port.
pub(super) fn of_address(address: IpAddr) -> u64 {
    match address.to_canonical() {
        IpAddr::V4(v4) => mix(u64::from(v4.to_bits())),
        IpAddr::V6(v6) => {
            let bits = v6.to_bits();
            mix(mix((bits >> 64) as u64) ^ bits as u64)
        }
    }
}

/// Of a client with its port.
pub(super) fn of_address_and_port(socket: SocketAddr) -> u64 {
    mix(of_address(socket.ip()) ^ u64::from(socket.port()))
}

/// Who serves this key.
///
/// # Panics
/// If nobody is eligible.
pub(super) fn choose(members: &[Member], eligible: &[usize], key: u64) -> usize {
    let score = |place: &usize| {
        let member = &members[*place];
        let lot = mix(key ^ of_address_and_port(member.endpoint));
        // 53 bits, in the middle of their interval: never 0 and never 1.
        let uniform = ((lot >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        -f64::from(member.weight) / uniform.ln()
    };
    let best = eligible.iter().map(|place| (score(place), *place)).max_by(|(a, one), (b, other)| {
        // Equal scores are next to impossible; the address decides, so that no order of candidates does.
        a.total_cmp(b).then_with(|| members[*one].endpoint.cmp(&members[*other].endpoint))
    });
    best.expect("somebody is eligible").1
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every bit of the result depends on every bit given. Nodes must agree, so
/// this must not be a hash that may differ between builds.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
