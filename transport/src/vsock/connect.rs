//! Opening and connecting AF_VSOCK sockets: raw, so that options can be set before connect, then wrapped.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::libc;
use nix::sys::socket::sockopt::SetStruct;
use nix::sys::socket::{AddressFamily, SetSockOpt, SockFlag, SockType, socket};
use nix::sys::time::{TimeVal, TimeValLike};
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;
use tokio_vsock::VsockStream;

use super::VsockTransport;
use crate::addr::{Addr, Cid, Port};
use crate::error::{Error, Result};

/// `SO_VM_SOCKETS_TRANSPORT` of Multikernel Linux.
const SO_VM_SOCKETS_TRANSPORT: libc::c_int = 9;
/// `VSOCK_TRANSPORT_MULTIKERNEL`.
const TRANSPORT_MULTIKERNEL: libc::c_int = 1;
/// `SO_VM_SOCKETS_BUFFER_SIZE`, and how large that may be made.
const SO_VM_SOCKETS_BUFFER_SIZE: libc::c_int = 0;
const SO_VM_SOCKETS_BUFFER_MAX_SIZE: libc::c_int = 2;
/// `SO_VM_SOCKETS_CONNECT_TIMEOUT`, the form that takes a `struct timeval`.
const SO_VM_SOCKETS_CONNECT_TIMEOUT: libc::c_int = 6;

#[derive(Clone, Copy, Debug)]
struct Transport;
nix::setsockopt_impl!(
    Transport,
    libc::AF_VSOCK,
    SO_VM_SOCKETS_TRANSPORT,
    libc::c_int,
    SetStruct<'_, libc::c_int>
);

#[derive(Clone, Copy, Debug)]
struct ConnectTimeout;
nix::setsockopt_impl!(
    ConnectTimeout,
    libc::AF_VSOCK,
    SO_VM_SOCKETS_CONNECT_TIMEOUT,
    TimeVal,
    SetStruct<'_, TimeVal>
);

