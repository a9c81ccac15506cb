//! How a kernel that hangs is taken out of service: a ladder of ever harder means, each with a time limit. Decides only; times are ns
//! on one monotonic clock.
//!
//! ```text
//!  kernel answers                kernel does not
//!        ▼                              ▼
//!     quiesce ──── done, or time up ─▶ force ──── reaped ────▶ confirm ── heartbeat silent ─▶ release
//!        │                              ▲ │                       │
//!        └ it answers again: stop       │ └ not reaped in time    └ heartbeat goes on
//!                                       └── again, with a limit ──┴──▶ failed: needs an operator
//! ```
//!
//! Two witnesses have said before that it hangs. Up to *quiesce* it may come back; from *force* on there is no way back, whatever it says.
//! What it has is released only when its keeper has reaped it and its heartbeat is silent; a ladder that failed waits for that.

use std::time::Duration;

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

/// A rung of the ladder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum Rung {
    /// Its kernel writes back what it has in memory, and says what it does.
    Quiesce,
    /// It is killed.
    Force,
    /// It has been reaped; its heartbeat is looked at.
    Confirm,
    /// It is dead for certain: what it had is given back.
    Release,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Have the kernel write back and say what it does, within this time; then tell [`Ladder::quiesced`].
    Quiesce(Duration),
    /// Kill it. `backtrace`: a kernel that was not heard is to say first where it stands, if it can be made to.
    Kill {
        /// Whether to ask for that.
        backtrace: bool,
    },
    /// It is dead: bury it.
    Release,
    /// Nothing more can be done but to tell the operator.
    GiveUp,
}

/// A rung that was reached, and what to do there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The rung; `None` off the ladder's end.
    pub rung: Option<Rung>,
    /// Which try this is, from 1.
    pub attempt: u32,
    /// What to do, if anything.
    pub order: Option<Order>,
}

/// Time limits.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For writing back. Default 1.5 s.
    pub quiesce: Duration,
    /// For the kernel's end after it was killed. Default 10 s: killed processes may be held up by a device.
    pub force: Duration,
    /// How often it is killed. Default 3.
    pub attempts: u32,
    /// How long a heartbeat must be silent that has stopped.
    pub silence: Duration,
    /// For that. Default 3 s.
    pub confirm: Duration,
}

impl Limits {
    /// The defaults for a heartbeat that has stopped when it was silent for so long.
    pub fn for_silence(silence: Duration) -> Self {
        Self {
            quiesce: Duration::from_millis(1_500),
            force: Duration::from_secs(10),
            attempts: 3,
            silence,
            confirm: Duration::from_secs(3).max(silence * 2),
        }
    }
}

/// Takes one kernel out of service.
#[derive(Clone, Debug)]
pub struct Ladder {
    limits: Limits,
    place: Place,
    /// Kills so far.
    attempts: u32,
}

/// Where on the ladder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Quiesce { until_ns: u64 },
    Force { until_ns: u64 },
    Confirm { until_ns: u64 },
    Released,
    Failed,
}

impl Ladder {
    /// Begins with a kernel that hangs, and either answers itself (its user space is dead) or does not.
    pub fn begin(limits: Limits, now_ns: u64, kernel_answers: bool) -> (Self, Step) {
        let mut ladder = Self { limits, place: Place::Failed, attempts: 0 };
        if !kernel_answers {
            let step = ladder.force(now_ns, true);
            return (ladder, step);
        }
        ladder.place = Place::Quiesce { until_ns: after(now_ns, limits.quiesce) };
        let order = Some(Order::Quiesce(limits.quiesce));
        (ladder, Step { rung: Some(Rung::Quiesce), attempt: 1, order })
    }

    /// Whether the kernel may still come back.
    pub fn may_stop(&self) -> bool {
        matches!(self.place, Place::Quiesce { .. })
    }

    /// Whether everything was tried in vain.
    pub fn has_failed(&self) -> bool {
        self.place == Place::Failed
    }

