//! Child processes: started, signalled and reaped in one place.
//!
//! As the first process of a kernel the agent inherits every orphan, so it waits for *any* child; a library that waits
//! for its own children beside that would lose their statuses. Hence all children of the agent are started here.
//!
//! | id | invariant | kept by |
//! |---|---|---|
//! | C1 | a child is in the table before its exit can be collected | both happen under the table's lock |
//! | C2 | a signal is only sent to a process id that has not been collected | sent under the lock, from the table |
//! | C3 | what a [`OnEnd::KillGroup`] child leaves in its process group dies with it | killed while the child is a zombie, so that its number means nobody else |

use std::collections::HashMap;
use std::io;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag};
use nix::unistd::Pid;
use rustix::process::{WaitOptions, WaitStatus};
use tokio::sync::watch;

use crate::api::exec::ExitStatus as Exit;

/// The children of this process. Clones share the table.
#[derive(Clone, Debug)]
pub struct Children(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    table: Mutex<Table>,
    scope: Scope,
}

type Table = HashMap<i32, Entry>;

#[derive(Debug)]
struct Entry {
    exit: watch::Sender<Option<Exit>>,
    on_end: OnEnd,
}

/// What becomes of the rest of a child's process group when the child ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnEnd {
    /// It runs on, as below a shell.
    LeaveGroup,
    /// It is killed: a program that is started again and again must not leave more behind each time.
    KillGroup,
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

    /// Starts `command`, which must lead a process group if it is to be killed with its group.
    ///
    /// # Errors
    /// What fork or execve said; nothing runs then.
    pub fn spawn(&self, command: &mut Command, on_end: OnEnd) -> io::Result<Child> {
        let mut table = self.lock();
        let mut child = command.spawn()?;
        let (sender, receiver) = watch::channel(None);
        let pipes =
            Pipes { stdin: child.stdin.take(), stdout: child.stdout.take(), stderr: child.stderr.take() };
        table.insert(child.id() as i32, Entry { exit: sender, on_end });
        Ok(Child { pid: child.id(), pipes, exit: ExitWatch(receiver) })
    }

    /// From now on the rest of the child's process group is left alone when the child ends: somebody else ends it, with
    /// more patience.
    pub fn leave_group(&self, pid: u32) {
        if let Some(entry) = self.lock().get_mut(&(pid as i32)) {
            entry.on_end = OnEnd::LeaveGroup;
        }
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
            Scope::AllChildren => {
                std::iter::from_fn(|| reap_next(&mut self.lock())).filter(|known| !known).count() as u64
            }
            Scope::OwnChildren => {
                let mut table = self.lock();
                let pids: Vec<i32> = table.keys().copied().collect();
                for pid in pids.into_iter().filter(|pid| has_ended(Id::Pid(Pid::from_raw(*pid))).is_some()) {
                    collect(&mut table, Some(pid));
                }
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

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Collects one exit, if there is one; whether it was that of a child of the table.
fn reap_next(table: &mut Table) -> Option<bool> {
    let pid = has_ended(Id::All)?;
    collect(table, pid)
}

/// Whether one of these children has ended and waits to be collected; inside, its process id.
///
/// That is not known of one that died by a real-time signal: `nix` cannot say so.
fn has_ended(which: Id<'_>) -> Option<Option<i32>> {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    match nix::sys::wait::waitid(which, flags) {
        Ok(status) => status.pid().map(|pid| Some(pid.as_raw())),
        Err(Errno::EINVAL) => Some(None),
        // No children at all.
        Err(_) => None,
    }
}

/// Collects the exit of `pid`, or of any child that has ended; whether it is in the table.
fn collect(table: &mut Table, pid: Option<i32>) -> Option<bool> {
    if let Some(pid) = pid
        && table.get(&pid).is_some_and(|entry| entry.on_end == OnEnd::KillGroup)
    {
        // Nobody but the zombie itself is the usual case.
        let _ = kill(-pid, Signal::SIGKILL as i32);
    }
    let collected = match pid.and_then(rustix::process::Pid::from_raw) {
        Some(pid) => rustix::process::waitpid(Some(pid), WaitOptions::NOHANG),
        None => rustix::process::wait(WaitOptions::NOHANG),
    };
    let (pid, status) = collected.ok().flatten()?;
    match table.remove(&pid.as_raw_pid()) {
        Some(entry) => {
            entry.exit.send_replace(Some(exit_of(status)));
            Some(true)
        }
        None => Some(false),
    }
}

/// wait(2). `nix` would refuse the real-time signals, and lose the exit.
fn exit_of(status: WaitStatus) -> Exit {
    /// `WCOREDUMP`, which rustix lacks.
    const CORE_DUMPED: i32 = 0x80;
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, Some(signal)) => Exit::Signal { signal, core_dumped: status.as_raw() & CORE_DUMPED != 0 },
        // Stops and continuations are not asked for.
        (None, None) => Exit::Code(-1),
    }
}

fn kill(pid: i32, signal: i32) -> io::Result<()> {
    let signal = Signal::try_from(signal)?;
    Ok(nix::sys::signal::kill(Pid::from_raw(pid), signal)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt as _;
    use std::process::Stdio;

    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0);
        command
    }

    fn children() -> Children {
        let children = Children::new(Scope::OwnChildren);
        tokio::spawn(children.clone().run_reaper());
        children
    }

    #[tokio::test]
    async fn a_death_by_a_real_time_signal_is_known() {
        let mut child = children().spawn(&mut shell("kill -40 $$"), OnEnd::LeaveGroup).unwrap();
        let ended = tokio::time::timeout(std::time::Duration::from_secs(20), child.exit.ended()).await;
        assert_eq!(ended.expect("in time"), Exit::Signal { signal: 40, core_dumped: false });
    }

    #[tokio::test]
    async fn what_a_child_leaves_in_its_group_dies_with_it_if_asked_for() {
        for (on_end, survives) in [(OnEnd::LeaveGroup, true), (OnEnd::KillGroup, false)] {
            let mut child = children().spawn(&mut shell("sleep 1000 >/dev/null & echo $!"), on_end).unwrap();
            child.exit.ended().await;
            let mut left = String::new();
            std::io::Read::read_to_string(&mut child.pipes.stdout.unwrap(), &mut left).unwrap();
            let left: i32 = left.trim().parse().unwrap();
            if survives {
                assert!(runs(left));
                kill(left, Signal::SIGKILL as i32).unwrap();
            }
            let gone = async {
                while runs(left) {
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(std::time::Duration::from_secs(20), gone).await.expect("in time");
        }
    }

    /// Killed, a process may still be on its way out, or a zombie of whoever collects orphans here.
    fn runs(pid: i32) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        !stat.is_empty() && !stat.contains(") Z ") && !stat.contains(") X ")
    }
}
