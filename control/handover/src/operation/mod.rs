//! One hand-over as a state machine that only decides: inputs in, changes and effects out, no I/O, no clock.
//!
//! ```text
//! planned → checked → reserved → draining → offlined ═══▶ revoked → granting → onlined → committed │ partial
//!    │         │          │          │          │           │          │          │
//!    │ no      │ no       └──────────┴──────────┘           └──────────┴──────────┴──▶ quarantined │ needs-operator
//!    ▼         ▼              veto, deadline, death, cancel      what cannot be proven
//! aborted   aborted                  ▼
//!                                undoing → aborted                ═══ the point of no return
//! ```
//!
//! **Phases are barriers.** The units of an operation go forward together: none is detached before all are drained. Within a phase
//! each unit is driven alone by the table in `decide`.
//!
//! **Every effect is a question, and every answer is a look.** A unit's epoch rises with each question, only the answer to the newest
//! counts, and a witness that has answered one refuses what is older. So an answer can be lost, late or doubled, and a daemon that
//! has lost its memory simply asks again: recovery is one more look at every unit, followed by the ordinary course.
//!
//! **Every operation ends.** Each phase has a deadline; before the point of no return it leads to undoing, after it to another
//! look, and after a set number of those to a decision: what is proven is settled, the rest is quarantined with its reason.

mod ask;
mod cause;
mod decide;
mod drive;
mod effect;
mod phase;
mod progress;
mod rules;

pub use cause::Cause;
pub use effect::{Act, Ask, Effect, End, Input, Question, Reply, Resting, Veto};
pub use phase::Phase;
pub use progress::{Fate, Progress, Step};
pub use rules::{Deadlines, DrainRule, Rules};

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

use crate::coordinator::Work;
use crate::kernel::{InstanceId, Kernel, Party};
use crate::observe::{Sighting, judge};
use crate::owner::{OpId, Owner};
use crate::plan::Plan;
use crate::request::Request;
use crate::unit::UnitId;

/// One hand-over. This is the journal's record of it: stored whole with every step, it alone says where to go on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, Schema)]
pub struct Operation {
    /// Its number.
    pub id: OpId,
    /// What was asked for, with the idempotency key.
    pub request: Request,
    /// Who gives.
    pub donor: Party,
    /// Who gets.
    pub receiver: Party,
    /// What it goes by.
    pub rules: Rules,
    /// How far it has come.
    pub phase: Phase,
    /// Raised with every phase, deadline and recovery; answers and timers of an older one are void.
    pub round: u32,
    /// Deadlines that have passed in this phase.
    pub expiries: u8,
    /// Questions of this phase that are not answered yet.
    pub open: Vec<(Question, End)>,
    /// The ends that said, when they voted, that no application there has hooks.
    #[serde(default)]
    pub without_hooks: Vec<End>,
    /// Whether `pre` hooks were asked to get ready, so that `undo` hooks are owed.
    pub hooks_ran: bool,
    /// Its units.
    pub units: Vec<Progress>,
    /// Why it does not go as asked for.
    pub cause: Option<Cause>,
    /// What went wrong without changing the outcome.
    pub warnings: Vec<String>,
    /// When it was submitted, on the caller's clock.
    pub began_ns: u64,
    /// When it ended, on the caller's clock.
    pub ended_ns: Option<u64>,
}

/// It is too late to call an operation off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{operation} is {phase}: past the point of no return it can only go forward; wait for it to end, then move the units back"
)]
pub struct TooLate {
    /// Which operation.
    pub operation: OpId,
    /// How far it has come.
    pub phase: Phase,
}

impl Operation {
    pub(crate) fn new(id: OpId, request: Request, plan: &Plan, rules: Rules, now_ns: u64) -> Self {
        let units =
            plan.takes.iter().map(|take| Progress::planned(take.unit, take.size, take.cut, take.epoch));
        Self {
            id,
            request,
            donor: plan.donor,
            receiver: plan.receiver,
            rules,
            phase: Phase::Planned,
            round: 0,
            expiries: 0,
            open: Vec::new(),
            without_hooks: Vec::new(),
            hooks_ran: false,
            units: units.collect(),
            cause: None,
            warnings: Vec::new(),
            began_ns: now_ns,
            ended_ns: None,
        }
    }

