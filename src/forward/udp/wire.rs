//! Many datagrams per system call.
//!
//! Received datagrams lie in the slots of an [`Arena`], one per thread, and are sent on from there; nothing stays in it between two
//! turns of a shard. What the kernel joined (GRO) stays joined, and what arrived in a row for the same receiver is joined here: one
//! walk through the network stack then carries up to 64 of them (GSO), which the far end takes apart again.

use std::cell::RefCell;
use std::io::{IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, RecvMsg, SockaddrStorage, recv, recvmmsg, recvmsg,
    sendmmsg, sendmsg,
};
use socket2::Socket;

use super::flows::Caller;

/// How many datagrams are received at once.
pub(super) const BATCH: usize = 32;
/// How many slots there are: twice a batch, so that replies of several flows find room before they are sent.
pub(super) const SLOTS: usize = 2 * BATCH;
/// The largest datagram, or the most that the kernel joins, fits into a slot. The rest keeps slots from sharing a cache's sets.
const SLOT: usize = 65_536 + 192;
/// What one joined message may hold: in segments, for kernels before 6.9; and in bytes.
const JOINED_SEGMENTS: usize = 64;
const JOINED_BYTES: usize = 65_000;

thread_local! {
    static ARENA: RefCell<Arena> = RefCell::new(Arena::new());
}

/// Room for received datagrams. Pages that were never written to take no memory.
#[derive(Debug)]
pub(super) struct Arena {
    bytes: Vec<u8>,
    /// For control messages of a single datagram.
    control: Vec<u8>,
}

/// One or more datagrams in a slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    slot: usize,
    /// All of it, in bytes.
    pub len: usize,
    /// The length of each datagram but the last, which may be shorter.
    segment: usize,
}

/// Something received by a listener.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub caller: Caller,
    pub piece: Piece,
}

/// How large segments may be that are joined on sending: less than this, after the kernel refused once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Joining(usize);

/// What became of pieces that were to be sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sent {
    /// Datagrams that did not go out, for want of buffers or because they are too large.
    pub dropped: u64,
}

/// Runs `work` with this thread's arena.
pub(super) fn with_arena<T>(work: impl FnOnce(&mut Arena) -> T) -> T {
    ARENA.with_borrow_mut(work)
}

/// Receives up to `count` datagrams from clients, at most a batch, into the arena's first slots.
pub(super) fn receive_requests(
    listener: &Socket,
    arena: &mut Arena,
    count: usize,
    requests: &mut Vec<Request>,
) -> Result<(), Errno> {
    requests.clear();
    if count == 1 {
        requests.extend(receive_request(listener, arena)?);
        return Ok(());
    }
    // Made anew each time: the kernel leaves the lengths in there that it filled.
    let space = nix::cmsg_space!(libc::in6_pktinfo, libc::c_int);
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(count, Some(space));
    let mut slices: Vec<_> = arena.slots_mut(0, count).map(|slot| [IoSliceMut::new(slot)]).collect();
    let received = recvmmsg(listener.as_raw_fd(), &mut headers, slices.iter_mut(), MsgFlags::MSG_DONTWAIT, None)?;
    requests.extend(received.enumerate().filter_map(|(slot, message)| request(slot, &message)));
    Ok(())
}

/// The same for a single one, with nothing made for many.
fn receive_request(listener: &Socket, arena: &mut Arena) -> Result<Option<Request>, Errno> {
    let Arena { bytes, control } = arena;
    let mut slices = [IoSliceMut::new(&mut bytes[..65_536])];
    let message = recvmsg(listener.as_raw_fd(), &mut slices, Some(control), MsgFlags::MSG_DONTWAIT)?;
    Ok(request(0, &message))
}

