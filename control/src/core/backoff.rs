//! When to restart a kernel that died: exponential back-off with reset, and a budget against crash loops.

use std::time::Duration;

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

/// Whether a kernel that ended is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Never.
    Never,
    /// After a death, not after an orderly power-off. The default.
    #[default]
    OnFailure,
    /// After every end that the operator did not ask for.
    Always,
}

/// How long to wait between restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
#[serde(default)]
pub struct BackoffConfig {
    /// Wait before the first restart, in milliseconds. Default 1000.
    pub base_ms: u64,
    /// Longest wait, in milliseconds. Default 300 000 (5 minutes).
    pub max_ms: u64,
    /// A kernel that ran this long, in milliseconds, counts as recovered: the wait starts at the base again.
    /// Default 60 000.
    pub reset_after_ms: u64,
    /// Restarts without a recovery in between before giving up. Default 10 (about 20 minutes of trying).
    pub budget: u32,
}

impl Default for BackoffConfig {
    fn default() -> Self {
        Self { base_ms: 1_000, max_ms: 300_000, reset_after_ms: 60_000, budget: 10 }
    }
}

/// The state of one instance's back-off. Survives a restart of the daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backoff {
    /// Restarts since the kernel last ran long enough to count as recovered.
    streak: u32,
}

impl Backoff {
    /// The wait before the next restart of a kernel that ran for `uptime`; `None` when the budget is spent.
    pub fn next_delay(&mut self, config: &BackoffConfig, uptime: Duration) -> Option<Duration> {
        if uptime >= Duration::from_millis(config.reset_after_ms) {
            self.streak = 0;
        }
        if self.streak >= config.budget {
            return None;
        }
        let factor = 1u64.checked_shl(self.streak).unwrap_or(u64::MAX);
        let delay_ms = config.base_ms.saturating_mul(factor).min(config.max_ms);
        self.streak += 1;
        Some(Duration::from_millis(delay_ms))
    }

    /// Whether there have been restarts since the operator's last start or a recovery.
    pub fn is_under_way(&self) -> bool {
        self.streak > 0
    }

    /// Forgets past failures: the operator has taken over.
    pub fn reset(&mut self) {
        self.streak = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BRIEF: Duration = Duration::from_secs(1);

    #[test]
    fn each_wait_is_twice_the_one_before_up_to_the_limit() {
        let config = BackoffConfig { budget: 12, ..BackoffConfig::default() };
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..12).map(|_| backoff.next_delay(&config, BRIEF).unwrap().as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
    }

    #[test]
    fn a_spent_budget_ends_the_crash_loop() {
        let config = BackoffConfig { budget: 2, ..BackoffConfig::default() };
        let mut backoff = Backoff::default();
        assert!(backoff.next_delay(&config, BRIEF).is_some());
        assert!(backoff.next_delay(&config, BRIEF).is_some());
        assert_eq!(backoff.next_delay(&config, BRIEF), None);
    }

    #[test]
    fn a_long_run_refills_the_budget_and_the_wait() {
        let config = BackoffConfig { budget: 2, ..BackoffConfig::default() };
        let mut backoff = Backoff::default();
        backoff.next_delay(&config, BRIEF);
        backoff.next_delay(&config, BRIEF);
        assert_eq!(backoff.next_delay(&config, Duration::from_secs(60)), Some(BRIEF));
    }

    #[test]
    fn huge_streaks_do_not_overflow() {
        let config = BackoffConfig { budget: 200, base_ms: u64::MAX / 2, ..BackoffConfig::default() };
        let mut backoff = Backoff::default();
        for _ in 0..200 {
            assert!(backoff.next_delay(&config, BRIEF).is_some());
        }
    }
}
