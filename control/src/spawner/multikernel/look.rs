//! How the kernel's interface is, for those who only want to know.

use super::Settings;
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

/// Why the lock of other programs is no longer anybody's, if it is there and that is so.
pub(crate) fn lock_left_behind(settings: &Settings) -> Option<&'static str> {
    lock::stale(&settings.lock)
}
