//! Hearing of connections that begin, close and end.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nft::netlink::{Message, messages};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket, sockopt,
};
use socket2::{SockRef, Socket};

use super::table::ConntrackError;
use super::{program, wire};
use crate::conntrack::ledger::Event;
use crate::conntrack::{Destination, Flow, Record};
use crate::model::Protocol;

/// Any event fits.
const RECEIVE_LEN: usize = 16 << 10;

/// `NFNLGRP_CONNTRACK_NEW`, `_UPDATE`, `_DESTROY` (linux/netfilter/nfnetlink_compat.h: one bit each).
const GROUPS: u32 = 1 | 2 | 4;

/// Events taken in one go at most, so that reports are not late in a storm.
const BATCH: usize = 4096;

/// A subscription in the network namespace in which it was opened.
#[derive(Debug)]
pub struct ConntrackEvents {
    socket: Socket,
    receive: Vec<u8>,
    received: u64,
}

/// How taking events ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// No more are waiting.
    Everything,
    /// More may be waiting.
    More,
    /// Some were lost: the socket's buffer was full.
    Lost,
}

// === impl ConntrackEvents ===

impl ConntrackEvents {
    /// Subscribes to flows to these destinations. `buffer` is the room for events that nobody has taken yet, in bytes; an event
    /// takes about 800.
    ///
    /// # Errors
    /// When the system gives no more sockets or the kernel has no conntrack events.
    pub fn open(
        destinations: impl Iterator<Item = (Protocol, Destination)>,
        buffer: usize,
    ) -> Result<Self, ConntrackError> {
        Self::subscribe(buffer, |events| events.set_destinations(destinations))
    }

    /// Subscribes to everybody's flows.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_all(buffer: usize) -> Result<Self, ConntrackError> {
        Self::subscribe(buffer, |_| {})
    }

    fn subscribe(buffer: usize, prepare: impl FnOnce(&mut Self)) -> Result<Self, ConntrackError> {
        let failed = |errno| ConntrackError { action: "hear of changes of", errno };
        let fd: OwnedFd =
            socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)
                .map_err(failed)?;
        if setsockopt(&fd, sockopt::RcvBufForce, &buffer).is_err() {
            setsockopt(&fd, sockopt::RcvBuf, &buffer).map_err(failed)?;
        }
        let mut events = Self { socket: fd.into(), receive: vec![0; RECEIVE_LEN], received: 0 };
        // Before the first event can come.
        prepare(&mut events);
        bind(events.socket.as_raw_fd(), &NetlinkAddr::new(0, GROUPS)).map_err(failed)?;
        Ok(events)
    }

    /// Hears of flows to these destinations from now on, and of as few others as the kernel can be made to spare us.
    pub fn set_destinations(&mut self, destinations: impl Iterator<Item = (Protocol, Destination)>) {
        let socket = SockRef::from(&self.socket);
        let attached = program::filter(destinations).is_some_and(|filter| match socket.attach_filter(&filter) {
            Ok(()) => true,
            Err(error) => {
                tracing::info!(%error, instructions = filter.len(), "the kernel does not take a filter of conntrack events");
                false
            }
        });
        if !attached {
            // Better too much than nothing; an old filter would know nothing of new destinations.
            let _ = socket.detach_filter();
        }
    }

    /// Takes what is waiting.
    ///
    /// # Errors
    /// When the socket fails otherwise than by losing events.
    pub fn take(&mut self, each: impl FnMut(Event, &Flow)) -> Result<Heard, ConntrackError> {
        self.take_as(wire::read, each)
    }

    /// The same with all that the kernel says of each flow.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn take_records(&mut self, each: impl FnMut(Event, &Record)) -> Result<Heard, ConntrackError> {
        self.take_as(wire::record, each)
    }

    fn take_as<T>(
        &mut self,
        read: impl Fn(&Message<'_>) -> Option<T>,
        mut each: impl FnMut(Event, &T),
    ) -> Result<Heard, ConntrackError> {
        for _ in 0..BATCH {
            let len = match recv(self.socket.as_raw_fd(), &mut self.receive, MsgFlags::MSG_DONTWAIT) {
                Ok(len) => len,
                Err(Errno::EAGAIN) => return Ok(Heard::Everything),
                Err(Errno::EINTR) => continue,
                Err(Errno::ENOBUFS) => return Ok(Heard::Lost),
                Err(errno) => return Err(ConntrackError { action: "hear of changes of", errno }),
            };
            for message in messages(&self.receive[..len]) {
                self.received += 1;
                if let (Some(event), Some(flow)) = (wire::event(&message), read(&message)) {
                    each(event, &flow);
                }
            }
        }
        Ok(Heard::More)
    }

    /// How many events the kernel has handed out so far.
    pub fn received(&self) -> u64 {
        self.received
    }
}

impl AsFd for ConntrackEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
