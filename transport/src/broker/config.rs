//! What a broker is started with.

use std::path::PathBuf;
use std::time::Duration;

use crate::addr::Cid;
use crate::broker::{PeerQuota, Policy};
use crate::incarnation::Incarnation;
use crate::pool::{Member, PoolSource};

/// How to start a broker.
#[derive(Debug)]
pub struct BrokerConfig {
    /// The pool, already formatted (see [`Pool::create`](crate::pool::Pool::create)).
    pub pool: PoolSource,
    /// The file on which is locked what processes may still write, instead of the pool: where that cannot be opened once more for each process
    /// (a dma-buf) or is part of something bigger (`/dev/mem`). It is made if it is not there; the next broker of this member must be given the
    /// same. Default: the pool itself.
    pub locks: Option<PathBuf>,
    /// Which member of it this kernel is.
    pub member: Member,
    /// Primary only: the CID of this kernel. Default [`Cid::HOST`]. A spawned kernel's is what it was admitted with.
    pub cid: Cid,
    /// Primary only: the name of this kernel. Default `host`.
    pub name: String,
    /// Primary only: which boot of it this is. Default: what the pool says, or a fresh one.
    pub incarnation: Option<Incarnation>,
    /// Unix socket on which applications attach; `None`: only [`BrokerHandle::endpoint`](crate::broker::BrokerHandle::endpoint).
    /// A stale file of a dead broker is replaced.
    pub socket: Option<PathBuf>,
    /// Group that may attach beside root and our own user. Default none.
    pub allowed_gid: Option<u32>,
    /// Who may connect to us. Default [`Policy::default`].
    pub policy: Policy,
    /// What any one other kernel may hold of our heap. Default [`PeerQuota::default`].
    pub peer_quota: PeerQuota,
    /// How often to look at peers to which there is no doorbell line: without one, this is how they are heard. Default 100 ms.
    pub recheck: Duration,
    /// How often to look for bells that were lost, while there is a line to every peer. Default 1 s.
    pub recheck_with_lines: Duration,
}

impl BrokerConfig {
    /// Defaults for `member` of `pool`.
    pub fn new(pool: PoolSource, member: Member) -> Self {
        Self {
            pool,
            locks: None,
            member,
            cid: Cid::HOST,
            name: "host".into(),
            incarnation: None,
            socket: None,
            allowed_gid: None,
            policy: Policy::default(),
            peer_quota: PeerQuota::default(),
            recheck: Duration::from_millis(100),
            recheck_with_lines: Duration::from_secs(1),
        }
    }
}
