//! What others see of an instance.

use tokio::sync::oneshot;
use tombolo_agent::api::health::HealthClient;

use super::super::shared::Shared;
use super::Instance;
use super::watch::PROBE_MAX;
use crate::api::{InstanceDetail, InstanceView, LinkKind};
use crate::core::State;
use crate::core::health::Verdict;
use crate::core::layer::Layer;
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

/// An instance at a glance, but for what is known of a kernel that runs.
pub(super) fn view(shared: &Shared, record: &InstanceRecord, verdict: Verdict) -> InstanceView {
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
        layer: None,
        health_reason: None,
        link: None,
        spawner: record.spawner.map(|kind| kind.to_string()),
        taken_over: record.taken_over.as_ref().map(|it| format!("tx_{}", it.transaction)),
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

/// What is said of a kernel that nothing has ended.
const NEEDS_AN_OPERATOR: &str = "it could not be ended by force; this needs an operator";

impl Instance {
    pub(super) fn view(&self) -> InstanceView {
        let reason = match self.verdict {
            _ if self.cannot_be_ended() => Some(NEEDS_AN_OPERATOR.to_owned()),
            Verdict::Degraded => match self.layer {
                Some(Layer::Application | Layer::Cpu) => self.trouble_inside(self.now_ns()),
                _ => Some(self.why.clone()),
            },
            Verdict::Hung | Verdict::UserSpaceDead => Some(self.why.clone()),
            _ => None,
        };
        let reason = reason.filter(|_| self.kernel.is_some());
        InstanceView {
            layer: self.layer,
            health_reason: reason,
            link: self.kernel.as_ref().map(|kernel| kernel.link().map_or(LinkKind::Shm, |_| LinkKind::Paced)),
            ..view(&self.shared, &self.record, self.verdict)
        }
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
        let (last_words, last_console) = self.last_words().await;
        let now_ns = self.now_ns();
        InstanceDetail {
            runs_on: self.kernel.as_ref().and_then(|kernel| kernel.runs_on()).map(str::to_owned),
            view: self.view(),
            spec_json: serde_json::to_string(&self.record.spec).unwrap_or_default(),
            inventory: self.inventory.clone(),
            report: self.report.clone(),
            link_is_up: self
                .kernel
                .as_ref()
                .and_then(|kernel| kernel.link())
                .map(|_| self.shared.paced.is_up(self.record.cid)),
            why_paced: self
                .kernel
                .as_ref()
                .and_then(|kernel| kernel.link())
                .and_then(|_| self.shared.drivers.multikernel_settings().why_no_pool.clone()),
            last_beat_age_ms: self
                .kernel
                .as_ref()
                .and_then(|_| self.monitor.last_beat_ns())
                .map(|at_ns| now_ns.saturating_sub(at_ns) / 1_000_000),
            last_words,
            last_console,
            runtime_dir: folder.display().to_string(),
            console_log: self.kernel.as_ref().map(|kernel| kernel.console_log().display().to_string()),
        }
    }
}
