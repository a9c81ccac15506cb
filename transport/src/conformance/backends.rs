//! The backends of this crate, set up for the suite: within one process, or with the other side in another kernel.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Backend, Direction, Failure, Limits, Pair, RemoteParty};
use crate::addr::Cid;
use crate::broker::{
    Broker, BrokerConfig, BrokerHandle, KernelMatch, Policy, PolicyAction, PolicyRule, PortMatch,
};
use crate::endpoint::Endpoint;
use crate::hybrid::HybridConfig;
use crate::incarnation::Incarnation;
use crate::memory::MemoryFabric;
use crate::pool::{Geometry, Member, Pool, PoolSource};
use crate::vsock::VsockConfig;

/// [`memory`](crate::memory).
#[derive(Clone, Copy, Debug)]
pub struct Memory;

impl Backend for Memory {
    async fn pair(&self) -> Result<Pair, Failure> {
        let fabric = MemoryFabric::new();
        let caller = Endpoint::memory(fabric.endpoint(Cid::HOST));
        let callee = Endpoint::memory(fabric.endpoint(Cid(3)));
        Ok(Pair { caller: caller.into(), callee: callee.into(), keep: Box::new(()) })
    }

    fn limits(&self) -> Limits {
        Limits { backlog_slack: 0, ..Limits::default() }
    }
}

/// [`hybrid`](crate::hybrid): a host program against a monitor of our own making, over real Unix sockets.
#[derive(Debug)]
pub struct Hybrid {
    dir: PathBuf,
    pairs: AtomicU32,
}

impl Hybrid {
    /// Puts its sockets into `dir`, an empty directory with a path of at most 80 bytes.
    pub fn in_dir(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), pairs: AtomicU32::new(0) }
    }
}

impl Backend for Hybrid {
    async fn pair(&self) -> Result<Pair, Failure> {
        let path = self.dir.join(format!("v{}", self.pairs.fetch_add(1, Ordering::Relaxed)));
        let callee = Endpoint::hybrid(HybridConfig::guest(&path, Cid(3)))?;
        let caller = Endpoint::hybrid(HybridConfig::host(&path, Cid(3)))?;
        Ok(Pair { caller: caller.into(), callee: callee.into(), keep: Box::new(()) })
    }

    fn limits(&self) -> Limits {
        Limits { caller_port_known: false, backlog_slack: 0, ..Limits::default() }
    }
}

/// [`vsock`](crate::vsock) within one kernel that has the module `vsock_loopback`.
#[derive(Clone, Copy, Debug)]
pub struct VsockLoopback;

impl Backend for VsockLoopback {
    async fn pair(&self) -> Result<Pair, Failure> {
        let endpoint =
            Endpoint::vsock(VsockConfig { local_cid: Some(Cid::LOCAL), ..VsockConfig::default() })?;
        Ok(Pair { caller: endpoint.clone().into(), callee: endpoint.into(), keep: Box::new(()) })
    }

    fn limits(&self) -> Limits {
        // The kernel's listening socket answers from a worker: a caller or two may slip in.
        Limits { backlog_slack: 2, ..Limits::default() }
    }
}

/// Shared memory: two kernels of one pool, each with its broker, whose doorbell line is a socket pair; applications
/// attach through the brokers' Unix sockets.
#[derive(Debug)]
pub struct Shm {
    dir: PathBuf,
    kernels: ShmKernels,
    pairs: AtomicU32,
}

/// Which kernels the two endpoints of a [`Shm`] pair are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShmKernels {
    /// Both in the primary: doorbells are eventfds.
    Same,
    /// One in the primary, one in a spawned kernel.
    PrimaryAndSpawned,
    /// In two spawned kernels: the primary passes their doorbells on.
    TwoSpawned,
}

impl Shm {
    /// Puts pools and sockets into `dir`, an empty directory with a path of at most 80 bytes.
    pub fn in_dir(dir: impl Into<PathBuf>, kernels: ShmKernels) -> Self {
        Self { dir: dir.into(), kernels, pairs: AtomicU32::new(0) }
    }

