//! [`BrokerHandle`]: what the agent and the control daemon say to the broker that runs inside them.

use std::os::fd::OwnedFd;

use tokio::sync::{mpsc, oneshot};

use crate::addr::{Cid, Port};
use crate::broker::core::{ClientId, Elsewhere};
use crate::broker::record::ConnKind;
use crate::broker::shell::{self, Command};
use crate::broker::{BrokerConfig, Policy};
use crate::doorbell::Line;
use crate::endpoint::Endpoint;
use crate::error::{Error, Result};
use crate::incarnation::Incarnation;
use crate::pool::{Member, Pool};
use crate::relay::{Answered, Caller, Refusal, RelaySocket};
use crate::shm::Way;

/// Starts brokers.
#[derive(Debug)]
pub struct Broker;

/// A running broker. Dropping the last clone stops it, which resets every connection it brokered.
#[derive(Clone, Debug)]
pub struct BrokerHandle {
    pool: Pool,
    commands: mpsc::UnboundedSender<Command>,
}

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its index.
    pub member: Member,
    /// Its CID.
    pub cid: Cid,
    /// Its name.
    pub name: String,
    /// Its generation; 0: no broker runs there.
    pub generation: u64,
    /// Whether there is a doorbell line to it.
    pub line: bool,
    /// Connections with it that hold memory of ours.
    pub connections: usize,
    /// Bytes they hold.
    pub heap_bytes: u64,
}

impl Broker {
    /// Starts a broker as a task of the current Tokio runtime. A new generation begins: whatever connections an
    /// earlier broker of this member had are dead from here on.
    ///
    /// # Errors
    /// [`Error::BadPool`] if the pool cannot be used, another broker holds this member, or the primary has not admitted
    /// it; [`Error::Io`] if the socket cannot be bound.
    pub async fn start(config: BrokerConfig) -> Result<BrokerHandle> {
        let (pool, commands) = shell::start(config).await?;
        Ok(BrokerHandle { pool, commands })
    }
}

impl BrokerHandle {
    /// An endpoint for this process.
    ///
    /// # Errors
    /// [`Error::Io`] if the broker has stopped.
    pub async fn endpoint(&self) -> Result<Endpoint> {
        Endpoint::attach_way(Way::Here(self.commands.downgrade())).await
    }

    /// The pool, as this member sees it.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Adds the doorbell line to `member`: in the primary, one per spawned kernel; in a spawned kernel, the one to the
    /// primary. Replaces an earlier one. `fd` is made non-blocking, and raw if it is a terminal. Call it within a Tokio runtime.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a member that cannot have one, [`Error::Io`] for a descriptor that epoll does not take.
    pub fn add_line(&self, member: Member, fd: OwnedFd) -> Result<()> {
        let own = self.pool.member();
        if !self.pool.layout.has(member) || member == own {
            return Err(Error::Invalid(format!("there can be no doorbell line to member {member}")));
        }
        if own != Member::PRIMARY && member != Member::PRIMARY {
            return Err(Error::Invalid("a spawned kernel has a doorbell line to the primary only".into()));
        }
        self.send(Command::AddLine(member, Line::new(fd)?))
    }

    /// Removes the doorbell line to `member`. Bells for it are then lost, and what they announce is found by its timer.
    pub fn remove_line(&self, member: Member) {
        let _ = self.send(Command::RemoveLine(member));
    }

    /// Primary only: declares every generation of `member` up to and including `generation` dead, in all kernels: its
    /// connections reset, their memory is reclaimed. Call it once the kernel is known not to run any more. A kernel that runs all
    /// the same finds out, and begins a new generation.
    ///
    /// # Errors
    /// [`Error::Invalid`] from a broker that is not the primary's, or for a member there is not.
    pub async fn fence(&self, member: Member, generation: u64) -> Result<()> {
        self.ask(|done| Command::Fence(member, generation, done)).await?
    }

    /// Primary only: enters a kernel into the pool's table, before it boots. A new incarnation fences the former one.
    ///
    /// # Errors
    /// [`Error::Invalid`] from a broker that is not the primary's, for a member there is not, or for a name or CID that another
    /// member has.
    pub async fn admit(&self, member: Member, cid: Cid, name: &str, incarnation: Incarnation) -> Result<()> {
        let name = name.to_owned();
        self.ask(|done| Command::Admit { member, cid, name, incarnation, done }).await?
    }

    /// Primary only: fences `member` whole and takes it out of the pool's table.
    ///
    /// # Errors
    /// As [`BrokerHandle::fence`].
    pub async fn retire(&self, member: Member) -> Result<()> {
        self.ask(|done| Command::Retire(member, done)).await?
    }

    /// The generation that `member` runs under; 0 if no broker runs there, or it is fenced.
    pub fn generation(&self, member: Member) -> u64 {
        if self.pool.layout.has(member) { self.pool.live_generation(member) } else { 0 }
    }

    /// Replaces the policy. Connections already made stay.
    ///
    /// # Errors
    /// [`Error::Io`] if the broker has stopped.
    pub async fn set_policy(&self, policy: Policy) -> Result<()> {
        self.ask(|done| Command::SetPolicy(policy, done)).await
    }

    /// The named services that listen in this kernel.
    ///
    /// # Errors
    /// [`Error::Io`] if the broker has stopped.
    pub async fn services(&self) -> Result<Vec<(String, Port)>> {
        self.ask(Command::Services).await
    }

    /// From now on what is wanted of kernels that are not in the pool is told there.
    pub(crate) fn relay_elsewhere(&self) -> Result<mpsc::UnboundedReceiver<Elsewhere>> {
        let (sender, asked) = mpsc::unbounded_channel();
        self.send(Command::RelayElsewhere(sender))?;
        Ok(asked)
    }

    /// What came of it.
    pub(crate) fn answer_elsewhere(&self, client: ClientId, request: u64, answered: Answered) {
        let _ = self.send(Command::AnswerElsewhere(client, request, answered));
    }

    /// Somebody in such a kernel calls: our end of the connection, if a process of this kernel has taken it.
    pub(crate) async fn arrive(
        &self,
        caller: Caller,
        port: Port,
        kind: ConnKind,
    ) -> Result<RelaySocket, Refusal> {
        let arrived = self.ask(|done| Command::Arrive(caller, port, kind, done)).await;
        arrived.unwrap_or(Err(Refusal::NoKernel))
    }

    /// What the broker is doing.
    ///
    /// # Errors
    /// [`Error::Io`] if the broker has stopped.
    pub async fn status(&self) -> Result<BrokerStatus> {
        self.ask(Command::Status).await
    }

    /// Stops it and waits until its socket is gone and another broker can take its place. Every connection it brokered resets.
    pub async fn stop(self) {
        let _ = self.ask(Command::Stop).await;
    }

    fn send(&self, command: Command) -> Result<()> {
        self.commands.send(command).map_err(|_| stopped())
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T> {
        let (done, answer) = oneshot::channel();
        self.send(command(done))?;
        answer.await.map_err(|_| stopped())
    }
}

fn stopped() -> Error {
    Error::io("asking the broker", std::io::Error::new(std::io::ErrorKind::NotConnected, "it has stopped"))
}
