//! Labs with pods that answer.

use std::time::Duration;

use pointsman::lab::{Addresses, Lab, Listen};

/// Generous: nothing waits for it unless something is broken.
pub const PATIENCE: Duration = Duration::from_secs(5);
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
    lab
}

/// Addresses of pods `web-1`.. by their numbers, as a bed deals them.
pub fn pods(numbers: impl IntoIterator<Item = usize>) -> Vec<Addresses> {
    let address = |number: usize| [10, 244, 0, u8::try_from(number + 1).expect("a small bed")];
    numbers.into_iter().map(|number| Addresses::of_pod(address(number).into())).collect()
}
