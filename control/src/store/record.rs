//! What is stored about one instance.

use serde::{Deserialize, Serialize};
use tombolo_agent::config::Secret;
use tombolo_transport::{Cid, Incarnation};

use crate::core::lifecycle::{End, Lifecycle};
use crate::core::{InstanceName, InstanceSpec};
use crate::spawner::{SpawnerKind, TakenOver};

/// What is stored about one instance. Written before each step of its life is carried out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceRecord {
    /// Its name.
    pub name: InstanceName,
    /// Its address, for as long as the record lives; never given to another.
    pub cid: Cid,
    /// Its row in the pool, for as long as the record lives.
    pub member: u16,
    /// What it is to be.
    pub spec: InstanceSpec,
    /// Where it is in its life.
    pub life: Lifecycle,
    /// The driver that made its present kernel.
    #[serde(default)]
    pub spawner: Option<SpawnerKind>,
    /// What another program made for it in the kernel beside which it runs, where that was taken over.
    #[serde(default)]
    pub taken_over: Option<TakenOver>,
    /// Its present boot.
    #[serde(default)]
    pub incarnation: Option<Incarnation>,
    /// What its present boot and the daemon prove themselves by.
    #[serde(default)]
    pub secret: Option<Secret>,
    /// The process of its kernel on this host.
    #[serde(default)]
    pub pid: Option<u32>,
    /// The boot id its kernel gave itself, as its agent reported it.
    #[serde(default)]
    pub boot_id: Option<String>,
    /// Name, release and machine of its kernel, as its agent reported it.
    #[serde(default)]
    pub kernel: Option<String>,
    /// Boots so far.
    #[serde(default)]
    pub boots: u32,
    /// Restarts by policy so far.
    #[serde(default)]
    pub restarts: u32,
    /// How its last kernel ended.
    #[serde(default)]
    pub last_end: Option<LastEnd>,
    /// The last thing that went wrong, in words.
    #[serde(default)]
    pub last_error: Option<String>,
    /// When the record was made, ns since 1970.
    pub created_unix_ns: u64,
    /// When its present kernel was started, ns since 1970.
    #[serde(default)]
    pub spawned_unix_ns: Option<u64>,
}

/// How a kernel ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastEnd {
    /// How.
    pub end: End,
    /// When, ns since 1970.
    pub at_unix_ns: u64,
    /// Which boot that was.
    pub incarnation: Option<Incarnation>,
}

impl InstanceRecord {
    /// A new record, of which nothing exists yet.
    pub fn new(name: InstanceName, cid: Cid, member: u16, spec: InstanceSpec, now_unix_ns: u64) -> Self {
        Self {
            name,
            cid,
            member,
            spec,
            life: Lifecycle::default(),
            spawner: None,
            taken_over: None,
            incarnation: None,
            secret: None,
            pid: None,
            boot_id: None,
            kernel: None,
            boots: 0,
            restarts: 0,
            last_end: None,
            last_error: None,
            created_unix_ns: now_unix_ns,
            spawned_unix_ns: None,
        }
    }
}
