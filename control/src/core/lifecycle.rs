//! The life of one instance as a state machine that only decides: inputs in, effects out, no I/O, no clock.
//!
//! ```text
//!  defined ─start→ reserved → loaded → booting ─agent→ running ⇄ hung
//!     ↑               │          │        │               │       │
//!     │               └──────────┴─ error └── exit ───────┴───────┴──→ failed ─back-off→ reserved
//!     └─ create                                           │ stop
//!                                                      draining ─exit→ stopped ─start→ reserved
//!  a new daemon finds a running kernel: adopted ─agent→ running; finds none where one ran: lost → as failed
//! ```
//!
//! A state says what has been *achieved* and is journalled before the effects of leaving it are carried out, so that
//! `(state, desired)` alone tell a daemon that was killed in between where to go on ([`Input::Resume`]).
//! Every effect may therefore run twice and must be idempotent.

use std::fmt;
use std::time::Duration;

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

use super::backoff::{Backoff, BackoffConfig, RestartPolicy};

/// What an instance has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It has a record and no resources.
    Defined,
    /// It has a CID, a row in the pool, an incarnation and a secret.
    Reserved,
    /// What it boots from is written.
    Loaded,
    /// Its kernel was started; its agent has not reported.
    Booting,
    /// Its agent has reported.
    Running,
    /// It is being stopped.
    Draining,
    /// It has ended as it was asked to.
    Stopped,
    /// It has ended, or could not be started, and nobody asked for that.
    Failed,
    /// Its kernel exists but is silent: neither heartbeat nor agent answers.
    Hung,
    /// It ran under an earlier daemon, and no trace of it was found.
    Lost,
    /// It ran under an earlier daemon and runs still; its agent has not reported to this one.
    Adopted,
}

/// What the operator wants of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum Desired {
    /// Running; restarted as its policy says.
    Running,
    /// Not running.
    Stopped,
}

/// What to do about a hang.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum OnHang {
    /// Say so and wait: a frozen kernel may thaw. The default.
    #[default]
    Report,
    /// Take it out of service ([`fencing`](super::fencing)); the restart policy then applies.
    Restart,
}

/// How a kernel ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// It switched itself off in good order.
    PoweredOff,
    /// It panicked.
    Panicked,
    /// It was killed by this signal.
    Signaled(i32),
    /// It exited with this code.
    Exited(i32),
    /// It was gone when we looked.
    Vanished,
}

/// Something that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// The operator wants it running.
    Start,
    /// The operator wants it stopped in good order within the grace period.
    Stop(Duration),
    /// The operator wants it stopped now.
    Kill,
    /// The operator wants it stopped within the grace period and started again.
    Restart(Duration),
    /// [`Effect::Reserve`] is done.
    Reserved,
    /// [`Effect::Load`] is done.
    Loaded,
    /// [`Effect::Spawn`] is done.
    Spawned,
    /// Reserve, load or spawn did not work.
    StepFailed,
    /// The agent of this incarnation has proven itself.
    AgentUp,
    /// Two witnesses are silent while the spawner still sees the kernel.
    Silent,
    /// A silent kernel answers again.
    Answers,
    /// The kernel has ended.
    Ended(End),
    /// A timer of [`Effect::Arm`] has run out.
    Expired(Timer),
    /// A new daemon has read this record and looked for the kernel.
    Resume(Found),
}

impl Input {
    /// Whether this is a wish of the operator's, which may be refused, and not a fact.
    pub fn is_wish(self) -> bool {
        matches!(self, Self::Start | Self::Stop(_) | Self::Kill | Self::Restart(_))
    }

    /// Whether it is about an end: then it is recorded even when the disk is full, and obeyed even when nothing can be
    /// recorded at all. Whoever wants a kernel stopped must not be kept from it by a disk.
    pub fn is_of_an_end(self) -> bool {
        matches!(
            self,
            Self::Stop(_) | Self::Kill | Self::Ended(_) | Self::Expired(Timer::Grace) | Self::Resume(_)
        )
    }
}

/// What a new daemon found of a kernel that its records speak of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// It is there.
    Alive,
    /// It has ended, and its keeper knows how.
    Dead(End),
    /// There is no trace of it.
    Nothing,
}

