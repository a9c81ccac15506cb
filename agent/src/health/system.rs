//! Load, memory, CPUs and pressure, from /proc. What a kernel does not tell is left at zero or out.

use std::fs::read_to_string;

use crate::api::health::{CpuTimes, Memory, Pressure, PressureLine, SystemLoad};

/// How the kernel is now. Reads a handful of files in /proc: some hundreds of microseconds under user-mode Linux.
pub fn system_load() -> SystemLoad {
    let read = |path: &str| read_to_string(path).unwrap_or_default();
    let (load_average, processes) = parse_load(&read("/proc/loadavg"));
    SystemLoad {
        uptime_ms: uptime_ms(),
        load_average,
        memory: parse_memory(&read("/proc/meminfo")),
        cpus: parse_cpus(&read("/proc/stat"), rustix::param::clock_ticks_per_second()),
        pressure: pressure(),
        processes,
    }
}

/// Since the kernel booted, in milliseconds.
pub fn uptime_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

fn pressure() -> Option<Pressure> {
    let line =
        |what: &str| read_to_string(format!("/proc/pressure/{what}")).ok().map(|text| parse_pressure(&text));
    Some(Pressure { cpu: line("cpu")?, memory: line("memory")?, io: line("io")? })
}

/// `0.20 0.18 0.12 1/80 11206`
fn parse_load(text: &str) -> ([f64; 3], u32) {
    let mut fields = text.split_ascii_whitespace();
    let mut average = || fields.next().and_then(|field| field.parse().ok()).unwrap_or(0.0);
    let averages = [average(), average(), average()];
    let tasks = fields.next().and_then(|field| field.split_once('/')?.1.parse().ok());
    (averages, tasks.unwrap_or(0))
}

fn parse_memory(text: &str) -> Memory {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kib: Option<u64> = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok());
        kib.unwrap_or(0) * 1024
    };
    Memory { total: field("MemTotal"), free: field("MemFree"), available: field("MemAvailable") }
}

/// `cpu0 user nice system idle iowait irq softirq steal guest guest_nice`, in ticks.
fn parse_cpus(text: &str, ticks_per_second: u64) -> Vec<CpuTimes> {
    let cpu = |line: &str| {
        let (name, rest) = line.split_once(' ')?;
        let number = name.strip_prefix("cpu")?.parse().ok()?;
        let ticks: Vec<u64> = rest.split_ascii_whitespace().map_while(|field| field.parse().ok()).collect();
        let ms = |indices: &[usize]| {
            let sum: u64 = indices.iter().filter_map(|index| ticks.get(*index)).sum();
            sum * 1000 / ticks_per_second.max(1)
        };
        Some(CpuTimes {
            cpu: number,
            user_ms: ms(&[0, 1]),
            system_ms: ms(&[2, 5, 6]),
            idle_ms: ms(&[3, 4]),
            steal_ms: ms(&[7]),
        })
    };
    text.lines().filter_map(cpu).collect()
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and the same for `full`.
fn parse_pressure(text: &str) -> PressureLine {
    let value = |kind: &str, window: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind))?;
        line.split_ascii_whitespace()
            .find_map(|field| field.strip_prefix(window)?.strip_prefix('=')?.parse().ok())
    };
    let value = |kind, window| value(kind, window).unwrap_or(0.0);
    PressureLine {
        some_avg10: value("some", "avg10"),
        some_avg60: value("some", "avg60"),
        full_avg10: value("full", "avg10"),
        full_avg60: value("full", "avg60"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_has_memory_cpus_and_an_uptime() {
        let load = system_load();
        assert!(load.memory.total > 0 && load.memory.available <= load.memory.total);
        assert!(!load.cpus.is_empty() && load.uptime_ms > 0 && load.processes > 0);
    }

    #[test]
    fn files_of_proc_are_understood() {
        assert_eq!(parse_load("0.20 0.18 0.12 1/80 11206\n"), ([0.20, 0.18, 0.12], 80));
        let memory = parse_memory("MemTotal:  100 kB\nMemFree:  50 kB\nMemAvailable:   70 kB\n");
        assert_eq!((memory.total, memory.free, memory.available), (102_400, 51_200, 71_680));
        let cpus = parse_cpus("cpu  1 1 1 1\ncpu0 10 5 20 100 3 1 2 4 0 0\nintr 5\n", 100);
        let expected = CpuTimes { cpu: 0, user_ms: 150, system_ms: 230, idle_ms: 1030, steal_ms: 40 };
        assert_eq!(cpus, [expected]);
        let text =
            "some avg10=1.50 avg60=0.25 avg300=0.00 total=9\nfull avg10=0.50 avg60=0.00 avg300=0 total=1\n";
        let line = parse_pressure(text);
        assert_eq!((line.some_avg10, line.some_avg60, line.full_avg10), (1.5, 0.25, 0.5));
    }

    #[test]
    fn nonsense_is_zero() {
        assert_eq!(parse_load("x"), ([0.0; 3], 0));
        assert_eq!(parse_memory("MemTotal: lots"), Memory::default());
        assert!(parse_cpus("cpux 1\ncpu", 0).is_empty());
        assert_eq!(parse_pressure(""), PressureLine::default());
    }
}
