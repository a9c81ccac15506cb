//! Starting a program: directly, or through a helper that does what the standard library cannot.
//!
//! Between fork and exec of a threaded process hardly any code may run. What has to happen there beyond the usual (a new
//! session on a terminal, supplementary groups, a tie to the agent's life) is done by this very program, started as
//! `exec-child` ([`super::helper`]), which then becomes the program. What fails there comes back through a pipe, so that
//! the caller gets the same errors either way.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::PipeFlags;

use super::command::Program;
use super::helper::{Failure, Step};
use super::user::UserIds;
use crate::api::exec::ExecError;
use crate::children::{Child, Children, OnEnd, Target};

/// How long the helper may take: it does a handful of system calls, one of which may look at a file system that hangs.
const HELPER_TIMEOUT: Duration = Duration::from_secs(10);

/// Starts programs. Clones do the same.
#[derive(Clone, Debug)]
pub struct Launcher(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    children: Children,
    helper: PathBuf,
    tied: bool,
    /// Held while a child is made, so that none inherits the pipe that is meant for another.
    forking: Mutex<()>,
}

/// How a program is started.
#[derive(Debug)]
pub struct Launch {
    /// stdin, stdout and stderr.
    pub stdio: [Stdio; 3],
    /// Whether stdin is a terminal that is to control the program.
    pub on_terminal: bool,
    /// What becomes of its process group when it ends.
    pub on_end: OnEnd,
    /// What a tied program gets when the agent dies.
    pub on_agent_death: Signal,
}

impl Launcher {
    /// Starts children of `children`. `helper` is this program (`/proc/self/exe`).
    ///
    /// `tied`: a program gets [`Launch::on_agent_death`] when this process dies, however it dies. The first process of a
    /// kernel or namespace needs no such tie: nothing outlives it. The system ties to the thread that starts the program,
    /// which must live as long as the process.
    pub fn new(children: Children, helper: PathBuf, tied: bool) -> Self {
        Self(Arc::new(Inner { children, helper, tied, forking: Mutex::default() }))
    }

    /// The children that were started.
    pub fn children(&self) -> &Children {
        &self.0.children
    }

    /// Starts `program` as the leader of a new process group, or session if it is to be on a terminal.
    ///
    /// # Errors
    /// [`ExecError`]: nothing runs then.
    pub fn start(&self, program: &Program, launch: Launch) -> Result<Child, ExecError> {
        let Launch { stdio: [stdin, stdout, stderr], on_terminal, on_end, on_agent_death } = launch;
        let has_groups = program.user.as_ref().is_some_and(|user| !user.groups.is_empty());
        let helped = on_terminal || self.0.tied || has_groups;
        let mut command = if helped { Command::new(&self.0.helper) } else { Command::new(&program.path) };
        command.env_clear().envs(&program.env).stdin(stdin).stdout(stdout).stderr(stderr);
        // A new session needs a process that leads no group yet.
        if !on_terminal {
            command.process_group(0);
        }
        let _forking = self.0.forking.lock().unwrap_or_else(PoisonError::into_inner);
        if helped {
            self.describe(program, on_terminal, on_agent_death, &mut command);
            return self.start_helper(program, command, on_end);
        }
        program.fill(&mut command);
        self.0.children.spawn(&mut command, on_end).map_err(|e| program.spawn_error(&e))
    }

    /// The arguments of the helper, [`super::helper::ExecChild`], but for the pipe.
    fn describe(&self, program: &Program, on_terminal: bool, on_agent_death: Signal, command: &mut Command) {
        command.arg("exec-child").arg("--cwd").arg(&program.cwd);
        if on_terminal {
            command.arg("--terminal");
        }
        if let Some(UserIds { uid, gid, groups, .. }) = &program.user {
            let ids = [uid, gid].into_iter().chain(groups).map(u32::to_string).collect::<Vec<_>>();
            command.arg("--ids").arg(ids.join(","));
        }
        if self.0.tied {
            command.arg("--parent").arg(std::process::id().to_string());
            command.arg("--on-parent-death").arg((on_agent_death as i32).to_string());
        }
    }

    fn start_helper(
        &self,
        program: &Program,
        mut command: Command,
        on_end: OnEnd,
    ) -> Result<Child, ExecError> {
        let system = |attempt: &str, error: io::Error| ExecError::System {
            attempt: format!("{attempt} for `{}`", program.asked),
            reason: error.to_string(),
        };
        let (report, write_end) = inheritable_pipe().map_err(|e| system("making a pipe", e))?;
        command.arg("--report").arg(write_end.as_raw_fd().to_string());
        command.arg(&program.path).arg("--").args(&program.argv);
        let child = self.0.children.spawn(&mut command, on_end);
        let child = child.map_err(|e| system("starting the helper", e))?;
        // Our copies would keep the pipe, and a terminal's other side, open.
        drop((command, write_end));
        match read_report(report) {
            Ok(None) => Ok(child),
            Ok(Some(Failure { step, error })) => Err(match step {
                Step::Program => program.spawn_error(&error),
                Step::Directory => ExecError::Invalid {
                    field: "cwd".to_owned(),
                    reason: format!("{} cannot be entered: {error}", program.cwd.display()),
                },
                step => system(step.attempt(), error),
            }),
            Err(error) => {
                let _ = self.0.children.signal(child.pid, Target::Process, Signal::SIGKILL as i32);
                Err(system("waiting for the start", error))
            }
        }
    }
}

/// A pipe whose second end the next child inherits.
fn inheritable_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::fcntl_setfd(&write, rustix::io::FdFlags::empty())?;
    Ok((read, write))
}

/// What the helper says: nothing once it has become the program.
fn read_report(pipe: OwnedFd) -> io::Result<Option<Failure>> {
    let timeout = Timespec { tv_sec: HELPER_TIMEOUT.as_secs() as i64, tv_nsec: 0 };
    let ready = rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(&pipe, PollFlags::IN)], Some(&timeout)))?;
    if ready == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let mut report = Vec::new();
    File::from(pipe).take(Failure::BYTES as u64).read_to_end(&mut report)?;
    Ok(Failure::parse(&report))
}
