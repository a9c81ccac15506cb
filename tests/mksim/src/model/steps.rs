//! The operations themselves: at once where no kernel runs, in two halves where one has to be asked.

use super::guest::{Message, MessageOp, Resource};
use super::instance::{Instance, State};
use super::machine::{Effect, Machine};
use super::overlay::{Create, Owner, Step};
use super::pool::{Pool, Range};
use super::quirk::Quirk;
use super::work::Waiting;
use super::{Errno, ITEM_TIMEOUT_NS};

impl Machine {
    /// Does a step, or its first half if a spawned kernel has to be asked.
    pub(super) fn begin(&mut self, step: &Step, now_ns: u64) -> Result<Option<Waiting>, Errno> {
        if let Step::Invalid(errno) = step {
            return Err(*errno);
        }
        if self.is_kexec_locked() {
            return Err(Errno::BUSY);
        }
        match step.clone() {
            Step::Create(create) => self.create(create).map(|()| None),
            Step::Remove { name } => self.remove(&name).map(|()| None),
            Step::CpuAdd { owner: Owner::Pool, cpu } => {
                let pool = self.pool.as_mut().ok_or(Errno::PERM)?;
                self.host.take_cpu(cpu)?;
                pool.cpus.push(cpu);
                pool.free_cpu(cpu);
                Ok(None)
            }
            Step::CpuRemove { owner: Owner::Pool, cpu } => {
                let pool = self.pool.as_mut().ok_or(Errno::PERM)?;
                pool.take_cpu(cpu)?;
                pool.cpus.retain(|own| *own != cpu);
                self.host.free_cpu(cpu);
                Ok(None)
            }
            Step::ChunkAdd { size, node } => {
                let pool = self.pool.as_mut().ok_or(Errno::PERM)?;
                pool.chunks.push(self.host.take_memory(size, node)?);
                Ok(None)
            }
            Step::ChunkRemove { range } => self.remove_chunk(range).map(|()| None),
            Step::DeviceAdd { owner: Owner::Pool, pci_id, alias } => {
                let pool = self.pool.as_mut().ok_or(Errno::PERM)?;
                let mut device = self.host.take_device(&pci_id)?;
                device.alias = alias;
                pool.devices.push(device);
                Ok(None)
            }
            Step::DeviceRemove { owner: Owner::Pool, pci_id } => {
                let pool = self.pool.as_mut().ok_or(Errno::PERM)?;
                let mut device = pool.take_device(&pci_id)?;
                pool.devices_lent.retain(|lent| lent.pci_id != pci_id);
                device.alias = None;
                self.host.free_device(device);
                Ok(None)
            }
            _ => self.begin_on_instance(step, now_ns),
        }
    }

    fn begin_on_instance(&mut self, step: &Step, now_ns: u64) -> Result<Option<Waiting>, Errno> {
        let name = step.instance().ok_or(Errno::INVAL)?;
        let (first_fit, granule) = (self.has(Quirk::FirstFitBase), self.config.memory_granule_bytes);
        let shortage_warns = self.has(Quirk::DeviceShortageWarns);
        let instance = self.instances.get(name).ok_or(Errno::NOENT)?;
        let runs = instance.guest.is_some();
        let pool = self.pool.as_mut().ok_or(Errno::PERM)?;
        let (op, resource) = match step {
            Step::CpuAdd { cpu, .. } => {
                pool.take_cpu(*cpu)?;
                (MessageOp::CpuAdd, Resource::Cpu(*cpu))
            }
            Step::CpuRemove { cpu, .. } => {
                if !instance.cpus.contains(cpu) {
                    return Err(Errno::NODEV);
                }
                (MessageOp::CpuRemove, Resource::Cpu(*cpu))
            }
            Step::RegionAdd { range, .. } => {
                let aligned = range.base.is_multiple_of(granule) && range.size.is_multiple_of(granule);
                if runs && !aligned || !range.size.is_multiple_of(super::PAGE_BYTES) {
                    return Err(Errno::INVAL);
                }
                let align = if runs { granule } else { super::PAGE_BYTES };
                let taken = if first_fit {
                    pool.take_memory(range.size, align, None)?
                } else {
                    pool.take_range(*range)?
                };
                // The spawned kernel is told of the range that was named, wherever the host's allocation is.
                self.grow(name, taken);
                (MessageOp::MemoryAdd, Resource::Memory { base: range.base, size: range.size })
            }
            Step::RegionRemove { range, .. } => {
                let index = instance.regions.iter().position(|region| region.range == *range);
                if index.ok_or(Errno::INVAL)? == 0 && instance.loaded.is_some() {
                    return Err(Errno::BUSY);
                }
                (MessageOp::MemoryRemove, Resource::Memory { base: range.base, size: range.size })
            }
            Step::DeviceAdd { pci_id, .. } => {
                match pool.take_device(pci_id) {
                    Ok(_) => {}
                    Err(errno) if shortage_warns => {
                        let line = format!("device {pci_id} of {name}: {errno}. Continuing without it");
                        self.log(line);
                        return Ok(None);
                    }
                    Err(errno) => return Err(errno),
                }
                (MessageOp::DeviceAdd, Resource::Device(pci_id.clone()))
            }
            Step::DeviceRemove { pci_id, .. } => {
                if !instance.devices.iter().any(|device| device.pci_id == *pci_id) {
                    return Err(Errno::NODEV);
                }
                (MessageOp::DeviceRemove, Resource::Device(pci_id.clone()))
            }
            _ => return Err(Errno::INVAL),
        };
        if runs {
            return Ok(Some(self.ask(step.clone(), op, resource, now_ns)));
        }
        self.settle(step, Ok(()))?;
        Ok(None)
    }

