//! The socket on which transactions are committed and questions asked.
//!
//! Vocabulary: the *generation* is the kernel's count of committed transactions, by anybody, in the network namespace; a *port* is
//! netlink's name for a socket.
//!
//! Invariants: a transaction is sent in one `sendmsg`, because the kernel applies what one datagram holds. The kernel works
//! synchronously: when the send returns, every answer is queued, so answers are read until none is left and never waited for. A
//! transaction has succeeded if no error is among them and, on kernels that acknowledge the end of a batch (6.10), that
//! acknowledgement is; [`Connection::open`] finds out which kind of kernel this is. Proven by the kernel tests `commit`, `errors`
//! and `ownership`.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    MsgFlags, MultiHeaders, NetlinkAddr, RecvMsg, getsockopt, recv, recvmmsg, sendmsg, setsockopt, sockopt,
};

use crate::error::{Error, Object, Operation, Refusal, Retry};
use crate::netlink::{self, HEADER_LEN, Message, Writer};
use crate::sys::Socket;
use crate::table::{Family, Table, TableFlags, TableInfo};
use crate::transaction::Transaction;
use crate::uapi;

/// Receives any datagram that the kernel sends: dumps come in at most 32 KiB, errors are capped.
const RECEIVE_LEN: usize = 64 << 10;

/// Answers that are received several at a time are no longer: an element has a key and its end, a value and a comment, below 500 bytes
/// together, and the names of its table and set.
const ANSWER_LEN: usize = 2 << 10;

/// Room for answers; each costs the kernel about 800 bytes of it.
const RECEIVE_BUFFER: usize = 8 << 20;

/// How often a commit is tried when the kernel is busy or out of buffers, and the first pause (it doubles).
const ATTEMPTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(2);

/// How often a read is started again because the ruleset changed meanwhile.
const DUMP_ATTEMPTS: u32 = 10;

/// Sequence numbers of the batch's own messages; a transaction's begin at 1.
const BEGIN_SEQ: u32 = 0;
const END_SEQ: u32 = u32::MAX;

/// One nf_tables socket. Not shared: whoever writes the ruleset owns it.
pub struct Connection {
    socket: Socket,
    /// The kernel acknowledges BATCH_END.
    end_ack: bool,
    send_buffer: usize,
    receive: Vec<u8>,
    /// Whether there may be answers that have not been read.
    unread: bool,
    /// The last dump, as received.
    pub(crate) dumped: Vec<u8>,
    seq: u32,
}

/// What the kernel offers beyond what this crate needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Features {
    /// Tables can be owned (kernel 5.12).
    pub owner: bool,
    /// Owned tables can outlive their owner (kernel 6.9).
    pub owner_persist: bool,
    /// The end of a batch is acknowledged (kernel 6.10).
    pub end_ack: bool,
}

/// The answers to one transaction.
#[derive(Debug, Default)]
struct Answers {
    first: Option<Answer>,
    errors: usize,
    ended: bool,
    lost: bool,
}

#[derive(Debug)]
pub(crate) struct Answer {
    seq: u32,
    pub(crate) errno: Errno,
    pub(crate) offset: Option<u32>,
    message: Option<String>,
}

// === impl Connection ===

