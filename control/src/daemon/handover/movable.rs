//! What of a kernel the ledger decides. No I/O.

use super::{CpuStock, Stock};
use crate::core::InstanceSpec;
use crate::spawner::SpawnerKind;

/// Whose the units of the ledger are: its CPUs, its memory and, perhaps, its devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UnitsAre {
    /// Lent to machines, which are given this host's memory.
    OfMachines,
    /// Set aside for kernels beside this one.
    OfKernels {
        /// Whether its devices are those, too: unless the daemon was told of devices of machines.
        and_devices: bool,
    },
}

/// What can be moved to and from a kernel while it runs; of the rest the ledger knows nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Movable {
    pub(crate) memory: bool,
    /// Whether the memory that it booted with stays.
    pub(crate) keeps_memory: bool,
    pub(crate) cpus: bool,
    pub(crate) devices: bool,
}

impl UnitsAre {
    pub(super) fn of(stock: &Stock) -> Self {
        match stock.cpus {
            CpuStock::Shared(_) | CpuStock::OfHost(_) => Self::OfMachines,
            CpuStock::OfKernels(_) => Self::OfKernels { and_devices: stock.devices_are_of_kernels },
        }
    }

    /// Whether they are set aside for kernels beside this one.
    pub(crate) fn are_of_kernels(self) -> bool {
        matches!(self, Self::OfKernels { .. })
    }

    /// Whether the ledger's devices are set aside for kernels beside this one, too.
    pub(crate) fn devices_are_of_kernels(self) -> bool {
        self == Self::OfKernels { and_devices: true }
    }

    /// What can be moved of a kernel of this spawner. `is_taken_over`: whether another program made what it boots in, and so chose its CPUs.
    pub(crate) fn movable(self, kind: SpawnerKind, is_taken_over: bool) -> Movable {
        let are_its = match kind {
            SpawnerKind::Multikernel => self.are_of_kernels() && !is_taken_over,
            SpawnerKind::Uml | SpawnerKind::Qemu | SpawnerKind::Process => self == Self::OfMachines,
        };
        Movable {
            memory: kind.can_move_memory() && are_its,
            keeps_memory: kind == SpawnerKind::Multikernel,
            cpus: kind.can_move_cpus() && are_its,
            devices: kind.can_move_devices()
                && match kind {
                    SpawnerKind::Multikernel => self.devices_are_of_kernels() && !is_taken_over,
                    SpawnerKind::Uml | SpawnerKind::Qemu | SpawnerKind::Process => {
                        !self.devices_are_of_kernels()
                    }
                },
        }
    }

    /// Why a kernel cannot have the CPUs, the memory or the devices that it is to have, if it cannot.
    pub(crate) fn refusal(
        self,
        kind: SpawnerKind,
        is_taken_over: bool,
        spec: &InstanceSpec,
    ) -> Option<String> {
        let of_others = self.memory_refusal(kind, is_taken_over, spec);
        if let Some(reason) = of_others.or_else(|| self.device_refusal(kind, is_taken_over, spec)) {
            return Some(reason);
        }
        let most = spec.cpus_max();
        if !kind.can_move_cpus() || self.movable(kind, is_taken_over).cpus {
            return None;
        }
        match kind {
            SpawnerKind::Multikernel if most <= spec.cpus => None,
            SpawnerKind::Multikernel if is_taken_over => Some(format!(
                "cpus_max is {most}, and it keeps the CPUs that the program gave it which made it: leave cpus_max out"
            )),
            SpawnerKind::Multikernel => Some(format!(
                "cpus_max is {most}, and this daemon moves CPUs of machines: start it with --spawner multikernel, without --cpus and --host-cpus, or leave cpus_max out"
            )),
            _ if most <= 1 => None,
            _ => Some(format!(
                "it is to have up to {most} CPUs, and this daemon has only those of kernels beside this one to give (--spawner multikernel): machines have one"
            )),
        }
    }
}

impl UnitsAre {
    /// Why a kernel cannot have the devices that it is to have, whatever becomes of them until it is started.
    pub(crate) fn device_refusal(
        self,
        kind: SpawnerKind,
        is_taken_over: bool,
        spec: &InstanceSpec,
    ) -> Option<String> {
        let device = spec.devices.as_deref()?.first()?;
        if !kind.can_move_devices() || self.movable(kind, is_taken_over).devices {
            return None;
        }
        Some(match kind {
            SpawnerKind::Multikernel if is_taken_over => format!(
                "devices: it is to have {device}, and it keeps the devices that the program gave it which made it: leave devices out"
            ),
            SpawnerKind::Multikernel => format!(
                "devices: it is to have {device}, and this daemon moves devices of machines: start it with --spawner multikernel, without --cpus, --host-cpus and --device, or leave devices out"
            ),
            _ => format!(
                "devices: it is to have {device}, and this daemon has only those of kernels beside this one to give (--spawner multikernel): name those of machines with --device, or leave devices out"
            ),
        })
    }