/// What a listener received into a slot, and from whom.
fn request(slot: usize, message: &RecvMsg<'_, '_, SockaddrStorage>) -> Option<Request> {
    let client = message.address.as_ref().and_then(address)?;
    let (mut local, mut segment) = (None, message.bytes);
    for control in message.cmsgs().into_iter().flatten() {
        match control {
            ControlMessageOwned::UdpGroSegments(bytes) => segment = usize::try_from(bytes).unwrap_or(segment),
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                local = Some(Ipv4Addr::from(u32::from_be(info.ipi_spec_dst.s_addr)).into());
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => local = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).into()),
            _ => {}
        }
    }
    let piece = Piece { slot, len: message.bytes, segment: segment.min(message.bytes) };
    Some(Request { caller: Caller { client, local }, piece })
}

/// Receives up to `count` datagrams from an endpoint, into the arena from slot `first` on.
pub(super) fn receive_replies(
    upstream: &Socket,
    arena: &mut Arena,
    first: usize,
    count: usize,
    mut each: impl FnMut(Piece),
) -> Result<usize, Errno> {
    if count == 1 {
        let slot = arena.slots_mut(first, 1).next().expect("a slot");
        let len = recv(upstream.as_raw_fd(), slot, MsgFlags::MSG_DONTWAIT)?;
        each(Piece { slot: first, len, segment: len });
        return Ok(1);
    }
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(count, None);
    let mut slices: Vec<_> = arena.slots_mut(first, count).map(|slot| [IoSliceMut::new(slot)]).collect();
    let received = recvmmsg(upstream.as_raw_fd(), &mut headers, slices.iter_mut(), MsgFlags::MSG_DONTWAIT, None)?;
    let mut pieces = 0;
    for (slot, message) in (first..).zip(received) {
        each(Piece { slot, len: message.bytes, segment: message.bytes });
        pieces += 1;
    }
    Ok(pieces)
}

/// Sends pieces to an endpoint, in order. Stops at an error that says something about the endpoint; says how many pieces are dealt
/// with by then.
pub(super) fn send_requests(
    upstream: &Socket,
    arena: &Arena,
    pieces: &[Piece],
    joining: &mut Joining,
    sent: &mut Sent,
) -> (usize, Option<Errno>) {
    let mut done = 0;
    while done < pieces.len() {
        let run = joining.run(&pieces[done..]);
        let run = &pieces[done..done + run];
        let result = send_run(upstream, arena, run, None, joining, sent);
        if let Err(errno) = result {
            if is_about_the_endpoint(errno) {
                return (done, Some(errno));
            }
            sent.dropped += run.iter().map(Piece::datagrams).sum::<u64>();
        }
        done += run.len();
    }
    (done, None)
}

/// Sends replies to clients, each client's in order.
pub(super) fn send_replies(
    listener: &Socket,
    arena: &Arena,
    replies: &[Request],
    joining: &mut Joining,
    sent: &mut Sent,
) {
    // Single datagrams are collected and go out with one call, whoever they are for.
    let mut singles: Vec<&Request> = Vec::with_capacity(replies.len());
    let mut rest = replies;
    let mut pieces = Vec::with_capacity(BATCH);
    while let Some(first) = rest.first() {
        pieces.clear();
        pieces.extend(rest.iter().take_while(|reply| reply.caller == first.caller).map(|reply| reply.piece));
        let run = joining.run(&pieces);
        if run == 1 && first.piece.datagrams() == 1 {
            singles.push(first);
        } else {
            // What was collected may be for the same client, and earlier.
            send_singles(listener, arena, &singles, sent);
            singles.clear();
            if send_run(listener, arena, &pieces[..run], Some(first.caller), joining, sent).is_err() {
                sent.dropped += pieces[..run].iter().map(Piece::datagrams).sum::<u64>();
            }
        }
        rest = &rest[run..];
    }
    send_singles(listener, arena, &singles, sent);
}

/// Whether an error of a connected socket means that the endpoint does not serve, rather than that we are short of something.
pub(super) fn is_about_the_endpoint(errno: Errno) -> bool {
    // EPERM and EACCES: a firewall of this host does not let us.
    [
        Errno::ECONNREFUSED,
        Errno::EHOSTUNREACH,
        Errno::ENETUNREACH,
        Errno::EHOSTDOWN,
        Errno::ENETDOWN,
        Errno::EPERM,
        Errno::EACCES,
        Errno::EPROTO,
        Errno::ENOPROTOOPT,
    ]
    .contains(&errno)
}

