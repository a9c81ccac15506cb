//! What others see of an instance.

use tokio::sync::oneshot;
use tombolo_agent::api::health::HealthClient;
use tombolo_transport::pool::Member;

use super::super::shared::Shared;
use super::Instance;
use super::watch::PROBE_MAX;
use crate::api::{InstanceDetail, InstanceView, LastWord};
use crate::core::State;
use crate::core::health::Verdict;
use crate::core::lifecycle::End;
use crate::store::InstanceRecord;

/// How the last kernel of a record ended, as a verdict.
pub(super) fn verdict_of_the_past(record: &InstanceRecord) -> Verdict {
    match (record.life.state(), &record.last_end) {
        (State::Failed | State::Lost, Some(last)) => match last.end {
            End::PoweredOff | End::Exited(0) => Verdict::PoweredOff,
            End::Panicked => Verdict::Panicked,
            End::Signaled(_) | End::Exited(_) | End::Vanished => Verdict::Killed,
        },
        _ => Verdict::Absent,
    }
}

/// An instance at a glance. `health_reason` is why its health is no better.
pub(super) fn view(
    shared: &Shared,
    record: &InstanceRecord,
    verdict: Verdict,
    health_reason: Option<String>,
) -> InstanceView {
    let state = record.life.state();
    let has_kernel = state.may_have_kernel();
    let health = match state {
        State::Defined | State::Reserved | State::Loaded | State::Stopped => Verdict::Absent,
        _ => verdict,
    };
    InstanceView {
        name: record.name.to_string(),
        cid: record.cid.0,
        member: u32::from(record.member),
        state,
        desired: record.life.desired(),
        health,
        health_reason,
        spawner: record.spawner.map(|kind| kind.to_string()),
        pid: record.pid.filter(|_| has_kernel),
        incarnation: record.incarnation.filter(|_| has_kernel).map(|incarnation| incarnation.to_string()),
        boot_id: record.boot_id.clone().filter(|_| has_kernel),
        kernel: record.kernel.clone().filter(|_| has_kernel),
        generation: if has_kernel { shared.generation(record.member) } else { 0 },
        up_since_unix_ns: record.life.up_since_ns(),
        boots: record.boots,
        restarts: record.restarts,
        memory_mib: shared.ledger.memory_mib(record.cid).unwrap_or(record.spec.memory_mib),
        last_end: record.last_end.as_ref().map(|last| last.end),
        last_end_unix_ns: record.last_end.as_ref().map(|last| last.at_unix_ns),
        last_error: record.last_error.clone(),
    }
}

impl Instance {
    pub(super) fn view(&self) -> InstanceView {
        let reason = match self.verdict {
            Verdict::Degraded => self.cpus.reason(self.now_ns()).or_else(|| Some(self.why.clone())),
            Verdict::Hung | Verdict::UserSpaceDead => Some(self.why.clone()),
            _ => None,
        };
        view(&self.shared, &self.record, self.verdict, reason.filter(|_| self.kernel.is_some()))
    }

    /// Answers with everything that is known, its load as it is now. The agent is asked in a task of its own.
    pub(super) async fn inspect(&self, reply: oneshot::Sender<InstanceDetail>) {
        let mut detail = self.detail().await;
        let health = self.link.as_ref().map(|link| HealthClient::new(link.link.clone()));
        tokio::spawn(async move {
            if let Some(health) = health
                && let Ok(report) = health.status().deadline(PROBE_MAX).await
            {
                detail.report = Some(report);
            }
            drop(reply.send(detail));
        });
    }

    async fn detail(&self) -> InstanceDetail {
        let folder = self.shared.places.instance(&self.record.name);
        let words = tokio::fs::read(folder.join(LAST_WORDS)).await.unwrap_or_default();
        let now_ns = self.now_ns();
        InstanceDetail {
            view: self.view(),
            spec_json: serde_json::to_string(&self.record.spec).unwrap_or_default(),
            inventory: self.inventory.clone(),
            report: self.report.clone(),
            last_beat_age_ms: self
                .kernel
                .as_ref()
                .and_then(|_| self.monitor.last_beat_ns())
                .map(|at_ns| now_ns.saturating_sub(at_ns) / 1_000_000),
            last_words: serde_json::from_slice(&words).unwrap_or_default(),
            runtime_dir: folder.display().to_string(),
            console_log: self.kernel.as_ref().map(|kernel| kernel.console_log().display().to_string()),
        }
    }

    /// What the present or last kernel wrote to its black box, oldest first.
    pub(super) fn black_box(&self) -> Vec<LastWord> {
        let since_ns = self.record.spawned_unix_ns.unwrap_or(0);
        let records = self.shared.pool.black_box(Member(self.record.member));
        // What an earlier boot of this member wrote may still stand before it.
        let of_this_boot = records.into_iter().filter(|record| record.unix_ns >= since_ns);
        let mut words: Vec<LastWord> = of_this_boot
            .map(|record| LastWord {
                at_ns: record.unix_ns,
                level: format!("{:?}", record.level).to_lowercase(),
                text: record.text,
            })
            .collect();
        words.drain(..words.len().saturating_sub(LAST_WORDS_MAX));
        words
    }
}

/// Where the last words are kept, in the instance's folder.
pub(super) const LAST_WORDS: &str = "last-words.json";
/// Records kept: the end of the story. 200 x 256 bytes.
const LAST_WORDS_MAX: usize = 200;
