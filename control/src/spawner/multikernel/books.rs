//! What the kernel says of everything that it has, whoever made it: for people to look at.

use std::path::Path;

use super::hold::is_ours;
use super::holders::{self, Held};
use super::host_pci::HostPci;
use super::interface::{self, AskError, Interface, Mounted};
use super::lease::console_lent;
use super::record::{Origin, Record};
use super::shared::Made;
use super::taken_over::Known;
use super::transaction;
use super::tree::{Chunk, InstanceTree};
use super::{MARK, Settings};
use crate::api::beside::{
    KernelBooks, KernelInstance, KernelTransaction, PoolChunk, PoolCpu, PoolDevice, SharedMemory,
};

/// Reads it all. `instances`: ours, by which is told what of it is ours.
pub(crate) fn books<'a>(settings: &Settings, instances: &'a [Known]) -> Result<KernelBooks, String> {
    let kernel = Mounted::at(&settings.root);
    if !kernel.is_mounted() {
        return Err(format!("no kernel interface is mounted at {}", settings.root.display()));
    }
    let record = |known: &'a Known| Some((known, known.record(settings).ok().flatten()?));
    let ours: Vec<(&Known, Record)> = instances.iter().filter_map(record).collect();
    let pool = interface::pool_or_none(&kernel).map_err(|error| error.to_string())?;
    let cpu =
        |cpu: &super::PhysicalCpu| PoolCpu { physical: cpu.0, is_free: pool.cpus_available.contains(cpu) };
    let chunk =
        |chunk: &Chunk| PoolChunk { base: chunk.base, bytes: chunk.bytes, numa_node: chunk.numa_node };
    let mut names = interface::instances(&kernel).map_err(|error| error.to_string())?;
    names.sort();
    // Where one tree is not understood nothing is said of any, and the rest is shown all the same.
    let (devices, devices_unknown) = match devices_of_pool(&kernel, settings) {
        Ok(devices) => (devices, None),
        Err(reason) => (Vec::new(), Some(reason)),
    };
    Ok(KernelBooks {
        cpus: pool.cpus.iter().map(cpu).collect(),
        chunks: pool.chunks.iter().map(chunk).collect(),
        devices,
        devices_unknown,
        instances: names.into_iter().map(|name| instance(&kernel, &ours, name)).collect(),
        transactions: transactions(&kernel).map_err(|error| error.to_string())?,
        shared_memory: SharedMemory::default(),
    })
}

/// What kernels have in common with this one. `dir`: where it is noted what was made; `bytes`: how long the pool is.
pub(crate) fn shared_memory(settings: &Settings, dir: &Path, bytes: u64) -> SharedMemory {
    if settings.pool.is_none() {
        return SharedMemory { reason: settings.why_no_pool.clone(), ..SharedMemory::default() };
    }
    match Made::read(dir) {
        Ok(Some(made)) => {
            let (kind, phys) = made.kind();
            SharedMemory {
                kind: Some(kind.into()),
                bytes: made.bytes(),
                phys,
                held_by: made.held_by(),
                reason: None,
            }
        }
        _ => SharedMemory { kind: Some("file".into()), bytes, ..SharedMemory::default() },
    }
}

/// The CPUs of the pool by their physical numbers, each with whether no instance has it.
pub(crate) fn pool_cpus(settings: &Settings) -> Result<Vec<(u32, bool)>, String> {
    let pool = interface::pool_or_none(&Mounted::at(&settings.root)).map_err(|error| error.to_string())?;
    Ok(pool.cpus.iter().map(|cpu| (cpu.0, pool.cpus_available.contains(cpu))).collect())
}

/// The PCI functions of the pool, each with who has it and what this host knows of it.
pub(crate) fn pool_devices(settings: &Settings) -> Result<Vec<PoolDevice>, String> {
    devices_of_pool(&Mounted::at(&settings.root), settings)
}

/// The same, on any kernel.
pub(super) fn devices_of_pool(
    kernel: &impl Interface,
    settings: &Settings,
) -> Result<Vec<PoolDevice>, String> {
    let held = holders::held(kernel).map_err(|error| error.to_string())?;
    let host = HostPci::of(settings);
    let device = |Held { function, by }: Held| {
        let traits = host.traits(function.address);
        PoolDevice {
            address: function.address,
            alias: function.alias,
            held_by: by,
            iommu_group: traits.iommu_group,
            can_reset: traits.can_reset,
        }
    };
    Ok(held.into_iter().map(device).collect())
}

/// What the pool's memory comes to, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PoolMemory {
    pub(crate) total_bytes: u64,
    /// What others have of it than the ledger's instances: other programs' instances, what ours have beyond what the ledger gives them, and buffers.
    pub(crate) others_bytes: u64,
    /// In what memory of a running kernel comes and goes.
    pub(crate) step_bytes: u64,
}

