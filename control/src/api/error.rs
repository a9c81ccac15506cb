//! Why the daemon did not do what it was asked, and the exit code that says so to scripts.

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

use crate::core::State;

/// Why the daemon did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize, Schema)]
pub enum ControlError {
    /// There is nothing of that name.
    #[error("no {what} named `{name}`")]
    NotFound {
        /// Such as `instance`.
        what: String,
        /// As it was asked for.
        name: String,
    },
    /// It clashes with what is there.
    #[error("cannot {verb} `{name}`: {reason}; nothing was changed")]
    Conflict {
        /// What was asked.
        verb: String,
        /// Of what.
        name: String,
        /// What it clashes with.
        reason: String,
    },
    /// The caller may not.
    #[error("{verb} needs the role {needed}, and uid {uid} has the role {role}; nothing was changed")]
    Denied {
        /// What was asked.
        verb: String,
        /// The caller.
        uid: u32,
        /// The caller's role.
        role: String,
        /// The role it takes.
        needed: String,
    },
    /// The request makes no sense.
    #[error("{reason}; nothing was changed")]
    Invalid {
        /// What is wrong with it.
        reason: String,
    },
    /// The daemon cannot record changes now.
    #[error("{reason}")]
    StoreRefuses {
        /// The store's own words, with what to do.
        reason: String,
    },
    /// The kernel has no agent that answers now.
    #[error("the agent of `{name}` cannot be reached: the instance is {state}{hint}")]
    AgentUnreachable {
        /// The instance.
        name: String,
        /// Its state.
        state: State,
        /// What to do, or empty.
        hint: String,
    },
    /// The agent inside took the request and refused it.
    #[error("{name}: {reason}")]
    Inside {
        /// The instance.
        name: String,
        /// What kind of refusal.
        kind: Refusal,
        /// The agent's own words.
        reason: String,
    },
    /// The call to the agent broke off.
    #[error("the call to the agent of `{name}` failed: {reason}")]
    Broken {
        /// The instance.
        name: String,
        /// Why, and whether it may have run.
        reason: String,
        /// Whether it may have taken effect.
        may_have_run: bool,
    },
    /// It did not happen in time. It may happen yet.
    #[error("{what} did not happen within {waited_ms} ms; it may happen yet")]
    TimedOut {
        /// What was waited for.
        what: String,
        /// How long.
        waited_ms: u64,
    },
    /// It was tried and did not work.
    #[error("could not {attempt}: {reason}")]
    Failed {
        /// What was tried.
        attempt: String,
        /// What went wrong.
        reason: String,
    },
    /// It does not fit what is there.
    #[error("{reason}; nothing was changed")]
    Refused {
        /// Why.
        reason: String,
    },
    /// An operator must look: what is there cannot be told from here.
    #[error("{reason}; this needs an operator")]
    Operator {
        /// What is not known.
        reason: String,
    },
}

/// What kind of refusal an agent gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub enum Refusal {
    /// There is no such program, file or job.
    NotFound,
    /// It is there but cannot be executed.
    NotExecutable,
    /// It clashes with what is there.
    Conflict,
    /// The request makes no sense.
    Invalid,
    /// It was tried and did not work.
    Failed,
}

/// What an exit code of `tombolo` means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitKind {
    /// Done.
    Ok = 0,
    /// It was tried and failed.
    Failed = 1,
    /// The command line or the request makes no sense.
    Usage = 2,
    /// No such thing.
    NotFound = 3,
    /// It clashes with what is there.
    Conflict = 4,
    /// The caller may not.
    Denied = 5,
    /// It may or may not have happened.
    Unknown = 6,
    /// Some of it happened.
    Partial = 7,
    /// The daemon cannot be reached.
    Unreachable = 8,
    /// An operator must look.
    Operator = 9,
    /// The user interrupted it.
    Interrupted = 130,
}

impl ControlError {
    /// The exit code that says so.
    pub fn exit_kind(&self) -> ExitKind {
        match self {
            Self::NotFound { .. } => ExitKind::NotFound,
            Self::Conflict { .. } | Self::Refused { .. } => ExitKind::Conflict,
            Self::Denied { .. } => ExitKind::Denied,
            Self::Invalid { .. } => ExitKind::Usage,
            Self::TimedOut { .. } => ExitKind::Unknown,
            Self::Inside { kind, .. } => match kind {
                Refusal::NotFound => ExitKind::NotFound,
                Refusal::Conflict => ExitKind::Conflict,
                Refusal::Invalid => ExitKind::Usage,
                Refusal::NotExecutable | Refusal::Failed => ExitKind::Failed,
            },
            Self::Broken { may_have_run: true, .. } => ExitKind::Unknown,
            Self::Broken { .. }
            | Self::StoreRefuses { .. }
            | Self::AgentUnreachable { .. }
            | Self::Failed { .. } => ExitKind::Failed,
            Self::Operator { .. } => ExitKind::Operator,
        }
    }

    /// How the agent refused, if it is the agent that did.
    pub fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Inside { kind, .. } => Some(*kind),
            _ => None,
        }
    }

    /// There is no instance of this name.
    pub fn no_instance(name: impl Into<String>) -> Self {
        Self::NotFound { what: "instance".into(), name: name.into() }
    }

    /// It was tried and did not work.
    pub fn failed(attempt: impl Into<String>, reason: impl std::fmt::Display) -> Self {
        Self::Failed { attempt: attempt.into(), reason: reason.to_string() }
    }
}

impl From<crate::store::StoreError> for ControlError {
    fn from(error: crate::store::StoreError) -> Self {
        Self::StoreRefuses { reason: error.to_string() }
    }
}
