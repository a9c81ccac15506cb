//! [`BrokerHandle`]: what the agent and the control daemon say to the broker that runs inside them.

use std::os::fd::OwnedFd;

use crate::addr::{Cid, Port};
use crate::broker::{BrokerConfig, Policy};
use crate::endpoint::Endpoint;
use crate::error::{Error, Result};
use crate::incarnation::Incarnation;
use crate::pool::Member;

/// Starts brokers.
#[derive(Debug)]
pub struct Broker;

/// A running broker. Dropping the last clone stops it, which resets every connection it brokered.
#[derive(Clone, Debug)]
pub struct BrokerHandle {}

/// What a broker is doing, for people and metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BrokerStatus {
    /// This kernel's generation in the pool.
    pub generation: u64,
    /// Processes attached.
    pub clients: usize,
    /// Listeners.
    pub listeners: usize,
    /// Connections whose half is still held.
    pub connections: usize,
    /// Bytes of the heap in all.
    pub heap_bytes: u64,
    /// Bytes of the heap not granted.
    pub heap_free_bytes: u64,
    /// Records or rings found by the timer, whose bell was lost.
    pub found_by_timer: u64,
    /// Records of peers dropped because they made no sense.
    pub bad_records: u64,
    /// The members of the pool.
    pub members: Vec<MemberStatus>,
}

/// One member of the pool, as this broker sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its index.
    pub member: Member,
    /// Its CID.
    pub cid: u32,
    /// Its name.
    pub name: String,
    /// Its generation; 0: no broker runs there.
    pub generation: u64,
    /// Whether there is a doorbell line to it.
    pub line: bool,
    /// Connections with it.
    pub connections: usize,
}

fn unsupported(attempt: &str) -> Error {
    Error::io(attempt, std::io::ErrorKind::Unsupported.into())
}

impl Broker {
    /// Starts a broker as a task of the current Tokio runtime. A new generation begins: whatever connections an
    /// earlier broker of this member had are dead from here on.
    ///
    /// # Errors
    /// [`Error::BadPool`] if the pool cannot be used, or another broker holds this member; [`Error::Io`] if the socket cannot be bound.
    pub async fn start(config: BrokerConfig) -> Result<BrokerHandle> {
        Err(unsupported(&format!("starting a broker on {:?}", config.pool)))
    }
}

impl BrokerHandle {
    /// An endpoint for this process.
    pub async fn endpoint(&self) -> Result<Endpoint> {
        Err(unsupported("attaching"))
    }

    /// Adds the doorbell line to `member`: in the primary, one per spawned kernel; in a spawned kernel, the one to the
    /// primary. Replaces an earlier one. `fd` is made non-blocking.
    pub fn add_line(&self, member: Member, fd: OwnedFd) -> Result<()> {
        let _ = (member, fd);
        Err(unsupported("adding a line"))
    }

    /// Removes the doorbell line to `member`. Bells for it are then lost, and what they announce is found by its timer.
    pub fn remove_line(&self, member: Member) {
        let _ = member;
    }

    /// Primary only: declares every generation of `member` up to and including `generation` dead, in all kernels: its
    /// connections reset, their memory is reclaimed. Call it once the kernel is known not to run any more.
    pub async fn fence(&self, member: Member, generation: u64) -> Result<()> {
        let _ = (member, generation);
        Err(unsupported("fencing"))
    }

    /// Primary only: enters a kernel into the pool's table, before it boots.
    pub async fn admit(&self, member: Member, cid: Cid, name: &str, incarnation: Incarnation) -> Result<()> {
        let _ = (member, cid, name, incarnation);
        Err(unsupported("admitting"))
    }

    /// Primary only: fences `member` whole and takes it out of the pool's table.
    pub async fn retire(&self, member: Member) -> Result<()> {
        let _ = member;
        Err(unsupported("retiring"))
    }

    /// The generation that `member` runs under; 0 if no broker of it ever ran or it is fenced.
    pub fn generation(&self, member: Member) -> u64 {
        let _ = member;
        0
    }

    /// Replaces the policy. Connections already made stay.
    pub async fn set_policy(&self, policy: Policy) -> Result<()> {
        let _ = policy;
        Err(unsupported("setting the policy"))
    }

    /// The named services that listen in this kernel.
    pub async fn services(&self) -> Result<Vec<(String, Port)>> {
        Err(unsupported("listing services"))
    }

    /// What the broker is doing.
    pub async fn status(&self) -> Result<BrokerStatus> {
        Err(unsupported("asking for status"))
    }

    /// Stops it and waits until its socket is gone.
    pub async fn stop(self) {}
}
