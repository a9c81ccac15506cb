//! Programs inside the kernel: the engine behind [`crate::api::exec::Exec`].

mod command;
mod helper;
mod job;
mod launch;
mod output;
mod pty;
mod service;
mod signal;
mod table;
mod user;

use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use command::Program;
pub use helper::ExecChild;
pub use job::{Job, JobFacts};
pub use launch::{Launch, Launcher};
pub use output::{Channel, Chunk, Next, OutputBuffer, WhenFull};
pub use service::ExecService;
pub use signal::number as signal_number;
pub use user::UserIds;

use self::pty::Pty;
use self::table::JobTable;
use crate::api::exec::{ExecError, ExecSpec, ExitStatus, Signal};
use crate::api::health::AgentPhase;
use crate::children::{Children, OnEnd};
use crate::state::Lifecycle;

/// Output kept of a detached job, and how far an attached one may run ahead of its reader.
const OUTPUT_BYTES: u64 = 256 * 1024;
/// Longest key of a job, in bytes.
const KEY_BYTES_MAX: usize = 128;

/// Starts jobs and knows them. Clones share the jobs.
#[derive(Clone, Debug)]
pub struct ExecEngine(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    launcher: Launcher,
    lifecycle: Lifecycle,
    jobs: Mutex<JobTable>,
}

impl ExecEngine {
    /// An engine without jobs.
    pub fn new(launcher: Launcher, lifecycle: Lifecycle) -> Self {
        Self(Arc::new(Inner { launcher, lifecycle, jobs: Mutex::default() }))
    }

    /// Starts a job, or, if it is to be detached, returns the one that was started with the same key.
    ///
    /// # Errors
    /// See [`ExecError`]; whatever the error, nothing runs.
    pub fn start(&self, spec: &ExecSpec, detached: bool) -> Result<Arc<Job>, ExecError> {
        self.0.lifecycle.accepts_work().map_err(|state| ExecError::NotAccepting { state })?;
        if spec.key.as_ref().is_some_and(|key| key.is_empty() || key.len() > KEY_BYTES_MAX) {
            let reason = format!("must have 1 to {KEY_BYTES_MAX} bytes");
            return Err(ExecError::Invalid { field: "key".to_owned(), reason });
        }
        let program = resolve(spec)?;
        // The lock is held while starting, so that two calls with one key start one job.
        let mut jobs = self.lock();
        if let Some(job) = spec.key.as_deref().filter(|_| detached).and_then(|key| jobs.by_key(key)) {
            return if job.facts.spec == *spec {
                Ok(job)
            } else {
                let reason = format!("job {} has it and is another one", job.facts.id);
                Err(ExecError::Invalid { field: "key".to_owned(), reason })
            };
        }
        jobs.check_room()?;
        let job = self.spawn(&program, spec, detached, jobs.next_id())?;
        jobs.insert(Arc::clone(&job));
        Ok(job)
    }

    fn spawn(
        &self,
        program: &Program,
        spec: &ExecSpec,
        detached: bool,
        id: u64,
    ) -> Result<Arc<Job>, ExecError> {
        let system = |attempt: &str, error: std::io::Error| ExecError::System {
            attempt: format!("{attempt} for `{}`", program.asked),
            reason: error.to_string(),
        };
        let (stdio, pty) = match spec.tty {
            None => {
                let stdin = if spec.stdin { Stdio::piped() } else { Stdio::null() };
                ([stdin, Stdio::piped(), Stdio::piped()], None)
            }
            Some(size) => {
                let owner = program.user.as_ref().map(|user| user.uid);
                let (pty, stdio) = Pty::open(size, owner).map_err(|e| system("opening a terminal", e))?;
                (stdio, Some(pty))
            }
        };
        let launch = Launch {
            stdio,
            on_terminal: pty.is_some(),
            on_end: OnEnd::LeaveGroup,
            on_agent_death: nix::sys::signal::Signal::SIGKILL,
        };
        let child = self.0.launcher.start(program, launch)?;
        let facts = JobFacts {
            id,
            pid: child.pid,
            spec: spec.clone(),
            detached,
            started_at_ms: wall_ms(),
            timeout: spec.timeout_ms.map(Duration::from_millis),
        };
        Job::adopt(facts, child, pty, self.0.launcher.children().clone(), OUTPUT_BYTES)
            .map_err(|e| system("watching the output", e))
    }

