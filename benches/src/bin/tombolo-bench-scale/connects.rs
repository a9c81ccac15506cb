//! Whether anything is left of very many connections that two processes made, accepted and closed: for `cargo xtask verify`.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::ensure;

use crate::connect::{CALLERS, both, settle, settle_held};
use crate::pair::{self, Pair};
use crate::process::{Held, private_bytes};

/// Before anything is counted: what is allocated once, and what the allocator keeps for the next time.
const WARM_UP: u64 = 50_000;
/// Lines of progress.
const STEPS: u64 = 20;
/// What the private memory of both processes may grow by, in bytes: an allocator does not always find the same places. A word left of each of ten million
/// connections would be 80 MB.
const PRIVATE_BYTES_MAX: u64 = 4 << 20;

/// What both processes and the broker hold.
struct Holdings {
    /// Of the broker's heap, in bytes.
    heap_bytes: u64,
    private_bytes: u64,
    held: [Held; 2],
}

impl Holdings {
    fn of(pair: &Pair) -> anyhow::Result<Self> {
        let status = pair.runtime.block_on(pair.fabric.broker().status())?;
        let private_bytes = private_bytes(std::process::id())? + private_bytes(pair.follower.pid())?;
        let heap_bytes = status.heap_bytes - status.heap_free_bytes;
        Ok(Self { heap_bytes, private_bytes, held: both(pair)? })
    }
}

impl fmt::Display for Holdings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [near, far] = self.held;
        let (descriptors, maps) = (near.descriptors + far.descriptors, near.maps + far.maps);
        write!(
            f,
            "{} B of the broker's heap, {} KiB private, {descriptors} descriptors, {maps} maps",
            self.heap_bytes,
            self.private_bytes >> 10
        )
    }
}

/// Fails if anything is left.
pub(crate) fn check(count: u64) -> anyhow::Result<()> {
    let pair = Pair::start("connect", 256 << 20)?;
    make(&pair, WARM_UP)?;
    settle(&pair)?;
    let before = Holdings::of(&pair)?;
    println!("before: {before}");
    let began = Instant::now();
    for step in 0..STEPS {
        let (from, to) = (count * step / STEPS, count * (step + 1) / STEPS);
        let step_began = Instant::now();
        make(&pair, to - from)?;
        let rate = (to - from) as f64 / step_began.elapsed().as_secs_f64();
        println!("{to} connections, {rate:.0} a second: {}", Holdings::of(&pair)?);
    }
    let rate = count as f64 / began.elapsed().as_secs_f64();
    let halves = settle(&pair)?;
    let more = settle_held(&pair, before.held)?;
    let after = Holdings::of(&pair)?;
    println!("after {count} connections, {rate:.0} a second: {after}");
    let grown = after.private_bytes.saturating_sub(before.private_bytes);
    ensure!(halves == 0 && after.heap_bytes == 0, "{halves} halves are left in the broker's heap");
    ensure!(more == 0, "{more} descriptors and maps are left");
    ensure!(grown <= PRIVATE_BYTES_MAX, "private memory has grown by {grown} bytes");
    Ok(())
}

fn make(pair: &Pair, count: u64) -> anyhow::Result<()> {
    let begun = Arc::new(AtomicU64::new(0));
    pair.runtime.block_on(async {
        let callers: Vec<_> = (0..CALLERS)
            .map(|_| {
                let (endpoint, addr, begun) = (pair.endpoint.clone(), pair.addr, Arc::clone(&begun));
                tokio::spawn(async move {
                    while begun.fetch_add(1, Ordering::Relaxed) < count {
                        drop(pair::connect(&endpoint, addr).await?);
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        for caller in callers {
            caller.await??;
        }
        Ok(())
    })
}
