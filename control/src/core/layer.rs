//! Which part of a kernel fails, and what fails of its programs. Pure functions of the evidence.
//!
//! Only the smallest part that fails is acted upon, by whoever is next to it: a program by the agent, which starts it again; a user space
//! or a kernel by the [ladder](super::fencing). Of the others the operator is told.

use std::fmt;

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};
use tombolo_agent::api::health::{AgentPhase, EntrypointState, HealthReport, ProbeVerdict};
use tombolo_agent::config::ProbeKind;

use super::health::{Verdict, Wellness};

/// A part that can fail by itself, the smallest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// What the instance runs.
    Application,
    /// The agent, or its heartbeat alone.
    Agent,
    /// All programs.
    UserSpace,
    /// Single CPUs.
    Cpu,
    /// The kernel.
    Kernel,
    /// The way to the agent: everything inside goes on.
    Link,
}

/// What is known of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// What it amounts to.
    pub verdict: Verdict,
    /// The heartbeat has stopped.
    pub beat_silent: bool,
    /// The agent does not answer.
    pub probe_silent: bool,
    /// There is a link to the agent.
    pub is_linked: bool,
    /// What the agent last said of the programs.
    pub wellness: Wellness,
    /// A CPU runs nothing.
    pub has_stuck_cpu: bool,
}

/// The smallest part that fails; `None` if none is known to.
pub fn smallest_failed(evidence: Evidence) -> Option<Layer> {
    match evidence.verdict {
        Verdict::Absent | Verdict::Booting | Verdict::Live | Verdict::Ready | Verdict::PoweredOff => None,
        Verdict::Hung | Verdict::Panicked | Verdict::Killed => Some(Layer::Kernel),
        Verdict::UserSpaceDead => Some(Layer::UserSpace),
        Verdict::Degraded => match (evidence.beat_silent, evidence.probe_silent) {
            (false, false) if evidence.wellness == Wellness::Unwell => Some(Layer::Application),
            (false, false) => evidence.has_stuck_cpu.then_some(Layer::Cpu),
            (false, true) if !evidence.is_linked => Some(Layer::Link),
            // With both silent the kernel is being asked whether it is more than that.
            (true, _) | (_, true) => Some(Layer::Agent),
        },
    }
}

/// How well the programs are.
pub fn wellness(report: &HealthReport) -> Wellness {
    if complaint(report).is_some() {
        Wellness::Unwell
    } else if report.ready {
        Wellness::Ready
    } else {
        Wellness::NotReady
    }
}

/// What fails of the programs, in words; `None` if nothing does.
pub fn complaint(report: &HealthReport) -> Option<String> {
    let fails = |kind| move |probe: &&_| is_failing(probe, kind);
    let probe = report.probes.iter().find(fails(ProbeKind::Liveness));
    let complaint = match (&report.entrypoint, probe) {
        // One that is being stopped is no failure.
        _ if report.phase == AgentPhase::ShuttingDown => return None,
        (Some(entrypoint), _) => match (&entrypoint.state, entrypoint.last_exit) {
            (EntrypointState::CannotStart { reason, .. }, _) => {
                Some(format!("the program cannot be started: {reason}"))
            }
            (EntrypointState::BackOff { .. } | EntrypointState::Ended, Some(exit)) if !exit.success() => {
                Some(format!("the program has ended: {exit}"))
            }
            _ => None,
        },
        (None, _) => None,
    };
    let of_probe = || probe.map(|probe| format!("probe `{}` fails: {}", probe.name, probe.last_failure));
    let said =
        complaint.or_else(of_probe).or_else(|| (!report.live).then(|| "a liveness probe fails".into()))?;
    // It comes from inside: bounded, and nothing that plays with a terminal.
    Some(said.chars().filter(|c| !c.is_control()).take(COMPLAINT_CHARS_MAX).collect())
}

/// Longest complaint, in characters.
const COMPLAINT_CHARS_MAX: usize = 200;

fn is_failing(probe: &tombolo_agent::api::health::ProbeStatus, kind: ProbeKind) -> bool {
    probe.kind == kind && probe.verdict == ProbeVerdict::Failing
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Application => "application",
            Self::Agent => "agent",
            Self::UserSpace => "user-space",
            Self::Cpu => "cpu",
            Self::Kernel => "kernel",
            Self::Link => "link",
        })
    }
}

