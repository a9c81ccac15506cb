//! The time since this kernel booted, which is the same for every process of it.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// How long ago it booted, time asleep included.
pub(super) fn elapsed() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.try_into().unwrap_or_default(), now.tv_nsec.try_into().unwrap_or_default())
}
