//! Driving the units of an operation, one by one, by the table in `decide`.

use super::decide::{Decision, View, decide, give_up};
use super::{Fate, Operation, Step};
use crate::coordinator::Work;
use crate::kernel::Party;
use crate::observe::{Command, Doubt, Whereabouts};
use crate::owner::Owner;
use crate::request::Shortfall;

impl Operation {
    /// Begins a step for every unit that waits at a barrier, from where each was seen last.
    pub(super) fn start(&mut self, from: &Step, step: Step, work: &mut Work) {
        for at in 0..self.units.len() {
            if self.units[at].step == *from {
                self.units[at].begin(step.clone());
                self.drive(at, 0, work);
            }
        }
    }

    pub(super) fn start_undoing(&mut self, work: &mut Work) {
        for at in 0..self.units.len() {
            let unit = &mut self.units[at];
            if unit.is_settled() || unit.step == Step::Undoing {
                continue;
            }
            unit.begin(Step::Undoing);
            let doubtful = match unit.place {
                Whereabouts::Undecided(doubt) => doubt != Doubt::Unseen,
                _ => false,
            };
            if self.donor == Party::Pool || !(unit.touched || doubtful) {
                // Nobody was asked for anything that could have changed where it is.
                self.settle(at, Fate::Returned, work);
            } else if doubtful {
                self.look(at, 0, work);
            } else {
                self.tell(at, Command::Undrain, 0, work);
            }
        }
    }

    /// Does what the table says about one unit.
    pub(super) fn drive(&mut self, at: usize, pause_ms: u64, work: &mut Work) {
        let view = self.view(work);
        let decision = decide(&self.units[at], &view);
        self.carry_out(at, decision, pause_ms, work);
    }

    pub(super) fn carry_out(&mut self, at: usize, decision: Decision, pause_ms: u64, work: &mut Work) {
        match decision {
            Decision::Tell(command) => self.tell(at, command, pause_ms, work),
            Decision::Look => {
                let (looks_max, again_ms) = (self.rules.looks_max, self.rules.look_again_ms);
                let unit = &mut self.units[at];
                if unit.is_active() && unit.looks < looks_max {
                    let first = unit.step == Step::Looking && unit.looks == 0;
                    unit.looks += 1;
                    self.look(at, if first { 0 } else { again_ms }, work);
                }
            }
            Decision::Reach(step) => self.units[at].begin(step),
            Decision::Turn(step) => {
                self.units[at].begin(step);
                self.drive(at, pause_ms, work);
            }
            Decision::Settle(fate) => {
                self.settle(at, fate, work);
                if self.phase.is_before_point_of_no_return() && self.request.shortfall == Shortfall::Abort {
                    let cause = self.unavailable(at);
                    self.call_off(cause, work);
                }
            }
            Decision::Fail => self.fail(at, work),
        }
    }

    pub(super) fn fail(&mut self, at: usize, work: &mut Work) {
        match self.request.shortfall {
            Shortfall::MoveTheRest if self.units[at].touched => {
                self.units[at].begin(Step::Undoing);
                self.tell(at, Command::Undrain, 0, work);
            }
            Shortfall::MoveTheRest => self.settle(at, Fate::Returned, work),
            Shortfall::Abort => {
                let cause = self.unavailable(at);
                self.call_off(cause, work);
            }
        }
    }

    /// Whether the time to drain may run out for some units alone, because others are drained and may go on without them.
    pub(super) fn can_leave_behind(&self) -> bool {
        self.request.shortfall == Shortfall::MoveTheRest && self.open.is_empty() && self.has(&Step::Offlined)
    }

    /// Gives back what is not drained in time, and waits for that in turn.
    pub(super) fn leave_behind(&mut self, work: &mut Work) {
        self.expiries = self.expiries.saturating_add(1);
        self.new_round(work);
        for at in 0..self.units.len() {
            match self.units[at].step {
                Step::Draining => self.fail(at, work),
                Step::Undoing if self.expiries >= self.rules.patience => {
                    let decision = give_up(&self.units[at], &self.view(work));
                    self.carry_out(at, decision, 0, work);
                }
                Step::Undoing => self.look(at, 0, work),
                _ => {}
            }
        }
    }

    pub(super) fn settle(&mut self, at: usize, fate: Fate, work: &mut Work) {
        let owner = match &fate {
            Fate::Moved | Fate::Stranded => work.ledger.present(self.receiver).into(),
            Fate::Returned => work.ledger.present(self.donor).into(),
            Fate::Pooled => Owner::Pool,
            Fate::Quarantined(reason) => Owner::Quarantined(reason.clone()),
        };
        let unit = &mut self.units[at];
        work.note_settled(self.id, unit.unit, &fate);
        unit.begin(Step::Settled(fate));
        unit.asked = false;
        work.settle(unit.unit, owner);
    }

    pub(super) fn tell(&mut self, at: usize, command: Command, pause_ms: u64, work: &mut Work) {
        self.units[at].note(command);
        self.act(at, Some(command), pause_ms, work);
    }

    pub(super) fn look(&mut self, at: usize, pause_ms: u64, work: &mut Work) {
        self.act(at, None, pause_ms, work);
    }

    pub(super) fn act(&mut self, at: usize, command: Option<Command>, after_ms: u64, work: &mut Work) {
        let unit = &mut self.units[at];
        unit.epoch = work.raise_epoch(unit.unit);
        unit.asked = true;
        work.act(self.id, unit.unit, command, after_ms, self.donor, self.receiver, self.rules.lease_ms);
    }

    pub(super) fn view(&self, work: &Work) -> View {
        let runs = |party: Party| party.kernel().is_none_or(|kernel| work.ledger.is_running(kernel));
        View {
            drain: self.rules.drain,
            tries_max: self.rules.tries_max,
            donor: self.donor,
            donor_runs: runs(work.ledger.present(self.donor)),
            donor_rebooted: work.ledger.present(self.donor) != self.donor,
            receiver: self.receiver,
            receiver_runs: runs(self.receiver),
        }
    }
}
