//! Why the store cannot be opened, read or written.

use std::io;
use std::path::PathBuf;

/// Why the store cannot be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another daemon holds the folder.
    #[error(
        "{folder} is in use by another tombolod (process {pid}); stop that one, or give this one another --state-dir and --runtime-dir"
    )]
    InUse {
        /// The state or runtime folder.
        folder: PathBuf,
        /// The process that holds it; 0 if it did not say.
        pid: u32,
    },
    /// A folder or file cannot be made or opened.
    #[error("could not {action} {path}: {source}")]
    File {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not a store, or is damaged beyond what its journal mends.
    #[error(
        "{path} cannot be used as the store: {reason}; move it away to begin anew (kernels that run stay running)"
    )]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The store was written by a later version.
    #[error(
        "the store has layout version {found}, this tombolod understands {supported}; use a newer tombolod"
    )]
    Version {
        /// The version found.
        found: u64,
        /// The newest version understood.
        supported: u64,
    },
    /// One record cannot be understood.
    #[error("the stored {what} `{key}` cannot be understood: {reason}")]
    Damaged {
        /// What kind of record.
        what: &'static str,
        /// Which one.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Nothing can be written at present.
    #[error(
        "the store takes no writes: {reason}; nothing was changed. Reading commands still work; free the disk or make the folder writable, then try again"
    )]
    Refused {
        /// What the system said.
        reason: String,
    },
    /// It cannot be read.
    #[error("the store cannot be read: {reason}")]
    Read {
        /// What the system said.
        reason: String,
    },
}
