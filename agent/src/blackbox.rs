//! The black box: the last words of this kernel, in memory that outlives it.
//!
//! Every log record also goes there as it comes; the primary reads it after the kernel has died. Before the pool is
//! mapped, records wait here, a few, so that the boot is not lost.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tombolo_transport::pool::{BlackBoxLevel, BlackBoxWriter};

use crate::api::logs::{LogLevel, LogSource};

/// Records that wait for the pool to be mapped.
const WAITING_MAX: usize = 256;

/// Where records for the black box go. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct BlackBox(Arc<Mutex<State>>);

#[derive(Debug)]
enum State {
    /// The pool is not mapped (yet): the newest records wait.
    Waiting(VecDeque<(BlackBoxLevel, String)>),
    /// Records are written as they come.
    Open(BlackBoxWriter),
}

impl Default for State {
    fn default() -> Self {
        Self::Waiting(VecDeque::new())
    }
}

impl BlackBox {
    /// Writes what waits, and from now on each record as it comes.
    pub fn open(&self, mut writer: BlackBoxWriter) {
        let mut state = self.lock();
        if let State::Waiting(waiting) = &*state {
            waiting.iter().for_each(|(level, text)| writer.record(*level, text));
        }
        *state = State::Open(writer);
    }

    /// Records one line.
    pub fn record(&self, source: LogSource, level: LogLevel, text: &str) {
        let level = match level {
            LogLevel::Error => BlackBoxLevel::Error,
            LogLevel::Warn => BlackBoxLevel::Warn,
            LogLevel::Info => BlackBoxLevel::Info,
            LogLevel::Debug => BlackBoxLevel::Debug,
        };
        let text = format!("{}: {text}", prefix(source));
        match &mut *self.lock() {
            State::Open(writer) => writer.record(level, &text),
            State::Waiting(waiting) => {
                if waiting.len() == WAITING_MAX {
                    waiting.pop_front();
                }
                waiting.push_back((level, text));
            }
        }
    }

    /// The records that wait for the pool, oldest first; none once it is open.
    pub fn waiting(&self) -> Vec<String> {
        match &*self.lock() {
            State::Waiting(waiting) => waiting.iter().map(|(_, text)| text.clone()).collect(),
            State::Open(_) => Vec::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn prefix(source: LogSource) -> &'static str {
    match source {
        LogSource::Kernel => "kernel",
        LogSource::Agent => "agent",
        LogSource::Stdout => "stdout",
        LogSource::Stderr => "stderr",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_records_wait_for_the_pool() {
        let black_box = BlackBox::default();
        for line in 0..=WAITING_MAX {
            black_box.record(LogSource::Kernel, LogLevel::Info, &line.to_string());
        }
        let waiting = black_box.waiting();
        assert_eq!(waiting.len(), WAITING_MAX);
        assert_eq!(waiting[0], "kernel: 1");
    }
}
