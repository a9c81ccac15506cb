//! [`Stream`]: a byte stream in both directions, on every backend.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, ReadHalf, WriteHalf};

use crate::addr::Addr;
use crate::framed::IoStream;
use crate::shm::{ShmReader, ShmWriter};

/// A byte stream: [`AsyncRead`] + [`AsyncWrite`], half-close by `shutdown`, [`Stream::split`] for two tasks.
///
/// Errors are [`std::io::Error`]s that carry the [`Error`](crate::Error) of this crate as their inner error. Dropping
/// it behaves as closing a socket: the peer reads what was written and then the end; if there was data from the peer
/// still unread, the peer gets a reset.
#[derive(Debug)]
pub struct Stream {
    reader: StreamReader,
    writer: StreamWriter,
}

/// The reading half of a [`Stream`].
#[derive(Debug)]
pub struct StreamReader {
    kind: ReaderKind,
    local: Addr,
    peer: Addr,
}

/// The writing half of a [`Stream`]. Dropping it ends the peer's reading half after what was written.
#[derive(Debug)]
pub struct StreamWriter {
    kind: WriterKind,
    local: Addr,
    peer: Addr,
}

enum ReaderKind {
    Io(ReadHalf<Box<dyn IoStream>>),
    Shm(Box<ShmReader>),
}

enum WriterKind {
    Io(WriteHalf<Box<dyn IoStream>>),
    Shm(Box<ShmWriter>),
}

impl Stream {
    /// A stream over any byte stream (a socket of another backend).
    pub fn from_io(io: impl IoStream, local: Addr, peer: Addr) -> Self {
        let (read, write) = tokio::io::split(Box::new(io) as Box<dyn IoStream>);
        Self {
            reader: StreamReader { kind: ReaderKind::Io(read), local, peer },
            writer: StreamWriter { kind: WriterKind::Io(write), local, peer },
        }
    }

    pub(crate) fn shm(reader: ShmReader, writer: ShmWriter) -> Self {
        let (local, peer) = reader.addrs();
        Self {
            reader: StreamReader { kind: ReaderKind::Shm(Box::new(reader)), local, peer },
            writer: StreamWriter { kind: WriterKind::Shm(Box::new(writer)), local, peer },
        }
    }

    /// Both directions, to be used apart.
    pub fn split(self) -> (StreamReader, StreamWriter) {
        (self.reader, self.writer)
    }

    /// The address of the other side.
    pub fn peer_addr(&self) -> Addr {
        self.reader.peer
    }

    /// The address of this side.
    pub fn local_addr(&self) -> Addr {
        self.reader.local
    }
}

impl StreamReader {
    /// The address of the other side.
    pub fn peer_addr(&self) -> Addr {
        self.peer
    }

    /// The address of this side.
    pub fn local_addr(&self) -> Addr {
        self.local
    }
}

impl StreamWriter {
    /// The address of the other side.
    pub fn peer_addr(&self) -> Addr {
        self.peer
    }

    /// The address of this side.
    pub fn local_addr(&self) -> Addr {
        self.local
    }
}

impl AsyncRead for StreamReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.kind {
            ReaderKind::Io(io) => Pin::new(io).poll_read(cx, buf),
            ReaderKind::Shm(shm) => shm.poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for StreamWriter {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.kind {
            WriterKind::Io(io) => Pin::new(io).poll_write(cx, buf),
            WriterKind::Shm(shm) => shm.poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.kind {
            WriterKind::Io(io) => Pin::new(io).poll_flush(cx),
            WriterKind::Shm(shm) => shm.poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.kind {
            WriterKind::Io(io) => Pin::new(io).poll_shutdown(cx),
            WriterKind::Shm(shm) => shm.poll_shutdown(cx),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.reader).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.writer).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(cx)
    }
}

impl Drop for StreamWriter {
    fn drop(&mut self) {
        match &mut self.kind {
            // The other half keeps the socket open, so the end must be said. Sockets take it at once.
            WriterKind::Io(io) => {
                let _ = Pin::new(io).poll_shutdown(&mut Context::from_waker(Waker::noop()));
            }
            WriterKind::Shm(_) => {} // says so itself
        }
    }
}

impl fmt::Debug for ReaderKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(_) => f.write_str("Io"),
            Self::Shm(_) => f.write_str("Shm"),
        }
    }
}

impl fmt::Debug for WriterKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(_) => f.write_str("Io"),
            Self::Shm(_) => f.write_str("Shm"),
        }
    }
}
