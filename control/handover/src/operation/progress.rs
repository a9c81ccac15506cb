//! Where one unit of an operation is on its way.

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

use super::effect::Veto;
use crate::observe::{Command, Doubt, Whereabouts};
use crate::owner::Quarantine;
use crate::unit::UnitId;

/// One unit on its way.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, Schema)]
pub struct Progress {
    /// The unit. Until the units are reserved, for memory that has to be cut, the unit it is cut from.
    pub unit: UnitId,
    /// How much of it, in granules of memory or 1.
    pub size: u64,
    /// Whether it is to be cut from `unit` when it is reserved.
    pub cut: bool,
    /// The epoch it was planned on; once it is reserved, the epoch of what was asked last. Answers to anything else are void.
    pub epoch: u64,
    /// What is being done.
    pub step: Step,
    /// Whether an answer is awaited.
    pub asked: bool,
    /// Commands given in this step.
    pub tries: u8,
    /// Looks in a row that placed it nowhere.
    pub looks: u8,
    /// The last command of this step, one that moves the unit before one that does not. Stored before it is given: what is not
    /// here was not asked.
    pub told: Option<Command>,
    /// Whether the donor was ever told to drain it: then an undo must reach the donor, if only to outdate that order.
    pub touched: bool,
    /// Where it was seen last.
    pub place: Whereabouts,
    /// The last refusal.
    pub veto: Option<Veto>,
}

/// What is being done with a unit.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Nothing yet.
    Waiting,
    /// It is being looked at, whether it is where the ledger had it.
    Looking,
    /// It is.
    Ready,
    /// The donor drains it.
    Draining,
    /// It is drained.
    Offlined,
    /// The spawner detaches it.
    Revoking,
    /// It is detached.
    Revoked,
    /// The spawner attaches it, the receiver brings it into use.
    Granting,
    /// The receiver cannot use it: the spawner detaches it again.
    Withdrawing,
    /// The donor gets it back into use.
    Undoing,
    /// Its owner is known.
    Settled(Fate),
}

/// What became of a unit.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// The receiver has it and uses it.
    Moved,
    /// The receiver has it and was not seen to use it.
    Stranded,
    /// The donor has it.
    Returned,
    /// The donor lost it and the receiver did not get it: it is free.
    Pooled,
    /// Where it is could not be proven.
    Quarantined(Quarantine),
}

impl Progress {
    /// A unit of a plan.
    pub(crate) fn planned(unit: UnitId, size: u64, cut: bool, epoch: u64) -> Self {
        Self {
            unit,
            size,
            cut,
            epoch,
            step: Step::Waiting,
            asked: false,
            tries: 0,
            looks: 0,
            told: None,
            touched: false,
            place: Whereabouts::Undecided(Doubt::Unseen),
            veto: None,
        }
    }

    /// What became of it, once that is known.
    pub fn fate(&self) -> Option<&Fate> {
        match &self.step {
            Step::Settled(fate) => Some(fate),
            _ => None,
        }
    }

    /// Whether its owner is known.
    pub fn is_settled(&self) -> bool {
        self.fate().is_some()
    }

    /// Whether something is being done about it that ends with an answer.
    pub(super) fn is_active(&self) -> bool {
        match self.step {
            Step::Looking
            | Step::Draining
            | Step::Revoking
            | Step::Granting
            | Step::Withdrawing
            | Step::Undoing => true,
            Step::Waiting | Step::Ready | Step::Offlined | Step::Revoked | Step::Settled(_) => false,
        }
    }

    /// Notes that a command is about to be given.
    pub(super) fn note(&mut self, command: Command) {
        self.tries = self.tries.saturating_add(1);
        self.looks = 0;
        self.touched |= command == Command::Drain;
        if command.moves() || !self.told.is_some_and(Command::moves) {
            self.told = Some(command);
        }
    }

    /// Goes to another step.
    pub(super) fn begin(&mut self, step: Step) {
        self.step = step;
        self.tries = 0;
        self.looks = 0;
        self.told = None;
    }
}
