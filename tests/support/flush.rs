//! Makes a namespace's connection tracking forget everything: a client's port that comes again leads to nobody.

/// What `conntrack -F` sends, in the calling thread's namespace: a deletion that names no entry (`IPCTNL_MSG_CT_DELETE` without a tuple). Ours cannot be made to.
pub fn flush_conntrack() {
    use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
    let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)
        .expect("a socket");
    let mut writer = nft::netlink::Writer::new();
    // CT_DELETE of subsystem 1; REQUEST and ACK; AF_UNSPEC.
    let message = writer.begin(0x102, 0x5, 1, &[0, 0, 0, 0]);
    writer.end(message);
    let fd = std::os::fd::AsRawFd::as_raw_fd(&fd);
    send(fd, writer.as_bytes(), MsgFlags::empty()).expect("sent");
    let mut answer = [0; 256];
    recv(fd, &mut answer, MsgFlags::empty()).expect("an answer");
    assert_eq!(answer[16..20], [0; 4], "the kernel flushes");
}
