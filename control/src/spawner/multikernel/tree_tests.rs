use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use proptest::prelude::*;

use super::*;

fn property(name: &str, numbers: &[u64]) -> DeviceTreeProperty {
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_be_bytes()).collect();
    DeviceTreeProperty::new_unchecked(name, bytes)
}

fn node(name: &str, properties: Vec<DeviceTreeProperty>, children: Vec<DeviceTreeNode>) -> DeviceTreeNode {
    let mut node = DeviceTreeNode::new_unchecked(name);
    properties.into_iter().for_each(|property| node.add_property(property));
    children.into_iter().for_each(|child| node.add_child(child));
    node
}

fn blob(properties: Vec<DeviceTreeProperty>, children: Vec<DeviceTreeNode>) -> Vec<u8> {
    let mut tree = DeviceTree::new();
    tree.root = node("", properties, children);
    tree.to_dtb()
}

fn pool() -> Vec<u8> {
    let chunk = |base: u64, bytes: u64, numa: u32| {
        let properties =
            vec![property("reg", &[base, bytes]), DeviceTreeProperty::new_unchecked("numa-node-id", numa)];
        node(&format!("memory@{base:x}"), properties, vec![])
    };
    let resources = node(
        "resources",
        vec![property("cpus", &[4, 6, 8]), property("cpus-available", &[8]), property("unknown", &[1])],
        vec![
            chunk(0x1_0000_0000, 4 << 30, 0),
            chunk(0x8_0000_0000, 2 << 30, 1),
            node("devices", vec![], vec![]),
        ],
    );
    blob(
        vec![property("memory-granule", &[128 << 20])],
        vec![resources, node("pci@0", vec![], vec![]), node("what-is-this", vec![], vec![])],
    )
}

fn instance(id: u32, memory: Vec<DeviceTreeProperty>) -> Vec<u8> {
    let mut properties = memory;
    properties.push(property("cpus", &[4, 6]));
    let id = DeviceTreeProperty::new_unchecked("id", id);
    blob(vec![id], vec![node("resources", properties, vec![])])
}

#[test]
fn pool_is_read_and_what_is_not_known_is_passed_over() {
    let tree = PoolTree::parse(&pool()).unwrap();
    assert_eq!(tree.cpus, [4, 6, 8].map(PhysicalCpu));
    assert_eq!(tree.cpus_available, [PhysicalCpu(8)]);
    assert_eq!(tree.chunks.len(), 2);
    assert_eq!(tree.chunks[1], Chunk { base: 0x8_0000_0000, bytes: 2 << 30, numa_node: Some(1) });
    assert_eq!(tree.granule_bytes, Some(128 << 20));
    assert_eq!(tree.memory_bytes(), 6 << 30);
}

#[test]
fn kernel_without_a_pool_has_nothing_to_give() {
    assert_eq!(PoolTree::parse(&blob(vec![], vec![])).unwrap(), PoolTree::default());
}

#[test]
fn instance_is_read_and_what_it_lacks_is_named() {
    let tree = InstanceTree::parse(&instance(7, vec![property("memory-bytes", &[1 << 30])]), "web").unwrap();
    assert_eq!((tree.id.0, tree.memory_bytes), (7, 1 << 30));
    assert_eq!(tree.cpus, [4, 6].map(PhysicalCpu));

    let lacks = InstanceTree::parse(&instance(7, vec![]), "web").unwrap_err();
    assert_eq!(lacks, TreeError::Lacks("resources/memory-bytes"));
    let narrow = DeviceTreeProperty::new_unchecked("memory-bytes", 1_u32);
    let shape = InstanceTree::parse(&instance(7, vec![narrow]), "web").unwrap_err().to_string();
    assert!(shape.contains("4 bytes long"), "{shape}");
    let stranger =
        InstanceTree::parse(&instance(4000, vec![property("memory-bytes", &[1])]), "web").unwrap_err();
    assert!(stranger.to_string().contains("4000"), "{stranger}");
}

#[test]
fn tree_of_another_instance_is_not_taken_for_its_own() {
    let memory = node("resources", vec![property("memory-bytes", &[1 << 30])], vec![]);
    let of = |name: &str| {
        let id = DeviceTreeProperty::new_unchecked("id", 7_u32);
        blob(vec![DeviceTreeProperty::new_unchecked("model", name), id], vec![memory.clone()])
    };
    assert_eq!(InstanceTree::parse(&of("web"), "web").unwrap().id.0, 7);
    let error = InstanceTree::parse(&of("db"), "web").unwrap_err().to_string();
    assert!(error.contains("`model` is db"), "{error}");
}

#[test]
fn tree_nested_deeper_than_any_stack_is_read_or_refused() {
    // Header, no reservations, then only BEGIN_NODE tokens with empty names.
    let nodes = 100_000_u32;
    let structure: Vec<u8> = (0..nodes).flat_map(|_| [1_u32.to_be_bytes(), [0; 4]].concat()).collect();
    let total = 56 + structure.len() as u32;
    let header = [0xd00d_feed, total, 56, total, 40, 17, 16, 0, 0, structure.len() as u32];
    let mut blob: Vec<u8> = header.iter().flat_map(|word: &u32| word.to_be_bytes()).collect();
    blob.extend([0; 16]);
    blob.extend(structure);
    let _ = PoolTree::parse(&blob);
    let _ = InstanceTree::parse(&blob, "web");
}

proptest! {
    #[test]
    fn torn_or_changed_trees_never_panic(
        cut in 0_usize..2000,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
    ) {
        for mut blob in [pool(), instance(7, vec![property("memory-bytes", &[1])])] {
            for (index, byte) in &changes {
                let at = index.index(blob.len());
                blob[at] = *byte;
            }
            blob.truncate(blob.len().saturating_sub(cut % 600));
            let _ = PoolTree::parse(&blob);
            let _ = InstanceTree::parse(&blob, "web");
        }
    }

    #[test]
    fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        let _ = PoolTree::parse(&bytes);
        let _ = InstanceTree::parse(&bytes, "web");
    }
}
