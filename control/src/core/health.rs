//! Is a kernel well? Fuses what independent witnesses say; decides only, with time as an argument.
//!
//! | witness | says |
//! |---|---|
//! | pool heartbeat | a thread of the agent's own runs (phi-accrual over its gaps) |
//! | agent probe | the agent answers a call, how ready its programs are, and which CPUs run nothing |
//! | spawner | the kernel exists, or how it ended: certain, for the keeper is its parent |
//! | kernel probe | the kernel itself answers, whatever its user space does (where the spawner can ask) |
//!
//! A kernel that shares no memory has no heartbeat there. Then its agent alone speaks for its user space, over a link that may be broken
//! for a while: silence counts once it lasts longer than a broken link takes to be mended ([`HealthConfig::mended`]), and condemns only together
//! with what the kernel itself says.
//!
//! No single silence condemns: a kernel counts as hung only when two witnesses say so, the heartbeat and either the kernel itself, which is
//! asked as soon as the heartbeat arouses suspicion, or the probe. Whether it is the kernel or only its user space is for the kernel
//! itself to say: where it can be asked, the verdict waits for its answer.
//! The detector distrusts itself too: after its own timer came late (a busy or suspended host) it waits out that lag anew.
//! Times are ns on one monotonic clock.

use std::fmt;
use std::time::Duration;

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

use super::layer::{self, Layer};
use super::lifecycle::End;
use super::phi::Phi;

/// What the witnesses amount to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// There is no kernel.
    Absent,
    /// It was started and has not reported yet.
    Booting,
    /// It answers; its programs are not ready, or do not say.
    Live,
    /// It answers and its programs are ready.
    Ready,
    /// It answers on one way only, or says itself that something is wrong.
    Degraded,
    /// The kernel runs but nothing of its user space does.
    UserSpaceDead,
    /// It exists but answers on no way.
    Hung,
    /// It panicked.
    Panicked,
    /// It switched itself off.
    PoweredOff,
    /// It was killed, or ended in a way it did not choose.
    Killed,
}

/// How well its programs are, as the agent sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wellness {
    /// No readiness probe fails.
    Ready,
    /// Startup or readiness probes have not passed.
    NotReady,
    /// A liveness probe fails, or the program has ended badly.
    Unwell,
}

/// Thresholds.
#[derive(Clone, Copy, Debug)]
pub struct HealthConfig {
    /// Expected gap between heartbeats. Default 100 ms.
    pub heartbeat: Duration,
    /// Silence beyond the usual that arouses no suspicion: a busy host. Default 300 ms.
    pub pause: Duration,
    /// Suspicion at which the heartbeat counts as stopped. Default 8 (wrong once in 10^8 gaps).
    pub phi_max: f64,
    /// Failed probes in a row that count as silence. Default 2.
    pub probe_failures_max: u32,
    /// A tick this much later than planned means that we were not running. Default 200 ms.
    pub own_lag_max: Duration,
    /// Where there is no heartbeat: how long the agent must be silent for that to count. Default 3 s: two until the link's socket is known to be
    /// dead, and one for another.
    pub mended: Duration,
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(100),
            pause: Duration::from_millis(300),
            phi_max: 8.0,
            probe_failures_max: 2,
            own_lag_max: Duration::from_millis(200),
            mended: Duration::from_secs(3),
        }
    }
}

/// Beats that may be missing without suspicion, where that is a shorter time than the default; and the least that it is.
const PAUSE_BEATS: u32 = 5;
const PAUSE_MIN: Duration = Duration::from_millis(100);

impl HealthConfig {
    /// The defaults for heartbeats `heartbeat` apart: patience grows with the gap.
    pub fn for_heartbeat(heartbeat: Duration) -> Self {
        let default = Self::default();
        // Whoever wants to know of a hang soon has it beat often; a scheduler is late by as much however often that is.
        let pause = (heartbeat * PAUSE_BEATS).clamp(PAUSE_MIN, default.pause).max(heartbeat);
        Self { heartbeat, pause, own_lag_max: default.own_lag_max.min(pause), ..default }
    }
}

/// What the kernel itself says when its spawner asks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KernelWitness {
    /// It has not been asked since something became suspicious.
    NotAsked,
    /// It answers.
    Answers,
    /// It does not answer.
    Silent,
    /// Its spawner has no way to ask it.
    Mute,
}

/// Watches one boot of one kernel.
#[derive(Clone, Debug)]
pub struct Monitor {
    config: HealthConfig,
    phi: Phi,
    /// Last counter seen, and when it was seen to have moved.
    beat: Option<(u64, u64)>,
    /// When the last probe was answered.
    answered_ns: Option<u64>,
    wellness: Wellness,
    /// A CPU of it runs nothing.
    has_stuck_cpu: bool,
    probe_failures: u32,
    /// Whether it can beat.
    has_heartbeat: bool,
    kernel: KernelWitness,
    end: Option<End>,
    /// When the next tick was due.
    tick_due_ns: Option<u64>,
    /// Until when silences are excused because we ourselves were not running.
    excused_until_ns: u64,
}

