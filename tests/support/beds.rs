//! Labs with pods that answer.

use std::net::SocketAddr;
use std::time::Duration;

use pointsman::lab::{Addresses, ConnectError, Lab, Listen, NODE, Namespace, POD_GATEWAY};

use super::oracle::nft;

/// Generous, for emulated machines: nothing waits for it unless something is broken.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// For questions that nobody is meant to answer.
pub const SHORT: Duration = Duration::from_millis(200);

/// The port on which every pod of a bed greets over TCP.
pub const TCP: u16 = 8080;
/// The port on which every pod of a bed answers over UDP.
pub const UDP: u16 = 5353;

/// A lab with pods `web-1`, `web-2`... that answer at [`TCP`] and [`UDP`], and one client. Needs root, and fails without it.
pub fn bed(pods: usize) -> Lab {
    let names: Vec<String> = (1..=pods).map(|number| format!("web-{number}")).collect();
    let mut lab = Lab::builder().prefix("pmtier").pods(names.clone()).build().expect("a lab, which needs root");
    for name in names {
        lab.serve(&name, &[Listen::Tcp(TCP), Listen::Udp(UDP)]).expect("servers in a pod");
    }
    warm_up(&lab);
    lab
}

/// Lets everybody find their neighbours: the first packet over a new IPv6 link may be lost, and is sent again only after a second.
fn warm_up(lab: &Lab) {
    for host in lab.pods().chain([lab.client(0)]) {
        let router = if host.role().starts_with("client") { NODE } else { POD_GATEWAY };
        for address in router.usable() {
            let answer = host.connect(SocketAddr::new(address, 1), PATIENCE);
            assert!(
                matches!(answer, Err(ConnectError::Refused)),
                "{} should reach its router: {answer:?}",
                host.role()
            );
        }
    }
    for address in lab.pods().flat_map(|pod| pod.addresses().usable()) {
        let answer = lab.node().connect(SocketAddr::new(address, TCP), PATIENCE);
        assert!(answer.is_ok(), "the node should reach {address}: {answer:?}");
    }
}

/// Addresses of pods `web-1`.. by their numbers, as a bed deals them.
pub fn pods(numbers: impl IntoIterator<Item = usize>) -> Vec<Addresses> {
    let address = |number: usize| [10, 244, 0, u8::try_from(number + 1).expect("a small bed")];
    numbers.into_iter().map(|number| Addresses::of_pod(address(number).into())).collect()
}

/// Tables of ours in a layout that we do not know, in which the first Service's port 80 is served by `web-1` of a bed.
pub fn left_by_another_release(node: &Namespace, layout: u8) {
    for (family, address, pod) in
        [("ip", "10.96.0.1", "10.244.0.2:8080"), ("ip6", "fd00:10:96::1", "[fd00:10:244::2]:8080")]
    {
        let table = format!(
            "table {family} pointsman {{
                comment \"pointsman layout {layout}\"
                chain old {{
                    type nat hook prerouting priority dstnat
                    {family} daddr {address} tcp dport 80 dnat to {pod}
                }}
            }}"
        );
        nft(node, &[&table]);
    }
}
