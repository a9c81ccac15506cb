//! `tombolo.agent.Health`: how the kernel and its entrypoint are, seen from inside.

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};
use tombolo_rpc::Ctx;

use super::exec::ExitStatus;
pub use crate::config::ProbeKind;

/// Health of this kernel.
#[tombolo_rpc::service(name = "tombolo.agent.Health")]
pub trait Health {
    /// How everything is now.
    async fn status(&self, cx: &Ctx) -> Result<HealthReport, HealthError>;
    /// Sends a report at once, after each change of a verdict, of the entrypoint or of which CPUs are stuck, and each `interval_ms`
    /// (0 = only changes; at least 50).
    async fn watch(&self, cx: &Ctx, interval_ms: u64, out: Sender<HealthReport>) -> Result<(), HealthError>;
}

/// How a kernel is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Schema)]
pub struct HealthReport {
    /// Counts changes of verdicts, of the entrypoint and of which CPUs are stuck, from 1.
    pub revision: u64,
    /// What the agent is doing.
    pub phase: AgentPhase,
    /// Every startup probe has passed (true without such probes).
    pub started: bool,
    /// No liveness probe fails.
    pub live: bool,
    /// Started, live, accepting work, the entrypoint (if any) runs or ended well, and every readiness probe passes.
    pub ready: bool,
    /// Each probe.
    pub probes: Vec<ProbeStatus>,
    /// The entrypoint; `None` if there is none.
    pub entrypoint: Option<EntrypointStatus>,
    /// Load, memory, CPUs.
    pub load: SystemLoad,
    /// The CPUs that run nothing although there is something to run.
    pub stuck_cpus: Vec<StuckCpu>,
}

/// A CPU that does not run what it is given: the kernel or something of the highest priority holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct StuckCpu {
    /// Its number.
    pub cpu: u32,
    /// For so long.
    pub silent_ms: u64,
}

/// What an agent is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum AgentPhase {
    /// It sets up the kernel.
    Booting,
    /// It does what it is asked.
    Running,
    /// It takes on no new work.
    Quiesced,
    /// It stops everything.
    ShuttingDown,
}

/// One probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct ProbeStatus {
    /// Its name.
    pub name: String,
    /// What it decides.
    pub kind: ProbeKind,
    /// Its verdict.
    pub verdict: ProbeVerdict,
    /// Tries so far.
    pub tries: u64,
    /// Failures in a row up to now.
    pub failures_in_a_row: u32,
    /// Why the last try failed; empty if it passed.
    pub last_failure: String,
    /// The same for programs; `None` if it passed.
    pub last_failure_kind: Option<ProbeFailureKind>,
}

/// Why a try of a probe failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum ProbeFailureKind {
    /// No result within the time-out.
    TimedOut,
    /// There is no such program, file, host, kernel or service name.
    NotFound,
    /// Nobody listens there.
    Refused,
    /// It is not permitted.
    Denied,
    /// The connection was lost, or something else went wrong on the way.
    Lost,
    /// Who listens there does not speak tombolo-rpc, or no version that the agent knows.
    NotRpc,
    /// Who listens there wants a secret proven.
    NotAuthenticated,
    /// The rpc service is not among those offered there.
    ServiceMissing,
    /// The program says itself that it cannot do its work now.
    NotServing,
    /// The program that was run ended by a signal or with another code than 0.
    BadExit,
    /// The file was not written to for too long.
    Stale,
    /// The probe could not be tried: this kernel has no pool, or is shutting down.
    CannotTry,
}

/// The verdict of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum ProbeVerdict {
    /// It waits for the startup probes or for its first result.
    Pending,
    /// It passes.
    Passing,
    /// It fails.
    Failing,
}

/// The entrypoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct EntrypointStatus {
    /// What runs.
    pub argv: Vec<String>,
    /// What it is doing.
    pub state: EntrypointState,
    /// How often it was started again.
    pub restarts: u32,
    /// How it ended the last time.
    pub last_exit: Option<ExitStatus>,
}

/// What an entrypoint is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum EntrypointState {
    /// It runs.
    Running {
        /// Its process id.
        pid: u32,
        /// Since 1970.
        since_ms: u64,
    },
    /// It will be started again.
    BackOff {
        /// In so long.
        next_in_ms: u64,
    },
    /// It ended, and its policy does not start it again.
    Ended,
    /// It could not be started.
    CannotStart {
        /// Why.
        reason: String,
        /// It will be tried again in so long; `None` if the policy does not try again.
        next_in_ms: Option<u64>,
    },
    /// It gets SIGTERM, and SIGKILL if it takes too long.
    Stopping,
}

/// Load of a kernel.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, Schema)]
pub struct SystemLoad {
    /// Since the kernel booted.
    pub uptime_ms: u64,
    /// Mean number of runnable tasks over 1, 5 and 15 minutes.
    pub load_average: [f64; 3],
    /// Memory.
    pub memory: Memory,
    /// Per online CPU.
    pub cpus: Vec<CpuTimes>,
    /// Pressure; `None` where the kernel does not tell.
    pub pressure: Option<Pressure>,
    /// Number of processes.
    pub processes: u32,
}

/// Memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct Memory {
    /// What the kernel manages.
    pub total: u64,
    /// What nobody uses.
    pub free: u64,
    /// What could be had without swapping.
    pub available: u64,
}

/// What one CPU did since it came online, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct CpuTimes {
    /// Its number.
    pub cpu: u32,
    /// Programs.
    pub user_ms: u64,
    /// The kernel, interrupts included.
    pub system_ms: u64,
    /// Nothing, or waiting for a device.
    pub idle_ms: u64,
    /// Time that something below this kernel took.
    pub steal_ms: u64,
}

/// Pressure stall information.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, Schema)]
pub struct Pressure {
    /// Of CPUs.
    pub cpu: PressureLine,
    /// Of memory.
    pub memory: PressureLine,
    /// Of devices.
    pub io: PressureLine,
}

/// Share of time, in percent, in which some or all tasks waited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, Schema)]
pub struct PressureLine {
    /// Some, over 10 seconds.
    pub some_avg10: f64,
    /// Some, over 60 seconds.
    pub some_avg60: f64,
    /// All, over 10 seconds.
    pub full_avg10: f64,
    /// All, over 60 seconds.
    pub full_avg60: f64,
}

/// What can go wrong in [`Health`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize, Schema)]
pub enum HealthError {
    /// The interval is too short to be meant.
    #[error("an interval of {interval_ms} ms is too short: at least 50, or 0 for changes alone")]
    IntervalTooShort {
        /// As it was asked for.
        interval_ms: u64,
    },
}
