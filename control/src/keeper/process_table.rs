//! What `/proc` says about processes: who is whose child, and whether a number still means the same process.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};

/// One line of the process table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    /// Process id.
    pub(crate) pid: i32,
    /// Its parent.
    pub(crate) parent: i32,
    /// Its process group.
    pub(crate) group: i32,
    /// `R`, `S`, `T`, `Z` ... as in proc(5).
    pub(crate) state: char,
    /// When it started, in clock ticks since boot.
    pub(crate) start_ticks: u64,
}

impl Process {
    /// The process with this id, if there is one (it may be a zombie).
    pub(crate) fn find(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// All processes that this user can see.
    fn all() -> Vec<Self> {
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter_map(Self::find)
            .collect()
    }

    /// Parses `/proc/PID/stat`, whose second field is a name that may hold spaces and parentheses.
    fn parse(stat: &str) -> Option<Self> {
        let pid = stat.split_once(' ')?.0.parse().ok()?;
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split_ascii_whitespace().collect();
        Some(Self {
            pid,
            state: fields.first()?.chars().next()?,
            parent: fields.get(1)?.parse().ok()?,
            group: fields.get(2)?.parse().ok()?,
            start_ticks: fields.get(19)?.parse().ok()?,
        })
    }

    /// Whether it has ended and only waits to be reaped.
    pub(crate) fn is_zombie(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }

    /// Whether it is stopped by a signal.
    pub(crate) fn is_stopped(&self) -> bool {
        matches!(self.state, 'T' | 't')
    }
}

/// All processes below `pid`, not itself, parents before children.
pub(crate) fn descendants_of(pid: i32) -> Vec<Process> {
    let all = Process::all();
    let mut found: Vec<Process> = Vec::new();
    let mut next = vec![pid];
    while let Some(parent) = next.pop() {
        for process in all.iter().filter(|process| process.parent == parent) {
            found.push(*process);
            next.push(process.pid);
        }
    }
    found
}

/// Kills what is left of the process group led by `leader`, provided it is still the one whose leader started at
/// `start_ticks`; waits until no living process of it is left, at most `deadline`.
///
/// For groups whose keeper is gone: their members are no children of ours, so zombies count as gone.
pub(crate) fn kill_group_of(leader: i32, start_ticks: u64, deadline: Instant) -> io::Result<()> {
    match Process::find(leader) {
        Some(process) if process.start_ticks != start_ticks => return Ok(()), // the number was given to another
        _ => {}
    }
    let Some(group) = Pid::from_raw(leader) else { return Ok(()) };
    loop {
        // A process group's number is not reused while a member lives, so these are the kernel's own.
        let alive = Process::all()
            .into_iter()
            .any(|p| p.group == leader && !p.is_zombie() && p.start_ticks >= start_ticks);
        if !alive || test_kill_process_group(group).is_err() {
            return Ok(());
        }
        kill_process_group(group, Signal::KILL)?;
        if Instant::now() > deadline {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("process group {leader} survives SIGKILL"),
            ));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_with_a_strange_name_is_parsed() {
        let stat =
            "42 (a ) (b) S 7 40 9 0 -1 4194304 1 0 0 0 3 4 0 0 20 0 1 0 987 1000 5 18446744073709551615";
        let expected = Process { pid: 42, parent: 7, group: 40, state: 'S', start_ticks: 987 };
        assert_eq!(Process::parse(stat), Some(expected));
        assert_eq!(Process::parse("42 (cut"), None);
    }

    #[test]
    fn child_is_found_below_its_parent() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        assert!(descendants_of(own).iter().any(|process| process.pid == pid));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(Process::find(pid).is_none());
    }
}