    fn memory_refusal(self, kind: SpawnerKind, is_taken_over: bool, spec: &InstanceSpec) -> Option<String> {
        let (most, boots_with) = (spec.memory_max_mib(), spec.memory_mib);
        if most <= boots_with || !kind.can_move_memory() {
            return None;
        }
        let (field, leave) = ("memory_max_mib", "set memory_mib, and leave memory_max_mib out");
        if !self.movable(kind, is_taken_over).memory {
            return Some(match kind {
                SpawnerKind::Multikernel if is_taken_over => format!(
                    "{field} is {most}, and it keeps the memory that the program gave it which made it: {leave}"
                ),
                SpawnerKind::Multikernel => format!(
                    "{field} is {most}, and this daemon moves memory of machines: start it with --spawner multikernel, without --cpus and --host-cpus, or {leave}"
                ),
                _ => format!(
                    "{field} is {most}, and this daemon has only memory of kernels beside this one to give (--spawner multikernel): {leave}"
                ),
            });
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF_KERNELS: UnitsAre = UnitsAre::OfKernels { and_devices: true };

    #[test]
    fn devices_are_of_machines_or_of_kernels_and_not_of_both() {
        use SpawnerKind::{Multikernel, Qemu, Uml};
        let devices = |are: UnitsAre, kind| are.movable(kind, false).devices;
        let only_machines_have_devices = UnitsAre::OfKernels { and_devices: false };
        assert!(devices(UnitsAre::OfMachines, Qemu) && !devices(UnitsAre::OfMachines, Multikernel));
        assert!(devices(OF_KERNELS, Multikernel) && !devices(OF_KERNELS, Qemu));
        assert!(
            devices(only_machines_have_devices, Qemu) && !devices(only_machines_have_devices, Multikernel)
        );
        assert!(!devices(OF_KERNELS, Uml) && !OF_KERNELS.movable(Multikernel, true).devices);
        let spec: InstanceSpec = toml::from_str("devices = ['0000:03:00.0']").unwrap();
        assert_eq!(OF_KERNELS.refusal(Multikernel, false, &spec), None);
        for (are, kind, taken_over, remedy) in [
            (UnitsAre::OfMachines, Multikernel, false, "--spawner multikernel, without"),
            (only_machines_have_devices, Multikernel, false, "and --device"),
            (OF_KERNELS, Multikernel, true, "leave devices out"),
            (OF_KERNELS, Qemu, false, "with --device"),
        ] {
            let reason = are.refusal(kind, taken_over, &spec).unwrap();
            assert!(reason.contains("0000:03:00.0") && reason.contains(remedy), "{reason}");
        }
    }

    #[test]
    fn cpus_move_between_kernels_of_one_kind() {
        use SpawnerKind::{Multikernel, Qemu, Uml};
        let cpus = |are: UnitsAre, kind| are.movable(kind, false).cpus;
        assert!(cpus(UnitsAre::OfMachines, Qemu) && !cpus(UnitsAre::OfMachines, Multikernel));
        assert!(cpus(OF_KERNELS, Multikernel) && !cpus(OF_KERNELS, Qemu));
        assert!(!cpus(OF_KERNELS, Uml) && !cpus(UnitsAre::OfMachines, Uml));
        assert!(!OF_KERNELS.movable(Multikernel, true).cpus, "another program chose them");
        let memory = |are: UnitsAre, kind| are.movable(kind, false).memory;
        assert!(memory(UnitsAre::OfMachines, Qemu) && memory(UnitsAre::OfMachines, Uml));
        assert!(!memory(OF_KERNELS, Qemu) && !memory(UnitsAre::OfMachines, Multikernel));
        assert!(memory(OF_KERNELS, Multikernel));
        assert!(!OF_KERNELS.movable(Multikernel, true).memory, "nor is its memory");
    }

    #[test]
    fn more_than_a_kernel_can_be_given_is_refused_with_what_to_do() {
        use SpawnerKind::{Multikernel, Qemu, Uml};
        let spec = |text: &str| -> InstanceSpec { toml::from_str(text).unwrap() };
        let (one, more) = (spec("cpus = 2"), spec("cpus = 2\ncpus_max = 4"));
        let memory = spec("memory_mib = 256\nmemory_max_mib = 512");
        assert_eq!(OF_KERNELS.refusal(Multikernel, false, &memory), None);
        assert_eq!(UnitsAre::OfMachines.refusal(Uml, false, &memory), None);
        let refusal = |are: UnitsAre, kind, taken_over, spec| are.refusal(kind, taken_over, spec);
        assert_eq!(refusal(OF_KERNELS, Multikernel, false, &more), None);
        assert_eq!(refusal(UnitsAre::OfMachines, Multikernel, false, &one), None);
        assert_eq!(refusal(UnitsAre::OfMachines, Qemu, false, &more), None);
        assert_eq!(refusal(OF_KERNELS, Uml, false, &one), None, "it has one anyway");
        for (are, kind, taken_over, spec, remedy) in [
            (UnitsAre::OfMachines, Multikernel, false, &more, "--spawner multikernel"),
            (OF_KERNELS, Multikernel, true, &more, "leave cpus_max out"),
            (OF_KERNELS, Qemu, false, &one, "machines have one"),
            (UnitsAre::OfMachines, Multikernel, false, &memory, "--spawner multikernel"),
            (OF_KERNELS, Multikernel, true, &memory, "leave memory_max_mib out"),
            (OF_KERNELS, Uml, false, &memory, "leave memory_max_mib out"),
        ] {
            let reason = refusal(are, kind, taken_over, spec).unwrap();
            assert!(reason.contains(remedy), "{reason}");
        }
    }
}
