//! Two processes attached to one broker, which runs in the leader's.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::runtime::Runtime;
use tombolo_benches::duo::{Follower, Leader};
use tombolo_benches::fabric::{self, Fabric};
use tombolo_benches::probe::Waiting;
use tombolo_transport::pool::Geometry;
use tombolo_transport::{Addr, ConnectOptions, Endpoint, Error, ListenOptions, Messages, Sizes};

/// The smallest rings there are: a page of each kind.
pub(crate) const SIZES: Sizes =
    Sizes { slots: 64, ring_bytes: 4096, loans: 0, loan_bytes: 0, message_bytes_max: 4096 };

const BACKLOG: u32 = 1024;
/// Other programs may have the processors for a while.
const CONNECT_MAX: Duration = Duration::from_secs(60);

pub(crate) fn ring_bytes() -> u64 {
    u64::from(SIZES.slots) * 64 + u64::from(SIZES.ring_bytes)
}

pub(crate) struct Pair {
    pub(crate) runtime: Runtime,
    pub(crate) fabric: Fabric,
    pub(crate) follower: Follower,
    pub(crate) endpoint: Endpoint,
    pub(crate) addr: Addr,
}

impl Pair {
    /// `task` tells the follower what it is for; it listens when this returns.
    pub(crate) fn start(task: &str, extent_bytes: u64) -> anyhow::Result<Self> {
        let runtime = fabric::beside()?;
        let geometry = Geometry { members_max: 2, extent_bytes, ..Geometry::default() };
        let fabric = runtime.block_on(Fabric::with(geometry))?;
        let mut follower = Follower::start(&[task, &fabric.socket().to_string_lossy()])?;
        follower.order("listen")?;
        let (endpoint, addr) = runtime.block_on(fabric::attach(&fabric.socket(), Waiting::Tokio))?;
        Ok(Self { runtime, fabric, follower, endpoint, addr })
    }
}

/// Connects; a listener whose backlog is full is asked again.
pub(crate) async fn connect(endpoint: &Endpoint, addr: Addr) -> anyhow::Result<Messages> {
    let options = ConnectOptions { sizes: SIZES, timeout: CONNECT_MAX };
    let deadline = Instant::now() + options.timeout;
    loop {
        match endpoint.connect_messages_with(addr, &options).await {
            Err(Error::Refused { .. }) if Instant::now() < deadline => tokio::task::yield_now().await,
            other => return Ok(other?),
        }
    }
}

/// The follower's part: listens, and gives every connection to `take`, until there are no more orders.
pub(crate) fn serve(
    mut leader: Leader,
    args: &[String],
    take: impl Fn(Messages) + Send + 'static,
) -> anyhow::Result<()> {
    let runtime = fabric::beside()?;
    leader.next_order()?.context("the leader is gone")?;
    let mut listener = runtime.block_on(async {
        let socket = Path::new(args.get(1).context("no socket to attach to")?);
        let (endpoint, addr) = fabric::attach(socket, Waiting::Tokio).await?;
        let options = ListenOptions { backlog: BACKLOG, sizes: SIZES, ..ListenOptions::default() };
        anyhow::Ok(endpoint.listen_messages(addr.port, options).await?)
    })?;
    runtime.spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            take(connection);
        }
    });
    leader.ready()?;
    while leader.next_order()?.is_some() {}
    Ok(())
}