/// Something to do. Each is idempotent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Choose a new incarnation and secret, enter them in the pool; answer [`Input::Reserved`].
    Reserve,
    /// Write what the kernel boots from; answer [`Input::Loaded`].
    Load,
    /// Start the kernel; answer [`Input::Spawned`].
    Spawn,
    /// Ask the agent to quiesce and power off within this time.
    Drain(Duration),
    /// End the kernel by force; its end is then reported as [`Input::Ended`].
    Kill,
    /// Take a kernel that hangs out of service, by ever harder means; its end is then reported as [`Input::Ended`].
    Escalate,
    /// Fence this incarnation in the pool, so that its peers are reset and nothing late of it is believed.
    Fence,
    /// Copy the black box of the dead kernel out of the pool.
    KeepLastWords,
    /// Give back the row in the pool and dismiss the keeper.
    Release,
    /// Answer [`Input::Expired`] after this time. Replaces any earlier one of the same kind.
    Arm(Timer, Duration),
    /// Forget a timer.
    Disarm(Timer),
    /// Note that the restart policy has given up.
    GiveUp,
}

/// What a timer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Timer {
    /// The agent must report within this time.
    Boot,
    /// The kernel must have ended within this time.
    Grace,
    /// The next start.
    Restart,
}

/// The part of an instance's specification that this machine obeys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Whether to start it again.
    pub restart: RestartPolicy,
    /// How long to wait between restarts.
    pub backoff: BackoffConfig,
    /// What to do about a hang.
    pub on_hang: OnHang,
    /// How long its agent may take to report.
    pub boot_timeout: Duration,
}

/// Decides what happens to one instance. Serialized into its record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lifecycle {
    state: State,
    desired: Desired,
    /// Start again once it has stopped.
    again: bool,
    /// Since when the agent has been known to run, ns since 1970.
    up_since_ns: Option<u64>,
    backoff: Backoff,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self {
            state: State::Defined,
            desired: Desired::Stopped,
            again: false,
            up_since_ns: None,
            backoff: Backoff::default(),
        }
    }
}

impl State {
    /// Whether a kernel of this instance may exist.
    pub fn may_have_kernel(self) -> bool {
        use State::*;
        matches!(self, Loaded | Booting | Running | Draining | Hung | Adopted)
    }

    /// Whether the machine may ever go from here to `next` in one step.
    pub fn may_become(self, next: Self) -> bool {
        use State::*;
        match self {
            Defined | Stopped => matches!(next, Reserved | Failed),
            Reserved => matches!(next, Loaded | Stopped | Failed),
            Loaded => matches!(next, Booting | Running | Draining | Stopped | Failed | Adopted | Lost),
            Booting => matches!(next, Running | Draining | Stopped | Failed | Adopted | Lost),
            Running | Hung | Adopted => {
                matches!(next, Running | Hung | Draining | Stopped | Failed | Adopted | Lost)
            }
            Draining => matches!(next, Stopped),
            Failed | Lost => matches!(next, Reserved | Stopped | Failed),
        }
    }
}

impl End {
    /// Whether the kernel ended otherwise than by an orderly power-off.
    pub fn is_failure(self) -> bool {
        !matches!(self, Self::PoweredOff | Self::Exited(0))
    }
}

impl Lifecycle {
    /// What it has reached.
    pub fn state(&self) -> State {
        self.state
    }

    /// What the operator wants.
    pub fn desired(&self) -> Desired {
        self.desired
    }

    /// Since when it has been running, ns since 1970.
    pub fn up_since_ns(&self) -> Option<u64> {
        self.up_since_ns
    }

    /// Takes one input at `now_ns` (ns since 1970) and says what to do. An input that no longer matters (a late
    /// answer, a second `start`) changes nothing.
    pub fn handle(&mut self, rules: &Rules, now_ns: u64, input: Input) -> Vec<Effect> {
        match input {
            Input::Start => self.start(),
            Input::Stop(grace) => self.stop(grace, false),
            Input::Restart(grace) => self.restart(grace),
            Input::Kill => self.kill(),
            Input::Reserved
                if self.is_starting(&[State::Defined, State::Stopped, State::Failed, State::Lost]) =>
            {
                self.enter(State::Reserved, [Effect::Load])
            }
            Input::Loaded if self.is_starting(&[State::Reserved]) => {
                self.enter(State::Loaded, [Effect::Spawn])
            }
            Input::Spawned if self.state == State::Loaded => {
                self.enter(State::Booting, [Effect::Arm(Timer::Boot, rules.boot_timeout)])
            }
            // The operator changed their mind while the kernel was being started.
            Input::Spawned if self.state == State::Draining => vec![Effect::Kill],
            Input::StepFailed => self.step_failed(rules),
            Input::AgentUp => self.agent_up(now_ns),
            Input::Silent if matches!(self.state, State::Running | State::Adopted) => self.hang(rules),
            Input::Answers if self.state == State::Hung => self.enter(State::Running, []),
            Input::Ended(end) => self.ended(rules, now_ns, end),
            Input::Expired(timer) => self.expired(timer),
            Input::Resume(found) => self.resume(rules, now_ns, found),
            Input::Reserved | Input::Loaded | Input::Spawned | Input::Silent | Input::Answers => vec![],
        }
    }

