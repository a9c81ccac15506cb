//! One task per instance: it alone changes the instance's record and carries out what the lifecycle decides.
//!
//! Whatever takes long (spawning, calls to the agent, waiting for the end) runs in tasks of its own with a deadline and
//! reports back as a [`Message`], so that a mute kernel never makes its task deaf.

mod clock;
mod commands;
mod effects;
mod fencing;
mod holding;
mod kernel_probe;
mod last_words;
mod link;
mod message;
mod taken_over;
mod view;
mod watch;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch as channel};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tombolo_agent::api::agent::Inventory;
use tombolo_agent::api::health::HealthReport;
use tombolo_rpc::Link;
use tombolo_transport::rhythm;

pub(crate) use effects::chain;
use message::Message;
pub(crate) use message::{AgentArrived, Command, Mailbox};

use super::shared::Shared;
use crate::api::InstanceView;
use crate::core::cpus::StuckCpus;
use crate::core::health::{HealthConfig, Monitor, Verdict};
use crate::core::layer::Layer;
use crate::core::lifecycle::{Effect, Found, Input, Timer};
use crate::core::{EventKind, InstanceName, State};
use crate::spawner::{Kernel, KernelSpec, KernelStatus, SpawnError, TakenOver};
use crate::store::{Batch, InstanceRecord, StoreError};
use crate::time::{monotonic_ns, unix_ns};

/// Messages that may wait for an instance's task: more than its helpers can send at once (a handful), so that only
/// callers ever wait for room.
const MAILBOX_MESSAGES: usize = 64;
/// When a restart that could not be recorded is tried again.
const RECORD_AGAIN: Duration = Duration::from_secs(5);

/// What others see of an instance without asking its task.
#[derive(Clone, Debug)]
pub(crate) struct Face {
    pub(crate) view: InstanceView,
    /// The link to its agent, while there is one.
    pub(crate) link: Option<Link>,
    /// Its kernel, while there is one.
    pub(crate) kernel: Option<Kernel>,
    /// Whether it gives and gets CPUs by itself.
    pub(crate) balances: bool,
    /// What another program made for it, and was taken over.
    pub(crate) taken_over: Option<TakenOver>,
}

/// How others reach an instance.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    pub(crate) name: InstanceName,
    pub(crate) mailbox: Mailbox,
    pub(crate) face: channel::Receiver<Face>,
}

/// The state of an instance's task.
struct Instance {
    shared: Arc<Shared>,
    record: InstanceRecord,
    mailbox: Mailbox,
    face: channel::Sender<Face>,
    /// Inputs that effects have brought about, to be handled before the next message.
    inputs: VecDeque<Input>,
    timers: HashMap<Timer, Instant>,
    kernel: Option<Kernel>,
    /// What is done about its hang.
    fencing: Option<fencing::Fencing>,
    /// Where its CPUs stood when it was ended by force.
    last_registers: Option<String>,
    /// Whoever is trying to kill it.
    killing: Option<AbortHandle>,
    kernel_spec: Option<Box<KernelSpec>>,
    monitor: Monitor,
    verdict: Verdict,
    /// The smallest part that fails.
    layer: Option<Layer>,
    /// Why the verdict is no better, as it was when it changed.
    why: String,
    cpus: StuckCpus,
    /// What was seen and is to be told with the next judgement.
    untold: Vec<EventKind>,
    link: Option<link::AgentLink>,
    links_seen: u64,
    probe: watch::ProbeClock,
    kernel_probe: kernel_probe::KernelProbe,
    inventory: Option<Inventory>,
    report: Option<HealthReport>,
    /// After a death: when to look whether the heartbeat has really stopped, and what it counted then.
    confirm: Option<watch::Confirmation>,
    silent_since_ns: Option<u64>,
    removed: bool,
}

/// Starts the task of an instance. `resume`: the record is of an earlier daemon, and its kernel is to be found first.
pub(crate) fn start(shared: Arc<Shared>, record: InstanceRecord, resume: bool) -> Handle {
    let (sender, inbox) = mpsc::channel(MAILBOX_MESSAGES);
    let mailbox = Mailbox::new(sender);
    let verdict = view::verdict_of_the_past(&record);
    let monitor = Monitor::new(health_config(&record));
    let mut view = view::view(&shared, &record, verdict);
    if resume && matches!(view.state, State::Running | State::Hung) {
        // So it was under the earlier daemon. What this one finds is yet to come.
        view.state = State::Adopted;
    }
    let (balances, taken_over) = (record.spec.balance, record.taken_over.clone());
    let face = channel::Sender::new(Face { view, link: None, kernel: None, balances, taken_over });
    let handle = Handle { name: record.name.clone(), mailbox: mailbox.clone(), face: face.subscribe() };
    let instance = Instance {
        shared,
        record,
        mailbox,
        face,
        inputs: VecDeque::new(),
        timers: HashMap::new(),
        kernel: None,
        fencing: None,
        last_registers: None,
        killing: None,
        kernel_spec: None,
        monitor,
        verdict,
        layer: None,
        why: String::new(),
        cpus: StuckCpus::default(),
        untold: Vec::new(),
        link: None,
        links_seen: 0,
        probe: watch::ProbeClock::default(),
        kernel_probe: kernel_probe::KernelProbe::default(),
        inventory: None,
        report: None,
        confirm: None,
        silent_since_ns: None,
        removed: false,
    };
    tokio::spawn(instance.run(inbox, resume));
    handle
}

