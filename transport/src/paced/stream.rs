//! [`PacedStream`]: one stream of a link.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::core::{Refusal, StreamError, StreamId};
use super::shared::User;
use crate::addr::Addr;
use crate::error::{Error, Result};
use crate::ports::NoPlace;

/// One stream of a link. What was written goes without a flush. Dropping it behaves as closing a socket: the peer reads what was written
/// and then the end; a reset if there was something from it still unread.
#[derive(Debug)]
pub struct PacedStream {
    user: Arc<User>,
    id: StreamId,
    local: Addr,
    peer: Addr,
}

impl PacedStream {
    pub(super) fn new(user: Arc<User>, id: StreamId, local: Addr, peer: Addr) -> Self {
        Self { user, id, local, peer }
    }

    /// The other side.
    pub fn peer_addr(&self) -> Addr {
        self.peer
    }

    /// This side.
    pub fn local_addr(&self) -> Addr {
        self.local
    }

    /// What came of the call that this stream is.
    pub(super) fn poll_answer(&self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let mut state = self.user.0.lock();
        match state.link.poll_answer(self.id) {
            Some(answer) => Poll::Ready(answer.map_err(|error| self.explain(error))),
            None => {
                state.waiters(self.id).read = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn explain(&self, error: StreamError) -> Error {
        let peer = self.peer;
        match error {
            StreamError::Reset(cause) => Error::Reset { peer, cause },
            StreamError::Shutdown => Error::Shutdown { peer },
            StreamError::Refused(Refusal::NobodyListens) => NoPlace::NobodyListens.refusal(peer),
            StreamError::Refused(Refusal::BacklogFull) => NoPlace::BacklogFull.refusal(peer),
            StreamError::Refused(Refusal::TooManyStreams) => {
                let reason = "its kernel has as many streams with ours as it takes; close some";
                Error::Refused { addr: peer, reason: reason.into() }
            }
        }
    }

    fn fail(&self, error: StreamError) -> io::Error {
        self.explain(error).into()
    }
}

impl AsyncRead for PacedStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let mut state = self.user.0.lock();
        match state.link.read(self.id, buf.initialize_unfilled()) {
            Ok(Some(read)) => {
                // Credit, perhaps.
                let is_due = state.link.has_due();
                drop(state);
                buf.advance(read);
                if is_due {
                    self.user.0.task.wake();
                }
                Poll::Ready(Ok(()))
            }
            Ok(None) => {
                state.waiters(self.id).read = Some(cx.waker().clone());
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(self.fail(error))),
        }
    }
}

impl AsyncWrite for PacedStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.user.0.lock();
        match state.link.write(self.id, bytes) {
            Ok(Some(taken)) => {
                let is_due = state.link.has_due();
                drop(state);
                if is_due {
                    self.user.0.task.wake();
                }
                Poll::Ready(Ok(taken))
            }
            Ok(None) => {
                state.waiters(self.id).write = Some(cx.waker().clone());
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(self.fail(error))),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let finished = self.user.0.lock().link.finish(self.id);
        self.user.0.task.wake();
        Poll::Ready(finished.map_err(|error| self.fail(error)))
    }
}

impl Drop for PacedStream {
    fn drop(&mut self) {
        let mut state = self.user.0.lock();
        state.link.close(self.id);
        let waiters = state.waiters.remove(&self.id);
        drop(state);
        // Wakers run code of others when they go.
        drop(waiters);
        self.user.0.task.wake();
    }
}
