//! Starting a keeper: the part of spawning that all spawners share.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use tokio::io::AsyncReadExt as _;
use tokio::time::timeout;

use super::kernel::{ask, remove_spawned_files};
use super::{Kernel, SpawnError, multikernel};
use crate::keeper::{Job, Request, names, remove_all, write_atomically};

/// How long a keeper may take to be ready: it is a fork, an exec and three files, on a host that may be busy.
const READY_MAX: Duration = Duration::from_secs(20);

/// A runtime folder that is ours: locked, empty of what an earlier kernel left, and cleaned again unless used.
///
/// The lock (flock) is on the folder itself and becomes the keeper's stdin: it is held without a gap until the keeper has
/// gone, and leaves no file behind.
#[derive(Debug)]
pub(super) struct Claim {
    dir: PathBuf,
    lock: Option<fs::File>,
}

impl Claim {
    /// Makes the folder if missing and takes it for one kernel. A kernel that ended there is forgotten.
    pub(super) async fn take(dir: &Path) -> Result<Self, SpawnError> {
        let file_error = |action| move |source| SpawnError::File { action, path: dir.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(file_error("create the folder"))?;
        let lock = fs::File::open(dir).map_err(file_error("open the folder"))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let keeper_pid = ask(dir, Request::Status).await.map_or(0, |status| status.keeper_pid);
            return Err(SpawnError::Occupied { runtime_dir: dir.to_owned(), keeper_pid });
        }
        // An earlier kernel here has no keeper any more. Make sure that nothing of it runs, then remove its files.
        match Kernel::find(dir).await {
            Ok(earlier) => drop(earlier.exit_under_lock().await?),
            Err(SpawnError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        multikernel::clear(dir).await.map_err(|reason| SpawnError::Refused {
            action: "forget",
            runtime_dir: dir.to_owned(),
            reason,
        })?;
        remove_spawned_files(dir)?;
        Ok(Self { dir: dir.to_owned(), lock: Some(lock) })
    }

    /// Takes the folder of a kernel that runs and has lost its keeper, with all that is in it.
    pub(super) fn take_again(dir: &Path) -> Result<Self, SpawnError> {
        let file_error = |action| move |source| SpawnError::File { action, path: dir.to_owned(), source };
        let lock = fs::File::open(dir).map_err(file_error("open the folder"))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(SpawnError::Occupied { runtime_dir: dir.to_owned(), keeper_pid: 0 });
        }
        // What the keeper that died left would be in the way of another.
        remove_all(&[dir.join(names::SOCKET), dir.join(names::EXIT_ROOM)]).map_err(file_error("clean"))?;
        Ok(Self { dir: dir.to_owned(), lock: Some(lock) })
    }

    /// Starts the keeper with `job`; returns once it serves. On failure the folder is clean again.
    pub(super) async fn launch(mut self, keeper_binary: &Path, job: &Job) -> Result<Kernel, SpawnError> {
        let dir = self.dir.clone();
        let job = serde_json::to_vec_pretty(job).map_err(|error| self.failed(error.to_string()))?;
        write_atomically(&dir.join(names::JOB), &job).map_err(|source| SpawnError::File {
            action: "write",
            path: dir.join(names::JOB),
            source,
        })?;
        let lock = self.lock.take().ok_or_else(|| self.failed("the folder's lock is gone".into()))?;
        let lock_again = lock.try_clone().map_err(|error| self.failed(format!("its lock: {error}")))?;
        let outcome =
            start_keeper(keeper_binary, &dir, lock_again).await.map_err(|reason| self.failed(reason));
        self.lock = Some(lock);
        outcome?;
        let kernel = Kernel::find(&dir).await?;
        self.lock = None; // the keeper holds it now; nothing here is to be cleaned
        Ok(kernel)
    }

    fn failed(&self, reason: String) -> SpawnError {
        SpawnError::KeeperFailed { runtime_dir: self.dir.clone(), reason }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.lock.is_some() && remove_spawned_files(&self.dir).is_err() {
            tracing::warn!(dir = %self.dir.display(), "could not remove the files of a kernel that was not started");
        }
    }
}

/// Runs `BINARY keeper --dir DIR` with the lock as its stdin, and waits for its word on stdout.
async fn start_keeper(binary: &Path, dir: &Path, lock: fs::File) -> Result<(), String> {
    let told = |what: &'static str| move |error: io::Error| format!("could not {what}: {error}");
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(dir.join(names::LOG));
    let mut keeper = tokio::process::Command::new(binary)
        .args(["keeper", "--dir"])
        .arg(dir)
        .stdin(Stdio::from(lock))
        .stdout(Stdio::piped())
        .stderr(log.map_err(told("create its log"))?)
        .spawn()
        .map_err(|error| format!("could not run {} keeper: {error}", binary.display()))?;
    let mut stdout = keeper.stdout.take().ok_or("its stdout is not piped")?;
    let mut said = String::new();
    let waited = timeout(READY_MAX, stdout.read_to_string(&mut said)).await;
    let reason = match waited {
        Ok(Ok(_)) if said.trim() == "ready" => {
            // It is our child as long as we live: reap it when it leaves.
            tokio::spawn(async move { keeper.wait().await });
            return Ok(());
        }
        Ok(Ok(_)) if said.is_empty() => {
            let log = fs::read_to_string(dir.join(names::LOG)).unwrap_or_default();
            format!("{} keeper ended without a word; {}", binary.display(), log.trim())
        }
        Ok(Ok(_)) => said.trim().to_owned(),
        Ok(Err(error)) => format!("could not read what it says: {error}"),
        Err(_) => format!("it was not ready after {READY_MAX:?}"),
    };
    let _ = keeper.start_kill();
    let _ = keeper.wait().await;
    Err(reason)
}
