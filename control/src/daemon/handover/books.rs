//! Where the ledger comes from when the daemon starts: the store, or what this host has.

use std::sync::Arc;

use tombolo_handover::coordinator::Coordinator;
use tombolo_handover::owner::Quarantine;
use tombolo_handover::{Bounds, Kind, Ledger, Limits, Owner, Party, Unit};

use crate::api::beside::PoolDevice;
use crate::meminfo;
use crate::store::{Batch, Store, StoredLedger};
use crate::time::unix_ns;
use crate::topology::HostCpu;

/// The unit in which memory moves, in bytes: what virtio-mem moves on x86-64, and a multiple of any page size there.
pub(crate) const GRANULE_BYTES: u64 = 2 << 20;

/// Ledger and operations, or why there are none.
#[derive(Clone, Debug)]
pub(crate) enum Books {
    /// As they were stored last.
    Kept(Arc<Coordinator>),
    /// They cannot be used: nothing is started or moved.
    Unusable(Arc<str>),
}

/// Of its memory the host keeps this part for itself, unless it is told otherwise.
const HOST_MEMORY_MIN_PART: u64 = 16;

/// What there is to be handed over on this host, besides its memory.
#[derive(Clone, Debug)]
pub(crate) struct Stock {
    /// How much of its memory the host keeps for itself, in MiB; `None`: the default.
    pub(crate) host_memory_min_mib: Option<u64>,
    /// The memory that is set aside for kernels beside this one, in bytes, if it is that which is moved, and not this host's.
    pub(crate) kernels_memory_bytes: Option<u64>,
    /// The CPUs that machines can be lent.
    pub(crate) cpus: CpuStock,
    /// The devices that they can be lent, or kernels beside this one be given.
    pub(crate) devices: Vec<Unit>,
    /// Whether they are set aside for kernels beside this one.
    pub(crate) devices_are_of_kernels: bool,
}

/// The CPUs that machines can be lent.
#[derive(Clone, Debug)]
pub(crate) enum CpuStock {
    /// So many, which share this host's as its scheduler sees fit.
    Shared(u32),
    /// These CPUs of this host, each for one CPU of a machine at a time.
    OfHost(Vec<HostCpu>),
    /// Those set aside for kernels beside this one, by their physical numbers: machines are lent none. Other programs dispose of them as well.
    OfKernels(Vec<u32>),
}

/// What was stored; or, the first time and whenever nothing is in use, what this host has.
pub(super) async fn open(store: &Store, stock: &Stock) -> Result<Coordinator, String> {
    let text = std::fs::read_to_string("/proc/meminfo");
    let text = text.map_err(|error| format!("could not read /proc/meminfo: {error}"))?;
    let host_bytes = meminfo::bytes_of("MemTotal", &text).ok_or("/proc/meminfo does not tell MemTotal")?;
    let found = discover(host_bytes, stock)?;
    if let Some(stored) = store.ledger().map_err(|error| error.to_string())? {
        let (coordinator, orphans) = stored.restore()?;
        if orphans > 0 {
            tracing::error!(orphans, "units of operations that are not in the journal are quarantined");
        }
        let granule_bytes = coordinator.ledger().meta().granule_bytes;
        if granule_bytes != GRANULE_BYTES {
            return Err(format!(
                "it counts memory in steps of {granule_bytes} bytes, and this version in steps of {GRANULE_BYTES}"
            ));
        }
        if is_in_use(&coordinator) {
            return take_up(store, coordinator, &found, stock).await;
        }
        if orphans > 0 || is_of_the_same_stock(coordinator.ledger(), &found) {
            return Ok(coordinator);
        }
        tracing::info!("the ledger was made for other memory, CPUs or devices: it is made anew");
    }
    let begin = Batch::new().begin_ledger(StoredLedger::discovered(&found));
    store.commit(begin).await.map_err(|error| error.to_string())?;
    Ok(Coordinator::new(found))
}