/// Sends pieces that can be joined as one message; one by one if the kernel does not want them joined.
fn send_run(
    socket: &Socket,
    arena: &Arena,
    run: &[Piece],
    to: Option<Caller>,
    joining: &mut Joining,
    sent: &mut Sent,
) -> Result<(), Errno> {
    let segment = run[0].segment;
    let datagrams: u64 = run.iter().map(Piece::datagrams).sum();
    if datagrams == 1 {
        return send_one(socket, &[IoSlice::new(arena.piece(&run[0]))], None, to);
    }
    if segment <= joining.0 {
        let slices: Vec<_> = run.iter().map(|piece| IoSlice::new(arena.piece(piece))).collect();
        let size = u16::try_from(segment).expect("less than a datagram's limit");
        match send_one(socket, &slices, Some(size), to) {
            // Larger than the path's MTU, or not on this kernel or device.
            Err(Errno::EINVAL | Errno::EMSGSIZE | Errno::EIO | Errno::EOPNOTSUPP) => joining.0 = segment - 1,
            other => return other,
        }
    }
    for (number, datagram) in run.iter().flat_map(|piece| arena.piece(piece).chunks(piece.segment)).enumerate() {
        match send_one(socket, &[IoSlice::new(datagram)], None, to) {
            Ok(()) => {}
            Err(errno) if number == 0 && is_about_the_endpoint(errno) => return Err(errno),
            Err(_) => sent.dropped += 1,
        }
    }
    Ok(())
}

fn send_one(socket: &Socket, slices: &[IoSlice<'_>], segment: Option<u16>, to: Option<Caller>) -> Result<(), Errno> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let address = to.map(|to| SockaddrStorage::from(to.client));
    let info = to.and_then(|to| to.local).map(Info::from);
    let join = segment.as_ref().map(ControlMessage::UdpGsoSegments);
    let controls: Vec<_> = info.iter().map(Info::message).chain(join).collect();
    sendmsg(socket.as_raw_fd(), slices, &controls, flags, address.as_ref()).map(drop)
}

/// Sends single datagrams, as many as possible with one call.
fn send_singles(listener: &Socket, arena: &Arena, singles: &[&Request], sent: &mut Sent) {
    for group in singles.chunk_by(|one, other| one.caller.local == other.caller.local) {
        if let [single] = group {
            let slices = [IoSlice::new(arena.piece(&single.piece))];
            sent.dropped += u64::from(send_one(listener, &slices, None, Some(single.caller)).is_err());
            continue;
        }
        let info = group[0].caller.local.map(Info::from);
        let controls: Vec<_> = info.iter().map(Info::message).collect();
        let slices: Vec<_> = group.iter().map(|single| [IoSlice::new(arena.piece(&single.piece))]).collect();
        let addresses: Vec<_> = group.iter().map(|single| Some(SockaddrStorage::from(single.caller.client))).collect();
        let mut done = 0;
        while done < group.len() {
            let space = info.as_ref().map(|info| match info {
                Info::V4(_) => nix::cmsg_space!(libc::in_pktinfo),
                Info::V6(_) => nix::cmsg_space!(libc::in6_pktinfo),
            });
            let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(group.len() - done, space);
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            let (slices, addresses) = (slices[done..].iter(), &addresses[done..]);
            match sendmmsg(listener.as_raw_fd(), &mut headers, slices, addresses, &controls, flags) {
                Ok(results) => done += results.count().max(1),
                Err(_) => {
                    // The first of them cannot be sent; the others may.
                    sent.dropped += 1;
                    done += 1;
                }
            }
        }
    }
}

fn address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = || storage.as_sockaddr_in().map(|v4| SocketAddr::from(*v4));
    let v6 = || storage.as_sockaddr_in6().map(|v6| SocketAddr::from(*v6));
    v4().or_else(v6)
}

