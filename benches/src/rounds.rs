//! Times of single rounds: one reading of the processor's clock for each, for the floor as for every way.

use std::time::Duration;

use tombolo_transport::mem::{ticks, ticks_in};

/// A batch of rounds being timed: `while rounds.another() { one round }`.
#[derive(Debug)]
pub struct Rounds {
    stamps: Vec<u64>,
    count: usize,
}

impl Rounds {
    /// A batch of `count`.
    pub fn new(count: u64) -> Self {
        let count = usize::try_from(count).unwrap_or(usize::MAX).min(1 << 24);
        let mut stamps = vec![0; count + 1];
        // The pages are there before the first round.
        stamps.clear();
        Self { stamps, count }
    }

    /// Whether to do another round. The one before, if there was one, has ended now.
    #[inline]
    pub fn another(&mut self) -> bool {
        let another = self.stamps.len() < self.count;
        if self.stamps.len() < self.stamps.capacity() {
            self.stamps.push(ticks());
        }
        another
    }

    /// How many rounds the batch has.
    pub fn count(&self) -> u64 {
        self.count as u64
    }
}

/// The first rounds of a batch find cold caches and a peer that was just woken: not counted, up to this many or a sixteenth.
const WARM_UP_MAX: usize = 100;

/// Times of rounds, in ticks.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<u64>);

/// Of [`Samples::percentiles`].
pub const PERCENTILES: [f64; 6] = [50.0, 90.0, 99.0, 99.9, 99.99, 100.0];

impl Samples {
    /// Adds those of a batch that has ended, without its first ones.
    pub fn add(&mut self, rounds: &Rounds) {
        let warm_up = WARM_UP_MAX.min(rounds.count / 16);
        let times = rounds.stamps.windows(2).map(|pair| pair[1].saturating_sub(pair[0]));
        self.0.extend(times.skip(warm_up));
    }

    /// Adds one.
    pub fn push_ticks(&mut self, ticks: u64) {
        self.0.push(ticks);
    }

    /// Nanoseconds of these percentiles; 0 if there are no samples.
    pub fn at(&mut self, percentiles: &[f64]) -> Vec<(f64, f64)> {
        self.0.sort_unstable();
        let ns_per_tick = ns_per_tick();
        let last = self.0.len().saturating_sub(1);
        let at = |percent: f64| (last as f64 * percent / 100.0).round() as usize;
        percentiles
            .iter()
            .map(|&percent| {
                (percent, self.0.get(at(percent)).map_or(0.0, |&ticks| ticks as f64 * ns_per_tick))
            })
            .collect()
    }

    /// Nanoseconds of the [`PERCENTILES`].
    pub fn percentiles(&mut self) -> Vec<(f64, f64)> {
        self.at(&PERCENTILES)
    }

    /// The middle, in nanoseconds.
    pub fn median_ns(&mut self) -> f64 {
        self.at(&[50.0])[0].1
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What a tick of [`ticks`] lasts.
pub fn ns_per_tick() -> f64 {
    1e9 / ticks_in(Duration::from_secs(1)) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_has_as_many_rounds_as_it_is_told_and_forgets_the_first() {
        let mut rounds = Rounds::new(160);
        let mut done = 0;
        while rounds.another() {
            done += 1;
        }
        assert_eq!(done, 160);
        let mut samples = Samples::default();
        samples.add(&rounds);
        assert_eq!(samples.len(), 150);
    }

    #[test]
    fn percentiles_rise_and_the_last_is_the_largest() {
        let mut samples = Samples::default();
        (1..=1000).rev().for_each(|ticks| samples.push_ticks(ticks));
        let found = samples.percentiles();
        assert!(found.is_sorted_by(|a, b| a.1 <= b.1));
        assert!((found[5].1 - 1000.0 * ns_per_tick()).abs() < 1e-6);
        assert!((samples.median_ns() / ns_per_tick() - 500.0).abs() < 2.0);
    }

    #[test]
    fn no_samples_are_no_reason_to_panic() {
        assert_eq!(Samples::default().at(&[99.0]), [(99.0, 0.0)]);
    }
}
