//! Overlays that were written: they stay until removed, with the blob.

use std::fmt;

use serde::Serialize;

use super::overlay::Step;

/// What `status` of a transaction says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TxStatus {
    /// Its operations run.
    Pending,
    /// All of them worked.
    Applied,
    /// One did not, or undoing did not.
    Failed,
    /// It was undone and is about to go.
    Removed,
}

impl fmt::Display for TxStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pending => "pending",
            Self::Applied => "applied",
            Self::Failed => "failed",
            Self::Removed => "removed",
        })
    }
}

/// One overlay that was written.
#[derive(Clone, Debug, Serialize)]
pub struct Transaction {
    /// Its number.
    pub id: u64,
    /// What `status` says.
    pub status: TxStatus,
    /// `target-path` of the first fragment: what the file `instance` says.
    pub target: String,
    /// The root property `mk,resources`.
    pub resources: String,
    /// The blob as it reached the kernel.
    #[serde(skip)]
    pub dtbo: Vec<u8>,
    #[serde(skip)]
    pub(super) steps: Vec<Step>,
    /// Those that ran to the end.
    #[serde(skip)]
    pub(super) ran: Vec<Step>,
}
