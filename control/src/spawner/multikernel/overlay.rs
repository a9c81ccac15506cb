//! What is asked of the kernel: one intent, as the device tree overlay that says so.
//!
//! Written to `overlays/new` of the kernel's file system. Only the format with `target-path` is spoken (kernels before that are told apart by
//! [`super::tree`]). The kernel skips without a word what it does not know, so nothing here is spelled twice: the names of operations and items
//! are the constants below, and `dtc` reads back what is built in the tests.

use std::borrow::Cow;

use super::ids::{Alias, InstanceId, InstanceName, PhysicalCpu};
use super::regions::Span;
use super::tree::Chunk;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use serde::{Deserialize, Serialize};
use tombolo_handover::PciAddress;

/// The longest overlay that reaches the kernel whole: it takes a write page by page, and takes the first page for all of it.
pub(super) const BYTES_MAX: usize = 4096;

/// The root property that carries our nonce, and comes back in `tx_N/resources`.
pub(super) const NONCE: &str = "mk,resources";

/// What is wanted of the kernel, in one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Intent {
    /// A new instance, with memory and CPUs out of the pool.
    Create(NewInstance),
    /// An instance that is not loaded gives back all that it has.
    Remove(InstanceName),
    /// A CPU goes from the pool to an instance, or back, whether a kernel runs in it or not.
    InstanceCpu { name: InstanceName, change: Change, cpu: PhysicalCpu },
    /// A whole region of memory goes from the pool to an instance, or back.
    InstanceMemory { name: InstanceName, change: Change, span: Span },
    /// A PCI function goes from the pool to an instance, or back, whether a kernel runs in it or not.
    InstanceDevice { name: InstanceName, change: Change, function: PciAddress },
    /// CPUs go from the host to the pool, or back.
    PoolCpus { change: Change, cpus: Vec<PhysicalCpu> },
    /// Memory goes from the host to the pool, wherever the kernel finds it.
    PoolMemoryAdd { bytes: u64 },
    /// A whole chunk of memory goes from the pool to the host.
    PoolMemoryRemove { chunk: Chunk },
    /// A PCI function goes from the host to the pool.
    PoolDeviceAdd { function: PciAddress, alias: Option<Alias> },
    /// A PCI function goes from the pool to the host.
    PoolDeviceRemove { function: PciAddress },
}

/// Which way units go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Change {
    /// To it.
    Add,
    /// From it.
    Remove,
}

/// An instance to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NewInstance {
    pub(super) name: InstanceName,
    pub(super) id: InstanceId,
    pub(super) memory_bytes: u64,
    /// The first is the one that it boots on.
    pub(super) cpus: Vec<PhysicalCpu>,
}

/// An overlay that the kernel would not get whole.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "it needs an overlay of {bytes} bytes, and the kernel takes {BYTES_MAX} at once: ask for less at a time"
)]
pub(super) struct TooLong {
    pub(super) bytes: usize,
}

impl Intent {
    /// The overlay, with a nonce by which its transaction is found again.
    pub(super) fn overlay(&self, nonce: &str) -> Result<Vec<u8>, TooLong> {
        let mut tree = DeviceTree::new();
        text(&mut tree.root, "compatible", "linux,multikernel-overlay");
        text(&mut tree.root, NONCE, nonce);
        let mut fragment = node("fragment@0");
        text(&mut fragment, "target-path", &self.target_path());
        let mut overlay = node("__overlay__");
        overlay.add_child(self.operation());
        fragment.add_child(overlay);
        tree.root.add_child(fragment);
        let blob = tree.to_dtb();
        if blob.len() > BYTES_MAX { Err(TooLong { bytes: blob.len() }) } else { Ok(blob) }
    }

