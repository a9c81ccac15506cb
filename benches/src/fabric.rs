//! The whole way of an application: a broker in the leader, both processes attached to it through its socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use tokio::runtime::Runtime;
use tombolo_transport::broker::{Broker, BrokerConfig, BrokerHandle};
use tombolo_transport::pool::{Geometry, Member, Pool, PoolSource};
use tombolo_transport::{Addr, AttachOptions, Endpoint, Port};

use crate::probe::Waiting;

/// Port on which followers listen.
pub const PORT: Port = Port(5000);

/// A pool with one kernel in it and its broker. Removed when dropped.
#[derive(Debug)]
pub struct Fabric {
    broker: BrokerHandle,
    dir: PathBuf,
}

impl Fabric {
    /// Starts one. Its broker runs on the current Tokio runtime.
    ///
    /// # Errors
    /// If there is no room for it in `/dev/shm`.
    pub async fn start() -> anyhow::Result<Self> {
        Self::with(Geometry { members_max: 2, ..Geometry::default() }).await
    }

    /// As [`Fabric::start`], with a pool of this shape.
    ///
    /// # Errors
    /// As there.
    pub async fn with(geometry: Geometry) -> anyhow::Result<Self> {
        let dir = PathBuf::from(format!("/dev/shm/tombolo-bench-{}", std::process::id()));
        std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let pool = dir.join("pool");
        Pool::create(&pool, geometry)?;
        let mut config = BrokerConfig::new(PoolSource::path(&pool), Member::PRIMARY);
        config.socket = Some(dir.join("broker.sock"));
        let broker = Broker::start(config).await?;
        Ok(Self { broker, dir })
    }

    /// Where processes attach.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("broker.sock")
    }

    /// The broker.
    pub fn broker(&self) -> &BrokerHandle {
        &self.broker
    }
}

impl Drop for Fabric {
    fn drop(&mut self) {
        // The broker removes its socket at the same time, which can make one attempt fail half way.
        for _ in 0..3 {
            if std::fs::remove_dir_all(&self.dir).is_ok() || !self.dir.exists() {
                return;
            }
        }
    }
}

/// Attaches through `socket` and gives the address of [`PORT`] there.
///
/// # Errors
/// If there is no broker.
pub async fn attach(socket: &Path, waiting: Waiting) -> anyhow::Result<(Endpoint, Addr)> {
    let spin = match waiting {
        // Nobody parks: the caller polls.
        Waiting::Busy => Duration::from_secs(3600),
        Waiting::Tokio => AttachOptions::default().spin,
        Waiting::Asleep => Duration::ZERO,
    };
    let endpoint = Endpoint::attach_with(socket, AttachOptions { spin, ..AttachOptions::default() }).await?;
    let addr = Addr::new(endpoint.local_cid(), PORT);
    Ok((endpoint, addr))
}

/// A Tokio runtime beside what is measured, on a thread of its own: for brokers, and for what readies a process's connections.
///
/// # Errors
/// If there can be no thread.
pub fn beside() -> anyhow::Result<Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?)
}

/// A Tokio runtime on the thread that drives it.
///
/// # Errors
/// If there can be none.
pub fn on_this_thread() -> anyhow::Result<Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}
