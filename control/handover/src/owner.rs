//! Who owns a unit.

use std::fmt;

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

use crate::kernel::{Kernel, Party};
use crate::observe::Command;

/// Names an operation; numbers rise and are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Schema)]
#[serde(transparent)]
pub struct OpId(pub u64);

/// Who owns a unit. There is no other state, and a unit has exactly one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum Owner {
    /// The primary kernel's own use.
    Host,
    /// Nobody: free to be granted.
    Pool,
    /// A kernel. A dead kernel keeps its units until they are released or its next boot takes them over.
    Instance(Kernel),
    /// An operation, which is finding out or deciding where it goes.
    InTransit(OpId),
    /// Nobody may touch it, because where it is could not be proven.
    Quarantined(Quarantine),
}

/// Why a unit is in quarantine, in terms an operator can check.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum Quarantine {
    /// The spawner was told to detach or attach it, and nobody could say since where it is.
    Unobserved {
        /// What had been asked last.
        after: Option<Command>,
    },
    /// The spawner was told to detach or attach it, was not heard to finish, and may finish yet.
    MayChangeYet {
        /// What had been asked last.
        after: Option<Command>,
    },
    /// Two witnesses contradict each other: a spawner says it is not there, a kernel says it is using it.
    Contradiction {
        /// Whom the spawner said to have it.
        attached: Party,
        /// Who claimed to be using it all the same.
        claimed_by: Party,
    },
    /// It was found with somebody who has no part in the operation.
    FoundElsewhere {
        /// With whom.
        with: Party,
    },
    /// The ledger says an operation has it, and there is no such operation.
    Orphaned {
        /// Which one.
        operation: OpId,
    },
    /// It is free by the ledger, and others than the ledger dispose of it as well: by what they say it is not to be had.
    TakenByOthers,
}

impl Owner {
    /// The owner as a party, if the unit is at rest.
    pub fn party(&self) -> Option<Party> {
        match self {
            Self::Host => Some(Party::Host),
            Self::Pool => Some(Party::Pool),
            Self::Instance(kernel) => Some(Party::Instance(*kernel)),
            Self::InTransit(_) | Self::Quarantined(_) => None,
        }
    }
}

impl From<Party> for Owner {
    fn from(party: Party) -> Self {
        match party {
            Party::Host => Self::Host,
            Party::Pool => Self::Pool,
            Party::Instance(kernel) => Self::Instance(kernel),
        }
    }
}

impl Quarantine {
    /// Whether it takes a person: waiting and looking again will not resolve it.
    pub fn needs_operator(&self) -> bool {
        match self {
            Self::Unobserved { .. } | Self::MayChangeYet { .. } => false,
            Self::Contradiction { .. }
            | Self::FoundElsewhere { .. }
            | Self::Orphaned { .. }
            | Self::TakenByOthers => true,
        }
    }
}

impl fmt::Display for OpId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "operation {}", self.0)
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => Party::Host.fmt(f),
            Self::Pool => Party::Pool.fmt(f),
            Self::Instance(kernel) => kernel.fmt(f),
            Self::InTransit(operation) => write!(f, "{operation}, in transit"),
            Self::Quarantined(reason) => write!(f, "quarantine ({reason})"),
        }
    }
}

impl fmt::Display for Quarantine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unobserved { after: Some(after) } => {
                write!(f, "after `{after}` nobody could say where it is; look again when the spawner answers")
            }
            Self::Unobserved { after: None } => {
                f.write_str("nobody could say where it is; look again when the spawner answers")
            }
            Self::MayChangeYet { after: Some(after) } => {
                write!(
                    f,
                    "`{after}` was never answered and may still take effect; stop that kernel or wait, then look again"
                )
            }
            Self::MayChangeYet { after: None } => f.write_str(
                "something asked of the spawner earlier may still take effect; wait, then look again",
            ),
            Self::Contradiction { attached, claimed_by } => write!(
                f,
                "the spawner says it is with {attached}, yet {claimed_by} says it is using it; stop {claimed_by}, then look again"
            ),
            Self::FoundElsewhere { with } => {
                write!(
                    f,
                    "it was found with {with}, which has no part in the operation; find out who moved it"
                )
            }
            Self::TakenByOthers => f.write_str(
                "another program has it, or has taken it from the pool; it is free again once that gives it back",
            ),
            Self::Orphaned { operation } => {
                write!(
                    f,
                    "the ledger gives it to {operation}, of which there is no record; look where it is, then repair"
                )
            }
        }
    }
}