/// A ledger that is in use, with what is new on this host.
async fn take_up(
    store: &Store,
    mut coordinator: Coordinator,
    found: &Ledger,
    stock: &Stock,
) -> Result<Coordinator, String> {
    let memory =
        |ledger: &Ledger| ledger.meta().totals.iter().find(|(kind, _)| *kind == Kind::Memory).copied();
    // Of the memory of kernels what there is now is looked at anew before anything is promised.
    if stock.kernels_memory_bytes.is_none() && memory(coordinator.ledger()) != memory(found) {
        tracing::warn!(
            "the ledger was made for another amount of memory: that stays so until no instance runs"
        );
    }
    for unit in coordinator.out_of_stock(found) {
        tracing::warn!(%unit, "this daemon was started without it; it stays in the ledger until no instance runs");
    }
    for unit in coordinator.changed_stock(found) {
        tracing::warn!(%unit, "its core or NUMA node is another than the ledger says; that stays so until no instance runs");
    }
    let step = coordinator.restock(unix_ns(), found);
    let store_it = |commit| store.commit(Batch::new().ledger_step(commit));
    step.persist_async(store_it).await.map_err(|error| error.to_string())?;
    Ok(coordinator)
}

/// A ledger of this host's memory, all of it the host's own, and of the CPUs and devices that machines can be lent, all of them free.
fn discover(host_bytes: u64, stock: &Stock) -> Result<Ledger, String> {
    // Memory of kernels beside this one is nobody's at first, and none may be set aside yet.
    let bytes = stock.kernels_memory_bytes.unwrap_or_else(|| host_bytes.max(GRANULE_BYTES));
    let granules = bytes / GRANULE_BYTES;
    let of_kernels = stock.kernels_memory_bytes.is_some();
    let kept = stock.host_memory_min_mib.map_or(granules / HOST_MEMORY_MIN_PART, super::granules);
    if kept >= granules && !of_kernels {
        return Err(format!(
            "--host-memory-min keeps all of this host's {} MiB of memory from everybody",
            host_bytes >> 20
        ));
    }
    let holder = if of_kernels { Party::Pool } else { Party::Host };
    let memory = (granules > 0).then(|| (Unit::lot(0, granules, None), holder));
    let cpus: Vec<Unit> = match &stock.cpus {
        // They share nothing that would make it matter which go together.
        CpuStock::Shared(count) => (0..*count).map(|number| Unit::cpu(number, number, None)).collect(),
        CpuStock::OfKernels(cpus) => cpus.iter().map(|cpu| cpu_of_kernels(*cpu)).collect(),
        CpuStock::OfHost(cpus) => cpus.iter().map(|cpu| Unit::cpu(cpu.id, cpu.core, cpu.node)).collect(),
    };
    let devices = stock.devices.iter().cloned();
    // What the host has of CPUs and devices for itself is not in the ledger.
    let none = Bounds::NONE;
    let memory_bounds = if of_kernels { none } else { Bounds { min: kept, ..Bounds::default() } };
    let host = Limits { memory: memory_bounds, cpus: none, devices: none, llc_ways: none };
    let free = cpus.into_iter().chain(devices).map(|unit| (unit, Party::Pool));
    let units = memory.into_iter().chain(free);
    Ledger::discover(GRANULE_BYTES, host, units).map_err(|violation| violation.to_string())
}

/// A CPU that is set aside for kernels beside this one. Where it lies only the kernel that has it could tell.
pub(crate) fn cpu_of_kernels(physical: u32) -> Unit {
    Unit::cpu(physical, physical, None)
}

/// A PCI function that is set aside for kernels beside this one.
pub(crate) fn device_of_kernels(device: &PoolDevice) -> Unit {
    Unit::device(device.address, device.iommu_group, device.can_reset)
}

/// Whether two ledgers are about the same memory, CPUs and devices, whoever has them, and leave the host as much.
fn is_of_the_same_stock(ledger: &Ledger, other: &Ledger) -> bool {
    let discrete = |ledger: &Ledger| -> Vec<Unit> {
        let units = ledger.entries().map(|entry| entry.unit.clone());
        units.filter(|unit| unit.id.kind() != Kind::Memory).collect()
    };
    let (meta, others) = (ledger.meta(), other.meta());
    meta.totals == others.totals && meta.host == others.host && discrete(ledger) == discrete(other)
}