    fn target_path(&self) -> Cow<'static, str> {
        match self {
            Self::Create(_) | Self::Remove(_) => "/instances".into(),
            Self::InstanceCpu { name, .. }
            | Self::InstanceMemory { name, .. }
            | Self::InstanceDevice { name, .. } => format!("/instances/{name}").into(),
            Self::PoolCpus { .. }
            | Self::PoolMemoryAdd { .. }
            | Self::PoolMemoryRemove { .. }
            | Self::PoolDeviceAdd { .. }
            | Self::PoolDeviceRemove { .. } => "/resources".into(),
        }
    }

    fn operation(&self) -> DeviceTreeNode {
        match self {
            Self::Create(new) => create(new),
            Self::Remove(instance) => {
                let mut operation = node("instance-remove");
                text(&mut operation, "instance-name", instance.as_str());
                operation
            }
            Self::InstanceCpu { change, cpu, .. } => operation("cpu", *change, [cpu_item(cpu)]),
            Self::PoolCpus { change, cpus } => operation("cpu", *change, cpus.iter().map(cpu_item)),
            Self::PoolMemoryAdd { bytes } => {
                let mut item = node("memory@0");
                wide(&mut item, "size", &[*bytes]);
                operation("memory", Change::Add, [item])
            }
            Self::PoolMemoryRemove { chunk } => {
                operation("memory", Change::Remove, [memory_item(chunk.base, chunk.bytes)])
            }
            Self::InstanceMemory { change, span, .. } => {
                operation("memory", *change, [memory_item(span.base, span.bytes)])
            }
            Self::InstanceDevice { change, function, .. } => {
                operation("device", *change, [pci_item(*function)])
            }
            Self::PoolDeviceAdd { function, alias } => {
                let mut item = pci_item(*function);
                alias.iter().for_each(|alias| text(&mut item, "alias", alias.as_str()));
                operation("device", Change::Add, [item])
            }
            Self::PoolDeviceRemove { function } => operation("device", Change::Remove, [pci_item(*function)]),
        }
    }
}

/// The device tree that makes the first pool.
pub(super) fn baseline(cpus: &[PhysicalCpu], memory_bytes: u64) -> Vec<u8> {
    let mut tree = DeviceTree::new();
    text(&mut tree.root, "compatible", "linux,multikernel-host");
    let mut resources = node("resources");
    let numbers: Vec<u64> = cpus.iter().map(|cpu| u64::from(cpu.0)).collect();
    wide(&mut resources, "cpus", &numbers);
    let mut memory = node("memory@0");
    wide(&mut memory, "size", &[memory_bytes]);
    resources.add_child(memory);
    tree.root.add_child(resources);
    tree.to_dtb()
}

fn create(new: &NewInstance) -> DeviceTreeNode {
    let mut operation = node("instance-create");
    text(&mut operation, "instance-name", new.name.as_str());
    operation.add_property(DeviceTreeProperty::new_unchecked("id", u32::from(new.id.0)));
    let mut resources = node("resources");
    wide(&mut resources, "memory-bytes", &[new.memory_bytes]);
    let cpus: Vec<u64> = new.cpus.iter().map(|cpu| u64::from(cpu.0)).collect();
    wide(&mut resources, "cpus", &cpus);
    operation.add_child(resources);
    operation
}

fn operation(unit: &str, change: Change, items: impl IntoIterator<Item = DeviceTreeNode>) -> DeviceTreeNode {
    let verb = match change {
        Change::Add => "add",
        Change::Remove => "remove",
    };
    let mut operation = node(&format!("{unit}-{verb}"));
    for item in items {
        operation.add_child(item);
    }
    operation
}

fn cpu_item(cpu: &PhysicalCpu) -> DeviceTreeNode {
    let mut item = node(&format!("cpu@{:x}", cpu.0));
    wide(&mut item, "reg", &[u64::from(cpu.0)]);
    item
}

fn memory_item(base: u64, bytes: u64) -> DeviceTreeNode {
    let mut item = node(&format!("memory@{base:x}"));
    wide(&mut item, "reg", &[base, bytes]);
    item
}

/// Neither `driver` nor `flags` are told: which of its drivers takes a function the spawned kernel finds out, as always, and no flag is known to be used.
fn pci_item(function: PciAddress) -> DeviceTreeNode {
    let mut item = node("pci@0");
    text(&mut item, "pci-id", &function.to_string());
    item
}

/// All names here are ours and valid.
fn node(name: &str) -> DeviceTreeNode {
    DeviceTreeNode::new_unchecked(name)
}

fn text(node: &mut DeviceTreeNode, name: &str, value: &str) {
    node.add_property(DeviceTreeProperty::new_unchecked(name, value));
}

fn wide(node: &mut DeviceTreeNode, name: &str, values: &[u64]) {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_be_bytes()).collect();
    node.add_property(DeviceTreeProperty::new_unchecked(name, bytes));
}

#[cfg(test)]
#[path = "overlay_tests.rs"]
mod tests;
