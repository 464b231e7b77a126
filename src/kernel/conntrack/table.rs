//! The connection tracking table of one network namespace.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nft::netlink::{Message, Writer, messages};
use nft::uapi::{NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

use super::wire;
use crate::conntrack::census::Sighting;
use crate::conntrack::{Destination, Flow, Record};
use crate::model::{Family, Protocol};
use crate::status::Traffic;

/// Receives any datagram that the kernel sends: dumps come in at most 32 KiB.
const RECEIVE_LEN: usize = 64 << 10;

/// How often a dump is read again because the table changed under it; then what was read has to do.
const DUMP_ATTEMPTS: u32 = 5;

/// Removals per datagram. All may fail: the answers have to fit the socket's receive buffer, which holds 256 at its default.
const REMOVALS: usize = 128;

/// A ctnetlink socket; it acts on the namespace in which it was opened, from whichever thread it is used.
#[derive(Debug)]
pub struct ConntrackTable {
    fd: OwnedFd,
    receive: Vec<u8>,
    flows: Vec<Flow>,
    seq: u32,
    /// Cleared when the kernel turns out not to know filters.
    filters: bool,
}

/// Which entries to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Filter {
    /// Their family.
    pub family: Family,
    /// Their protocol.
    pub protocol: Protocol,
    /// Their original destination's address; `None`: any. IPv4 only: the kernel compares IPv6 addresses the wrong way round and
    /// would send all entries but those (`ctnetlink_filter_match_tuple`, from 5.8 to at least 6.18).
    pub address: Option<Ipv4Addr>,
    /// Their original destination's port; `None`: any.
    pub port: Option<u16>,
}

/// What a dump took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dump {
    /// Entries that the kernel sent, those of repeated attempts included.
    pub read: usize,
    /// Whether the kernel applied the filter. If not, everything of the family was read.
    pub filtered: bool,
    /// Whether the table changed under each attempt, so that entries may have been missed.
    pub partial: bool,
}

/// What became of removals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deleted {
    /// Entries removed.
    pub deleted: usize,
    /// Entries that were not there any more.
    pub gone: usize,
    /// Entries that the kernel would not remove, and the first reason.
    pub refused: usize,
    /// Why the first of those was refused.
    pub refusal: Option<Errno>,
}

/// A request to the connection tracking table that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot {action} the connection tracking table: {errno}")]
pub struct ConntrackError {
    /// What was tried.
    pub action: &'static str,
    /// The reason.
    pub errno: Errno,
}

// === impl ConntrackTable ===

