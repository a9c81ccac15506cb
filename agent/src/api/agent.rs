//! `tombolo.agent.Agent`: who is there, and the life of the kernel as a whole.

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};
use tombolo_rpc::Ctx;
use tombolo_transport::broker;

/// The kernel and its agent.
#[tombolo_rpc::service(name = "tombolo.agent.Agent")]
pub trait Agent {
    /// Who this is: kernel, memory, CPUs, agent build and features.
    async fn hello(&self, cx: &Ctx) -> Result<Inventory, AgentError>;
    /// Answers at once with the clocks of this kernel.
    async fn ping(&self, cx: &Ctx) -> Result<Pong, AgentError>;
    /// Says how far the clock of this kernel is off, and steps it if asked to and permitted
    /// ([`crate::config::AgentConfig::may_set_clock`]).
    async fn sync_clock(&self, cx: &Ctx, request: SyncClock) -> Result<ClockReport, AgentError>;
    /// Takes on no new work (exec, put, forwards) until resumed, and writes file systems to their devices.
    ///
    /// Calling it again renews `auto_resume_ms`.
    async fn quiesce(&self, cx: &Ctx, request: Quiesce) -> Result<QuiesceReport, AgentError>;
    /// Ends [`Agent::quiesce`]; without effect if it was not in force.
    async fn resume(&self, cx: &Ctx) -> Result<(), AgentError>;
    /// Stops everything in order and powers off: answers first, then SIGTERM, `grace_ms`, SIGKILL, sync, power-off.
    ///
    /// Calling it again may only shorten the grace.
    async fn shutdown(&self, cx: &Ctx, request: Shutdown) -> Result<ShutdownAccepted, AgentError>;
    /// Replaces the rules about who may connect to this kernel.
    async fn set_policy(&self, cx: &Ctx, rules: Vec<PolicyRule>) -> Result<(), AgentError>;
    /// The services that programs of this kernel registered by name.
    async fn services(&self, cx: &Ctx) -> Result<Vec<ServiceEntry>, AgentError>;
}

/// Answer to [`Agent::hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct Inventory {
    /// Name of this kernel in its configuration.
    pub name: String,
    /// Its address.
    pub cid: u32,
    /// Its index in the pool.
    pub member: u32,
    /// This boot, 32 hexadecimal digits.
    pub incarnation: String,
    /// What uname(2) says.
    pub uname: Uname,
    /// `/proc/sys/kernel/random/boot_id`; empty if there is none.
    pub boot_id: String,
    /// Memory the kernel manages, in bytes.
    pub memory_bytes: u64,
    /// CPUs that are online.
    pub cpus_online: u32,
    /// CPUs that may ever be online.
    pub cpus_possible: u32,
    /// Size of a page of memory, in bytes.
    pub page_bytes: u32,
    /// Since the kernel booted.
    pub uptime_ms: u64,
    /// How the agent runs.
    pub mode: AgentMode,
    /// Process id of the agent in its own namespace.
    pub agent_pid: u32,
    /// Version of the agent.
    pub agent_version: String,
    /// Differs after each start of the agent; part of every [`crate::api::logs::LogCursor`].
    pub agent_epoch: u64,
    /// What this agent can do beyond this version's base, by name.
    pub features: Vec<String>,
}

/// What uname(2) says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct Uname {
    /// Such as `Linux`.
    pub sysname: String,
    /// Host name.
    pub nodename: String,
    /// Such as `6.1.176`.
    pub release: String,
    /// Build of the kernel.
    pub version: String,
    /// Such as `x86_64`.
    pub machine: String,
}

/// How an agent runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum AgentMode {
    /// First process of a kernel: power-off powers the kernel off.
    Init,
    /// First process of a PID namespace: power-off ends the namespace.
    NamespaceInit,
    /// An ordinary program: power-off ends what it started, and itself.
    Service,
}

/// Answer to [`Agent::ping`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct Pong {
    /// `CLOCK_MONOTONIC` of this kernel, in nanoseconds.
    pub monotonic_ns: u64,
    /// Since 1970, in nanoseconds, by the clock of this kernel.
    pub wall_ns: u64,
}

