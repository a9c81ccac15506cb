//! Programs inside the kernel: the engine behind [`crate::api::exec::Exec`].

mod command;
mod job;
mod output;
mod pty;
mod service;
mod signal;
mod table;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use command::{Program, exec_child};
pub use job::{Job, JobFacts};
pub use output::{Channel, Chunk, Next, OutputBuffer, WhenFull};
pub use service::ExecService;
pub use signal::number as signal_number;

use self::pty::Pty;
use self::table::JobTable;
use crate::api::exec::{ExecError, ExecSpec, ExitStatus, Signal};
use crate::children::Children;
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
    children: Children,
    lifecycle: Lifecycle,
    /// This program, which puts a job on its terminal.
    helper: PathBuf,
    jobs: Mutex<JobTable>,
}

impl ExecEngine {
    /// An engine without jobs. `helper` is the path of this program (`/proc/self/exe`).
    pub fn new(children: Children, lifecycle: Lifecycle, helper: PathBuf) -> Self {
        Self(Arc::new(Inner { children, lifecycle, helper, jobs: Mutex::default() }))
    }

    /// Starts a job, or returns the one that has the same key.
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
        if let Some(job) = spec.key.as_deref().and_then(|key| jobs.by_key(key)) {
            return Ok(job);
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
        let (mut command, pty) = match spec.tty {
            None => (program.command(), None),
            Some(size) => {
                let (pty, stdio) = Pty::open(size).map_err(|e| system("opening a terminal", e))?;
                let mut command = program.command_on_terminal(&self.0.helper);
                let [stdin, stdout, stderr] = stdio;
                command.stdin(stdin).stdout(stdout).stderr(stderr);
                (command, Some(pty))
            }
        };
        if pty.is_none() {
            command.stdin(if spec.stdin { Stdio::piped() } else { Stdio::null() });
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
        }
        let child = self.0.children.spawn(&mut command).map_err(|e| program.spawn_error(&e))?;
        // The parent's copies of the terminal's other side live in `command`: they would keep it open for ever.
        drop(command);
        let facts = JobFacts {
            id,
            pid: child.pid,
            argv: program.argv.clone(),
            key: spec.key.clone(),
            detached,
            started_at_ms: wall_ms(),
            timeout: spec.timeout_ms.map(Duration::from_millis),
        };
        Job::adopt(facts, child, pty, self.0.children.clone(), OUTPUT_BYTES)
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

    /// Runs a short program for the agent itself, its output discarded.
    ///
    /// # Errors
    /// [`ExecError`] if it cannot be started. A dropped future kills it.
    pub async fn run_quietly(&self, argv: &[String], timeout: Duration) -> Result<ExitStatus, ExecError> {
        let program = Program::resolve(argv, [], None, None)?;
        let mut command = program.command();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = self.0.children.spawn(&mut command).map_err(|e| program.spawn_error(&e))?;
        let guard = KillOnDrop { children: self.0.children.clone(), pid: child.pid };
        let mut exit = child.exit;
        let ended = tokio::time::timeout(timeout, exit.ended()).await;
        drop(guard);
        Ok(ended.unwrap_or(ExitStatus::TimedOut))
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
