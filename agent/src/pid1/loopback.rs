//! Brings the loopback interface up, with one netlink request.

use std::io;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// rtnetlink(7): change an interface.
const RTM_NEWLINK: u16 = 16;
/// netlink(7): the answer is an error code, 0 for success.
const NLMSG_ERROR: u16 = 2;
/// netlink(7): this is a request, and wants that answer.
const NLM_F_REQUEST_ACK: u16 = 1 | 4;
/// netdevice(7).
const IFF_UP: u32 = 1;
/// The loopback interface is the first of every network namespace.
const LOOPBACK_INDEX: u32 = 1;
/// struct nlmsghdr (16 bytes) and struct ifinfomsg (16 bytes).
const REQUEST_BYTES: usize = 32;

/// Brings `lo` up.
///
/// # Errors
/// What the kernel answered; without networking there is no such socket.
pub(super) fn bring_up() -> io::Result<()> {
    let flags = SocketFlags::CLOEXEC;
    // Protocol 0 of netlink is NETLINK_ROUTE.
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    rustix::net::sendto(&socket, &request(), SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut answer = [0; 1024];
    let (read, _) = rustix::net::recv(&socket, &mut answer, RecvFlags::empty())?;
    check(answer.get(..read).unwrap_or_default())
}

fn request() -> [u8; REQUEST_BYTES] {
    let mut request = [0; REQUEST_BYTES];
    request[0..4].copy_from_slice(&(REQUEST_BYTES as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&RTM_NEWLINK.to_ne_bytes());
    request[6..8].copy_from_slice(&NLM_F_REQUEST_ACK.to_ne_bytes());
    request[20..24].copy_from_slice(&LOOPBACK_INDEX.to_ne_bytes());
    // ifi_flags, and ifi_change: which of them to change.
    request[24..28].copy_from_slice(&IFF_UP.to_ne_bytes());
    request[28..32].copy_from_slice(&IFF_UP.to_ne_bytes());
    request
}

fn check(answer: &[u8]) -> io::Result<()> {
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let code = answer.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, code) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(code)) => Err(io::Error::from_raw_os_error(-code)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_understood() {
        let mut answer = [0; 36];
        answer[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        check(&answer).unwrap();
        answer[16..20].copy_from_slice(&(-1i32).to_ne_bytes());
        assert_eq!(check(&answer).unwrap_err().raw_os_error(), Some(1));
        assert!(check(&answer[..10]).is_err());
    }
}
