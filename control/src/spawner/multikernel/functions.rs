//! PCI functions in the kernel's device trees, read with suspicion.
//!
//! ```text
//! / { aliases { uplink = "/pci@0/ethernet@0,1"; };
//!     pci@0 { linux,pci-domain = <0>; ethernet@0,1 { reg = <0x3b0100 0 0 0 0>; }; }; };
//! ```
//!
//! A function is a node below a host bridge, with a `reg` that says where it is (as every PCI device tree does) or a `pci-id` (as overlays do); which of the
//! two a version of the kernel writes is not known, so either is read, and if both are there they must agree. Bridges between are gone through. What is
//! not understood makes the *functions* of that tree unknown, and nothing else of it: CPUs and memory move on.

use dtoolkit::fdt::FdtNode;
use dtoolkit::{Node as _, Property as _};
use tombolo_handover::PciAddress;

use super::tree::{TreeError, narrow};

/// A PCI function that a tree tells of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Function {
    pub(super) address: PciAddress,
    /// The name that spawned kernels give to what they find in it.
    pub(super) alias: Option<String>,
}

/// Those of a tree, if they could be understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Functions {
    known: Vec<Function>,
    trouble: Option<TreeError>,
}

impl Functions {
    pub(super) fn all(&self) -> Result<&[Function], TreeError> {
        match &self.trouble {
            None => Ok(&self.known),
            Some(error) => Err(error.clone()),
        }
    }

    /// Whether this one is among them.
    pub(super) fn has(&self, address: PciAddress) -> Result<bool, TreeError> {
        Ok(self.all()?.iter().any(|function| function.address == address))
    }

    /// Their addresses; none if they could not be understood.
    pub(super) fn addresses(&self) -> Vec<PciAddress> {
        self.known.iter().map(|function| function.address).collect()
    }
}

/// Bridges below each other that are gone through: PCI has 256 buses, and a machine no such row of them.
const DEPTH_MAX: usize = 8;

/// More functions than any pool is made of.
const FUNCTIONS_MAX: usize = 1024;

/// Longer than any name that a device tree gives to a function.
const NAME_BYTES_MAX: usize = 128;

/// All functions below the host bridges of a tree.
pub(super) fn functions(root: &FdtNode<'_>) -> Functions {
    let mut found: Vec<(Function, String)> = Vec::new();
    for bridge in root.children().filter(|node| node.name().starts_with("pci@")) {
        if let Err(error) = below(&bridge, &mut found) {
            return Functions { known: Vec::new(), trouble: Some(error) };
        }
    }
    if let Some(aliases) = root.child("aliases") {
        for alias in aliases.properties() {
            let Some(path) = text(alias.value()) else { continue };
            if let Some((function, _)) = found.iter_mut().find(|(_, of)| of == path) {
                function.alias = Some(alias.name().to_owned());
            }
        }
    }
    Functions { known: found.into_iter().map(|(function, _)| function).collect(), trouble: None }
}

/// Those below one host bridge, with their paths.
fn below(bridge: &FdtNode<'_>, found: &mut Vec<(Function, String)>) -> Result<(), TreeError> {
    must_be_named_shortly(bridge)?;
    let domain = narrow(bridge, "linux,pci-domain", "pci@N/linux,pci-domain")?;
    // Bridges whose children are to be looked at, with their paths and how deep they are.
    let mut waiting = vec![(*bridge, format!("/{}", bridge.name()), 0)];
    while let Some((parent, path, depth)) = waiting.pop() {
        for node in parent.children() {
            must_be_named_shortly(&node)?;
            let path = format!("{path}/{}", node.name());
            if node.property("bus-range").is_some() {
                if depth + 1 == DEPTH_MAX {
                    return Err(TreeError::Shape {
                        what: "pci@N",
                        found: format!("more than {DEPTH_MAX} bridges deep"),
                        expected: "those of one machine",
                    });
                }
                waiting.push((node, path, depth + 1));
                continue;
            }
            let address = address(&node, domain)?;
            if found.len() == FUNCTIONS_MAX {
                return Err(TreeError::Shape {
                    what: "pci@N",
                    found: format!("one with more than {FUNCTIONS_MAX} functions"),
                    expected: "those of one machine",
                });
            }
            if found.iter().any(|(function, _)| function.address == address) {
                return Err(TreeError::Shape {
                    what: "pci@N",
                    found: format!("one with {address} twice"),
                    expected: "one with each function once",
                });
            }
            found.push((Function { address, alias: None }, path));
        }
    }
    Ok(())
}

