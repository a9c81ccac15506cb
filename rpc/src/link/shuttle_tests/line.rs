//! A line between two ends, in memory, with little room.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A line between two ends. As with a real one, whoever polls an end is woken later and by somebody else: a task of its own, which comes to it
/// whenever the schedule says. The lock is std's and nothing under it lets others run: the transport has locks of its own around it.
#[derive(Clone, Debug)]
pub(super) struct Line(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    ways: [Way; 2],
    /// Whom the courier is to wake.
    due: VecDeque<Waker>,
    courier: Option<Waker>,
    /// Who waits for the far end to be let go.
    watcher: Option<Waker>,
    is_cut: bool,
    is_still: bool,
}

/// One direction.
#[derive(Debug)]
struct Way {
    bytes: VecDeque<u8>,
    room: usize,
    has_writer: bool,
    has_reader: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// One end, which writes to one direction and reads from the other.
#[derive(Debug)]
pub(super) struct End {
    line: Line,
    writes: usize,
}

impl Line {
    /// A line that takes `room` bytes in each direction, and its ends.
    pub(super) fn new(room: usize) -> (Self, End, End) {
        let way = || Way {
            bytes: VecDeque::new(),
            room,
            has_writer: true,
            has_reader: true,
            reader: None,
            writer: None,
        };
        let state = State {
            ways: [way(), way()],
            due: VecDeque::new(),
            courier: None,
            watcher: None,
            is_cut: false,
            is_still: false,
        };
        let line = Self(Arc::new(Mutex::new(state)));
        let courier = line.clone();
        drop(shuttle::future::spawn(async move { courier.carry().await }));
        let end = |writes| End { line: line.clone(), writes };
        (line.clone(), end(0), end(1))
    }

    /// Breaks the line: neither end can read or write any more.
    pub(super) fn cut(&self) {
        let mut state = self.state();
        state.is_cut = true;
        for way in 0..2 {
            state.wake_reader(way);
            state.wake_writer(way);
        }
    }

    /// From now on nobody is woken.
    pub(super) fn fall_silent(&self) {
        self.state().is_still = true;
    }

    /// Waits until the far side has let go of its end.
    pub(super) async fn far_end_gone(&self) {
        poll_fn(|cx| {
            let mut state = self.state();
            if !state.ways[0].has_reader {
                return Poll::Ready(());
            }
            state.watcher = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// The courier: wakes who is due.
    async fn carry(&self) {
        loop {
            let waker = poll_fn(|cx| {
                let mut state = self.state();
                match state.due.pop_front() {
                    Some(waker) if !state.is_still => Poll::Ready(waker),
                    _ => {
                        state.courier = Some(cx.waker().clone());
                        Poll::Pending
                    }
                }
            })
            .await;
            waker.wake();
            shuttle::future::yield_now().await;
        }
    }
}

impl State {
    fn wake_reader(&mut self, way: usize) {
        let waiting = self.ways[way].reader.take();
        self.wake(waiting);
    }

    fn wake_writer(&mut self, way: usize) {
        let waiting = self.ways[way].writer.take();
        self.wake(waiting);
    }

    fn wake(&mut self, waiting: Option<Waker>) {
        self.due.extend(waiting);
        if let Some(courier) = self.courier.take() {
            // Of shuttle: it lets nobody else run.
            courier.wake();
        }
    }

    fn check(&self) -> io::Result<()> {
        if self.is_cut { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(()) }
    }
}

impl AsyncRead for End {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, read: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let reads = 1 - self.writes;
        let mut state = self.line.state();
        state.check()?;
        let way = &mut state.ways[reads];
        if way.bytes.is_empty() {
            if !way.has_writer {
                return Poll::Ready(Ok(()));
            }
            way.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let taken = read.remaining().min(way.bytes.len());
        let taken: Vec<u8> = way.bytes.drain(..taken).collect();
        read.put_slice(&taken);
        state.wake_writer(reads);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.line.state();
        state.check()?;
        let way = &mut state.ways[self.writes];
        if !way.has_reader || !way.has_writer {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let taken = bytes.len().min(way.room - way.bytes.len());
        if taken == 0 {
            way.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        way.bytes.extend(&bytes[..taken]);
        state.wake_reader(self.writes);
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.line.state();
        state.ways[self.writes].has_writer = false;
        state.wake_reader(self.writes);
        Poll::Ready(Ok(()))
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let mut state = self.line.state();
        state.ways[self.writes].has_writer = false;
        state.ways[1 - self.writes].has_reader = false;
        for way in 0..2 {
            state.wake_reader(way);
            state.wake_writer(way);
        }
        if let Some(watcher) = state.watcher.take() {
            watcher.wake();
        }
    }
}
