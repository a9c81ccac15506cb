//! The backends of this crate, set up for the suite within one process.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Backend, Failure, Limits, Pair};
use crate::addr::Cid;
use crate::endpoint::Endpoint;
use crate::hybrid::HybridConfig;
use crate::memory::MemoryFabric;
use crate::vsock::VsockConfig;

/// [`memory`](crate::memory).
#[derive(Clone, Copy, Debug)]
pub struct Memory;

impl Backend for Memory {
    async fn pair(&self) -> Result<Pair, Failure> {
        let fabric = MemoryFabric::new();
        let caller = Endpoint::memory(fabric.endpoint(Cid::HOST));
        let callee = Endpoint::memory(fabric.endpoint(Cid(3)));
        Ok(Pair { caller, callee, keep: Box::new(()) })
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
        Ok(Pair { caller, callee, keep: Box::new(()) })
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
        Ok(Pair { caller: endpoint.clone(), callee: endpoint, keep: Box::new(()) })
    }

    fn limits(&self) -> Limits {
        // The kernel's listening socket answers from a worker: a caller or two may slip in.
        Limits { backlog_slack: 2, ..Limits::default() }
    }
}
