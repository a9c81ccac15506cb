//! What a keeper is told to do, and what it records in the end.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How a kernel ended, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// How it ended.
    pub how: ExitHow,
    /// When the keeper reaped it: nanoseconds since the Unix epoch.
    pub at_unix_ns: u64,
}

/// How a kernel ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitHow {
    /// It powered itself off in good order.
    PoweredOff,
    /// It panicked.
    Panicked,
    /// A signal killed it (9 for SIGKILL).
    Signaled(i32),
    /// It exited with this status, neither powered off nor panicked.
    Code(i32),
    /// It could not be started at all; the text says why.
    NeverRan(String),
    /// Nobody saw how: its keeper died first, and the kernel with it.
    Lost,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.how.fmt(f)
    }
}

impl fmt::Display for ExitHow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PoweredOff => f.write_str("powered off"),
            Self::Panicked => f.write_str("panicked"),
            Self::Signaled(signal) => write!(f, "killed by signal {signal}"),
            Self::Code(code) => write!(f, "exited with status {code}"),
            Self::NeverRan(reason) => write!(f, "never ran: {reason}"),
            Self::Lost => f.write_str("lost: its keeper died, and the kernel with it"),
        }
    }
}
