//! `tombolo.control.Fleet`: the instances.

use std::fmt;

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};
use tombolo_agent::api::agent::Inventory;
use tombolo_agent::api::health::HealthReport;
use tombolo_rpc::{Blob, Ctx};

use super::ControlError;
use crate::core::health::Verdict;
use crate::core::layer::Layer;
use crate::core::lifecycle::{Desired, End, State};

/// The instances. Names are those of [`crate::core::InstanceName`].
///
/// What changes something is recorded before it is done, goes on when the caller goes away, and may be asked for again.
#[tombolo_rpc::service(name = "tombolo.control.Fleet")]
pub trait Fleet {
    /// All instances, by name.
    async fn list(&self, cx: &Ctx) -> Result<Vec<InstanceView>, ControlError>;
    /// One instance with everything that is known about it.
    async fn inspect(&self, cx: &Ctx, name: String) -> Result<InstanceDetail, ControlError>;
    /// Records an instance; nothing is started.
    async fn create(&self, cx: &Ctx, request: CreateRequest) -> Result<InstanceView, ControlError>;
    /// Begins to start it; returns once that is recorded. One that runs is left alone.
    async fn start(&self, cx: &Ctx, name: String) -> Result<InstanceView, ControlError>;
    /// Begins to stop it in good order; returns once that is recorded. After `grace_ms` it is stopped by force;
    /// `None` takes the grace of its specification.
    async fn stop(&self, cx: &Ctx, name: String, grace_ms: Option<u64>)
    -> Result<InstanceView, ControlError>;
    /// Begins to stop it and start it again.
    async fn restart(
        &self,
        cx: &Ctx,
        name: String,
        grace_ms: Option<u64>,
    ) -> Result<InstanceView, ControlError>;
    /// Stops it by force; it stays stopped.
    async fn kill(&self, cx: &Ctx, name: String) -> Result<InstanceView, ControlError>;
    /// Deletes the record of an instance that does not run, with its folder; with `force` it is killed first.
    async fn remove(&self, cx: &Ctx, name: String, force: bool) -> Result<(), ControlError>;
    /// Answers when the condition holds, with how the instance is then. `timeout_ms` 0 asks once.
    async fn wait(
        &self,
        cx: &Ctx,
        name: String,
        condition: Condition,
        timeout_ms: u64,
    ) -> Result<InstanceView, ControlError>;
    /// For tests: stops every instruction of it, as a hang would, or lets it go on.
    async fn freeze(&self, cx: &Ctx, name: String, frozen: bool) -> Result<InstanceView, ControlError>;
    /// For tests: kills its kernel as an accident would; the restart policy applies.
    async fn crash(&self, cx: &Ctx, name: String) -> Result<InstanceView, ControlError>;
    /// Its live console, raw bytes both ways. One client at a time.
    async fn console(
        &self,
        cx: &Ctx,
        name: String,
        input: Receiver<Blob>,
        out: Sender<Blob>,
    ) -> Result<(), ControlError>;
    /// What its kernel wrote to the console since it was started, the last `tail_bytes` of it.
    async fn console_log(&self, cx: &Ctx, name: String, tail_bytes: u64) -> Result<Blob, ControlError>;
}

/// Request of [`Fleet::create`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct CreateRequest {
    /// Its name.
    pub name: String,
    /// An [`InstanceSpec`](crate::core::InstanceSpec) as JSON: the document people write, so that it may grow.
    pub spec_json: String,
    /// A second request with this key gets the result of the first. At most 128 bytes.
    pub idempotency_key: Option<String>,
}

/// What is to be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    /// Its agent has reported.
    Running,
    /// It runs and its programs are ready.
    Ready,
    /// It has ended, as it was asked to or not.
    Stopped,
    /// It is hung.
    Hung,
    /// It has failed.
    Failed,
    /// There is no such instance.
    Gone,
}

