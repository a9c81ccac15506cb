//! Builders of the trees that tools write: for tests of the stand-in, and of what runs on it.

use dtoolkit::ToPropertyValue;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};

/// A baseline: CPUs, chunks of memory (bytes, NUMA node), PCI functions.
pub fn baseline(cpus: &[u64], memory: &[(u64, Option<u32>)], devices: &[&str]) -> Vec<u8> {
    let mut tree = DeviceTree::new();
    set(&mut tree.root, "compatible", "linux,multikernel-host");
    let mut resources = node("resources");
    set(&mut resources, "cpus", u64s(cpus));
    for (index, (size, numa_node)) in memory.iter().enumerate() {
        let mut memory = node(&format!("memory@{index}"));
        set(&mut memory, "size", *size);
        numa_node.iter().for_each(|numa_node| set(&mut memory, "numa-node-id", *numa_node));
        resources.add_child(memory);
    }
    let mut all = node("devices");
    for (index, pci_id) in devices.iter().enumerate() {
        let mut device = node(&format!("device{index}"));
        set(&mut device, "device-type", "pci");
        set(&mut device, "pci-id", *pci_id);
        set(&mut device, "vendor-id", 0u32);
        set(&mut device, "device-id", 0u32);
        all.add_child(device);
    }
    resources.add_child(all);
    tree.root.add_child(resources);
    tree.to_dtb()
}

/// An operation of a fragment.
#[derive(Clone, Copy, Debug)]
pub enum Op<'a> {
    /// `instance-create`.
    Create {
        /// Name.
        name: &'a str,
        /// Id, or the next that is free.
        id: Option<u32>,
        /// Memory in bytes.
        memory_bytes: u64,
        /// Physical ids.
        cpus: &'a [u64],
    },
    /// `instance-remove`.
    Remove(&'a str),
    /// `cpu-add`.
    CpuAdd(&'a [u64]),
    /// `cpu-remove`.
    CpuRemove(&'a [u64]),
    /// `memory-add` to an instance: base and size.
    MemoryAdd(u64, u64),
    /// `memory-add` to the pool: size.
    PoolMemoryAdd(u64),
    /// `memory-remove`: base and size.
    MemoryRemove(u64, u64),
    /// `device-add`.
    DeviceAdd(&'a str),
    /// `device-remove`.
    DeviceRemove(&'a str),
    /// An operation that the kernel does not know.
    Unknown(&'a str),
}

/// An overlay: target paths with their operations. `note` is the root's `mk,resources`.
pub fn overlay(note: Option<&str>, fragments: &[(&str, &[Op<'_>])]) -> Vec<u8> {
    let mut tree = DeviceTree::new();
    set(&mut tree.root, "compatible", "linux,multikernel-overlay");
    note.iter().for_each(|note| set(&mut tree.root, "mk,resources", *note));
    for (index, (path, ops)) in fragments.iter().enumerate() {
        let mut fragment = node(&format!("fragment@{index:x}"));
        set(&mut fragment, "target-path", *path);
        let mut overlay = node("__overlay__");
        ops.iter().for_each(|op| overlay.add_child(operation(op)));
        fragment.add_child(overlay);
        tree.root.add_child(fragment);
    }
    tree.to_dtb()
}

fn operation(op: &Op<'_>) -> DeviceTreeNode {
    match *op {
        Op::Create { name, id, memory_bytes, cpus } => {
            let mut create = node("instance-create");
            set(&mut create, "instance-name", name);
            id.iter().for_each(|id| set(&mut create, "id", *id));
            let mut resources = node("resources");
            set(&mut resources, "memory-bytes", memory_bytes);
            set(&mut resources, "cpus", u64s(cpus));
            create.add_child(resources);
            create
        }
        Op::Remove(name) => {
            let mut remove = node("instance-remove");
            set(&mut remove, "instance-name", name);
            remove
        }
        Op::CpuAdd(cpus) => items("cpu-add", "cpu", cpus.iter().map(|cpu| ("reg", u64s(&[*cpu])))),
        Op::CpuRemove(cpus) => items("cpu-remove", "cpu", cpus.iter().map(|cpu| ("reg", u64s(&[*cpu])))),
        Op::MemoryAdd(base, size) => items("memory-add", "memory", [("reg", u64s(&[base, size]))]),
        Op::PoolMemoryAdd(size) => items("memory-add", "memory", [("size", u64s(&[size]))]),
        Op::MemoryRemove(base, size) => items("memory-remove", "memory", [("reg", u64s(&[base, size]))]),
        Op::DeviceAdd(pci_id) => items("device-add", "pci", [("pci-id", text(pci_id))]),
        Op::DeviceRemove(pci_id) => items("device-remove", "pci", [("pci-id", text(pci_id))]),
        Op::Unknown(name) => node(name),
    }
}

fn items<'a>(
    name: &str,
    prefix: &str,
    values: impl IntoIterator<Item = (&'a str, Vec<u8>)>,
) -> DeviceTreeNode {
    let mut operation = node(name);
    for (index, (property, value)) in values.into_iter().enumerate() {
        let mut item = node(&format!("{prefix}@{index}"));
        set(&mut item, property, value);
        operation.add_child(item);
    }
    operation
}

fn node(name: &str) -> DeviceTreeNode {
    DeviceTreeNode::new_unchecked(name)
}

fn set(node: &mut DeviceTreeNode, name: &str, value: impl ToPropertyValue) {
    node.add_property(DeviceTreeProperty::new_unchecked(name, value));
}

fn u64s(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_be_bytes()).collect()
}

fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}