/// From which of the host's addresses to send.
enum Info {
    V4(libc::in_pktinfo),
    V6(libc::in6_pktinfo),
}

// === impl Arena ===

impl Arena {
    fn new() -> Self {
        Self { bytes: vec![0; SLOTS * SLOT], control: nix::cmsg_space!(libc::in6_pktinfo, libc::c_int) }
    }

    /// The bytes of a piece.
    pub fn piece(&self, piece: &Piece) -> &[u8] {
        &self.bytes[piece.slot * SLOT..][..piece.len]
    }

    fn slots_mut(&mut self, first: usize, count: usize) -> impl Iterator<Item = &mut [u8]> {
        self.bytes[first * SLOT..(first + count) * SLOT].chunks_mut(SLOT).map(|slot| &mut slot[..65_536])
    }
}

// === impl Piece ===

impl Piece {
    /// How many datagrams it is.
    pub fn datagrams(&self) -> u64 {
        if self.segment == 0 { 1 } else { self.len.div_ceil(self.segment) as u64 }
    }
}

// === impl Joining ===

impl Joining {
    /// How many pieces from the first on can be one message: equal segments, of which only the last may be shorter.
    fn run(self, pieces: &[Piece]) -> usize {
        let segment = pieces[0].segment;
        if segment == 0 || segment > self.0 {
            return 1;
        }
        let (mut bytes, mut run) = (pieces[0].len, 1);
        for piece in &pieces[1..] {
            let full = bytes.is_multiple_of(segment);
            let fits = (bytes + piece.len).div_ceil(segment) <= JOINED_SEGMENTS && bytes + piece.len <= JOINED_BYTES;
            let alike = piece.segment == segment || piece.datagrams() == 1 && (1..segment).contains(&piece.len);
            if !(full && fits && alike) {
                break;
            }
            bytes += piece.len;
            run += 1;
        }
        run
    }
}

impl Default for Joining {
    fn default() -> Self {
        Self(usize::from(u16::MAX))
    }
}

// === impl Info ===

impl Info {
    fn message(&self) -> ControlMessage<'_> {
        match self {
            Info::V4(info) => ControlMessage::Ipv4PacketInfo(info),
            Info::V6(info) => ControlMessage::Ipv6PacketInfo(info),
        }
    }
}

impl From<IpAddr> for Info {
    fn from(local: IpAddr) -> Self {
        match local {
            IpAddr::V4(v4) => Info::V4(libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr { s_addr: v4.to_bits().to_be() },
                ipi_addr: libc::in_addr { s_addr: 0 },
            }),
            IpAddr::V6(v6) => {
                Info::V6(libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: v6.octets() }, ipi6_ifindex: 0 })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(pieces: &[(usize, usize)]) -> usize {
        let pieces: Vec<_> =
            pieces.iter().map(|(len, segment)| Piece { slot: 0, len: *len, segment: *segment }).collect();
        Joining::default().run(&pieces)
    }

    #[test]
    fn what_can_be_joined() {
        assert_eq!(run(&[(64, 64)]), 1);
        assert_eq!(run(&[(64, 64), (64, 64), (64, 64)]), 3);
        assert_eq!(run(&[(64, 64), (10, 10), (64, 64)]), 2, "a shorter one is the last");
        assert_eq!(run(&[(64, 64), (65, 65)]), 1, "a longer one begins another");
        assert_eq!(run(&[(0, 0), (0, 0)]), 1, "nothing has no length to cut by");
        assert_eq!(run(&[(64, 64), (0, 0)]), 1);
        assert_eq!(run(&[(640, 64), (640, 64), (100, 64), (64, 64)]), 3, "what the kernel joined stays together");
        assert_eq!(run(&[(100, 64), (64, 64)]), 1, "the last of these is shorter already");
        assert_eq!(run(&[(1400, 1400); 64]), 46, "bytes");
        assert_eq!(run(&[(10, 10); 100]), 64, "segments");
        assert_eq!(Joining(63).run(&[Piece { slot: 0, len: 64, segment: 64 }; 3]), 1, "refused before");
    }
}