    /// Sends the message about a step.
    fn ask(&mut self, step: Step, op: MessageOp, resource: Resource, now_ns: u64) -> Waiting {
        self.messages += 1;
        let message = Message { op, resource, sequence: self.messages };
        let name = step.instance().unwrap_or_default().to_owned();
        let mut id = 0;
        if let Some(instance) = self.instances.get_mut(&name) {
            id = instance.id;
            if let Some(guest) = &mut instance.guest {
                guest.receive(message.clone(), now_ns);
            }
        }
        let bounded = self.has(Quirk::ItemTimesOut);
        let deadline_ns = if bounded { now_ns.saturating_add(ITEM_TIMEOUT_NS) } else { u64::MAX };
        Waiting { id, message, deadline_ns, step }
    }

    /// The second half of a step on an instance. On an error what was taken for it goes back to the pool.
    pub(super) fn settle(&mut self, step: &Step, outcome: Result<(), Errno>) -> Result<(), Errno> {
        let (Some(name), Some(pool)) = (step.instance(), self.pool.as_mut()) else { return outcome };
        let Some(instance) = self.instances.get_mut(name) else { return outcome.and(Err(Errno::NOENT)) };
        match (step, outcome) {
            (Step::CpuAdd { cpu, .. }, Ok(())) => instance.cpus.push(*cpu),
            (Step::CpuAdd { cpu, .. }, Err(_)) => pool.free_cpu(*cpu),
            (Step::CpuRemove { cpu, .. }, Ok(())) => {
                instance.cpus.retain(|own| own != cpu);
                pool.free_cpu(*cpu);
            }
            (Step::RegionAdd { .. }, Err(_)) => {
                if let Some(region) = instance.regions.pop() {
                    pool.free_memory(region.range);
                }
            }
            (Step::RegionRemove { range, .. }, Ok(())) => {
                instance.regions.retain(|region| region.range != *range);
                pool.free_memory(*range);
            }
            (Step::DeviceAdd { pci_id, .. }, Ok(())) => {
                let lent = pool.devices_lent.iter().find(|device| device.pci_id == *pci_id);
                instance.devices.extend(lent.cloned());
            }
            (Step::DeviceAdd { pci_id, .. }, Err(_)) => pool.free_device(pci_id),
            (Step::DeviceRemove { pci_id, .. }, Ok(())) => {
                instance.devices.retain(|device| device.pci_id != *pci_id);
                pool.free_device(pci_id);
            }
            _ => {}
        }
        outcome
    }

    fn grow(&mut self, name: &str, range: Range) {
        if let Some(instance) = self.instances.get_mut(name) {
            instance.add_region(range);
        }
    }

    fn remove_chunk(&mut self, range: Range) -> Result<(), Errno> {
        let pool = self.pool.as_mut().ok_or(Errno::PERM)?;
        let at = pool.chunks.iter().position(|chunk| chunk.range == range).ok_or(Errno::INVAL)?;
        if pool.used.iter().any(|used| used.overlaps(&range)) {
            return Err(Errno::BUSY);
        }
        pool.chunks.remove(at);
        self.host.free_memory(range);
        Ok(())
    }

    fn create(&mut self, create: Create) -> Result<(), Errno> {
        if self.instances.contains_key(&create.name) {
            return Err(Errno::EXIST);
        }
        let is_taken = |id: u32| self.instances.values().any(|instance| instance.id == id);
        let id = match create.id {
            Some(id) if is_taken(id) => return Err(Errno::EXIST),
            Some(id) => id,
            None => (1..).find(|id| !is_taken(*id)).ok_or(Errno::NOMEM)?,
        };
        let mut instance = Instance::new(id, create.name.clone());
        let outcome = self.reserve(&mut instance, &create);
        if let Err(errno) = outcome {
            self.release(&instance);
            return Err(errno);
        }
        if instance.cpus.is_empty() && !self.has(Quirk::FailedAndEmptyNeverSet) {
            instance.state = State::Empty;
        }
        self.instances.insert(create.name, instance);
        Ok(())
    }

