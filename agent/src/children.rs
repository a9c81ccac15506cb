//! Child processes: started, signalled and reaped in one place.
//!
//! As the first process of a kernel the agent inherits every orphan, so it waits for *any* child; a library that waits
//! for its own children beside that would lose their statuses. Hence all children of the agent are started here.
//!
//! | id | invariant | kept by |
//! |---|---|---|
//! | C1 | a child is in the table before its exit can be collected | both happen under the table's lock |
//! | C2 | a signal is only sent to a process id that has not been collected | sent under the lock, from the table |

use std::collections::HashMap;
use std::io;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus};
use nix::unistd::Pid;
use tokio::sync::watch;

use crate::api::exec::ExitStatus as Exit;

/// The children of this process. Clones share the table.
#[derive(Clone, Debug)]
pub struct Children(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    table: Mutex<HashMap<i32, watch::Sender<Option<Exit>>>>,
    scope: Scope,
}

/// Whose exits are collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Those started here and every orphan: for a process that is init or a subreaper, and starts no child elsewhere.
    AllChildren,
    /// Those started here.
    OwnChildren,
}

/// A child that was started.
#[derive(Debug)]
pub struct Child {
    /// Its process id, which is also that of its group or session.
    pub pid: u32,
    /// Its pipes, where there are any.
    pub pipes: Pipes,
    /// How it ended, once it has.
    pub exit: ExitWatch,
}

/// The ends of a child's pipes.
#[derive(Debug, Default)]
pub struct Pipes {
    /// To its stdin.
    pub stdin: Option<std::process::ChildStdin>,
    /// From its stdout.
    pub stdout: Option<std::process::ChildStdout>,
    /// From its stderr.
    pub stderr: Option<std::process::ChildStderr>,
}

/// Waits for the end of a child.
#[derive(Clone, Debug)]
pub struct ExitWatch(watch::Receiver<Option<Exit>>);

impl ExitWatch {
    /// How it ended; `None` while it runs.
    pub fn now(&self) -> Option<Exit> {
        *self.0.borrow()
    }

    /// Waits until it has ended. Cancel safe.
    pub async fn ended(&mut self) -> Exit {
        match self.0.wait_for(Option::is_some).await {
            Ok(exit) => exit.unwrap_or(Exit::Code(-1)),
            // The table is gone, hence the reaper: nobody will ever know.
            Err(_) => Exit::Code(-1),
        }
    }
}

/// Whom a signal goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The process alone.
    Process,
    /// Its process group; the process alone if it leads none yet.
    Group,
}

impl Children {
    /// An empty table. Call [`Children::run_reaper`] on the runtime, once.
    pub fn new(scope: Scope) -> Self {
        Self(Arc::new(Inner { table: Mutex::default(), scope }))
    }

    /// Starts `command`.
    ///
    /// # Errors
    /// What fork or execve said; nothing runs then.
    pub fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        let mut table = self.lock();
        let mut child = command.spawn()?;
        let (sender, receiver) = watch::channel(None);
        let pipes =
            Pipes { stdin: child.stdin.take(), stdout: child.stdout.take(), stderr: child.stderr.take() };
        table.insert(child.id() as i32, sender);
        Ok(Child { pid: child.id(), pipes, exit: ExitWatch(receiver) })
    }

    /// Sends `signal` to a child; `false` if it has ended already.
    ///
    /// # Errors
    /// What kill(2) said.
    pub fn signal(&self, pid: u32, target: Target, signal: i32) -> io::Result<bool> {
        let table = self.lock();
        let pid = pid as i32;
        if !table.contains_key(&pid) {
            return Ok(false);
        }
        if target == Target::Group {
            match kill(-pid, signal) {
                Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => {}
                sent => return sent.map(|()| true),
            }
        }
        kill(pid, signal).map(|()| true)
    }

    /// The children that run.
    pub fn pids(&self) -> Vec<u32> {
        self.lock().keys().map(|pid| *pid as u32).collect()
    }

    /// Collects every exit there is. Returns how many were orphans.
    pub fn reap(&self) -> u64 {
        match self.0.scope {
            Scope::AllChildren => self.reap_all(),
            Scope::OwnChildren => {
                self.reap_own();
                0
            }
        }
    }

    /// Collects exits whenever SIGCHLD says there may be some. Never returns while the process lives.
    pub async fn run_reaper(self) -> io::Result<()> {
        let mut sigchld = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::child())?;
        loop {
            self.reap();
            if sigchld.recv().await.is_none() {
                return Ok(());
            }
        }
    }

    fn reap_all(&self) -> u64 {
        let mut orphans = 0;
        loop {
            let mut table = self.lock();
            match nix::sys::wait::waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(status) => match exit_of(status) {
                    Some((pid, exit)) if !deliver(&mut table, pid, exit) => orphans += 1,
                    Some(_) => {}
                    None => return orphans,
                },
                Err(Errno::EINTR) => {}
                Err(_) => return orphans,
            }
        }
    }

    fn reap_own(&self) {
        let mut table = self.lock();
        let pids: Vec<i32> = table.keys().copied().collect();
        for pid in pids {
            if let Ok(status) = nix::sys::wait::waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG))
                && let Some((pid, exit)) = exit_of(status)
            {
                deliver(&mut table, pid, exit);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<i32, watch::Sender<Option<Exit>>>> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn deliver(table: &mut HashMap<i32, watch::Sender<Option<Exit>>>, pid: i32, exit: Exit) -> bool {
    match table.remove(&pid) {
        Some(sender) => {
            sender.send_replace(Some(exit));
            true
        }
        None => false,
    }
}

fn exit_of(status: WaitStatus) -> Option<(i32, Exit)> {
    match status {
        WaitStatus::Exited(pid, code) => Some((pid.as_raw(), Exit::Code(code))),
        WaitStatus::Signaled(pid, signal, core_dumped) => {
            Some((pid.as_raw(), Exit::Signal { signal: signal as i32, core_dumped }))
        }
        _ => None,
    }
}

fn kill(pid: i32, signal: i32) -> io::Result<()> {
    let signal = Signal::try_from(signal)?;
    Ok(nix::sys::signal::kill(Pid::from_raw(pid), signal)?)
}
