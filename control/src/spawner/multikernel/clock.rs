//! Time, for steps that wait: the machine's, or one that a test moves.

use std::io;
use std::time::{Duration, Instant};

/// How long a call is tried again while the kernel is busy: an item that a spawned kernel is asked for holds the kernel's lock for 10 s.
pub(super) const BUSY_MAX: Duration = Duration::from_secs(12);
/// How soon it is tried again.
const TRY_AGAIN: Duration = Duration::from_millis(100);

/// What tells the time, and lets it pass.
pub(super) trait Clock {
    /// The time; it never goes back.
    fn now(&self) -> Instant;
    /// Returns this much later, or a little more.
    fn pause(&self, time: Duration);
}

/// Asks `look` for something until it has it, and gives up when it takes too long. The last look is after that time.
pub(super) fn look_until<T, E>(
    clock: &impl Clock,
    at_most: Duration,
    every: Duration,
    mut look: impl FnMut() -> Result<Option<T>, E>,
) -> Result<Option<T>, E> {
    let until = clock.now() + at_most;
    loop {
        let is_last = clock.now() >= until;
        match look()? {
            None if !is_last => clock.pause(every),
            found => return Ok(found),
        }
    }
}

/// Calls the kernel again as long as it says EBUSY, within `at_most`. `is_worth_it`: whether waiting can help, asked after each EBUSY.
pub(super) fn unless_busy(
    clock: &impl Clock,
    at_most: Duration,
    mut call: impl FnMut() -> io::Result<()>,
    mut is_worth_it: impl FnMut() -> bool,
) -> io::Result<()> {
    let until = clock.now() + at_most;
    loop {
        match call() {
            Err(error)
                if error.raw_os_error() == Some(libc::EBUSY) && clock.now() < until && is_worth_it() =>
            {
                clock.pause(TRY_AGAIN);
            }
            outcome => return outcome,
        }
    }
}