/// The paths of all that is below a node are as long as its name at least.
fn must_be_named_shortly(node: &FdtNode<'_>) -> Result<(), TreeError> {
    match node.name().len() {
        0..=NAME_BYTES_MAX => Ok(()),
        bytes => Err(TreeError::Shape {
            what: "pci@N",
            found: format!("one with a name of {bytes} bytes"),
            expected: "names as PCI has them",
        }),
    }
}

fn address(node: &FdtNode<'_>, domain: Option<u32>) -> Result<PciAddress, TreeError> {
    let shape = |what, found: String, expected| TreeError::Shape { what, found, expected };
    let told = match node.property("pci-id") {
        None => None,
        Some(property) => {
            let read = text(property.value()).and_then(|text| text.parse::<PciAddress>().ok());
            let found = || String::from_utf8_lossy(property.value()).chars().take(32).collect();
            let expected = "such as 0000:01:00.0";
            Some(read.ok_or_else(|| shape("pci@N/../pci-id", found(), expected))?)
        }
    };
    let placed = match node.property("reg") {
        None => None,
        Some(property) => {
            let value = property.value();
            let (what, expected) = ("pci@N/../reg", "the place of a function in groups of 20 bytes");
            let bytes = value.first_chunk::<4>().filter(|_| value.len().is_multiple_of(20));
            let bytes = bytes.ok_or_else(|| shape(what, format!("{} bytes long", value.len()), expected))?;
            Some(place(
                u32::from_be_bytes(*bytes),
                domain.ok_or(TreeError::Lacks("pci@N/linux,pci-domain"))?,
            )?)
        }
    };
    match (told, placed) {
        (Some(told), Some(placed)) if told != placed => {
            Err(shape("pci@N/../pci-id", told.to_string(), "the place that its `reg` says"))
        }
        (Some(address), _) | (None, Some(address)) => Ok(address),
        (None, None) => Err(TreeError::Lacks("pci@N/../reg")),
    }
}

/// The first cell of a PCI address: bus, device and function, below bits that say what kind of space is meant.
fn place(cell: u32, domain: u32) -> Result<PciAddress, TreeError> {
    let [_, bus, low, _] = cell.to_be_bytes();
    let domain = u16::try_from(domain).map_err(|_| TreeError::Shape {
        what: "pci@N/linux,pci-domain",
        found: format!("{domain:#x}"),
        expected: "a number of 2 bytes",
    })?;
    Ok(PciAddress { domain, bus, device: low >> 3, function: low & 7 })
}

/// What a property holds that is one string.
fn text(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value.strip_suffix(b"\0")?).ok()
}

#[cfg(test)]
mod tests {
    use dtoolkit::fdt::Fdt;
    use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
    use proptest::prelude::*;

    use super::*;

    fn text_property(name: &str, value: &str) -> DeviceTreeProperty {
        DeviceTreeProperty::new_unchecked(name, value)
    }

    fn cells(name: &str, cells: &[u32]) -> DeviceTreeProperty {
        let bytes: Vec<u8> = cells.iter().flat_map(|cell| cell.to_be_bytes()).collect();
        DeviceTreeProperty::new_unchecked(name, bytes)
    }

    fn node(
        name: &str,
        properties: Vec<DeviceTreeProperty>,
        children: Vec<DeviceTreeNode>,
    ) -> DeviceTreeNode {
        let mut node = DeviceTreeNode::new_unchecked(name);
        properties.into_iter().for_each(|property| node.add_property(property));
        children.into_iter().for_each(|child| node.add_child(child));
        node
    }

    fn leaf(name: &str, cell: u32) -> DeviceTreeNode {
        node(name, vec![cells("reg", &[cell, 0, 0, 0, 0])], vec![])
    }

    fn bridge(name: &str, domain: u32, children: Vec<DeviceTreeNode>) -> DeviceTreeNode {
        node(name, vec![cells("linux,pci-domain", &[domain]), cells("bus-range", &[0, 255])], children)
    }

    fn read(children: Vec<DeviceTreeNode>) -> Functions {
        let mut tree = DeviceTree::new();
        tree.root = node("", vec![], children);
        functions(&Fdt::new(&tree.to_dtb()).unwrap().root())
    }

    fn addresses(functions: &Functions) -> Vec<String> {
        functions.all().unwrap().iter().map(|function| function.address.to_string()).collect()
    }

