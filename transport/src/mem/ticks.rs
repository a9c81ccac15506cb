//! The processor's own clock, for measuring what is shorter than a look at the system's.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A count that grows at a constant rate on all cores (the time-stamp counter). Its unit is the processor's:
/// [`ticks_in`] converts.
///
/// Under user-mode Linux reading the system's clock is a system call that takes many microseconds; this takes a few
/// nanoseconds everywhere.
#[cfg(target_arch = "x86_64")]
#[inline]
pub fn ticks() -> u64 {
    // SAFETY: RDTSC reads a register and touches no memory; every x86-64 processor has it, and Linux lets user space
    // use it unless a process asked otherwise for itself (prctl PR_SET_TSC).
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Elsewhere: nanoseconds of the system's monotonic clock.
#[cfg(not(target_arch = "x86_64"))]
pub fn ticks() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    u64::try_from(START.get_or_init(Instant::now).elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// How many [`ticks`] a time has, to within some percent. The first call measures for about a millisecond.
pub fn ticks_in(time: Duration) -> u64 {
    static PER_SECOND: OnceLock<u64> = OnceLock::new();
    let per_second = *PER_SECOND.get_or_init(ticks_per_second);
    u64::try_from(time.as_nanos().saturating_mul(u128::from(per_second)) / 1_000_000_000).unwrap_or(u64::MAX)
}

/// Of a few measurements the one whose two readings of the system's clock took least: whoever is held up in the middle of a
/// reading learns a wrong rate, and would keep it.
fn ticks_per_second() -> u64 {
    const TRIES: u32 = 4;
    // Long enough that two readings of a slow clock are a small part of it.
    const MEASURED: Duration = Duration::from_micros(250);
    let tries = (0..TRIES).map(|_| {
        let (start, started, start_took) = timed_now();
        loop {
            let (now, ended, end_took) = timed_now();
            let took = now.saturating_duration_since(start);
            if took >= MEASURED {
                let ticks = u128::from(ended.saturating_sub(started));
                let per_second = u64::try_from(ticks * 1_000_000_000 / took.as_nanos()).unwrap_or(u64::MAX);
                return (start_took.saturating_add(end_took), per_second.max(1));
            }
        }
    });
    tries.min().map_or(1, |(_, per_second)| per_second)
}

/// The system's clock, the ticks in the middle of reading it, and how many ticks the reading took.
fn timed_now() -> (Instant, u64, u64) {
    let before = ticks();
    let now = Instant::now();
    let took = ticks().saturating_sub(before);
    (now, before + took / 2, took)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_grow() {
        let before = ticks();
        std::thread::sleep(Duration::from_millis(1));
        assert!(ticks() > before);
    }

    #[test]
    fn ticks_in_grows_with_the_time() {
        assert_eq!(ticks_in(Duration::ZERO), 0);
        let one = ticks_in(Duration::from_millis(1));
        assert!(one > 0);
        assert!(ticks_in(Duration::from_millis(1000)).abs_diff(one * 1000) <= 1000);
    }
}
