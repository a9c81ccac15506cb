//! Message boundaries on a byte stream: each message is its length (u32, little endian) and then its bytes.

use std::fmt;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, ReadHalf, WriteHalf};

use crate::addr::Addr;
use crate::error::{Error, ResetCause, Result};

/// Any byte stream that can carry messages.
pub trait IoStream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> IoStream for T {}

const HEADER_BYTES: usize = 4;
/// Bytes that may wait in the write buffer before `poll_send` is pending: two maximal Unix-socket writes. None for the tests of the RPC layer under
/// shuttle, whose senders are to find no room often.
const WRITE_BUFFER_BYTES: usize = if cfg!(shuttle) { 0 } else { 256 * 1024 };
/// Room made before each read.
const READ_CHUNK_BYTES: usize = 64 * 1024;

pub(crate) struct Framed;

pub(crate) struct FramedSender {
    io: WriteHalf<Box<dyn IoStream>>,
    buffer: BytesMut,
    peer: Addr,
    max_len: usize,
    shut: bool,
}

pub(crate) struct FramedReceiver {
    io: ReadHalf<Box<dyn IoStream>>,
    buffer: BytesMut,
    local: Addr,
    peer: Addr,
    max_len: usize,
}

impl Framed {
    pub(crate) fn split(
        io: impl IoStream,
        local: Addr,
        peer: Addr,
        max_len: usize,
    ) -> (FramedSender, FramedReceiver) {
        let (read, write) = tokio::io::split(Box::new(io) as Box<dyn IoStream>);
        (
            FramedSender { io: write, buffer: BytesMut::new(), peer, max_len, shut: false },
            FramedReceiver { io: read, buffer: BytesMut::new(), local, peer, max_len },
        )
    }
}

impl FramedSender {
    pub(crate) fn max_len(&self) -> usize {
        self.max_len
    }

    /// The parts are one message.
    pub(crate) fn poll_send(&mut self, cx: &mut Context<'_>, parts: &[&[u8]]) -> Poll<Result<()>> {
        let len = parts.iter().map(|part| part.len()).sum();
        if len > self.max_len {
            return Poll::Ready(Err(Error::TooLong { len, max: self.max_len }));
        }
        if self.shut {
            return Poll::Ready(Err(Error::Shutdown { peer: self.peer }));
        }
        while self.buffer.len() > WRITE_BUFFER_BYTES {
            ready!(self.poll_write_some(cx))?;
        }
        self.buffer.reserve(HEADER_BYTES + len);
        self.buffer.extend_from_slice(&(len as u32).to_le_bytes());
        for part in parts {
            self.buffer.extend_from_slice(part);
        }
        Poll::Ready(Ok(()))
    }

    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        while !self.buffer.is_empty() {
            ready!(self.poll_write_some(cx))?;
        }
        Pin::new(&mut self.io).poll_flush(cx).map_err(|source| self.lost(source))
    }

    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.shut = true;
        ready!(self.poll_flush(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx).map_err(|source| self.lost(source))
    }

    fn poll_write_some(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let written =
            ready!(Pin::new(&mut self.io).poll_write(cx, &self.buffer)).map_err(|e| self.lost(e))?;
        if written == 0 {
            return Poll::Ready(Err(Error::Reset { peer: self.peer, cause: ResetCause::PeerClosed }));
        }
        self.buffer.advance(written);
        Poll::Ready(Ok(()))
    }

    fn lost(&self, source: std::io::Error) -> Error {
        lost(self.peer, source)
    }
}

impl FramedReceiver {
    pub(crate) fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>>> {
        loop {
            if let Some(message) = self.take_message()? {
                return Poll::Ready(Ok(Some(message)));
            }
            self.buffer.reserve(READ_CHUNK_BYTES);
            let read = ready!(self.poll_read_some(cx))?;
            if read == 0 {
                return Poll::Ready(if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(Error::Reset { peer: self.peer, cause: ResetCause::PeerClosed })
                });
            }
        }
    }

    pub(crate) fn peer_addr(&self) -> Addr {
        self.peer
    }

    pub(crate) fn local_addr(&self) -> Addr {
        self.local
    }

    fn take_message(&mut self) -> Result<Option<Bytes>> {
        let Some(header) = self.buffer.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let len = u32::from_le_bytes(*header) as usize;
        if len > self.max_len {
            let cause = ResetCause::PeerMisbehaved(format!(
                "announced a message of {len} bytes where at most {} are agreed",
                self.max_len
            ));
            return Err(Error::Reset { peer: self.peer, cause });
        }
        if self.buffer.len() < HEADER_BYTES + len {
            self.buffer.reserve(HEADER_BYTES + len - self.buffer.len());
            return Ok(None);
        }
        self.buffer.advance(HEADER_BYTES);
        Ok(Some(self.buffer.split_to(len).freeze()))
    }

    fn poll_read_some(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize>> {
        // Not zeroed: that would cost more than reading a small message.
        let mut chunk = [const { MaybeUninit::uninit() }; 16 * 1024];
        let mut read = ReadBuf::uninit(&mut chunk);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut read)).map_err(|e| lost(self.peer, e))?;
        self.buffer.extend_from_slice(read.filled());
        Poll::Ready(Ok(read.filled().len()))
    }
}

fn lost(peer: Addr, source: std::io::Error) -> Error {
    use std::io::ErrorKind as K;
    match source.kind() {
        K::ConnectionReset | K::BrokenPipe | K::ConnectionAborted => {
            Error::Reset { peer, cause: ResetCause::PeerClosed }
        }
        _ => Error::io(format!("talking to {peer}"), source),
    }
}

impl Drop for FramedSender {
    fn drop(&mut self) {
        // The receiving half keeps the socket open, so the end must be said. What was taken, never flushed and does not fit now is
        // lost with us; then the end comes early, and amid a message as a reset.
        let mut cx = Context::from_waker(Waker::noop());
        if self.poll_shutdown(&mut cx).is_pending() {
            let _ = Pin::new(&mut self.io).poll_shutdown(&mut cx);
        }
    }
}

impl fmt::Debug for FramedSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FramedSender")
            .field("peer", &self.peer)
            .field("buffered", &self.buffer.len())
            .finish()
    }
}

impl fmt::Debug for FramedReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FramedReceiver")
            .field("peer", &self.peer)
            .field("buffered", &self.buffer.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;
    use crate::addr::{Cid, Port};

    #[tokio::test]
    async fn sender_dropped_with_more_than_fits_still_ends_the_peers_receiving() {
        let (near, far) = tokio::io::duplex(64);
        let addr = Addr::new(Cid(3), Port(1));
        let (mut sender, _kept) = Framed::split(near, addr, addr, 1000);
        let (_, mut receiver) = Framed::split(far, addr, addr, 1000);
        poll_fn(|cx| sender.poll_send(cx, &[&[7; 1000]])).await.unwrap();
        drop(sender);
        let received = poll_fn(|cx| receiver.poll_recv(cx));
        let received = tokio::time::timeout(Duration::from_secs(20), received).await;
        let received = received.expect("the peer waits for ever");
        assert!(matches!(received, Err(Error::Reset { .. })), "{received:?}");
    }
}