/// Whether anything would be forgotten if the ledger were made anew.
fn is_in_use(coordinator: &Coordinator) -> bool {
    let is_free = |owner: &Owner| {
        matches!(owner, Owner::Host | Owner::Pool | Owner::Quarantined(Quarantine::TakenByOthers))
    };
    coordinator.operations().any(|operation| !operation.phase.is_terminal())
        || coordinator.ledger().entries().any(|entry| !is_free(&entry.owner))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST_BYTES: u64 = 16 << 30;

    fn stock(host_memory_min_mib: Option<u64>) -> Stock {
        let (kernels_memory_bytes, devices) = (None, Vec::new());
        let cpus = CpuStock::Shared(2);
        Stock { host_memory_min_mib, kernels_memory_bytes, cpus, devices, devices_are_of_kernels: false }
    }

    #[test]
    fn the_host_keeps_a_part_of_its_memory_or_what_it_is_told_to() {
        let kept =
            |min| discover(HOST_BYTES, &stock(min)).unwrap().floor(Party::Host, Kind::Memory) * GRANULE_BYTES;
        assert_eq!(kept(None), HOST_BYTES / 16);
        assert_eq!(kept(Some(100)), 100 << 20);
        assert_eq!(kept(Some(0)), 0);
    }

    #[test]
    fn memory_set_aside_for_kernels_is_nobodys_and_the_hosts_is_not_in_their_ledger() {
        let of = |bytes| {
            discover(HOST_BYTES, &Stock { kernels_memory_bytes: Some(bytes), ..stock(Some(1 << 20)) })
        };
        let ledger = of(1 << 30).unwrap();
        assert_eq!(ledger.held(Party::Pool, Kind::Memory) * GRANULE_BYTES, 1 << 30);
        assert_eq!(ledger.held(Party::Host, Kind::Memory), 0);
        assert_eq!(of(0).unwrap().held(Party::Pool, Kind::Memory), 0, "nothing is set aside yet");
    }

    #[test]
    fn a_host_that_is_to_keep_all_of_its_memory_is_a_mistake() {
        let reason = discover(HOST_BYTES, &stock(Some(HOST_BYTES >> 20))).unwrap_err();
        assert!(reason.contains("--host-memory-min") && reason.contains("16384 MiB"), "{reason}");
    }
    #[test]
    fn cpus_of_the_host_keep_their_core_and_node_and_shared_ones_have_none() {
        let cpu = |id, core, node| HostCpu { id, core, package: Some(0), node: Some(node), boot: false };
        let of_host = CpuStock::OfHost(vec![cpu(2, 2, 0), cpu(6, 2, 0), cpu(7, 3, 1)]);
        let found = discover(HOST_BYTES, &Stock { cpus: of_host, ..stock(None) }).unwrap();
        let cpus = |ledger: &Ledger| -> Vec<Unit> {
            let units = ledger.entries().map(|entry| entry.unit.clone());
            units.filter(|unit| unit.id.kind() == Kind::Cpu).collect()
        };
        let expected = [Unit::cpu(2, 2, Some(0)), Unit::cpu(6, 2, Some(0)), Unit::cpu(7, 3, Some(1))];
        assert_eq!(cpus(&found), expected);
        let shared = discover(HOST_BYTES, &stock(None)).unwrap();
        assert_eq!(cpus(&shared), [Unit::cpu(0, 0, None), Unit::cpu(1, 1, None)]);
        assert!(!is_of_the_same_stock(&found, &shared));
    }

    #[test]
    fn ledger_that_knows_a_cpu_by_another_core_is_not_of_the_same_stock() {
        let cpu = |core| HostCpu { id: 2, core, package: None, node: None, boot: false };
        let found = |core| {
            discover(HOST_BYTES, &Stock { cpus: CpuStock::OfHost(vec![cpu(core)]), ..stock(None) }).unwrap()
        };
        assert!(is_of_the_same_stock(&found(1), &found(1)) && !is_of_the_same_stock(&found(1), &found(2)));
    }
}
