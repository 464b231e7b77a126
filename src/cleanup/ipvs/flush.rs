//! The removal of all virtual servers of a network namespace, over generic netlink, as `ipvsadm --clear` does it.
//!
//! Numbers are those of `linux/genetlink.h` and `linux/ip_vs.h`.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nft::netlink::{Writer, find, messages};
use nix::libc;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

/// The family that knows the numbers of the others, and the question for one.
const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

const IPVS: &str = "IPVS";
const IPVS_CMD_FLUSH: u8 = 17;

/// Every command's first version.
const VERSION: u8 = 1;
/// `struct genlmsghdr`: command, version, reserved.
const GENL_HEADER_LEN: usize = 4;

/// Removes the virtual servers of the calling thread's network namespace; their connections are forgotten with them.
pub(super) fn flush() -> io::Result<()> {
    let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkGeneric)?;
    let family = request(&fd, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, |writer| writer.attr_str(CTRL_ATTR_FAMILY_NAME, IPVS))?;
    let family = family.ok_or(io::ErrorKind::InvalidData)?;
    request(&fd, family, IPVS_CMD_FLUSH, |_| {}).map(drop)
}

/// Sends one request and waits for its acknowledgement; returns the family's number if one was told.
fn request(fd: &OwnedFd, family: u16, command: u8, attributes: impl FnOnce(&mut Writer)) -> io::Result<Option<u16>> {
    let mut writer = Writer::new();
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    let message = writer.begin(family, flags, 0, &[command, VERSION, 0, 0]);
    attributes(&mut writer);
    writer.end(message);
    send(fd.as_raw_fd(), writer.as_bytes(), MsgFlags::empty())?;
    let mut buffer = [0; 16 << 10];
    let mut told = None;
    loop {
        let received = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        for message in messages(&buffer[..received]) {
            if message.kind == libc::NLMSG_ERROR as u16 {
                let errno = message.payload.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes));
                return match errno {
                    Some(0) => Ok(told),
                    Some(errno) => Err(io::Error::from_raw_os_error(-errno)),
                    None => Err(io::ErrorKind::InvalidData.into()),
                };
            }
            let attributes = message.payload.get(GENL_HEADER_LEN..).unwrap_or_default();
            let number = find(attributes, CTRL_ATTR_FAMILY_ID).and_then(|number| number.value.try_into().ok());
            told = told.or(number.map(u16::from_ne_bytes));
        }
    }
}
