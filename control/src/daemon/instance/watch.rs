//! Watching a kernel: heartbeat, probes, verdict.

use std::time::Duration;

use tombolo_agent::api::health::HealthReport;

use super::Instance;
use crate::core::health::{Verdict, Wellness};
use crate::core::layer::{complaint, wellness};
use crate::core::lifecycle::Input;
use crate::core::{EventKind, State};
use crate::store::Batch;

/// From one look to the next while something is suspicious; otherwise a heartbeat apart.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How long an agent may take to answer a probe.
pub(super) const PROBE_MAX: Duration = Duration::from_millis(300);
/// From one probe to the next.
const PROBE_EVERY_NS: u64 = 1_000_000_000;
/// The same while something is suspicious.
const PROBE_AGAIN_NS: u64 = 250_000_000;
/// How long after a death the heartbeat is looked at once more: three beats and a little.
const CONFIRM_AFTER_NS: u64 = 700_000_000;

/// When probes are sent.
#[derive(Debug, Default)]
pub(super) struct ProbeClock {
    last_ns: Option<u64>,
    in_flight: bool,
    failing: bool,
}

/// The second witness of a death: the heartbeat must not go on.
#[derive(Debug)]
pub(super) struct Confirmation {
    pub(super) due_ns: u64,
    pub(super) beats: Option<u64>,
    pub(super) last_beat_ns: Option<u64>,
}

impl ProbeClock {
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }

    /// The probe under way, if there is one, will not be answered.
    pub(super) fn abandon(&mut self) {
        self.in_flight = false;
    }

    fn is_due(&self, now_ns: u64, suspicious: bool) -> bool {
        let period = if suspicious || self.failing { PROBE_AGAIN_NS } else { PROBE_EVERY_NS };
        !self.in_flight && self.last_ns.is_none_or(|last| now_ns.saturating_sub(last) >= period)
    }
}

impl Confirmation {
    pub(super) fn new(now_ns: u64, beats: Option<u64>, last_beat_ns: Option<u64>) -> Self {
        Self { due_ns: now_ns + CONFIRM_AFTER_NS, beats, last_beat_ns }
    }
}

impl Instance {
    /// One look at everything that does not report by itself. Returns when to look again at the latest.
    pub(super) async fn look(&mut self) -> Duration {
        let now_ns = self.now_ns();
        self.confirm_death(now_ns).await;
        if self.kernel.is_none() {
            return LOOK_AGAIN;
        }
        self.monitor.tick(now_ns);
        if let Some(beats) = self.beats() {
            self.monitor.heartbeat(now_ns, beats);
        }
        self.climb().await;
        if self.kernel.is_none() {
            return LOOK_AGAIN;
        }
        if self.probe.is_due(now_ns, self.monitor.wants_probe(now_ns)) {
            self.probe.last_ns = Some(now_ns);
            if self.link.is_some() {
                self.probe.in_flight = true;
                self.send_probe();
            } else {
                self.probe.failing = true;
                self.monitor.probe_failed();
            }
        }
        self.ask_kernel(now_ns);
        self.judge(now_ns).await;
        let calm = self.verdict.answers() && !self.probe.failing && !self.monitor.wants_probe(now_ns);
        let beat = Duration::from_millis(self.record.spec.heartbeat_ms);
        let again = match calm {
            true => beat,
            // A hang may last for days.
            false if self.verdict.is_silent() => LOOK_AGAIN,
            false => LOOK_AGAIN.min(beat),
        };
        // From now: recording a change may have taken its time.
        self.monitor.sleep(self.now_ns(), again);
        again
    }

    pub(super) async fn probed(&mut self, link: u64, outcome: Result<(), String>) {
        if !self.is_current(link) {
            return;
        }
        self.probe.in_flight = false;
        self.probe.failing = outcome.is_err();
        let now_ns = self.now_ns();
        match outcome {
            Ok(()) => {
                let wellness = self.report.as_ref().map_or(Wellness::NotReady, wellness);
                self.monitor.probe_answered(now_ns, wellness);
            }
            Err(reason) => {
                tracing::debug!(instance = %self.record.name, reason, "a probe was not answered");
                self.monitor.probe_failed();
            }
        }
        if self.kernel.is_some() {
            self.judge(now_ns).await;
        }
    }

    pub(super) async fn reported(&mut self, link: u64, report: HealthReport) {
        if !self.is_current(link) {
            return;
        }
        let now_ns = self.now_ns();
        self.monitor.probe_answered(now_ns, wellness(&report));
        self.untold.extend(self.cpus.report(now_ns, &report.stuck_cpus));
        self.monitor.cpus_reported(!self.cpus.is_empty());
        self.report = Some(report);
        // Before the agent has introduced itself there is nothing to judge.
        if self.kernel.is_some() && self.inventory.is_some() {
            self.judge(now_ns).await;
        }
    }

