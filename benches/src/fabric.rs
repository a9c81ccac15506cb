//! The whole way of an application: a broker in the leader, both processes attached to it through its socket.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use tombolo_transport::broker::{Broker, BrokerConfig, BrokerHandle};
use tombolo_transport::pool::{Geometry, Member, Pool, PoolSource};
use tombolo_transport::{Addr, Endpoint, Messages, Port, TryRecv};

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
    pub async fn start() -> anyhow::Result<Self> {
        let dir = PathBuf::from(format!("/dev/shm/tombolo-bench-{}", std::process::id()));
        std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let pool = dir.join("pool");
        Pool::create(&pool, Geometry { members_max: 2, ..Geometry::default() })?;
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
pub async fn attach(socket: &Path) -> anyhow::Result<(Endpoint, Addr)> {
    let endpoint = Endpoint::attach(socket).await?;
    let addr = Addr::new(endpoint.local_cid(), PORT);
    Ok((endpoint, addr))
}

/// Polls without an answer that end a measurement: about ten seconds.
const POLLS_MAX: u64 = 1 << 30;

/// `rounds` times sends `message` and waits, polling, for an answer of the same length.
pub fn lead(messages: &mut Messages, message: &[u8], rounds: u64) -> anyhow::Result<()> {
    let mut answer = Vec::with_capacity(message.len());
    for _ in 0..rounds {
        ensure!(messages.try_send(message)?, "no room for one message");
        await_message(messages, &mut answer)?;
    }
    ensure!(answer == message, "the answer is not what was sent");
    Ok(())
}

/// `rounds` times waits, polling, for a message and sends it back.
pub fn follow(messages: &mut Messages, rounds: u64) -> anyhow::Result<()> {
    let mut message = Vec::new();
    for _ in 0..rounds {
        await_message(messages, &mut message)?;
        ensure!(messages.try_send(&message)?, "no room for one message");
    }
    Ok(())
}

#[inline]
fn await_message(messages: &mut Messages, message: &mut Vec<u8>) -> anyhow::Result<()> {
    for _ in 0..POLLS_MAX {
        match messages.try_recv(message)? {
            TryRecv::Message => return Ok(()),
            TryRecv::Empty => {}
            TryRecv::End => anyhow::bail!("the other side has shut down"),
        }
    }
    anyhow::bail!("no answer from the other side")
}
