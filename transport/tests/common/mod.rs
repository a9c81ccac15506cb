//! A fabric in one process: a pool, and a broker for each of its kernels, with doorbell lines to the primary.
#![allow(dead_code, unreachable_pub)] // each test file uses its part

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use tombolo_transport::broker::{KernelMatch, Policy, PolicyAction, PolicyRule, PortMatch};
use tombolo_transport::pool::{Geometry, PoolSource};
use tombolo_transport::{Broker, BrokerConfig, BrokerHandle, Cid, Incarnation, Member, Pool};

/// Long enough that only a hang reaches it.
pub const WATCHDOG: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Fabric {
    pub dir: tempfile::TempDir,
    pub brokers: Vec<BrokerHandle>,
}

pub fn allow_all() -> Policy {
    let rule = PolicyRule {
        from: KernelMatch::Any,
        to: KernelMatch::Any,
        port: PortMatch::Any,
        action: PolicyAction::Allow,
    };
    Policy { rules: vec![rule] }
}

impl Fabric {
    /// The primary (cid 2, `host`) and `spawned` kernels (cid 3 `k1`, 4 `k2`, ...).
    pub async fn new(spawned: u16) -> Self {
        Self::with_geometry(spawned, Geometry { extent_bytes: 16 << 20, ..Geometry::default() }).await
    }

    pub async fn with_geometry(spawned: u16, geometry: Geometry) -> Self {
        let dir = tempfile::Builder::new().prefix("tombolo-test").tempdir_in(shm_dir()).unwrap();
        Pool::create(&dir.path().join("pool"), geometry).unwrap();
        let mut fabric = Self { dir, brokers: Vec::new() };
        fabric.brokers.push(Broker::start(fabric.config(Member::PRIMARY)).await.unwrap());
        for index in 1..=spawned {
            fabric.admit(Member(index)).await;
            let broker = Broker::start(fabric.config(Member(index))).await.unwrap();
            fabric.brokers.push(broker);
            fabric.join(index);
        }
        fabric
    }

    pub fn pool_path(&self) -> PathBuf {
        self.dir.path().join("pool")
    }

    pub fn socket(&self, member: Member) -> PathBuf {
        self.dir.path().join(format!("broker-{member}.sock"))
    }

    pub fn config(&self, member: Member) -> BrokerConfig {
        BrokerConfig {
            socket: Some(self.socket(member)),
            policy: allow_all(),
            ..BrokerConfig::new(PoolSource::path(self.pool_path()), member)
        }
    }

    pub async fn admit(&self, member: Member) -> Incarnation {
        let incarnation = Incarnation::random().unwrap();
        let cid = Cid(2 + u32::from(member.0));
        self.brokers[0].admit(member, cid, &format!("k{member}"), incarnation).await.unwrap();
        incarnation
    }

    /// Lays the doorbell line between the primary and this kernel.
    pub fn join(&self, index: u16) {
        let (near, far) = UnixStream::pair().unwrap();
        self.brokers[0].add_line(Member(index), near.into()).unwrap();
        self.brokers[usize::from(index)].add_line(Member::PRIMARY, far.into()).unwrap();
    }

    /// Waits until nothing of any connection is held in `member`'s heap.
    pub async fn wait_until_free(&self, member: usize) {
        let waiting = async {
            loop {
                let status = self.brokers[member].status().await.unwrap();
                if status.heap_free_bytes == status.heap_bytes && status.connections == 0 {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(WATCHDOG, waiting).await.is_err() {
            panic!("memory never came back: {:#?}", self.brokers[member].status().await);
        }
    }
}

fn shm_dir() -> PathBuf {
    let shm = PathBuf::from("/dev/shm");
    if shm.is_dir() { shm } else { std::env::temp_dir() }
}
