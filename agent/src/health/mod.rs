//! Health as seen from inside: probes, the entrypoint, and the kernel's own figures.

mod attempt;
mod failure;
mod probe;
mod rpc;
mod service;
mod system;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

pub use attempt::ProbeTools;
pub use failure::ProbeFailure;
pub use probe::{ProbeCore, Try};
pub use service::HealthService;
pub use system::{system_load, uptime_ms};

use crate::api::health::{
    AgentPhase, EntrypointState, EntrypointStatus, HealthReport, ProbeStatus, ProbeVerdict,
};
use crate::config::{ProbeConfig, ProbeKind};
use crate::cpus::CpuWatch;
use crate::entrypoint::EntrypointHandle;
use crate::state::Lifecycle;

/// How often a probe that waits for the startup probes looks again.
const GATED_RECHECK: Duration = Duration::from_millis(250);

/// The health of this kernel. Clones share it.
#[derive(Clone, Debug)]
pub struct Health(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    lifecycle: Lifecycle,
    entrypoint: Option<EntrypointHandle>,
    probes: Vec<Mutex<ProbeCore>>,
    cpus: CpuWatch,
    /// Counts changes; see [`HealthReport::revision`].
    revision: watch::Sender<u64>,
}

impl Health {
    /// Starts a task for each probe, and those that watch the entrypoint, the phase and the CPUs.
    pub fn start(
        probes: Vec<ProbeConfig>,
        tools: ProbeTools,
        lifecycle: Lifecycle,
        entrypoint: Option<EntrypointHandle>,
        cpus: CpuWatch,
    ) -> Self {
        let now = Instant::now();
        let probes = probes.into_iter().map(|config| Mutex::new(ProbeCore::new(config, now))).collect();
        let revision = watch::Sender::new(1);
        let health = Self(Arc::new(Inner { lifecycle, entrypoint, probes, cpus, revision }));
        for index in 0..health.0.probes.len() {
            tokio::spawn(health.clone().run_probe(index, tools.clone()));
        }
        tokio::spawn(health.clone().watch_lifecycle(health.0.lifecycle.subscribe()));
        tokio::spawn(health.clone().watch_entrypoint());
        tokio::spawn(health.clone().watch_cpus());
        health
    }

    /// How everything is now.
    pub fn report(&self) -> HealthReport {
        // First, so that a change meanwhile is told again rather than missed.
        let revision = *self.0.revision.borrow();
        let probes: Vec<ProbeStatus> =
            (0..self.0.probes.len()).map(|index| self.probe(index).status()).collect();
        let phase = self.0.lifecycle.phase();
        let entrypoint = self.0.entrypoint.as_ref().map(EntrypointHandle::status);
        let started = all(&probes, ProbeKind::Startup, |verdict| verdict == ProbeVerdict::Passing);
        let live = all(&probes, ProbeKind::Liveness, |verdict| verdict != ProbeVerdict::Failing);
        let ready = started
            && live
            && phase == AgentPhase::Running
            && entrypoint.as_ref().is_none_or(is_well)
            && all(&probes, ProbeKind::Readiness, |verdict| verdict == ProbeVerdict::Passing);
        let (load, stuck_cpus) = (system_load(), self.0.cpus.stuck());
        HealthReport { revision, phase, started, live, ready, probes, entrypoint, load, stuck_cpus }
    }

