//! A kernel that was spawned: control over it through its keeper.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::{SpawnError, SpawnerKind};
use crate::keeper::Exit;

/// A kernel that was spawned, running or ended. Clones control the same kernel; dropping them all changes nothing.
#[derive(Clone, Debug)]
pub struct Kernel {
    kind: SpawnerKind,
    runtime_dir: PathBuf,
    pid: u32,
}

/// Whether a kernel runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelStatus {
    /// Its process exists (it may be frozen).
    Running,
    /// It ended.
    Exited(Exit),
}

impl Kernel {
    /// The driver that made it.
    pub fn kind(&self) -> SpawnerKind {
        self.kind
    }

    /// The process that is the kernel, on this host.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its folder: sockets, console log, exit record.
    pub fn runtime_dir(&self) -> &Path {
        &self.runtime_dir
    }

    /// Where its console is recorded, from the first line. Earlier output is in `console.log.1`.
    pub fn console_log(&self) -> PathBuf {
        self.runtime_dir.join("console.log")
    }

    /// The host's end of its doorbell line (a duplicate, non-blocking Unix stream socket).
    pub async fn doorbell(&self) -> Result<OwnedFd, SpawnError> {
        Err(self.not_yet("fetch the doorbell of"))
    }

    /// Whether it runs.
    pub async fn status(&self) -> Result<KernelStatus, SpawnError> {
        Err(self.not_yet("ask about"))
    }

    /// Waits until it has ended. Cancel safe.
    pub async fn exited(&self) -> Result<Exit, SpawnError> {
        Err(self.not_yet("wait for"))
    }

    /// Kills it and all its helper processes; returns when none is left. Killing one that has ended is no error.
    pub async fn kill(&self) -> Result<Exit, SpawnError> {
        Err(self.not_yet("kill"))
    }

    /// Stops it in its tracks: no instruction of it runs until [`Kernel::thaw`].
    pub async fn freeze(&self) -> Result<(), SpawnError> {
        Err(self.not_yet("freeze"))
    }

    /// Lets it run on after [`Kernel::freeze`].
    pub async fn thaw(&self) -> Result<(), SpawnError> {
        Err(self.not_yet("thaw"))
    }

    /// Its live console, raw bytes both ways. One client at a time: a second is refused.
    pub async fn console(&self) -> Result<UnixStream, SpawnError> {
        Err(self.not_yet("open the console of"))
    }

    /// Dismisses the keeper of a kernel that has ended and removes every file the spawner made but the console log.
    ///
    /// # Errors
    /// [`SpawnError::Refused`] while it still runs.
    pub async fn forget(self) -> Result<(), SpawnError> {
        Err(self.not_yet("forget"))
    }

    fn not_yet(&self, action: &'static str) -> SpawnError {
        SpawnError::Control {
            action,
            runtime_dir: self.runtime_dir.clone(),
            reason: "the keeper is not built yet".into(),
        }
    }
}
