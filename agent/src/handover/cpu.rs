//! CPUs: who is bound to them, taking them offline and online, and proving that they run what they are given.
//!
//! The kernel itself moves threads, timers and interrupts away from a CPU that goes offline (Documentation/core-api/cpu_hotplug.rst in
//! Linux's source). It also frees threads that are bound to that CPU alone from their bond, which nobody tells them: those are what a
//! CPU is kept for.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};
use tombolo_handover::observe::Inside;
use tombolo_handover::operation::Veto;

use super::programs::{named, numbered};
use super::veto::{later, never};
use crate::{cpu_list, cpus};

/// When it may be worth asking again, in ms: programs end.
const RETRY_AFTER_MS: u64 = 5_000;
/// What a thread of the kernel itself has set among its flags (`PF_KTHREAD` in include/linux/sched.h).
const IS_OF_THE_KERNEL: u64 = 0x0020_0000;
/// How often the thread that proves a CPU asks where it runs.
const PROOFS: u32 = 10_000;

/// Where the kernel tells of CPUs and of threads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Files<'a> {
    pub(super) cpus: &'a Path,
    pub(super) proc: &'a Path,
}

impl Files<'_> {
    /// Whether all of these CPUs can leave: nothing, or who is bound to them.
    pub(super) fn can_spare(self, leaving: &[u32]) -> Option<Veto> {
        for &cpu in leaving {
            match self.look(cpu) {
                Inside::Absent => return Some(never(format!("there is no CPU {cpu}"))),
                Inside::Unknown => return Some(never(format!("CPU {cpu} cannot be taken offline"))),
                _ => {}
            }
        }
        let leaving: BTreeSet<u32> = leaving.iter().copied().collect();
        let online = self.online();
        if !online.is_empty() && online.is_subset(&leaving) {
            return Some(never("no other CPU is online".into()));
        }
        let bound = named(&self.bound_to(&leaving, &online))?;
        Some(later(format!("bound to {} alone: {bound}", list(&leaving)), RETRY_AFTER_MS))
    }

    /// Takes a CPU offline, unless somebody is bound to it.
    pub(super) fn take_offline(self, cpu: u32) -> Result<(), Veto> {
        if self.look(cpu) == Inside::Offline {
            return Ok(());
        }
        match self.can_spare(&[cpu]) {
            Some(veto) => Err(veto),
            None => self.switch(cpu, false),
        }
    }

    /// Takes a CPU online.
    pub(super) fn take_online(self, cpu: u32) -> Result<(), Veto> {
        match self.look(cpu) {
            Inside::Online => Ok(()),
            Inside::Absent => Err(later(format!("there is no CPU {cpu}"), RETRY_AFTER_MS)),
            _ => self.switch(cpu, true),
        }
    }

    /// Whether a CPU, by its physical number, can leave as it is: its kernel moves whatever is not bound to it.
    pub(super) fn empty(self, physical: u32) -> Result<(), Veto> {
        let cpu = self.online_number_of(physical)?;
        self.can_spare(&[cpu]).map_or(Ok(()), Err)
    }

    /// The number that the kernel gave to a CPU that is online, by its physical number.
    pub(super) fn online_number_of(self, physical: u32) -> Result<u32, Veto> {
        match self.physical_numbers() {
            Some(numbers) => {
                let found = numbers.iter().find(|(_, of)| *of == physical).map(|(cpu, _)| *cpu);
                found.ok_or_else(|| {
                    later(
                        format!("there is no CPU online that its hardware calls {physical}"),
                        RETRY_AFTER_MS,
                    )
                })
            }
            None => Err(never("this kernel does not tell what its hardware calls its CPUs".into())),
        }
    }

    /// The same as [`Files::look`] by the physical number. The kernel tells it only of CPUs that are online.
    pub(super) fn look_at_physical(self, physical: u32) -> Inside {
        match self.physical_numbers() {
            Some(numbers) if numbers.iter().any(|(_, of)| *of == physical) => Inside::Online,
            Some(_) => Inside::Absent,
            None => Inside::Unknown,
        }
    }

    /// The CPUs that are online, each with what its hardware calls it; `None` where the kernel does not tell.
    fn physical_numbers(self) -> Option<Vec<(u32, u32)>> {
        let text = fs::read_to_string(self.proc.join("cpuinfo")).ok()?;
        let (mut numbers, mut processor) = (Vec::new(), None);
        for line in text.lines() {
            let Some((field, value)) = line.split_once(':') else { continue };
            match (field.trim(), value.trim().parse()) {
                ("processor", number) => processor = number.ok(),
                ("apicid", Ok(physical)) => numbers.extend(processor.map(|cpu| (cpu, physical))),
                _ => {}
            }
        }
        (!numbers.is_empty()).then_some(numbers)
    }

    /// What goes on with a CPU. Unknown: it is there, and cannot be taken offline.
    pub(super) fn look(self, cpu: u32) -> Inside {
        match fs::read_to_string(self.switch_of(cpu)) {
            Ok(text) if text.trim() == "0" => Inside::Offline,
            Ok(_) => Inside::Online,
            Err(_) if self.folder_of(cpu).is_dir() => Inside::Unknown,
            Err(_) => Inside::Absent,
        }
    }

    fn switch(self, cpu: u32, on: bool) -> Result<(), Veto> {
        let written = fs::write(self.switch_of(cpu), if on { "1" } else { "0" });
        written.map_err(|error| {
            let way = if on { "online" } else { "offline" };
            later(format!("the kernel does not take CPU {cpu} {way}: {error}"), RETRY_AFTER_MS)
        })
    }

    fn folder_of(self, cpu: u32) -> PathBuf {
        self.cpus.join(format!("cpu{cpu}"))
    }

    fn switch_of(self, cpu: u32) -> PathBuf {
        self.folder_of(cpu).join("online")
    }

    fn online(self) -> BTreeSet<u32> {
        fs::read_to_string(self.cpus.join("online"))
            .ok()
            .and_then(|text| cpu_list::parse(&text))
            .unwrap_or_default()
    }

    /// The threads that may run on none but these of the CPUs that are online, by name. Those with which the agent itself watches its
    /// CPUs go with them.
    fn bound_to(self, leaving: &BTreeSet<u32>, online: &BTreeSet<u32>) -> Vec<String> {
        let mut bound = Vec::new();
        for process in numbered(self.proc) {
            let tasks = self.proc.join(process.to_string()).join("task");
            for thread in numbered(&tasks) {
                let folder = tasks.join(thread.to_string());
                // One that has ended since is bound to nothing.
                let Some((name, allowed)) = allowed_cpus(&folder) else { continue };
                if process == std::process::id() && cpus::is_watching(&name) {
                    continue;
                }
                let usable: BTreeSet<u32> = allowed.intersection(online).copied().collect();
                if !usable.is_empty() && usable.is_subset(leaving) && !is_of_the_kernel(&folder) {
                    bound.push(format!("{name} (process {process}, thread {thread})"));
                }
            }
        }
        bound
    }
}

