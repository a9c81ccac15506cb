//! The verdict of one probe from its results. Pure: the time is an argument.
//!
//! ```text
//! Pending ──success_threshold passes in a row──▶ Passing ◀──────┐
//!    └──────failure_threshold failures in a row──▶ Failing ──────┘ success_threshold passes in a row
//! ```

use std::time::{Duration, Instant};

use super::failure::ProbeFailure;
use crate::api::health::{ProbeStatus, ProbeVerdict};
use crate::config::{ProbeConfig, ProbeKind};

/// One probe: when it is due, and what its results say.
#[derive(Debug)]
pub struct ProbeCore {
    config: ProbeConfig,
    verdict: ProbeVerdict,
    due: Instant,
    tries: u64,
    passes_in_a_row: u32,
    failures_in_a_row: u32,
    last_failure: Option<ProbeFailure>,
    /// Which run of the entrypoint is probed.
    run: u64,
}

/// A try that has begun, to be handed back with its result.
#[derive(Debug)]
#[must_use]
pub struct Try {
    run: u64,
}

impl ProbeCore {
    /// A probe that begins at `now`.
    pub fn new(config: ProbeConfig, now: Instant) -> Self {
        let due = now + Duration::from_millis(config.initial_delay_ms);
        Self {
            config,
            verdict: ProbeVerdict::Pending,
            due,
            tries: 0,
            passes_in_a_row: 0,
            failures_in_a_row: 0,
            last_failure: None,
            run: 0,
        }
    }

    /// What was configured.
    pub fn config(&self) -> &ProbeConfig {
        &self.config
    }

    /// When to try next; `None` if it has done its work: a startup probe tries no more once it passes.
    pub fn due(&self) -> Option<Instant> {
        let done = self.config.kind == ProbeKind::Startup && self.verdict == ProbeVerdict::Passing;
        (!done).then_some(self.due)
    }

    /// A try begins. The next is one period later, however long this one takes, but never before it has ended.
    pub fn handle_try(&mut self, now: Instant) -> Try {
        self.due = now + Duration::from_millis(self.config.period_ms);
        Try { run: self.run }
    }

    /// A try ended. `true` if the verdict changed. What was tried on an earlier run of the entrypoint says nothing about
    /// the present one, and is ignored.
    pub fn handle_result(&mut self, tried: Try, result: Result<(), ProbeFailure>) -> bool {
        if tried.run != self.run {
            return false;
        }
        self.tries += 1;
        let before = self.verdict;
        match result {
            Ok(()) => {
                self.passes_in_a_row = self.passes_in_a_row.saturating_add(1);
                self.failures_in_a_row = 0;
                self.last_failure = None;
                if self.passes_in_a_row >= self.config.success_threshold {
                    self.verdict = ProbeVerdict::Passing;
                }
            }
            Err(reason) => {
                self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
                self.passes_in_a_row = 0;
                self.last_failure = Some(reason);
                if self.failures_in_a_row >= self.config.failure_threshold {
                    self.verdict = ProbeVerdict::Failing;
                }
            }
        }
        self.verdict != before
    }

    /// The entrypoint was started, perhaps again: begin afresh.
    pub fn reset(&mut self, now: Instant) {
        *self = Self { run: self.run + 1, ..Self::new(self.config.clone(), now) };
    }

    /// The verdict.
    pub fn verdict(&self) -> ProbeVerdict {
        self.verdict
    }

    /// How it looks from outside.
    pub fn status(&self) -> ProbeStatus {
        ProbeStatus {
            name: self.config.name.clone(),
            kind: self.config.kind,
            verdict: self.verdict,
            tries: self.tries,
            failures_in_a_row: self.failures_in_a_row,
            last_failure: self.last_failure.as_ref().map(ToString::to_string).unwrap_or_default(),
            last_failure_kind: self.last_failure.as_ref().map(|failure| failure.kind),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::health::ProbeFailureKind;

    fn failed(reason: &str) -> Result<(), ProbeFailure> {
        Err(ProbeFailure::new(ProbeFailureKind::Refused, reason))
    }

    fn result(core: &mut ProbeCore, result: Result<(), ProbeFailure>) -> bool {
        let tried = core.handle_try(Instant::now());
        core.handle_result(tried, result)
    }

    fn probe(extra: &str, now: Instant) -> ProbeCore {
        let text = format!(r#"{{"name":"p","tcp":{{"port":1}},{extra}}}"#);
        ProbeCore::new(serde_json::from_str(&text).unwrap(), now)
    }

    fn verdicts(core: &mut ProbeCore, results: &str) -> String {
        let letter = |verdict| match verdict {
            ProbeVerdict::Pending => '?',
            ProbeVerdict::Passing => '+',
            ProbeVerdict::Failing => '-',
        };
        results
            .chars()
            .map(|c| {
                result(core, if c == '+' { Ok(()) } else { failed("no") });
                letter(core.verdict())
            })
            .collect()
    }

    #[test]
    fn verdicts_turn_at_their_thresholds() {
        let mut core =
            probe(r#""kind":"readiness","failure_threshold":3,"success_threshold":2"#, Instant::now());
        let results = "+--+++--+---++";
        let expected = "????+++++++--+";
        assert_eq!(verdicts(&mut core, results), expected);
    }

    #[test]
    fn a_verdict_change_is_told_once() {
        let mut core = probe(r#""kind":"liveness","failure_threshold":2"#, Instant::now());
        assert!(result(&mut core, Ok(())));
        assert!(!result(&mut core, Ok(())));
        assert!(!result(&mut core, failed("a")));
        assert!(result(&mut core, failed("b")));
        assert!(!result(&mut core, failed("c")));
        assert_eq!(core.status().last_failure, "c");
        assert_eq!(core.status().last_failure_kind, Some(ProbeFailureKind::Refused));
        assert_eq!(core.status().failures_in_a_row, 3);
    }

    #[test]
    fn tries_are_a_period_apart_after_the_initial_delay() {
        let now = Instant::now();
        let mut core = probe(r#""kind":"liveness","initial_delay_ms":300,"period_ms":50"#, now);
        assert_eq!(core.due(), Some(now + Duration::from_millis(300)));
        let _ = core.handle_try(now + Duration::from_millis(310));
        assert_eq!(core.due(), Some(now + Duration::from_millis(360)));
    }

    #[test]
    fn a_startup_probe_is_done_once_it_passes() {
        let mut core = probe(r#""kind":"startup""#, Instant::now());
        result(&mut core, failed("not yet"));
        assert!(core.due().is_some());
        result(&mut core, Ok(()));
        assert_eq!(core.due(), None);
        core.reset(Instant::now());
        assert!(core.due().is_some());
    }

    #[test]
    fn a_try_of_an_earlier_run_says_nothing_about_the_present_one() {
        let mut core = probe(r#""kind":"liveness","failure_threshold":1"#, Instant::now());
        let tried = core.handle_try(Instant::now());
        core.reset(Instant::now());
        assert!(!core.handle_result(tried, failed("the earlier run is gone")));
        assert_eq!((core.verdict(), core.status().tries), (ProbeVerdict::Pending, 0));
    }
}
