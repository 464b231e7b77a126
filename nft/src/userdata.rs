//! User data: the bytes that the kernel keeps for user space beside every object, in libnftnl's type, length, value form.
//!
//! Comments live here, and the byte order of a set's key and data, without which `nft list` prints host-endian numbers swapped.
//!
//! Invariants: a comment is NUL-terminated and at most [`MAX_COMMENT`] bytes; reading
//! stops at the first malformed length. Proven by the round-trip test below.

use crate::uapi;

/// Bytes of the longest comment. The header promises 256 bytes of user data, but for elements the kernel keeps lengths in 8 bits
/// (`nft_add_set_elem`): it refuses 255 and silently forgets 256. Type, length and NUL take 3 of the 254 that are left. nft's own
/// command line accepts 128 but lists longer ones.
pub(crate) const MAX_COMMENT: usize = uapi::NFT_USERDATA_MAXLEN - 2 - 3;

/// Appends an entry.
pub(crate) fn put(out: &mut Vec<u8>, kind: u8, value: &[u8]) {
    out.push(kind);
    out.push(u8::try_from(value.len()).expect("user data values are short"));
    out.extend_from_slice(value);
}

/// Appends a comment.
pub(crate) fn put_comment(out: &mut Vec<u8>, kind: u8, comment: &str) {
    out.push(kind);
    out.push(u8::try_from(comment.len() + 1).expect("the caller checked the length"));
    out.extend_from_slice(comment.as_bytes());
    out.push(0);
}

/// The comment among the entries.
pub(crate) fn comment(mut bytes: &[u8], kind: u8) -> Option<&str> {
    while let [this, len, rest @ ..] = bytes {
        let value = rest.get(..usize::from(*len))?;
        if *this == kind {
            return std::str::from_utf8(value.strip_suffix(&[0]).unwrap_or(value)).ok();
        }
        bytes = &rest[value.len()..];
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn comments_come_back(text in "[a-z/:]{0,251}", order in any::<u32>()) {
            let mut bytes = Vec::new();
            put(&mut bytes, 1, &order.to_ne_bytes());
            put_comment(&mut bytes, 7, &text);
            prop_assert_eq!(comment(&bytes, 7), Some(text.as_str()));
            prop_assert_eq!(comment(&bytes, 3), None);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), kind in 0u8..4) {
            let _ = comment(&bytes, kind);
        }
    }
}
