//! How long it pays to ask a ring again before going to sleep: about as long as a sleep and a wake-up take.

use std::sync::OnceLock;
use std::time::Duration;

use crate::mem::{ticks, ticks_in};

/// System calls between a peer's bell and the woken task, of all the processes that pass the bell on, and the switches between
/// these processes counted as calls. Where a call takes 0.2 µs that is nothing beside the wake-ups themselves; under user-mode Linux, where
/// it takes 10 to 30 µs, it is most of the price.
const CALLS_PER_WAKE: u64 = 40;

/// Nobody asks longer than this.
const BUDGET_MAX: Duration = Duration::from_millis(2);

/// The budget in [`ticks`]: what the caller wants, but no less than what a wake-up costs on this kernel. 0 stays 0.
pub(super) fn budget_ticks(wanted: Duration) -> u64 {
    if wanted.is_zero() {
        return 0;
    }
    let wake = CALLS_PER_WAKE * call_ticks();
    ticks_in(wanted).max(wake.min(ticks_in(BUDGET_MAX)))
}

/// What a system call costs: the cheapest of a few.
fn call_ticks() -> u64 {
    static CALL: OnceLock<u64> = OnceLock::new();
    *CALL.get_or_init(|| {
        let call = |_| {
            let before = ticks();
            // One that no library answers by itself.
            let _ = rustix::process::getppid();
            ticks().saturating_sub(before)
        };
        (0..8).map(call).min().unwrap_or_default()
    })
}

/// Whether this kernel has one processor only, whatever part of it this process may use. Where it does not say, it has more.
pub(super) fn is_uniprocessor() -> bool {
    static ONE: OnceLock<bool> = OnceLock::new();
    *ONE.get_or_init(|| {
        // A list such as `0-3,8`: Documentation/ABI/stable/sysfs-devices-system-cpu.
        std::fs::read_to_string("/sys/devices/system/cpu/online")
            .is_ok_and(|online| online.trim().parse::<u32>().is_ok())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_wants_no_asking_gets_none() {
        assert_eq!(budget_ticks(Duration::ZERO), 0);
    }

    #[test]
    fn a_wanted_budget_is_a_lower_bound() {
        let wanted = Duration::from_secs(1);
        assert_eq!(budget_ticks(wanted), ticks_in(wanted));
        assert!(
            budget_ticks(Duration::from_nanos(1))
                >= (CALLS_PER_WAKE * call_ticks()).min(ticks_in(BUDGET_MAX))
        );
    }
}