    /// How many units the receiver has and uses.
    pub fn moved(&self) -> usize {
        self.units.iter().filter(|unit| unit.fate() == Some(&Fate::Moved)).count()
    }

    /// Whether it takes from this instance or gives to it, whichever boot of it.
    pub fn concerns(&self, instance: InstanceId) -> bool {
        [self.donor, self.receiver].into_iter().any(|end| end.instance() == Some(instance))
    }

    /// Who is at this end.
    pub fn at(&self, end: End) -> Party {
        match end {
            End::Donor => self.donor,
            End::Receiver => self.receiver,
        }
    }

    /// Begins with the first questions.
    pub(crate) fn begin(&mut self, work: &mut Work) {
        self.enter(Phase::Planned, work);
    }

    /// A party has answered. False if nobody waits for this answer any more.
    pub(crate) fn answered(
        &mut self,
        round: u32,
        question: Question,
        end: End,
        reply: Reply,
        work: &mut Work,
    ) -> bool {
        let Some(at) =
            self.open.iter().position(|&open| open == (question, end)).filter(|_| round == self.round)
        else {
            return false;
        };
        self.open.swap_remove(at);
        self.open.sort_unstable();
        match reply {
            Reply::Yes => {}
            Reply::YesWithoutHooks => self.without_hooks.push(end),
            Reply::No(veto) if question.can_only_warn() => {
                self.warnings.push(format!(
                    "{question} of {}: {}",
                    work.ledger.name(self.at(end)),
                    veto.reason
                ));
            }
            Reply::No(veto) => {
                let by = self.at(end);
                self.call_off(Cause::Vetoed { question, by, veto }, work);
            }
        }
        self.advance(work);
        true
    }

    /// A unit was looked at. False if nobody waits for this look any more.
    pub(crate) fn acted(
        &mut self,
        unit: UnitId,
        epoch: u64,
        refused: Option<Veto>,
        sighting: &Sighting,
        work: &mut Work,
    ) -> bool {
        let awaited =
            |progress: &Progress| progress.asked && progress.unit == unit && progress.epoch == epoch;
        let Some(at) = self.units.iter().position(awaited) else {
            return false;
        };
        let place = judge(sighting, self.donor, self.receiver);
        let tries_max = self.rules.tries_max;
        let progress = &mut self.units[at];
        progress.asked = false;
        progress.place = place;
        let mut pause_ms = 0;
        if let Some(veto) = refused {
            match veto.retry_after_ms {
                Some(after_ms) => pause_ms = after_ms,
                None => progress.tries = tries_max,
            }
            progress.veto = Some(veto);
        }
        self.drive(at, pause_ms, work);
        self.advance(work);
        true
    }

    /// The time of a phase is over. False if it is not the time of this phase.
    pub(crate) fn expired(&mut self, round: u32, work: &mut Work) -> bool {
        if round != self.round || self.phase.is_terminal() {
            return false;
        }
        match self.phase {
            Phase::Onlined => self.stop_waiting(work),
            Phase::Revoked | Phase::Granting | Phase::Undoing => {
                self.expiries = self.expiries.saturating_add(1);
                if self.expiries >= self.rules.patience {
                    self.give_up(work);
                } else {
                    self.ask_again(work);
                }
            }
            Phase::Draining if self.can_leave_behind() => self.leave_behind(work),
            phase => self.call_off(Cause::Deadline { phase }, work),
        }
        self.advance(work);
        true
    }

    /// A kernel is dead for certain.
    pub(crate) fn kernel_down(&mut self, kernel: Kernel, work: &mut Work) {
        let ends = [End::Donor, End::Receiver];
        let Some(end) = ends.into_iter().find(|&end| self.at(end).kernel() == Some(kernel)) else { return };
        if self.phase.is_before_point_of_no_return() {
            self.call_off(Cause::Died { kernel }, work);
        } else {
            self.cause.get_or_insert(Cause::Died { kernel });
            self.open.retain(|&(_, asked)| asked != end);
            self.look_at_active(work);
        }
        self.advance(work);
    }

