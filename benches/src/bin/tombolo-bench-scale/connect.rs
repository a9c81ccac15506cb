//! How many connections a second two processes can make, accept and close, and whether anything of them is left.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use tombolo_benches::duo::Leader;
use tombolo_transport::{Addr, Endpoint};

use crate::pair::{self, Pair};
use crate::process::{Held, held};
use crate::tell;

/// Callers at a time.
pub(crate) const CALLERS: u32 = 32;
/// For what was closed to be gone everywhere.
const SETTLED_MAX: Duration = Duration::from_secs(10);
const WARM_UP: Duration = Duration::from_millis(200);

pub(crate) fn measure(quick: bool) -> anyhow::Result<()> {
    let pair = Pair::start("connect", 256 << 20)?;
    // What is allocated once is allocated now.
    connect_for(&pair, WARM_UP)?;
    settle(&pair)?;
    let before = both(&pair)?;
    let time = Duration::from_millis(if quick { 500 } else { 10_000 });
    let began = Instant::now();
    let made = connect_for(&pair, time)?;
    let rate = made as f64 / began.elapsed().as_secs_f64();
    let halves = settle(&pair)?;
    let left = settle_held(&pair, before)?;
    let note =
        format!("{made} connections, {CALLERS} callers at a time; the broker runs in the caller's process");
    tell("connect/rate", None, rate, "/s", note)?;
    tell("connect/halves", made, halves as f64, "halves", None)?;
    tell("connect/left", made, left as f64, "descriptors and maps", None)?;
    let pieces: usize = both(&pair)?.iter().map(|held| held.pieces).sum();
    tell("connect/pieces", made, pieces as f64, "pieces of the pool's mapping, both processes", None)
}

pub(crate) fn both(pair: &Pair) -> anyhow::Result<[Held; 2]> {
    Ok([held(std::process::id())?, held(pair.follower.pid())?])
}

/// Waits until no half is held. Returns how many still are when that takes too long.
pub(crate) fn settle(pair: &Pair) -> anyhow::Result<usize> {
    let deadline = Instant::now() + SETTLED_MAX;
    loop {
        let held = pair.runtime.block_on(pair.fabric.broker().status())?.connections;
        if held == 0 || Instant::now() > deadline {
            return Ok(held);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until both processes hold no more than `before`. Returns how much more they do when that takes too long.
pub(crate) fn settle_held(pair: &Pair, before: [Held; 2]) -> anyhow::Result<usize> {
    let deadline = Instant::now() + SETTLED_MAX;
    let more = |(now, then): (Held, Held)| {
        now.descriptors.saturating_sub(then.descriptors) + now.maps.saturating_sub(then.maps)
    };
    loop {
        let left = both(pair)?.into_iter().zip(before).map(more).sum();
        if left == 0 || Instant::now() > deadline {
            return Ok(left);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn connect_for(pair: &Pair, time: Duration) -> anyhow::Result<u64> {
    let deadline = Instant::now() + time;
    let made = Arc::new(AtomicU64::new(0));
    pair.runtime.block_on(async {
        let callers: Vec<_> = (0..CALLERS)
            .map(|_| tokio::spawn(call(pair.endpoint.clone(), pair.addr, deadline, Arc::clone(&made))))
            .collect();
        for caller in callers {
            caller.await??;
        }
        anyhow::Ok(())
    })?;
    let made = made.load(Ordering::Relaxed);
    ensure!(made > 0, "no connection was made within {time:?}");
    Ok(made)
}

async fn call(endpoint: Endpoint, addr: Addr, deadline: Instant, made: Arc<AtomicU64>) -> anyhow::Result<()> {
    while Instant::now() < deadline {
        drop(pair::connect(&endpoint, addr).await?);
        made.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

pub(crate) fn follow(leader: Leader, args: &[String]) -> anyhow::Result<()> {
    pair::serve(leader, args, drop)
}
