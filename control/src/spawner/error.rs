//! Why a kernel could not be made, found or controlled.

use std::io;
use std::path::PathBuf;

use super::SpawnerKind;

/// Why a kernel could not be made, found or controlled.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The host lacks what the spawner needs.
    #[error("the `{kind}` spawner cannot run on this host: {what}; {remedy}")]
    Unavailable {
        /// The spawner.
        kind: SpawnerKind,
        /// What is missing.
        what: String,
        /// What to do to get it.
        remedy: String,
    },
    /// The image is not a kernel this spawner can run.
    #[error("{path} is not a kernel the `{kind}` spawner can boot: {reason}; nothing was started")]
    NotAKernel {
        /// The spawner.
        kind: SpawnerKind,
        /// The image.
        path: PathBuf,
        /// What it is instead.
        reason: String,
    },
    /// The initial archive is not one that a kernel unpacks.
    #[error("{path} is not an initial archive that a kernel can unpack: {reason}; nothing was started")]
    NotAnArchive {
        /// The file.
        path: PathBuf,
        /// What it is instead, and what to do.
        reason: String,
    },
    /// The spec asks for what cannot be.
    #[error("kernel `{name}` cannot be spawned: {reason}; nothing was started")]
    BadSpec {
        /// The instance.
        name: String,
        /// What is wrong with its spec.
        reason: String,
    },
    /// A kernel lives in this folder already.
    #[error(
        "{runtime_dir} already has a keeper (process {keeper_pid}): adopt that kernel, or kill and forget it first"
    )]
    Occupied {
        /// The folder.
        runtime_dir: PathBuf,
        /// The keeper's process id; 0 when it is only now starting.
        keeper_pid: u32,
    },
    /// No kernel was started here, or it was forgotten.
    #[error("{runtime_dir} holds no kernel: nothing was ever started there, or it was forgotten")]
    NotFound {
        /// The folder.
        runtime_dir: PathBuf,
    },
    /// A file could not be made or read.
    #[error("could not {action} {path}")]
    File {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The keeper could not be started or did not become ready.
    #[error("the keeper in {runtime_dir} did not start: {reason}; its log is keeper.log there")]
    KeeperFailed {
        /// The folder.
        runtime_dir: PathBuf,
        /// What was seen.
        reason: String,
    },
    /// The keeper is there but an exchange with it failed.
    #[error("could not {action} the kernel through its keeper in {runtime_dir}; it may have taken effect")]
    Keeper {
        /// What was attempted.
        action: &'static str,
        /// The folder.
        runtime_dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The keeper refused.
    #[error("the keeper in {runtime_dir} refused to {action} the kernel: {reason}")]
    Refused {
        /// What was attempted.
        action: &'static str,
        /// The folder.
        runtime_dir: PathBuf,
        /// Its words.
        reason: String,
    },
    /// Freezing or thawing did not work.
    #[error("could not {action} the kernel in {runtime_dir}: {reason}")]
    Control {
        /// What was attempted.
        action: &'static str,
        /// The folder.
        runtime_dir: PathBuf,
        /// What was seen.
        reason: String,
    },
    /// The kernel has already ended.
    #[error("could not {action} the kernel in {runtime_dir}: it has ended ({exit})")]
    Ended {
        /// What was attempted.
        action: &'static str,
        /// The folder.
        runtime_dir: PathBuf,
        /// How.
        exit: crate::keeper::Exit,
    },
}
