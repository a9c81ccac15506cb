//! Pinning threads to cores.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Cores that this process may run on, in ascending order.
pub fn allowed_cores() -> Vec<usize> {
    let allowed = sched_getaffinity(None);
    allowed.map_or_else(|_| vec![0], |set| (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect())
}

/// The cores for the two sides of a measurement: the first two allowed, or twice the same one if there is no other.
pub fn two_cores() -> (usize, usize) {
    let cores = allowed_cores();
    let first = cores.first().copied().unwrap_or(0);
    (first, cores.get(1).copied().unwrap_or(first))
}

/// Pins the calling thread to `core`. Whether it worked only matters to how steady the figures are.
pub fn to_core(core: usize) -> bool {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).is_ok()
}
