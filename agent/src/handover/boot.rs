//! This boot of the kernel: its id, and the time since it began, which is the same for every process of it.

use std::fs;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// What tells this boot from every other; `None` where the kernel does not say.
pub(super) fn id() -> Option<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned()).filter(|id| !id.is_empty())
}

/// How long ago it began, time asleep included.
pub(super) fn elapsed() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.try_into().unwrap_or_default(), now.tv_nsec.try_into().unwrap_or_default())
}
