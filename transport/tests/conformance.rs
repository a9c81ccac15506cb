//! The conformance suite on every backend that this machine has. AF_VSOCK runs inside a kernel that has
//! vsock_loopback, through the binary `tombolo-conformance`.

use tombolo_transport::conformance::{self, Backend, Failure, Limits, Pair};
use tombolo_transport::hybrid::HybridConfig;
use tombolo_transport::memory::MemoryFabric;
use tombolo_transport::{Cid, Endpoint};

struct Memory;

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

/// Host program and monitor of our own making, over real Unix sockets.
struct Hybrid;

impl Backend for Hybrid {
    async fn pair(&self) -> Result<Pair, Failure> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("v");
        let callee = Endpoint::hybrid(HybridConfig::guest(&path, Cid(3)))?;
        let caller = Endpoint::hybrid(HybridConfig::host(&path, Cid(3)))?;
        Ok(Pair { caller, callee, keep: Box::new(dir) })
    }

    fn limits(&self) -> Limits {
        Limits { caller_port_known: false, backlog_slack: 0, ..Limits::default() }
    }
}

async fn conforms(backend: impl Backend) {
    let verdicts = conformance::run(&backend, "", |verdict| println!("{verdict}")).await;
    let failed: Vec<_> = verdicts.iter().filter(|verdict| verdict.outcome.is_err()).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_conforms() {
    conforms(Memory).await;
}

#[tokio::test]
async fn memory_conforms_on_one_thread() {
    conforms(Memory).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hybrid_conforms() {
    conforms(Hybrid).await;
}

#[tokio::test]
async fn hybrid_conforms_on_one_thread() {
    conforms(Hybrid).await;
}
