//! `tombolo.agent.Exec`: programs inside the kernel.
//!
//! Every program started here is a *job*. An attached job ([`Exec::run`]) belongs to its call: when the caller goes away
//! it is killed, and a caller that does not read makes it wait. A detached one ([`Exec::start`]) belongs to the agent:
//! nobody needs to read, what it writes goes to a bounded buffer from which one may read at any time, and what was
//! dropped there is counted.

use std::collections::BTreeMap;
use std::fmt;

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

use tombolo_rpc::{Blob, Ctx};

/// Programs inside the kernel.
#[tombolo_rpc::service(name = "tombolo.agent.Exec")]
pub trait Exec {
    /// Runs a program until it ends or the caller goes away, in which case its process group is killed.
    ///
    /// The first item of `out` is [`ExecOut::Started`].
    async fn run(
        &self,
        cx: &Ctx,
        spec: ExecSpec,
        input: Receiver<ExecIn>,
        out: Sender<ExecOut>,
    ) -> Result<ExitStatus, ExecError>;
    /// Starts a detached job and returns its id.
    ///
    /// With [`ExecSpec::key`] the call is idempotent: the job that has this key already is returned instead.
    async fn start(&self, cx: &Ctx, spec: ExecSpec) -> Result<JobInfo, ExecError>;
    /// Follows a detached job from an offset of its output until it ends. Going away leaves the job alone.
    async fn attach(
        &self,
        cx: &Ctx,
        request: Attach,
        input: Receiver<ExecIn>,
        out: Sender<ExecOut>,
    ) -> Result<ExitStatus, ExecError>;
    /// All jobs: running ones, and the last that ended.
    async fn list(&self, cx: &Ctx) -> Result<Vec<JobInfo>, ExecError>;
    /// Sends a signal to the process group of a job.
    async fn kill(&self, cx: &Ctx, job: u64, signal: Signal) -> Result<(), ExecError>;
    /// Waits for a job to end.
    async fn wait(&self, cx: &Ctx, job: u64) -> Result<ExitStatus, ExecError>;
    /// Forgets a job that has ended, with its output.
    async fn forget(&self, cx: &Ctx, job: u64) -> Result<(), ExecError>;
}

/// A program to run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct ExecSpec {
    /// Program and arguments. A program without `/` is looked up in `PATH`.
    pub argv: Vec<String>,
    /// Variables to set, besides a default `PATH` and `HOME`.
    pub env: BTreeMap<String, String>,
    /// Working directory. Default `/`.
    pub cwd: Option<String>,
    /// Whom to run as: a name of /etc/passwd, `UID` or `UID:GID`. Default: as the agent.
    pub user: Option<String>,
    /// A terminal of this size for stdin, stdout and stderr together. Default: pipes.
    pub tty: Option<WindowSize>,
    /// Whether there is a stdin; otherwise it is empty. A terminal always has one.
    pub stdin: bool,
    /// Kill the job when it has run this long. Default: no limit.
    pub timeout_ms: Option<u64>,
    /// Makes [`Exec::start`] idempotent. At most 128 bytes.
    pub key: Option<String>,
}

/// The size of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct WindowSize {
    /// Height.
    pub rows: u16,
    /// Width.
    pub cols: u16,
}

/// Request of [`Exec::attach`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct Attach {
    /// Which job.
    pub job: u64,
    /// First byte of its output wanted, counted over stdout and stderr together; 0 is everything that is kept.
    pub from_offset: u64,
}

/// What a caller sends to a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub enum ExecIn {
    /// Bytes for its stdin.
    Stdin(Blob),
    /// The end of its stdin. Ending the stream means the same.
    Eof,
    /// The terminal has another size now.
    Resize(WindowSize),
    /// A signal for its process group.
    Signal(Signal),
}

