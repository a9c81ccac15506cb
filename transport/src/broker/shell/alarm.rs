//! The one timer of a broker: when to look around next, and when the core's next deadline passes.

use std::pin::Pin;
use std::time::{Duration, Instant};

use tokio::time::{Sleep, sleep_until};

use crate::rhythm;

/// What the alarm has rung for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Due {
    pub(super) now: Instant,
    pub(super) look_around: bool,
}

#[derive(Debug)]
pub(super) struct Alarm {
    period: Duration,
    look_at: tokio::time::Instant,
    sleep: Pin<Box<Sleep>>,
}

impl Alarm {
    pub(super) fn new(period: Duration) -> Self {
        let look_at = rhythm::next(period);
        Self { period, look_at, sleep: Box::pin(sleep_until(look_at)) }
    }

    /// Looks around with this period from now on; rings at `deadline` too.
    pub(super) fn set(&mut self, period: Duration, deadline: Option<Instant>) {
        if period != self.period {
            self.period = period;
            self.look_at = rhythm::next(period);
        }
        let at = deadline.map_or(self.look_at, |deadline| self.look_at.min(deadline.into()));
        if at != self.sleep.deadline() {
            self.sleep.as_mut().reset(at);
        }
    }

    /// Waits for the earlier of both. Cancel safe.
    pub(super) async fn wait(&mut self) -> Due {
        self.sleep.as_mut().await;
        let now = tokio::time::Instant::now();
        let look_around = now >= self.look_at;
        if look_around {
            self.look_at = rhythm::next(self.period);
        }
        Due { now: now.into_std(), look_around }
    }
}