impl Connection {
    /// Opens a socket in the calling thread's network namespace and checks that nf_tables can be changed with it.
    ///
    /// # Errors
    /// [`Error::Permission`] without CAP_NET_ADMIN, [`Error::Unavailable`] in a kernel without nf_tables.
    pub fn open() -> Result<Self, Error> {
        let socket = Socket::open(0).map_err(|error| match error.raw_os_error() {
            Some(libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT) => {
                Error::Unavailable(Errno::from_raw(error.raw_os_error().unwrap_or_default()))
            }
            _ => Error::socket("open", &error),
        })?;
        // Errors then quote only the header of a message, and say which attribute was wrong.
        for option in [uapi::NETLINK_CAP_ACK, uapi::NETLINK_EXT_ACK] {
            socket.enable(option).map_err(|error| Error::socket("set option", &error))?;
        }
        if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            let _ = setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER);
        }
        let send_buffer = getsockopt(&socket, sockopt::SndBuf).unwrap_or(0);
        let mut connection = Self {
            socket,
            end_ack: false,
            send_buffer,
            receive: vec![0; RECEIVE_LEN],
            unread: false,
            dumped: Vec::new(),
            seq: 0,
        };
        // An empty batch changes nothing, not even the generation, and shows both permission and kind of kernel.
        let answers = connection.exchange(None, &[])?;
        if let Some(answer) = &answers.first {
            return Err(connection.failed(answer, 0, None, None));
        }
        connection.end_ack = answers.ended;
        Ok(connection)
    }

    /// The port that the kernel knows this socket by; it is what [`TableInfo::owner`] and events show.
    pub fn port(&self) -> u32 {
        self.socket.port()
    }

    /// Applies a transaction, all of it or nothing.
    ///
    /// Conditions that pass by themselves are waited out for some tens of milliseconds; see [`Error::retry`] for the rest.
    pub fn commit(&mut self, transaction: &Transaction) -> Result<(), Error> {
        self.commit_with(transaction, None, ATTEMPTS)
    }

    /// Applies a transaction that may as well fail now and be tried some other time: nothing is waited for.
    ///
    /// # Errors
    /// As [`Connection::commit`], and sooner.
    pub fn commit_once(&mut self, transaction: &Transaction) -> Result<(), Error> {
        self.commit_with(transaction, None, 1)
    }

    /// Applies a transaction if the ruleset is still of this generation.
    ///
    /// # Errors
    /// [`Error::Stale`] if it is not; otherwise as [`Connection::commit`].
    pub fn commit_at(&mut self, transaction: &Transaction, generation: u32) -> Result<(), Error> {
        self.commit_with(transaction, Some(generation), ATTEMPTS)
    }

    fn commit_with(&mut self, transaction: &Transaction, generation: Option<u32>, attempts: u32) -> Result<(), Error> {
        transaction.check()?;
        if transaction.is_empty() {
            return Ok(());
        }
        let mut pause = FIRST_PAUSE;
        for attempt in 1.. {
            let error = match self.exchange(generation, transaction.as_bytes()) {
                Ok(Answers { first: Some(answer), errors, .. }) => {
                    self.failed(&answer, errors - 1, Some(transaction), generation)
                }
                Ok(Answers { ended: false, .. }) if self.end_ack => return Err(Error::AnswerLost),
                // Without an acknowledgement, silence means success, unless something was lost.
                Ok(Answers { lost: true, .. }) if !self.end_ack => return Err(Error::AnswerLost),
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            // Sending a transaction again is safe: whatever was refused was undone.
            match error.retry() {
                _ if attempt == attempts || matches!(error, Error::Stale { .. }) => return Err(error),
                Retry::Never => return Err(error),
                Retry::Now => {}
                Retry::Backoff => {
                    thread::sleep(pause);
                    pause *= 2;
                }
            }
        }
        unreachable!("the loop returns")
    }

    /// The number of the current generation.
    pub fn generation(&mut self) -> Result<u32, Error> {
        self.ask(Object::ruleset(), uapi::NFT_MSG_GETGEN, 0, |_| {})?;
        netlink::messages(&self.dumped)
            .find_map(|message| netlink::find(message.payload.get(4..)?, uapi::NFTA_GEN_ID)?.be32())
            .ok_or(Error::AnswerLost)
    }

    /// Finds out what the kernel offers, by adding and deleting a scratch table in one transaction.
    pub fn probe(&mut self) -> Result<Features, Error> {
        let mut accepts = |flags: TableFlags| {
            let table = Table { flags, ..Table::new(Family::Ip, format!("nft-probe-{}", self.port())) };
            let mut transaction = Transaction::new();
            transaction.create_table(&table);
            transaction.delete_table(table.family, &table.name);
            match self.commit(&transaction) {
                Ok(()) => Ok(true),
                Err(Error::Refused(refusal)) if matches!(refusal.errno, Errno::EOPNOTSUPP | Errno::EINVAL) => Ok(false),
                Err(error) => Err(error),
            }
        };
        let owner_persist = accepts(TableFlags { owner: true, persist: true })?;
        let owner = owner_persist || accepts(TableFlags { owner: true, persist: false })?;
        Ok(Features { owner, owner_persist, end_ack: self.end_ack })
    }

    // === one exchange ===

    /// Sends a batch around the messages and reads all answers.
    fn exchange(&mut self, generation: Option<u32>, messages: &[u8]) -> Result<Answers, Error> {
        let mut frame = Writer::new();
        batch(&mut frame, uapi::NFNL_MSG_BATCH_BEGIN, 0, BEGIN_SEQ, generation);
        let begin = frame.len();
        // Kernels before 6.10 ignore the wish for an acknowledgement here.
        batch(&mut frame, uapi::NFNL_MSG_BATCH_END, uapi::NLM_F_ACK, END_SEQ, None);
        let (begin, end) = frame.as_bytes().split_at(begin);
        self.make_room(begin.len() + messages.len() + end.len());
        self.drain();
        self.send(&[begin, messages, end])?;
        let mut answers = Answers::default();
        loop {
            match self.receive() {
                Ok(len) => {
                    netlink::messages(&self.receive[..len]).for_each(|message| answers.note(&message));
                    // The end's acknowledgement comes behind all refusals (`nfnetlink_rcv_batch`).
                    if answers.ended {
                        self.unread = false;
                        return Ok(answers);
                    }
                }
                Err(Errno::EAGAIN) => return Ok(answers),
                Err(Errno::EINTR) => {}
                Err(Errno::ENOBUFS) => answers.lost = true,
                Err(errno) => return Err(Error::Socket { action: "receive", errno }),
            }
        }
    }

    pub(crate) fn send(&mut self, parts: &[&[u8]]) -> Result<(), Error> {
        self.unread = true;
        let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let fd = self.socket.as_fd().as_raw_fd();
        loop {
            match sendmsg::<NetlinkAddr>(fd, &slices, &[], MsgFlags::empty(), None) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::Socket { action: "send", errno }),
            }
        }
    }

    pub(crate) fn receive(&mut self) -> Result<usize, Errno> {
        let received = recv(self.socket.as_fd().as_raw_fd(), &mut self.receive, MsgFlags::MSG_DONTWAIT);
        if received == Err(Errno::EAGAIN) {
            self.unread = false;
        }
        received
    }

    /// Receives several datagrams at once, none longer than [`ANSWER_LEN`], at most as many as are expected; returns the length of each, to be
    /// found by [`Connection::received_at`].
    pub(crate) fn receive_many(&mut self, expected: usize) -> Result<Vec<usize>, Errno> {
        let fd = self.socket.as_fd().as_raw_fd();
        let count = expected.min(RECEIVE_LEN / ANSWER_LEN);
        // Made anew each time: the kernel leaves the lengths in there that it filled.
        let mut headers = MultiHeaders::<NetlinkAddr>::preallocate(count, None);
        let mut slots: Vec<_> =
            self.receive.chunks_mut(ANSWER_LEN).take(count).map(|slot| [IoSliceMut::new(slot)]).collect();
        let received = recvmmsg(fd, &mut headers, slots.iter_mut(), MsgFlags::MSG_DONTWAIT, None);
        let received = received.inspect_err(|errno| self.unread &= *errno != Errno::EAGAIN)?;
        let whole = |message: RecvMsg<'_, '_, NetlinkAddr>| match message.flags.contains(MsgFlags::MSG_TRUNC) {
            true => Err(Errno::EMSGSIZE),
            false => Ok(message.bytes),
        };
        received.map(whole).collect()
    }

    /// One of the datagrams received at once, of this length.
    pub(crate) fn received_at(&self, place: usize, len: usize) -> &[u8] {
        &self.receive[place * ANSWER_LEN..][..len]
    }

    /// The number of the next question.
    pub(crate) fn next_seq(&mut self) -> u32 {
        self.seq = self.seq.wrapping_add(1);
        self.seq
    }

    /// Throws away what an interrupted exchange may have left.
    pub(crate) fn drain(&mut self) {
        if !self.unread {
            return;
        }
        // What is lost now is what was to be thrown away; any other error would not go away by asking again.
        while matches!(self.receive(), Ok(_) | Err(Errno::EINTR | Errno::ENOBUFS)) {}
    }

    /// Raises the send buffer: the kernel refuses datagrams larger than it with EMSGSIZE.
    pub(crate) fn make_room(&mut self, len: usize) {
        let needed = len + 4096;
        if needed > self.send_buffer {
            // The kernel doubles what it is told.
            if setsockopt(&self.socket, sockopt::SndBufForce, &needed).is_err() {
                let _ = setsockopt(&self.socket, sockopt::SndBuf, &needed);
            }
            self.send_buffer = getsockopt(&self.socket, sockopt::SndBuf).unwrap_or(self.send_buffer);
        }
    }

    /// The error behind an answer.
    fn failed(
        &mut self,
        answer: &Answer,
        further: usize,
        transaction: Option<&Transaction>,
        generation: Option<u32>,
    ) -> Error {
        if answer.seq == BEGIN_SEQ {
            match answer.errno {
                Errno::EPERM => return Error::Permission,
                Errno::EOPNOTSUPP => return Error::Unavailable(answer.errno),
                Errno::ERESTART => {
                    if let Some(generation) = generation {
                        return Error::Stale { generation };
                    }
                }
                _ => {}
            }
        }
        let (operation, object, element) = transaction
            .and_then(|transaction| transaction.describe(answer.seq, answer.offset))
            .unwrap_or((Operation::Commit, Object::ruleset(), None));
        if answer.errno == Errno::EPERM
            && let Some(owned) = self.owner(&object)
        {
            return owned;
        }
        let message = answer.message.clone();
        Error::Refused(Box::new(Refusal { operation, object, element, errno: answer.errno, message, further }))
    }

    /// [`Error::Owned`] if another socket owns the object's table.
    fn owner(&mut self, object: &Object) -> Option<Error> {
        let family = object.family?;
        let info = self.table(family, &object.table).ok()??;
        let port = info.owner.filter(|port| *port != self.port())?;
        Some(Error::Owned { family, table: info.name, port })
    }

    /// One table, if it exists.
    pub fn table(&mut self, family: Family, name: &str) -> Result<Option<TableInfo>, Error> {
        let object = Object::new(crate::ObjectKind::Table, family, name, "");
        let asked = self.ask(object, uapi::NFT_MSG_GETTABLE, family.number(), |writer| {
            writer.attr_str(uapi::NFTA_TABLE_NAME, name);
        });
        match asked {
            Err(Error::Query { errno: Errno::ENOENT, .. }) => Ok(None),
            Err(error) => Err(error),
            Ok(()) => Ok(netlink::messages(&self.dumped)
                .find_map(|message| TableInfo::decode(*message.payload.first()?, message.payload.get(4..)?))),
        }
    }

    // === questions ===

    /// Asks for one object; the answer is in `dumped`.
    pub(crate) fn ask(
        &mut self,
        object: Object,
        kind: u16,
        family: u8,
        write: impl Fn(&mut Writer),
    ) -> Result<(), Error> {
        self.question(&object, kind, 0, family, &write).map(drop)
    }

    /// Asks for all objects of a kind; the answers are in `dumped`. Starts again if the ruleset changes meanwhile.
    ///
    /// The kernel's own mark for that, NLM_F_DUMP_INTR, is missing from listings of elements (`nf_tables_dump_set`), so the
    /// generation must be the same before and after. It becomes another one a moment before elements do, or after (Linux 6.18), so no commit
    /// may be under way when it is asked for.
    pub(crate) fn dump(
        &mut self,
        object: Object,
        kind: u16,
        family: u8,
        write: impl Fn(&mut Writer),
    ) -> Result<(), Error> {
        for _ in 0..DUMP_ATTEMPTS {
            let before = self.settled_generation()?;
            let consistent = self.question(&object, kind, uapi::NLM_F_DUMP, family, &write)?;
            let dumped = std::mem::take(&mut self.dumped);
            let after = self.settled_generation()?;
            self.dumped = dumped;
            if consistent && before == after {
                return Ok(());
            }
        }
        Err(Error::Interrupted)
    }

    /// As [`Connection::generation`], of which all is there: an empty batch waits for whoever is committing (`nf_tables_valid_genid`), and is
    /// refused if that made another generation. Between two calls that return the same nobody has changed anything.
    ///
    /// # Errors
    /// [`Error::Interrupted`] if others commit without a pause.
    pub fn settled_generation(&mut self) -> Result<u32, Error> {
        for _ in 0..DUMP_ATTEMPTS {
            let generation = self.generation()?;
            let answers = self.exchange(Some(generation), &[])?;
            match &answers.first {
                None => return Ok(generation),
                Some(answer) if answer.errno == Errno::ERESTART => {}
                Some(answer) => return Err(self.failed(answer, 0, None, None)),
            }
        }
        Err(Error::Interrupted)
    }

    /// Whether the answer is consistent.
    pub(crate) fn question(
        &mut self,
        object: &Object,
        kind: u16,
        flags: u16,
        family: u8,
        write: &impl Fn(&mut Writer),
    ) -> Result<bool, Error> {
        let seq = self.next_seq();
        let mut request = Writer::new();
        let message =
            request.begin(uapi::NFNL_SUBSYS_NFTABLES << 8 | kind, uapi::NLM_F_REQUEST | flags, seq, &[family, 0, 0, 0]);
        write(&mut request);
        request.end(message);
        self.drain();
        self.send(&[request.as_bytes()])?;
        self.dumped.clear();
        let mut consistent = true;
        loop {
            let len = match self.receive() {
                Ok(len) => len,
                // Nothing is queued any more: the answer of a single question was complete, that of a dump is never.
                Err(Errno::EAGAIN) if flags == 0 && !self.dumped.is_empty() => return Ok(true),
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN | Errno::ENOBUFS) => return Err(Error::AnswerLost),
                Err(errno) => return Err(Error::Socket { action: "receive", errno }),
            };
            for message in netlink::messages(&self.receive[..len]) {
                consistent &= message.flags & uapi::NLM_F_DUMP_INTR == 0;
                match message.kind {
                    uapi::NLMSG_ERROR | uapi::NLMSG_DONE => match status(&message) {
                        None | Some(0) => return Ok(consistent),
                        Some(libc::EINTR) => return Ok(false),
                        Some(errno) => {
                            let errno = Errno::from_raw(errno);
                            return Err(Error::Query { object: Box::new(object.clone()), errno });
                        }
                    },
                    _ => {}
                }
            }
            self.dumped.extend_from_slice(&self.receive[..len]);
            while !self.dumped.len().is_multiple_of(4) {
                self.dumped.push(0);
            }
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Connection").field("port", &self.port()).field("end_ack", &self.end_ack).finish()
    }
}

