//! What a spawned kernel does about resources: its side of the books, which may differ from the host's.

use std::collections::VecDeque;

use serde::Serialize;

use super::Errno;
use super::config::pci_parts;
use super::pool::Range;
use super::quirk::{Quirk, Quirks};

/// How long a kernel takes to do what a message asks, in nanoseconds.
pub const GUEST_LATENCY_NS: u64 = 2_000_000;

/// A kernel takes the end of the memory that it booted with for its own up to a multiple of this, in bytes.
pub(super) const PADDING_BYTES: u64 = 64 << 20;

/// What is asked of a spawned kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum MessageOp {
    /// Bring a CPU online.
    CpuAdd,
    /// Take a CPU offline.
    CpuRemove,
    /// Bring memory online.
    MemoryAdd,
    /// Take memory offline.
    MemoryRemove,
    /// Find a PCI function and bind it.
    DeviceAdd,
    /// Let go of a PCI function.
    DeviceRemove,
    /// Park all CPUs. User space is not asked.
    Shutdown,
}

/// What a message is about. Memory is named by its base.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resource {
    /// Physical id of a CPU.
    Cpu(u64),
    /// First address of a range, and its size in bytes, which acknowledgements do not carry.
    Memory {
        /// First address.
        base: u64,
        /// In bytes.
        size: u64,
    },
    /// `DDDD:BB:SS.F`.
    Device(String),
    /// The kernel as a whole.
    Kernel,
}

/// A message, or the acknowledgement of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// What is asked.
    pub op: MessageOp,
    /// Of what.
    pub resource: Resource,
    /// Tells messages apart. The kernel itself sends 0 in all of them.
    pub sequence: u64,
}

impl Message {
    /// Whether an acknowledgement of the other would be taken for one of this.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        let same_resource = match (&self.resource, &other.resource) {
            (Resource::Memory { base: one, .. }, Resource::Memory { base: other, .. }) => one == other,
            (one, other) => one == other,
        };
        self.op == other.op && same_resource
    }
}

/// The spawned kernel's side.
#[derive(Clone, Debug, Serialize)]
pub struct Guest {
    /// Whether it hangs: it reads no messages.
    pub is_frozen: bool,
    /// CPUs it has online. The first is the one it booted on.
    pub cpus: Vec<u64>,
    /// Bases of the memory it has online. The first holds its image.
    pub memory: Vec<u64>,
    /// Whether pages of the memory that was added are pinned, so that none of it can leave.
    pub is_pinned: bool,
    /// Behind the memory that it booted with: it takes nothing that lies there.
    pub(super) padding: Option<Range>,
    /// PCI functions it has bound.
    pub devices: Vec<String>,
    /// Domain and bus of those that it booted with.
    pub(super) buses: Vec<[u32; 2]>,
    /// What it has not done yet, with the time it will be done.
    pub(super) inbox: VecDeque<(u64, Message)>,
}

impl Guest {
    pub(super) fn new(cpus: Vec<u64>, memory: &[Range], devices: Vec<String>) -> Self {
        let padding = memory.first().and_then(|first| {
            let end = first.end().checked_next_multiple_of(PADDING_BYTES)?;
            (end > first.end()).then(|| Range { base: first.end(), size: end - first.end() })
        });
        let memory = memory.iter().map(|range| range.base).collect();
        let buses = devices.iter().filter_map(|device| bus_of(device)).collect();
        Self {
            is_frozen: false,
            cpus,
            memory,
            is_pinned: false,
            padding,
            devices,
            buses,
            inbox: VecDeque::new(),
        }
    }

    pub(super) fn receive(&mut self, message: Message, now_ns: u64) {
        self.inbox.push_back((now_ns.saturating_add(GUEST_LATENCY_NS), message));
    }

    /// When it is done with its next message.
    pub(super) fn due_ns(&self) -> Option<u64> {
        self.inbox.front().filter(|_| !self.is_frozen).map(|(due_ns, _)| *due_ns)
    }

    /// Does what a message asks. What is as wanted already is not an error, unless a quirk says so.
    pub(super) fn carry_out(&mut self, message: &Message, quirks: &Quirks) -> Result<(), Errno> {
        let twice_fails = quirks.has(Quirk::MemoryTwiceFails);
        let twice_fails_for_devices = quirks.has(Quirk::DeviceTwiceFails);
        match (message.op, &message.resource) {
            (MessageOp::CpuAdd, Resource::Cpu(cpu)) => add(&mut self.cpus, cpu),
            (MessageOp::CpuRemove, Resource::Cpu(cpu)) => {
                if self.cpus.first() == Some(cpu) {
                    return Err(Errno::INVAL);
                }
                self.cpus.retain(|own| own != cpu);
            }
            (MessageOp::MemoryAdd, Resource::Memory { base, size }) => {
                let range = Range { base: *base, size: *size };
                if self.padding.is_some_and(|padding| padding.overlaps(&range)) {
                    return Err(Errno::INVAL);
                }
                if twice_fails && self.memory.contains(base) {
                    return Err(Errno::EXIST);
                }
                add(&mut self.memory, base);
            }
            (MessageOp::MemoryRemove, Resource::Memory { base, .. }) => {
                if self.memory.first() == Some(base) || self.is_pinned && self.memory.contains(base) {
                    return Err(Errno::BUSY);
                }
                if twice_fails && !self.memory.contains(base) {
                    return Err(Errno::INVAL);
                }
                self.memory.retain(|own| own != base);
            }
            (MessageOp::DeviceAdd, Resource::Device(pci_id)) => {
                if quirks.has(Quirk::DeviceNeedsKnownBus)
                    && !bus_of(pci_id).is_some_and(|bus| self.buses.contains(&bus))
                {
                    return Err(Errno::NODEV);
                }
                if twice_fails_for_devices && self.devices.contains(pci_id) {
                    return Err(Errno::BUSY);
                }
                add(&mut self.devices, pci_id);
            }
            (MessageOp::DeviceRemove, Resource::Device(pci_id)) => {
                if twice_fails_for_devices && !self.devices.contains(pci_id) {
                    return Err(Errno::NODEV);
                }
                self.devices.retain(|own| own != pci_id);
            }
            (MessageOp::Shutdown, _) => {}
            _ => return Err(Errno::INVAL),
        }
        Ok(())
    }
}

fn bus_of(pci_id: &str) -> Option<[u32; 2]> {
    pci_parts(pci_id).map(|[domain, bus, ..]| [domain, bus])
}

fn add<T: PartialEq + Clone>(all: &mut Vec<T>, one: &T) {
    if !all.contains(one) {
        all.push(one.clone());
    }
}
