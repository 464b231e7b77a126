//! Both directions of a connection, until it ends.
//!
//! The relay is a small hand-written future, for a node may have tens of thousands of them that do nothing: two streams, two flows,
//! and a timer only if a timeout applies. It ends when both directions have, when one end is gone, or when nothing has passed for
//! too long. A connection that one end broke off is broken off at the other end too, with a reset; one that is cut is at both.
//!
//! It begins *young* (see [`super::youth`]). When it settles, it gets what only a connection needs that stays.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

use super::flow::Flow;
use super::youth::{self, Youth};
use super::{dial, reset};
use crate::forward::pool::Pick;
use crate::forward::register::Entry;

/// Timeouts below this are watched from the beginning: they may be over before the connection has settled.
const SOON: Duration = youth::AGE.saturating_mul(4);

/// See the module.
#[derive(Debug)]
pub(super) struct Relay {
    client: TcpStream,
    server: TcpStream,
    up: Flow,
    down: Flow,
    pick: Pick,
    /// Left after both sockets are closed.
    entry: Entry,
    idle: Option<Box<Idle>>,
    /// In seconds; 0 is none. What applies once one direction has ended.
    half_closed_timeout: u32,
    age: Age,
}

#[derive(Debug)]
enum Age {
    /// It has not had to wait yet.
    Newborn,
    /// It will be told when that is over.
    Young(Youth),
    Settled,
}

/// Watches for silence.
#[derive(Debug)]
struct Idle {
    timeout: Duration,
    latest: Instant,
    /// Made when it is first needed.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Relay {
    /// Between these two.
    pub fn new(client: TcpStream, server: TcpStream, pick: Pick, entry: Entry) -> Self {
        let (up, down) = (Flow::up(), Flow::default());
        Self { client, server, up, down, pick, entry, idle: None, half_closed_timeout: 0, age: Age::Newborn }
    }

    /// Ends after this silence, and after that one when only one direction is left.
    pub fn timeouts(mut self, idle: Option<Duration>, half_closed: Option<Duration>) -> Self {
        self.idle = idle.map(Idle::new);
        // No less than a second, or none would be meant.
        let seconds = half_closed.map_or(0, |timeout| timeout.as_secs().max(1));
        self.half_closed_timeout = u32::try_from(seconds).unwrap_or(u32::MAX);
        self
    }

    /// Moves what can be moved in both directions. Ready when the connection has ended; in order, or not.
    fn poll_flows(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let up = self.up.poll(cx, &self.client, &self.server, self.down.finished());
        let down = self.down.poll(cx, &self.server, &self.client, self.up.finished());
        let (received, sent) = (self.up.take_moved(), self.down.take_moved());
        if received + sent > 0 {
            self.pick.count(received, sent);
            if let Some(idle) = &mut self.idle {
                idle.latest = Instant::now();
            }
        }
        if matches!((&up, &down), (Poll::Ready(Err(_)), _) | (_, Poll::Ready(Err(_)))) {
            return Poll::Ready(false);
        }
        if self.up.ended() && self.down.ended() {
            return Poll::Ready(!self.up.broken() && !self.down.broken());
        }
        if (self.up.ended() || self.down.ended()) && self.half_closed_timeout > 0 {
            let timeout = Duration::from_secs(std::mem::take(&mut self.half_closed_timeout).into());
            if self.idle.as_ref().is_none_or(|idle| idle.timeout > timeout) {
                self.idle = Some(Idle::new(timeout));
            }
        }
        Poll::Pending
    }

    /// Grows up.
    fn poll_age(&mut self, cx: &Context<'_>) {
        match &self.age {
            Age::Newborn => {
                // What was there to be sent has been.
                dial::hold_acknowledgements(&self.server, false);
                self.age = Age::Young(Youth::begin(cx));
            }
            Age::Young(youth) if youth.is_over() => {
                self.age = Age::Settled;
                // The client's side has it from its listener. A socket that does not take it is gone, as will be found out.
                let _ = SockRef::from(&self.server).set_tcp_keepalive(&dial::keepalive());
            }
            Age::Young(_) | Age::Settled => {}
        }
    }
}

impl Future for Relay {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let flows = if self.entry.is_cut() { Poll::Ready(false) } else { self.poll_flows(cx) };
        match flows {
            Poll::Ready(true) => return Poll::Ready(()),
            Poll::Ready(false) => {
                reset(&self.client);
                reset(&self.server);
                return Poll::Ready(());
            }
            Poll::Pending => {}
        }
        self.poll_age(cx);
        let settled = matches!(self.age, Age::Settled);
        match &mut self.idle {
            // Until it has settled, a long timer is not worth its making.
            Some(idle) if settled || idle.timeout < SOON => idle.poll(cx),
            _ => Poll::Pending,
        }
    }
}

impl Idle {
    fn new(timeout: Duration) -> Box<Self> {
        Box::new(Self { timeout, latest: Instant::now(), timer: None })
    }

    /// Ready when it has been silent for too long. The timer is not set anew for each byte: when it fires, it is set to where it
    /// should be by then.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(self.latest + self.timeout)));
        while timer.as_mut().poll(cx).is_ready() {
            let due = self.latest + self.timeout;
            if due <= Instant::now() {
                return Poll::Ready(());
            }
            timer.as_mut().reset(due);
        }
        Poll::Pending
    }
}

/// A stream of the calling thread's runtime out of a non-blocking socket of any.
pub(super) fn adopt(socket: socket2::Socket) -> io::Result<TcpStream> {
    TcpStream::from_std(socket.into())
}
