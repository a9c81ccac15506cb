//! What a machine is made of.

use std::str::FromStr;

use serde::Serialize;

use super::quirk::Quirks;

/// The machine before anything is given to the pool.
#[derive(Clone, Debug, Serialize)]
pub struct MachineConfig {
    /// CPUs, at least 1. Logical CPU 0 (physical 0) is the boot CPU, which never leaves the host. Default 8.
    pub cpus: u32,
    /// Memory of all nodes together, in bytes. Default 16 GiB.
    pub memory_bytes: u64,
    /// NUMA nodes, at least 1. CPUs and memory are split evenly. Default 1.
    pub numa_nodes: u32,
    /// PCI functions. Default none.
    pub devices: Vec<PciFunction>,
    /// Unit in which memory of running kernels moves, in bytes, a power of two. Default 128 MiB.
    pub memory_granule_bytes: u64,
    /// What of the kernel's traps is on.
    pub quirks: Quirks,
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self {
            cpus: 8,
            memory_bytes: 16 << 30,
            numa_nodes: 1,
            devices: Vec::new(),
            memory_granule_bytes: 128 << 20,
            quirks: Quirks::default(),
        }
    }
}

impl MachineConfig {
    /// Physical id of a logical CPU: the first half have even ids and the rest odd ones, as on GCE.
    pub fn physical_cpu(&self, logical: u32) -> u64 {
        let half = self.cpus.div_ceil(2);
        if logical < half { u64::from(logical) * 2 } else { u64::from(logical - half) * 2 + 1 }
    }

    /// All physical CPU ids, in logical order.
    pub fn physical_cpus(&self) -> impl Iterator<Item = u64> {
        (0..self.cpus).map(|logical| self.physical_cpu(logical))
    }

    /// Where the memory of a node begins, and how much it is, in bytes.
    pub(super) fn node_memory(&self, node: u32) -> (u64, u64) {
        let nodes = u64::from(self.numa_nodes.max(1));
        let size = self.memory_bytes / nodes / self.memory_granule_bytes * self.memory_granule_bytes;
        (MEMORY_BASE + u64::from(node) * size, size)
    }
}

/// Where the memory of node 0 begins: above what 32-bit devices reach.
const MEMORY_BASE: u64 = 4 << 30;

/// A PCI function: `DDDD:BB:SS.F=vvvv:dddd`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PciFunction {
    /// `DDDD:BB:SS.F`, lower case.
    pub pci_id: String,
    /// Vendor and device, as in configuration space.
    pub vendor_id: u32,
    /// See `vendor_id`.
    pub device_id: u32,
    /// Stable name that a spawned kernel gives it; at most 31 characters.
    pub alias: Option<String>,
}

impl FromStr for PciFunction {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not DDDD:BB:SS.F=vvvv:dddd");
        let (pci_id, ids) = text.split_once('=').ok_or_else(wrong)?;
        let (vendor, device) = ids.split_once(':').ok_or_else(wrong)?;
        let hex = |text: &str| u32::from_str_radix(text, 16).map_err(|_| wrong());
        let pci_id = normal_pci_id(pci_id).ok_or_else(wrong)?;
        Ok(Self { pci_id, vendor_id: hex(vendor)?, device_id: hex(device)?, alias: None })
    }
}

/// Domain, bus, slot and function of a PCI id.
pub(super) fn pci_parts(text: &str) -> Option<[u32; 4]> {
    let (domain, rest) = text.split_once(':')?;
    let (bus, rest) = rest.split_once(':')?;
    let (slot, function) = rest.split_once('.')?;
    let part = |text: &str, max: u32| {
        let value = u32::from_str_radix(text, 16).ok()?;
        (value <= max && !text.starts_with('+')).then_some(value)
    };
    Some([part(domain, 0xffff)?, part(bus, 0xff)?, part(slot, 0x1f)?, part(function, 7)?])
}

/// The usual form of a PCI id.
pub(super) fn normal_pci_id(text: &str) -> Option<String> {
    let [domain, bus, slot, function] = pci_parts(text)?;
    Some(format!("{domain:04x}:{bus:02x}:{slot:02x}.{function:x}"))
}