impl Instance {
    async fn run(mut self, mut inbox: mpsc::Receiver<Message>, resume: bool) {
        if resume {
            self.resume().await;
        }
        let mut look_at = Instant::now();
        while !self.removed {
            while let Some(input) = self.inputs.pop_front() {
                // What could not be recorded has been logged, and nothing that needs recording was done.
                let _ = self.step(input, vec![]).await;
            }
            let next_timer = self.timers.values().min().copied();
            let next_look = (self.kernel.is_some() || self.confirm.is_some()).then_some(look_at);
            tokio::select! {
                message = inbox.recv() => match message {
                    Some(message) => self.handle(message).await,
                    None => break,
                },
                () = sleep_until(next_timer) => self.expire().await,
                () = sleep_until(next_look) => look_at = rhythm::next(self.look().await),
            }
        }
        tracing::debug!(instance = %self.record.name, "the task of this instance ends");
    }

    /// Takes one input: decides, records, tells, does; in that order, but for the fence, which cannot wait.
    ///
    /// When it cannot be recorded, a wish of the operator's to start something is refused, and nothing has happened. A
    /// fact, or a wish to stop, is taken note of in memory and obeyed, and nothing is started.
    async fn step(&mut self, input: Input, mut events: Vec<EventKind>) -> Result<(), StoreError> {
        let before = self.record.clone();
        let from = before.life.state();
        let mut effects = self.record.life.handle(&self.record.spec.rules(), unix_ns(), input);
        let to = self.record.life.state();
        if effects.contains(&Effect::Fence) {
            events.extend(self.fence().await);
        }
        if from == State::Hung && to != State::Hung {
            self.leave_ladder();
        }
        if from != to {
            events.push(EventKind::State { from, to });
        }
        events.extend(effects.iter().filter_map(|effect| self.event_of(effect)));
        if input == Input::Expired(Timer::Restart) && effects.contains(&Effect::Reserve) {
            self.record.restarts += 1;
        }
        if self.record != before || !events.is_empty() {
            let incarnation = self.record.incarnation.map(|incarnation| incarnation.to_string());
            let mut batch = Batch::new().put_instance(&self.record).essential(input.is_of_an_end());
            for event in events {
                batch = batch.event(Some(&self.record.name), incarnation.clone(), event);
            }
            if let Err(error) = self.shared.store.commit(batch).await {
                tracing::error!(instance = %self.record.name, %error, ?input, "could not record a step");
                if input.is_wish() && !input.is_of_an_end() {
                    self.record = before;
                    return Err(error);
                }
                self.without_record(input, before, &error, &mut effects);
            }
        }
        if from != to {
            tracing::info!(instance = %self.record.name, %from, %to, "state");
        }
        for effect in effects {
            self.perform(effect).await;
        }
        if from != to {
            self.settle_ledger().await;
        }
        self.publish();
        Ok(())
    }

    /// A step that could not be recorded: nothing may be started that no record would speak of.
    fn without_record(
        &mut self,
        input: Input,
        before: InstanceRecord,
        error: &StoreError,
        effects: &mut Vec<Effect>,
    ) {
        let planned = effects.len();
        effects.retain(|effect| !matches!(effect, Effect::Reserve | Effect::Load | Effect::Spawn));
        if input == Input::Expired(Timer::Restart) {
            // The disk's fault, not the kernel's: it does not count, and is tried again.
            self.record = before;
            self.timers.insert(Timer::Restart, Instant::now() + RECORD_AGAIN);
        } else if effects.len() < planned {
            self.inputs.push_back(Input::StepFailed);
        }
        let reason = match error {
            StoreError::Refused { reason } => reason.clone(),
            other => other.to_string(),
        };
        self.record.last_error =
            Some(format!("this could not be recorded, and a later daemon may not know it: {reason}"));
    }

    fn event_of(&self, effect: &Effect) -> Option<EventKind> {
        match effect {
            Effect::Arm(Timer::Restart, delay) => {
                Some(EventKind::RestartScheduled { delay_ms: delay.as_millis() as u64 })
            }
            Effect::GiveUp => Some(EventKind::GaveUp { restarts: self.record.restarts }),
            _ => None,
        }
    }

