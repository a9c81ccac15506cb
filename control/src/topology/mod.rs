//! What this host's CPUs, memory and caches are, as its kernel tells in sysfs.
//!
//! Read from (Documentation/ABI/ in Linux's source): `cpu/online`, `cpuN/topology/` and `cpuN/cache/indexM/` of
//! stable/sysfs-devices-system-cpu and testing/sysfs-devices-system-cpu, `nodeN/cpulist` and `nodeN/meminfo` of
//! stable/sysfs-devices-node. All of it below a root folder, so that a tree of plain files is as good as a host. What cannot be
//! read or makes no sense is left out; nothing else depends on it.

mod resctrl;
#[cfg(test)]
mod tests;
mod text;

use std::path::{Path, PathBuf};

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

pub use self::resctrl::Resctrl;
pub(crate) use self::text::cpu_list;
use self::text::{bytes_with_suffix, number, read};
use crate::meminfo;

/// The CPU that x86 machines boot on.
const BOOT_CPU: u32 = 0;
/// Kinds of caches that a CPU can have; no machine has as many.
const CACHE_INDEXES: std::ops::Range<u32> = 0..10;

/// CPUs, memory and caches of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct Topology {
    /// The CPUs that are online, in order.
    pub cpus: Vec<HostCpu>,
    /// The NUMA nodes, in order; none where the kernel knows of none.
    pub nodes: Vec<Node>,
    /// The last-level caches, in order.
    pub caches: Vec<Cache>,
    /// Whether ways of those can be given to one program and not to another.
    pub resctrl: Resctrl,
}

/// A CPU that is online.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct HostCpu {
    /// Its number in Linux.
    pub id: u32,
    /// The lowest number among the threads of its core, which is a name for the core: `core_id` repeats in every package.
    pub core: u32,
    /// The package that it is in.
    pub package: Option<u32>,
    /// The NUMA node that it is on.
    pub node: Option<u32>,
    /// Whether the host booted on it.
    pub boot: bool,
}

/// A NUMA node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct Node {
    /// Its number.
    pub id: u32,
    /// Its memory, in bytes.
    pub memory_bytes: Option<u64>,
}

/// A last-level cache: of the caches of a CPU for data the one of the highest level.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct Cache {
    /// Its number among those of its level; where the kernel gives none, the lowest CPU that uses it.
    pub id: u32,
    /// Its level, such as 3.
    pub level: u32,
    /// Its size, in bytes.
    pub bytes: Option<u64>,
    /// Its ways; none where the kernel does not tell (a virtual machine, say).
    pub ways: Option<u32>,
    /// The CPUs that share it, in order.
    pub cpus: Vec<u32>,
}

impl Topology {
    /// That of the host that we run on.
    pub fn of_this_host() -> Self {
        Self::read(Path::new("/"))
    }

    /// That which the files below `root` tell: `root/sys` and `root/proc` are what `/sys` and `/proc` are on a host.
    pub fn read(root: &Path) -> Self {
        let system = root.join("sys/devices/system");
        let online = read(&system.join("cpu/online")).and_then(|text| cpu_list(&text)).unwrap_or_default();
        let nodes = nodes(&system.join("node"));
        let node_of = |cpu| nodes.iter().find(|(_, cpus)| cpus.contains(&cpu)).map(|(node, _)| node.id);
        let mut caches: Vec<Cache> = Vec::new();
        let mut cpus = Vec::with_capacity(online.len());
        for id in online {
            let folder = system.join(format!("cpu/cpu{id}"));
            cpus.push(HostCpu {
                id,
                core: core(&folder, id),
                package: read(&folder.join("topology/physical_package_id")).and_then(|text| number(&text)),
                node: node_of(id),
                boot: id == BOOT_CPU,
            });
            if !caches.iter().any(|known| known.cpus.contains(&id)) {
                caches.extend(last_level(&folder, id));
            }
        }
        caches.sort_by_key(|cache| (cache.level, cache.id));
        let nodes = nodes.into_iter().map(|(node, _)| node).collect();
        Self { cpus, nodes, caches, resctrl: Resctrl::read(root) }
    }

