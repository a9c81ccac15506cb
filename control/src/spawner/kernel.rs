//! A kernel that was spawned: control over it through its keeper.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tokio::time::timeout;

use super::keeper_link::{KeeperLink, LinkError};
use super::multikernel::{self, HostEnd};
use super::{SpawnError, SpawnerKind, process, qemu, uml};
use crate::keeper::{
    Exit, ExitHow, KernelRecord, Request, Status, kill_group_of, names, remove_all, write_atomically,
};

/// How long the keeper may take to answer what it answers at once. It is one poll(2) loop: this is for a loaded host.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// How long a kernel may take to die of SIGKILL, helpers included (the keeper itself gives up after 10 s).
const KILL_MAX: Duration = Duration::from_secs(15);

/// A kernel that was spawned, running or ended. Clones control the same kernel; dropping them all changes nothing.
#[derive(Clone, Debug)]
pub struct Kernel {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    runtime_dir: PathBuf,
    record: KernelRecord,
    /// Over what everything goes to and from it, where it shares no memory.
    link: Option<HostEnd>,
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
    /// Finds the kernel of `runtime_dir`, running or ended.
    pub(super) async fn find(runtime_dir: &Path) -> Result<Self, SpawnError> {
        if let Ok(status) = ask(runtime_dir, Request::Status).await {
            return Ok(Self::new(runtime_dir, status.kernel));
        }
        match read_json::<KernelRecord>(runtime_dir, names::KERNEL) {
            Some(record) => Ok(Self::new(runtime_dir, record)),
            None => Err(SpawnError::NotFound { runtime_dir: runtime_dir.to_owned() }),
        }
    }

    fn new(runtime_dir: &Path, record: KernelRecord) -> Self {
        let link = match record.kind {
            SpawnerKind::Multikernel => multikernel::link_of(runtime_dir),
            SpawnerKind::Uml | SpawnerKind::Qemu | SpawnerKind::Process => None,
        };
        Self { inner: Arc::new(Inner { runtime_dir: runtime_dir.to_owned(), record, link }) }
    }

    /// The driver that made it.
    pub fn kind(&self) -> SpawnerKind {
        self.inner.record.kind
    }

    /// Over what everything goes to and from it; `None` where it shares memory with this kernel.
    pub(crate) fn link(&self) -> Option<&HostEnd> {
        self.inner.link.as_ref()
    }

    /// The process that is the kernel, on this host. After its end the number may be another's.
    pub fn pid(&self) -> u32 {
        self.inner.record.pid
    }

    /// When its process was started: nanoseconds since the Unix epoch.
    pub fn started_at_unix_ns(&self) -> u64 {
        self.inner.record.started_at_unix_ns
    }

    /// What runs the CPUs of its machine, and why, for people; `None` if it has no machine of its own.
    pub fn runs_on(&self) -> Option<&str> {
        self.inner.record.runs_on.as_deref()
    }

    /// Its folder: sockets, console log, exit record.
    pub fn runtime_dir(&self) -> &Path {
        &self.inner.runtime_dir
    }

    /// Where its console is recorded, from the first line. Earlier output (and the boot before) is in `console.log.1`.
    pub fn console_log(&self) -> PathBuf {
        self.runtime_dir().join(names::CONSOLE)
    }

    /// The host's end of its doorbell line: a duplicate of a non-blocking Unix stream socket. Bytes read through one
    /// duplicate are gone for the others, so only one process should read.
    ///
    /// # Errors
    /// [`SpawnError::Ended`] when it has ended.
    pub async fn doorbell(&self) -> Result<OwnedFd, SpawnError> {
        let action = "fetch the doorbell of";
        let (_, fd) = timeout(ANSWER_MAX, async {
            let link = KeeperLink::connect(self.runtime_dir()).await?;
            link.request(Request::Doorbell).await
        })
        .await
        .unwrap_or_else(|_| Err(LinkError::Silent(ANSWER_MAX)))
        .map_err(|error| self.link_failed(action, error))?;
        fd.ok_or_else(|| self.link_failed(action, LinkError::NoDescriptor))
    }

