//! The verdict of one probe from its results. Pure: the time is an argument.
//!
//! ```text
//! Pending ──success_threshold passes in a row──▶ Passing ◀──────┐
//!    └──────failure_threshold failures in a row──▶ Failing ──────┘ success_threshold passes in a row
//! ```

use std::time::{Duration, Instant};

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
    last_failure: String,
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
            last_failure: String::new(),
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
    pub fn handle_try(&mut self, now: Instant) {
        self.due = now + Duration::from_millis(self.config.period_ms);
    }

    /// A try ended. `true` if the verdict changed.
    pub fn handle_result(&mut self, result: Result<(), String>) -> bool {
        self.tries += 1;
        let before = self.verdict;
        match result {
            Ok(()) => {
                self.passes_in_a_row = self.passes_in_a_row.saturating_add(1);
                self.failures_in_a_row = 0;
                self.last_failure.clear();
                if self.passes_in_a_row >= self.config.success_threshold {
                    self.verdict = ProbeVerdict::Passing;
                }
            }
            Err(reason) => {
                self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
                self.passes_in_a_row = 0;
                self.last_failure = reason;
                if self.failures_in_a_row >= self.config.failure_threshold {
                    self.verdict = ProbeVerdict::Failing;
                }
            }
        }
        self.verdict != before
    }

    /// The entrypoint is being started again: begin afresh.
    pub fn reset(&mut self, now: Instant) {
        *self = Self::new(self.config.clone(), now);
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
            last_failure: self.last_failure.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let result = |pass| if pass { Ok(()) } else { Err("no".to_owned()) };
        results
            .chars()
            .map(|c| {
                core.handle_result(result(c == '+'));
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
        assert!(core.handle_result(Ok(())));
        assert!(!core.handle_result(Ok(())));
        assert!(!core.handle_result(Err("a".into())));
        assert!(core.handle_result(Err("b".into())));
        assert!(!core.handle_result(Err("c".into())));
        assert_eq!(core.status().last_failure, "c");
        assert_eq!(core.status().failures_in_a_row, 3);
    }

    #[test]
    fn tries_are_a_period_apart_after_the_initial_delay() {
        let now = Instant::now();
        let mut core = probe(r#""kind":"liveness","initial_delay_ms":300,"period_ms":50"#, now);
        assert_eq!(core.due(), Some(now + Duration::from_millis(300)));
        core.handle_try(now + Duration::from_millis(310));
        assert_eq!(core.due(), Some(now + Duration::from_millis(360)));
    }

    #[test]
    fn a_startup_probe_is_done_once_it_passes() {
        let mut core = probe(r#""kind":"startup""#, Instant::now());
        core.handle_result(Err("not yet".into()));
        assert!(core.due().is_some());
        core.handle_result(Ok(()));
        assert_eq!(core.due(), None);
        core.reset(Instant::now());
        assert!(core.due().is_some());
    }
}
