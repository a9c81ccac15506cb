//! When to start the entrypoint again. Pure: the time is an argument.
//!
//! ```text
//!             started                  ended, policy says again
//!  (start) ───────────▶ running ───────────────────────────────▶ waiting until T ──▶ (start)
//!     │                    │ ended, policy says no
//!     └── cannot start ────┴──────────▶ over
//! ```

use std::time::{Duration, Instant};

use crate::api::exec::ExitStatus;
use crate::config::RestartPolicy;

/// First wait.
const BACK_OFF_MIN: Duration = Duration::from_secs(1);
/// Longest wait.
const BACK_OFF_MAX: Duration = Duration::from_secs(60);
/// A run of this length was a good one: the next wait is the first again.
const STABLE: Duration = Duration::from_secs(30);

/// What to do after an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Start again at this time.
    StartAt(Instant),
    /// Leave it.
    Stay,
}

/// How an attempt to run it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It ran, and ended so.
    Exited(ExitStatus),
    /// It could not be started.
    NotStarted,
    /// The agent stopped it because a liveness probe failed.
    Unhealthy,
}

/// Decides about restarts.
#[derive(Debug)]
pub struct RestartCore {
    policy: RestartPolicy,
    back_off: Duration,
    started: Option<Instant>,
    restarts: u32,
}

impl RestartCore {
    /// For an entrypoint that was not started yet.
    pub fn new(policy: RestartPolicy) -> Self {
        Self { policy, back_off: BACK_OFF_MIN, started: None, restarts: 0 }
    }

    /// It runs.
    pub fn handle_started(&mut self, now: Instant) {
        self.started = Some(now);
    }

    /// It does not run, or not any more.
    pub fn handle_ended(&mut self, now: Instant, ended: Ended) -> Decision {
        let ran = self.started.take().map(|started| now.saturating_duration_since(started));
        let again = match self.policy {
            RestartPolicy::Never => false,
            RestartPolicy::OnFailure => ended != Ended::Exited(ExitStatus::Code(0)),
            RestartPolicy::Always => true,
        };
        if !again {
            return Decision::Stay;
        }
        if ran.is_some_and(|ran| ran >= STABLE) {
            self.back_off = BACK_OFF_MIN;
        }
        let wait = self.back_off;
        self.back_off = (self.back_off * 2).min(BACK_OFF_MAX);
        self.restarts = self.restarts.saturating_add(1);
        Decision::StartAt(now + wait)
    }

    /// How often it was decided to start it again.
    pub fn restarts(&self) -> u32 {
        self.restarts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(core: &mut RestartCore, runs: &[(u64, Ended)]) -> Vec<Option<u64>> {
        let mut now = Instant::now();
        let mut waits = Vec::new();
        for (ran_s, ended) in runs {
            core.handle_started(now);
            now += Duration::from_secs(*ran_s);
            waits.push(match core.handle_ended(now, *ended) {
                Decision::StartAt(at) => Some((at - now).as_secs()),
                Decision::Stay => None,
            });
        }
        waits
    }

    const FAILED: Ended = Ended::Exited(ExitStatus::Code(1));
    const WELL: Ended = Ended::Exited(ExitStatus::Code(0));

    #[test]
    fn waits_double_up_to_a_minute() {
        let mut core = RestartCore::new(RestartPolicy::Always);
        let runs = [(0, FAILED); 8];
        assert_eq!(waits(&mut core, &runs), [1, 2, 4, 8, 16, 32, 60, 60].map(Some));
        assert_eq!(core.restarts(), 8);
    }

    #[test]
    fn a_stable_run_resets_the_wait() {
        let mut core = RestartCore::new(RestartPolicy::Always);
        assert_eq!(
            waits(&mut core, &[(0, FAILED), (0, FAILED), (30, FAILED), (29, FAILED)]),
            [1, 2, 1, 2].map(Some)
        );
    }

    #[test]
    fn policies_tell_success_from_failure() {
        let cases = [
            (RestartPolicy::Never, FAILED, None),
            (RestartPolicy::Never, Ended::Unhealthy, None),
            (RestartPolicy::OnFailure, WELL, None),
            (RestartPolicy::OnFailure, FAILED, Some(1)),
            (
                RestartPolicy::OnFailure,
                Ended::Exited(ExitStatus::Signal { signal: 15, core_dumped: false }),
                Some(1),
            ),
            (RestartPolicy::OnFailure, Ended::NotStarted, Some(1)),
            (RestartPolicy::OnFailure, Ended::Unhealthy, Some(1)),
            (RestartPolicy::Always, WELL, Some(1)),
        ];
        for (policy, ended, wait) in cases {
            assert_eq!(waits(&mut RestartCore::new(policy), &[(0, ended)]), [wait], "{policy:?} {ended:?}");
        }
    }
}
