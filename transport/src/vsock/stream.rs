//! [`VsockStream`]: an AF_VSOCK connection that knows its addresses and rides out a full Multikernel ring.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nix::libc;
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
    io: tokio_vsock::VsockStream,
    local: Addr,
    peer: Addr,
    /// Set on Multikernel's transport, whose ring tells of being full by ENOSPC and never of having room again.
    pacing: Option<Pacing>,
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
    ) -> Self {
        let pacing = (transport == VsockTransport::Multikernel).then(Pacing::default);
        Self { io, local, peer, pacing, has_shut_down: false }
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

impl AsyncRead for VsockStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for VsockStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.has_shut_down {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let Some(pacing) = &mut this.pacing else {
            return Pin::new(&mut this.io).poll_write(cx, bytes);
        };
        // One packet a write: a refusal then never hides how much of a longer write had gone.
        let packet = &bytes[..bytes.len().min(MULTIKERNEL_PACKET_BYTES)];
        loop {
            ready!(pacing.poll_ready(cx));
            match ready!(Pin::new(&mut this.io).poll_write(cx, packet)) {
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => pacing.back_off(),
                other => {
                    pacing.refusals = 0;
                    return Poll::Ready(other);
                }
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.has_shut_down = true;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
