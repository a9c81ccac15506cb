//! Two cache lines in shared memory, one written by each side: the least that a round trip between two cores can be.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use tombolo_transport::mem::{CACHE_LINE, Mapping, Memory, MemoryMut, OwnSpan, PAGE, PeerSpan};

/// Which of the two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Writes first.
    Leader,
    /// Answers.
    Follower,
}

/// One side's view of the two lines: its own, and the other's, each in a page of its own.
#[derive(Debug)]
pub struct Lines {
    own: OwnSpan,
    other: PeerSpan,
    count: u64,
}

/// Bytes of shared memory that [`Lines`] need.
pub const LINES_BYTES: usize = 2 * PAGE;

impl Lines {
    /// Maps the first [`LINES_BYTES`] bytes of `file`.
    pub fn map(file: impl AsFd, side: Side) -> anyhow::Result<Self> {
        let mapping = Mapping::map(file, 0, LINES_BYTES)?;
        let (own, other) = match side {
            Side::Leader => (0, PAGE),
            Side::Follower => (PAGE, 0),
        };
        mapping.populate(0..LINES_BYTES, false);
        // Not at one offset within their pages: a processor takes such for the same line until it knows better.
        let offset = |page: usize| if page == 0 { 0 } else { 3 * CACHE_LINE };
        let span = mapping.make_writable(own..own + PAGE)?.sub(offset(own), 8)?;
        let count = span.load(0, Ordering::Relaxed);
        Ok(Self { own: span, other: mapping.peer(other + offset(other), 8)?, count })
    }

    /// `rounds` times: writes its line, waits for the answer.
    pub fn lead(&mut self, rounds: u64, poll: Poll) {
        for _ in 0..rounds {
            self.count += 1;
            self.own.store(0, self.count, Ordering::Release);
            self.await_other(poll);
        }
    }

    /// `rounds` times: waits for the leader's line, answers.
    pub fn follow(&mut self, rounds: u64, poll: Poll) {
        for _ in 0..rounds {
            self.count += 1;
            self.await_other(poll);
            self.own.store(0, self.count, Ordering::Release);
        }
    }

    #[inline]
    fn await_other(&self, poll: Poll) {
        while self.other.load(0, Ordering::Acquire) != self.count {
            if poll == Poll::Pausing {
                std::hint::spin_loop();
            }
        }
    }
}

/// How to wait for the other line. Which is faster depends on how far apart the cores are: the floor is the better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poll {
    /// Load after load: sees the line soonest, and makes its writer wait.
    Hot,
    /// With the processor's pause instruction between loads.
    Pausing,
}

impl Poll {
    /// Both ways.
    pub const ALL: [Self; 2] = [Self::Hot, Self::Pausing];
}

/// An unlinked file in memory for [`Lines`].
pub fn lines_file() -> anyhow::Result<File> {
    let fd = rustix::fs::memfd_create("tombolo-lines", rustix::fs::MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&fd, LINES_BYTES as u64)?;
    Ok(File::from(fd))
}
