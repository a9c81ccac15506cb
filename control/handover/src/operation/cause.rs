//! Why an operation does not go as asked for.

use std::fmt;

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

use super::{Phase, Question, Veto};
use crate::kernel::{Kernel, Party};
use crate::unit::UnitId;

/// Why an operation does not go as asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// Somebody called it off.
    Cancelled,
    /// A party said no.
    Vetoed {
        /// To what.
        question: Question,
        /// Who.
        by: Party,
        /// Why, and when to try again.
        veto: Veto,
    },
    /// A phase took too long.
    Deadline {
        /// Which.
        phase: Phase,
    },
    /// One end died.
    Died {
        /// Which.
        kernel: Kernel,
    },
    /// Between plan and reservation the unit changed hands or was asked about by another operation.
    StalePlan {
        /// Which.
        unit: UnitId,
    },
    /// Between plan and reservation other operations used up what the limits allow.
    LimitsReached {
        /// Whose limits.
        of: Party,
    },
    /// A unit could not be drained, or is not where the ledger had it.
    UnitUnavailable {
        /// Which.
        unit: UnitId,
        /// What its holder said, if it said anything.
        veto: Option<Veto>,
    },
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cancelled => f.write_str("it was called off"),
            Self::Vetoed { question, by, veto } => {
                write!(f, "{question} of {by}: {}", veto.reason)?;
                match veto.retry_after_ms {
                    Some(ms) => write!(f, "; try again in {ms} ms"),
                    None => Ok(()),
                }
            }
            Self::Deadline { phase } => write!(f, "the time of phase `{phase}` ran out"),
            Self::Died { kernel } => write!(f, "{kernel} died"),
            Self::StalePlan { unit } => write!(f, "{unit} changed hands after the plan was made; plan anew"),
            Self::LimitsReached { of } => {
                write!(f, "other operations used up what the limits of {of} allow after the plan was made")
            }
            Self::UnitUnavailable { unit, veto: Some(veto) } => write!(f, "{unit}: {}", veto.reason),
            Self::UnitUnavailable { unit, veto: None } => {
                write!(f, "{unit} could not be drained, or was not where the ledger had it")
            }
        }
    }
}
