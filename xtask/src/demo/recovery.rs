//! Many kernels and a daemon that dies: how long until a new one has all of them again?

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::bed::Bed;
use super::handover::median_ms;
use super::{on_user_mode_kernels, unix_ns};

/// How often the daemon is killed.
const ROUNDS: usize = 5;
/// How long a new one may take to have all kernels again.
const RECOVERY_MAX: Duration = Duration::from_secs(30);
/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Shared memory of each, in MiB: user-mode kernels map a pool of less than 2 GiB.
const EXTENT_MIB: &str = "16";
/// Memory of each kernel, in MiB.
const MEMORY_MIB: &str = "64";

/// Boots so many kernels, kills the daemon a few times, and measures how long the next one takes to find them running, and to hear of
/// their agents.
pub(crate) fn recover_many(programs: &Path, kernels: usize) -> Result<()> {
    let members = (kernels + 1).to_string();
    let options = ["--pool-members", &members, "--pool-extent", EXTENT_MIB];
    on_user_mode_kernels(programs, &options, |bed| recover(bed, kernels))
}

fn recover(mut bed: Bed, kernels: usize) -> Result<()> {
    for number in 1..=kernels {
        let name = format!("k{number}");
        bed.tombolo(&["up", &name, "--memory", MEMORY_MIB, "--restart", "never"])?;
    }
    let before = pids(&bed)?;
    ensure!(before.len() == kernels, "{} of {kernels} kernels run", before.len());
    let (mut found, mut heard) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let killed_ns = unix_ns();
        bed.replace_daemon()?;
        let back = wait_until_back(&bed, killed_ns, kernels)?;
        found.push(back.found);
        heard.push(back.heard);
    }
    ensure!(pids(&bed)? == before, "a kernel was started again");
    println!(
        "{kernels} kernels after SIGKILL of the daemon, {ROUNDS} times: all found running after {:.0} ms (median), \
         all agents heard after {:.0} ms; the start of the daemon included",
        median_ms(&mut found),
        median_ms(&mut heard),
    );
    bed.tombolo(&["down"]).map(drop)
}

/// How long it took after the daemon was killed until all kernels were found running, and until the last agent was heard.
struct Back {
    found: Duration,
    heard: Duration,
}

fn wait_until_back(bed: &Bed, killed_ns: u64, kernels: usize) -> Result<Back> {
    let deadline = Instant::now() + RECOVERY_MAX;
    loop {
        let events = bed.tombolo(&["--json", "events"])?;
        let later = |event: &Value| event["at_unix_ns"].as_u64().filter(|at_ns| *at_ns > killed_ns);
        let events: Vec<(u64, Value)> = events
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .filter_map(|event| Some((later(&event)?, event)))
            .collect();
        let times = |is_it: &dyn Fn(&Value) -> bool| -> Vec<u64> {
            events.iter().filter(|(_, event)| is_it(event)).map(|(at_ns, _)| at_ns - killed_ns).collect()
        };
        let found = times(&|event| event["type"] == "adopted");
        let heard = times(&|event| event["type"] == "state" && event["to"] == "running");
        if found.len() == kernels && heard.len() == kernels {
            let last = |times: Vec<u64>| Duration::from_nanos(times.into_iter().max().unwrap_or(0));
            return Ok(Back { found: last(found), heard: last(heard) });
        }
        ensure!(
            Instant::now() < deadline,
            "{} of {kernels} kernels were found and {} agents heard within {RECOVERY_MAX:?}",
            found.len(),
            heard.len()
        );
        thread::sleep(LOOK_AGAIN);
    }
}

fn pids(bed: &Bed) -> Result<Vec<Value>> {
    let document = bed.json(&["ps"])?;
    let views = document["instances"].as_array().context("`ps` lists no instances")?;
    Ok(views.iter().map(|view| view["pid"].clone()).filter(|pid| !pid.is_null()).collect())
}
