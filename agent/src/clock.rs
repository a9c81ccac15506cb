//! The wall clock of this kernel against that of the control plane.
//!
//! A kernel that boots without a clock of its own, or was frozen for a while, has the wrong time. The caller says what time
//! it is (half a round trip ahead, as NTP does), the agent how far its own clock is off, and steps it where that is
//! permitted: the clock must be this kernel's own, and the configuration must say so.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, Timespec, clock_settime};

use crate::api::agent::{AgentMode, ClockAction, ClockReport, SyncClock};

/// Compares, and steps if asked to and permitted.
pub(crate) fn sync(request: &SyncClock, mode: AgentMode, may_set: bool) -> ClockReport {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let offset_ns = offset(now, request.wall_ns);
    let action = match decide(offset_ns, request, mode, may_set) {
        ClockAction::Stepped => step(request.wall_ns),
        other => other,
    };
    match &action {
        ClockAction::Stepped => tracing::warn!(offset_ns, "the clock was off and has been stepped"),
        ClockAction::NotStepped { reason } => tracing::warn!(offset_ns, "the clock is off: {reason}"),
        ClockAction::Left => {}
    }
    ClockReport { offset_ns, action }
}

/// Ours minus theirs, as far as it goes.
fn offset(ours: u128, theirs: u64) -> i64 {
    let difference = i128::try_from(ours).unwrap_or(i128::MAX).saturating_sub(i128::from(theirs));
    difference.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
}

fn decide(offset_ns: i64, request: &SyncClock, mode: AgentMode, may_set: bool) -> ClockAction {
    let Some(step_beyond_ms) = request.step_beyond_ms else { return ClockAction::Left };
    let tolerated = step_beyond_ms.saturating_mul(1_000_000).max(request.uncertainty_ns);
    if offset_ns.unsigned_abs() <= tolerated {
        return ClockAction::Left;
    }
    let not = |reason: &str| ClockAction::NotStepped { reason: reason.to_owned() };
    match mode {
        AgentMode::Init if may_set => ClockAction::Stepped,
        AgentMode::Init => not("`may_set_clock` is not set in the agent's configuration"),
        AgentMode::NamespaceInit | AgentMode::Service => {
            not("the clock belongs to a kernel that this agent does not run alone")
        }
    }
}

fn step(wall_ns: u64) -> ClockAction {
    let wall = Duration::from_nanos(wall_ns);
    let time = Timespec { tv_sec: wall.as_secs() as i64, tv_nsec: wall.subsec_nanos().into() };
    match clock_settime(ClockId::Realtime, time) {
        Ok(()) => ClockAction::Stepped,
        Err(error) => ClockAction::NotStepped { reason: format!("clock_settime failed: {error}") },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    fn request(step_beyond_ms: Option<u64>, uncertainty_ns: u64) -> SyncClock {
        SyncClock { wall_ns: 0, uncertainty_ns, step_beyond_ms }
    }

    #[test]
    fn offsets_are_ours_minus_theirs_and_do_not_overflow() {
        assert_eq!((offset(5, 2), offset(2, 5)), (3, -3));
        assert_eq!((offset(u128::MAX, 0), offset(0, u64::MAX)), (i64::MAX, i64::MIN));
    }

    #[test]
    fn only_the_first_process_of_a_kernel_steps_and_only_if_it_may() {
        let request = request(Some(500), 0);
        assert_eq!(decide(SECOND, &request, AgentMode::Init, true), ClockAction::Stepped);
        assert_eq!(decide(-SECOND, &request, AgentMode::Init, true), ClockAction::Stepped);
        for (mode, may_set) in
            [(AgentMode::Init, false), (AgentMode::NamespaceInit, true), (AgentMode::Service, true)]
        {
            let action = decide(SECOND, &request, mode, may_set);
            assert!(matches!(action, ClockAction::NotStepped { .. }), "{mode:?}");
        }
    }

    #[test]
    fn what_is_within_the_tolerance_or_the_uncertainty_is_left() {
        let decide = |request| decide(SECOND, &request, AgentMode::Init, true);
        assert_eq!(decide(request(Some(1000), 0)), ClockAction::Left);
        assert_eq!(decide(request(Some(0), SECOND as u64)), ClockAction::Left);
        assert_eq!(decide(request(None, 0)), ClockAction::Left);
        assert_eq!(decide(request(Some(u64::MAX), 0)), ClockAction::Left);
        assert_eq!(decide(request(Some(999), 0)), ClockAction::Stepped);
    }

    #[test]
    fn a_service_reports_how_far_it_is_off() {
        let hour_ago = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() - Duration::from_secs(3600);
        let wall_ns = hour_ago.as_nanos() as u64;
        let request = SyncClock { wall_ns, uncertainty_ns: 0, step_beyond_ms: Some(100) };
        let report = sync(&request, AgentMode::Service, true);
        assert!(report.offset_ns >= 3600 * SECOND, "{report:?}");
        assert!(matches!(report.action, ClockAction::NotStepped { .. }), "{report:?}");
    }
}
