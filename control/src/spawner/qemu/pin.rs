//! CPUs of a machine that run on one CPU of this host each, where the ledger's CPUs are this host's.
//!
//! QEMU runs a thread for each CPU and tells their numbers (`query-cpus-fast`); sched_setaffinity(2) does the rest. A CPU that is not lent
//! is parked, and where its thread may run does not matter.

use std::path::Path;

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};
use serde_json::{Value, json};

use super::once_it_listens;

/// Has CPUs of the machine `process` of `runtime_dir` run on these CPUs of this host alone, each given as the CPU's number in the machine and
/// in Linux.
pub(in crate::spawner) async fn pin(
    runtime_dir: &Path,
    process: u32,
    pins: &[(u32, u32)],
) -> Result<(), String> {
    let threads =
        once_it_listens(
            runtime_dir,
            |mut session| async move { session.run("query-cpus-fast", json!({})).await },
        );
    let threads = parse(&threads.await.map_err(|error| error.to_string())?);
    for &(index, host_cpu) in pins {
        let thread = threads.iter().find(|(of, _)| *of == index).map(|(_, thread)| *thread);
        let thread =
            thread.ok_or_else(|| format!("its monitor does not tell which thread its CPU {index} is"))?;
        set_affinity(process, thread, host_cpu).map_err(|error| {
            format!("its CPU {index} cannot run on CPU {host_cpu} of this host alone: {error}")
        })?;
    }
    Ok(())
}

fn set_affinity(process: u32, thread: i32, host_cpu: u32) -> Result<(), String> {
    let mut cpus = CpuSet::new();
    let at = usize::try_from(host_cpu).ok().filter(|at| *at < CpuSet::MAX_CPU);
    cpus.set(at.ok_or_else(|| format!("it is beyond {}", CpuSet::MAX_CPU))?);
    // What the machine says is not taken for true: a thread of another process is none of its CPUs.
    if !Path::new(&format!("/proc/{process}/task/{thread}")).is_dir() {
        return Err(format!("process {process} has no thread {thread}"));
    }
    sched_setaffinity(Pid::from_raw(thread), &cpus).map_err(|errno| errno.to_string())
}

/// The CPUs of a machine by number, and the thread of each.
fn parse(said: &Value) -> Vec<(u32, i32)> {
    let thread = |cpu: &Value| {
        let index = u32::try_from(cpu["cpu-index"].as_u64()?).ok()?;
        let thread = i32::try_from(cpu["thread-id"].as_u64()?).ok().filter(|thread| *thread > 0)?;
        Some((index, thread))
    };
    said.as_array().into_iter().flatten().filter_map(thread).collect()
}

#[cfg(test)]
mod tests {
    use rustix::thread::{gettid, sched_getaffinity};

    use super::*;

    #[test]
    fn threads_are_told_by_the_number_of_their_cpu() {
        let said = json!([
            { "cpu-index": 0, "thread-id": 7, "target": "x86_64" },
            { "cpu-index": 1 }, { "cpu-index": 2, "thread-id": 0 }, { "cpu-index": -1, "thread-id": 9 }, 3,
            { "cpu-index": 4, "thread-id": 5_000_000_000_u64 },
        ]);
        assert_eq!(parse(&said), [(0, 7)]);
        assert_eq!(parse(&json!({ "cpu-index": 0 })), []);
    }

    #[test]
    fn thread_of_ours_is_bound_and_one_of_another_process_is_not() {
        let bound = std::thread::spawn(|| {
            let allowed = sched_getaffinity(None).unwrap();
            let cpu = (0..CpuSet::MAX_CPU).rev().find(|cpu| allowed.is_set(*cpu)).unwrap();
            let thread = gettid().as_raw_nonzero().get();
            set_affinity(std::process::id(), thread, cpu as u32).unwrap();
            let after = sched_getaffinity(None).unwrap();
            assert!(set_affinity(1, thread, cpu as u32).unwrap_err().contains("no thread"));
            assert!(set_affinity(std::process::id(), thread, 100_000).unwrap_err().contains("beyond"));
            (after.count(), after.is_set(cpu))
        });
        assert_eq!(bound.join().unwrap(), (1, true));
    }
}
