//! The baseline: what is taken from the host when the pool is made.

use super::config::normal_pci_id;
use super::host::Host;
use super::pool::{Chunk, Pool};
use super::tree::{Tree, total_bytes};
use super::{Errno, PAGE_BYTES};

/// As many NUMA nodes as the kernel knows of.
const NODES_MAX: usize = 1024;

/// What a baseline asks for.
#[derive(Debug)]
pub(super) struct Baseline {
    cpus: Vec<u64>,
    memory: Vec<(u64, Option<u32>)>,
    /// PCI id and alias.
    devices: Vec<(String, Option<String>)>,
    warnings: Vec<String>,
}

impl Baseline {
    /// Reads a baseline. It is delivered as one write, so that its length must be what it says.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Errno> {
        if total_bytes(bytes) != Some(bytes.len()) {
            return Err(Errno::INVAL);
        }
        let root = Tree::parse(bytes)?;
        let resources = root.child("resources").ok_or(Errno::INVAL)?;
        if root.child("instances").is_some() || resources.bytes("memory-bytes").is_some() {
            return Err(Errno::INVAL);
        }
        let cpus = resources.u64s("cpus")?.filter(|cpus| !cpus.is_empty()).ok_or(Errno::INVAL)?;
        let mut memory = Vec::new();
        for item in resources.items("memory@") {
            let size = item.u64("size")?.filter(|size| *size > 0 && size.is_multiple_of(PAGE_BYTES));
            memory.push((size.ok_or(Errno::INVAL)?, item.u32("numa-node-id")?));
        }
        match memory.len() {
            0 => return Err(Errno::INVAL),
            count if count > NODES_MAX => return Err(Errno::TOOBIG),
            _ => {}
        }
        let mut baseline = Self { cpus, memory, devices: Vec::new(), warnings: Vec::new() };
        baseline.read_devices(&root, resources)?;
        Ok(baseline)
    }

    fn read_devices(&mut self, root: &Tree, resources: &Tree) -> Result<(), Errno> {
        let Some(devices) = resources.child("devices") else { return Ok(()) };
        for device in &devices.children {
            match device.text("device-type")? {
                Some("pci") => {
                    let pci_id = device.text("pci-id")?.and_then(normal_pci_id).ok_or(Errno::INVAL)?;
                    device.u32("vendor-id")?.ok_or(Errno::INVAL)?;
                    device.u32("device-id")?.ok_or(Errno::INVAL)?;
                    let alias = alias_of(root, &device.name)?;
                    self.devices.push((pci_id, alias));
                }
                Some("platform") => {
                    self.warnings.push(format!("platform device {} is not on this host", device.name));
                }
                other => self.warnings.push(format!("device {} of type {other:?} is skipped", device.name)),
            }
        }
        Ok(())
    }

    /// Takes it all from the host. On EBUSY the pool is there, with what had been moved.
    pub(super) fn take(
        self,
        host: &mut Host,
        pool: &mut Option<Pool>,
        log: &mut Vec<String>,
    ) -> Result<(), Errno> {
        log.extend(self.warnings);
        if let Some(absent) = self.cpus.iter().find(|cpu| !host.has_cpu(**cpu)) {
            log.push(format!("baseline: CPU {absent} is not present"));
            return Err(Errno::NODEV);
        }
        let mut chunks: Vec<Chunk> = Vec::new();
        for (size, node) in self.memory {
            match host.take_memory(size, node) {
                Ok(chunk) => chunks.push(chunk),
                Err(errno) => {
                    chunks.iter().for_each(|chunk| host.free_memory(chunk.range));
                    return Err(errno);
                }
            }
        }
        let pool = pool.insert(Pool { chunks, ..Pool::default() });
        for cpu in self.cpus {
            if let Err(errno) = host.take_cpu(cpu) {
                log.push(format!("baseline: CPU {cpu}: {errno}; initialization incomplete"));
                return Err(Errno::BUSY);
            }
            pool.cpus.push(cpu);
            pool.free_cpu(cpu);
        }
        for (pci_id, alias) in self.devices {
            match host.take_device(&pci_id) {
                Ok(mut device) => {
                    device.alias = alias;
                    pool.devices.push(device);
                }
                Err(errno) => log.push(format!("baseline: device {pci_id}: {errno}; it stays with the host")),
            }
        }
        Ok(())
    }
}

fn alias_of(root: &Tree, device: &str) -> Result<Option<String>, Errno> {
    let Some(aliases) = root.child("aliases") else { return Ok(None) };
    let path = format!("/resources/devices/{device}");
    for (alias, _) in aliases.properties() {
        if aliases.text(alias)? == Some(path.as_str()) {
            return if alias.len() <= 31 { Ok(Some(alias.to_owned())) } else { Err(Errno::INVAL) };
        }
    }
    Ok(None)
}
