//! Who this is: the kernel, its memory and CPUs, and this agent.

use std::fmt::Write as _;
use std::fs::read_to_string;

use crate::api::agent::{AgentMode, Inventory, Uname};
use crate::config::AgentConfig;
use crate::cpu_list;
use crate::health::{system_load, uptime_ms};

/// What this agent can do beyond the base of its version.
const FEATURES: &[&str] = &[
    "clock.sync",
    "exec.tty",
    "exec.detached",
    "files.resume",
    "logs.cursor",
    "forward.listen",
    "probe.rpc",
    "quiesce.auto-resume",
    "handover.memory",
    "handover.cpu",
    "handover.device",
];

/// Version of the agent.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Takes stock. `config` is `None` for a run by hand inside some kernel.
pub fn take(config: Option<&AgentConfig>, mode: AgentMode, epoch: u64) -> Inventory {
    let (cpus_online, cpus_possible) = cpus();
    Inventory {
        name: config.map_or_else(String::new, |config| config.name.clone()),
        cid: config.map_or(0, |config| config.cid.0),
        member: config.map_or(0, |config| u32::from(config.member.0)),
        incarnation: config.map_or_else(String::new, |config| config.incarnation.to_string()),
        uname: uname(),
        boot_id: read_line("/proc/sys/kernel/random/boot_id"),
        memory_bytes: system_load().memory.total,
        cpus_online,
        cpus_possible,
        page_bytes: rustix::param::page_size() as u32,
        uptime_ms: uptime_ms(),
        mode,
        agent_pid: std::process::id(),
        agent_version: VERSION.to_owned(),
        agent_epoch: epoch,
        features: FEATURES.iter().map(|feature| (*feature).to_owned()).collect(),
    }
}

/// The inventory as text for people.
pub fn describe(inventory: &Inventory) -> String {
    let uname = &inventory.uname;
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name:<10} {value}");
    };
    line("kernel", &format!("{} {} {}", uname.sysname, uname.release, uname.machine));
    line("version", &uname.version);
    line("hostname", &uname.nodename);
    line("boot id", &inventory.boot_id);
    line("memory", &format!("{:.1} MiB", inventory.memory_bytes as f64 / f64::from(1 << 20)));
    line("cpus", &format!("{} of {} online", inventory.cpus_online, inventory.cpus_possible));
    line("uptime", &format!("{:.3} s", inventory.uptime_ms as f64 / 1000.0));
    line("agent", &format!("{} (process {})", inventory.agent_version, inventory.agent_pid));
    text
}

fn uname() -> Uname {
    let uname = rustix::system::uname();
    let text = |field: &std::ffi::CStr| field.to_string_lossy().into_owned();
    Uname {
        sysname: text(uname.sysname()),
        nodename: text(uname.nodename()),
        release: text(uname.release()),
        version: text(uname.version()),
        machine: text(uname.machine()),
    }
}

fn cpus() -> (u32, u32) {
    let count = |file: &str| parse_cpu_list(&read_line(&format!("/sys/devices/system/cpu/{file}")));
    // User-mode Linux has one CPU and no such files.
    let online = count("online").unwrap_or_else(|| system_load().cpus.len().max(1) as u32);
    (online, count("possible").unwrap_or(online))
}

/// How many CPUs a list names; `None` for an empty one.
fn parse_cpu_list(list: &str) -> Option<u32> {
    let cpus = cpu_list::parse(list)?;
    u32::try_from(cpus.len()).ok().filter(|count| *count > 0)
}

fn read_line(path: &str) -> String {
    read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_is_described() {
        let inventory = take(None, AgentMode::Service, 1);
        assert_eq!(inventory.uname.sysname, "Linux");
        assert!(inventory.memory_bytes > 0 && inventory.cpus_online > 0 && !inventory.boot_id.is_empty());
        let text = describe(&inventory);
        assert!(text.contains(&inventory.boot_id) && text.contains("MiB"), "{text}");
    }

    #[test]
    fn cpu_lists_are_counted() {
        assert_eq!(parse_cpu_list("0"), Some(1));
        assert_eq!(parse_cpu_list("0-3,5"), Some(5));
        assert_eq!(parse_cpu_list(""), None);
        assert_eq!(parse_cpu_list("3-1"), None);
    }
}
