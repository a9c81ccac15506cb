//! What of a kernel the ledger decides. No I/O.

use super::CpuStock;
use crate::core::InstanceSpec;
use crate::spawner::SpawnerKind;

/// Whose the CPUs of the ledger are, and its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CpusAre {
    /// Lent to machines, which are given this host's memory.
    OfMachines,
    /// Set aside for kernels beside this one.
    OfKernels,
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

impl CpusAre {
    pub(super) fn of(stock: &CpuStock) -> Self {
        match stock {
            CpuStock::Shared(_) | CpuStock::OfHost(_) => Self::OfMachines,
            CpuStock::OfKernels(_) => Self::OfKernels,
        }
    }

    /// What can be moved of a kernel of this spawner. `is_taken_over`: whether another program made what it boots in, and so chose its CPUs.
    pub(crate) fn movable(self, kind: SpawnerKind, is_taken_over: bool) -> Movable {
        let are_its = match kind {
            SpawnerKind::Multikernel => self == Self::OfKernels && !is_taken_over,
            SpawnerKind::Uml | SpawnerKind::Qemu | SpawnerKind::Process => self == Self::OfMachines,
        };
        Movable {
            memory: kind.can_move_memory() && are_its,
            keeps_memory: kind == SpawnerKind::Multikernel,
            cpus: kind.can_move_cpus() && are_its,
            devices: kind.can_move_devices(),
        }
    }

    /// Why a kernel cannot have the CPUs or the memory that it is to have, if it cannot.
    pub(crate) fn refusal(
        self,
        kind: SpawnerKind,
        is_taken_over: bool,
        spec: &InstanceSpec,
    ) -> Option<String> {
        if let Some(reason) = self.memory_refusal(kind, is_taken_over, spec) {
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

impl CpusAre {
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

    #[test]
    fn cpus_move_between_kernels_of_one_kind() {
        use SpawnerKind::{Multikernel, Qemu, Uml};
        let cpus = |are: CpusAre, kind| are.movable(kind, false).cpus;
        assert!(cpus(CpusAre::OfMachines, Qemu) && !cpus(CpusAre::OfMachines, Multikernel));
        assert!(cpus(CpusAre::OfKernels, Multikernel) && !cpus(CpusAre::OfKernels, Qemu));
        assert!(!cpus(CpusAre::OfKernels, Uml) && !cpus(CpusAre::OfMachines, Uml));
        assert!(!CpusAre::OfKernels.movable(Multikernel, true).cpus, "another program chose them");
        let memory = |are: CpusAre, kind| are.movable(kind, false).memory;
        assert!(memory(CpusAre::OfMachines, Qemu) && memory(CpusAre::OfMachines, Uml));
        assert!(!memory(CpusAre::OfKernels, Qemu) && !memory(CpusAre::OfMachines, Multikernel));
        assert!(memory(CpusAre::OfKernels, Multikernel));
        assert!(!CpusAre::OfKernels.movable(Multikernel, true).memory, "nor is its memory");
    }

    #[test]
    fn more_than_a_kernel_can_be_given_is_refused_with_what_to_do() {
        use SpawnerKind::{Multikernel, Qemu, Uml};
        let spec = |text: &str| -> InstanceSpec { toml::from_str(text).unwrap() };
        let (one, more) = (spec("cpus = 2"), spec("cpus = 2\ncpus_max = 4"));
        let memory = spec("memory_mib = 256\nmemory_max_mib = 512");
        assert_eq!(CpusAre::OfKernels.refusal(Multikernel, false, &memory), None);
        assert_eq!(CpusAre::OfMachines.refusal(Uml, false, &memory), None);
        let refusal = |are: CpusAre, kind, taken_over, spec| are.refusal(kind, taken_over, spec);
        assert_eq!(refusal(CpusAre::OfKernels, Multikernel, false, &more), None);
        assert_eq!(refusal(CpusAre::OfMachines, Multikernel, false, &one), None);
        assert_eq!(refusal(CpusAre::OfMachines, Qemu, false, &more), None);
        assert_eq!(refusal(CpusAre::OfKernels, Uml, false, &one), None, "it has one anyway");
        for (are, kind, taken_over, spec, remedy) in [
            (CpusAre::OfMachines, Multikernel, false, &more, "--spawner multikernel"),
            (CpusAre::OfKernels, Multikernel, true, &more, "leave cpus_max out"),
            (CpusAre::OfKernels, Qemu, false, &one, "machines have one"),
            (CpusAre::OfMachines, Multikernel, false, &memory, "--spawner multikernel"),
            (CpusAre::OfKernels, Multikernel, true, &memory, "leave memory_max_mib out"),
            (CpusAre::OfKernels, Uml, false, &memory, "leave memory_max_mib out"),
        ] {
            let reason = refusal(are, kind, taken_over, spec).unwrap();
            assert!(reason.contains(remedy), "{reason}");
        }
    }
}
