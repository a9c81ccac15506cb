//! The part of the story in which nothing happens: what that costs.

use std::collections::HashMap;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Stage, must};
use crate::process;

/// How long everything is left alone.
const IDLE: Duration = Duration::from_secs(5);

/// How long what was under way may go on, before it counts.
const SETTLE: Duration = Duration::from_secs(1);

impl Stage<'_> {
    pub(super) fn leave_everything_alone(&mut self) -> Result<()> {
        let percent = self.progress.step("leave everything alone: what does it cost?", || {
            thread::sleep(SETTLE);
            let (before, start) = (cpu_times(), Instant::now());
            thread::sleep(IDLE);
            let (after, lasted) = (cpu_times(), start.elapsed());
            // Those that came or went meanwhile took next to nothing.
            let taken = after.iter().filter_map(|(pid, after)| Some(after.saturating_sub(*before.get(pid)?)));
            let taken: Duration = taken.sum();
            must(!taken.is_zero(), || "the system does not tell what processes use".into())?;
            let percent = 100.0 * taken.as_secs_f64() / lasted.as_secs_f64();
            Ok((format!("daemon and both kernels take {percent:.2} % of one processor"), percent))
        })?;
        self.report.idle_cpu_percent = Some((percent * 1000.0).round() / 1000.0);
        Ok(())
    }
}

/// What each process below this one has used so far.
fn cpu_times() -> HashMap<i32, Duration> {
    let processes = process::descendants().into_iter();
    processes.filter_map(|process| Some((process.pid, process::cpu_time(process.pid)?))).collect()
}
