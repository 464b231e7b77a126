//! Reading chosen elements of a set, by their keys.
//!
//! A listing of a set is quadratic: for each part of 32 KiB the kernel walks from the set's beginning again. Asking for elements by
//! key costs the same for each of them, whatever else is in the set. One request holds a list of keys, and the kernel answers with one
//! message per element, in the order of the keys, until it meets one that is missing: that ends the request with ENOENT, and the rest has
//! to be asked for again.
//!
//! Invariants: each key asked for is shown or counted as missing, exactly once. Nothing is said about the ruleset as a whole: it may
//! change between two requests, which [`Connection::generation`] shows to those who have to know. Proven by the kernel test `lookup`.

use nix::errno::Errno;

use crate::connection::{Answer, Connection, status};
use crate::dump::{list, name};
use crate::element::{self, Element, ElementView};
use crate::error::{Error, Object, ObjectKind};
use crate::key::Key;
use crate::netlink::{self, HEADER_LEN, Writer};
use crate::set::SetRef;
use crate::uapi;

/// Keys per request. Each answer takes less than 1 KiB of the receive buffer, and while all of them fit the processor's cache the
/// kernel and this side share them there: larger requests were slower.
const BATCH: usize = 256;

/// How one request ended.
enum End {
    /// All keys were there.
    All,
    /// The key of this index was not; those before it were shown.
    Missing(usize),
}

impl Connection {
    /// Shows the elements that have these keys, in their order, and returns how many of the keys are in no element.
    ///
    /// # Errors
    /// [`Error::Query`] if there is no such set; [`Error::AnswerLost`] if answers did not fit the receive buffer.
    pub fn lookup<'a>(
        &mut self,
        set: impl Into<SetRef<'a>>,
        keys: impl IntoIterator<Item = Key>,
        mut show: impl FnMut(ElementView<'_>),
    ) -> Result<usize, Error> {
        let set = set.into();
        let mut keys = keys.into_iter();
        let mut missing = 0;
        let mut request = Writer::new();
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            batch.clear();
            batch.extend(keys.by_ref().take(BATCH));
            let mut rest = batch.as_slice();
            if rest.is_empty() {
                return Ok(missing);
            }
            while !rest.is_empty() {
                match self.look(set, rest, &mut request, &mut show)? {
                    End::All => break,
                    End::Missing(index) => {
                        missing += 1;
                        rest = &rest[index + 1..];
                    }
                }
            }
        }
    }

    /// One request.
    fn look(
        &mut self,
        set: SetRef<'_>,
        keys: &[Key],
        request: &mut Writer,
        show: &mut impl FnMut(ElementView<'_>),
    ) -> Result<End, Error> {
        let seq = self.next_seq();
        request.clear();
        let kind = uapi::NFNL_SUBSYS_NFTABLES << 8 | uapi::NFT_MSG_GETSETELEM;
        let message = request.begin(kind, uapi::NLM_F_REQUEST, seq, &[set.family.number(), 0, 0, 0]);
        name(request, set);
        let first_key = request.len();
        let elements = request.begin_nest(uapi::NFTA_SET_ELEM_LIST_ELEMENTS);
        keys.iter().for_each(|key| element::encode(request, &Element::new(key.as_bytes())));
        request.end_nest(elements);
        request.end(message);
        self.make_room(request.len());
        self.drain();
        self.send(&[request.as_bytes()])?;
        let mut shown = 0;
        while shown < keys.len() {
            let lens = match self.receive_many(keys.len() - shown) {
                Ok(lens) => lens,
                Err(Errno::EINTR) => continue,
                // Everything is queued when the send returns: what is not there now will never come.
                Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::EMSGSIZE) => return Err(Error::AnswerLost),
                Err(errno) => return Err(Error::Socket { action: "receive", errno }),
            };
            let datagrams = lens.into_iter().enumerate().map(|(place, len)| self.received_at(place, len));
            for message in datagrams.flat_map(netlink::messages).filter(|message| message.seq == seq) {
                if message.kind != uapi::NLMSG_ERROR {
                    list(message.payload).for_each(|element| {
                        shown += 1;
                        show(element);
                    });
                    continue;
                }
                let errno = status(&message).unwrap_or_default();
                let answer = Answer::decode(&message, errno);
                // A missing set is ENOENT, too, and blamed on an attribute in front of the keys.
                let of_key = answer.offset.is_none_or(|offset| offset as usize >= first_key.max(HEADER_LEN));
                if errno == libc::ENOENT && of_key {
                    return Ok(End::Missing(shown));
                }
                let object = Box::new(Object::new(ObjectKind::Set, set.family, set.table, set.name));
                return Err(Error::Query { object, errno: answer.errno });
            }
        }
        Ok(End::All)
    }
}