impl Monitor {
    /// A monitor for a kernel that has just been started or found.
    pub fn new(config: HealthConfig) -> Self {
        Self {
            phi: Phi::new(config.heartbeat, config.pause),
            config,
            beat: None,
            answered_ns: None,
            wellness: Wellness::NotReady,
            has_stuck_cpu: false,
            probe_failures: 0,
            has_heartbeat: true,
            kernel: KernelWitness::NotAsked,
            end: None,
            tick_due_ns: None,
            excused_until_ns: 0,
        }
    }

    /// Notes whether there can be a heartbeat: there is none of a kernel that shares no memory.
    pub fn expects_heartbeat(&mut self, has_heartbeat: bool) {
        self.has_heartbeat = has_heartbeat;
    }

    /// Notes that an earlier daemon knew this kernel to hang: what it would have to say to be believed well, it has yet to say.
    pub fn was_silent(&mut self, now_ns: u64) {
        self.answered_ns = Some(now_ns);
        self.probe_failures = self.config.probe_failures_max;
    }

    /// For how long a heartbeat must be silent that has stopped.
    pub fn silence(&self) -> Duration {
        self.config.pause
    }

    /// Notes the heartbeat counter as it stands in the pool now.
    pub fn heartbeat(&mut self, now_ns: u64, counter: u64) {
        match self.beat {
            Some((last, _)) if last == counter => {}
            Some((_, at)) => {
                self.phi.observe(Duration::from_nanos(now_ns.saturating_sub(at)).min(self.config.pause * 4));
                self.beat = Some((counter, now_ns));
            }
            None if counter == 0 => {}
            None => self.beat = Some((counter, now_ns)),
        }
    }

    /// Notes that the agent answered a probe (or reported by itself).
    pub fn probe_answered(&mut self, now_ns: u64, wellness: Wellness) {
        self.answered_ns = Some(now_ns);
        self.wellness = wellness;
        self.probe_failures = 0;
    }

    /// Notes whether the agent says that a CPU runs nothing.
    pub fn cpus_reported(&mut self, has_stuck_cpu: bool) {
        self.has_stuck_cpu = has_stuck_cpu;
    }

    /// Notes that a probe got no answer in time, or that there is no link to the agent.
    pub fn probe_failed(&mut self) {
        self.probe_failures = self.probe_failures.saturating_add(1);
    }

    /// Notes whether the kernel itself answers its spawner; `None` when the spawner cannot ask.
    pub fn kernel_probed(&mut self, answers: Option<bool>) {
        self.kernel = match answers {
            Some(true) => KernelWitness::Answers,
            Some(false) => KernelWitness::Silent,
            None => KernelWitness::Mute,
        };
    }

    /// Whether the kernel itself should be asked now: something is suspicious, and it can be asked. Once nothing is, what
    /// it said is forgotten.
    pub fn wants_kernel_probe(&mut self, now_ns: u64) -> bool {
        if self.end.is_some() || self.answered_ns.is_none() {
            return false;
        }
        let suspicious = self.wants_probe(now_ns) || self.probe_failures > 0;
        if !suspicious {
            self.kernel = KernelWitness::NotAsked;
        }
        suspicious && self.kernel != KernelWitness::Mute
    }

    /// Notes how the kernel ended, as its keeper saw it.
    pub fn ended(&mut self, end: End) {
        self.end = Some(end);
    }

    /// Notes that this code runs now: finds out when it was kept from running longer than [`Monitor::sleep`] said.
    pub fn tick(&mut self, now_ns: u64) {
        if let Some(due_ns) = self.tick_due_ns.take() {
            let lag_ns = now_ns.saturating_sub(due_ns);
            // What was silent before that stays so until it is heard.
            let was_silent = self.verdict(due_ns).is_silent();
            if lag_ns > self.config.own_lag_max.as_nanos() as u64 && !was_silent {
                // Others on this machine were kept waiting as well: give them as long as we lost, once.
                self.excused_until_ns = now_ns + lag_ns.min(MAX_EXCUSE_NS);
            }
        }
    }

    /// Notes that this code means to run again within `next`.
    pub fn sleep(&mut self, now_ns: u64, next: Duration) {
        self.tick_due_ns = Some(now_ns + next.as_nanos() as u64);
    }

    /// When the heartbeat last moved.
    pub fn last_beat_ns(&self) -> Option<u64> {
        self.beat.map(|(_, at)| at)
    }

    /// When it last showed a sign of life: where there is no heartbeat, by its agent's answer.
    pub fn last_sign_ns(&self) -> Option<u64> {
        if self.has_heartbeat { self.last_beat_ns() } else { self.answered_ns }
    }

    /// How suspicious the heartbeat's silence is.
    pub fn suspicion(&self, now_ns: u64) -> f64 {
        match self.beat {
            Some((_, at)) => self.phi.suspicion(Duration::from_nanos(now_ns.saturating_sub(at))),
            None => 0.0,
        }
    }

    /// Whether the heartbeat's silence makes an early probe worth while.
    pub fn wants_probe(&self, now_ns: u64) -> bool {
        self.suspicion(now_ns) > self.config.phi_max / 2.0
    }