    /// Tells, and acts on, a change of the verdict; tells what else was seen.
    pub(super) async fn judge(&mut self, now_ns: u64) {
        let mut events = std::mem::take(&mut self.untold);
        events.extend(self.change_of_verdict(now_ns));
        if events.is_empty() {
            return;
        }
        let to = self.verdict;
        let silent_ms = self.monitor.last_sign_ns().map_or(0, |at| now_ns.saturating_sub(at) / 1_000_000);
        let state = self.record.life.state();
        if to.is_silent() && matches!(state, State::Running | State::Adopted) {
            self.silent_since_ns = Some(now_ns.saturating_sub(silent_ms * 1_000_000));
            events.push(match to {
                Verdict::UserSpaceDead => EventKind::UserSpaceDead { silent_ms },
                _ => EventKind::Hung { silent_ms },
            });
            let _ = self.step(Input::Silent, events).await;
        } else if to.answers() && state == State::Hung && self.may_come_back() {
            events.push(self.recovered(now_ns));
            let _ = self.step(Input::Answers, events).await;
            self.sync_clock();
            // What was told to it in the meantime it may not have heard.
            self.push_rules();
        } else {
            let incarnation = self.record.incarnation.map(|incarnation| incarnation.to_string());
            let batch = events.into_iter().fold(Batch::new(), |batch, event| {
                batch.event(Some(&self.record.name), incarnation.clone(), event)
            });
            if let Err(error) = self.shared.store.commit(batch).await {
                tracing::warn!(instance = %self.record.name, %error, "a change of health could not be recorded");
            }
            self.publish();
        }
    }

    /// The end of a silence.
    pub(super) fn recovered(&mut self, now_ns: u64) -> EventKind {
        let since_ns = self.silent_since_ns.take().unwrap_or(now_ns);
        EventKind::Recovered { after_ms: now_ns.saturating_sub(since_ns) / 1_000_000 }
    }

    /// Judges anew; says what has changed.
    pub(super) fn change_of_verdict(&mut self, now_ns: u64) -> Option<EventKind> {
        let (from, to) = (self.verdict, self.monitor.verdict(now_ns));
        let layer = self.monitor.layer(now_ns, self.link.is_some());
        if (from, self.layer) == (to, layer) {
            return None;
        }
        (self.verdict, self.layer) = (to, layer);
        self.why = self.why(now_ns);
        let why = &self.why;
        tracing::info!(instance = %self.record.name, %from, %to, ?layer, why, "health");
        Some(EventKind::Health { from, to, layer, why: why.clone() })
    }

    fn why(&self, now_ns: u64) -> String {
        let beat = match self.monitor.last_beat_ns() {
            Some(at) => format!(
                "heartbeat {} ms ago (suspicion {:.1})",
                now_ns.saturating_sub(at) / 1_000_000,
                self.monitor.suspicion(now_ns).min(99.0)
            ),
            None if !self.shares_memory() => "it shares no memory, so has no heartbeat".to_owned(),
            None => "no heartbeat seen".to_owned(),
        };
        let probe = match (&self.link, self.probe.failing) {
            (None, _) => "no link to the agent",
            (Some(_), true) => "the agent does not answer",
            (Some(_), false) => "the agent answers",
        };
        let inside = self.trouble_inside(now_ns).map_or_else(String::new, |trouble| format!("{trouble}; "));
        format!("{inside}{beat}, {probe}{}", self.kernel_probe.last_word())
    }

    /// What the agent complains of, the smallest part first.
    pub(super) fn trouble_inside(&self, now_ns: u64) -> Option<String> {
        let report = self.report.as_ref().filter(|_| self.kernel.is_some());
        report.and_then(complaint).or_else(|| self.cpus.reason(now_ns))
    }

    async fn confirm_death(&mut self, now_ns: u64) {
        let Some(confirmation) = self.confirm.take_if(|confirmation| confirmation.due_ns <= now_ns) else {
            return;
        };
        let event = match (confirmation.beats, self.beats()) {
            (Some(then), Some(now)) if now > then => {
                EventKind::DeathContradicted { beats_after_death: now - then }
            }
            _ => EventKind::DeathConfirmed {
                silent_ms: confirmation.last_beat_ns.map_or(0, |at| now_ns.saturating_sub(at) / 1_000_000),
            },
        };
        self.shared.note(Some(&self.record.name), event).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_whose_link_was_lost_does_not_hold_up_the_next() {
        let mut clock = ProbeClock { last_ns: Some(0), in_flight: true, failing: false };
        assert!(!clock.is_due(10 * PROBE_EVERY_NS, false));
        clock.abandon();
        assert!(clock.is_due(10 * PROBE_EVERY_NS, false));
    }
}
