//! Why a command did not succeed, told to people on stderr and to scripts by the exit code.

use std::fmt::Display;
use std::io;
use std::process::ExitCode;

use tombolo_rpc::{CallError, Failure, Outcome};

use super::output::Output;
use crate::api::error::Refusal;
use crate::api::{ControlError, ExitKind};

/// Why a command did not succeed.
#[derive(Debug)]
pub(super) struct CliError {
    kind: ExitKind,
    /// What goes to stderr; empty if nothing does.
    message: String,
    /// An exit code of a program's that takes the place of ours.
    code: Option<u8>,
    /// How the agent refused, if it did.
    refusal: Option<Refusal>,
}

impl CliError {
    pub(super) fn new(kind: ExitKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), code: None, refusal: None }
    }

    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self::new(ExitKind::Usage, message)
    }

    pub(super) fn failed(attempt: impl Display, reason: impl Display) -> Self {
        Self::new(ExitKind::Failed, format!("could not {attempt}: {reason}"))
    }

    /// The user pressed Ctrl-C, or somebody told us to end. `left` is what becomes of what was begun.
    pub(super) fn interrupted(left: &str) -> Self {
        let message = if left.is_empty() { String::new() } else { format!("interrupted; {left}") };
        Self::new(ExitKind::Interrupted, message)
    }

    /// The same with one more thing to know.
    pub(super) fn and(self, more: impl Display) -> Self {
        Self { message: format!("{}; {more}", self.message), ..self }
    }

    /// Our stdout was closed: whoever reads has had enough.
    pub(super) fn written(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::new(ExitKind::Ok, "");
        }
        Self::failed("write to stdout", error)
    }

    /// With this exit code instead.
    pub(super) fn with_code(self, code: u8) -> Self {
        Self { code: Some(code), ..self }
    }

    pub(super) fn refusal(&self) -> Option<Refusal> {
        self.refusal
    }

    pub(super) fn kind(&self) -> ExitKind {
        self.kind
    }

    /// Tells people, and gives the exit code.
    pub(super) fn report(&self, output: &Output) -> ExitCode {
        let code = self.code.unwrap_or(self.kind as u8);
        if !self.message.is_empty() {
            output.problem(&self.message, code);
        }
        ExitCode::from(code)
    }

    pub(super) fn message(&self) -> &str {
        &self.message
    }
}

impl From<CallError<ControlError>> for CliError {
    fn from(error: CallError<ControlError>) -> Self {
        match error {
            CallError::App(error) => {
                Self { refusal: error.refusal(), ..Self::new(error.exit_kind(), error.to_string()) }
            }
            CallError::Failed(failure) => failure.into(),
        }
    }
}

impl From<Failure> for CliError {
    fn from(failure: Failure) -> Self {
        let kind = match (&failure, failure.outcome()) {
            (_, Outcome::Unknown) => ExitKind::Unknown,
            (Failure::LinkLost { .. }, _) => ExitKind::Unreachable,
            _ => ExitKind::Failed,
        };
        Self::new(kind, format!("the daemon did not answer as it should: {failure}"))
    }
}
