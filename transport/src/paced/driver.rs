//! The task of one link: moves bytes between its core and its socket.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use nix::libc;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc::OwnedPermit;
use tokio::time::Sleep;

use super::core::{Event, Refusal, StreamId};
use super::shared::{Shared, State, Want};
use super::stream::PacedStream;
use crate::addr::{Addr, Port};
use crate::framed::IoStream;
use crate::ports::{NoPlace, PortTable};

/// Bytes read from the socket at one time.
const READ_BYTES: usize = 16 * 1024;
/// Rounds without giving other tasks a turn.
const ROUNDS_MAX: usize = 32;

pub(super) struct Driver {
    shared: Arc<Shared>,
    ports: PortTable<PacedStream>,
    socket: Option<Box<dyn IoStream>>,
    timer: Option<Pin<Box<Sleep>>>,
    buffer: Box<[u8]>,
    jitter: u64,
}

/// What is to be done once the lock is free.
#[derive(Default)]
struct Afterwards {
    wake: Vec<Waker>,
    arrived: Vec<(OwnedPermit<PacedStream>, PacedStream)>,
    closes_socket: bool,
}

enum Round {
    /// Something happened; look again.
    Moved,
    Idle,
    Over,
}

impl Driver {
    /// `seed` is any random number.
    pub(super) fn new(shared: Arc<Shared>, ports: PortTable<PacedStream>, seed: u64) -> Self {
        let buffer = vec![0; READ_BYTES].into_boxed_slice();
        Self { shared, ports, socket: None, timer: None, buffer, jitter: seed | 1 }
    }

    fn round(&mut self, cx: &mut Context<'_>) -> Round {
        let mut has_moved = self.take_socket();
        has_moved |= self.read(cx);
        let shared = Arc::clone(&self.shared);
        let mut afterwards = Afterwards::default();
        let now = shared.now();
        let mut state = shared.lock();
        state.link.handle_timeout(now);
        while let Some(event) = state.link.poll_event() {
            has_moved = true;
            self.on_event(event, &mut state, &mut afterwards);
        }
        if afterwards.closes_socket {
            self.socket = None;
        }
        let is_lost = self.write(&mut state, cx);
        if is_lost {
            state.link.socket_lost();
            self.socket = None;
        }
        let is_over =
            state.is_removed || (state.is_closing && (state.link.is_drained() || !state.link.has_session()));
        if self.socket.is_none() && state.next_socket.is_none() {
            shared.set_want(Want::Socket);
        }
        let next = state.link.next_timeout();
        drop(state);
        afterwards.do_it();
        match (is_over, has_moved) {
            (true, _) => Round::Over,
            (false, true) => Round::Moved,
            (false, false) if self.sleeps_until(next, cx).is_pending() => Round::Idle,
            (false, false) => Round::Moved,
        }
    }

    fn take_socket(&mut self) -> bool {
        let mut state = self.shared.lock();
        let Some(socket) = state.next_socket.take() else { return false };
        state.link.socket_lost();
        state.link.socket_opened(self.shared.now());
        drop(state);
        // The former one is closed here, if there was one.
        self.socket = Some(socket);
        true
    }

    fn read(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(socket) = &mut self.socket else { return false };
        let mut read = ReadBuf::new(&mut self.buffer);
        let polled = Pin::new(socket).poll_read(cx, &mut read);
        let why = match polled {
            Poll::Pending => return false,
            Poll::Ready(Ok(())) if !read.filled().is_empty() => {
                let now = self.shared.now();
                self.shared.lock().link.feed(read.filled(), now);
                return true;
            }
            Poll::Ready(Ok(())) => "closed by the peer".to_owned(),
            Poll::Ready(Err(error)) => error.to_string(),
        };
        self.lose_socket(&why);
        true
    }