    fn reserve(&mut self, instance: &mut Instance, create: &Create) -> Result<(), Errno> {
        let whole = self.has(Quirk::FragmentationFails);
        let warns = self.has(Quirk::CreateShortageWarns);
        let mut warnings = Vec::new();
        if create.memory_bytes > 0 {
            let pool = self.pool.as_mut().ok_or(Errno::NOMEM)?;
            let ranges = take_memory(pool, create.memory_bytes, create.node, whole)?;
            ranges.into_iter().for_each(|range| instance.add_region(range));
        }
        for cpu in &create.cpus {
            match self.pool.as_mut().ok_or(Errno::NODEV).and_then(|pool| pool.take_cpu(*cpu)) {
                Ok(()) => instance.cpus.push(*cpu),
                Err(errno) if warns => {
                    warnings.push(format!("CPU {cpu} of {}: {errno}. Continuing without CPUs", create.name));
                    // The reservation is of all of them or of none.
                    if let Some(pool) = &mut self.pool {
                        instance.cpus.drain(..).for_each(|cpu| pool.free_cpu(cpu));
                    }
                    break;
                }
                Err(errno) => return Err(errno),
            }
        }
        for pci_id in &create.devices {
            match self.pool.as_mut().ok_or(Errno::NODEV).and_then(|pool| pool.take_device(pci_id)) {
                Ok(device) => instance.devices.push(device),
                Err(errno) if warns => {
                    warnings
                        .push(format!("device {pci_id} of {}: {errno}. Continuing without it", create.name));
                }
                Err(errno) => return Err(errno),
            }
        }
        warnings.into_iter().for_each(|line| self.log(line));
        Ok(())
    }

    fn remove(&mut self, name: &str) -> Result<(), Errno> {
        let instance = self.instances.get(name).ok_or(Errno::NOENT)?;
        if matches!(instance.state, State::Loaded | State::Active) {
            return Err(Errno::BUSY);
        }
        let Some(instance) = self.instances.remove(name) else { return Err(Errno::NOENT) };
        self.release(&instance);
        if instance.guest.is_some() {
            // It was unloaded while it ran: its memory is gone from under it.
            self.effect(Effect::Kill { id: instance.id });
        }
        if instance.loaded.is_some() {
            self.effect(Effect::Unloaded { id: instance.id });
        }
        Ok(())
    }

    fn release(&mut self, instance: &Instance) {
        let Some(pool) = &mut self.pool else { return };
        instance.regions.iter().for_each(|region| pool.free_memory(region.range));
        instance.cpus.iter().for_each(|cpu| pool.free_cpu(*cpu));
        instance.devices.iter().for_each(|device| pool.free_device(&device.pci_id));
    }
}

/// Takes memory in one range, or in as few as there are free ranges to fill.
fn take_memory(pool: &mut Pool, size: u64, node: Option<u32>, whole: bool) -> Result<Vec<Range>, Errno> {
    let page = super::PAGE_BYTES;
    if let Ok(range) = pool.take_memory(size, page, node) {
        return Ok(vec![range]);
    }
    let right = |of: u32| node.is_none_or(|node| node == of);
    let free: Vec<Range> =
        pool.free().into_iter().filter(|(_, of)| right(*of)).map(|(free, _)| free).collect();
    if whole || free.iter().map(|free| free.size).sum::<u64>() < size {
        return Err(Errno::NOMEM);
    }
    let mut left = size;
    let mut ranges = Vec::new();
    for free in free {
        let piece = Range { base: free.base, size: free.size.min(left) };
        if piece.size > 0 {
            ranges.push(pool.take_range(piece)?);
            left -= piece.size;
        }
    }
    Ok(ranges)
}

impl Step {
    /// Whose resources it changes, if an instance's.
    fn instance(&self) -> Option<&str> {
        match self {
            Self::CpuAdd { owner: Owner::Instance(name), .. }
            | Self::CpuRemove { owner: Owner::Instance(name), .. }
            | Self::DeviceAdd { owner: Owner::Instance(name), .. }
            | Self::DeviceRemove { owner: Owner::Instance(name), .. }
            | Self::RegionAdd { name, .. }
            | Self::RegionRemove { name, .. } => Some(name),
            _ => None,
        }
    }
}
