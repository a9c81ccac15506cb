//! Descriptors over a Unix socket, beside the first message of a broker.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use tokio::io::Interest;
use tokio::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

/// The most that are ever passed at once.
const FDS_MAX: usize = 5;

/// Sends `data` with `fds` beside it, or nothing of either. The socket must have room: it is fresh.
pub(crate) fn send(socket: impl AsFd, data: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let sent = rustix::net::sendmsg(socket, &[IoSlice::new(data)], &mut ancillary, SendFlags::NOSIGNAL)?;
    if sent == data.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Sends all of `data`, once there is room, with `passed` beside it if there is something to pass.
pub(crate) async fn pass(
    socket: &UnixStream,
    mut data: &[u8],
    mut passed: Option<OwnedFd>,
) -> io::Result<()> {
    while !data.is_empty() {
        socket.writable().await?;
        let outcome = match &passed {
            Some(fd) => {
                let fds = [fd.as_fd()];
                socket.try_io(Interest::WRITABLE, || send(socket, data, &fds)).map(|()| data.len())
            }
            None => socket.try_write(data),
        };
        match outcome {
            Ok(written) => {
                data = &data[written..];
                passed = None;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Receives some bytes onto the end of `data`, and the descriptors that came beside them. 0 bytes: the end.
pub(crate) fn receive(socket: impl AsFd, data: &mut Vec<u8>, fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut chunk = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut chunk)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    data.extend_from_slice(&chunk[..received.bytes]);
    Ok(received.bytes)
}
