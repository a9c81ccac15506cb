//! What it costs to look at the heartbeats of many kernels, as the control plane does: each every 5 ms.

use std::time::{Duration, Instant};

use tombolo_benches::fabric;
use tombolo_transport::pool::{Geometry, Member, Pool};

use crate::process::cpu_time;
use crate::tell;

const PERIOD: Duration = Duration::from_millis(5);
const KERNELS: u32 = 511;
const COUNTS: [u32; 3] = [7, 63, KERNELS];

pub(crate) fn measure(quick: bool) -> anyhow::Result<()> {
    let time = Duration::from_millis(if quick { 300 } else { 3000 });
    // The primary is a member too.
    let most = KERNELS.min(Geometry::MEMBERS_MAX - 1);
    let mut counts: Vec<_> = COUNTS.into_iter().map(|count| count.min(most)).collect();
    counts.dedup();
    for count in counts {
        let share = looking_at(count, time)?;
        let note = "the pool's own reading of each member; a task of Tokio's wakes for each look".to_owned();
        tell("heartbeats/cpu", u64::from(count), share * 100.0, "% of a CPU", note)?;
    }
    tell("heartbeats/kernels", None, f64::from(most), "kernels", None)
}

/// The share of a CPU.
fn looking_at(count: u32, time: Duration) -> anyhow::Result<f64> {
    let path = std::env::temp_dir().join(format!("tombolo-bench-heartbeats-{}", std::process::id()));
    let geometry = Geometry { members_max: count + 1, extent_bytes: 1 << 20, ..Geometry::default() };
    let pool = Pool::create(&path, geometry);
    // The mapping stays.
    let _ = std::fs::remove_file(&path);
    let pool = pool?;
    let members: Vec<_> = (1..=count).filter_map(|index| index.try_into().ok().map(Member)).collect();
    let runtime = fabric::on_this_thread()?;
    runtime.block_on(async {
        let mut ticks = tokio::time::interval(PERIOD);
        let pid = std::process::id();
        // The first look brings the pages in.
        let mut beats = look(&pool, &members);
        let (cpu_before, began) = (cpu_time(pid)?, Instant::now());
        while began.elapsed() < time {
            ticks.tick().await;
            beats = beats.wrapping_add(look(&pool, &members));
        }
        std::hint::black_box(beats);
        Ok((cpu_time(pid)? - cpu_before).as_secs_f64() / began.elapsed().as_secs_f64())
    })
}

fn look(pool: &Pool, members: &[Member]) -> u64 {
    members.iter().map(|member| pool.heartbeat(*member).count).fold(0, u64::wrapping_add)
}
