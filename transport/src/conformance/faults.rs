//! A socket that does what Multikernel's may do: refuse a write with ENOSPC, lose bytes without a word, break.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use nix::libc;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::tools::Random;
use crate::framed::IoStream;

/// One write in so many meets the fault.
#[derive(Clone, Copy, Debug)]
pub(super) struct Faults {
    /// The write takes nothing: ENOSPC.
    pub(super) refusals: usize,
    /// Some of its bytes vanish.
    pub(super) losses: usize,
    /// The socket is gone, for both sides.
    pub(super) breaks: usize,
}

impl Default for Faults {
    /// Often enough that every behaviour meets them, rare enough that something gets through.
    fn default() -> Self {
        Self { refusals: 10, losses: 60, breaks: 60 }
    }
}

/// A socket whose writes meet faults, the same ones for the same seed.
pub(super) struct FaultySocket<S> {
    io: Option<S>,
    faults: Option<Faults>,
    random: Random,
}

impl<S> FaultySocket<S> {
    pub(super) fn new(io: S, faults: Option<Faults>, seed: u64) -> Self {
        Self { io: Some(io), faults, random: Random::new(seed) }
    }

    fn io(&mut self) -> io::Result<&mut S> {
        self.io.as_mut().ok_or_else(|| io::ErrorKind::ConnectionReset.into())
    }

    /// How many of `len` bytes to write, and how many to claim.
    fn fate(&mut self, len: usize) -> io::Result<(usize, usize)> {
        let Some(faults) = self.faults else { return Ok((len, len)) };
        if self.random.below(faults.refusals) == 0 {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        if self.random.below(faults.breaks) == 0 {
            // Dropped, so that the other side sees the end.
            self.io = None;
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if self.random.below(faults.losses) == 0 {
            return Ok((self.random.below(len), len));
        }
        // Sometimes only a part is taken.
        let taken = if self.random.below(4) == 0 { 1 + self.random.below(len) } else { len };
        Ok((taken, taken))
    }
}

impl<S: IoStream> AsyncRead for FaultySocket<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.io() {
            Ok(io) => Pin::new(io).poll_read(cx, buf),
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}

impl<S: IoStream> AsyncWrite for FaultySocket<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let (written, claimed) = self.fate(bytes.len())?;
        if written == 0 {
            return Poll::Ready(Ok(claimed));
        }
        match Pin::new(self.io()?).poll_write(cx, &bytes[..written]) {
            // What the socket did not take for want of room is no loss.
            Poll::Ready(Ok(taken)) if taken < written => Poll::Ready(Ok(taken)),
            Poll::Ready(Ok(_)) => Poll::Ready(Ok(claimed)),
            other => other,
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.faults.is_none() {
            return Pin::new(self.io()?).poll_write_vectored(cx, slices);
        }
        let first = slices.iter().find(|slice| !slice.is_empty());
        self.poll_write(cx, first.map_or(&[], |slice| slice))
    }

    fn is_write_vectored(&self) -> bool {
        self.faults.is_none() && self.io.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.io()?).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.io()?).poll_shutdown(cx)
    }
}
