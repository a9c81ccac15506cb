//! How the kernel's interface is, for those who only want to know.

use std::path::Path;

use tombolo_handover::PciAddress;

use super::Settings;
use super::holders;
use super::host_pci::{HostPci, Unfit};
use super::interface::{self, AskError, Mounted};
use super::lock;
use super::tree::TreeError;

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
        Err(error @ AskError::Tree { source: TreeError::Old(_), .. }) => {
            InterfaceState::Old(error.to_string())
        }
        Err(error) => InterfaceState::Unreadable(error.to_string()),
    }
}

/// The PCI functions that are set aside, each with what keeps it from being fit for that; none where there is no interface.
///
/// # Errors
/// A sentence that says why it is not known which.
pub(crate) fn pool_functions(settings: &Settings) -> Result<Vec<(PciAddress, Vec<Unfit>)>, String> {
    let (host, kernel) = (HostPci::of(settings), Mounted::at(&settings.root));
    if !kernel.is_mounted() {
        return Ok(Vec::new());
    }
    let held = holders::held(&kernel).map_err(|error| error.to_string())?;
    let functions = held.into_iter().map(|held| held.function.address);
    Ok(functions.map(|function| (function, host.troubles(function))).collect())
}

/// What is missing where the interface is not there, and what to do; `filesystems`: the text of /proc/filesystems.
pub(crate) fn what_is_missing(filesystems: &str, root: &Path) -> (String, String) {
    match is_file_system("multikernel", filesystems) {
        true => (format!("the kernel's interface is not mounted at {}", root.display()), how_to_mount(root)),
        false => (
            "this kernel cannot have others beside it: it has no file system `multikernel`".into(),
            "build and boot one with CONFIG_MULTIKERNEL=y, as docs/multikernel.md says".into(),
        ),
    }
}

/// What to do where it is there and not mounted.
pub(crate) fn how_to_mount(root: &Path) -> String {
    format!("tombolo multikernel mount, or mount -t multikernel none {}", root.display())
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
    use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};

    use super::*;

    #[test]
    fn kernel_without_support_is_told_from_one_whose_interface_is_not_mounted() {
        let root = Path::new("/sys/fs/multikernel");
        let (what, remedy) = what_is_missing("nodev\tsysfs\n", root);
        assert!(what.contains("no file system `multikernel`"), "{what}");
        assert!(remedy.contains("CONFIG_MULTIKERNEL=y") && remedy.contains("boot"), "{remedy}");
        let (what, remedy) = what_is_missing("nodev\tsysfs\nnodev\tmultikernel\n", root);
        assert!(what.contains("not mounted at /sys/fs/multikernel"), "{what}");
        assert_eq!(remedy, "tombolo multikernel mount, or mount -t multikernel none /sys/fs/multikernel");
    }

    /// A folder with these files, for the kernel's file system.
    fn state(files: &[(&str, &[u8])]) -> InterfaceState {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        interface_state(&Settings { root: dir.path().into(), ..Settings::default() })
    }

    /// A tree of a pool that has these properties in its resources.
    fn pool(properties: &[(&str, u64)]) -> Vec<u8> {
        let mut tree = DeviceTree::new();
        let mut resources = DeviceTreeNode::new_unchecked("resources");
        for (name, value) in properties {
            resources.add_property(DeviceTreeProperty::new_unchecked(*name, value.to_be_bytes().to_vec()));
        }
        tree.root.add_child(resources);
        tree.to_dtb()
    }

    #[test]
    fn each_form_of_the_interface_is_known_by_what_it_has() {
        let (new, none): (_, &[u8]) = (("overlays/new", &b""[..]), b"");
        let is_old = |state: InterfaceState, part: &str| match state {
            InterfaceState::Old(why) => assert!(why.contains(part), "{why}"),
            other => panic!("{other:?}"),
        };
        assert_eq!(state(&[]), InterfaceState::Absent);
        is_old(state(&[("instances/web/device_tree_source", none)]), "no overlays/new");
        is_old(
            state(&[new, ("instances/web/device_tree_source", none)]),
            "instances/web has a device_tree_source",
        );
        let middle = pool(&[("cpus", 4), ("memory-base", 1 << 32), ("memory-bytes", 1 << 30)]);
        is_old(state(&[new, ("instances/web/id", b"3"), ("device_tree", &middle)]), "`memory-base`");
        assert_eq!(state(&[new, ("instances/web/id", b"3"), ("device_tree", none)]), InterfaceState::NoPool);
        let torn = state(&[new, ("instances/web/id", b"3"), ("device_tree", b"no tree")]);
        assert!(matches!(torn, InterfaceState::Unreadable(_)), "{torn:?}");
    }
}
