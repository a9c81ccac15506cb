//! What goes out of the machine and what comes in.

use std::fmt;

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

use crate::kernel::{Kernel, Party};
use crate::observe::{Command, Sighting};
use crate::owner::OpId;
use crate::unit::{Unit, UnitId};

/// Something for the shell to do, handed out only after the step that decided it is stored. A daemon killed at any instruction
/// asks again, so each may reach its target more than once.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Put a question to a party; answer [`Input::Answered`].
    Ask(Ask),
    /// Do something about a unit, or nothing, and look where it is; answer [`Input::Acted`].
    Act(Act),
    /// Answer [`Input::Expired`] after this time. Replaces any earlier timer of the operation.
    Arm {
        /// Whose timer.
        operation: OpId,
        /// To be echoed.
        round: u32,
        /// In ms.
        after_ms: u64,
    },
}

/// A question to one party about an operation as a whole.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ask {
    /// About which operation.
    pub operation: OpId,
    /// To be echoed.
    pub round: u32,
    /// What.
    pub question: Question,
    /// Which end of the operation is asked.
    pub end: End,
    /// Who that is.
    pub to: Party,
    /// The units and the epochs they have now. Whatever the party has heard of them under older ones is void.
    pub units: Vec<(UnitId, u64)>,
    /// How long the party keeps its side up without hearing of us, in ms.
    pub lease_ms: u64,
}

/// Something to do about one unit, and the look that follows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Act {
    /// For which operation.
    pub operation: OpId,
    /// Which unit.
    pub unit: Unit,
    /// Fencing token, to be echoed. A witness that has seen this one or a newer refuses the command.
    pub epoch: u64,
    /// What to do first; `None` only to look.
    pub command: Option<Command>,
    /// Wait so long before, in ms.
    pub after_ms: u64,
    /// Who gives.
    pub donor: Party,
    /// Who gets.
    pub receiver: Party,
    /// For a lot of memory: what rests with either end, in granules, to compare with what the kernels have. See [`crate::lots`].
    pub resting: Option<Resting>,
    /// How long an agent keeps its side up without hearing of us, in ms.
    pub lease_ms: u64,
}

/// Memory that rests with the ends of an operation, lots in transit left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Resting {
    /// With the donor, in granules.
    pub donor: u64,
    /// With the receiver, in granules.
    pub receiver: u64,
}

/// An end of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// Who gives.
    Donor,
    /// Who gets.
    Receiver,
}

/// What a party can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum Question {
    /// Its agent: can this work? A donor names blockers (pinned threads, unmovable pages, open descriptors), a receiver looks
    /// for room.
    Vote,
    /// Its applications' `check` hooks: may this happen?
    CheckHooks,
    /// Its agent: note epoch and lease; do nothing yet.
    Reserve,
    /// Its applications' `pre` hooks: get ready.
    PreHooks,
    /// Its agent: does all still stand? Asked right before the point of no return.
    Confirm,
    /// Its applications' `post` hooks: it has happened.
    PostHooks,
    /// Its applications' `undo` hooks: it will not happen.
    UndoHooks,
}

/// An answer to a question.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reply {
    /// Yes, or done.
    Yes,
    /// Yes, and no application there has hooks: none of them need be asked in this operation.
    YesWithoutHooks,
    /// No. A hook that fails, hangs past its time limit or prints what is not text also says no.
    No(Veto),
}

/// A refusal, with what the one who refuses knows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Schema)]
pub struct Veto {
    /// Why, in words for an operator.
    pub reason: String,
    /// When it may be worth asking again, in ms; `None` if asking again is of no use.
    pub retry_after_ms: Option<u64>,
}

/// Something that has happened.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Input {
    /// A party has answered a question.
    Answered {
        /// As asked.
        operation: OpId,
        /// As asked.
        round: u32,
        /// As asked.
        question: Question,
        /// As asked.
        end: End,
        /// The answer.
        reply: Reply,
    },
    /// Something was done about a unit, and then it was looked at.
    Acted {
        /// As told.
        operation: OpId,
        /// As told.
        unit: UnitId,
        /// As told.
        epoch: u64,
        /// Set if the command was refused and so has had no effect. Whatever this says, `sighting` decides.
        refused: Option<Veto>,
        /// What the witnesses say now.
        sighting: Sighting,
    },
    /// The time of a phase is over.
    Expired {
        /// As armed.
        operation: OpId,
        /// As armed.
        round: u32,
    },
    /// A kernel is dead for certain (fenced), not merely silent. What it holds stays its own until released or taken over.
    KernelDown(Kernel),
    /// An instance has booted anew: what its former boot held is now this one's.
    KernelUp(Kernel),
}

impl Question {
    /// Whether a no is only worth a warning, because what it is about has happened.
    pub fn can_only_warn(self) -> bool {
        matches!(self, Self::PostHooks | Self::UndoHooks)
    }

    /// Whether applications are asked.
    pub fn is_of_hooks(self) -> bool {
        matches!(self, Self::CheckHooks | Self::PreHooks | Self::PostHooks | Self::UndoHooks)
    }
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vote => "vote",
            Self::CheckHooks => "check hooks",
            Self::Reserve => "reservation",
            Self::PreHooks => "pre hooks",
            Self::Confirm => "confirmation",
            Self::PostHooks => "post hooks",
            Self::UndoHooks => "undo hooks",
        })
    }
}
