//! How the kernel's interface is, for those who only want to know.

use std::path::Path;

use tombolo_handover::PciAddress;

use super::Settings;
use super::holders;
use super::host_pci::{HostPci, Unfit};
use super::interface::{self, Mounted};
use super::lock;

/// How the kernel's interface is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum InterfaceState {
    /// Not there, or not mounted.
    Absent,
    /// Of a form that is not spoken here, and by what it is known.
    Old(String),
    /// There, but not as it should be.
    Unreadable(String),
    /// There, and nothing is set aside for other kernels.
    NoPool,
    /// As it should be.
    Pool { cpus: usize, cpus_free: usize, memory_mib: u64, instances: usize },
}

/// Looks at it.
pub(crate) fn interface_state(settings: &Settings) -> InterfaceState {
    let kernel = Mounted::at(&settings.root);
    let has = |name: &str| kernel.root().join(name).exists();
    if !kernel.is_mounted() {
        return match has("device_tree_source") || has("instances") {
            true => InterfaceState::Old("it has no overlays/new".into()),
            false => InterfaceState::Absent,
        };
    }
    // The form whose overlays have no target path has its instances' trees as text.
    let instances = match interface::instances(&kernel) {
        Ok(instances) => instances,
        Err(error) => return InterfaceState::Unreadable(error.to_string()),
    };
    let is_text = |name: &String| has(&format!("instances/{name}/device_tree_source"));
    if let Some(name) = instances.iter().find(|name| is_text(name)) {
        return InterfaceState::Old(format!("instances/{name} has a device_tree_source"));
    }
    match interface::pool_or_none(&kernel) {
        Ok(pool) if pool.cpus.is_empty() || pool.chunks.is_empty() => InterfaceState::NoPool,
        Ok(pool) => InterfaceState::Pool {
            cpus: pool.cpus.len(),
            cpus_free: pool.cpus_available.len(),
            memory_mib: pool.memory_bytes() >> 20,
            instances: instances.len(),
        },
        Err(error) => InterfaceState::Unreadable(error.to_string()),
    }
}

/// The PCI functions that are set aside, each with what keeps it from being fit for that.
pub(crate) fn pool_functions(settings: &Settings) -> Vec<(PciAddress, Vec<Unfit>)> {
    let host = HostPci::of(settings);
    let held = holders::held(&Mounted::at(&settings.root)).unwrap_or_default();
    held.into_iter()
        .map(|held| held.function.address)
        .map(|function| (function, host.troubles(function)))
        .collect()
}

/// What is missing where the interface is not there, and what to do; `filesystems`: the text of /proc/filesystems.
pub(crate) fn what_is_missing(filesystems: &str, root: &Path) -> (String, String) {
    match is_file_system("multikernel", filesystems) {
        true => (
            format!("the kernel's interface is not mounted at {}", root.display()),
            format!("mount -t multikernel none {}", root.display()),
        ),
        false => (
            "this kernel cannot have others beside it: it has no file system `multikernel`".into(),
            "build and boot one with CONFIG_MULTIKERNEL=y, as docs/multikernel.md says".into(),
        ),
    }
}

/// Whether the kernel knows a file system of this name.
pub(crate) fn is_file_system(name: &str, filesystems: &str) -> bool {
    filesystems.lines().any(|line| line.split_whitespace().last() == Some(name))
}

/// Why the lock of other programs is no longer anybody's, if it is there and that is so.
pub(crate) fn lock_left_behind(settings: &Settings) -> Option<&'static str> {
    lock::stale(&settings.lock)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_without_support_is_told_from_one_whose_interface_is_not_mounted() {
        let root = Path::new("/sys/fs/multikernel");
        let (what, remedy) = what_is_missing("nodev\tsysfs\n", root);
        assert!(what.contains("no file system `multikernel`"), "{what}");
        assert!(remedy.contains("CONFIG_MULTIKERNEL=y") && remedy.contains("boot"), "{remedy}");
        let (what, remedy) = what_is_missing("nodev\tsysfs\nnodev\tmultikernel\n", root);
        assert!(what.contains("not mounted at /sys/fs/multikernel"), "{what}");
        assert_eq!(remedy, "mount -t multikernel none /sys/fs/multikernel");
    }
}
