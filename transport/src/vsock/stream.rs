//! [`VsockStream`]: an AF_VSOCK connection that knows its addresses and rides out a full Multikernel ring.

use std::future::Future;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nix::libc;
use rustix::net::{SendAncillaryBuffer, SendFlags, Shutdown};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::VsockTransport;
use crate::addr::Addr;

/// Payload of one packet on Multikernel's ring: 4096 bytes less its own header (24) and the vsock header (44).
const MULTIKERNEL_PACKET_BYTES: usize = 4096 - 24 - 44;
/// First and longest pause before a write that found Multikernel's ring full is tried again.
const PAUSE_FIRST: Duration = Duration::from_micros(250);
const PAUSE_MAX: Duration = Duration::from_millis(20);

/// One side of an AF_VSOCK connection.
#[derive(Debug)]
pub struct VsockStream {
    io: AsyncFd<OwnedFd>,
    local: Addr,
    peer: Addr,
    /// Set on Multikernel's transport, whose ring tells of being full by ENOSPC and never of having room again.
    pacing: Option<Pacing>,
    /// When it has room again, as every transport but that one does.
    tells_of_room: bool,
    /// We have shut down our direction. The kernel reports such a socket as writable no more (`vsock_poll`), so a write that
    /// waited for that would wait for ever instead of failing.
    has_shut_down: bool,
}

#[derive(Debug, Default)]
struct Pacing {
    pause: Option<Pin<Box<Sleep>>>,
    refusals: u32,
}

impl VsockStream {
    pub(super) fn new(
        io: tokio_vsock::VsockStream,
        transport: VsockTransport,
        local: Addr,
        peer: Addr,
    ) -> io::Result<Self> {
        let tells_of_room = transport != VsockTransport::Multikernel;
        let pacing = (!tells_of_room).then(Pacing::default);
        #[expect(
            deprecated,
            reason = "an OwnedFd stays open and in place, which is all that its successor asks"
        )]
        let io = AsyncFd::new(OwnedFd::from(io))?;
        Ok(Self { io, local, peer, pacing, tells_of_room, has_shut_down: false })
    }

    /// The stream as the kernel has it: a full ring of Multikernel's is an error, ENOSPC, for the caller to ride out.
    pub(crate) fn without_pacing(self) -> Self {
        Self { pacing: None, ..self }
    }

    /// The other side.
    pub fn peer_addr(&self) -> Addr {
        self.peer
    }

    /// This side.
    pub fn local_addr(&self) -> Addr {
        self.local
    }
}

impl Pacing {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        Poll::Ready(())
    }

    fn back_off(&mut self) {
        let pause = PAUSE_FIRST.saturating_mul(1 << self.refusals.min(10)).min(PAUSE_MAX);
        self.refusals = self.refusals.saturating_add(1);
        self.pause = Some(Box::pin(tokio::time::sleep(pause)));
    }
}

/// Writes what `write` writes, once the socket takes something. When that is less than `len_told`, the socket is full and will tell of room.
fn poll_send(
    io: &AsyncFd<OwnedFd>,
    cx: &mut Context<'_>,
    len_told: usize,
    write: impl Fn(&OwnedFd) -> rustix::io::Result<usize>,
) -> Poll<io::Result<usize>> {
    loop {
        let mut ready = ready!(io.poll_write_ready(cx))?;
        match ready.try_io(|fd| Ok(write(fd.get_ref())?)) {
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(written) => {
                // To ask once more would be a system call for nothing.
                if written.as_ref().is_ok_and(|written| *written < len_told) {
                    ready.clear_ready();
                }
                return Poll::Ready(written);
            }
            Err(_would_block) => {}
        }
    }
}

/// Never a signal for who writes to a socket whose peer has gone.
fn send(fd: &OwnedFd, bytes: &[u8]) -> rustix::io::Result<usize> {
    rustix::net::send(fd, bytes, SendFlags::NOSIGNAL)
}

fn send_slices(fd: &OwnedFd, slices: &[IoSlice<'_>]) -> rustix::io::Result<usize> {
    rustix::net::sendmsg(fd, slices, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL)
}

impl AsyncRead for VsockStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.io.poll_read_ready(cx))?;
            let room = buf.initialize_unfilled();
            match ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut *room)?)) {
                Ok(Ok(read)) => {
                    buf.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for VsockStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.has_shut_down {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let Some(pacing) = &mut this.pacing else {
            let len_told = if this.tells_of_room { bytes.len() } else { 0 };
            return poll_send(&this.io, cx, len_told, |fd| send(fd, bytes));
        };
        // One packet a write: a refusal then never hides how much of a longer write had gone.
        let packet = &bytes[..bytes.len().min(MULTIKERNEL_PACKET_BYTES)];
        loop {
            ready!(pacing.poll_ready(cx));
            match ready!(poll_send(&this.io, cx, 0, |fd| send(fd, packet))) {
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => pacing.back_off(),
                other => {
                    pacing.refusals = 0;
                    return Poll::Ready(other);
                }
            }
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if !self.tells_of_room || self.has_shut_down {
            let first = slices.iter().find(|slice| !slice.is_empty());
            return self.poll_write(cx, first.map_or(&[], |slice| slice));
        }
        let len = slices.iter().map(|slice| slice.len()).sum();
        poll_send(&self.io, cx, len, |fd| send_slices(fd, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.tells_of_room
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.has_shut_down = true;
        rustix::net::shutdown(self.io.get_ref(), Shutdown::Write)?;
        Poll::Ready(Ok(()))
    }
}