impl ConntrackTable {
    /// Opens the table of the calling thread's network namespace.
    ///
    /// # Errors
    /// When the system gives no more sockets or the kernel has no netfilter netlink.
    pub fn open() -> Result<Self, ConntrackError> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)
            .map_err(|errno| ConntrackError { action: "open", errno })?;
        Ok(Self { fd, receive: vec![0; RECEIVE_LEN], flows: Vec::new(), seq: 0, filters: true })
    }

    /// Has the kernel load its connection tracking, where that is a module that nobody has needed so far: `/proc/sys/net/netfilter` is
    /// filled by it. It does so for any request, also from a container without modules of its own.
    ///
    /// # Errors
    /// Whatever the kernel answers; `EINVAL` if it has no such module.
    pub fn load_module(&mut self) -> Result<(), ConntrackError> {
        const LOAD: &str = "load";
        self.seq = self.seq.wrapping_add(1);
        let mut request = Writer::new();
        wire::count(&mut request, self.seq);
        self.send(&request, LOAD)?;
        let Some(len) = self.receive(LOAD)? else { return Err(ConntrackError { action: LOAD, errno: Errno::EAGAIN }) };
        match messages(&self.receive[..len]).find_map(|message| status(&message)) {
            None | Some(0) => Ok(()),
            Some(errno) => Err(ConntrackError { action: LOAD, errno: Errno::from_raw(errno) }),
        }
    }

    /// Whether the kernel has not been seen ignoring or refusing a filter.
    pub fn filters(&self) -> bool {
        self.filters
    }

    /// Reads everything from now on, as on a kernel before 5.8.
    pub fn ignore_filters(&mut self) {
        self.filters = false;
    }

    /// Reads the entries that match, as they come, in portions of some hundred. Without kernel-side filters the portions contain
    /// other entries too: the caller judges each. Entries of protocols without ports are counted and left out. An entry may come
    /// twice.
    ///
    /// # Errors
    /// Whatever the kernel answers, but for an interrupted dump. The table has to be opened again then: the kernel may be in
    /// the middle of the answer.
    pub fn dump(&mut self, filter: &Filter, portion: impl FnMut(&[Flow])) -> Result<Dump, ConntrackError> {
        let mut portions = Portions { flows: std::mem::take(&mut self.flows), take: portion };
        let dump = self.dump_into(filter, &mut portions);
        self.flows = portions.flows;
        dump
    }

    /// The same entry by entry, with what each carried. When the table changes under it, everything comes again: then `again` is called.
    ///
    /// # Errors
    /// As [`ConntrackTable::dump`].
    pub fn dump_accounts(
        &mut self,
        filter: &Filter,
        each: impl FnMut(&Flow, Option<Traffic>),
        again: impl FnMut(),
    ) -> Result<Dump, ConntrackError> {
        self.dump_into(filter, &mut Accounts { each, again })
    }

    fn dump_into(&mut self, filter: &Filter, sink: &mut impl Sink) -> Result<Dump, ConntrackError> {
        let mut dump = Dump::default();
        for attempt in 0..DUMP_ATTEMPTS {
            if attempt > 0 {
                sink.begin_again();
            }
            let complete = match self.attempt(filter, &mut dump, sink) {
                Err(error) if self.filters && matches!(error.errno, Errno::EOPNOTSUPP | Errno::EINVAL) => {
                    self.filters = false;
                    self.attempt(filter, &mut dump, sink)?
                }
                result => result?,
            };
            dump.filtered = self.filters;
            dump.partial = !complete;
            if complete {
                break;
            }
        }
        Ok(dump)
    }

    /// Removes exactly these entries.
    ///
    /// # Errors
    /// When nothing could be sent or received; a removal that the kernel refuses is counted, not an error.
    pub fn delete(&mut self, flows: &[Flow]) -> Result<Deleted, ConntrackError> {
        let mut outcome = Deleted::default();
        let mut writer = Writer::new();
        for flows in flows.chunks(REMOVALS) {
            writer.clear();
            for flow in flows {
                self.seq = self.seq.wrapping_add(1);
                wire::delete(&mut writer, self.seq, flow);
            }
            self.send(&writer, "remove from")?;
            let mut failed = 0;
            // The kernel has worked off the datagram when the send returns, and answers failures only.
            while let Some(len) = self.receive("remove from")? {
                for errno in messages(&self.receive[..len]).filter_map(|message| status(&message)) {
                    failed += usize::from(errno != 0);
                    match Errno::from_raw(errno) {
                        Errno::ENOENT => outcome.gone += 1,
                        _ if errno == 0 => {}
                        errno => {
                            outcome.refused += 1;
                            outcome.refusal.get_or_insert(errno);
                        }
                    }
                }
            }
            outcome.deleted += flows.len() - failed;
        }
        Ok(outcome)
    }

    /// Walks through all entries whose destination was translated, of all families and protocols with ports. `each` may meet an entry
    /// twice, and on kernels before 5.17 others as well.
    ///
    /// # Errors
    /// As [`ConntrackTable::dump`].
    pub fn walk(&mut self, each: impl FnMut(&Sighting)) -> Result<Dump, ConntrackError> {
        self.walk_as(wire::sighting, each)
    }

    /// The same with all that is to be known of each.
    ///
    /// # Errors
    /// As [`ConntrackTable::dump`].
    pub fn walk_records(&mut self, each: impl FnMut(&Record)) -> Result<Dump, ConntrackError> {
        self.walk_as(wire::record, each)
    }

    /// One entry as it is now; `None` if it is gone.
    ///
    /// # Errors
    /// Whatever the kernel answers else.
    pub fn get(&mut self, flow: &Flow) -> Result<Option<Record>, ConntrackError> {
        const ACTION: &str = "read an entry of";
        self.seq = self.seq.wrapping_add(1);
        let mut request = Writer::new();
        wire::get(&mut request, self.seq, flow);
        self.send(&request, ACTION)?;
        while let Some(len) = self.receive(ACTION)? {
            for message in messages(&self.receive[..len]).filter(|message| message.seq == self.seq) {
                match status(&message).map(Errno::from_raw) {
                    None if wire::is_entry(&message) => return Ok(wire::record(&message)),
                    Some(Errno::ENOENT) => return Ok(None),
                    Some(errno) if errno != Errno::UnknownErrno => {
                        return Err(ConntrackError { action: ACTION, errno });
                    }
                    _ => {}
                }
            }
        }
        Ok(None)
    }

    fn walk_as<T>(
        &mut self,
        read: impl Fn(&Message<'_>) -> Option<T>,
        mut each: impl FnMut(&T),
    ) -> Result<Dump, ConntrackError> {
        let mut dump = Dump { filtered: true, ..Dump::default() };
        for _ in 0..DUMP_ATTEMPTS {
            self.seq = self.seq.wrapping_add(1);
            let mut request = Writer::new();
            wire::dump_translated(&mut request, self.seq);
            self.send(&request, "read")?;
            let count = &mut dump.read;
            let complete = self.take_dump(|message| {
                let Some(message) = message else { return };
                *count += 1;
                if let Some(entry) = read(message) {
                    each(&entry);
                }
            })?;
            dump.partial = !complete;
            if complete {
                break;
            }
        }
        Ok(dump)
    }

    /// Takes the answer to a request for entries; with nothing, `each` hears of the end of a portion. Whether it is complete.
    fn take_dump(&mut self, mut each: impl FnMut(Option<&Message<'_>>)) -> Result<bool, ConntrackError> {
        let mut complete = true;
        loop {
            // The kernel prepares the next datagram while this one is taken, so one is always there until the end.
            let Some(len) = self.receive("read")? else {
                return Err(ConntrackError { action: "read", errno: Errno::EAGAIN });
            };
            let mut end = None;
            for message in messages(&self.receive[..len]).filter(|message| message.seq == self.seq) {
                complete &= message.flags & NLM_F_DUMP_INTR == 0;
                if let Some(errno) = status(&message) {
                    end = Some(errno);
                } else if wire::is_entry(&message) {
                    each(Some(&message));
                }
            }
            each(None);
            match end {
                None => {}
                Some(0) => return Ok(complete),
                Some(errno) if errno == Errno::EINTR as i32 => return Ok(false),
                Some(errno) => return Err(ConntrackError { action: "read", errno: Errno::from_raw(errno) }),
            }
        }
    }

    /// One run through the table. Whether it is complete.
    fn attempt(&mut self, filter: &Filter, dump: &mut Dump, sink: &mut impl Sink) -> Result<bool, ConntrackError> {
        self.seq = self.seq.wrapping_add(1);
        let mut request = Writer::new();
        wire::dump(&mut request, self.seq, filter, self.filters);
        self.send(&request, "read")?;
        let mut filters = self.filters;
        let complete = self.take_dump(|message| {
            let Some(message) = message else { return sink.end_of_portion() };
            dump.read += 1;
            let flow = wire::read(message);
            filters &= flow.is_some_and(|flow| filter.matches(&flow));
            if let Some(flow) = flow {
                sink.entry(message, flow);
            }
        });
        self.filters = filters;
        complete
    }

    fn send(&self, writer: &Writer, action: &'static str) -> Result<(), ConntrackError> {
        loop {
            match send(self.fd.as_raw_fd(), writer.as_bytes(), MsgFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(ConntrackError { action, errno }),
            }
        }
    }

    /// The next datagram's length; `None` if there is none.
    fn receive(&mut self, action: &'static str) -> Result<Option<usize>, ConntrackError> {
        loop {
            match recv(self.fd.as_raw_fd(), &mut self.receive, MsgFlags::MSG_DONTWAIT) {
                Ok(len) => return Ok(Some(len)),
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(ConntrackError { action, errno }),
            }
        }
    }
}

/// Takes what a dump reads.
trait Sink {
    fn entry(&mut self, message: &Message<'_>, flow: Flow);

    /// The end of a datagram.
    fn end_of_portion(&mut self) {}

    /// The table changed: everything comes again.
    fn begin_again(&mut self) {}
}

/// Flows in portions.
struct Portions<F> {
    flows: Vec<Flow>,
    take: F,
}

/// Flows one by one.
struct Accounts<E, A> {
    each: E,
    again: A,
}

// === impl Portions ===

impl<F: FnMut(&[Flow])> Sink for Portions<F> {
    fn entry(&mut self, _: &Message<'_>, flow: Flow) {
        self.flows.push(flow);
    }

    fn end_of_portion(&mut self) {
        if !self.flows.is_empty() {
            (self.take)(&self.flows);
            self.flows.clear();
        }
    }
}

// === impl Accounts ===

impl<E: FnMut(&Flow, Option<Traffic>), A: FnMut()> Sink for Accounts<E, A> {
    fn entry(&mut self, message: &Message<'_>, flow: Flow) {
        (self.each)(&flow, wire::read_traffic(message));
    }

    fn begin_again(&mut self) {
        (self.again)();
    }
}

/// The positive error number of an answer or of the end of a dump, 0 for success; `None` for anything else.
fn status(message: &Message<'_>) -> Option<i32> {
    let is_status = matches!(message.kind, NLMSG_ERROR | NLMSG_DONE);
    let bytes = is_status.then(|| message.payload.get(..4))?.and_then(|bytes| bytes.try_into().ok());
    Some(bytes.map_or(Errno::EBADMSG as i32, |bytes| i32::from_ne_bytes(bytes).wrapping_neg()))
}

// === impl Filter ===

impl Filter {
    /// All UDP entries of a family.
    pub fn udp(family: Family) -> Self {
        Self { family, protocol: Protocol::Udp, address: None, port: None }
    }

    /// The UDP entries to a destination, and as few others as the kernel can be made to spare us.
    pub fn to(destination: &Destination) -> Self {
        let (address, port) = match destination {
            Destination::Address(SocketAddr::V4(to)) => (Some(*to.ip()), to.port()),
            Destination::Address(to) => (None, to.port()),
            Destination::NodePort(_, port) => (None, *port),
        };
        Self { address, port: Some(port), ..Self::udp(destination.family()) }
    }

    /// Whether an entry is one of those asked for.
    pub fn matches(&self, flow: &Flow) -> bool {
        let to = flow.original.destination;
        flow.protocol == self.protocol
            && Family::of(to.ip()) == self.family
            && self.address.is_none_or(|address| IpAddr::V4(address) == to.ip())
            && self.port.is_none_or(|port| port == to.port())
    }
}