/// Writes one of the two messages around a transaction (`struct nfgenmsg` with the subsystem as resource).
fn batch(writer: &mut Writer, kind: u16, flags: u16, seq: u32, generation: Option<u32>) {
    let [high, low] = uapi::NFNL_SUBSYS_NFTABLES.to_be_bytes();
    let message = writer.begin(kind, uapi::NLM_F_REQUEST | flags, seq, &[libc::AF_UNSPEC as u8, 0, high, low]);
    if let Some(generation) = generation {
        writer.attr_be32(uapi::NFNL_BATCH_GENID, generation);
    }
    writer.end(message);
}

/// The positive error number of an error message or of the end of a dump; 0 is success.
pub(crate) fn status(message: &Message<'_>) -> Option<i32> {
    let bytes = message.payload.get(..4)?;
    Some(-i32::from_ne_bytes(bytes.try_into().ok()?))
}

// === impl Answers ===

impl Answers {
    fn note(&mut self, message: &Message<'_>) {
        if message.kind != uapi::NLMSG_ERROR {
            return;
        }
        match status(message) {
            Some(0) => self.ended |= message.seq == END_SEQ,
            Some(errno) => {
                self.errors += 1;
                if self.first.is_none() {
                    self.first = Some(Answer::decode(message, errno));
                }
            }
            None => {}
        }
    }
}