    /// Whether it runs.
    ///
    /// # Errors
    /// [`SpawnError::Keeper`] when its keeper lives but does not answer.
    pub async fn status(&self) -> Result<KernelStatus, SpawnError> {
        match ask(self.runtime_dir(), Request::Status).await {
            Ok(Status { exit: None, .. }) => Ok(KernelStatus::Running),
            Ok(Status { exit: Some(exit), .. }) => Ok(KernelStatus::Exited(exit)),
            Err(LinkError::NoKeeper(_)) => self.exit_without_keeper().await.map(KernelStatus::Exited),
            Err(error) => Err(self.link_failed("ask about", error)),
        }
    }

    /// Waits until it has ended, however long that takes.
    ///
    /// # Errors
    /// [`SpawnError::Keeper`] when its keeper lives but cannot be asked: it may still run, so ask again.
    ///
    /// # Cancel safety
    /// Cancel safe: the end is recorded, and a later call returns it.
    pub async fn exited(&self) -> Result<Exit, SpawnError> {
        let waited = async {
            let link = KeeperLink::connect(self.runtime_dir()).await?;
            link.request(Request::Wait).await
        };
        match waited.await {
            Ok((Status { exit: Some(exit), .. }, _)) => Ok(exit),
            // The connection ended without an answer: the keeper has gone, with or without a record.
            _ => self.exit_without_keeper().await,
        }
    }

    /// Kills it and all its helper processes; returns when none is left. Killing one that has ended is no error.
    ///
    /// # Errors
    /// [`SpawnError::Keeper`] when that did not happen within 15 s; it may still.
    pub async fn kill(&self) -> Result<Exit, SpawnError> {
        let killed = timeout(KILL_MAX, async {
            let link = KeeperLink::connect(self.runtime_dir()).await?;
            link.request(Request::Kill).await
        });
        match killed.await {
            Ok(Ok((Status { exit: Some(exit), .. }, _))) => Ok(exit),
            Ok(_) => match self.exit_without_keeper().await {
                Ok(exit) => Ok(exit),
                // Its keeper lives, if it does, where nobody reaches it. The kernel is to die all the same.
                Err(_) => self.kill_without_keeper().await,
            },
            Err(_) => Err(self.link_failed("kill", LinkError::Silent(KILL_MAX))),
        }
    }

    /// Kills the kernel's processes by their group; its keeper, if there is one, will record how it ended.
    async fn kill_without_keeper(&self) -> Result<Exit, SpawnError> {
        let (inner, dir) = (self.inner.clone(), self.runtime_dir().to_owned());
        let killed = tokio::task::spawn_blocking(move || {
            let pid = i32::try_from(inner.record.pid).map_err(std::io::Error::other)?;
            multikernel::end(&inner.runtime_dir).map_err(std::io::Error::other)?;
            kill_group_of(pid, inner.record.start_ticks, Instant::now() + KILL_MAX)?;
            Ok(read_json::<Exit>(&inner.runtime_dir, names::EXIT).unwrap_or_else(lost))
        });
        let killed = killed.await.unwrap_or_else(|panicked| Err(std::io::Error::other(panicked)));
        killed.map_err(|source| SpawnError::Keeper { action: "kill", runtime_dir: dir, source })
    }

    /// Has another keeper stand for it, where it runs on without the one that it had: a kernel that is no process of this host. `None`
    /// where it has a keeper, or has ended with it.
    ///
    /// # Errors
    /// [`SpawnError`] when the other keeper could not be started. The kernel runs on.
    pub async fn stand_again(&self) -> Result<Option<Self>, SpawnError> {
        let dir = self.runtime_dir();
        if self.kind().makes_processes() || self.status().await.is_ok() {
            return Ok(None);
        }
        match multikernel::may_run(dir) {
            true => multikernel::stand_again(dir).await.map(Some),
            false => Ok(None),
        }
    }

    /// Stops it in its tracks: no instruction of it runs until [`Kernel::thaw`]. Freezing a frozen one is no error.
    ///
    /// # Errors
    /// [`SpawnError::Control`] says what was seen; [`SpawnError::Ended`] when it has ended.
    pub async fn freeze(&self) -> Result<(), SpawnError> {
        self.set_frozen(true).await
    }

    /// Lets it run on after [`Kernel::freeze`]. Thawing one that runs is no error.
    ///
    /// # Errors
    /// As [`Kernel::freeze`].
    pub async fn thaw(&self) -> Result<(), SpawnError> {
        self.set_frozen(false).await
    }