/// Request of [`Agent::sync_clock`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct SyncClock {
    /// The time by the caller's clock when this arrives, in nanoseconds since 1970: when it is sent, plus half a round trip
    /// as measured with [`Agent::ping`].
    pub wall_ns: u64,
    /// How far `wall_ns` may be off, in nanoseconds: half a round trip.
    pub uncertainty_ns: u64,
    /// Step the clock if it is off by more than this many milliseconds, and more than the uncertainty. `None`: report only.
    pub step_beyond_ms: Option<u64>,
}

/// Answer to [`Agent::sync_clock`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct ClockReport {
    /// This kernel's clock minus the caller's, in nanoseconds, before anything was changed.
    pub offset_ns: i64,
    /// What was done about it.
    pub action: ClockAction,
}

/// What [`Agent::sync_clock`] did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum ClockAction {
    /// Nothing: it is near enough, or only a report was asked for.
    Left,
    /// The clock shows the caller's time now.
    Stepped,
    /// It is off by more than was asked for, and was left.
    NotStepped {
        /// Why.
        reason: String,
    },
}

/// Request of [`Agent::quiesce`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct Quiesce {
    /// Resume by itself after this long, so that a control plane that died leaves nothing stuck. 0 = never.
    pub auto_resume_ms: u64,
}

/// Answer to [`Agent::quiesce`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct QuiesceReport {
    /// Jobs that run still.
    pub jobs_running: u32,
    /// Forwarded connections that are open still.
    pub forwards_open: u32,
    /// Whether file systems were written out.
    pub synced: bool,
}

/// Request of [`Agent::shutdown`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct Shutdown {
    /// From SIGTERM to SIGKILL. At most an hour.
    pub grace_ms: u64,
}

/// Answer to [`Agent::shutdown`], sent before anything is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct ShutdownAccepted {
    /// Everything is over at the latest this long from now (grace, plus time to sync and unmount).
    pub within_ms: u64,
}

/// Decides about connections of kernel `from` to `port` of kernel `to`; the first rule that matches counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct PolicyRule {
    /// The calling kernel: `*`, a CID or a name.
    pub from: String,
    /// The called kernel: `*`, a CID or a name.
    pub to: String,
    /// `*`, a port number or the name of a service.
    pub port: String,
    /// Refuse such connections instead of allowing them.
    pub deny: bool,
}

impl From<&broker::PolicyRule> for PolicyRule {
    fn from(rule: &broker::PolicyRule) -> Self {
        Self {
            from: rule.from.to_string(),
            to: rule.to.to_string(),
            port: rule.port.to_string(),
            deny: rule.action == broker::PolicyAction::Deny,
        }
    }
}

impl TryFrom<&PolicyRule> for broker::PolicyRule {
    type Error = broker::ParsePolicyError;

    fn try_from(rule: &PolicyRule) -> Result<Self, Self::Error> {
        Ok(Self {
            from: rule.from.parse()?,
            to: rule.to.parse()?,
            port: rule.port.parse()?,
            action: if rule.deny { broker::PolicyAction::Deny } else { broker::PolicyAction::Allow },
        })
    }
}

/// A service that a program of this kernel registered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct ServiceEntry {
    /// Its name, unique in this kernel.
    pub name: String,
    /// Where it listens.
    pub port: u32,
}

/// What can go wrong in [`Agent`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize, Schema)]
pub enum AgentError {
    /// A rule makes no sense; none was applied.
    #[error("policy rule {index} is not valid, no rule was changed: {reason}")]
    InvalidPolicy {
        /// Which rule, from 0.
        index: u32,
        /// What is wrong with it.
        reason: String,
    },
    /// The kernel has neither a pool nor a link, hence no fabric.
    #[error("{attempt}: this kernel has neither a shared-memory pool nor a paced link")]
    NoFabric {
        /// What was attempted.
        attempt: String,
    },
    /// The operating system refused something.
    #[error("{attempt} failed: {reason}")]
    System {
        /// What was attempted, on what.
        attempt: String,
        /// What the system said.
        reason: String,
    },
}
