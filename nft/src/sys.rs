//! The only `unsafe` code of the crate: libnftnl's objects, and what libmnl's safe wrapper leaves out.
//!
//! Everything unsafe is made safe here by construction: an object is a non-null pointer freed exactly once on drop, strings are
//! [`CStr`]s, value lengths are checked against libnftnl's fixed 64-byte registers before they are copied, and messages are
//! serialised into a scratch buffer that is larger than any definition can become ([`SCRATCH_LEN`]).
//!
//! Vocabulary: an *object* is libnftnl's C structure for one definition (table, chain, set, rule, stateful object).
//!
//! Invariants: no pointer leaves this module. Proven by every kernel test that defines something, and by the unit test that
//! fills a rule to its limits.

use std::ffi::{CStr, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use mnl::Bus;
use nftnl::nftnl_sys as ffi;

use crate::uapi;

/// Room for one serialised definition. The largest is a rule: at most 128 expressions ([`uapi::NFT_RULE_MAXEXPRS`]), each below
/// 700 bytes (two 256-byte names and headers), plus names and user data.
const SCRATCH_LEN: usize = 128 << 10;

/// The longest value that a register file holds (`NFT_DATA_VALUE_MAXLEN`).
const MAX_VALUE_LEN: usize = 64;

/// A buffer that libnftnl serialises into; aligned for `struct nlmsghdr`.
#[derive(Debug, Default, Clone)]
pub(crate) struct Scratch(Vec<u64>);

/// A netlink socket that may be moved to another thread.
pub(crate) struct Socket(mnl::Socket);

/// One expression of a rule, under construction.
pub(crate) struct ExprObject(NonNull<ffi::nftnl_expr>);

// === impl Scratch ===

impl Scratch {
    fn message(
        &mut self,
        kind: u16,
        family: u8,
        flags: u16,
        seq: u32,
        payload: impl FnOnce(*mut libc::nlmsghdr),
    ) -> &[u8] {
        self.0.resize(SCRATCH_LEN / 8, 0);
        let start = self.0.as_mut_ptr();
        // SAFETY: the buffer is writable, aligned to 8 and far larger than the headers that this call writes at its start.
        let header = unsafe { ffi::nftnl_nlmsg_build_hdr(start.cast(), kind, family.into(), flags, seq) };
        payload(header);
        // SAFETY: `header` is the start of our buffer and was initialised by the call above.
        let len = unsafe { (*header).nlmsg_len } as usize;
        assert!(len <= SCRATCH_LEN, "a definition outgrew its scratch buffer");
        // SAFETY: the buffer holds SCRATCH_LEN initialised bytes and `len` was just checked; it stays borrowed for 'a.
        unsafe { std::slice::from_raw_parts(start.cast::<u8>(), len) }
    }
}

// === impl Socket ===

// SAFETY: `struct mnl_socket` is a file descriptor and its address; libmnl keeps no thread-local state for it.
unsafe impl Send for Socket {}

impl Socket {
    /// Opens and binds a NETLINK_NETFILTER socket, subscribed to the multicast groups of the mask.
    pub fn open(groups: u32) -> io::Result<Self> {
        let socket = Self(mnl::Socket::open(Bus::Netfilter)?);
        // libmnl 1.0.4 leaves it open across exec: a child would go on owning our tables after we have closed it.
        nix::fcntl::fcntl(socket.as_fd(), nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
        socket.0.bind(groups, 0)?;
        Ok(socket)
    }

    /// The port that the kernel knows this socket by.
    pub fn port(&self) -> u32 {
        self.0.portid()
    }

    /// Switches a `SOL_NETLINK` option on.
    pub fn enable(&self, option: i32) -> io::Result<()> {
        let on: libc::c_int = 1;
        // SAFETY: the descriptor is open as long as `self`; the value is a C int of the stated length.
        let result = unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                libc::SOL_NETLINK,
                option,
                (&raw const on).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor belongs to the socket and stays open while it is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}

// === impl ExprObject ===

impl ExprObject {
    /// `None` if libnftnl does not know the expression.
    pub fn new(name: &CStr) -> Option<Self> {
        // SAFETY: the name is a C string; the result is checked for null.
        NonNull::new(unsafe { ffi::nftnl_expr_alloc(name.as_ptr()) }).map(Self)
    }

    pub fn u8(&mut self, attribute: u32, value: u8) {
        // SAFETY: the pointer is live; libnftnl ignores attributes that the expression lacks.
        unsafe { ffi::nftnl_expr_set_u8(self.0.as_ptr(), attribute as u16, value) }
    }

    pub fn u16(&mut self, attribute: u32, value: u16) {
        // SAFETY: as in `u8`.
        unsafe { ffi::nftnl_expr_set_u16(self.0.as_ptr(), attribute as u16, value) }
    }

    pub fn u32(&mut self, attribute: u32, value: u32) {
        // SAFETY: as in `u8`.
        unsafe { ffi::nftnl_expr_set_u32(self.0.as_ptr(), attribute as u16, value) }
    }

    pub fn u64(&mut self, attribute: u32, value: u64) {
        // SAFETY: as in `u8`.
        unsafe { ffi::nftnl_expr_set_u64(self.0.as_ptr(), attribute as u16, value) }
    }

    pub fn str(&mut self, attribute: u32, value: &CStr) {
        // SAFETY: as in `u8`; libnftnl copies the string.
        unsafe { ffi::nftnl_expr_set_str(self.0.as_ptr(), attribute as u16, value.as_ptr()) };
    }

    /// A register's content.
    ///
    /// # Panics
    /// Above 64 bytes, which libnftnl would copy beyond its field. A [`crate::Key`] cannot be longer.
    pub fn value(&mut self, attribute: u32, value: &[u8]) {
        assert!(value.len() <= MAX_VALUE_LEN, "a register value has at most {MAX_VALUE_LEN} bytes");
        // SAFETY: the bytes are readable for the stated length, which fits libnftnl's `union nftnl_data_reg`.
        unsafe {
            ffi::nftnl_expr_set(self.0.as_ptr(), attribute as u16, value.as_ptr().cast::<c_void>(), value.len() as u32)
        };
    }

    /// Hands an expression to this one, as the statement of a dynset.
    pub fn nest(&mut self, attribute: u32, inner: ExprObject) {
        // SAFETY: both pointers are live; ownership of `inner` moves to the outer expression, hence the forget.
        unsafe { ffi::nftnl_expr_add_expr(self.0.as_ptr(), attribute, inner.0.as_ptr()) };
        std::mem::forget(inner);
    }
}

impl Drop for ExprObject {
    fn drop(&mut self) {
        // SAFETY: the pointer is live and not used afterwards; owners that took it over have forgotten `self`.
        unsafe { ffi::nftnl_expr_free(self.0.as_ptr()) }
    }
}

/// Declares the wrapper of one libnftnl object: allocation, setters, serialisation, release.
macro_rules! object {
    ($(#[$doc:meta])* $name:ident: $raw:ident, $alloc:ident, $free:ident, $u32:ident, $u64:ident, $str:ident, $data:ident, $build:ident) => {
        $(#[$doc])*
        pub(crate) struct $name(NonNull<ffi::$raw>);

        #[allow(dead_code)]
        impl $name {
            /// # Panics
            /// If there is no memory for a few hundred bytes.
            pub fn new() -> Self {
                // SAFETY: takes no arguments; the result is checked for null.
                Self(NonNull::new(unsafe { ffi::$alloc() }).expect("memory for a libnftnl object"))
            }

            pub fn u32(&mut self, attribute: u32, value: u32) {
                // SAFETY: the pointer is live; the attribute is one of this object's 32-bit ones.
                unsafe { ffi::$u32(self.0.as_ptr(), attribute as u16, value) };
            }

            pub fn u64(&mut self, attribute: u32, value: u64) {
                // SAFETY: the pointer is live; the attribute is one of this object's 64-bit ones.
                unsafe { ffi::$u64(self.0.as_ptr(), attribute as u16, value) };
            }

            pub fn str(&mut self, attribute: u32, value: &CStr) {
                // SAFETY: the pointer is live; libnftnl copies the string.
                unsafe { ffi::$str(self.0.as_ptr(), attribute as u16, value.as_ptr()) };
            }

            /// # Panics
            /// Above the kernel's 256 bytes of user data.
            pub fn data(&mut self, attribute: u32, value: &[u8]) {
                assert!(value.len() <= uapi::NFT_USERDATA_MAXLEN);
                // SAFETY: the bytes are readable for the stated length; libnftnl copies them.
                unsafe {
                    ffi::$data(self.0.as_ptr(), attribute as u16, value.as_ptr().cast(), value.len() as u32);
                }
            }

            /// The whole message for this object.
            pub fn message<'a>(
                &mut self, scratch: &'a mut Scratch, kind: u16, family: u8, flags: u16, seq: u32,
            ) -> &'a [u8] {
                scratch.message(kind, family, flags, seq, |header| {
                    // SAFETY: `header` is a fresh header with SCRATCH_LEN bytes behind it; the object is live.
                    unsafe { ffi::$build(header, self.0.as_ptr()) }
                })
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                // SAFETY: the pointer is live and not used afterwards.
                unsafe { ffi::$free(self.0.as_ptr()) }
            }
        }
    };
}

object! {
    /// `struct nftnl_table`
    TableObject: nftnl_table, nftnl_table_alloc, nftnl_table_free, nftnl_table_set_u32, nftnl_table_set_u64,
    nftnl_table_set_str, nftnl_table_set_data, nftnl_table_nlmsg_build_payload
}

object! {
    /// `struct nftnl_chain`
    ChainObject: nftnl_chain, nftnl_chain_alloc, nftnl_chain_free, nftnl_chain_set_u32, nftnl_chain_set_u64,
    nftnl_chain_set_str, nftnl_chain_set_data, nftnl_chain_nlmsg_build_payload
}

object! {
    /// `struct nftnl_set`
    SetObject: nftnl_set, nftnl_set_alloc, nftnl_set_free, nftnl_set_set_u32, nftnl_set_set_u64,
    nftnl_set_set_str, nftnl_set_set_data, nftnl_set_nlmsg_build_payload
}

object! {
    /// `struct nftnl_rule`
    RuleObject: nftnl_rule, nftnl_rule_alloc, nftnl_rule_free, nftnl_rule_set_u32, nftnl_rule_set_u64,
    nftnl_rule_set_str, nftnl_rule_set_data, nftnl_rule_nlmsg_build_payload
}

object! {
    /// `struct nftnl_obj`
    StatefulObject: nftnl_obj, nftnl_obj_alloc, nftnl_obj_free, nftnl_obj_set_u32, nftnl_obj_set_u64,
    nftnl_obj_set_str, nftnl_obj_set_data, nftnl_obj_nlmsg_build_payload
}

impl RuleObject {
    /// Appends an expression; the rule owns it from now on.
    pub fn push(&mut self, expr: ExprObject) {
        // SAFETY: both pointers are live; ownership moves to the rule, hence the forget.
        unsafe { ffi::nftnl_rule_add_expr(self.0.as_ptr(), expr.0.as_ptr()) };
        std::mem::forget(expr);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_rule_fits_the_scratch_buffer() {
        let name = std::ffi::CString::new("n".repeat(255)).expect("no NUL");
        let mut rule = RuleObject::new();
        rule.str(ffi::NFTNL_RULE_TABLE, &name);
        rule.str(ffi::NFTNL_RULE_CHAIN, &name);
        rule.data(ffi::NFTNL_RULE_USERDATA, &[0; 256]);
        // The two largest kinds: two values of 64 bytes, and a name of 255.
        for number in 0..uapi::NFT_RULE_MAXEXPRS {
            rule.push(if number.is_multiple_of(2) {
                let mut expr = ExprObject::new(c"range").expect("known");
                expr.value(ffi::NFTNL_EXPR_RANGE_FROM_DATA, &[1; 64]);
                expr.value(ffi::NFTNL_EXPR_RANGE_TO_DATA, &[2; 64]);
                expr
            } else {
                let mut expr = ExprObject::new(c"lookup").expect("known");
                expr.str(ffi::NFTNL_EXPR_LOOKUP_SET, &name);
                expr
            });
        }
        let mut scratch = Scratch::default();
        let len = rule.message(&mut scratch, uapi::NFT_MSG_NEWRULE, 2, 0, 1).len();
        assert!(len > 128 * 128 && len < SCRATCH_LEN);
    }
}
