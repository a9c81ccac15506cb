//! The heartbeat of a member: a counter and a time that only its own kernel writes.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use crate::incarnation::Incarnation;
use crate::mem::{Memory, MemoryMut, OwnSpan, PeerSpan};
use crate::pool::layout::status as at;
use crate::pool::{Member, Pool};

/// What a kernel says it is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum Phase {
    /// Nothing said yet.
    #[default]
    None = 0,
    /// User space is starting.
    Booting = 1,
    /// At work.
    Running = 2,
    /// Finishing what it has, taking nothing new.
    Draining = 3,
    /// About to power off.
    Stopped = 4,
}

impl Phase {
    /// The phase of that number; [`Phase::None`] for one that we do not know.
    pub fn from_number(number: u64) -> Self {
        match number {
            1 => Self::Booting,
            2 => Self::Running,
            3 => Self::Draining,
            4 => Self::Stopped,
            _ => Self::None,
        }
    }
}

/// One look at a member's status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heartbeat {
    /// Beats since its kernel attached. It moves or the kernel's heartbeat thread does not run.
    pub count: u64,
    /// The beating kernel's monotonic clock at the last beat, in nanoseconds. Not comparable between kernels.
    pub monotonic_ns: u64,
    /// Its broker's generation; 0: none has run.
    pub generation: u64,
    /// Which boot of that kernel beats.
    pub incarnation: Incarnation,
    /// What it says it is doing.
    pub phase: Phase,
}

/// Writes the heartbeat of one's own member, from a thread of its own.
#[derive(Debug)]
pub struct HeartbeatWriter {
    status: OwnSpan,
    count: u64,
}

/// Reads the heartbeat of one member.
#[derive(Clone, Debug)]
pub struct HeartbeatReader {
    pool: Pool,
    member: Member,
}

/// Looks at the beats of many members again and again: one load for each, all under way at once.
#[derive(Clone, Debug)]
pub struct HeartbeatScan {
    pool: Pool,
    watched: Vec<Watched>,
}

#[derive(Clone, Copy, Debug)]
struct Watched {
    member: Member,
    /// Of the count, in the pool.
    offset: usize,
    seen: u64,
}

impl HeartbeatWriter {
    pub(crate) fn new(status: OwnSpan) -> Self {
        let count = status.load(at::BEAT_COUNT, Relaxed);
        Self { status, count }
    }

    /// Says which boot this is. Do so once, before the first beat.
    pub fn set_incarnation(&mut self, incarnation: Incarnation) {
        self.status.write(at::INCARNATION, incarnation.as_bytes());
    }

    /// Says what the kernel is doing.
    pub fn set_phase(&mut self, phase: Phase) {
        self.status.store(at::PHASE, phase as u64, Release);
    }

    /// One beat. No system call but reading the clock.
    pub fn beat(&mut self) {
        self.count = self.count.wrapping_add(1);
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let now_ns = (now.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(now.tv_nsec as u64);
        self.status.store(at::BEAT_MONOTONIC_NS, now_ns, Relaxed);
        self.status.store(at::BEAT_COUNT, self.count, Release);
    }
}

impl HeartbeatReader {
    pub(crate) fn new(pool: Pool, member: Member) -> Self {
        Self { pool, member }
    }

    /// Whose it is.
    pub fn member(&self) -> Member {
        self.member
    }

    /// A look at it. Never blocks.
    pub fn read(&self) -> Heartbeat {
        self.pool.heartbeat(self.member)
    }
}

impl HeartbeatScan {
    /// Of those of `members` that there are.
    pub(crate) fn new(pool: Pool, members: impl IntoIterator<Item = Member>) -> Self {
        let there = members.into_iter().filter(|member| pool.layout.has(*member));
        let watch = |member| {
            let offset = pool.layout.extent(member) + at::BEAT_COUNT;
            Watched { member, offset, seen: pool.whole().load(offset, Relaxed) }
        };
        let watched = there.map(watch).collect();
        Self { pool, watched }
    }

    /// Names those who have beaten since the look before (of the first: since this was made), with what they say. Never blocks.
    pub fn beaten(&mut self, mut name: impl FnMut(Member, Heartbeat)) {
        for watched in &mut self.watched {
            // Relaxed: what is read of those who have beaten is read with an order of its own.
            let count = self.pool.whole().load(watched.offset, Relaxed);
            if count != watched.seen {
                watched.seen = count;
                name(watched.member, self.pool.heartbeat(watched.member));
            }
        }
    }
}

pub(crate) fn read(pool: &PeerSpan, extent: usize) -> Heartbeat {
    let mut incarnation = [0; 16];
    let count = pool.load(extent + at::BEAT_COUNT, Acquire);
    pool.read(extent + at::INCARNATION, &mut incarnation);
    Heartbeat {
        count,
        monotonic_ns: pool.load(extent + at::BEAT_MONOTONIC_NS, Relaxed),
        generation: pool.load(extent + at::GENERATION, Acquire),
        incarnation: Incarnation(incarnation),
        phase: Phase::from_number(pool.load(extent + at::PHASE, Acquire)),
    }
}