/// An instance at a glance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct InstanceView {
    /// Its name.
    pub name: String,
    /// Its address.
    pub cid: u32,
    /// Its index in the pool.
    pub member: u32,
    /// What it has reached.
    pub state: State,
    /// What is wanted of it.
    pub desired: Desired,
    /// How it is.
    pub health: Verdict,
    /// The smallest part that fails: that which is acted upon.
    pub layer: Option<Layer>,
    /// Why that is no better, where something is known to be wrong.
    pub health_reason: Option<String>,
    /// What carries everything between this kernel and it; `None` if it has no kernel.
    pub link: Option<LinkKind>,
    /// The driver of its kernel; `None` before the first start.
    pub spawner: Option<String>,
    /// The kernel's transaction that made it, such as `tx_2`, where another program did and it was taken over.
    pub taken_over: Option<String>,
    /// The process of its kernel on this host.
    pub pid: Option<u32>,
    /// Its present boot, 32 hex digits.
    pub incarnation: Option<String>,
    /// The boot id its kernel gave itself.
    pub boot_id: Option<String>,
    /// Its kernel, such as `Linux 6.1.176 x86_64`.
    pub kernel: Option<String>,
    /// The generation of its broker in the pool; 0 if none runs.
    pub generation: u64,
    /// Since when its agent has been known to run, ns since 1970.
    pub up_since_unix_ns: Option<u64>,
    /// Boots so far.
    pub boots: u32,
    /// Restarts by policy so far.
    pub restarts: u32,
    /// Memory of its kernel, in MiB.
    pub memory_mib: u64,
    /// How its last kernel ended.
    pub last_end: Option<End>,
    /// When that was, ns since 1970.
    pub last_end_unix_ns: Option<u64>,
    /// The last thing that went wrong.
    pub last_error: Option<String>,
}

/// What carries everything between this kernel and another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum LinkKind {
    /// Memory that both map, with a heartbeat and a black box in it.
    Shm,
    /// One socket, on which everything has its turn: neither heartbeat nor black box.
    Paced,
}

impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Shm => "shm",
            Self::Paced => "paced",
        })
    }
}

/// Everything known about an instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Schema)]
pub struct InstanceDetail {
    /// What runs the CPUs of its machine, and why; `None` if it has no machine of its own, or no kernel.
    pub runs_on: Option<String>,
    /// At a glance.
    pub view: InstanceView,
    /// Its specification, as JSON.
    pub spec_json: String,
    /// What its agent said it is.
    pub inventory: Option<Inventory>,
    /// What its agent last said about its health.
    pub report: Option<HealthReport>,
    /// Whether its end of a [paced](LinkKind::Paced) link is there now; `None` where it has no such link.
    pub link_is_up: Option<bool>,
    /// Why it has a [paced](LinkKind::Paced) link although the settings ask for shared memory.
    pub why_paced: Option<String>,
    /// How long ago its heartbeat moved, in milliseconds.
    pub last_beat_age_ms: Option<u64>,
    /// What its dead kernel last wrote to its black box, oldest first.
    pub last_words: Vec<LastWord>,
    /// The end of what that kernel wrote to its console.
    pub last_console: String,
    /// Folder of its sockets, console log and exit record on this host.
    pub runtime_dir: String,
    /// Its console log on this host.
    pub console_log: Option<String>,
}

/// One record of the black box.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct LastWord {
    /// By the clock of that kernel, ns.
    pub at_ns: u64,
    /// How grave it is.
    pub level: String,
    /// The line.
    pub text: String,
}

impl std::fmt::Display for Condition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Running => "running",
            Self::Ready => "ready",
            Self::Stopped => "stopped",
            Self::Hung => "hung",
            Self::Failed => "failed",
            Self::Gone => "gone",
        })
    }
}

impl InstanceView {
    /// Whether `condition` holds now.
    pub fn satisfies(&self, condition: Condition) -> bool {
        match condition {
            Condition::Running => self.state == State::Running,
            Condition::Ready => self.state == State::Running && self.health == Verdict::Ready,
            Condition::Stopped => {
                matches!(self.state, State::Stopped | State::Defined)
                    || self.state == State::Failed && self.desired == Desired::Stopped
            }
            Condition::Hung => self.state == State::Hung,
            Condition::Failed => matches!(self.state, State::Failed | State::Lost),
            Condition::Gone => false,
        }
    }

    /// Whether `condition` can no longer come about without somebody acting.
    pub fn rules_out(&self, condition: Condition) -> bool {
        matches!(condition, Condition::Running | Condition::Ready | Condition::Hung)
            && self.desired == Desired::Stopped
            && matches!(self.state, State::Failed | State::Lost | State::Stopped)
    }
}
