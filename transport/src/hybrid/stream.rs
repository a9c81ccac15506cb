//! [`HybridStream`]: a Unix stream that knows which vsock addresses it stands for.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

use crate::addr::Addr;

/// One side of a hybrid connection.
#[derive(Debug)]
pub struct HybridStream {
    io: UnixStream,
    local: Addr,
    peer: Addr,
}

impl HybridStream {
    pub(crate) fn new(io: UnixStream, local: Addr, peer: Addr) -> Self {
        Self { io, local, peer }
    }

    /// The other side; its port is [`Port::ANY`](crate::Port::ANY) where the convention does not tell it.
    pub fn peer_addr(&self) -> Addr {
        self.peer
    }

    /// This side.
    pub fn local_addr(&self) -> Addr {
        self.local
    }

    /// Whom this process talks to on the same machine, as the kernel saw it when the connection was made.
    pub fn peer_credentials(&self) -> io::Result<tokio::net::unix::UCred> {
        self.io.peer_cred()
    }
}

impl AsyncRead for HybridStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for HybridStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
