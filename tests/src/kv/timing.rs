//! Timing single round trips where reading the system's clock would take longer than they do.

use std::time::{Duration, Instant};

use anyhow::Result;
use hdrhistogram::Histogram;
use tombolo_transport::mem::ticks;

/// Round trips between two looks at the system's clock.
const BATCH: u32 = 256;

/// Round trips of at least the first tenth of a second are not counted: caches, predictors and the scheduler settle.
const WARM_UP: Duration = Duration::from_millis(100);

/// Percentiles of a series of round trips.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundTrips {
    /// How many were made, those to warm up included.
    pub made: u64,
    /// The median, in nanoseconds.
    pub p50_ns: u64,
    /// The 99th percentile, in nanoseconds.
    pub p99_ns: u64,
}

/// Makes round trips for `duration`, each timed by the processor's own clock.
///
/// # Errors
/// That of the first round trip that fails.
pub fn measure(duration: Duration, mut round_trip: impl FnMut() -> Result<()>) -> Result<RoundTrips> {
    let mut made = 0_u64;
    let warm = Instant::now();
    while warm.elapsed() < WARM_UP {
        for _ in 0..BATCH {
            round_trip()?;
        }
        made += u64::from(BATCH);
    }
    let mut taken = Histogram::<u64>::new(3)?;
    let (start, first_tick) = (Instant::now(), ticks());
    let mut before = first_tick;
    while start.elapsed() < duration {
        before = ticks();
        for _ in 0..BATCH {
            round_trip()?;
            let after = ticks();
            taken.record(after.saturating_sub(before))?;
            before = after;
        }
        made += u64::from(BATCH);
    }
    let ns_per_tick = start.elapsed().as_nanos() as f64 / before.saturating_sub(first_tick).max(1) as f64;
    let ns = |quantile: f64| (taken.value_at_quantile(quantile) as f64 * ns_per_tick).round() as u64;
    Ok(RoundTrips { made, p50_ns: ns(0.5), p99_ns: ns(0.99) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_in_nanoseconds_and_in_order() {
        let seen = measure(Duration::from_millis(50), || {
            std::hint::black_box((0..100).sum::<u64>());
            Ok(())
        });
        let seen = seen.unwrap();
        assert!(seen.made > 0 && seen.p50_ns <= seen.p99_ns);
        // A hundred additions take neither a millisecond nor no time at all.
        assert!((1..1_000_000).contains(&seen.p99_ns), "{seen:?}");
    }
}