#[cfg(test)]
mod tests {
    use tombolo_agent::api::exec::ExitStatus;
    use tombolo_agent::api::health::{EntrypointStatus, ProbeStatus, SystemLoad};

    use super::*;

    const DEGRADED: Evidence = Evidence {
        verdict: Verdict::Degraded,
        beat_silent: false,
        probe_silent: false,
        is_linked: true,
        wellness: Wellness::Ready,
        has_stuck_cpu: false,
    };

    #[test]
    fn the_smallest_part_that_fails_is_named() {
        let silent = Evidence { probe_silent: true, ..DEGRADED };
        let stuck = Evidence { has_stuck_cpu: true, ..DEGRADED };
        for (evidence, layer) in [
            (Evidence { wellness: Wellness::Unwell, ..DEGRADED }, Some(Layer::Application)),
            (Evidence { wellness: Wellness::Unwell, ..stuck }, Some(Layer::Application)),
            (stuck, Some(Layer::Cpu)),
            (silent, Some(Layer::Agent)),
            (Evidence { is_linked: false, ..silent }, Some(Layer::Link)),
            (Evidence { beat_silent: true, ..DEGRADED }, Some(Layer::Agent)),
            (Evidence { beat_silent: true, ..silent }, Some(Layer::Agent)),
            (Evidence { verdict: Verdict::UserSpaceDead, ..silent }, Some(Layer::UserSpace)),
            (Evidence { verdict: Verdict::Hung, ..silent }, Some(Layer::Kernel)),
            (Evidence { verdict: Verdict::Panicked, ..DEGRADED }, Some(Layer::Kernel)),
            (Evidence { verdict: Verdict::Ready, ..DEGRADED }, None),
            (Evidence { verdict: Verdict::Booting, ..silent }, None),
        ] {
            assert_eq!(smallest_failed(evidence), layer, "{evidence:?}");
        }
    }

    fn report(state: EntrypointState, last_exit: Option<ExitStatus>) -> HealthReport {
        HealthReport {
            revision: 1,
            phase: AgentPhase::Running,
            started: true,
            live: true,
            ready: false,
            probes: vec![],
            entrypoint: Some(EntrypointStatus { argv: vec!["kv".into()], state, restarts: 0, last_exit }),
            load: SystemLoad::default(),
            stuck_cpus: vec![],
        }
    }

    #[test]
    fn a_program_that_failed_is_complained_of_and_one_that_has_not_run_yet_is_not() {
        let waits = || EntrypointState::BackOff { next_in_ms: 9 };
        assert_eq!(wellness(&report(waits(), None)), Wellness::NotReady);
        assert_eq!(wellness(&report(waits(), Some(ExitStatus::Code(0)))), Wellness::NotReady);
        let failed = report(waits(), Some(ExitStatus::Code(3)));
        assert_eq!(wellness(&failed), Wellness::Unwell);
        assert_eq!(complaint(&failed).unwrap(), "the program has ended: exit status 3");
        assert_eq!(wellness(&HealthReport { phase: AgentPhase::ShuttingDown, ..failed }), Wellness::NotReady);
        let running = EntrypointState::Running { pid: 7, since_ms: 1 };
        let again = HealthReport { ready: true, ..report(running, Some(ExitStatus::Code(3))) };
        assert_eq!(wellness(&again), Wellness::Ready);
    }

    #[test]
    fn a_liveness_probe_that_fails_is_named_and_words_from_inside_are_bounded() {
        let probe = ProbeStatus {
            name: "web".into(),
            kind: ProbeKind::Liveness,
            verdict: ProbeVerdict::Failing,
            tries: 3,
            failures_in_a_row: 3,
            last_failure: format!("\x1b[2J{}", "x".repeat(10_000)),
            last_failure_kind: None,
        };
        let running = EntrypointState::Running { pid: 7, since_ms: 1 };
        let mut failing = HealthReport { live: false, probes: vec![probe], ..report(running, None) };
        let said = complaint(&failing).unwrap();
        assert!(said.starts_with("probe `web` fails: [2Jxxx") && said.len() == COMPLAINT_CHARS_MAX, "{said}");
        failing.probes[0].kind = ProbeKind::Readiness;
        failing.live = true;
        assert_eq!(complaint(&failing), None);
    }
}
