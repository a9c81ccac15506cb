//! How long it pays to ask a ring again before going to sleep: about as long as a sleep and a wake-up take.
//!
//! It is measured; whoever runs a program knows better at times (cores that are shared, power that is dear, latency that is all that counts)
//! and says so in the environment: [`VARIABLE`].

use std::sync::OnceLock;
use std::time::Duration;

use crate::mem::{ticks, ticks_in};

/// System calls between a peer's bell and the woken task, of all the processes that pass the bell on, and the switches between
/// these processes counted as calls. Where a call takes 0.2 µs that is nothing beside the wake-ups themselves; under user-mode Linux, where
/// it takes 10 to 30 µs, it is most of the price.
const CALLS_PER_WAKE: u64 = 40;

/// Nobody asks longer than this.
const BUDGET_MAX: Duration = Duration::from_millis(2);

/// What a program is run with to have another budget than it asks for: `off`, or a time such as `50us` or `2ms`.
const VARIABLE: &str = "TOMBOLO_SPIN";

/// More than a second would be a mistake of units.
const OVERRIDE_MAX: Duration = Duration::from_secs(1);

/// The budget in [`ticks`]: what the environment says; else what the caller wants, but no less than what a wake-up costs on this
/// kernel. 0 stays 0.
pub(super) fn budget_ticks(wanted: Duration) -> u64 {
    from_environment().map_or_else(|| calibrated_ticks(wanted), ticks_in)
}

fn calibrated_ticks(wanted: Duration) -> u64 {
    if wanted.is_zero() {
        return 0;
    }
    let wake = CALLS_PER_WAKE * call_ticks();
    ticks_in(wanted).max(wake.min(ticks_in(BUDGET_MAX)))
}

fn from_environment() -> Option<Duration> {
    static SAID: OnceLock<Option<Duration>> = OnceLock::new();
    *SAID.get_or_init(|| {
        let said = std::env::var_os(VARIABLE)?;
        let understood = said.to_str().and_then(parse);
        if understood.is_none() {
            tracing::warn!(
                ?said,
                "{VARIABLE} is neither `off` nor a time up to 1 s such as 50us or 2ms: it is ignored"
            );
        }
        understood
    })
}

fn parse(text: &str) -> Option<Duration> {
    let text = text.trim();
    if matches!(text, "off" | "0") {
        return Some(Duration::ZERO);
    }
    let unit_at = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(unit_at);
    let number = number.parse().ok()?;
    let time = match unit.trim_start() {
        "ns" => Duration::from_nanos(number),
        "us" | "µs" => Duration::from_micros(number),
        "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        _ => return None,
    };
    (time <= OVERRIDE_MAX).then_some(time)
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
        assert_eq!(calibrated_ticks(Duration::ZERO), 0);
    }

    #[test]
    fn the_environment_says_off_or_a_time_with_its_unit() {
        for (text, expected) in [
            ("off", Some(Duration::ZERO)),
            ("0", Some(Duration::ZERO)),
            ("50us", Some(Duration::from_micros(50))),
            (" 2 ms\n", Some(Duration::from_millis(2))),
            ("700ns", Some(Duration::from_nanos(700))),
            ("1s", Some(OVERRIDE_MAX)),
            ("2s", None),
            ("50", None),
            ("us", None),
            ("-1us", None),
            ("99999999999999999999us", None),
            ("18446744073709551615s", None),
            ("", None),
        ] {
            assert_eq!(parse(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_wanted_budget_is_a_lower_bound() {
        let wanted = Duration::from_secs(1);
        assert_eq!(calibrated_ticks(wanted), ticks_in(wanted));
        assert!(
            calibrated_ticks(Duration::from_nanos(1))
                >= (CALLS_PER_WAKE * call_ticks()).min(ticks_in(BUDGET_MAX))
        );
    }
}