    #[test]
    fn functions_are_read_with_their_names_by_place_or_by_id() {
        let by_id = node("x@2", vec![text_property("pci-id", "0001:02:03.4")], vec![]);
        let both = {
            let mut both = leaf("y@3", 0x0002_0300);
            both.add_property(text_property("pci-id", "0001:02:00.3"));
            both
        };
        let aliases = vec![
            text_property("uplink", "/pci@0/ethernet@0,1"),
            text_property("serial0", "/soc/uart"),
            cells("odd", &[1]),
        ];
        let found = read(vec![
            node("aliases", aliases, vec![]),
            bridge("pci@0", 0, vec![leaf("ethernet@0,1", 0x0200_0000 | 0x3b_0100)]),
            bridge("pci@1", 1, vec![by_id, both]),
            node("pci@2", vec![], vec![]),
        ]);
        assert_eq!(addresses(&found), ["0000:3b:00.1", "0001:02:03.4", "0001:02:00.3"]);
        assert_eq!(found.all().unwrap()[0].alias.as_deref(), Some("uplink"));
        assert_eq!(found.all().unwrap()[1].alias, None);
    }

    #[test]
    fn functions_behind_bridges_are_found() {
        let inner = node(
            "pci@1c,0",
            vec![cells("bus-range", &[1, 1]), cells("reg", &[0xe000, 0, 0, 0, 0])],
            vec![leaf("nvme@0,0", 0x01_0000)],
        );
        assert_eq!(addresses(&read(vec![bridge("pci@0", 0, vec![inner])])), ["0000:01:00.0"]);
    }

    #[test]
    fn functions_that_are_not_understood_are_unknown_and_not_none() {
        let lacks = |children| read(children).all().unwrap_err().to_string();
        let without_domain = node("pci@0", vec![], vec![leaf("x@0", 0x01_0000)]);
        assert!(lacks(vec![without_domain]).contains("linux,pci-domain"));
        assert!(lacks(vec![bridge("pci@0", 0, vec![node("x@0", vec![], vec![])])]).contains("reg"));
        let short = node("x@0", vec![cells("reg", &[1, 2])], vec![]);
        assert!(lacks(vec![bridge("pci@0", 0, vec![short])]).contains("8 bytes long"));
        let nonsense = node("x@0", vec![text_property("pci-id", "01:00")], vec![]);
        assert!(lacks(vec![bridge("pci@0", 0, vec![nonsense])]).contains("01:00"));
        let mut two_places = leaf("x@0", 0x01_0000);
        two_places.add_property(text_property("pci-id", "0000:02:00.0"));
        assert!(lacks(vec![bridge("pci@0", 0, vec![two_places])]).contains("0000:02:00.0"));
        let twice = vec![leaf("x@0", 0x01_0000), leaf("y@0", 0x01_0000)];
        assert!(lacks(vec![bridge("pci@0", 0, twice)]).contains("0000:01:00.0 twice"));
        assert!(lacks(vec![bridge("pci@0", 1 << 16, vec![leaf("x@0", 0)])]).contains("0x10000"));
        assert!(
            lacks(vec![bridge("pci@0", 0, vec![leaf(&format!("x@{}", "0".repeat(127)), 0)])])
                .contains("129 bytes")
        );
        let long_bridge = bridge(&format!("pci@{}", "0".repeat(125)), 0, vec![leaf("x@0", 0)]);
        assert!(lacks(vec![long_bridge]).contains("129 bytes"));
        let many = (0..1025).map(|at| leaf(&format!("x@{at:x}"), at << 8)).collect();
        assert!(lacks(vec![bridge("pci@0", 0, many)]).contains("more than 1024"));
        let deep = (0..10).fold(leaf("x@0", 0), |inner, _| bridge("pci@1", 0, vec![inner]));
        assert!(lacks(vec![deep]).contains("bridges deep"));
    }

    proptest! {
        #[test]
        fn what_was_changed_on_the_way_never_panics(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        ) {
            let mut tree = DeviceTree::new();
            tree.root = node("", vec![], vec![bridge("pci@0", 0, vec![leaf("x@0", 0x01_0000), leaf("y@0", 0x02_0000)])]);
            let mut blob = tree.to_dtb();
            for (index, byte) in &changes {
                let at = index.index(blob.len());
                blob[at] = *byte;
            }
            if let Ok(fdt) = Fdt::new(&blob) {
                let _ = functions(&fdt.root()).all();
            }
        }
    }
}
