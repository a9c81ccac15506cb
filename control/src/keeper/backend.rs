//! The back end of a machine's device: a program of its own that works the device's queues in the machine's memory (vhost-user).
//!
//! It starts before the kernel, which is given a connection to it, and dies with the kernel and with the keeper. Its own death is
//! noted and costs the kernel nothing but the device.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Pid;

use super::complaints::Complaints;
use super::{BackendJob, BackendState};

/// How long it may take to listen.
const LISTEN_MAX: Duration = Duration::from_secs(10);
/// Between two attempts to connect.
const TRY_AGAIN: Duration = Duration::from_millis(5);

/// A back end that runs, or ran.
#[derive(Debug)]
pub(super) struct Backend {
    program: String,
    pid: Pid,
    complaints: Complaints,
    ended: Option<String>,
}

impl Backend {
    /// Starts it and connects. The error is for people; nothing runs then.
    pub(super) fn start(job: &BackendJob) -> Result<(Self, UnixStream), String> {
        let program = job.argv.first().cloned().unwrap_or_default();
        let failed = |reason: String| format!("could not start the device {program}: {reason}");
        let mut child = Command::new("/proc/self/exe")
            .args(["keeper", "--dir", ".", "--exec-for", &std::process::id().to_string(), "--backend"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| failed(error.to_string()))?;
        match Self::connect(&mut child, program.clone(), Path::new(&job.socket)) {
            Ok(started) => Ok(started),
            Err(reason) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(failed(reason))
            }
        }
    }

    fn connect(child: &mut Child, program: String, socket: &Path) -> Result<(Self, UnixStream), String> {
        let stderr = child.stderr.take().ok_or("its standard error is not piped")?;
        let mut complaints = Complaints::new(stderr).map_err(|error| error.to_string())?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or("it has no process id")?;
        match dial(child, socket) {
            Ok(connection) => Ok((Self { program, pid, complaints, ended: None }, connection)),
            Err(reason) => {
                let mut said = Vec::new();
                complaints.pass_on(&mut said);
                Err(format!("{reason}{}", last_line(&said)))
            }
        }
    }

    /// Where its complaints come from, to wait for.
    pub(super) fn complaints(&self) -> Option<&ChildStderr> {
        self.complaints.source()
    }

    /// Records its complaints in the keeper's log.
    pub(super) fn record_complaints(&mut self) {
        self.complaints.pass_on(&mut io::stderr());
    }

    /// Notes its end if it is this process that ended.
    pub(super) fn reaped(&mut self, pid: Pid, status: ExitStatus) {
        if pid == self.pid {
            self.record_complaints();
            eprintln!("the device {} ended ({status}); its kernel runs on without it", self.program);
            self.ended = Some(status.to_string());
        }
    }

    pub(super) fn state(&self) -> BackendState {
        BackendState { pid: self.pid.as_raw_nonzero().get().unsigned_abs(), ended: self.ended.clone() }
    }
}

/// Connects as soon as it listens, unless it ends or takes too long.
fn dial(child: &mut Child, socket: &Path) -> Result<UnixStream, String> {
    let deadline = Instant::now() + LISTEN_MAX;
    loop {
        let error = match UnixStream::connect(socket) {
            Ok(connection) => return Ok(connection),
            Err(error) => error,
        };
        if let Some(status) = child.try_wait().map_err(|error| error.to_string())? {
            return Err(format!("it ended ({status})"));
        }
        if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) {
            return Err(error.to_string());
        }
        if Instant::now() > deadline {
            return Err(format!("it does not listen within {LISTEN_MAX:?}"));
        }
        std::thread::sleep(TRY_AGAIN);
    }
}

/// The last thing it said, if anything.
fn last_line(said: &[u8]) -> String {
    let said = String::from_utf8_lossy(said);
    said.lines().rfind(|line| !line.trim().is_empty()).map(|line| format!(": {line}")).unwrap_or_default()
}
