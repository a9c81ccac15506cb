//! `tombolo.control.Host`: the daemon, and what this host can run.

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};
use tombolo_rpc::Ctx;

use super::ControlError;
use crate::topology::Topology;

/// The daemon and its host.
#[tombolo_rpc::service(name = "tombolo.control.Host")]
pub trait Host {
    /// What the daemon is doing.
    async fn status(&self, cx: &Ctx) -> Result<DaemonStatus, ControlError>;
    /// What this host can run, what is missing, and how to get it.
    async fn doctor(&self, cx: &Ctx) -> Result<Diagnosis, ControlError>;
    /// What this host's CPUs, memory and caches are, now.
    async fn topology(&self, cx: &Ctx) -> Result<Topology, ControlError>;
    /// Ends the daemon. Kernels are left running, for the next daemon to adopt, unless `stop_kernels`: then every one
    /// is stopped in good order first.
    async fn shutdown(&self, cx: &Ctx, stop_kernels: bool) -> Result<(), ControlError>;
}

/// What the daemon is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct DaemonStatus {
    /// Its version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Since when it runs, ns since 1970.
    pub started_unix_ns: u64,
    /// Where its state is.
    pub state_dir: String,
    /// Where its sockets are.
    pub runtime_dir: String,
    /// The shared memory.
    pub pool_path: String,
    /// Its length, in bytes.
    pub pool_bytes: u64,
    /// Instances there are.
    pub instances: u32,
    /// Instances that run.
    pub running: u32,
    /// Why changes are refused at present, if they are.
    pub store_refusal: Option<String>,
    /// Number of the newest event.
    pub last_event: u64,
    /// The caller's role.
    pub your_role: super::Role,
}

/// What this host can run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct Diagnosis {
    /// What was looked at.
    pub findings: Vec<Finding>,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct Finding {
    /// What was looked at, such as `spawner uml`.
    pub subject: String,
    /// How it is.
    pub level: Level,
    /// What was found.
    pub detail: String,
    /// What to do; empty if nothing.
    pub remedy: String,
}

/// How grave a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, with a limit.
    Warn,
    /// Nothing can run until it is mended.
    Fail,
}

impl Diagnosis {
    /// Whether kernels can be run here.
    pub fn is_healthy(&self) -> bool {
        self.findings.iter().all(|finding| finding.level < Level::Fail)
    }
}