impl Answer {
    /// `struct nlmsgerr`: the error, the refused message's header (and, on kernels that do not cap, its payload), attributes.
    pub(crate) fn decode(message: &Message<'_>, errno: i32) -> Self {
        let mut answer = Self { seq: message.seq, errno: Errno::from_raw(errno), offset: None, message: None };
        if message.flags & uapi::NLM_F_ACK_TLVS == 0 {
            return answer;
        }
        let quoted = message.payload.get(4..8).map_or(0, |len| u32::from_ne_bytes(len.try_into().expect("four bytes")));
        let skip =
            if message.flags & uapi::NLM_F_CAPPED == 0 { (quoted as usize).next_multiple_of(4) } else { HEADER_LEN };
        for attribute in netlink::attributes(message.payload.get(4 + skip..).unwrap_or_default()) {
            match attribute.kind {
                uapi::NLMSGERR_ATTR_MSG => answer.message = attribute.str().map(str::to_owned),
                uapi::NLMSGERR_ATTR_OFFS => answer.offset = attribute.ne32(),
                _ => {}
            }
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::retry_of;

    fn error(seq: u32, errno: i32, capped: bool, offset: u32) -> Writer {
        let mut writer = Writer::new();
        let flags = uapi::NLM_F_ACK_TLVS | if capped { uapi::NLM_F_CAPPED } else { 0 };
        let message = writer.begin(uapi::NLMSG_ERROR, flags, seq, &(-errno).to_ne_bytes());
        // The quoted header claims 40 bytes; uncapped they follow.
        writer.raw(&40u32.to_ne_bytes());
        writer.raw(&[0; 12]);
        if !capped {
            writer.raw(&[0xff; 24]);
        }
        writer.attr_ne32(uapi::NLMSGERR_ATTR_OFFS, offset);
        writer.end(message);
        writer
    }

    #[test]
    fn the_first_error_and_the_acknowledgement_are_found() {
        let mut answers = Answers::default();
        for capped in [true, false] {
            let writer = error(3, libc::EEXIST, capped, 136);
            netlink::messages(writer.as_bytes()).for_each(|message| answers.note(&message));
            let first = answers.first.take().expect("an error");
            assert_eq!((first.seq, first.errno, first.offset), (3, Errno::EEXIST, Some(136)));
        }
        assert_eq!((answers.errors, answers.ended), (2, false));
        let writer = error(END_SEQ, 0, true, 0);
        netlink::messages(writer.as_bytes()).for_each(|message| answers.note(&message));
        assert!(answers.ended);
    }

    #[test]
    fn a_connection_may_move_to_another_thread() {
        fn is_send<T: Send>() {}
        is_send::<Connection>();
        is_send::<crate::Monitor>();
    }

    #[test]
    fn retries_fit_the_error() {
        assert_eq!(retry_of(Errno::EBUSY), Retry::Backoff);
        assert_eq!(retry_of(Errno::ERESTART), Retry::Now);
        assert_eq!(retry_of(Errno::EINVAL), Retry::Never);
    }

    proptest! {
        #[test]
        fn arbitrary_answers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let mut writer = Writer::new();
            let message = writer.begin(uapi::NLMSG_ERROR, u16::from(bytes.first().copied().unwrap_or(0)) << 8, 1, &bytes);
            writer.end(message);
            let mut answers = Answers::default();
            netlink::messages(writer.as_bytes()).for_each(|message| answers.note(&message));
        }
    }
}
