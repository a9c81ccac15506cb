//! The phi-accrual estimate (Hayashibara et al., 2004): how surprising is the silence since the last heartbeat,
//! given how regular the heartbeats have been.

use std::collections::VecDeque;
use std::time::Duration;

/// Gaps remembered. 100 beats at 100 ms are the last ten seconds.
const WINDOW: usize = 100;
/// Gaps needed before the estimate means something; until then the expected gap is used.
const WARM_UP: usize = 5;

/// Estimates how likely it is that heartbeats have stopped.
#[derive(Clone, Debug)]
pub struct Phi {
    gaps_ns: VecDeque<u64>,
    expected_gap_ns: u64,
    min_deviation_ns: f64,
    pause_ns: f64,
}

impl Phi {
    /// An estimator for beats `expected_gap` apart; silences up to `pause` longer than usual are not suspicious.
    pub fn new(expected_gap: Duration, pause: Duration) -> Self {
        let expected_gap_ns = expected_gap.as_nanos() as u64;
        Self {
            gaps_ns: VecDeque::with_capacity(WINDOW),
            expected_gap_ns,
            // A scheduler that is merely busy delays a thread by about a beat.
            min_deviation_ns: expected_gap_ns as f64 / 2.0,
            pause_ns: pause.as_nanos() as f64,
        }
    }

    /// Notes that two beats came `gap` apart.
    pub fn observe(&mut self, gap: Duration) {
        if self.gaps_ns.len() == WINDOW {
            self.gaps_ns.pop_front();
        }
        self.gaps_ns.push_back(gap.as_nanos().min(u128::from(u64::MAX)) as u64);
    }

    /// Suspicion after `silence`: phi = -log10(probability that the next beat is still to come).
    /// 1 means wrong once in ten times, 8 once in 10^8.
    pub fn suspicion(&self, silence: Duration) -> f64 {
        let (mean, deviation) = self.gap_statistics();
        let late = (silence.as_nanos() as f64 - mean - self.pause_ns) / deviation;
        // Logistic approximation of the normal distribution's tail (as Akka has it): cheap, and safe at extremes.
        let e = (-late * (1.5976 + 0.070566 * late * late)).exp();
        if late > 0.0 { -(e / (1.0 + e)).log10() } else { -(1.0 - 1.0 / (1.0 + e)).log10() }
    }

    fn gap_statistics(&self) -> (f64, f64) {
        if self.gaps_ns.len() < WARM_UP {
            return (self.expected_gap_ns as f64, self.min_deviation_ns);
        }
        let count = self.gaps_ns.len() as f64;
        let mean = self.gaps_ns.iter().map(|&gap| gap as f64).sum::<f64>() / count;
        let variance = self.gaps_ns.iter().map(|&gap| (gap as f64 - mean).powi(2)).sum::<f64>() / count;
        (mean, variance.sqrt().max(self.min_deviation_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(value: u64) -> Duration {
        Duration::from_millis(value)
    }

    fn regular() -> Phi {
        let mut phi = Phi::new(ms(100), ms(300));
        (0..50).for_each(|_| phi.observe(ms(100)));
        phi
    }

    #[test]
    fn suspicion_grows_with_silence_and_never_falls() {
        let phi = regular();
        let values: Vec<_> = (0..200).map(|step| phi.suspicion(ms(step * 10))).collect();
        assert!(values.windows(2).all(|pair| pair[0] <= pair[1]), "{values:?}");
    }

    #[test]
    fn an_ordinary_gap_is_not_suspicious_and_a_second_of_silence_is() {
        let phi = regular();
        assert!(phi.suspicion(ms(150)) < 1.0);
        assert!(phi.suspicion(ms(1000)) > 8.0);
    }

    #[test]
    fn irregular_beats_make_the_estimate_more_patient() {
        let mut jittery = Phi::new(ms(100), ms(300));
        (0..50).for_each(|index| jittery.observe(ms(if index % 2 == 0 { 20 } else { 600 })));
        assert!(jittery.suspicion(ms(900)) < regular().suspicion(ms(900)));
    }

    #[test]
    fn an_endless_silence_is_infinitely_suspicious_not_a_nan() {
        assert!(regular().suspicion(Duration::from_secs(1 << 40)) > 100.0);
    }
}
