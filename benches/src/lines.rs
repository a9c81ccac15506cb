//! Two cache lines in shared memory, one written by each side: the least that a round trip between two cores can be.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use tombolo_transport::mem::{Mapping, Memory, MemoryMut, OwnSpan, PAGE, PeerSpan};

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
        let span = mapping.make_writable(own..own + PAGE)?.sub(0, 8)?;
        let count = span.load(0, Ordering::Relaxed);
        Ok(Self { own: span, other: mapping.peer(other, 8)?, count })
    }

    /// `rounds` times: writes its line, waits for the answer.
    pub fn lead(&mut self, rounds: u64) {
        for _ in 0..rounds {
            self.count += 1;
            self.own.store(0, self.count, Ordering::Release);
            self.await_other();
        }
    }

    /// `rounds` times: waits for the leader's line, answers.
    pub fn follow(&mut self, rounds: u64) {
        for _ in 0..rounds {
            self.count += 1;
            self.await_other();
            self.own.store(0, self.count, Ordering::Release);
        }
    }

    #[inline]
    fn await_other(&self) {
        while self.other.load(0, Ordering::Acquire) != self.count {}
    }
}

/// An unlinked file in memory for [`Lines`].
pub fn lines_file() -> anyhow::Result<File> {
    let fd = rustix::fs::memfd_create("tombolo-lines", rustix::fs::MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&fd, LINES_BYTES as u64)?;
    Ok(File::from(fd))
}
