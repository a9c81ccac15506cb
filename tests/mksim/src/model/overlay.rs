//! Overlays: what they ask for, in the order it is done.
//!
//! ```text
//! / { fragment@0 { target-path = "/instances/web"; __overlay__ { cpu-add { cpu@4 { reg = <0 4>; }; }; }; }; };
//! ```
//!
//! A fragment that cannot be read is a step that fails: what is before it was done by then.

use super::config::normal_pci_id;
use super::pool::Range;
use super::tree::Tree;
use super::{Errno, PAGE_BYTES};

/// What one item of an operation does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Create(Create),
    Remove {
        name: String,
    },
    CpuAdd {
        owner: Owner,
        cpu: u64,
    },
    CpuRemove {
        owner: Owner,
        cpu: u64,
    },
    ChunkAdd {
        size: u64,
        node: Option<u32>,
    },
    ChunkRemove {
        range: Range,
    },
    RegionAdd {
        name: String,
        range: Range,
    },
    RegionRemove {
        name: String,
        range: Range,
    },
    DeviceAdd {
        owner: Owner,
        pci_id: String,
        alias: Option<String>,
    },
    DeviceRemove {
        owner: Owner,
        pci_id: String,
    },
    /// What could not be read.
    Invalid(Errno),
}

/// Whose resources an operation changes. The pool's are taken from the host, an instance's from the pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Pool,
    Instance(String),
}

/// What an instance is created with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Create {
    pub(super) name: String,
    pub(super) id: Option<u32>,
    pub(super) cpus: Vec<u64>,
    pub(super) memory_bytes: u64,
    pub(super) node: Option<u32>,
    pub(super) devices: Vec<String>,
}

/// What an overlay says besides what is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Overlay {
    /// `target-path` of the first fragment, at most 127 characters.
    pub(super) target: String,
    /// The root's `mk,resources`, at most 255 characters.
    pub(super) resources: String,
    pub(super) steps: Vec<Step>,
}

/// Orders of operations inside a fragment: of an instance, and of the pool, whose memory goes last since CPUs park in it.
const INSTANCE_ORDER: [&str; 8] = [
    "instance-create",
    "memory-remove",
    "memory-add",
    "cpu-remove",
    "cpu-add",
    "device-remove",
    "device-add",
    "instance-remove",
];
const POOL_ORDER: [&str; 8] = [
    "instance-create",
    "cpu-remove",
    "device-remove",
    "memory-remove",
    "memory-add",
    "cpu-add",
    "device-add",
    "instance-remove",
];

impl Overlay {
    /// Reads an overlay whose header was checked. `strict`: names that are not known are errors.
    pub(super) fn parse(bytes: &[u8], strict: bool) -> Self {
        let root = match Tree::parse(bytes) {
            Ok(root) => root,
            Err(errno) => {
                return Self {
                    target: String::new(),
                    resources: "unknown".into(),
                    steps: vec![Step::Invalid(errno)],
                };
            }
        };
        let mut fragments: Vec<(u64, &Tree)> = root
            .children
            .iter()
            .filter_map(|child| {
                let unit = child.name.strip_prefix("fragment@")?;
                Some((u64::from_str_radix(unit, 16).ok()?, child))
            })
            .collect();
        fragments.sort_by_key(|(unit, _)| *unit);
        let path_of = |fragment: &Tree| fragment.text("target-path").ok().flatten().map(str::to_owned);
        let target = fragments.first().and_then(|(_, fragment)| path_of(fragment)).unwrap_or_default();
        let resources = root.text("mk,resources").ok().flatten().unwrap_or("unknown");
        let mut steps: Vec<Step> =
            fragments.iter().flat_map(|(_, fragment)| steps_of(fragment, strict)).collect();
        if fragments.is_empty() {
            steps.push(Step::Invalid(Errno::INVAL));
        }
        Self {
            target: target.chars().take(127).collect(),
            resources: resources.chars().take(255).collect(),
            steps,
        }
    }
}

fn steps_of(fragment: &Tree, strict: bool) -> Vec<Step> {
    let mut steps = Vec::new();
    if let Err(errno) = collect_steps(fragment, strict, &mut steps) {
        steps.push(Step::Invalid(errno));
    }
    steps
}

fn collect_steps(fragment: &Tree, strict: bool, steps: &mut Vec<Step>) -> Result<(), Errno> {
    let path = fragment.text("target-path")?.ok_or(Errno::INVAL)?;
    let overlay = fragment.child("__overlay__").ok_or(Errno::INVAL)?;
    let (owner, order) = match path {
        "/resources" => (Some(Owner::Pool), POOL_ORDER),
        "/instances" => (None, INSTANCE_ORDER),
        _ => {
            let name = path.strip_prefix("/instances/").ok_or(Errno::INVAL)?;
            if name.is_empty() || name.contains('/') {
                return Err(Errno::INVAL);
            }
            (Some(Owner::Instance(name.to_owned())), INSTANCE_ORDER)
        }
    };
    if strict && overlay.children.iter().any(|child| !order.contains(&child.name.as_str())) {
        return Err(Errno::INVAL);
    }
    for name in order {
        let Some(operation) = overlay.child(name) else { continue };
        match (name, &owner) {
            ("instance-create", _) => steps.push(Step::Create(create(operation)?)),
            ("instance-remove", _) => steps.push(Step::Remove { name: instance_name(operation)? }),
            (_, None) => return Err(Errno::INVAL),
            (name, Some(owner)) => items(operation, name, owner, strict, steps)?,
        }
    }
    Ok(())
}