    /// The job of that id.
    ///
    /// # Errors
    /// [`ExecError::NoSuchJob`].
    pub fn job(&self, id: u64) -> Result<Arc<Job>, ExecError> {
        self.lock().by_id(id).ok_or(ExecError::NoSuchJob { job: id })
    }

    /// All jobs, oldest first.
    pub fn jobs(&self) -> Vec<Arc<Job>> {
        self.lock().all()
    }

    /// How many jobs run.
    pub fn running(&self) -> u32 {
        self.lock().running()
    }

    /// Sends a signal to a job.
    ///
    /// # Errors
    /// [`ExecError::NoSuchJob`], [`ExecError::Invalid`] for the signal, [`ExecError::WrongState`] if it has ended.
    pub fn kill(&self, id: u64, signal: &Signal) -> Result<(), ExecError> {
        let number = signal_number(signal)?;
        let job = self.job(id)?;
        match job.signal(number) {
            Ok(true) => Ok(()),
            Ok(false) => Err(ExecError::WrongState {
                attempt: format!("sending signal {number} to"),
                job: id,
                reason: "it has ended already".to_owned(),
            }),
            Err(error) => Err(ExecError::System {
                attempt: format!("sending signal {number} to job {id}"),
                reason: error.to_string(),
            }),
        }
    }

    /// Forgets a job that has ended.
    ///
    /// # Errors
    /// [`ExecError::NoSuchJob`], [`ExecError::WrongState`] while it runs.
    pub fn forget(&self, id: u64) -> Result<(), ExecError> {
        let mut jobs = self.lock();
        let job = jobs.by_id(id).ok_or(ExecError::NoSuchJob { job: id })?;
        if job.exit().is_none() {
            let reason = "it runs; kill it first".to_owned();
            return Err(ExecError::WrongState { attempt: "forgetting".to_owned(), job: id, reason });
        }
        jobs.remove(id);
        Ok(())
    }

    /// Takes an attached job off the list: its call is over.
    pub fn dismiss(&self, id: u64) {
        self.lock().remove(id);
    }

    /// Runs a short program for the agent itself, its output discarded. What it leaves in its process group is killed.
    ///
    /// # Errors
    /// [`ExecError`] if it cannot be started. A dropped future kills it.
    pub async fn run_quietly(&self, argv: &[String]) -> Result<ExitStatus, ExecError> {
        self.run_briefly(argv, [], Stdio::null()).await
    }

    /// The same with variables of its own, and its stderr kept.
    ///
    /// # Errors
    /// As [`ExecEngine::run_quietly`].
    pub async fn run_briefly(
        &self,
        argv: &[String],
        env: impl IntoIterator<Item = (String, String)>,
        stderr: Stdio,
    ) -> Result<ExitStatus, ExecError> {
        if self.0.lifecycle.phase() == AgentPhase::ShuttingDown {
            return Err(ExecError::NotAccepting { state: "shutting down".to_owned() });
        }
        let program = Program::resolve(argv, env, None, None)?;
        let launch = Launch {
            stdio: [Stdio::null(), Stdio::null(), stderr],
            on_terminal: false,
            on_end: OnEnd::KillGroup,
            on_agent_death: nix::sys::signal::Signal::SIGKILL,
        };
        let child = self.0.launcher.start(&program, launch)?;
        let _guard = KillOnDrop { children: self.0.launcher.children().clone(), pid: child.pid };
        let mut exit = child.exit;
        Ok(exit.ended().await)
    }

    fn lock(&self) -> MutexGuard<'_, JobTable> {
        self.0.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Kills a child, if it runs still.
struct KillOnDrop {
    children: Children,
    pid: u32,
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let _ = self.children.signal(self.pid, crate::children::Target::Group, nix::libc::SIGKILL);
    }
}

fn resolve(spec: &ExecSpec) -> Result<Program, ExecError> {
    let terminal = spec.tty.is_some().then(|| ("TERM".to_owned(), "xterm-256color".to_owned()));
    let env: BTreeMap<String, String> = terminal.into_iter().chain(spec.env.clone()).collect();
    Program::resolve(&spec.argv, env, spec.cwd.as_deref(), spec.user.as_deref())
}

/// Since 1970, in milliseconds.
pub(crate) fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