    /// True if the socket is lost.
    fn write(&mut self, state: &mut State, cx: &mut Context<'_>) -> bool {
        let Some(socket) = &mut self.socket else { return false };
        let now = self.shared.now();
        while let Some(bytes) = state.link.poll_transmit(now) {
            let why = match Pin::new(&mut *socket).poll_write(cx, bytes) {
                Poll::Pending => return false,
                Poll::Ready(Ok(written)) if written > 0 => {
                    state.link.transmitted(written, now);
                    continue;
                }
                Poll::Ready(Ok(_)) => "it takes nothing".to_owned(),
                Poll::Ready(Err(error)) if is_ring_full(&error) => {
                    state.link.refused(now, next_random(&mut self.jitter));
                    return false;
                }
                Poll::Ready(Err(error)) => error.to_string(),
            };
            tracing::debug!(peer = %self.shared.peer, why, "socket of a paced link is lost");
            return true;
        }
        // Sockets have nothing to flush; what buffers must not keep a frame back.
        matches!(Pin::new(socket).poll_flush(cx), Poll::Ready(Err(_)))
    }

    fn on_event(&self, event: Event, state: &mut State, afterwards: &mut Afterwards) {
        let peer = self.shared.peer;
        match event {
            Event::Called { stream, from, to } => match self.place(stream, from, to, state) {
                Ok(arrived) => {
                    state.link.accept(stream);
                    afterwards.arrived.push(arrived);
                }
                Err(NoPlace::BacklogFull) => state.link.refuse(stream, Refusal::BacklogFull),
                Err(NoPlace::NobodyListens) => state.link.refuse(stream, Refusal::NobodyListens),
            },
            Event::Readable(stream) => {
                afterwards
                    .wake
                    .extend(state.waiters.get_mut(&stream).and_then(|waiters| waiters.read.take()));
            }
            Event::Writable(stream) => {
                afterwards
                    .wake
                    .extend(state.waiters.get_mut(&stream).and_then(|waiters| waiters.write.take()));
            }
            Event::CloseSocket { why, is_violation } => {
                if is_violation {
                    tracing::warn!(%peer, why, "socket of a paced link is closed");
                } else {
                    tracing::debug!(%peer, why, "socket of a paced link is closed");
                }
                afterwards.closes_socket = true;
            }
            Event::BeginsAnew { why } => tracing::debug!(%peer, why, "a paced link begins anew on its line"),
            Event::Up { resumed } => tracing::debug!(%peer, resumed, "paced link is up"),
            Event::Ended(cause) => {
                tracing::info!(%peer, %cause, "every stream of a paced link ends");
            }
        }
    }

    fn place(
        &self,
        id: StreamId,
        from: Port,
        to: Port,
        state: &State,
    ) -> Result<(OwnedPermit<PacedStream>, PacedStream), NoPlace> {
        // Whoever listens holds the endpoint, and so the link.
        let place = self.ports.reserve(to)?;
        let user = state.user.upgrade().ok_or(NoPlace::NobodyListens)?;
        let (local, peer) = (Addr::new(self.shared.local, to), Addr::new(self.shared.peer, from));
        Ok((place, PacedStream::new(user, id, local, peer)))
    }

    fn lose_socket(&mut self, why: &str) {
        tracing::debug!(peer = %self.shared.peer, why, "socket of a paced link is lost");
        self.shared.lock().link.socket_lost();
        self.socket = None;
    }

    fn sleeps_until(&mut self, next: Option<u64>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(next) = next else { return Poll::Pending };
        let at = self.shared.instant(next);
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        if timer.deadline() != at {
            timer.as_mut().reset(at);
        }
        timer.as_mut().poll(cx)
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        this.shared.task.register(cx.waker());
        for _ in 0..ROUNDS_MAX {
            match this.round(cx) {
                Round::Moved => {}
                Round::Idle => return Poll::Pending,
                Round::Over => return Poll::Ready(()),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        self.shared.set_want(Want::End);
        let unused = state.next_socket.take();
        drop(state);
        drop(unused);
    }
}

impl Afterwards {
    fn do_it(self) {
        for (place, stream) in self.arrived {
            place.send(stream);
        }
        self.wake.into_iter().for_each(Waker::wake);
    }
}

/// What Multikernel says while a ring is full, and what any socket may say while the kernel has no memory for a packet.
fn is_ring_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::ENOBUFS | libc::ENOMEM))
        || error.kind() == io::ErrorKind::StorageFull
}

/// xorshift64*: spreads retries, nothing more.
pub(super) fn next_random(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_F491_4F6C_DD1D)
}
