//! This kernel: what it shows of its units, and doing something about one of them.

use std::path::PathBuf;

use tombolo_handover::observe::Inside;
use tombolo_handover::operation::{End, Veto};

use super::veto::never;
use super::{cpu, device, memory};
use crate::api::handover::{Action, Asked, Here};

/// Where it shows them.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) cpus: PathBuf,
    pub(super) pci: PathBuf,
    pub(super) blocks: PathBuf,
    pub(super) proc: PathBuf,
    pub(super) dev: PathBuf,
}

impl Default for Kernel {
    fn default() -> Self {
        Self {
            cpus: "/sys/devices/system/cpu".into(),
            pci: "/sys/bus/pci".into(),
            blocks: "/sys/class/block".into(),
            proc: "/proc".into(),
            dev: "/dev".into(),
        }
    }
}

impl Kernel {
    fn cpu(&self) -> cpu::Files<'_> {
        cpu::Files { cpus: &self.cpus, proc: &self.proc }
    }

    fn device(&self) -> device::Files<'_> {
        device::Files { pci: &self.pci, blocks: &self.blocks, proc: &self.proc, dev: &self.dev }
    }

    /// Does it, with so many bytes kept free already. It makes system calls that take their time.
    pub(super) fn act(&self, here: Here, action: Action, kept_bytes: u64) -> Result<(), Veto> {
        match (here, action) {
            (Here::Memory { bytes }, Action::Drain) => memory::make_free(kept_bytes.saturating_add(bytes)),
            (Here::Memory { .. }, Action::Undrain) => Ok(()),
            (Here::Memory { bytes }, Action::Online) => memory::prove(bytes),
            (Here::Cpu { index }, Action::Drain) => self.cpu().take_offline(index),
            (Here::Cpu { index }, Action::Undrain) => self.cpu().take_online(index),
            (Here::Cpu { index }, Action::Online) => {
                self.cpu().take_online(index).and_then(|()| cpu::prove(index))
            }
            (Here::PhysicalCpu { id }, Action::Drain) => self.cpu().empty(id),
            // Nobody was kept from it.
            (Here::PhysicalCpu { .. }, Action::Undrain) => Ok(()),
            (Here::PhysicalCpu { id }, Action::Online) => {
                self.cpu().online_number_of(id).and_then(cpu::prove)
            }
            (Here::Device { address }, Action::Drain) => self.device().unbind(address),
            (Here::Device { address }, Action::Undrain | Action::Online) => self.device().bind(address),
        }
    }

    /// What goes on with it. Of memory the kernel has an amount: what of it is spoken for it does not know.
    pub(super) fn look(&self, here: Here) -> Inside {
        match here {
            Here::Memory { .. } => Inside::Unknown,
            Here::Cpu { index } => self.cpu().look(index),
            Here::PhysicalCpu { id } => self.cpu().look_at_physical(id),
            Here::Device { address } => self.device().look(address),
        }
    }

    /// Whether nothing runs on it that would keep it from leaving, now.
    pub(super) fn is_empty(&self, here: Here) -> bool {
        match here {
            Here::PhysicalCpu { id } => self.cpu().empty(id).is_ok(),
            Here::Memory { .. } | Here::Cpu { .. } | Here::Device { .. } => false,
        }
    }

    /// Whether it can do what it is asked about.
    pub(super) fn vote(&self, asked: &Asked) -> Option<Veto> {
        if asked.end == End::Receiver {
            // More is always welcome. Whether there is room for it is its spawner's to say.
            return None;
        }
        if let Some(piece) = asked.pieces.iter().find(|piece| piece.here.is_none()) {
            return Some(never(format!("{} is not in this kernel", piece.unit)));
        }
        let here = || asked.pieces.iter().filter_map(|piece| piece.here);
        let bytes = here().map(Here::bytes).fold(0, u64::saturating_add);
        let cpus: Result<Vec<u32>, Veto> = here()
            .filter_map(|here| match here {
                Here::Cpu { index } => Some(Ok(index)),
                Here::PhysicalCpu { id } => Some(self.cpu().online_number_of(id)),
                Here::Memory { .. } | Here::Device { .. } => None,
            })
            .collect();
        let cpus = match cpus {
            Ok(cpus) => cpus,
            Err(veto) => return Some(veto),
        };
        let mut devices = here().filter_map(|here| match here {
            Here::Device { address } => Some(address),
            Here::Memory { .. } | Here::Cpu { .. } | Here::PhysicalCpu { .. } => None,
        });
        if bytes > 0
            && let Some(veto) = memory::can_spare(bytes)
        {
            return Some(veto);
        }
        if !cpus.is_empty()
            && let Some(veto) = self.cpu().can_spare(&cpus)
        {
            return Some(veto);
        }
        devices.find_map(|address| {
            // It is plugged in, as we are told; whether it is seen yet the answer will say.
            self.device().appears(address);
            self.device().can_spare(address)
        })
    }
}
