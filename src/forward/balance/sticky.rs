//! Session affinity: a client's next connection goes where its last one went.
//!
//! The same meaning as in the kernel: the client is its address, whatever its port; each new connection renews the time; who was
//! silent for longer is a stranger again; an endpoint that is no candidate any more is found out by the next connection, which is
//! then decided anew. The table is bounded: when it is full, the client that was silent for longest is forgotten.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use hashlink::LruCache;

/// Which endpoint each client of one pool was given; see the module.
#[derive(Debug)]
pub struct Sticky {
    timeout: Duration,
    clients: LruCache<IpAddr, (SocketAddr, Instant)>,
}

impl Sticky {
    /// Remembers up to `capacity` clients (1 or more), each for `timeout` after its last connection.
    pub fn new(timeout: Duration, capacity: usize) -> Self {
        Self { timeout, clients: LruCache::new(capacity.max(1)) }
    }

    /// Changes the time, for those who are remembered too.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Where the client's last connection went, if that was not too long ago and `usable` says that it may go there again. This
    /// is a new connection: the time is renewed.
    pub fn renew(
        &mut self,
        client: IpAddr,
        now: Instant,
        usable: impl FnOnce(SocketAddr) -> bool,
    ) -> Option<SocketAddr> {
        let client = client.to_canonical();
        let (endpoint, last) = self.clients.get_mut(&client)?;
        if now.saturating_duration_since(*last) < self.timeout && usable(*endpoint) {
            *last = now;
            return Some(*endpoint);
        }
        self.clients.remove(&client);
        None
    }

    /// The client was given this endpoint now.
    pub fn remember(&mut self, client: IpAddr, endpoint: SocketAddr, now: Instant) {
        self.clients.insert(client.to_canonical(), (endpoint, now));
    }

    /// The client is a stranger again, as after a failed connection.
    pub fn forget(&mut self, client: IpAddr) {
        self.clients.remove(&client.to_canonical());
    }

    /// How many clients are remembered, those whose time is over included.
    pub fn len(&self) -> usize {
        self.clients.len()
    }

    /// Whether nobody is remembered.
    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn endpoint(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 80))
    }

    fn client(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn each_connection_renews_and_silence_ends_it() {
        let start = Instant::now();
        let mut sticky = Sticky::new(MINUTE, 10);
        assert_eq!(sticky.renew(client(1), start, |_| true), None);
        sticky.remember(client(1), endpoint(1), start);
        let mut now = start;
        for _ in 0..3 {
            now += MINUTE - Duration::from_secs(1);
            assert_eq!(sticky.renew(client(1), now, |_| true), Some(endpoint(1)));
        }
        assert_eq!(sticky.renew(client(2), now, |_| true), None, "another client");
        assert_eq!(sticky.renew(client(1), now + MINUTE, |_| true), None, "a minute of silence");
        assert!(sticky.is_empty());
    }

    #[test]
    fn what_is_not_usable_is_forgotten() {
        let now = Instant::now();
        let mut sticky = Sticky::new(MINUTE, 10);
        sticky.remember(client(1), endpoint(1), now);
        assert_eq!(sticky.renew(client(1), now, |asked| asked != endpoint(1)), None);
        assert_eq!(sticky.renew(client(1), now, |_| true), None);
        sticky.remember(client(1), endpoint(2), now);
        sticky.forget(client(1));
        assert_eq!(sticky.renew(client(1), now, |_| true), None);
    }

    #[test]
    fn the_longest_silent_goes_first() {
        let now = Instant::now();
        let mut sticky = Sticky::new(MINUTE, 3);
        for last in 1..=3 {
            sticky.remember(client(last), endpoint(last), now);
        }
        assert!(sticky.renew(client(1), now, |_| true).is_some());
        sticky.remember(client(4), endpoint(4), now);
        assert_eq!(sticky.len(), 3);
        assert_eq!(sticky.renew(client(2), now, |_| true), None);
        assert_eq!(sticky.renew(client(1), now, |_| true), Some(endpoint(1)));
    }

    #[test]
    fn a_mapped_address_is_the_same_client() {
        let now = Instant::now();
        let mut sticky = Sticky::new(MINUTE, 3);
        sticky.remember("::ffff:192.0.2.1".parse().expect("an address"), endpoint(1), now);
        assert_eq!(sticky.renew(client(1), now, |_| true), Some(endpoint(1)));
    }
}