    /// How long the kernel itself may take to answer; it does so from an interrupt.
    pub fn kernel_answer_max(&self) -> Duration {
        (self.config.pause * 3 / 2).min(KERNEL_ANSWER_MAX)
    }

    /// Whether the agent was heard after the heartbeat had stopped.
    fn answered_since_last_beat(&self) -> bool {
        let gap_ns = self.config.heartbeat.as_nanos() as u64;
        self.beat.is_none_or(|(_, beat_ns)| {
            self.answered_ns.is_some_and(|answered_ns| answered_ns > beat_ns.saturating_add(gap_ns))
        })
    }

    /// The smallest part that fails now, if any does. `is_linked`: there is a link to the agent.
    pub fn layer(&self, now_ns: u64, is_linked: bool) -> Option<Layer> {
        layer::smallest_failed(layer::Evidence {
            verdict: self.verdict(now_ns),
            beat_silent: self.beat_silent(now_ns),
            probe_silent: self.probe_silent(now_ns),
            is_linked,
            wellness: self.wellness,
            has_stuck_cpu: self.has_stuck_cpu,
        })
    }

    fn beat_silent(&self, now_ns: u64) -> bool {
        !self.is_excused(now_ns) && self.beat.is_some() && self.suspicion(now_ns) >= self.config.phi_max
    }

    fn probe_silent(&self, now_ns: u64) -> bool {
        !self.is_excused(now_ns) && self.probe_failures >= self.config.probe_failures_max
    }

    /// Whether the agent, the only one who speaks for its user space, was not heard for longer than a broken link takes to be mended.
    fn is_unheard(&self, now_ns: u64) -> bool {
        let since = self.answered_ns.map_or(0, |answered_ns| now_ns.saturating_sub(answered_ns));
        self.probe_silent(now_ns) && since >= self.config.mended.as_nanos() as u64
    }

    fn is_excused(&self, now_ns: u64) -> bool {
        now_ns < self.excused_until_ns
    }

    /// What all of it amounts to now.
    pub fn verdict(&self, now_ns: u64) -> Verdict {
        if let Some(end) = self.end {
            return match end {
                End::PoweredOff | End::Exited(0) => Verdict::PoweredOff,
                End::Panicked => Verdict::Panicked,
                End::Signaled(_) | End::Exited(_) | End::Vanished => Verdict::Killed,
            };
        }
        if self.answered_ns.is_none() {
            return Verdict::Booting;
        }
        if !self.has_heartbeat && self.is_unheard(now_ns) {
            return match self.kernel {
                KernelWitness::Answers => Verdict::UserSpaceDead,
                KernelWitness::Silent => Verdict::Hung,
                // One witness alone.
                KernelWitness::NotAsked | KernelWitness::Mute => Verdict::Degraded,
            };
        }
        let (beat_silent, probe_silent) = (self.beat_silent(now_ns), self.probe_silent(now_ns));
        // Two witnesses already: one waits for the third only if it has answered since.
        let kernel_silent = self.kernel == KernelWitness::Silent
            && !self.is_excused(now_ns)
            && !self.answered_since_last_beat();
        match (beat_silent, probe_silent || beat_silent && kernel_silent) {
            (true, true) => match self.kernel {
                KernelWitness::Answers => Verdict::UserSpaceDead,
                KernelWitness::Silent | KernelWitness::Mute => Verdict::Hung,
                // Its answer, or that there is none, comes within the deadline of asking.
                KernelWitness::NotAsked => Verdict::Degraded,
            },
            // Without a heartbeat to ask, the probe alone proves nothing more than this.
            (true, false) | (false, true) => Verdict::Degraded,
            (false, false) if self.has_stuck_cpu => Verdict::Degraded,
            (false, false) => match self.wellness {
                Wellness::Ready => Verdict::Ready,
                Wellness::NotReady => Verdict::Live,
                Wellness::Unwell => Verdict::Degraded,
            },
        }
    }
}

/// Longest that a kernel may take to answer, however seldom it shows a sign of life.
const KERNEL_ANSWER_MAX: Duration = Duration::from_millis(300);

/// Longest excuse, in ns: a suspend of hours must not silence the detector for hours.
const MAX_EXCUSE_NS: u64 = 2_000_000_000;

impl Verdict {
    /// Whether both ways to the kernel's user space are silent.
    pub fn is_silent(self) -> bool {
        matches!(self, Self::Hung | Self::UserSpaceDead)
    }

    /// Whether the kernel answers.
    pub fn answers(self) -> bool {
        matches!(self, Self::Live | Self::Ready | Self::Degraded)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Absent => "-",
            Self::Booting => "booting",
            Self::Live => "live",
            Self::Ready => "ready",
            Self::Degraded => "degraded",
            Self::UserSpaceDead => "user-space-dead",
            Self::Hung => "hung",
            Self::Panicked => "panicked",
            Self::PoweredOff => "powered-off",
            Self::Killed => "killed",
        };
        f.pad(text)
    }
}

#[cfg(test)]
#[path = "health_tests.rs"]
mod tests;