    /// An instance has booted anew, or was released: what was seen of it before says nothing any more.
    pub(crate) fn instance_changed(&mut self, instance: InstanceId, work: &mut Work) -> bool {
        let is_end = self.concerns(instance);
        if is_end && self.phase.holds_units() {
            self.look_at_active(work);
        }
        is_end
    }

    /// A new daemon has read this record: whatever was asked may or may not have been done, so everything is asked again.
    pub(crate) fn recover(&mut self, work: &mut Work) {
        if !self.phase.is_terminal() {
            self.ask_again(work);
            self.advance(work);
        }
    }

    /// Calls it off.
    pub(crate) fn cancel(&mut self, work: &mut Work) -> Result<(), TooLate> {
        match self.phase {
            Phase::Undoing | Phase::Aborted => Ok(()),
            phase if phase.is_before_point_of_no_return() => {
                self.call_off(Cause::Cancelled, work);
                self.advance(work);
                Ok(())
            }
            phase => Err(TooLate { operation: self.id, phase }),
        }
    }

    // --- going from phase to phase -----------------------------------------------------------------------------------------

    fn enter(&mut self, phase: Phase, work: &mut Work) {
        work.note_phase(self.id, self.phase, phase);
        self.phase = phase;
        self.expiries = 0;
        self.new_round(work);
        match phase {
            Phase::Planned => self.ask(Question::Vote, work),
            Phase::Checked => self.ask_hooks(Question::CheckHooks, work),
            Phase::Reserved => {
                self.ask(Question::Reserve, work);
                self.start(&Step::Waiting, Step::Looking, work);
            }
            Phase::Draining => {
                self.hooks_ran = self.request.hooks;
                self.ask_hooks(Question::PreHooks, work);
            }
            Phase::Offlined => self.ask(Question::Confirm, work),
            Phase::Revoked => self.start(&Step::Offlined, Step::Revoking, work),
            Phase::Granting => self.start(&Step::Revoked, Step::Granting, work),
            Phase::Onlined => self.ask_hooks(Question::PostHooks, work),
            Phase::Undoing => self.start_undoing(work),
            Phase::Committed
            | Phase::Aborted
            | Phase::Partial
            | Phase::Quarantined
            | Phase::NeedsOperator => {
                self.open.clear();
                self.ended_ns = Some(work.now_ns);
            }
        }
    }

    /// Goes on for as long as nothing has to be waited for.
    fn advance(&mut self, work: &mut Work) {
        while let Some(next) = self.next_phase(work) {
            self.enter(next, work);
        }
    }

    fn next_phase(&mut self, work: &mut Work) -> Option<Phase> {
        if !self.open.is_empty() || self.phase.is_terminal() {
            return None;
        }
        match self.phase {
            Phase::Planned => Some(Phase::Checked),
            Phase::Checked => match self.reserve(work) {
                Ok(()) => Some(Phase::Reserved),
                Err(cause) => {
                    self.call_off(cause, work);
                    None
                }
            },
            Phase::Reserved => self.when_all_are(&Step::Ready, Phase::Draining, work),
            Phase::Draining if self.has(&Step::Ready) => {
                self.start(&Step::Ready, Step::Draining, work);
                self.next_phase(work)
            }
            Phase::Draining => self.when_all_are(&Step::Offlined, Phase::Offlined, work),
            Phase::Offlined => Some(Phase::Revoked),
            Phase::Revoked if self.all_settled_or(&Step::Revoked) => {
                Some(if self.has(&Step::Revoked) { Phase::Granting } else { self.after_settling() })
            }
            Phase::Granting if self.all_settled() => Some(self.after_settling()),
            Phase::Onlined => Some(self.outcome()),
            Phase::Undoing if self.all_settled() => {
                if std::mem::take(&mut self.hooks_ran) {
                    self.ask(Question::UndoHooks, work);
                    return self.next_phase(work);
                }
                Some(self.outcome())
            }
            _ => None,
        }
    }