    fn start(&mut self) -> Vec<Effect> {
        use State::*;
        self.backoff.reset();
        match self.state {
            Defined | Stopped if self.desired == Desired::Running => vec![],
            Defined | Stopped | Failed | Lost => {
                self.desired = Desired::Running;
                vec![Effect::Disarm(Timer::Restart), Effect::Reserve]
            }
            Draining => {
                self.desired = Desired::Running;
                self.again = true;
                vec![]
            }
            Reserved | Loaded | Booting | Running | Hung | Adopted => vec![],
        }
    }

    fn stop(&mut self, grace: Duration, again: bool) -> Vec<Effect> {
        use State::*;
        self.again = again;
        self.desired = if again { Desired::Running } else { Desired::Stopped };
        match self.state {
            Running | Hung | Adopted => self.enter(
                Draining,
                [Effect::Disarm(Timer::Boot), Effect::Drain(grace), Effect::Arm(Timer::Grace, grace)],
            ),
            // No agent to ask.
            Loaded | Booting => self.enter(Draining, [Effect::Disarm(Timer::Boot), Effect::Kill]),
            Reserved => self.enter(Stopped, [Effect::Release]),
            Failed | Lost => self.enter(Stopped, [Effect::Disarm(Timer::Restart)]),
            Draining => vec![Effect::Arm(Timer::Grace, grace)],
            Defined | Stopped => vec![],
        }
    }

    fn restart(&mut self, grace: Duration) -> Vec<Effect> {
        if self.state.may_have_kernel() { self.stop(grace, true) } else { self.start() }
    }

    fn kill(&mut self) -> Vec<Effect> {
        let mut effects = self.stop(Duration::ZERO, false);
        if self.state == State::Draining {
            effects.retain(|effect| !matches!(effect, Effect::Drain(_) | Effect::Arm(..) | Effect::Kill));
            effects.extend([Effect::Disarm(Timer::Grace), Effect::Kill]);
        }
        effects
    }

    fn step_failed(&mut self, rules: &Rules) -> Vec<Effect> {
        use State::*;
        match self.state {
            Draining => self.stopped(),
            Defined | Stopped | Reserved | Loaded | Failed | Lost if self.desired == Desired::Running => {
                // What fails when the operator starts it (a file that is missing, say) is theirs to mend, now; what
                // ran before may well run again.
                let again = rules.restart != RestartPolicy::Never && self.backoff.is_under_way();
                self.fail(rules, Failed, Duration::ZERO, again)
            }
            _ => vec![],
        }
    }

    fn agent_up(&mut self, now_ns: u64) -> Vec<Effect> {
        match self.state {
            // The agent may report before the spawner has answered.
            State::Booting | State::Loaded => {
                self.up_since_ns = Some(now_ns);
                self.enter(State::Running, [Effect::Disarm(Timer::Boot)])
            }
            // One that was found running and then counted as hung, because it took long to report, is neither.
            State::Adopted | State::Hung => {
                self.up_since_ns.get_or_insert(now_ns);
                self.enter(State::Running, [Effect::Disarm(Timer::Boot)])
            }
            _ => vec![],
        }
    }

    fn hang(&mut self, rules: &Rules) -> Vec<Effect> {
        let reaction = (rules.on_hang == OnHang::Restart).then_some(Effect::Escalate);
        self.enter(State::Hung, reaction)
    }

    fn ended(&mut self, rules: &Rules, now_ns: u64, end: End) -> Vec<Effect> {
        use State::*;
        match self.state {
            Draining => self.stopped(),
            Loaded | Booting | Running | Hung | Adopted => {
                let uptime = Duration::from_nanos(now_ns.saturating_sub(self.up_since_ns.unwrap_or(now_ns)));
                let next = if end == End::Vanished { Lost } else { Failed };
                let again = match rules.restart {
                    RestartPolicy::Never => false,
                    RestartPolicy::OnFailure => end.is_failure(),
                    RestartPolicy::Always => true,
                };
                if !again && !end.is_failure() {
                    self.desired = Desired::Stopped;
                    return self.stopped();
                }
                self.fail(rules, next, uptime, again)
            }
            Defined | Reserved | Stopped | Failed | Lost => vec![],
        }
    }