/// Proves that a CPU runs what it is given: binds a thread to it, which looks again and again where it runs.
pub(super) fn prove(cpu: u32) -> Result<(), Veto> {
    let index = usize::try_from(cpu).unwrap_or(usize::MAX);
    if index >= CpuSet::MAX_CPU {
        return Err(never(format!("CPU {cpu} has a number that no thread can be bound to")));
    }
    let proof = move || -> io::Result<bool> {
        let mut only = CpuSet::new();
        only.set(index);
        sched_setaffinity(None, &only)?;
        Ok((0..PROOFS).all(|_| sched_getcpu() == index))
    };
    let run = || {
        let thread = std::thread::Builder::new().name("tombolo-proof".into()).spawn(proof)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread ended early")))
    };
    match run() {
        Ok(true) => Ok(()),
        Ok(false) => {
            Err(later(format!("a thread that is bound to CPU {cpu} runs elsewhere"), RETRY_AFTER_MS))
        }
        Err(error) => Err(later(format!("no thread runs on CPU {cpu}: {error}"), RETRY_AFTER_MS)),
    }
}

/// The name of a thread, and the CPUs that it may run on.
fn allowed_cpus(thread: &Path) -> Option<(String, BTreeSet<u32>)> {
    let status = fs::read_to_string(thread.join("status")).ok()?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    Some((field("Name:")?.to_owned(), cpu_list::parse(field("Cpus_allowed_list:")?)?))
}

fn is_of_the_kernel(thread: &Path) -> bool {
    let flags = || -> Option<u64> {
        let stat = fs::read_to_string(thread.join("stat")).ok()?;
        // Behind the name, which may hold anything: state, five numbers, flags (proc_pid_stat(5)).
        stat.rsplit_once(") ")?.1.split(' ').nth(6)?.parse().ok()
    };
    flags().is_some_and(|flags| flags & IS_OF_THE_KERNEL != 0)
}