    /// The CPU of this number, if it is online.
    pub fn cpu(&self, id: u32) -> Option<&HostCpu> {
        self.cpus.iter().find(|cpu| cpu.id == id)
    }

    /// One line for people: packages, cores, threads, nodes, last-level caches.
    pub fn describe(&self) -> String {
        let count = |mut ids: Vec<u32>| {
            ids.sort_unstable();
            ids.dedup();
            ids.len()
        };
        let packages = count(self.cpus.iter().filter_map(|cpu| cpu.package).collect());
        let cores = count(self.cpus.iter().map(|cpu| cpu.core).collect());
        let mut parts = vec![
            counted(packages, "package"),
            counted(cores, "core"),
            counted(self.cpus.len(), "thread"),
            counted(self.nodes.len(), "NUMA node"),
        ];
        parts.extend(
            self.nodes
                .iter()
                .filter_map(|node| Some(format!("node {} with {} MiB", node.id, node.memory_bytes? >> 20))),
        );
        parts.extend(self.caches.iter().map(Cache::describe));
        parts.join(", ")
    }
}

impl Cache {
    fn describe(&self) -> String {
        let size = self.bytes.map(|bytes| format!(" of {} KiB", bytes >> 10)).unwrap_or_default();
        let ways = self.ways.map(|ways| format!(" in {}", counted(ways as usize, "way"))).unwrap_or_default();
        let users = counted(self.cpus.len(), "thread");
        format!("L{} cache {}{size}{ways} for {users}", self.level, self.id)
    }
}

/// `1 core`, `2 cores`.
fn counted(count: usize, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}

/// The name of the core of a CPU: itself where its siblings are not told, or are told without it.
fn core(folder: &Path, id: u32) -> u32 {
    let siblings = read(&folder.join("topology/thread_siblings_list")).and_then(|text| cpu_list(&text));
    siblings.filter(|list| list.contains(&id)).and_then(|list| list.first().copied()).unwrap_or(id)
}

/// The nodes below a folder, each with its CPUs.
fn nodes(folder: &Path) -> Vec<(Node, Vec<u32>)> {
    let Some(ids) = read(&folder.join("online")).and_then(|text| cpu_list(&text)) else { return Vec::new() };
    let node = |id: u32| {
        let its = folder.join(format!("node{id}"));
        let cpus = read(&its.join("cpulist")).and_then(|text| cpu_list(&text))?;
        let memory = read(&its.join("meminfo")).and_then(|text| {
            // Its lines are those of /proc/meminfo behind `Node N`.
            let prefix = format!("Node {id} ");
            let lines: String = text
                .lines()
                .filter_map(|line| line.strip_prefix(&prefix))
                .flat_map(|line| [line, "\n"])
                .collect();
            meminfo::bytes_of("MemTotal", &lines)
        });
        Some((Node { id, memory_bytes: memory }, cpus))
    };
    ids.into_iter().filter_map(node).collect()
}

/// The last-level cache of a CPU.
fn last_level(folder: &Path, cpu: u32) -> Option<Cache> {
    let caches = CACHE_INDEXES.filter_map(|index| cache(&folder.join(format!("cache/index{index}")), cpu));
    caches.max_by_key(|cache| cache.level)
}

fn cache(folder: &Path, cpu: u32) -> Option<Cache> {
    let file = |name: &str| -> Option<String> { read(&PathBuf::from(folder).join(name)) };
    let holds_data = matches!(file("type")?.trim(), "Unified" | "Data");
    let cpus = cpu_list(&file("shared_cpu_list")?).filter(|cpus| cpus.contains(&cpu))?;
    let level = number(&file("level")?)?;
    let id = file("id").and_then(|text| number(&text)).or_else(|| cpus.first().copied())?;
    let ways = file("ways_of_associativity").and_then(|text| number(&text)).filter(|ways| *ways > 0);
    let bytes = file("size").and_then(|text| bytes_with_suffix(&text));
    holds_data.then_some(Cache { id, level, bytes, ways, cpus })
}
