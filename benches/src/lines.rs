//! Two cache lines in shared memory, one written by each side: the least that a round trip between two cores can be.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::bail;
use tombolo_transport::mem::{CACHE_LINE, Mapping, Memory, MemoryMut, OwnSpan, PAGE, PeerSpan};

use crate::rounds::Rounds;

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

/// In a line: the count of rounds, and a value that goes with it.
const COUNT: usize = 0;
const NOTE: usize = 8;
const WORDS_BYTES: usize = 16;

/// Looks between two looks at the clock.
const LOOKS_PER_CLOCK: u32 = 1 << 16;
/// Nobody waits longer for the other line.
const WAIT_MAX: Duration = Duration::from_secs(20);

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
        let span = mapping.make_writable(own..own + PAGE)?.sub(offset(own), WORDS_BYTES)?;
        let count = span.load(COUNT, Ordering::Relaxed);
        Ok(Self { own: span, other: mapping.peer(other + offset(other), WORDS_BYTES)?, count })
    }

    /// `rounds` times: writes its line, waits for the answer.
    pub fn lead(&mut self, rounds: u64, poll: Poll) -> anyhow::Result<()> {
        for _ in 0..rounds {
            self.lead_one(poll)?;
        }
        Ok(())
    }

    /// As [`Lines::lead`], each round timed.
    pub fn lead_timed(&mut self, rounds: &mut Rounds, poll: Poll) -> anyhow::Result<()> {
        while rounds.another() {
            self.lead_one(poll)?;
        }
        Ok(())
    }

    #[inline]
    fn lead_one(&mut self, poll: Poll) -> anyhow::Result<()> {
        self.count += 1;
        self.own.store(COUNT, self.count, Ordering::Release);
        self.await_other(poll)
    }

    /// `rounds` times: waits for the leader's line, answers.
    pub fn follow(&mut self, rounds: u64, poll: Poll) -> anyhow::Result<()> {
        for _ in 0..rounds {
            self.count += 1;
            self.await_other(poll)?;
            self.own.store(COUNT, self.count, Ordering::Release);
        }
        Ok(())
    }

    /// The follower tells a value without being asked.
    pub fn tell(&mut self, value: u64) {
        self.count += 1;
        self.own.store(NOTE, value, Ordering::Relaxed);
        self.own.store(COUNT, self.count, Ordering::Release);
    }

    /// The leader waits for what is [told](Lines::tell), asleep between its looks.
    pub fn await_told(&mut self) -> anyhow::Result<u64> {
        self.count += 1;
        // So that both go on from the same count.
        self.own.store(COUNT, self.count, Ordering::Release);
        let since = Instant::now();
        while self.other.load(COUNT, Ordering::Acquire) != self.count {
            if since.elapsed() > WAIT_MAX {
                bail!("the other process told nothing for {WAIT_MAX:?}");
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        Ok(self.other.load(NOTE, Ordering::Relaxed))
    }

    #[inline]
    fn await_other(&self, poll: Poll) -> anyhow::Result<()> {
        let mut since = None;
        loop {
            for _ in 0..LOOKS_PER_CLOCK {
                if self.other.load(COUNT, Ordering::Acquire) == self.count {
                    return Ok(());
                }
                if poll == Poll::Pausing {
                    std::hint::spin_loop();
                }
            }
            if since.get_or_insert_with(Instant::now).elapsed() > WAIT_MAX {
                bail!("the other process did not answer for {WAIT_MAX:?}");
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
