//! The task of one link: moves bytes between its core and its socket.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use nix::libc;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc::OwnedPermit;
use tokio::time::Sleep;

use super::blocks::Blocks;
use super::config::SocketKind;
use super::core::{Event, Nanos, Refusal, SLICES_MAX, StreamId};
use super::shared::{Shared, State, Want};
use super::stream::PacedStream;
use crate::addr::{Addr, Port};
use crate::framed::IoStream;
use crate::mem::{ticks, ticks_in};
use crate::ports::{NoPlace, PortTable};

/// Rounds without giving other tasks a turn.
const ROUNDS_MAX: usize = 32;
/// Less than timers tell apart.
const CLOCK_REST: Duration = Duration::from_micros(250);

pub(super) struct Driver {
    shared: Arc<Shared>,
    ports: PortTable<PacedStream>,
    socket: Option<Box<dyn IoStream>>,
    timer: Option<Pin<Box<Sleep>>>,
    blocks: Blocks,
    jitter: u64,
    clock: Clock,
}

/// The time, of which a link over sound sockets need not know more than its timers do: under user-mode Linux asking for it is a system call.
struct Clock {
    now: Nanos,
    /// When it was asked for.
    asked: u64,
    /// It is not asked for again within so many ticks.
    rest_ticks: u64,
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
    /// The time for something has come.
    Due,
    Over,
}

impl Driver {
    /// `seed` is any random number.
    pub(super) fn new(
        shared: Arc<Shared>,
        ports: PortTable<PacedStream>,
        sockets: SocketKind,
        seed: u64,
    ) -> Self {
        let rest_ticks = if sockets == SocketKind::Sound { ticks_in(CLOCK_REST) } else { 0 };
        let clock = Clock { now: shared.now(), asked: ticks(), rest_ticks };
        let blocks = sockets.blocks();
        Self { shared, ports, socket: None, timer: None, blocks, jitter: seed | 1, clock }
    }

    fn round(&mut self, now: Nanos, cx: &mut Context<'_>) -> Round {
        let shared = Arc::clone(&self.shared);
        let mut has_moved = self.take_socket(now);
        has_moved |= self.read(now, cx);
        let mut afterwards = Afterwards::default();
        let mut state = shared.lock();
        state.link.handle_timeout(now);
        has_moved |= self.take_events(&mut state, &mut afterwards);
        let is_lost = self.write(&mut state, now, cx);
        if is_lost {
            state.link.socket_lost();
            self.socket = None;
        }
        // Who waited for room has some of what went.
        has_moved |= self.take_events(&mut state, &mut afterwards);
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
            // The time is another than it was.
            (false, false) => Round::Due,
        }
    }

    fn take_events(&mut self, state: &mut State, afterwards: &mut Afterwards) -> bool {
        let mut has_some = false;
        while let Some(event) = state.link.poll_event() {
            has_some = true;
            self.on_event(event, state, afterwards);
        }
        if std::mem::take(&mut afterwards.closes_socket) {
            self.socket = None;
        }
        has_some
    }

    fn take_socket(&mut self, now: Nanos) -> bool {
        let mut state = self.shared.lock();
        let Some(socket) = state.next_socket.take() else { return false };
        state.link.socket_lost();
        state.link.socket_opened(now);
        drop(state);
        // The former one is closed here, if there was one.
        self.socket = Some(socket);
        true
    }

    fn read(&mut self, now: Nanos, cx: &mut Context<'_>) -> bool {
        let Some(socket) = &mut self.socket else { return false };
        let mut read = ReadBuf::new(self.blocks.room());
        let polled = Pin::new(socket).poll_read(cx, &mut read);
        let why = match polled {
            Poll::Pending => return false,
            Poll::Ready(Ok(())) if !read.filled().is_empty() => {
                let len = read.filled().len();
                let link = &mut self.shared.lock().link;
                match self.blocks.filled() {
                    (block, true) => link.feed_block(block, len, now),
                    (block, false) => link.feed(&block[..len], now),
                }
                return true;
            }
            Poll::Ready(Ok(())) => "closed by the peer".to_owned(),
            Poll::Ready(Err(error)) => error.to_string(),
        };
        self.lose_socket(&why);
        true
    }

    /// True if the socket is lost.
    fn write(&mut self, state: &mut State, now: Nanos, cx: &mut Context<'_>) -> bool {
        let Some(socket) = &mut self.socket else { return false };
        while let Some(bytes) = state.link.poll_transmit(now) {
            let polled = if socket.is_write_vectored() {
                let mut slices = [IoSlice::new(&[]); SLICES_MAX];
                let count = state.link.transmittable(&mut slices);
                Pin::new(&mut *socket).poll_write_vectored(cx, &slices[..count])
            } else {
                Pin::new(&mut *socket).poll_write(cx, bytes)
            };
            let why = match polled {
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

    /// The time; exactly, where a timer has told that it is late.
    fn now(&mut self, exactly: bool) -> Nanos {
        let ticks = ticks();
        if exactly || ticks.wrapping_sub(self.clock.asked) >= self.clock.rest_ticks {
            self.clock.asked = ticks;
            self.clock.now = self.shared.now();
        }
        self.clock.now
    }

    fn sleeps_until(&mut self, next: Option<u64>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(next) = next else { return Poll::Pending };
        let at = self.shared.instant(next);
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        // One that is early looks again; to put it off each time that something goes would cost more.
        if timer.deadline() > at || timer.is_elapsed() {
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
        let mut now = this.now(false);
        for _ in 0..ROUNDS_MAX {
            match this.round(now, cx) {
                Round::Moved => {}
                Round::Due => now = this.now(true),
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