fn items(
    operation: &Tree,
    name: &str,
    owner: &Owner,
    strict: bool,
    steps: &mut Vec<Step>,
) -> Result<(), Errno> {
    let prefix = match name {
        "cpu-add" | "cpu-remove" => "cpu@",
        "memory-add" | "memory-remove" => "memory@",
        _ => "pci@",
    };
    if strict && operation.children.iter().any(|item| !item.name.starts_with(prefix)) {
        return Err(Errno::INVAL);
    }
    for item in operation.items(prefix) {
        steps.push(step(item, name, owner.clone())?);
    }
    Ok(())
}

fn step(item: &Tree, name: &str, owner: Owner) -> Result<Step, Errno> {
    let range = || -> Result<Range, Errno> {
        let reg = item.u64s("reg")?.ok_or(Errno::INVAL)?;
        match reg[..] {
            [base, size] if size > 0 && base.checked_add(size).is_some() => Ok(Range { base, size }),
            _ => Err(Errno::INVAL),
        }
    };
    let pci_id = || item.text("pci-id")?.and_then(normal_pci_id).ok_or(Errno::INVAL);
    Ok(match (name, owner) {
        ("cpu-add", owner) => Step::CpuAdd { owner, cpu: item.cpu()? },
        ("cpu-remove", owner) => Step::CpuRemove { owner, cpu: item.cpu()? },
        ("memory-add", Owner::Pool) => {
            let size = item.u64("size")?.ok_or(Errno::INVAL)?;
            if item.bytes("reg").is_some() || size == 0 || !size.is_multiple_of(PAGE_BYTES) {
                return Err(Errno::INVAL);
            }
            Step::ChunkAdd { size, node: item.u32("numa-node-id")? }
        }
        ("memory-remove", Owner::Pool) => Step::ChunkRemove { range: range()? },
        ("memory-add", Owner::Instance(name)) => Step::RegionAdd { name, range: range()? },
        ("memory-remove", Owner::Instance(name)) => Step::RegionRemove { name, range: range()? },
        ("device-add", owner) => {
            let alias = item.text("alias")?.filter(|_| owner == Owner::Pool);
            if alias.is_some_and(|alias| alias.len() > 31) {
                return Err(Errno::INVAL);
            }
            Step::DeviceAdd { pci_id: pci_id()?, alias: alias.map(str::to_owned), owner }
        }
        (_, owner) => Step::DeviceRemove { owner, pci_id: pci_id()? },
    })
}

fn instance_name(operation: &Tree) -> Result<String, Errno> {
    let name = operation.text("instance-name")?.ok_or(Errno::INVAL)?;
    if name.is_empty() || name.contains('/') || name == "." || name == ".." {
        return Err(Errno::INVAL);
    }
    Ok(name.to_owned())
}

fn create(operation: &Tree) -> Result<Create, Errno> {
    let name = instance_name(operation)?;
    let resources = operation.child("resources").ok_or(Errno::INVAL)?;
    let id = operation.u32("id")?;
    if id == Some(0) || id.is_some_and(|id| i32::try_from(id).is_err()) {
        return Err(Errno::INVAL);
    }
    let memory_bytes = resources.u64("memory-bytes")?.unwrap_or(0);
    if !memory_bytes.is_multiple_of(PAGE_BYTES) {
        return Err(Errno::INVAL);
    }
    let first_node =
        |nodes: &[u8]| nodes.get(..4).and_then(|node| Some(u32::from_be_bytes(node.try_into().ok()?)));
    let node = match resources.bytes("numa-nodes") {
        Some(nodes) => Some(first_node(nodes).ok_or(Errno::INVAL)?),
        None => None,
    };
    let devices = resources.child("devices").map(|devices| &devices.children[..]).unwrap_or_default();
    // A device that cannot be read is one that cannot be had.
    let pci_id = |device: &Tree| {
        let text = device.text("pci-id").ok().flatten().and_then(normal_pci_id);
        text.unwrap_or_else(|| device.name.clone())
    };
    Ok(Create {
        name,
        id,
        cpus: resources.u64s("cpus")?.unwrap_or_default(),
        memory_bytes,
        node,
        devices: devices.iter().map(pci_id).collect(),
    })
}

impl Step {
    /// What `rmdir` of the transaction does about it; nothing where it cannot be undone.
    pub(super) fn reverse(&self) -> Option<Self> {
        Some(match self.clone() {
            Self::Create(create) => Self::Remove { name: create.name },
            Self::CpuAdd { owner, cpu } => Self::CpuRemove { owner, cpu },
            Self::CpuRemove { owner, cpu } => Self::CpuAdd { owner, cpu },
            // At another base, if that is where there is room.
            Self::ChunkRemove { range } => Self::ChunkAdd { size: range.size, node: None },
            Self::RegionAdd { name, range } => Self::RegionRemove { name, range },
            Self::RegionRemove { name, range } => Self::RegionAdd { name, range },
            Self::DeviceAdd { owner, pci_id, .. } => Self::DeviceRemove { owner, pci_id },
            Self::DeviceRemove { owner, pci_id } => Self::DeviceAdd { owner, pci_id, alias: None },
            Self::Remove { .. } | Self::ChunkAdd { .. } | Self::Invalid(_) => return None,
        })
    }
}
