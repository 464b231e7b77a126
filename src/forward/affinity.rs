//! Clients that keep their endpoint.
//!
//! As in the kernel path, a client is its address, and each of its connections begins the time anew. A client whose endpoint has
//! gone, or does not answer, is picked for again.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// Clients remembered at most per route. Beyond it (a flood of invented addresses) new ones are not remembered.
const CLIENTS: usize = 1 << 17;

/// Who keeps which endpoint.
#[derive(Debug)]
pub(super) struct Affinity {
    timeout: Duration,
    kept: HashMap<IpAddr, (SocketAddr, Instant)>,
    /// When the map has grown to this size, it is time to look for clients that have been away too long.
    clean_at: usize,
    /// When it is full, looking costs as much and finds little: not before this time.
    clean_after: Option<Instant>,
}

impl Affinity {
    /// Of this duration.
    pub fn new(timeout: Duration) -> Self {
        Self { timeout, kept: HashMap::new(), clean_at: 1024, clean_after: None }
    }

    /// From now on of this duration.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// The endpoint that this client keeps.
    pub fn endpoint(&self, client: IpAddr, now: Instant) -> Option<SocketAddr> {
        let (endpoint, since) = self.kept.get(&client)?;
        (now.saturating_duration_since(*since) < self.timeout).then_some(*endpoint)
    }

    /// This client has got this endpoint now.
    pub fn keep(&mut self, client: IpAddr, endpoint: SocketAddr, now: Instant) {
        if self.kept.len() >= self.clean_at && self.clean_after.is_none_or(|after| now >= after) {
            self.kept.retain(|_, (_, since)| now.saturating_duration_since(*since) < self.timeout);
            self.clean_at = (self.kept.len() * 2).clamp(1024, CLIENTS);
            self.clean_after = (self.kept.len() > CLIENTS / 2).then(|| now + self.timeout / 8);
        }
        if self.kept.len() < CLIENTS || self.kept.contains_key(&client) {
            self.kept.insert(client, (endpoint, now));
        }
    }

    /// Clients of endpoints that are not among these are picked for again.
    pub fn retain(&mut self, stays: impl Fn(SocketAddr) -> bool) {
        self.kept.retain(|_, (endpoint, _)| stays(*endpoint));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const TIMEOUT: Duration = Duration::from_secs(10);

    fn client(number: u32) -> IpAddr {
        Ipv4Addr::from(0x0a00_0000 + number).into()
    }

    fn endpoint(port: u16) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, port).into()
    }

    #[test]
    fn each_connection_begins_the_time_anew() {
        let (mut affinity, start) = (Affinity::new(TIMEOUT), Instant::now());
        affinity.keep(client(1), endpoint(1), start);
        affinity.keep(client(1), endpoint(1), start + TIMEOUT / 2);
        assert_eq!(affinity.endpoint(client(1), start + TIMEOUT), Some(endpoint(1)));
        assert_eq!(affinity.endpoint(client(1), start + TIMEOUT * 3 / 2), None, "away too long");
        assert_eq!(affinity.endpoint(client(2), start), None);
    }

    #[test]
    fn endpoints_that_have_gone_and_clients_that_have_are_forgotten() {
        let (mut affinity, start) = (Affinity::new(TIMEOUT), Instant::now());
        affinity.keep(client(1), endpoint(1), start);
        affinity.keep(client(2), endpoint(2), start);
        affinity.retain(|kept| kept == endpoint(2));
        assert_eq!((affinity.endpoint(client(1), start), affinity.kept.len()), (None, 1));
        (0..200_000).for_each(|number| affinity.keep(client(number), endpoint(2), start));
        assert_eq!(affinity.kept.len(), CLIENTS, "a flood is bounded");
        affinity.keep(client(300_000), endpoint(2), start + TIMEOUT * 2);
        assert_eq!(affinity.kept.len(), 1, "nobody of the flood is left");
    }
}