    /// Quiescing is done, well or not.
    pub fn quiesced(&mut self, now_ns: u64) -> Option<Step> {
        self.may_stop().then(|| self.force(now_ns, false))
    }

    /// Its keeper has reaped it. `last_beat_ns` is when its heartbeat last moved.
    pub fn reaped(&mut self, now_ns: u64, last_beat_ns: Option<u64>) -> Vec<Step> {
        if matches!(self.place, Place::Confirm { .. } | Place::Released) {
            return vec![];
        }
        self.place = Place::Confirm { until_ns: after(now_ns, self.limits.confirm) };
        let confirm = Step { rung: Some(Rung::Confirm), attempt: self.attempts, order: None };
        [confirm].into_iter().chain(self.tick(now_ns, last_beat_ns)).collect()
    }

    /// Time has passed.
    pub fn tick(&mut self, now_ns: u64, last_beat_ns: Option<u64>) -> Option<Step> {
        match self.place {
            Place::Quiesce { until_ns } => (now_ns >= until_ns).then(|| self.force(now_ns, false)),
            Place::Confirm { .. } if self.is_silent(now_ns, last_beat_ns) => {
                self.place = Place::Released;
                let order = Some(Order::Release);
                Some(Step { rung: Some(Rung::Release), attempt: self.attempts, order })
            }
            Place::Force { until_ns } | Place::Confirm { until_ns } => {
                (now_ns >= until_ns).then(|| self.repeat(now_ns))
            }
            Place::Released | Place::Failed => None,
        }
    }

    fn is_silent(&self, now_ns: u64, last_beat_ns: Option<u64>) -> bool {
        last_beat_ns.is_none_or(|at_ns| now_ns >= after(at_ns, self.limits.silence))
    }

    fn repeat(&mut self, now_ns: u64) -> Step {
        if self.attempts < self.limits.attempts {
            return self.force(now_ns, false);
        }
        self.place = Place::Failed;
        Step { rung: None, attempt: self.attempts, order: Some(Order::GiveUp) }
    }

    fn force(&mut self, now_ns: u64, backtrace: bool) -> Step {
        self.attempts += 1;
        self.place = Place::Force { until_ns: after(now_ns, self.limits.force) };
        Step { rung: Some(Rung::Force), attempt: self.attempts, order: Some(Order::Kill { backtrace }) }
    }
}

