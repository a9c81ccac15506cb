//! Byte streams.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::ReadBuf;

use crate::addr::Addr;
use crate::error::{Error, ResetCause};
use crate::mem::{OwnSpan, PeerSpan};
use crate::ring::{ByteRx, ByteTx, RingError, Wake, byte_pair};
use crate::shm::conn::{Conn, Direction, Live};
use crate::shm::wait::Waiter;
use crate::stream::Stream;

/// How much room is worth waking up for, at most: then a writer of long data and its reader both work in large pieces.
const WAKE_FOR_BYTES: usize = 64 * 1024;

pub(super) fn open(conn: &Arc<Conn>) -> Stream {
    let (tx, rx) = byte_pair(conn.own.clone(), conn.theirs.clone(), Live(Arc::clone(conn)));
    conn.adopt();
    let waiter = |direction| Waiter::new(conn, direction);
    let reader = ShmReader { rx, waiter: waiter(Direction::Reading), conn: Arc::clone(conn) };
    let writer = ShmWriter { tx, waiter: waiter(Direction::Writing), conn: Arc::clone(conn) };
    Stream::shm(reader, writer)
}

#[derive(Debug)]
pub(crate) struct ShmReader {
    rx: ByteRx<OwnSpan, PeerSpan, Live>,
    waiter: Waiter,
    conn: Arc<Conn>,
}

#[derive(Debug)]
pub(crate) struct ShmWriter {
    tx: ByteTx<OwnSpan, PeerSpan, Live>,
    waiter: Waiter,
    conn: Arc<Conn>,
}

impl ShmReader {
    pub(crate) fn addrs(&self) -> (Addr, Addr) {
        (self.conn.local, self.conn.remote)
    }

    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            match self.rx.try_read(buf.initialize_unfilled()) {
                Ok(n) => {
                    buf.advance(n);
                    self.finished();
                    return Poll::Ready(Ok(()));
                }
                Err(RingError::WouldBlock) => {
                    self.flush();
                    let Self { rx, waiter, conn } = self;
                    ready!(waiter.poll(cx, conn, || rx.arm()));
                }
                Err(error) => {
                    self.finished();
                    return Poll::Ready(Err(self.conn.error(error).into()));
                }
            }
        }
    }

    #[inline]
    fn finished(&mut self) {
        self.flush();
        self.waiter.done(&self.conn);
    }

    /// Gives room back to a writer that waits for it.
    #[inline]
    fn flush(&mut self) {
        if self.rx.flush() == Wake::Ring {
            self.conn.ring();
        }
    }
}

impl Drop for ShmReader {
    fn drop(&mut self) {
        if matches!(self.rx.try_read(&mut [0]), Ok(n) if n > 0) {
            self.conn.data_lost();
        }
        self.rx.disarm();
        self.rx.shutdown();
        self.finished();
    }
}

impl ShmWriter {
    pub(crate) fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            match self.tx.try_write(data) {
                Ok(n) => {
                    self.waiter.done(&self.conn);
                    // At once, as with a socket: few callers flush.
                    return Poll::Ready(self.flush().map(|()| n));
                }
                Err(RingError::WouldBlock) => {
                    self.flush()?;
                    let Self { tx, waiter, conn } = self;
                    // Never more than half the ring: the reader gives room back from a quarter on.
                    let half = tx.own().layout().byte_capacity() / 2;
                    let wanted = data.len().min(WAKE_FOR_BYTES).min(half);
                    ready!(waiter.poll(cx, conn, || tx.arm(wanted)));
                }
                Err(error) => {
                    self.waiter.done(&self.conn);
                    return Poll::Ready(Err(self.conn.error(error).into()));
                }
            }
        }
    }

    pub(crate) fn poll_flush(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.flush())
    }

    pub(crate) fn poll_shutdown(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tx.shutdown();
        match self.tx.flush() {
            Ok(Wake::Ring) => self.conn.ring(),
            // Whoever has left needs no end to be told; a socket does not mind either.
            Ok(Wake::NotNeeded) | Err(RingError::Reset(ResetCause::PeerClosed)) => {}
            Err(error) => return Poll::Ready(Err(self.conn.error(error).into())),
        }
        Poll::Ready(Ok(()))
    }

    #[inline]
    fn flush(&mut self) -> io::Result<()> {
        match self.tx.flush() {
            Ok(Wake::NotNeeded) => Ok(()),
            Ok(Wake::Ring) => {
                self.conn.ring();
                Ok(())
            }
            Err(error) => Err(Error::into(self.conn.error(error))),
        }
    }
}

impl Drop for ShmWriter {
    fn drop(&mut self) {
        self.tx.disarm();
        self.tx.shutdown();
        let _ = self.flush();
        self.waiter.done(&self.conn);
    }
}