/// What there is. `ours`: by their numbers, how much the ledger gives to instances of ours, in bytes.
pub(crate) fn pool_memory(settings: &Settings, ours: &[(u32, u64)]) -> Result<PoolMemory, String> {
    memory_of_pool(&Mounted::at(&settings.root), ours).map_err(|error| error.to_string())
}

/// The same, on any kernel.
pub(super) fn memory_of_pool(kernel: &impl Interface, ours: &[(u32, u64)]) -> Result<PoolMemory, AskError> {
    let pool = interface::pool_or_none(kernel)?;
    let total_bytes = pool.memory_bytes();
    // Where the map shows nothing, or cannot be read, buffers are not known of.
    let map = interface::map(kernel).unwrap_or_default();
    let (mut all_bytes, mut ours_bytes) = (0_u64, 0_u64);
    for name in interface::instances(kernel)? {
        // Of a name that we could not give; it is another's.
        let Ok(name) = name.parse() else { continue };
        if let Some(tree) = interface::instance(kernel, &name)? {
            all_bytes = all_bytes.saturating_add(tree.memory_bytes);
            let held = ours.iter().find(|(id, _)| *id == u32::from(tree.id.0)).map_or(0, |(_, held)| *held);
            ours_bytes = ours_bytes.saturating_add(tree.memory_bytes.min(held));
        }
    }
    let used = map.free_bytes(&pool.chunks).map_or(all_bytes, |free| total_bytes.saturating_sub(free));
    let others_bytes = used.saturating_sub(ours_bytes);
    Ok(PoolMemory { total_bytes, others_bytes, step_bytes: interface::step_bytes(kernel, &pool) })
}

/// The numbers of all instances that can be read.
pub(super) fn numbers(settings: &Settings) -> Vec<u32> {
    let kernel = Mounted::at(&settings.root);
    let names = interface::instances(&kernel).unwrap_or_default();
    names.iter().filter_map(|name| Some(u32::from(tree(&kernel, name)?.id.0))).collect()
}

/// What an instance has, if that can be read.
fn tree(kernel: &impl Interface, name: &str) -> Option<InstanceTree> {
    let blob = kernel.read(&format!("instances/{name}/device_tree")).ok()?;
    InstanceTree::parse(&blob, name).ok()
}

/// One that cannot be read in part is shown in part: it is another program's, perhaps, of another version.
fn instance(kernel: &impl Interface, ours: &[(&Known, Record)], name: String) -> KernelInstance {
    let tree = tree(kernel, &name);
    let id = tree.as_ref().map(|tree| tree.id);
    let is_it =
        |(_, record): &&(&Known, Record)| record.name.as_str() == name && is_ours(kernel, record) == Ok(true);
    let ours = ours.iter().find(is_it);
    KernelInstance {
        is_ours: ours.is_some(),
        is_taken_over: ours.is_some_and(|(_, record)| record.origin != Origin::Made),
        console_lent_ms: ours
            .and_then(|(known, _)| console_lent(&known.folder))
            .map(|left| left.as_millis() as u64),
        answers: None,
        id: id.map(|id| u32::from(id.0)),
        status: line(kernel, &format!("instances/{name}/status")),
        cpus: tree.iter().flat_map(|tree| &tree.cpus).map(|cpu| cpu.0).collect(),
        devices: tree.iter().flat_map(|tree| tree.functions.addresses()).collect(),
        memory_bytes: tree.map_or(0, |tree| tree.memory_bytes),
        name,
    }
}

fn transactions(kernel: &impl Interface) -> Result<Vec<KernelTransaction>, AskError> {
    let mut names = transaction::transactions(kernel)?;
    names.sort_by_key(|name| name["tx_".len()..].parse::<u64>().unwrap_or(u64::MAX));
    let transaction = |name: String| KernelTransaction {
        status: line(kernel, &format!("overlays/{name}/status")),
        target: line(kernel, &format!("overlays/{name}/instance")),
        is_ours: line(kernel, &format!("overlays/{name}/resources")).starts_with(MARK),
        name,
    };
    Ok(names.into_iter().map(transaction).collect())
}

/// A file of one line; what cannot be read is `?`.
fn line(kernel: &impl Interface, path: &str) -> String {
    let text = kernel.read(path).map(|text| String::from_utf8_lossy(&text).into_owned());
    let is_noise = |c: char| c.is_control() || c.is_whitespace();
    let plain = |c: char| if c.is_control() { '?' } else { c };
    text.map_or_else(|_| "?".into(), |text| text.trim_matches(is_noise).chars().map(plain).collect())
}