fn list(cpus: &BTreeSet<u32>) -> String {
    let numbers: Vec<String> = cpus.iter().map(ToString::to_string).collect();
    format!("CPU {}", numbers.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PINNED: &str = "Name:\thog\nCpus_allowed_list:\t1\n";

    /// Three CPUs, of which the first cannot be taken offline, and these threads: number, status, flags.
    fn kernel(threads: &[(u32, &str, u64)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: PathBuf, text: &str| {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        fs::create_dir_all(dir.path().join("cpu/cpu0")).unwrap();
        write(dir.path().join("cpu/cpu1/online"), "1\n");
        write(dir.path().join("cpu/cpu2/online"), "0\n");
        write(dir.path().join("cpu/online"), "0-1\n");
        fs::create_dir_all(dir.path().join("proc")).unwrap();
        for (number, status, flags) in threads {
            let thread = dir.path().join(format!("proc/{number}/task/{number}"));
            write(thread.join("status"), status);
            write(thread.join("stat"), &format!("{number} (a) b) S 1 1 1 0 -1 {flags} 0 0\n"));
        }
        dir
    }

    fn with<T>(dir: &tempfile::TempDir, look: impl FnOnce(Files<'_>) -> T) -> T {
        let (cpus, proc) = (dir.path().join("cpu"), dir.path().join("proc"));
        look(Files { cpus: &cpus, proc: &proc })
    }

    #[test]
    fn whoever_is_bound_to_a_cpu_that_is_to_leave_is_named() {
        let dir = kernel(&[
            (7, PINNED, 0x40),
            (8, "Name:\tfree\nCpus_allowed_list:\t0-2\n", 0x40),
            (9, "Name:\tcpuhp/1\nCpus_allowed_list:\t1\n", 0x40 | IS_OF_THE_KERNEL),
            (10, "Name:\ttoo\nCpus_allowed_list:\t1-2\n", 0x40),
        ]);
        let mut reason = with(&dir, |files| files.can_spare(&[1])).unwrap().reason;
        assert!(reason.starts_with("bound to CPU 1 alone: "), "{reason}");
        reason = with(&dir, |files| files.take_offline(1)).unwrap_err().reason;
        for (name, is_named) in
            [("hog (process 7, thread 7)", true), ("too", true), ("free", false), ("hp", false)]
        {
            assert_eq!(reason.contains(name), is_named, "{name}: {reason}");
        }
        assert_eq!(with(&dir, |files| files.look(1)), Inside::Online, "it was not touched");
    }

    #[test]
    fn the_agents_own_watch_keeps_no_cpu() {
        let watch = "Name:\tcpu-watch/1\nCpus_allowed_list:\t1\n";
        let dir = kernel(&[(std::process::id(), watch, 0x40)]);
        assert_eq!(with(&dir, |files| files.can_spare(&[1])), None);
        let dir = kernel(&[(std::process::id() + 1, watch, 0x40)]);
        assert!(with(&dir, |files| files.can_spare(&[1])).is_some(), "another's thread of that name does");
    }

    #[test]
    fn a_cpu_that_nobody_is_bound_to_goes_offline_and_online() {
        let dir = kernel(&[(8, "Name:\tfree\nCpus_allowed_list:\t0-2\n", 0x40)]);
        with(&dir, |files| {
            assert_eq!(files.can_spare(&[1]), None);
            files.take_offline(1).unwrap();
            files.take_offline(2).unwrap();
            assert_eq!((files.look(1), files.look(2)), (Inside::Offline, Inside::Offline));
            files.take_online(2).unwrap();
            assert_eq!(files.look(2), Inside::Online);
        });
    }

    #[test]
    fn a_cpu_is_found_by_what_its_hardware_calls_it_and_emptied_without_going_offline() {
        let dir = kernel(&[(7, PINNED, 0x40)]);
        let cpuinfo = dir.path().join("proc/cpuinfo");
        assert_eq!(with(&dir, |files| files.look_at_physical(6)), Inside::Unknown, "nothing tells");
        fs::write(
            &cpuinfo,
            "processor\t: 0\napicid\t\t: 2\ninitial apicid\t: 9\n\nprocessor\t: 1\napicid\t\t: 6\n",
        )
        .unwrap();
        with(&dir, |files| {
            assert_eq!(
                [2, 6, 9].map(|id| files.look_at_physical(id)),
                [Inside::Online, Inside::Online, Inside::Absent]
            );
            assert_eq!(files.online_number_of(6).unwrap(), 1);
            assert!(files.empty(6).unwrap_err().reason.contains("hog"), "somebody is bound to it");
            assert!(files.empty(2).unwrap_err().reason.contains("cannot be taken offline"));
            assert!(files.empty(9).unwrap_err().reason.contains("its hardware calls 9"));
        });
        fs::remove_dir_all(dir.path().join("proc/7")).unwrap();
        with(&dir, |files| {
            files.empty(6).unwrap();
            assert_eq!(files.look(1), Inside::Online, "its kernel would not park one that is offline");
        });
    }

    #[test]
    fn what_cannot_leave_is_told() {
        let dir = kernel(&[]);
        let reason = |leaving: &[u32]| with(&dir, |files| files.can_spare(leaving)).unwrap().reason;
        assert!(reason(&[0]).contains("cannot be taken offline"));
        assert!(reason(&[9]).contains("no CPU 9"));
        fs::write(dir.path().join("cpu/online"), "1\n").unwrap();
        assert!(reason(&[1]).contains("no other CPU"));
        assert!(with(&dir, |files| files.take_online(9)).is_err());
    }

    #[test]
    fn a_cpu_that_is_there_is_proven() {
        prove(sched_getcpu() as u32).unwrap();
        assert!(prove(CpuSet::MAX_CPU as u32 - 1).is_err());
        assert!(prove(u32::MAX).is_err());
    }
}