#[derive(Clone, Copy, Debug)]
struct BufferBytes;
nix::setsockopt_impl!(BufferBytes, libc::AF_VSOCK, SO_VM_SOCKETS_BUFFER_SIZE, u64, SetStruct<'_, u64>);

#[derive(Clone, Copy, Debug)]
struct BufferBytesMax;
nix::setsockopt_impl!(BufferBytesMax, libc::AF_VSOCK, SO_VM_SOCKETS_BUFFER_MAX_SIZE, u64, SetStruct<'_, u64>);

/// A non-blocking stream socket that uses `transport`, with buffers of so many bytes. Those that a listening one accepts have the same.
pub(super) fn open(transport: VsockTransport, buffer_bytes: Option<u32>) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
    if transport == VsockTransport::Multikernel {
        Transport.set(&fd, &TRANSPORT_MULTIKERNEL)?;
    }
    if let Some(bytes) = buffer_bytes.map(u64::from) {
        BufferBytesMax.set(&fd, &bytes)?;
        BufferBytes.set(&fd, &bytes)?;
    }
    Ok(fd)
}

/// Ports that only privileged programs may have, as rresvport(3) gives them, but for the highest: on Multikernel Linux that is the port of kerf's
/// agent in every kernel, which could not listen there.
const PRIVILEGED: std::ops::Range<u32> = 512..1023;

/// Binds `socket` to a port that only privileged programs may have, if this is one: whoever accepts it can see that no other program
/// of this kernel made it. From the highest down.
pub(super) fn bind_privileged(socket: &OwnedFd) -> io::Result<()> {
    for port in PRIVILEGED.rev().map(Port) {
        match nix::sys::socket::bind(socket.as_raw_fd(), &super::sockaddr(Addr::new(Cid::ANY, port))) {
            Err(nix::Error::EADDRINUSE) => {}
            // Then it is a port like any other.
            Ok(()) | Err(nix::Error::EACCES | nix::Error::EPERM) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Connects `socket` to `addr`.
pub(super) async fn connect(socket: OwnedFd, addr: Addr, deadline: Duration) -> Result<VsockStream> {
    try_connect(socket, addr, deadline).await.map_err(|source| explain(addr, deadline, source))
}

/// The same, with the kernel's own word for what went wrong.
pub(super) async fn try_connect(socket: OwnedFd, addr: Addr, deadline: Duration) -> io::Result<VsockStream> {
    // The kernel gives up after 2 s by itself: let the caller's deadline decide. Refused only by kernels without it.
    let kernel_deadline = deadline.saturating_add(Duration::from_secs(1)).min(Duration::from_secs(3600));
    let _ = ConnectTimeout.set(&socket, &TimeVal::milliseconds(kernel_deadline.as_millis() as i64));
    match nix::sys::socket::connect(socket.as_raw_fd(), &super::sockaddr(addr)) {
        Err(nix::Error::EINPROGRESS) => {
            #[expect(
                deprecated,
                reason = "an OwnedFd stays open and in place, which is all that its successor asks"
            )]
            let waiting = AsyncFd::new(socket)?;
            let silent = |_| io::Error::from_raw_os_error(libc::ETIMEDOUT);
            timeout(deadline, finished(&waiting)).await.map_err(silent)??;
            wrap(waiting.into_inner())
        }
        Ok(()) => wrap(socket),
        Err(error) => Err(error.into()),
    }
}

/// Who answered a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A program that listens there, or will take the call from its backlog.
    Program,
    /// The kernel, which refused it: nobody listens there.
    Kernel,
    /// Nobody within the deadline.
    Nobody,
}

/// Who answered, by what came of a call. An error if nothing was asked of anybody.
pub(super) fn answered(outcome: io::Result<VsockStream>) -> io::Result<Answer> {
    match outcome {
        Ok(_) => Ok(Answer::Program),
        Err(error) => match error.raw_os_error() {
            Some(libc::ECONNRESET | libc::ECONNREFUSED) => Ok(Answer::Kernel),
            Some(libc::ETIMEDOUT) => Ok(Answer::Nobody),
            _ => Err(error),
        },
    }
}

fn wrap(socket: OwnedFd) -> io::Result<VsockStream> {
    VsockStream::new(vsock::VsockStream::from(socket))
}

async fn finished(socket: &AsyncFd<OwnedFd>) -> io::Result<()> {
    loop {
        let mut ready = socket.writable().await?;
        rustix::net::sockopt::socket_error(socket.get_ref())??;
        // Writable without an error and without a peer is a readiness that was not about us.
        if rustix::net::getpeername(socket.get_ref()).is_ok() {
            return Ok(());
        }
        ready.clear_ready();
    }
}

fn explain(addr: Addr, deadline: Duration, source: io::Error) -> Error {
    let refused = |reason: &str| Error::Refused { addr, reason: reason.into() };
    match source.raw_os_error() {
        Some(libc::ECONNRESET | libc::ECONNREFUSED) => {
            refused("its kernel answers, but nobody listens there or the backlog is full")
        }
        Some(libc::ENODEV | libc::ENETUNREACH | libc::EADDRNOTAVAIL) => {
            refused("this kernel has no vsock transport that leads to that cid")
        }
        Some(libc::ETIMEDOUT) => Error::TimedOut { addr, deadline_ms: deadline.as_millis() as u64 },
        _ => Error::io(format!("connecting to {addr}"), source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_of_the_agent_of_kerf_is_left_to_it() {
        assert!(!PRIVILEGED.contains(&1023) && PRIVILEGED.end < 1024);
    }

    #[test]
    fn refusal_is_an_answer_silence_is_none_and_what_leads_nowhere_was_never_asked() {
        let outcome = |errno| answered(Err(io::Error::from_raw_os_error(errno)));
        for refused in [libc::ECONNRESET, libc::ECONNREFUSED] {
            assert_eq!(outcome(refused).unwrap(), Answer::Kernel);
        }
        assert_eq!(outcome(libc::ETIMEDOUT).unwrap(), Answer::Nobody);
        for nowhere in [libc::ENODEV, libc::ENETUNREACH, libc::EADDRNOTAVAIL, libc::EMFILE] {
            assert!(outcome(nowhere).is_err(), "{nowhere}");
        }
    }
}