    async fn expire(&mut self) {
        let now = Instant::now();
        let due: Vec<Timer> =
            self.timers.iter().filter(|(_, at)| **at <= now).map(|(timer, _)| *timer).collect();
        for timer in due {
            self.timers.remove(&timer);
            if (timer, self.record.life.state()) == (Timer::Boot, State::Booting) {
                let waited = self.record.spec.boot_timeout_ms;
                self.record.last_error = Some(format!("boot: its agent did not report within {waited} ms"));
            }
            let _ = self.step(Input::Expired(timer), vec![]).await;
        }
    }

    async fn handle(&mut self, message: Message) {
        match message {
            Message::Command { command, reply } => self.command(command, reply).await,
            Message::Inspect { reply } => self.inspect(reply).await,
            Message::Spawned { incarnation, outcome } => self.spawned(incarnation, outcome).await,
            Message::Ended { incarnation, exit } => self.ended(incarnation, exit).await,
            Message::StoodForAgain { incarnation, kernel } => self.stood_for_again(incarnation, kernel).await,
            Message::AgentArrived(arrived) => self.agent_arrived(arrived).await,
            Message::AgentIntroduced { link, inventory } => self.agent_introduced(link, inventory).await,
            Message::LinkClosed { link, reason } => self.link_closed(link, reason).await,
            Message::Probed { link, outcome } => self.probed(link, outcome).await,
            Message::KernelProbed { incarnation, answers } => self.kernel_probed(incarnation, answers).await,
            Message::Fencing { incarnation, news } => self.fencing_news(incarnation, news).await,
            Message::Reported { link, report } => self.reported(link, report).await,
            Message::RulesChanged => self.push_rules(),
            Message::LedgerChanged => self.publish(),
        }
    }

    /// After a start of the daemon: looks for the kernel that the record speaks of and goes on from there.
    async fn resume(&mut self) {
        let found = match self.record.life.state().may_have_kernel() {
            true => self.find_kernel().await,
            false => Found::Nothing,
        };
        let mut events = Vec::new();
        if found == Found::Alive {
            if let Some(kernel) = self.kernel.clone() {
                events.push(EventKind::Adopted { pid: kernel.pid() });
                if self.record.life.state() == State::Hung {
                    self.monitor.was_silent(self.now_ns());
                }
                self.attend(kernel).await;
                self.check_holding().await;
            }
        } else if let Found::Dead(end) = found {
            self.note_end(end, unix_ns());
            events.push(EventKind::Died {
                end,
                expected: self.record.life.state() == State::Draining,
                last_beat_age_ms: None,
                reaped_to_noticed_ms: None,
            });
        }
        let _ = self.step(Input::Resume(found), events).await;
        self.settle_ledger().await;
    }

    async fn find_kernel(&mut self) -> Found {
        let Some(kind) = self.record.spawner else { return Found::Nothing };
        let folder = self.shared.places.instance(&self.record.name);
        let adopted =
            match tokio::time::timeout(effects::KEEPER_MAX, self.shared.drivers.adopt(kind, &folder)).await {
                Ok(Ok(kernel)) => kernel,
                Ok(Err(SpawnError::NotFound { .. })) => return Found::Nothing,
                Ok(Err(error)) => {
                    self.record.last_error = Some(error.to_string());
                    return Found::Nothing;
                }
                Err(_) => {
                    self.record.last_error =
                        Some(format!("its keeper did not answer within {:?}", effects::KEEPER_MAX));
                    return Found::Nothing;
                }
            };
        let status = adopted.status().await;
        self.kernel = Some(adopted);
        match status {
            Ok(KernelStatus::Running) => Found::Alive,
            Ok(KernelStatus::Exited(exit)) => Found::Dead(self.end_of(&exit.how)),
            Err(_) => Found::Alive,
        }
    }

    fn publish(&self) {
        let face = Face {
            view: self.view(),
            link: self.link.as_ref().map(|link| link.link.clone()),
            kernel: self.kernel.clone(),
            balances: self.record.spec.balance,
            taken_over: self.record.taken_over.clone(),
        };
        self.face.send_replace(face);
    }

    fn beats(&self) -> Option<u64> {
        let heartbeat = self.shared.pool.heartbeat(tombolo_transport::pool::Member(self.record.member));
        // The line still shows the former boot until the new kernel's agent has mapped the pool.
        (Some(heartbeat.incarnation) == self.record.incarnation).then_some(heartbeat.count)
    }

    /// Whether its kernel shares memory with this one, as all do but those of a spawner that was told otherwise.
    fn shares_memory(&self) -> bool {
        self.kernel.as_ref().is_none_or(|kernel| kernel.link().is_none())
    }

    fn now_ns(&self) -> u64 {
        monotonic_ns()
    }
}

/// How patient to be with the kernel of this record.
fn health_config(record: &InstanceRecord) -> HealthConfig {
    HealthConfig::for_heartbeat(Duration::from_millis(record.spec.heartbeat_ms))
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
