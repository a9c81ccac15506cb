//! The backends of this crate, set up for the suite: within one process, or with the other side in another kernel.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::faults::{Faults, FaultySocket};
use super::{Backend, Direction, Failure, Limits, Pair, RemoteParty};
use crate::addr::{Addr, Cid, Port};
use crate::broker::{
    Broker, BrokerConfig, BrokerHandle, KernelMatch, Policy, PolicyAction, PolicyRule, PortMatch,
};
use crate::endpoint::Endpoint;
use crate::hybrid::HybridConfig;
use crate::incarnation::Incarnation;
use crate::memory::MemoryFabric;
use crate::paced::{PacedConfig, PacedEndpoint, SocketKind, SocketsFrom, VsockDial};
use crate::pool::{Geometry, Member, Pool, PoolSource};
use crate::vsock::{VsockConfig, VsockEndpoint};

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

/// [`paced`](crate::paced): a child and its parent, whose link is a Unix socket pair, as good as Unix sockets are or as bad as a socket
/// can be.
#[derive(Debug)]
pub struct Paced {
    sockets: SocketKind,
    faults: Option<Faults>,
    pairs: AtomicU32,
}

impl Paced {
    /// Over sockets that do what they should, by links that take them for what `sockets` says.
    pub fn over_sound_sockets(sockets: SocketKind) -> Self {
        Self { sockets, faults: None, pairs: AtomicU32::new(0) }
    }

    /// The same over sockets that break, lose bytes, and are full without saying when they are no more, all of it often.
    pub fn over_faulty_sockets(sockets: SocketKind) -> Self {
        Self { sockets, faults: Some(Faults::default()), pairs: AtomicU32::new(0) }
    }
}

impl Backend for Paced {
    async fn pair(&self) -> Result<Pair, Failure> {
        let pair = self.pairs.fetch_add(1, Ordering::Relaxed);
        // What is lost at the end of a conversation is noticed by what is said next.
        let config = PacedConfig {
            keepalive: Duration::from_millis(100),
            silence: Duration::from_secs(2),
            redial_max: Duration::from_millis(50),
            sockets: self.sockets,
            ..PacedConfig::default()
        };
        let parent = PacedEndpoint::new(Cid(0), config)?;
        let child = PacedEndpoint::new(Cid(3), config)?;
        let acceptor = parent.expect(Cid(3))?;
        let faults = self.faults;
        let mut seed = u64::from(pair) << 32;
        child.dial(Cid(0), move || {
            let sockets = tokio::net::UnixStream::pair();
            let acceptor = acceptor.clone();
            seed += 2;
            async move {
                let (near, far) = sockets?;
                acceptor.replace(FaultySocket::new(far, faults, seed));
                Ok(FaultySocket::new(near, faults, seed + 1))
            }
        })?;
        Ok(Pair {
            caller: Endpoint::paced(parent).into(),
            callee: Endpoint::paced(child).into(),
            keep: Box::new(()),
        })
    }

    fn limits(&self) -> Limits {
        Limits { backlog_slack: 0, ..Limits::default() }
    }
}

/// [`paced`](crate::paced) over AF_VSOCK within one kernel that has the module `vsock_loopback`: the child dials the parent by
/// [`Cid::LOCAL`]. Needs CAP_NET_BIND_SERVICE.
#[derive(Debug)]
pub struct PacedVsockLoopback {
    sockets: SocketKind,
    pairs: AtomicU32,
}

impl PacedVsockLoopback {
    /// By links that take its sockets for what `sockets` says. Takes one port after another from 7000 on.
    pub fn new(sockets: SocketKind) -> Self {
        Self { sockets, pairs: AtomicU32::new(0) }
    }
}

impl Backend for PacedVsockLoopback {
    async fn pair(&self) -> Result<Pair, Failure> {
        let port = Port(7000 + self.pairs.fetch_add(1, Ordering::Relaxed));
        let vsock =
            VsockEndpoint::new(VsockConfig { local_cid: Some(Cid::LOCAL), ..VsockConfig::default() })?;
        let config = PacedConfig { sockets: self.sockets, ..PacedConfig::default() };
        // Every socket of a loopback comes from that CID, so that is the child's.
        let parent = PacedEndpoint::new(Cid(0), config)?;
        parent.serve(vsock.listen(port, 16)?, SocketsFrom::PrivilegedPorts);
        parent.expect(Cid::LOCAL)?;
        let child = PacedEndpoint::new(Cid::LOCAL, config)?;
        child.dial(Cid(0), VsockDial::new(vsock, Addr::new(Cid::LOCAL, port)))?;
        Ok(Pair {
            caller: Endpoint::paced(parent).into(),
            callee: Endpoint::paced(child).into(),
            keep: Box::new(()),
        })
    }

    fn limits(&self) -> Limits {
        Limits { backlog_slack: 0, ..Limits::default() }
    }
}

/// The suite is not about policies.
pub(super) fn allow_all() -> Policy {
    Policy {
        rules: vec![PolicyRule {
            from: KernelMatch::Any,
            to: KernelMatch::Any,
            port: PortMatch::Any,
            action: PolicyAction::Allow,
        }],
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
        config.policy = allow_all();
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
