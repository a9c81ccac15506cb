//! Pinning threads to cores.

use std::sync::OnceLock;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Cores that this process was allowed to run on when it first asked, in ascending order: a thread that is pinned by now may use fewer.
pub fn allowed_cores() -> &'static [usize] {
    static ALLOWED: OnceLock<Vec<usize>> = OnceLock::new();
    ALLOWED.get_or_init(|| {
        let allowed = sched_getaffinity(None);
        allowed
            .map_or_else(|_| vec![0], |set| (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect())
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_still_knows_both_cores() {
        let before = two_cores();
        std::thread::spawn(move || {
            to_core(before.0);
            assert_eq!(two_cores(), before);
        })
        .join()
        .unwrap();
    }
}
