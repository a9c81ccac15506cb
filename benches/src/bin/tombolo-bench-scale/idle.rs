//! What connections cost on which nothing happens: both ends of each are parked.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use tombolo_benches::duo::Leader;
use tombolo_transport::Messages;

use crate::pair::{self, Pair, ring_bytes};
use crate::process::{cpu_time, private_bytes};
use crate::tell;

const COUNTS: [u64; 3] = [100, 1000, 10_000];
/// Connects under way at a time.
const AT_A_TIME: u64 = 64;
/// Until everybody sleeps.
const PARKED_MAX: Duration = Duration::from_secs(3);

pub(crate) fn measure(quick: bool) -> anyhow::Result<()> {
    let counts = if quick { &COUNTS[2..] } else { &COUNTS[..] };
    let time = Duration::from_millis(if quick { 500 } else { 5000 });
    for &count in counts {
        with(count, time)?;
    }
    Ok(())
}

fn with(count: u64, time: Duration) -> anyhow::Result<()> {
    let pair = Pair::start("idle", 1 << 30)?;
    let pids = [std::process::id(), pair.follower.pid()];
    let memory = || -> anyhow::Result<u64> { Ok(private_bytes(pids[0])? + private_bytes(pids[1])?) };
    let heap = || -> anyhow::Result<u64> {
        let status = pair.runtime.block_on(pair.fabric.broker().status())?;
        Ok(status.heap_bytes - status.heap_free_bytes)
    };
    let (memory_before, heap_before) = (memory()?, heap()?);
    let parked = Arc::new(AtomicUsize::new(0));
    let mut made = 0;
    while made < count {
        let some = AT_A_TIME.min(count - made);
        pair.runtime.block_on(async {
            let connects: Vec<_> = (0..some)
                .map(|_| {
                    let (endpoint, addr) = (pair.endpoint.clone(), pair.addr);
                    tokio::spawn(async move { pair::connect(&endpoint, addr).await })
                })
                .collect();
            for connect in connects {
                tokio::spawn(park(connect.await??, Arc::clone(&parked)));
            }
            anyhow::Ok(())
        })?;
        made += some;
    }
    let idle = settle(&pids)?;
    ensure!(
        parked.load(Ordering::Relaxed) as u64 == count,
        "{} of {count} are parked",
        parked.load(Ordering::Relaxed)
    );
    let cpu = || -> anyhow::Result<Duration> { Ok(cpu_time(pids[0])? + cpu_time(pids[1])?) };
    let (cpu_before, began) = (cpu()?, Instant::now());
    std::thread::sleep(time);
    let share = (cpu()? - cpu_before).as_secs_f64() / began.elapsed().as_secs_f64();
    // Each has two ends.
    let ends = (2 * count) as f64;
    let each = |bytes: u64| bytes as f64 / ends;
    let half = each(heap()?.saturating_sub(heap_before));
    let private = each(memory()?.saturating_sub(memory_before));
    let beside_ring = half - ring_bytes() as f64;
    let quiet = if idle { "quiet" } else { "not yet quiet" };
    tell(
        "idle/cpu",
        count,
        share * 100.0,
        "% of a CPU",
        format!("both processes and the broker, {quiet} when it began"),
    )?;
    let note = format!(
        "of each end, beside its ring of {} B: {beside_ring:.0} B of shared memory, {private:.0} B of private memory",
        ring_bytes()
    );
    tell("idle/bytes", count, beside_ring + private, "B", note)?;
    tell("idle/connections", count, count as f64, "connections", None)
}

async fn park(connection: Messages, parked: Arc<AtomicUsize>) -> tombolo_transport::Result<()> {
    let (_sender, mut receiver) = connection.split();
    parked.fetch_add(1, Ordering::Relaxed);
    // Nothing ever comes.
    receiver.recv().await.map(drop)
}

/// Waits until both processes use next to nothing; `false` if they do not come to it.
fn settle(pids: &[u32; 2]) -> anyhow::Result<bool> {
    const STEP: Duration = Duration::from_millis(200);
    let deadline = Instant::now() + PARKED_MAX;
    let used = || -> anyhow::Result<Duration> { Ok(cpu_time(pids[0])? + cpu_time(pids[1])?) };
    let mut before = used()?;
    while Instant::now() < deadline {
        std::thread::sleep(STEP);
        let now = used()?;
        if now - before < STEP / 50 {
            return Ok(true);
        }
        before = now;
    }
    Ok(false)
}

pub(crate) fn follow(leader: Leader, args: &[String]) -> anyhow::Result<()> {
    let parked = Arc::new(AtomicUsize::new(0));
    pair::serve(leader, args, move |connection| {
        tokio::spawn(park(connection, Arc::clone(&parked)));
    })
}
