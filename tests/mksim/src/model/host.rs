//! What the host has besides the pool.

use serde::Serialize;

use super::Errno;
use super::config::{MachineConfig, PciFunction};
use super::pool::{Chunk, Range};

/// The host's own CPUs, memory and devices.
#[derive(Clone, Debug, Serialize)]
pub struct Host {
    /// Physical ids of the CPUs it runs on.
    pub cpus: Vec<u64>,
    /// PCI functions it drives.
    pub devices: Vec<PciFunction>,
    /// Memory it gave away.
    pub memory_given: Vec<Range>,
    #[serde(skip)]
    all_cpus: Vec<u64>,
    #[serde(skip)]
    nodes: Vec<Range>,
    #[serde(skip)]
    align: u64,
}

impl Host {
    pub(super) fn new(config: &MachineConfig) -> Self {
        let cpus: Vec<u64> = config.physical_cpus().collect();
        let node = |node| {
            let (base, size) = config.node_memory(node);
            Range { base, size }
        };
        Self {
            all_cpus: cpus.clone(),
            cpus,
            devices: config.devices.clone(),
            memory_given: Vec::new(),
            nodes: (0..config.numa_nodes.max(1)).map(node).collect(),
            align: config.memory_granule_bytes,
        }
    }

    pub(super) fn has_cpu(&self, cpu: u64) -> bool {
        self.all_cpus.contains(&cpu)
    }

    /// Takes a CPU out of the host: ENODEV if there is none, EINVAL for the boot CPU, EBUSY if it is not the host's.
    pub(super) fn take_cpu(&mut self, cpu: u64) -> Result<(), Errno> {
        if !self.has_cpu(cpu) {
            return Err(Errno::NODEV);
        }
        if self.all_cpus.first() == Some(&cpu) {
            return Err(Errno::INVAL);
        }
        let at = self.cpus.iter().position(|own| *own == cpu).ok_or(Errno::BUSY)?;
        self.cpus.remove(at);
        Ok(())
    }

    pub(super) fn free_cpu(&mut self, cpu: u64) {
        if !self.cpus.contains(&cpu) {
            self.cpus.push(cpu);
        }
    }

    pub(super) fn take_device(&mut self, pci_id: &str) -> Result<PciFunction, Errno> {
        let at = self.devices.iter().position(|own| own.pci_id == pci_id).ok_or(Errno::NODEV)?;
        Ok(self.devices.remove(at))
    }

    pub(super) fn free_device(&mut self, device: PciFunction) {
        self.devices.push(device);
    }

    /// Takes memory that lies together, of one node. The host keeps an eighth of each node, at its start.
    pub(super) fn take_memory(&mut self, size: u64, node: Option<u32>) -> Result<Chunk, Errno> {
        if node.is_some_and(|node| node as usize >= self.nodes.len()) {
            return Err(Errno::INVAL);
        }
        let right = |index: u32| node.is_none_or(|node| node == index);
        for (index, range) in (0..).zip(&self.nodes).filter(|(index, _)| right(*index)) {
            let mut base = (range.base + range.size / 8).next_multiple_of(self.align);
            while base.checked_add(size).is_some_and(|end| end <= range.end()) {
                let wanted = Range { base, size };
                let Some(taken) = self.memory_given.iter().find(|taken| taken.overlaps(&wanted)) else {
                    self.memory_given.push(wanted);
                    return Ok(Chunk { range: wanted, node: index });
                };
                base = taken.end().next_multiple_of(self.align);
            }
        }
        Err(Errno::NOMEM)
    }

    pub(super) fn free_memory(&mut self, range: Range) {
        self.memory_given.retain(|taken| *taken != range);
    }

    /// System memory of each node, those parts that are the pool's included.
    pub(super) fn nodes(&self) -> &[Range] {
        &self.nodes
    }
}