    /// The next phase once every unit has come so far or has dropped out; if all have dropped out there is nothing left to do.
    fn when_all_are(&mut self, step: &Step, next: Phase, work: &mut Work) -> Option<Phase> {
        if !self.all_settled_or(step) {
            return None;
        }
        if self.has(step) {
            return Some(next);
        }
        let cause = self.unavailable(0);
        self.call_off(cause, work);
        self.next_phase(work)
    }

    fn after_settling(&self) -> Phase {
        if self.moved() > 0 { Phase::Onlined } else { self.outcome() }
    }

    fn outcome(&self) -> Phase {
        let quarantined = self.units.iter().filter_map(|unit| match unit.fate() {
            Some(Fate::Quarantined(reason)) => Some(reason.needs_operator()),
            _ => None,
        });
        match quarantined.max() {
            Some(true) => Phase::NeedsOperator,
            Some(false) => Phase::Quarantined,
            None if self.moved() == self.units.len() => Phase::Committed,
            None if self.phase == Phase::Undoing => Phase::Aborted,
            None => Phase::Partial,
        }
    }

    /// Calls it off: at once if no unit is reserved, otherwise by undoing.
    fn call_off(&mut self, cause: Cause, work: &mut Work) {
        if self.phase == Phase::Undoing || self.phase.is_terminal() {
            return;
        }
        self.cause.get_or_insert(cause);
        self.open.clear();
        if self.phase.holds_units() {
            self.enter(Phase::Undoing, work);
        } else {
            for unit in &mut self.units {
                unit.begin(Step::Settled(Fate::Returned));
            }
            self.enter(Phase::Aborted, work);
        }
    }

    // --- the reservation ---------------------------------------------------------------------------------------------------

    /// Puts the units in transit, if all is still as planned.
    fn reserve(&mut self, work: &mut Work) -> Result<(), Cause> {
        for unit in &self.units {
            let as_planned = work.ledger.entry(unit.unit).is_some_and(|entry| {
                entry.epoch == unit.epoch && entry.owner == Owner::from(work.ledger.present(self.donor))
            });
            if !as_planned {
                return Err(Cause::StalePlan { unit: unit.unit });
            }
        }
        for end in [End::Donor, End::Receiver] {
            if let Some(kernel) = self.at(end).kernel()
                && !work.ledger.is_running(kernel)
            {
                return Err(Cause::Died { kernel });
            }
        }
        let kind = self.units.first().map(|unit| unit.unit.kind());
        let size = self.units.iter().map(|unit| unit.size).sum();
        if let Some(kind) = kind {
            let fits = work.traffic.check(&work.ledger, self.donor, self.receiver, kind, size);
            fits.map_err(|reached| Cause::LimitsReached { of: reached.of })?;
            if let Some(lot) = self.units.iter().find(|unit| matches!(unit.unit, UnitId::Lot(_)))
                && work.traffic.busy_with_lots(self.donor, self.receiver).is_some()
            {
                return Err(Cause::StalePlan { unit: lot.unit });
            }
        }
        for unit in &mut self.units {
            if unit.cut {
                // The plan cuts no more than there is, and nothing has changed since.
                unit.unit = work.split(unit.unit, unit.size).ok_or(Cause::StalePlan { unit: unit.unit })?;
                unit.cut = false;
            }
            unit.epoch = work.assign(unit.unit, Owner::InTransit(self.id));
        }
        Ok(())
    }

    fn has(&self, step: &Step) -> bool {
        self.units.iter().any(|unit| unit.step == *step)
    }

    fn all_settled(&self) -> bool {
        self.units.iter().all(Progress::is_settled)
    }

    fn all_settled_or(&self, step: &Step) -> bool {
        self.units.iter().all(|unit| unit.is_settled() || unit.step == *step)
    }

    fn unavailable(&self, at: usize) -> Cause {
        let unit = &self.units[at];
        Cause::UnitUnavailable { unit: unit.unit, veto: unit.veto.clone() }
    }
}

#[cfg(test)]
mod tests;