    /// Whether the kernel itself answers within `deadline`, whatever its user space does: one that is frozen, spins with
    /// interrupts off or has ended does not. `None` where its spawner has no way to ask.
    ///
    /// # Cancel safety
    /// Cancel safe: asking changes nothing.
    pub async fn answers(&self, deadline: Duration) -> Option<bool> {
        match self.kind() {
            SpawnerKind::Uml => uml::answers(self.runtime_dir(), self.pid(), deadline).await,
            SpawnerKind::Qemu => qemu::answers(self.runtime_dir(), deadline).await,
            SpawnerKind::Multikernel => multikernel::answers(self.runtime_dir(), deadline).await,
            // Its kernel is this host's: that one answers, as we run.
            SpawnerKind::Process => None,
        }
    }

    async fn set_frozen(&self, frozen: bool) -> Result<(), SpawnError> {
        let action = if frozen { "freeze" } else { "thaw" };
        self.must_run(action).await?;
        let result = match self.kind() {
            SpawnerKind::Uml => uml::set_frozen(self.runtime_dir(), frozen).await,
            SpawnerKind::Qemu => qemu::set_frozen(self.runtime_dir(), frozen).await,
            SpawnerKind::Multikernel => {
                Err("nothing can stop a kernel beside this one and let it go on".into())
            }
            SpawnerKind::Process => process::set_frozen(self.pid(), frozen).await,
        };
        result.map_err(|reason| SpawnError::Control {
            action,
            runtime_dir: self.runtime_dir().to_owned(),
            reason,
        })
    }

    /// Its live console: raw bytes both ways, a non-blocking socket. One client at a time.
    ///
    /// # Errors
    /// [`SpawnError::Refused`] while another has it, [`SpawnError::Ended`] when it has ended.
    pub async fn console(&self) -> Result<UnixStream, SpawnError> {
        let action = "open the console of";
        timeout(ANSWER_MAX, async {
            let mut link = KeeperLink::connect(self.runtime_dir()).await?;
            link.request_on(Request::Console).await?;
            link.into_std()
        })
        .await
        .unwrap_or_else(|_| Err(LinkError::Silent(ANSWER_MAX)))
        .map_err(|error| self.link_failed(action, error))
    }

    /// Removes every file the spawner made for it but the console logs. Its keeper left when it ended.
    ///
    /// # Errors
    /// [`SpawnError::Refused`] while it runs.
    pub async fn forget(self) -> Result<(), SpawnError> {
        if self.status().await? == KernelStatus::Running {
            let (action, runtime_dir) = ("forget", self.runtime_dir().to_owned());
            return Err(SpawnError::Refused {
                action,
                runtime_dir,
                reason: "the kernel still runs; kill it first".into(),
            });
        }
        multikernel::release(self.runtime_dir()).await.map_err(|reason| SpawnError::Refused {
            action: "forget",
            runtime_dir: self.runtime_dir().to_owned(),
            reason,
        })?;
        remove_spawned_files(self.runtime_dir())
    }

    pub(super) async fn must_run(&self, action: &'static str) -> Result<(), SpawnError> {
        match self.status().await? {
            KernelStatus::Running => Ok(()),
            KernelStatus::Exited(exit) => {
                Err(SpawnError::Ended { action, runtime_dir: self.runtime_dir().to_owned(), exit })
            }
        }
    }

    /// How it ended, when its keeper has gone. Without a record the keeper was killed, and the kernel with it: sweep
    /// what is left of it, and record that. A keeper that merely cannot be reached must not cost its kernel the life: the
    /// folder's lock, which it holds to its end, tells.
    async fn exit_without_keeper(&self) -> Result<Exit, SpawnError> {
        self.find_exit(wait_for_lock).await
    }

    /// The same for whoever holds the folder's lock, and so knows that no keeper does.
    pub(super) async fn exit_under_lock(&self) -> Result<Exit, SpawnError> {
        self.find_exit(|_| Ok(())).await
    }

