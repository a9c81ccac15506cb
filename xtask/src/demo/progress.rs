//! One line per step: what, how long, what was seen.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::report::Report;

/// Prints the steps as they happen.
#[derive(Debug)]
pub(super) struct Progress {
    to_stderr: bool,
    started: Instant,
    steps: Vec<Step>,
}

/// A step that was done.
#[derive(Clone, Debug, serde::Serialize)]
pub(super) struct Step {
    title: String,
    ms: u64,
}

impl Progress {
    pub(super) fn new(to_stderr: bool) -> Self {
        Self { to_stderr, started: Instant::now(), steps: Vec::new() }
    }

    /// Runs one step, which returns what was seen in one line, and its result.
    ///
    /// # Errors
    /// That of the step, with its title.
    pub(super) fn step<T>(&mut self, title: &str, run: impl FnOnce() -> Result<(String, T)>) -> Result<T> {
        let number = self.steps.len() + 1;
        let started = Instant::now();
        let result = run();
        let took = started.elapsed();
        match &result {
            Ok((seen, _)) => self.print(&format!("{number:>3}. {title:<52}{:>9}  {seen}", seconds(took))),
            Err(_) => self.print(&format!("{number:>3}. {title:<52}{:>9}  FAILED", seconds(took))),
        }
        self.steps
            .push(Step { title: title.to_owned(), ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX) });
        result.map(|(_, value)| value).with_context(|| format!("step {number}, {title}"))
    }

    /// A further line under the last step.
    pub(super) fn note(&self, text: &str) {
        self.print(&format!("     {text}"));
    }

    pub(super) fn finish(&self, report: &Report) {
        let verdict = if report.ok { "every step held" } else { "FAILED" };
        self.print(&format!("     {verdict}, {} in all", seconds(self.started.elapsed())));
    }

    pub(super) fn steps(&self) -> Vec<Step> {
        self.steps.clone()
    }

    fn print(&self, line: &str) {
        // A closed pipe must not end the demo before it has cleaned up.
        let _ = if self.to_stderr {
            writeln!(std::io::stderr(), "{line}")
        } else {
            writeln!(std::io::stdout(), "{line}")
        };
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}
