//! What a keeper is told to do, and what it records in the end.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{CpuLease, Process};
use crate::spawner::SpawnerKind;

/// What a keeper is to do: written to `job.json` before it is started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The instance's name, for messages.
    pub name: String,
    /// The driver this kernel belongs to.
    pub kind: SpawnerKind,
    /// The program and its arguments, run in the runtime folder. `{doorbell}` in an argument becomes the number of the
    /// inherited doorbell descriptor, `{events}` that of the monitor to which a machine tells its events, `{backend}` that of
    /// the connection to the back end of its device.
    pub argv: Vec<String>,
    /// Its whole environment.
    pub env: Vec<(String, String)>,
    /// Size at which `console.log` becomes `console.log.1`, in bytes.
    pub console_bytes_max: u64,
    /// How its memory can be changed, if it can.
    #[serde(default)]
    pub memory: Option<MemoryJob>,
    /// The CPUs that are lent to it at first.
    #[serde(default)]
    pub cpus: Vec<CpuLease>,
    /// The back end of a device of the machine, if that is a program of its own.
    #[serde(default)]
    pub backend: Option<BackendJob>,
    /// What runs the CPUs of its machine, and why, for people; `None` if it has no machine of its own.
    #[serde(default)]
    pub runs_on: Option<String>,
}

/// The back end of a device, a program of its own that speaks vhost-user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendJob {
    /// The program and its arguments, run in the runtime folder with an empty environment.
    pub argv: Vec<String>,
    /// Where it listens for the machine, relative to the runtime folder.
    pub socket: String,
}

/// How a kernel's memory can be changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryJob {
    /// The socket of its management console, relative to the runtime folder.
    pub mconsole: String,
    /// What it boots with, in bytes, which is also the most it can have.
    pub boot_bytes: u64,
}

impl Job {
    /// The kernel's doorbell descriptor is this number, so that it can be written into files beforehand.
    ///
    /// High enough that neither the keeper nor what it inherited uses it.
    pub const DOORBELL_FD: i32 = 100;
    /// The same of the monitor for events, of emulated machines.
    pub const EVENTS_FD: i32 = 101;
    /// The same of the connection to the back end of a device.
    pub const BACKEND_FD: i32 = 102;
    /// How a warden exits whose kernel ended without a word (see [`ExitHow::Unexplained`]).
    pub const EXIT_UNEXPLAINED: u8 = 3;
    /// Default of [`Job::console_bytes_max`]: 4 MiB, twice that on disk.
    pub const CONSOLE_BYTES_MAX: u64 = 4 << 20;
}

/// Which process is the kernel: enough to find it, and never another that was given its number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelRecord {
    /// The driver it belongs to.
    pub kind: SpawnerKind,
    /// Process id, which is also its process group.
    pub pid: u32,
    /// When that process started, in clock ticks since the host's boot (field 22 of `/proc/PID/stat`).
    pub start_ticks: u64,
    /// When it was started: nanoseconds since the Unix epoch.
    pub started_at_unix_ns: u64,
    /// What runs the CPUs of its machine, and why, for people.
    #[serde(default)]
    pub runs_on: Option<String>,
}

impl KernelRecord {
    /// Whether that very process runs. One that has ended and was not reaped yet does not.
    pub fn is_running(&self) -> bool {
        let found = i32::try_from(self.pid).ok().and_then(Process::find);
        found.is_some_and(|process| process.start_ticks == self.start_ticks && !process.is_zombie())
    }
}

/// How a kernel ended, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// How it ended.
    pub how: ExitHow,
    /// When the keeper saw it: nanoseconds since the Unix epoch.
    pub at_unix_ns: u64,
}

/// How a kernel ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitHow {
    /// It powered itself off in good order.
    PoweredOff,
    /// It panicked.
    Panicked,
    /// A signal killed it (9 for SIGKILL).
    Signaled(i32),
    /// It exited with this status, neither powered off nor panicked.
    Code(i32),
    /// It could not be started at all; the text says why.
    NeverRan(String),
    /// It ended, and neither its console nor whoever ended it says how.
    Unexplained,
    /// Nobody saw how: its keeper died first, and the kernel with it.
    Lost,
}

/// What every panic of Linux prints on its console.
const PANIC_MARK: &[u8] = b"Kernel panic - not syncing";

impl ExitHow {
    /// Tells from the exit status of the kernel's process and the end of its console how it ended.
    ///
    /// The console decides before the status: a panicked kernel may then have exited, aborted or been killed.
    pub fn classify(code: Option<i32>, signal: Option<i32>, console_tail: &[u8]) -> Self {
        if console_tail.windows(PANIC_MARK.len()).any(|window| window == PANIC_MARK) {
            return Self::Panicked;
        }
        match (code, signal) {
            (_, Some(signal)) => Self::Signaled(signal),
            (Some(0), None) => Self::PoweredOff,
            (Some(code), None) => Self::Code(code),
            (None, None) => Self::Lost,
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.how.fmt(f)
    }
}

impl fmt::Display for ExitHow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PoweredOff => f.write_str("powered off"),
            Self::Panicked => f.write_str("panicked"),
            Self::Signaled(signal) => write!(f, "killed by signal {signal}"),
            Self::Code(code) => write!(f, "exited with status {code}"),
            Self::NeverRan(reason) => write!(f, "never ran: {reason}"),
            Self::Unexplained => f.write_str("ended, and nothing says how"),
            Self::Lost => f.write_str("lost: its keeper died, and the kernel with it"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_is_classified_by_console_before_status() {
        let panicked = b"... Kernel panic - not syncing: sysrq triggered crash\n...";
        assert_eq!(ExitHow::classify(Some(0), None, b"reboot: System halted"), ExitHow::PoweredOff);
        assert_eq!(ExitHow::classify(Some(1), None, b""), ExitHow::Code(1));
        assert_eq!(ExitHow::classify(None, Some(9), b""), ExitHow::Signaled(9));
        for (code, signal) in [(Some(0), None), (Some(1), None), (None, Some(6))] {
            assert_eq!(ExitHow::classify(code, signal, panicked), ExitHow::Panicked);
        }
    }
}