    fn config(&self, pool: &Path, pair: u32, member: Member) -> BrokerConfig {
        let mut config = BrokerConfig::new(PoolSource::path(pool), member);
        config.socket = Some(self.dir.join(format!("b{pair}-{member}")));
        config.policy = Policy {
            rules: vec![PolicyRule {
                from: KernelMatch::Any,
                to: KernelMatch::Any,
                port: PortMatch::Any,
                action: PolicyAction::Allow,
            }],
        };
        config
    }
}

/// What keeps a [`Shm`] pair alive; removes the pool with it.
#[derive(Debug)]
struct ShmParts {
    _brokers: Vec<BrokerHandle>,
    pool: PathBuf,
}

impl Drop for ShmParts {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.pool);
    }
}

impl Backend for Shm {
    async fn pair(&self) -> Result<Pair, Failure> {
        let pair = self.pairs.fetch_add(1, Ordering::Relaxed);
        let pool = self.dir.join(format!("p{pair}"));
        let _pool = Pool::create(&pool, Geometry { members_max: 4, ..Geometry::default() })?;
        let primary = Broker::start(self.config(&pool, pair, Member::PRIMARY)).await?;
        let mut brokers = vec![primary];
        let spawned = match self.kernels {
            ShmKernels::Same => 0,
            ShmKernels::PrimaryAndSpawned => 1,
            ShmKernels::TwoSpawned => 2,
        };
        for number in 1..=spawned {
            let member = Member(number);
            let cid = Cid(2 + u32::from(number));
            brokers[0].admit(member, cid, &format!("kernel{number}"), Incarnation::random()?).await?;
            let broker = Broker::start(self.config(&pool, pair, member)).await?;
            let (near, far) = std::os::unix::net::UnixStream::pair()?;
            brokers[0].add_line(member, near.into())?;
            broker.add_line(Member::PRIMARY, far.into())?;
            brokers.push(broker);
        }
        let last = brokers.len() - 1;
        let caller = if self.kernels == ShmKernels::TwoSpawned { last - 1 } else { 0 };
        let attach = |member: usize| Endpoint::attach(self.dir.join(format!("b{pair}-{member}")));
        Ok(Pair {
            caller: attach(caller).await?.into(),
            callee: attach(last).await?.into(),
            keep: Box::new(ShmParts { _brokers: brokers, pool }),
        })
    }

    fn limits(&self) -> Limits {
        Limits { backlog_slack: 0, ..Limits::default() }
    }
}

/// An endpoint of this process and a peer program ([`serve_peer`](super::serve_peer)) in another kernel.
#[derive(Debug)]
pub struct Between {
    /// How to make the endpoint here.
    here: Here,
    peer: Cid,
}

#[derive(Debug)]
enum Here {
    Broker(PathBuf),
    HybridHost(PathBuf),
}

impl Between {
    /// Shared memory: through the broker of this kernel, to a peer program in kernel `peer`.
    pub fn shm(broker_socket: impl Into<PathBuf>, peer: Cid) -> Self {
        Self { here: Here::Broker(broker_socket.into()), peer }
    }

    /// From the host through a vsock device that is not ours, at `path`, to a peer program in guest `peer` that uses AF_VSOCK.
    pub fn hybrid_host(path: impl Into<PathBuf>, peer: Cid) -> Self {
        Self { here: Here::HybridHost(path.into()), peer }
    }
}

impl Backend for Between {
    async fn pair(&self) -> Result<Pair, Failure> {
        let here = match &self.here {
            Here::Broker(socket) => Endpoint::attach(socket).await?,
            Here::HybridHost(path) => Endpoint::hybrid(HybridConfig::host(path, self.peer))?,
        };
        let there = RemoteParty::connect_to(&here, self.peer).await?;
        let keep = Box::new(there.ends());
        Ok(Pair { caller: here.into(), callee: super::Party::There(there), keep })
    }

    fn limits(&self) -> Limits {
        match self.here {
            Here::Broker(_) => Limits { backlog_slack: 0, ..Limits::default() },
            Here::HybridHost(_) => Limits { caller_port_known: false, half_close: false, backlog_slack: 2 },
        }
    }

    fn skips(&self, behaviour: &str, direction: Direction) -> Option<&'static str> {
        match (behaviour, direction) {
            ("batch_becomes_visible_with_one_flush", Direction::Backward) => {
                Some("asks the sender without waiting, which only one of this process can answer")
            }
            _ => None,
        }
    }
}
