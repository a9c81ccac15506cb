//! Processes: this one adopts every orphan below it, so that nothing it started, however indirectly, gets out of sight.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, set_child_subreaper, waitpid};

/// Makes this process the one that inherits orphaned descendants.
pub(crate) fn adopt_orphans() -> Result<()> {
    set_child_subreaper(Pid::from_raw(1)).context("could not become the reaper of orphans")
}

/// A living process below this one.
#[derive(Clone, Debug)]
pub(crate) struct Descendant {
    pub(crate) pid: i32,
    pub(crate) command: String,
}

/// All living processes below this one.
pub(crate) fn descendants() -> Vec<Descendant> {
    let table: Vec<(i32, i32, char)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter_map(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let mut fields = stat.rsplit_once(") ")?.1.split(' ');
            Some((pid, fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
        })
        .map(|(pid, state, parent)| (pid, parent, state))
        .collect();
    let mut found = Vec::new();
    let mut next = vec![i32::try_from(std::process::id()).unwrap_or_default()];
    while let Some(above) = next.pop() {
        for &(pid, parent, state) in &table {
            if parent == above {
                next.push(pid);
                if state != 'Z' {
                    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                    let command = String::from_utf8_lossy(&command).replace('\0', " ").trim().to_owned();
                    found.push(Descendant { pid, command });
                }
            }
        }
    }
    found
}

/// The time that this process, with all its threads, has had on processors; `None` if it is gone.
pub(crate) fn cpu_time(pid: i32) -> Option<Duration> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    // In ns: fine enough for what uses a thousandth of a processor, where clock ticks are not (proc_pid_schedstat(5)).
    let taken_ns = threads.flatten().filter_map(|thread| {
        let stat = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        stat.split(' ').next()?.parse::<u64>().ok()
    });
    Some(Duration::from_nanos(taken_ns.sum()))
}

/// Reaps the orphans that ended. Children that somebody waits for must not be running meanwhile.
pub(crate) fn reap_orphans() {
    while let Ok(Some(_)) = waitpid(None, WaitOptions::NOHANG) {}
}

/// Kills everything below this process. Returns what could not be killed within five seconds.
pub(crate) fn kill_descendants() -> Vec<Descendant> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let left = descendants();
        if left.is_empty() || Instant::now() > deadline {
            reap_orphans();
            return left;
        }
        for process in &left {
            kill(process.pid, Signal::KILL);
        }
        reap_orphans();
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Sends a signal; a process that is gone is no error.
pub(crate) fn kill(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, signal);
    }
}