    /// Tells of every change from now on.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.0.revision.subscribe()
    }

    async fn run_probe(self, index: usize, tools: ProbeTools) {
        loop {
            let (due, config) = {
                let core = self.probe(index);
                (core.due(), core.config().clone())
            };
            let Some(due) = due else {
                // A startup probe has done its work, until the entrypoint is started again.
                tokio::time::sleep(GATED_RECHECK * 4).await;
                continue;
            };
            tokio::time::sleep_until(due.into()).await;
            if config.kind != ProbeKind::Startup && !self.started() {
                tokio::time::sleep(GATED_RECHECK).await;
                continue;
            }
            if self.0.lifecycle.phase() == AgentPhase::ShuttingDown {
                return;
            }
            let tried = self.probe(index).handle_try(Instant::now());
            let result = tools.attempt(&config).await;
            self.handle_result(index, &config, tried, result).await;
        }
    }

    async fn handle_result(
        &self,
        index: usize,
        config: &ProbeConfig,
        tried: Try,
        result: Result<(), ProbeFailure>,
    ) {
        let (changed, verdict) = {
            let mut core = self.probe(index);
            (core.handle_result(tried, result.clone()), core.verdict())
        };
        if !changed {
            return;
        }
        self.bump();
        match (verdict, result) {
            (ProbeVerdict::Failing, Err(reason)) => {
                tracing::warn!(probe = config.name, kind = ?config.kind, "probe fails: {reason}");
                if config.kind != ProbeKind::Readiness
                    && let Some(entrypoint) = &self.0.entrypoint
                {
                    entrypoint.report_unhealthy().await;
                }
            }
            _ => tracing::info!(probe = config.name, ?verdict, "probe changed its verdict"),
        }
    }

    fn started(&self) -> bool {
        (0..self.0.probes.len()).all(|index| {
            let core = self.probe(index);
            core.config().kind != ProbeKind::Startup || core.verdict() == ProbeVerdict::Passing
        })
    }

    async fn watch_lifecycle(self, mut phase: watch::Receiver<AgentPhase>) {
        while phase.changed().await.is_ok() {
            self.bump();
        }
    }

    async fn watch_cpus(self) {
        let mut cpus = self.0.cpus.clone();
        while cpus.changed().await.is_some() {
            tracing::warn!(stuck = ?cpus.stuck(), "other CPUs run nothing than before");
            self.bump();
        }
    }

    async fn watch_entrypoint(self) {
        let Some(entrypoint) = &self.0.entrypoint else { return };
        let mut status = entrypoint.subscribe();
        let mut last_run = None;
        loop {
            // Each run is probed afresh: not from its predecessor's end on, when there is nothing to probe.
            let run = match &status.borrow_and_update().state {
                EntrypointState::Running { pid, since_ms } => Some((*pid, *since_ms)),
                _ => None,
            };
            if run.is_some() && run != last_run {
                last_run = run;
                self.reset_probes();
            }
            self.bump();
            if status.changed().await.is_err() {
                return;
            }
        }
    }

    fn reset_probes(&self) {
        let now = Instant::now();
        (0..self.0.probes.len()).for_each(|index| self.probe(index).reset(now));
    }

    fn bump(&self) {
        self.0.revision.send_modify(|revision| *revision += 1);
    }

    fn probe(&self, index: usize) -> MutexGuard<'_, ProbeCore> {
        self.0.probes[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn all(probes: &[ProbeStatus], kind: ProbeKind, good: impl Fn(ProbeVerdict) -> bool) -> bool {
    probes.iter().filter(|probe| probe.kind == kind).all(|probe| good(probe.verdict))
}

fn is_well(entrypoint: &EntrypointStatus) -> bool {
    match entrypoint.state {
        EntrypointState::Running { .. } => true,
        EntrypointState::Ended => entrypoint.last_exit.is_some_and(|exit| exit.success()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::children::{Children, Scope};
    use crate::exec::{ExecEngine, Launcher};

    fn start(probes: &[&str]) -> (Health, Lifecycle) {
        let children = Children::new(Scope::OwnChildren);
        tokio::spawn(children.clone().run_reaper());
        let lifecycle = Lifecycle::booting();
        let exec =
            ExecEngine::new(Launcher::new(children, "/proc/self/exe".into(), false), lifecycle.clone());
        let probes = probes.iter().map(|text| serde_json::from_str(text).unwrap()).collect();
        let health =
            Health::start(probes, ProbeTools::new(exec, None), lifecycle.clone(), None, CpuWatch::idle());
        (health, lifecycle)
    }

    async fn until(health: &Health, mut wanted: impl FnMut(&HealthReport) -> bool) -> HealthReport {
        let wait = async {
            let mut changes = health.subscribe();
            loop {
                changes.mark_unchanged();
                let report = health.report();
                if wanted(&report) {
                    return report;
                }
                changes.changed().await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.expect("in time")
    }

    #[tokio::test]
    async fn a_kernel_without_probes_is_ready_once_it_runs() {
        let (health, lifecycle) = start(&[]);
        assert!(!health.report().ready && health.report().started);
        lifecycle.enter(AgentPhase::Running);
        assert!(health.report().ready);
        lifecycle.enter(AgentPhase::Quiesced);
        let report = until(&health, |report| report.revision >= 2).await;
        assert!(!report.ready && report.live);
    }

    #[tokio::test]
    async fn readiness_follows_a_file_and_waits_for_startup() {
        let dir = tempfile::tempdir().unwrap();
        let (up, fresh) = (dir.path().join("up"), dir.path().join("fresh"));
        let probe = |name, kind, path: &std::path::Path| {
            format!(
                r#"{{"name":"{name}","kind":"{kind}","period_ms":20,"failure_threshold":1,
                "file_age":{{"path":"{}","max_age_ms":3600000}}}}"#,
                path.display()
            )
        };
        std::fs::write(&fresh, "").unwrap();
        let probes = [probe("up", "startup", &up), probe("fresh", "readiness", &fresh)];
        let (health, lifecycle) = start(&[&probes[0], &probes[1]]);
        lifecycle.enter(AgentPhase::Running);
        let report = until(&health, |report| report.probes[0].verdict == ProbeVerdict::Failing).await;
        assert_eq!(report.probes[1].verdict, ProbeVerdict::Pending);
        std::fs::write(&up, "").unwrap();
        until(&health, |report| report.ready).await;
        std::fs::remove_file(&fresh).unwrap();
        until(&health, |report| !report.ready && report.live).await;
    }

    #[tokio::test]
    async fn a_run_that_hangs_from_its_start_is_restarted_whatever_was_probed_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let children = Children::new(Scope::OwnChildren);
        tokio::spawn(children.clone().run_reaper());
        let launcher = Launcher::new(children, "/proc/self/exe".into(), false);
        let lifecycle = Lifecycle::booting();
        let exec = ExecEngine::new(launcher.clone(), lifecycle.clone());
        // The first run ends, so that the probe fails while there is nothing to probe; the second hangs.
        let script = "[ -e ran ] && exec sleep 1000; touch ran; exit 1";
        let entrypoint =
            serde_json::json!({"argv": ["/bin/sh", "-c", script], "cwd": dir.path(), "restart": "always"});
        let log = crate::logs::Log::new(1, crate::blackbox::BlackBox::default(), None);
        let entrypoint = serde_json::from_value(entrypoint).unwrap();
        let entrypoint = EntrypointHandle::start(entrypoint, launcher, log);
        let probe = serde_json::json!({"name": "never", "kind": "liveness", "period_ms": 20, "failure_threshold": 1,
            "file_age": {"path": dir.path().join("never"), "max_age_ms": 1}});
        let probes = vec![serde_json::from_value(probe).unwrap()];
        let tools = ProbeTools::new(exec, None);
        Health::start(probes, tools, lifecycle, Some(entrypoint.clone()), CpuWatch::idle());
        let mut status = entrypoint.subscribe();
        let restarted = status.wait_for(|status| status.restarts >= 2);
        tokio::time::timeout(Duration::from_secs(20), restarted).await.expect("in time").unwrap();
        entrypoint.stop(Duration::from_secs(5)).await;
    }
}