fn after(now_ns: u64, time: Duration) -> u64 {
    now_ns.saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const S: u64 = 1_000 * MS;
    const BEGIN: u64 = 100 * S;
    /// Silent for long when the ladder begins.
    const LAST_BEAT: Option<u64> = Some(BEGIN - S);

    fn limits() -> Limits {
        Limits::for_silence(Duration::from_millis(300))
    }

    fn begin(kernel_answers: bool) -> (Ladder, Step) {
        Ladder::begin(limits(), BEGIN, kernel_answers)
    }

    fn kill(attempt: u32, backtrace: bool) -> Step {
        Step { rung: Some(Rung::Force), attempt, order: Some(Order::Kill { backtrace }) }
    }

    fn confirm(attempt: u32) -> Step {
        Step { rung: Some(Rung::Confirm), attempt, order: None }
    }

    fn release(attempt: u32) -> Step {
        Step { rung: Some(Rung::Release), attempt, order: Some(Order::Release) }
    }

    const GIVEN_UP: Step = Step { rung: None, attempt: 3, order: Some(Order::GiveUp) };

    #[test]
    fn one_that_answers_is_quiesced_then_killed_confirmed_and_released() {
        let (mut ladder, step) = begin(true);
        assert_eq!((step.rung, step.order), (Some(Rung::Quiesce), Some(Order::Quiesce(limits().quiesce))));
        assert!(ladder.may_stop());
        assert_eq!(ladder.tick(BEGIN + S, LAST_BEAT), None);
        assert_eq!(ladder.quiesced(BEGIN + S), Some(kill(1, false)));
        assert!(!ladder.may_stop(), "there is no way back");
        assert_eq!(ladder.reaped(BEGIN + 2 * S, LAST_BEAT), [confirm(1), release(1)]);
        assert_eq!(ladder.tick(BEGIN + 9 * S, LAST_BEAT), None);
    }

    #[test]
    fn one_that_does_not_finish_quiescing_is_killed_when_its_time_is_up() {
        let (mut ladder, _) = begin(true);
        assert_eq!(ladder.tick(BEGIN + 1_499 * MS, LAST_BEAT), None);
        assert_eq!(ladder.tick(BEGIN + 1_500 * MS, LAST_BEAT), Some(kill(1, false)));
        assert_eq!(ladder.quiesced(BEGIN + 1_600 * MS), None, "a late answer");
    }

    #[test]
    fn one_that_does_not_answer_is_killed_at_once_and_asked_where_it_stands() {
        let (ladder, step) = begin(false);
        assert_eq!(step, kill(1, true));
        assert!(!ladder.may_stop());
    }

    #[test]
    fn one_that_ends_by_itself_while_it_is_quiesced_is_confirmed_all_the_same() {
        let (mut ladder, _) = begin(true);
        assert_eq!(ladder.reaped(BEGIN + MS, LAST_BEAT), [confirm(0), release(0)]);
        assert_eq!(ladder.quiesced(BEGIN + 2 * MS), None);
    }

    #[test]
    fn one_that_was_heard_of_late_is_released_only_when_it_was_silent_for_long_enough() {
        let (mut ladder, _) = begin(false);
        let beat = Some(BEGIN + S);
        assert_eq!(ladder.reaped(BEGIN + 1_100 * MS, beat), [confirm(1)]);
        assert_eq!(ladder.tick(BEGIN + 1_200 * MS, beat), None);
        assert_eq!(ladder.tick(BEGIN + 1_300 * MS, beat), Some(release(1)));
        let (mut ladder, _) = begin(false);
        assert_eq!(ladder.reaped(BEGIN, None), [confirm(1), release(1)], "it never showed a sign of life");
    }

    #[test]
    fn one_that_does_not_die_is_killed_again_up_to_a_limit_and_keeps_what_it_has() {
        let (mut ladder, _) = begin(false);
        let mut now = BEGIN;
        for attempt in 2..=3 {
            assert_eq!(ladder.tick(now + 9_999 * MS, LAST_BEAT), None);
            now += 10 * S;
            assert_eq!(ladder.tick(now, LAST_BEAT), Some(kill(attempt, false)));
        }
        assert_eq!(ladder.tick(now + 10 * S, LAST_BEAT), Some(GIVEN_UP));
        assert!(ladder.has_failed() && !ladder.may_stop());
        assert_eq!(ladder.tick(now + 1_000 * S, LAST_BEAT), None, "it is told once");
        assert_eq!(ladder.reaped(now + 2_000 * S, LAST_BEAT), [confirm(3), release(3)], "it died after all");
    }

    #[test]
    fn one_whose_heartbeat_goes_on_after_its_death_is_not_released() {
        let (mut ladder, _) = begin(false);
        let mut now = BEGIN;
        for attempt in 1..=3 {
            assert_eq!(ladder.reaped(now, Some(now)), [confirm(attempt)]);
            now += 3 * S;
            let step = ladder.tick(now, Some(now - MS));
            assert_eq!(step, Some(if attempt < 3 { kill(attempt + 1, false) } else { GIVEN_UP }));
        }
    }

    #[test]
    fn the_same_end_told_twice_changes_nothing() {
        let (mut ladder, _) = begin(false);
        assert_eq!(ladder.reaped(BEGIN, LAST_BEAT).len(), 2);
        assert_eq!(ladder.reaped(BEGIN + S, LAST_BEAT), []);
    }
}