/// What a job sends to a caller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub enum ExecOut {
    /// It runs.
    Started {
        /// Its id.
        job: u64,
        /// Its process id in the agent's namespace.
        pid: u32,
    },
    /// It wrote to stdout, or to its terminal.
    Stdout {
        /// Offset of the first byte, counted over stdout and stderr together.
        offset: u64,
        /// What it wrote.
        data: Blob,
    },
    /// It wrote to stderr.
    Stderr {
        /// Offset of the first byte, counted over stdout and stderr together.
        offset: u64,
        /// What it wrote.
        data: Blob,
    },
    /// Output was dropped because nobody read it in time.
    Gap {
        /// How many bytes.
        bytes: u64,
    },
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    /// By itself, with this code.
    Code(i32),
    /// By a signal.
    Signal {
        /// Which one.
        signal: i32,
        /// Whether it left a core dump.
        core_dumped: bool,
    },
    /// It was killed because it ran longer than [`ExecSpec::timeout_ms`].
    TimedOut,
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit status {code}"),
            Self::Signal { signal, .. } => write!(f, "killed by signal {signal}"),
            Self::TimedOut => f.write_str("killed because it ran too long"),
        }
    }
}

impl ExitStatus {
    /// Whether it ended by itself with code 0.
    pub fn success(self) -> bool {
        self == Self::Code(0)
    }

    /// What a shell makes of it: the code, 128 + the signal, or 124 after a time-out.
    pub fn shell_code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal { signal, .. } => 128 + signal,
            Self::TimedOut => 124,
        }
    }
}

/// A signal, by number or by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub enum Signal {
    /// 1 to 31.
    Number(i32),
    /// Such as `TERM` or `SIGTERM`, in any case.
    Name(String),
}

/// A job, as [`Exec::list`] shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct JobInfo {
    /// Its id, never reused while the agent runs.
    pub job: u64,
    /// Its process id in the agent's namespace.
    pub pid: u32,
    /// What runs.
    pub argv: Vec<String>,
    /// [`ExecSpec::key`].
    pub key: Option<String>,
    /// Whether it outlives its caller.
    pub detached: bool,
    /// Whether it has a terminal.
    pub tty: bool,
    /// Since 1970.
    pub started_at_ms: u64,
    /// Offset of the oldest byte of output that is kept.
    pub output_from: u64,
    /// Offset after the newest byte.
    pub output_to: u64,
    /// How it ended; `None` while it runs.
    pub exit: Option<ExitStatus>,
}

/// What can go wrong in [`Exec`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize, Schema)]
pub enum ExecError {
    /// There is no such program.
    #[error("cannot run `{program}`: {reason}; nothing was started")]
    NotFound {
        /// As it was asked for.
        program: String,
        /// Where it was looked for.
        reason: String,
    },
    /// It is there but is not something one can run.
    #[error("cannot run `{program}`: {reason}; nothing was started")]
    NotExecutable {
        /// As it was asked for.
        program: String,
        /// Why.
        reason: String,
    },
    /// The request makes no sense.
    #[error("cannot run this: {field}: {reason}; nothing was started")]
    Invalid {
        /// Which field.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no such job, or it was forgotten.
    #[error("there is no job {job}; `list` shows those there are")]
    NoSuchJob {
        /// As it was asked for.
        job: u64,
    },
    /// That cannot be done to a job that has ended (signal) or that runs (forget).
    #[error("{attempt} job {job}: {reason}")]
    WrongState {
        /// What was attempted.
        attempt: String,
        /// Which job.
        job: u64,
        /// What state it is in.
        reason: String,
    },
    /// The agent takes on no work now.
    #[error("this kernel is {state} and starts no programs; nothing was started")]
    NotAccepting {
        /// `quiesced` or `shutting down`.
        state: String,
    },
    /// Too many jobs run.
    #[error("{running} jobs run already, at most {limit} may; nothing was started")]
    TooMany {
        /// How many run.
        running: u32,
        /// How many may.
        limit: u32,
    },
    /// The operating system refused something.
    #[error("{attempt} failed: {reason}")]
    System {
        /// What was attempted, on what.
        attempt: String,
        /// What the system said.
        reason: String,
    },
    /// The caller closed its half of the streams too early.
    #[error("the caller stopped reading; the job was {fate}")]
    CallerGone {
        /// `killed` or `left running`.
        fate: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_statuses_map_to_the_codes_of_a_shell() {
        assert_eq!(ExitStatus::Code(3).shell_code(), 3);
        assert_eq!(ExitStatus::Signal { signal: 9, core_dumped: false }.shell_code(), 137);
        assert_eq!(ExitStatus::TimedOut.shell_code(), 124);
        assert!(ExitStatus::Code(0).success());
        assert!(!ExitStatus::TimedOut.success());
    }
}
