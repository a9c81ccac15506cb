//! The clock of all links of this process, in nanoseconds.
//!
//! Reading the system's clock takes 40 ns on a virtual machine and 30 µs, a system call, under user-mode Linux: as much as
//! many calls. Deadlines and signs of life need no more than a millisecond, and the processor's own clock says when one
//! has passed.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tombolo_transport::mem::ticks;

use crate::sync::time;

/// About a millisecond in ticks of the processor's clock. Where it runs at another pace, or differently on each core, the system's
/// clock is just read more or less often.
const TICKS_PER_READING: u64 = 3_000_000;

/// More than [`TICKS_PER_READING`] take on any processor faster than 1.5 GHz.
const SLACK_NS: u64 = 2_000_000;

static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);
/// The system's clock as last read, and the processor's at that time.
static READ_NS: AtomicU64 = AtomicU64::new(0);
static READ_AT: AtomicU64 = AtomicU64::new(0);

/// The time to about a millisecond, never later than it is. Never goes back.
pub(crate) fn coarse_ns() -> u64 {
    // Acquire: the reading is at least as new as its ticks say.
    let age = ticks().wrapping_sub(READ_AT.load(Ordering::Acquire));
    let read = READ_NS.load(Ordering::Relaxed);
    if age < TICKS_PER_READING && read != 0 { read } else { exact_ns() }
}

/// A time not before now and at most two milliseconds after it: from it deadlines are counted, so that no call
/// expires early.
pub(crate) fn ceiling_ns() -> u64 {
    coarse_ns() + SLACK_NS
}

/// The time, read from the system. Timers are judged by this one, which has surely reached what they were set to.
pub(crate) fn exact_ns() -> u64 {
    // The ticks before the reading, and published after it: whoever is held up in between makes readings look older
    // than they are, which costs one more, and never newer.
    let at = ticks();
    let now = u64::try_from(time::since(*EPOCH).as_nanos()).unwrap_or(u64::MAX);
    let newest = READ_NS.fetch_max(now, Ordering::Relaxed).max(now);
    READ_AT.store(at, Ordering::Release);
    newest
}

/// The point on this clock as an [`Instant`]; `None` if it is further off than an `Instant` can be.
pub(crate) fn instant(at_ns: u64) -> Option<Instant> {
    EPOCH.checked_add(Duration::from_nanos(at_ns))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coarse_time_never_goes_back_and_catches_up() {
        let mut last = coarse_ns();
        for _ in 0..100_000 {
            let now = coarse_ns();
            assert!(now >= last);
            last = now;
        }
        let exact = exact_ns();
        assert!(exact >= last);
        assert!(coarse_ns() >= exact);
    }
}
