//! What the kernel says of itself: its device trees, read with suspicion.
//!
//! They are generated anew at every read. Properties and nodes that are not known are none of our business; what is needed and is not there,
//! or has another shape, is an error that says which. Nothing here recurses: a tree may be nested as deep as it likes.

use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::{Node, Property};

use super::functions::{Functions, functions};
use super::ids::{InstanceId, PhysicalCpu};

/// What the pool has: `device_tree` of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PoolTree {
    /// All CPUs of the pool, lent to instances or not.
    pub(super) cpus: Vec<PhysicalCpu>,
    /// Those that no instance has.
    pub(super) cpus_available: Vec<PhysicalCpu>,
    /// All memory of the pool.
    pub(super) chunks: Vec<Chunk>,
    /// The unit in which memory moves, in bytes, where this kernel tells.
    pub(super) granule_bytes: Option<u64>,
    /// PCI functions of the pool that no instance has. Whether those that instances have are among them, too, versions of the kernel may differ.
    pub(super) functions: Functions,
}

/// Contiguous physical memory of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) base: u64,
    pub(super) bytes: u64,
    pub(super) numa_node: Option<u32>,
}

/// What an instance has: `instances/NAME/device_tree`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct InstanceTree {
    pub(super) id: InstanceId,
    pub(super) memory_bytes: u64,
    /// The first is the one that it boots on.
    pub(super) cpus: Vec<PhysicalCpu>,
    /// Its PCI functions.
    pub(super) functions: Functions,
}

/// A device tree of the kernel that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TreeError {
    /// Not a device tree, or torn.
    #[error("it is not a whole device tree ({0})")]
    Torn(String),
    /// Something that must be there is not.
    #[error("it has no `{0}`: this kernel speaks a form of the interface that is not known here")]
    Lacks(&'static str),
    /// The whole of it is of an earlier form.
    #[error(
        "it tells of the pool's memory as `{0}`: an earlier form of the interface, which kerf 0.1 spoke and which is not spoken here"
    )]
    Old(&'static str),
    /// Something is there in another shape.
    #[error("its `{what}` is {found}, not {expected}")]
    Shape { what: &'static str, found: String, expected: &'static str },
}

impl PoolTree {
    pub(super) fn parse(blob: &[u8]) -> Result<Self, TreeError> {
        let fdt = parse(blob)?;
        let root = fdt.root();
        // Before a baseline there is nothing to tell of.
        let Some(resources) = root.child("resources") else { return Ok(Self::default()) };
        for old in ["memory-base", "memory-bytes"] {
            if resources.property(old).is_some() {
                return Err(TreeError::Old(old));
            }
        }
        let chunk = |node: FdtNode<'_>| {
            let [base, bytes] = wide::<2>(&node, "reg", "memory@N/reg")?;
            let numa_node = narrow(&node, "numa-node-id", "memory@N/numa-node-id")?;
            Ok(Chunk { base, bytes, numa_node })
        };
        let is_memory = |node: &FdtNode<'_>| node.name().starts_with("memory@");
        Ok(Self {
            cpus: cpus(&resources, "cpus", "resources/cpus")?.unwrap_or_default(),
            cpus_available: cpus(&resources, "cpus-available", "resources/cpus-available")?
                .unwrap_or_default(),
            chunks: resources.children().filter(is_memory).map(chunk).collect::<Result<_, TreeError>>()?,
            granule_bytes: match root.property("memory-granule") {
                Some(_) => {
                    Some(wide::<1>(&root, "memory-granule", "memory-granule")?[0]).filter(|bytes| *bytes > 0)
                }
                None => None,
            },
            functions: functions(&root),
        })
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        self.chunks.iter().fold(0, |sum, chunk| sum.saturating_add(chunk.bytes))
    }
}

impl InstanceTree {
    /// Reads the tree of the instance of this name.
    pub(super) fn parse(blob: &[u8], name: &str) -> Result<Self, TreeError> {
        let fdt = parse(blob)?;
        let root = fdt.root();
        if let Some(model) = root.property("model")
            && model.value() != [name.as_bytes(), b"\0"].concat()
        {
            let found = String::from_utf8_lossy(model.value()).trim_end_matches('\0').to_owned();
            return Err(TreeError::Shape { what: "model", found, expected: "the name of the instance" });
        }
        let id = narrow(&root, "id", "id")?.ok_or(TreeError::Lacks("id"))?;
        let bad_id =
            |reason| TreeError::Shape { what: "id", found: reason, expected: "the number of an instance" };
        let id = u16::try_from(id).map_err(|error| error.to_string()).and_then(InstanceId::try_from);
        let resources = root.child("resources").ok_or(TreeError::Lacks("resources"))?;
        Ok(Self {
            id: id.map_err(bad_id)?,
            memory_bytes: wide::<1>(&resources, "memory-bytes", "resources/memory-bytes")?[0],
            cpus: cpus(&resources, "cpus", "resources/cpus")?.unwrap_or_default(),
            functions: functions(&root),
        })
    }
}

/// The longest device tree that the kernel makes.
const BYTES_MAX: usize = 1 << 20;

fn parse(blob: &[u8]) -> Result<Fdt<'_>, TreeError> {
    if blob.len() > BYTES_MAX {
        return Err(TreeError::Torn(format!("{} bytes, more than any", blob.len())));
    }
    Fdt::new(blob).map_err(|error| TreeError::Torn(error.to_string()))
}

fn cpus(node: &FdtNode<'_>, name: &str, what: &'static str) -> Result<Option<Vec<PhysicalCpu>>, TreeError> {
    let Some(property) = node.property(name) else { return Ok(None) };
    let value = property.value();
    let (numbers, rest) = value.as_chunks::<8>();
    if !rest.is_empty() {
        let found = format!("{} bytes long", value.len());
        return Err(TreeError::Shape { what, found, expected: "a list of numbers of 8 bytes" });
    }
    let cpu = |bytes: &[u8; 8]| {
        let number = u64::from_be_bytes(*bytes);
        u32::try_from(number).map(PhysicalCpu).map_err(|_| TreeError::Shape {
            what,
            found: format!("{number:#x}"),
            expected: "a CPU's number",
        })
    };
    numbers.iter().map(cpu).collect::<Result<_, _>>().map(Some)
}

fn wide<const N: usize>(node: &FdtNode<'_>, name: &str, what: &'static str) -> Result<[u64; N], TreeError> {
    let property = node.property(name).ok_or(TreeError::Lacks(what))?;
    let value = property.value();
    let (numbers, rest) = value.as_chunks::<8>();
    match <&[[u8; 8]; N]>::try_from(numbers) {
        Ok(numbers) if rest.is_empty() => Ok(numbers.map(u64::from_be_bytes)),
        _ => Err(TreeError::Shape {
            what,
            found: format!("{} bytes long", value.len()),
            expected: "made of numbers of 8 bytes",
        }),
    }
}

pub(super) fn narrow(node: &FdtNode<'_>, name: &str, what: &'static str) -> Result<Option<u32>, TreeError> {
    let Some(property) = node.property(name) else { return Ok(None) };
    let value = property.value();
    let bytes = <[u8; 4]>::try_from(value).map_err(|_| TreeError::Shape {
        what,
        found: format!("{} bytes long", value.len()),
        expected: "a number of 4 bytes",
    })?;
    Ok(Some(u32::from_be_bytes(bytes)))
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
