//! Asking, asking again, and doing without an answer.

use super::decide::give_up;
use super::{Ask, Effect, End, Operation, Phase, Progress, Question};
use crate::coordinator::Work;
use crate::kernel::Party;

impl Operation {
    pub(super) fn new_round(&mut self, work: &mut Work) {
        self.round += 1;
        if let Some(after_ms) = self.rules.deadline_ms(self.phase) {
            work.arm(self.id, self.round, after_ms);
        }
    }

    /// Asks all that is unanswered anew, under new epochs.
    pub(super) fn ask_again(&mut self, work: &mut Work) {
        self.new_round(work);
        for (question, end) in self.open.clone() {
            self.put(question, end, work);
        }
        self.look_at_active(work);
    }

    pub(super) fn look_at_active(&mut self, work: &mut Work) {
        for at in 0..self.units.len() {
            if self.units[at].is_active() {
                self.units[at].looks = 0;
                self.look(at, 0, work);
            }
        }
    }

    /// Patience is at an end: every unit is settled by what is proven.
    pub(super) fn give_up(&mut self, work: &mut Work) {
        for at in 0..self.units.len() {
            if self.units[at].is_active() {
                let decision = give_up(&self.units[at], &self.view(work));
                self.carry_out(at, decision, 0, work);
            }
        }
        if self.phase == Phase::Undoing {
            self.stop_waiting(work);
        }
    }

    /// Does without the answers that are still open.
    pub(super) fn stop_waiting(&mut self, work: &Work) {
        for (question, end) in std::mem::take(&mut self.open) {
            self.warnings
                .push(format!("{question} of {}: no answer in time", work.ledger.name(self.at(end))));
        }
        self.hooks_ran = false;
    }

    pub(super) fn ask_hooks(&mut self, question: Question, work: &mut Work) {
        if self.request.hooks {
            self.ask(question, work);
        }
    }

    /// Asks both ends, the pool excepted and the dead, and of hooks those that have none.
    pub(super) fn ask(&mut self, question: Question, work: &mut Work) {
        for end in [End::Donor, End::Receiver] {
            let party = self.at(end);
            let answers = match party {
                Party::Pool => false,
                Party::Host => true,
                Party::Instance(kernel) => !question.can_only_warn() || work.ledger.is_running(kernel),
            };
            let has_none = question.is_of_hooks() && self.without_hooks.contains(&end);
            if answers && !has_none {
                self.open.push((question, end));
                self.put(question, end, work);
            }
        }
    }

    pub(super) fn put(&self, question: Question, end: End, work: &mut Work) {
        // What has dropped out is nothing to promise; hooks hear of all of it.
        let concerns = |unit: &&Progress| {
            !matches!(question, Question::Reserve | Question::Confirm) || !unit.is_settled()
        };
        let units = self.units.iter().filter(concerns).map(|unit| (unit.unit, unit.epoch)).collect();
        work.effects.push(Effect::Ask(Ask {
            operation: self.id,
            round: self.round,
            question,
            end,
            to: self.at(end),
            units,
            lease_ms: self.rules.lease_ms,
        }));
    }
}
