//! What was taken from the host, and what of it is free.

use serde::Serialize;

use super::Errno;
use super::config::PciFunction;

/// A range of physical addresses, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Range {
    /// First address.
    pub base: u64,
    /// Length, at least 1.
    pub size: u64,
}

impl Range {
    /// First address after it.
    pub fn end(&self) -> u64 {
        self.base.saturating_add(self.size)
    }

    pub(super) fn contains(&self, other: &Self) -> bool {
        self.base <= other.base && other.end() <= self.end()
    }

    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.base < other.end() && other.base < self.end()
    }
}

/// Memory of the pool that lies together.
#[derive(Clone, Debug, Serialize)]
pub struct Chunk {
    /// Where it is.
    pub range: Range,
    /// NUMA node it came from.
    pub node: u32,
}

/// The pool. It ends when it has no CPU, chunk or device left.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Pool {
    /// Physical ids of all its CPUs, those of instances too, in the order they came.
    pub cpus: Vec<u64>,
    /// Those that no instance has.
    pub cpus_free: Vec<u64>,
    /// Its memory.
    pub chunks: Vec<Chunk>,
    /// What of its memory instances and heap buffers have, ascending.
    pub used: Vec<Range>,
    /// PCI functions that no instance has.
    pub devices: Vec<PciFunction>,
    /// PCI functions that instances have.
    pub devices_lent: Vec<PciFunction>,
    /// Buffers of the DMA heap.
    pub heap: Vec<Range>,
}

impl Pool {
    pub(super) fn is_empty(&self) -> bool {
        self.cpus.is_empty()
            && self.chunks.is_empty()
            && self.devices.is_empty()
            && self.devices_lent.is_empty()
    }

    /// What is free, ascending inside each chunk, with the node it is of.
    pub(super) fn free(&self) -> Vec<(Range, u32)> {
        let mut free = Vec::new();
        for chunk in &self.chunks {
            let mut base = chunk.range.base;
            for used in self.used.iter().filter(|used| chunk.range.contains(used)) {
                if used.base > base {
                    free.push((Range { base, size: used.base - base }, chunk.node));
                }
                base = used.end();
            }
            if base < chunk.range.end() {
                free.push((Range { base, size: chunk.range.end() - base }, chunk.node));
            }
        }
        free
    }

    /// Takes the first range that fits, of this node if one is named. `align` is a power of two.
    pub(super) fn take_memory(&mut self, size: u64, align: u64, node: Option<u32>) -> Result<Range, Errno> {
        let fits = |(free, of): &(Range, u32)| {
            let base = free.base.checked_next_multiple_of(align)?;
            let wanted = Range { base, size };
            let right_node = node.is_none_or(|node| node == *of);
            (right_node && base.checked_add(size).is_some() && free.contains(&wanted)).then_some(wanted)
        };
        let range = self.free().iter().find_map(fits).ok_or(Errno::NOMEM)?;
        self.mark(range);
        Ok(range)
    }

    /// Takes exactly this range: EBUSY if it is not free, EINVAL if it is not of the pool.
    pub(super) fn take_range(&mut self, range: Range) -> Result<Range, Errno> {
        if range.size == 0 || !self.chunks.iter().any(|chunk| chunk.range.contains(&range)) {
            return Err(Errno::INVAL);
        }
        if self.used.iter().any(|used| used.overlaps(&range)) {
            return Err(Errno::BUSY);
        }
        self.mark(range);
        Ok(range)
    }

    fn mark(&mut self, range: Range) {
        let at = self.used.partition_point(|used| used.base < range.base);
        self.used.insert(at, range);
    }

    pub(super) fn free_memory(&mut self, range: Range) {
        self.used.retain(|used| *used != range);
    }

    /// Takes a CPU: ENODEV if it is not of the pool, EBUSY if it is not free.
    pub(super) fn take_cpu(&mut self, cpu: u64) -> Result<(), Errno> {
        if !self.cpus.contains(&cpu) {
            return Err(Errno::NODEV);
        }
        let at = self.cpus_free.iter().position(|free| *free == cpu).ok_or(Errno::BUSY)?;
        self.cpus_free.remove(at);
        Ok(())
    }

    /// Takes a CPU back, unless it is free already.
    pub(super) fn free_cpu(&mut self, cpu: u64) {
        if self.cpus.contains(&cpu) && !self.cpus_free.contains(&cpu) {
            let at = self.cpus_free.partition_point(|free| *free < cpu);
            self.cpus_free.insert(at, cpu);
        }
    }

    /// Takes a function: EBUSY if an instance has it, ENODEV if it is not of the pool.
    pub(super) fn take_device(&mut self, pci_id: &str) -> Result<PciFunction, Errno> {
        let Some(at) = self.devices.iter().position(|device| device.pci_id == pci_id) else {
            let lent = self.devices_lent.iter().any(|device| device.pci_id == pci_id);
            return Err(if lent { Errno::BUSY } else { Errno::NODEV });
        };
        let device = self.devices.remove(at);
        self.devices_lent.push(device.clone());
        Ok(device)
    }

    pub(super) fn free_device(&mut self, pci_id: &str) {
        if let Some(at) = self.devices_lent.iter().position(|device| device.pci_id == pci_id) {
            let device = self.devices_lent.remove(at);
            self.devices.push(device);
        }
    }
}