    fn stopped(&mut self) -> Vec<Effect> {
        let mut effects = self.buried();
        self.state = State::Stopped;
        effects.extend([Effect::Disarm(Timer::Boot), Effect::Disarm(Timer::Grace), Effect::Release]);
        if std::mem::take(&mut self.again) {
            effects.push(Effect::Reserve);
        }
        effects
    }

    fn fail(&mut self, rules: &Rules, next: State, uptime: Duration, again: bool) -> Vec<Effect> {
        let mut effects = self.buried();
        self.state = next;
        effects.extend([Effect::Disarm(Timer::Boot), Effect::Release]);
        match again.then(|| self.backoff.next_delay(&rules.backoff, uptime)) {
            Some(Some(delay)) => effects.push(Effect::Arm(Timer::Restart, delay)),
            Some(None) => {
                self.desired = Desired::Stopped;
                effects.push(Effect::GiveUp);
            }
            None => self.desired = Desired::Stopped,
        }
        effects
    }

    /// The rites for a kernel that may have run: first the peers learn, then its last words are kept.
    fn buried(&mut self) -> Vec<Effect> {
        self.up_since_ns = None;
        if self.state.may_have_kernel() { vec![Effect::Fence, Effect::KeepLastWords] } else { vec![] }
    }

    fn expired(&mut self, timer: Timer) -> Vec<Effect> {
        use State::*;
        match (timer, self.state) {
            // A kernel that booted and does not report is ended by force; the restart policy then applies.
            (Timer::Boot, Booting) => vec![Effect::Kill],
            // One that was adopted has run before: it is a hang, to be reported.
            (Timer::Boot, Adopted) => self.enter(Hung, []),
            (Timer::Grace, Draining) => vec![Effect::Kill],
            (Timer::Restart, Failed | Lost) if self.desired == Desired::Running => vec![Effect::Reserve],
            _ => vec![],
        }
    }

    fn resume(&mut self, rules: &Rules, now_ns: u64, found: Found) -> Vec<Effect> {
        use State::*;
        match (self.state, found) {
            (Defined | Stopped | Reserved | Failed | Lost, _) => self.resume_without_kernel(),
            (Draining, Found::Alive) => {
                let grace = Duration::from_secs(5);
                vec![Effect::Drain(grace), Effect::Arm(Timer::Grace, grace)]
            }
            (Loaded | Booting | Running | Hung | Adopted, Found::Alive) => {
                self.enter(Adopted, [Effect::Arm(Timer::Boot, rules.boot_timeout)])
            }
            (Draining, Found::Dead(_) | Found::Nothing) => self.stopped(),
            // It was about to be started and was not: start it now.
            (Loaded, Found::Nothing) => vec![Effect::Spawn],
            (_, Found::Dead(end)) => self.ended(rules, now_ns, end),
            (_, Found::Nothing) => self.ended(rules, now_ns, End::Vanished),
        }
    }

    fn resume_without_kernel(&mut self) -> Vec<Effect> {
        match (self.state, self.desired) {
            (State::Reserved, Desired::Running) => vec![Effect::Load],
            (State::Reserved, Desired::Stopped) => self.enter(State::Stopped, [Effect::Release]),
            (_, Desired::Running) => vec![Effect::Reserve],
            (_, Desired::Stopped) => vec![],
        }
    }

    fn is_starting(&self, states: &[State]) -> bool {
        self.desired == Desired::Running && states.contains(&self.state)
    }

    fn enter(&mut self, next: State, effects: impl IntoIterator<Item = Effect>) -> Vec<Effect> {
        self.state = next;
        effects.into_iter().collect()
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Defined => "defined",
            Self::Reserved => "reserved",
            Self::Loaded => "loaded",
            Self::Booting => "booting",
            Self::Running => "running",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Hung => "hung",
            Self::Lost => "lost",
            Self::Adopted => "adopted",
        };
        f.pad(text)
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PoweredOff => f.write_str("powered off"),
            Self::Panicked => f.write_str("panicked"),
            Self::Signaled(signal) => write!(f, "killed by signal {signal}"),
            Self::Exited(code) => write!(f, "exited with code {code}"),
            Self::Vanished => f.write_str("vanished"),
        }
    }
}

#[cfg(test)]
#[path = "lifecycle_tests.rs"]
mod tests;
