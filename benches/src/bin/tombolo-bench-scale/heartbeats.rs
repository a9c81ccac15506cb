//! What it costs to look at the heartbeats of many kernels, each every 5 ms, while all of them beat as agents do.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tombolo_benches::duo::{Follower, Leader};
use tombolo_benches::pin;
use tombolo_benches::series::Series;
use tombolo_transport::pool::{Geometry, HeartbeatScan, HeartbeatWriter, Member, Pool, PoolSource};

use crate::process::cpu_time;
use crate::tell;

const PERIOD: Duration = Duration::from_millis(5);
/// Of each kernel, as long as nothing else is configured.
const BEAT: Duration = Duration::from_millis(200);
const KERNELS: u16 = 511;
const COUNTS: [u16; 3] = [7, 63, KERNELS];
const RUNS: usize = 5;

pub(crate) fn measure(quick: bool) -> anyhow::Result<()> {
    let time = Duration::from_millis(if quick { 300 } else { 1500 });
    for count in COUNTS {
        let shares = looking_at(count, time)?;
        let note = format!(
            "a thread wakes for each look, and reads on where a kernel has beaten; each does so every 200 ms; of {RUNS} runs {:.2} to {:.2}",
            shares.min(),
            shares.max()
        );
        tell("heartbeats/cpu", u64::from(count), shares.median(), "% of a CPU", note)?;
    }
    tell("heartbeats/kernels", None, f64::from(KERNELS), "kernels", None)
}

/// The share of a CPU in each run, in percent.
fn looking_at(count: u16, time: Duration) -> anyhow::Result<Series> {
    // Where the daemon has its pool: the pages of a file on a disk are written back, and fault again at the next beat.
    let path = Path::new("/dev/shm").join(format!("tombolo-bench-heartbeats-{}", std::process::id()));
    // The primary is a member too.
    let geometry =
        Geometry { members_max: u32::from(count) + 1, extent_bytes: 1 << 20, ..Geometry::default() };
    let measured = Pool::create(&path, geometry).map_err(anyhow::Error::from).and_then(|pool| {
        let mut kernels = Follower::start(&["heartbeats", &path.to_string_lossy(), &count.to_string()])?;
        kernels.order("beat")?;
        pin::to_core(pin::two_cores().0);
        let mut scan = pool.heartbeat_scan((1..=count).map(Member));
        (0..RUNS).map(|_| Ok(100.0 * measured(&mut scan, time)?)).collect()
    });
    let _ = std::fs::remove_file(&path);
    measured
}

fn measured(scan: &mut HeartbeatScan, time: Duration) -> anyhow::Result<f64> {
    let pid = std::process::id();
    // The first look brings the pages in.
    scan.beaten(|_, _| ());
    let (cpu_before, began) = (cpu_time(pid)?, Instant::now());
    let (mut due, mut beats) = (began, 0_u64);
    while began.elapsed() < time {
        due += PERIOD;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        scan.beaten(|_, status| beats += u64::from(status.count != 0));
    }
    let (took, used) = (began.elapsed(), cpu_time(pid)? - cpu_before);
    ensure!(beats > 0, "no kernel was seen to beat within {took:?}");
    Ok(used.as_secs_f64() / took.as_secs_f64())
}

/// All kernels: a part of them beats every time, so that there always are some who have.
pub(crate) fn follow(mut leader: Leader, args: &[String]) -> anyhow::Result<()> {
    const PARTS: usize = 40;
    let [_, path, count] = args else { anyhow::bail!("which pool?") };
    let count: u16 = count.parse()?;
    let heart = |member| -> anyhow::Result<HeartbeatWriter> {
        Ok(Pool::attach(PoolSource::path(Path::new(path)), Member(member))?.heartbeat_writer()?)
    };
    let mut hearts = (1..=count).map(heart).collect::<anyhow::Result<Vec<_>>>()?;
    leader.next_order()?.context("the leader is gone")?;
    std::thread::spawn(move || {
        pin::to_core(pin::two_cores().1);
        for part in (0..PARTS).cycle() {
            hearts.iter_mut().skip(part).step_by(PARTS).for_each(HeartbeatWriter::beat);
            std::thread::sleep(BEAT / PARTS as u32);
        }
    });
    leader.ready()?;
    while leader.next_order()?.is_some() {}
    Ok(())
}
