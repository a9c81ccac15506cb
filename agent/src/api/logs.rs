//! `tombolo.agent.Logs`: what the kernel, the agent and the entrypoint wrote.
//!
//! All of it goes to one bounded buffer, in the order in which the agent saw it. A cursor names a place in it; reading
//! may go on from a cursor after a lost link, without a repeat and without a silent gap.

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};
use tombolo_rpc::Ctx;

/// Logs of this kernel.
#[tombolo_rpc::service(name = "tombolo.agent.Logs")]
pub trait Logs {
    /// Sends what is there, then (with `follow`) what comes; the answer is the cursor after the last one sent.
    async fn read(&self, cx: &Ctx, query: LogQuery, out: Sender<LogItem>) -> Result<LogCursor, LogError>;
}

/// Request of [`Logs::read`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct LogQuery {
    /// Go on after this place. Default: from the oldest record that is kept.
    pub after: Option<LogCursor>,
    /// Begin with the last so many matching records. Ignored with `after`.
    pub tail: Option<u32>,
    /// Only these sources; empty means all.
    pub sources: Vec<LogSource>,
    /// Stay and send what comes.
    pub follow: bool,
}

/// A place in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, Schema)]
pub struct LogCursor {
    /// Which life of the agent.
    pub epoch: u64,
    /// Sequence number of the last record seen; they count from 1.
    pub seq: u64,
}

/// Who wrote a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum LogSource {
    /// The kernel (`/dev/kmsg`).
    Kernel,
    /// The agent.
    Agent,
    /// The entrypoint, to stdout.
    Stdout,
    /// The entrypoint, to stderr.
    Stderr,
}

/// What [`Logs::read`] sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub enum LogItem {
    /// One record.
    Record(LogRecord),
    /// Records between the last one sent and the next one were dropped.
    Gap {
        /// How many; `None` if the cursor was of an earlier life of the agent.
        records: Option<u64>,
    },
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct LogRecord {
    /// Where it is.
    pub cursor: LogCursor,
    /// Since 1970, by the clock of this kernel.
    pub wall_ns: u64,
    /// Who wrote it.
    pub source: LogSource,
    /// How grave it is.
    pub level: LogLevel,
    /// The line, without its end; bytes that are not UTF-8 are replaced; at most 8 KiB.
    pub text: String,
}

/// How grave a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Schema)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Something is broken.
    Error,
    /// Something is odd.
    Warn,
    /// Something happened.
    Info,
    /// Details.
    Debug,
}

/// What can go wrong in [`Logs`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize, Schema)]
pub enum LogError {
    /// The cursor is ahead of everything in the log.
    #[error("cursor {asked} is ahead of the log, whose last record is {last}")]
    CursorAhead {
        /// As it was asked for.
        asked: u64,
        /// The newest record.
        last: u64,
    },
}
