//! What a process holds and uses.

use std::fs;
use std::time::Duration;

use anyhow::Context;

/// What a process holds of the kernel's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) descriptors: usize,
    pub(crate) maps: usize,
    /// Pieces into which the mapping of the pool is cut by what is writable in it: bounded by its pages, however many connections there were.
    pub(crate) pieces: usize,
}

pub(crate) fn held(pid: u32) -> anyhow::Result<Held> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).context("looking at a process")?.count();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    // The allocator maps and unmaps memory of its own as it likes.
    let files = maps.lines().filter(|line| line.split_whitespace().count() > 5 && !line.ends_with(']'));
    let (pool, other): (Vec<_>, Vec<_>) = files.partition(|line| line.ends_with("/pool"));
    Ok(Held { descriptors, maps: other.len(), pieces: pool.len() })
}

/// Memory that is no file's, in bytes.
pub(crate) fn private_bytes(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("looking at a process")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .context("no RssAnon (proc_pid_status(5))")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024)
}

/// The time that all threads of a process have had on processors.
pub(crate) fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).context("looking at a process")?;
    // In ns: fine enough for what uses a thousandth of a processor, where clock ticks are not (proc_pid_schedstat(5)).
    let taken_ns = threads.flatten().filter_map(|thread| {
        let stat = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        stat.split(' ').next()?.parse::<u64>().ok()
    });
    Ok(Duration::from_nanos(taken_ns.sum()))
}