    async fn find_exit<L>(
        &self,
        lock: impl FnOnce(&Path) -> std::io::Result<L> + Send + 'static,
    ) -> Result<Exit, SpawnError> {
        let (inner, dir) = (self.inner.clone(), self.runtime_dir().to_owned());
        let swept = tokio::task::spawn_blocking(move || {
            if let Some(exit) = read_json::<Exit>(&inner.runtime_dir, names::EXIT) {
                return Ok(exit);
            }
            let pid = i32::try_from(inner.record.pid).map_err(std::io::Error::other)?;
            let _lock = match lock(&inner.runtime_dir) {
                Ok(lock) => Some(lock),
                // Somebody has removed the folder. As long as the kernel runs it has not ended.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound && !inner.record.is_running() => {
                    None
                }
                Err(error) => return Err(error),
            };
            if let Some(exit) = read_json::<Exit>(&inner.runtime_dir, names::EXIT) {
                return Ok(exit);
            }
            if multikernel::may_run(&inner.runtime_dir) {
                return Err(std::io::Error::other(
                    "the kernel runs, or may, and nobody stands for it any more",
                ));
            }
            // A keeper that was just killed still holds its kernel for an instant.
            kill_group_of(pid, inner.record.start_ticks, Instant::now() + KILL_MAX)?;
            let exit = lost();
            // For whoever comes later. What is known now is true with or without a record (a full disk).
            if let Err(error) =
                write_atomically(&inner.runtime_dir.join(names::EXIT), &serde_json::to_vec(&exit)?)
            {
                tracing::warn!(dir = %inner.runtime_dir.display(), %error, "the loss of a kernel is not recorded");
            }
            Ok(exit)
        });
        let swept = swept.await.unwrap_or_else(|panicked| Err(std::io::Error::other(panicked)));
        swept.map_err(|source| SpawnError::Keeper { action: "find the end of", runtime_dir: dir, source })
    }

    /// The driver could not do it, or does not know whether it did.
    pub(super) fn refused_to(&self, action: &'static str, reason: String) -> SpawnError {
        SpawnError::Control { action, runtime_dir: self.runtime_dir().to_owned(), reason }
    }

    pub(super) fn link_failed(&self, action: &'static str, error: LinkError) -> SpawnError {
        let runtime_dir = self.runtime_dir().to_owned();
        match error {
            LinkError::Refused(reason) => SpawnError::Refused { action, runtime_dir, reason },
            error => match read_json::<Exit>(&runtime_dir, names::EXIT) {
                Some(exit) => SpawnError::Ended { action, runtime_dir, exit },
                None => SpawnError::Keeper { action, runtime_dir, source: error.into() },
            },
        }
    }
}

/// An end that nobody saw, now.
fn lost() -> Exit {
    Exit { how: ExitHow::Lost, at_unix_ns: crate::time::unix_ns() }
}

/// Asks the keeper of `dir` something it answers at once.
pub(super) async fn ask(dir: &Path, request: Request) -> Result<Status, LinkError> {
    let answered = timeout(ANSWER_MAX, async {
        let link = KeeperLink::connect(dir).await?;
        link.request(request).await
    });
    answered.await.unwrap_or(Err(LinkError::Silent(ANSWER_MAX))).map(|(status, _)| status)
}

/// Removes everything a spawner and a keeper put into `dir`, but for the console logs.
pub(super) fn remove_spawned_files(dir: &Path) -> Result<(), SpawnError> {
    let of_keeper = [
        names::SOCKET,
        names::JOB,
        names::KERNEL,
        names::EXIT,
        names::EXIT_ROOM,
        names::EXEC_ERROR,
        names::LOG,
    ];
    let of_spawners = uml::FILES.iter().chain(qemu::FILES).chain(multikernel::FILES).chain(process::FILES);
    let paths: Vec<PathBuf> = of_keeper.iter().chain(of_spawners).map(|name| dir.join(name)).collect();
    remove_all(&paths).map_err(|source| SpawnError::File {
        action: "remove the files of",
        path: dir.to_owned(),
        source,
    })
}

/// Takes the folder's lock, which its keeper lets go only when it ends; a moment before that it has left its socket.
fn wait_for_lock(dir: &Path) -> std::io::Result<std::fs::File> {
    let folder = std::fs::File::open(dir)?;
    let deadline = Instant::now() + ANSWER_MAX;
    loop {
        match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(folder),
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(Errno::WOULDBLOCK) => {
                return Err(std::io::Error::other("its keeper lives but cannot be reached"));
            }
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn read_json<T: serde::de::DeserializeOwned>(dir: &Path, name: &str) -> Option<T> {
    serde_json::from_slice(&std::fs::read(dir.join(name)).ok()?).ok()
}
