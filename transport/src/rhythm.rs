//! Timers of one process that fall due together.
//!
//! Whoever looks around from time to time, with no moment better than another, looks at a multiple of its period since one
//! common start. What has to be looked at by many then costs an idle process one wake-up, not one for each of them: on a
//! virtual machine a wake-up costs tens of microseconds, whatever is done in it (timer slack and timer
//! coalescing rest on the same thought: `PR_SET_TIMERSLACK` in prctl(2)).

use std::sync::OnceLock;
use std::time::Duration;

use tokio::time::Instant;

static START: OnceLock<Instant> = OnceLock::new();

/// Longer periods count as this one: a year, which no clock of ours is too short for.
const PERIOD_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The next multiple of `period` since the common start, strictly after now. A period below a millisecond, the grain of Tokio's
/// timers, counts as one; one beyond a year as a year.
pub fn next(period: Duration) -> Instant {
    let now = Instant::now();
    let start = *START.get_or_init(|| now);
    start + next_multiple(now.saturating_duration_since(start), period)
}

fn next_multiple(since_start: Duration, period: Duration) -> Duration {
    let period = period.clamp(Duration::from_millis(1), PERIOD_MAX);
    let past = since_start.as_nanos() % period.as_nanos();
    // Below the period, which is at most a year.
    let past = Duration::from_nanos(u64::try_from(past).unwrap_or(u64::MAX));
    since_start + (period - past)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_that_divide_each_other_meet() {
        let ms = Duration::from_millis;
        assert_eq!(next_multiple(ms(0), ms(200)), ms(200));
        assert_eq!(next_multiple(ms(199), ms(200)), ms(200));
        assert_eq!(next_multiple(ms(200), ms(200)), ms(400), "strictly after now");
        for since_start in [ms(801), ms(950), ms(999)] {
            assert_eq!(next_multiple(since_start, ms(200)), next_multiple(since_start, ms(1000)));
        }
    }

    #[test]
    fn a_period_of_nothing_still_passes() {
        assert_eq!(next_multiple(Duration::from_micros(1500), Duration::ZERO), Duration::from_millis(2));
    }

    #[tokio::test]
    async fn never_is_a_year() {
        let before = Instant::now();
        let next = next(Duration::MAX);
        assert!(next > before && next <= Instant::now() + PERIOD_MAX);
    }
}
