//! Trees that the kernel makes when they are read.

use std::collections::BTreeMap;

use dtoolkit::ToPropertyValue;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};

use super::config::{MachineConfig, PciFunction, pci_parts};
use super::instance::Instance;
use super::pool::Pool;
use super::quirk::Quirk;

/// The pool's tree; no bytes at all where there is no pool.
pub(super) fn pool_tree(config: &MachineConfig, pool: Option<&Pool>) -> Vec<u8> {
    let Some(pool) = pool else { return Vec::new() };
    let mut tree = DeviceTree::new();
    set(&mut tree.root, "compatible", "multikernel-v1");
    set(&mut tree.root, "#address-cells", 2u32);
    set(&mut tree.root, "#size-cells", 2u32);
    set(&mut tree.root, "id", 0u32);
    set(&mut tree.root, "memory-granule", config.memory_granule_bytes);
    let mut resources = node("resources");
    set(&mut resources, "cpus", u64s(&pool.cpus));
    set(&mut resources, "cpus-available", u64s(&pool.cpus_free));
    for chunk in &pool.chunks {
        let mut memory = node(&format!("memory@{:x}", chunk.range.base));
        set(&mut memory, "device_type", "memory");
        set(&mut memory, "reg", u64s(&[chunk.range.base, chunk.range.size]));
        set(&mut memory, "numa-node-id", chunk.node);
        resources.add_child(memory);
    }
    resources.add_child(node("devices"));
    tree.root.add_child(resources);
    let mut devices = pool.devices.clone();
    if config.quirks.has(Quirk::PoolTreeShowsLentDevices) {
        devices.extend(pool.devices_lent.iter().cloned());
    }
    add_devices(&mut tree.root, &devices);
    tree.to_dtb()
}

/// An instance's tree.
pub(super) fn instance_tree(instance: &Instance) -> Vec<u8> {
    let mut tree = DeviceTree::new();
    set(&mut tree.root, "compatible", "multikernel-v1");
    set(&mut tree.root, "model", instance.name.as_str());
    set(&mut tree.root, "#address-cells", 2u32);
    set(&mut tree.root, "#size-cells", 2u32);
    set(&mut tree.root, "id", instance.id);
    let mut resources = node("resources");
    if let Some(first) = instance.regions.first() {
        set(&mut resources, "memory-base", first.range.base);
    }
    set(&mut resources, "memory-bytes", instance.memory_bytes());
    set(&mut resources, "cpus", u64s(&instance.cpus));
    resources.add_child(node("devices"));
    tree.root.add_child(resources);
    add_devices(&mut tree.root, &instance.devices);
    tree.to_dtb()
}

/// A function, with its slot and function number.
type Slot<'a> = (&'a PciFunction, u32, u32);

/// `/aliases`, and one root bus for each bus that has a device.
fn add_devices(root: &mut DeviceTreeNode, devices: &[PciFunction]) {
    let mut aliases = node("aliases");
    let mut buses: BTreeMap<(u32, u32), Vec<Slot<'_>>> = BTreeMap::new();
    for device in devices {
        if let Some([domain, bus, slot, function]) = pci_parts(&device.pci_id) {
            buses.entry((domain, bus)).or_default().push((device, slot, function));
        }
    }
    for (index, ((domain, bus), functions)) in buses.into_iter().enumerate() {
        let bridge_name = format!("pci@{index:x}");
        let mut bridge = node(&bridge_name);
        set(&mut bridge, "compatible", "multikernel,pci-host-bridge");
        set(&mut bridge, "device_type", "pci");
        set(&mut bridge, "#address-cells", 3u32);
        set(&mut bridge, "#size-cells", 2u32);
        set(&mut bridge, "linux,pci-domain", domain);
        set(&mut bridge, "bus-range", [bus, bus]);
        set(&mut bridge, "reg", u64s(&[CONFIG_SPACE + (u64::from(bus) << 20), 1 << 20]));
        let window = WINDOW + (u32::try_from(index).unwrap_or(0) << 20);
        set(&mut bridge, "ranges", [0x0200_0000, 0, window, 0, window, 0, 1 << 20]);
        for (device, slot, function) in functions {
            let name = format!("{}@{slot:x},{function:x}", node_name(&device.pci_id));
            let mut leaf = node(&name);
            set(&mut leaf, "reg", [bus << 16 | slot << 11 | function << 8, 0, 0, 0, 0]);
            set(&mut leaf, "vendor-id", device.vendor_id);
            set(&mut leaf, "device-id", device.device_id);
            bridge.add_child(leaf);
            if let Some(alias) = &device.alias {
                set(&mut aliases, alias, format!("/{bridge_name}/{name}").as_str());
            }
        }
        root.add_child(bridge);
    }
    root.add_child(aliases);
}

/// Where configuration space of bus 0 and the windows of devices are said to be.
const CONFIG_SPACE: u64 = 0xe000_0000;
const WINDOW: u32 = 0xc000_0000;

fn node_name(pci_id: &str) -> String {
    format!("pci_{}", pci_id.replace([':', '.'], "_"))
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
