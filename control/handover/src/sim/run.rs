//! The simulation: requests, messages, timers and misfortunes as events in one queue.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::fmt;

use super::machine::{INSTANCES, device, machine};
use super::{Luck, MemoryStore, Rng, Spawner, World};
use crate::coordinator::{Coordinator, Step, Submitted};
use crate::kernel::{Incarnation, InstanceId, Kernel};
use crate::operation::{Act, Ask, DrainRule, Effect, Input, Phase, Question, Reply, Rules, Veto};
use crate::owner::{OpId, Owner};
use crate::request::{Request, Shortfall, Side, What};
use crate::unit::UnitId;

/// What to simulate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Decides everything: the same seed is the same run.
    pub seed: u64,
    /// Events to go through. Then misfortunes stop, and what is under way must end.
    pub steps: u64,
}

/// What happened in a simulation that went well.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are named after what they count")]
pub struct Report {
    pub steps: u64,
    pub requests_refused: u64,
    pub committed: u64,
    pub aborted: u64,
    pub partial: u64,
    pub quarantined: u64,
    pub needs_operator: u64,
    pub daemon_crashes: u64,
    pub kernel_deaths: u64,
    pub agent_restarts: u64,
    pub messages_lost: u64,
    pub answers_doubled: u64,
    pub stale_answers_dropped: u64,
    pub finished_late: u64,
    pub writes_refused: u64,
    pub repairs: u64,
}

/// A simulation that went wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("seed {seed}, step {step}: {what}\nthe last events were:\n{log}")]
pub struct Failure {
    /// The seed that replays it.
    pub seed: u64,
    /// At which event.
    pub step: u64,
    /// What is wrong.
    pub what: String,
    /// What led to it.
    pub log: String,
}

/// Runs a simulation; the seed decides the kind of spawner too.
///
/// # Errors
/// A [`Failure`] if a unit is lost or doubled, ledger and world disagree, or an operation does not end.
pub fn run(config: Config) -> Result<Report, Failure> {
    let mut sim = Sim::new(config);
    let outcome = sim.run(config.steps);
    outcome.map(|()| sim.report.clone()).map_err(|what| Failure {
        seed: config.seed,
        step: sim.report.steps,
        what,
        log: sim.log.iter().map(|line| format!("  {line}\n")).collect(),
    })
}

/// Something that happens at a time.
#[derive(Clone, Debug)]
enum Happening {
    /// The shell gets round to an effect.
    Act(Act),
    Ask(Ask),
    /// The coordinator hears something.
    Hear(Input),
    /// Somebody asks for a move.
    Request,
    /// Something goes wrong, or is repaired.
    Chance,
}

#[derive(Debug)]
struct Sim {
    rng: Rng,
    now_ms: u64,
    serial: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    happenings: BTreeMap<u64, Happening>,
    /// How much goes wrong: 1 to 5.
    harshness: u64,
    /// Whether misfortunes have stopped.
    calm: bool,
    coordinator: Coordinator,
    store: MemoryStore,
    world: World,
    drain: DrainRule,
    /// Deaths that the coordinator has not been told of.
    unreported: Vec<Kernel>,
    boots: u32,
    report: Report,
    log: VecDeque<String>,
}

/// Events kept for a failure.
const LOG_MAX: usize = 60;

impl Sim {
    fn new(config: Config) -> Self {
        let mut rng = Rng::new(config.seed);
        let spawner = if rng.one_in(2) { Spawner::Certain } else { Spawner::MayFinishLate };
        let drain = if rng.one_in(2) { DrainRule::Offline } else { DrainRule::LeaveOnline };
        let coordinator = machine(&mut rng);
        let ledger = coordinator.ledger();
        let mut sim = Self {
            now_ms: 0,
            serial: 0,
            queue: BinaryHeap::new(),
            happenings: BTreeMap::new(),
            harshness: 1 + rng.below(5),
            calm: false,
            store: MemoryStore::new(ledger),
            world: World::new(spawner, drain, ledger),
            coordinator,
            drain,
            unreported: Vec::new(),
            boots: 1,
            report: Report::default(),
            log: VecDeque::new(),
            rng,
        };
        sim.at(1, Happening::Request);
        sim.at(5, Happening::Chance);
        sim
    }

    fn run(&mut self, steps: u64) -> Result<(), String> {
        while self.report.steps < steps {
            self.step()?;
        }
        self.calm = true;
        self.log("--- calm ---");
        // Every operation ends by its deadlines alone; this is many times what those take.
        let most = self.report.steps + 1_000_000;
        while self.has_unfinished_work() {
            if self.report.steps > most {
                return Err(format!("operations do not end: {:?}", self.unfinished()));
            }
            self.step()?;
        }
        let in_transit =
            self.coordinator.ledger().entries().filter(|entry| matches!(entry.owner, Owner::InTransit(_)));
        match in_transit.count() {
            0 => Ok(()),
            n => Err(format!("{n} units are in transit though every operation has ended")),
        }
    }

    fn step(&mut self) -> Result<(), String> {
        let Some(Reverse((at_ms, serial))) = self.queue.pop() else {
            return Err(format!(
                "nothing is left to happen, and these have not ended: {:?}",
                self.unfinished()
            ));
        };
        self.now_ms = self.now_ms.max(at_ms);
        self.report.steps += 1;
        match self.happenings.remove(&serial) {
            Some(Happening::Act(act)) => self.act(&act),
            Some(Happening::Ask(ask)) => self.ask(&ask),
            Some(Happening::Hear(input)) => self.hear(input),
            Some(Happening::Request) => self.request(),
            Some(Happening::Chance) => self.chance(),
            // A daemon that no longer is was to do it.
            None => {}
        }
        self.check()
    }

    /// What must be true after every event.
    fn check(&self) -> Result<(), String> {
        self.coordinator.check().map_err(|violation| violation.to_string())?;
        self.world.agrees(self.coordinator.ledger()).map_err(|disagreement| disagreement.to_string())
    }

    // --- the shell ---------------------------------------------------------------------------------------------------------

    /// Persists a step and sets about its effects, unless the daemon dies in between.
    fn persist(&mut self, decide: impl FnOnce(&mut Coordinator) -> Option<Step<'_>>) -> bool {
        let dies = if self.calm { 0 } else { self.rng.below(300) };
        if dies == 1 {
            // Before anything is written.
            self.crash();
            return false;
        }
        let store = &mut self.store;
        let Some(step) = decide(&mut self.coordinator) else { return false };
        let changed = step.commit().is_some();
        let Ok(effects) = step.persist(|commit| store.write(commit)) else {
            self.report.writes_refused += 1;
            self.log("the store is full");
            return false;
        };
        if changed {
            let coordinator = &self.coordinator;
            self.world.follow(coordinator.ledger(), |owner| match owner {
                Owner::InTransit(id) => coordinator.operation(*id).map(|operation| operation.donor),
                _ => None,
            });
        }
        if dies == 2 {
            // After it is written, before anything is done.
            self.crash();
            return changed;
        }
        let some = if dies == 3 { self.rng.below(effects.len() as u64) as usize } else { effects.len() };
        for effect in effects.into_iter().take(some) {
            self.set_about(effect);
        }
        if dies == 3 {
            self.crash();
        }
        changed
    }

    fn set_about(&mut self, effect: Effect) {
        match effect {
            Effect::Arm { operation, round, after_ms } => {
                self.at(after_ms, Happening::Hear(Input::Expired { operation, round }));
            }
            Effect::Act(act) => {
                let delay_ms = act.after_ms + self.delay_ms();
                self.at(delay_ms, Happening::Act(act));
            }
            Effect::Ask(ask) => {
                let delay_ms = self.delay_ms();
                self.at(delay_ms, Happening::Ask(ask));
            }
        }
    }

    fn act(&mut self, act: &Act) {
        if self.loses() {
            return;
        }
        // The harsher the run, the more of what is done fails.
        let luck = match if self.calm { 100 } else { self.rng.below(100 / self.harshness) } {
            0..4 => Luck::Refused,
            4 => Luck::RefusedForGood,
            5..10 => Luck::TimesOut,
            10..13 => Luck::Unseen,
            13 => Luck::Lied,
            _ => Luck::Works,
        };
        let (refused, sighting) = self.world.act(act, luck);
        self.log(format_args!(
            "{} {} epoch {} {:?}: {luck:?}, {sighting:?}",
            act.operation, act.unit.id, act.epoch, act.command
        ));
        let (operation, unit, epoch) = (act.operation, act.unit.id, act.epoch);
        self.answer(&Input::Acted { operation, unit, epoch, refused, sighting });
    }

    fn ask(&mut self, ask: &Ask) {
        if self.loses() {
            return;
        }
        let says_no = !self.calm && self.rng.one_in(40);
        let reply = if says_no {
            Reply::No(Veto { reason: "not now".to_owned(), retry_after_ms: None })
        } else if ask.question == Question::Vote && self.rng.one_in(2) {
            Reply::YesWithoutHooks
        } else {
            Reply::Yes
        };
        let Ask { operation, round, question, end, .. } = *ask;
        self.answer(&Input::Answered { operation, round, question, end, reply });
    }

    fn answer(&mut self, input: &Input) {
        if self.loses() {
            return;
        }
        let mut times = 1;
        if !self.calm && self.rng.one_in(20) {
            self.report.answers_doubled += 1;
            times = 2;
        }
        for _ in 0..times {
            // One in twenty takes so long that most deadlines are over.
            let late = !self.calm && self.rng.one_in(20);
            let delay_ms = if late { self.rng.below(60_000) } else { self.delay_ms() };
            self.at(delay_ms, Happening::Hear(input.clone()));
        }
    }

    fn hear(&mut self, input: Input) {
        let now_ns = self.now_ms * 1_000_000;
        let is_answer = matches!(input, Input::Acted { .. } | Input::Answered { .. });
        let again = input.clone();
        let was_full = self.store.is_full;
        let changed = self.persist(|coordinator| Some(coordinator.handle(now_ns, input)));
        if was_full && !changed {
            // A shell keeps what it could not store, and tries again.
            self.at(500, Happening::Hear(again));
        } else if is_answer && !changed {
            self.report.stale_answers_dropped += 1;
        }
    }

    fn crash(&mut self) {
        self.report.daemon_crashes += 1;
        self.log("the daemon is killed");
        self.store.is_full = false;
        // Its timers die with it. What it had sent may still reach an agent, and be answered to its successor.
        let rng = &mut self.rng;
        self.happenings.retain(|_, happening| match happening {
            Happening::Request | Happening::Chance => true,
            Happening::Hear(Input::Expired { .. }) => false,
            Happening::Act(_) | Happening::Ask(_) | Happening::Hear(_) => rng.one_in(2),
        });
        let restored = self.store.restore();
        match restored {
            Ok(coordinator) => {
                debug_assert_eq!(
                    coordinator, self.coordinator,
                    "memory was ahead of the store, or behind it"
                );
                self.coordinator = coordinator;
            }
            Err(what) => self.log(format_args!("the store cannot be read: {what}")),
        }
        let now_ns = self.now_ms * 1_000_000;
        let store = &mut self.store;
        let recovered = self.coordinator.recover(now_ns).persist(|commit| store.write(commit));
        for effect in recovered.unwrap_or_default() {
            self.set_about(effect);
        }
        // It asks the kernels whether they live.
        for kernel in self.unreported.clone() {
            self.at(10, Happening::Hear(Input::KernelDown(kernel)));
        }
        for kernel in self.world.running() {
            self.at(20, Happening::Hear(Input::KernelUp(kernel)));
        }
    }

    // --- requests ----------------------------------------------------------------------------------------------------------

    fn request(&mut self) {
        if self.calm {
            return;
        }
        let wait_ms = self.rng.below(1_500);
        self.at(wait_ms, Happening::Request);
        // Mostly what can be done; the last one is asked for whatever it is.
        let mut request = self.wish();
        for _ in 0..8 {
            if self.coordinator.plan(&request).is_ok() {
                break;
            }
            request = self.wish();
        }
        let rules = Rules { drain: self.drain, ..Rules::default() };
        let now_ns = self.now_ms * 1_000_000;
        let calls_off = self.rng.one_in(20);
        self.log(format_args!("request {request:?}"));
        let mut accepted = None;
        let mut refused = false;
        self.persist(|coordinator| match coordinator.submit(now_ns, request, rules) {
            Ok(Submitted::New(id, step)) => {
                accepted = Some(id);
                Some(step)
            }
            Ok(Submitted::Known(_)) => None,
            Err(_) => {
                refused = true;
                None
            }
        });
        self.report.requests_refused += u64::from(refused);
        if let (Some(id), true) = (accepted, calls_off) {
            self.call_off(id);
        }
    }

    fn wish(&mut self) -> Request {
        let rng = &mut self.rng;
        let sides = ["host", "pool", "db", "web", "log"];
        let (from, away) = (rng.below(5), 1 + rng.below(4));
        let [from, to] = [from, (from + away) % 5].map(|side| Side::named(sides[side as usize]));
        let what = match rng.below(5) {
            0 | 1 => What::CpuCount(1 + rng.below(3) as u32),
            2 => What::Cpus(vec![rng.below(10) as u32]),
            3 => What::MemoryBytes((1 + rng.below(6)) * (64 << 20)),
            _ => What::Device(device(rng.below(3) as u8)),
        };
        let mut request = Request::new(format!("key {}", rng.below(100_000)), from, to, what);
        request.hooks = rng.one_in(2);
        request.shortfall = if rng.one_in(2) { Shortfall::Abort } else { Shortfall::MoveTheRest };
        request.allow_no_reset = rng.one_in(2);
        request
    }

    fn call_off(&mut self, id: OpId) {
        let now_ns = self.now_ms * 1_000_000;
        self.persist(|coordinator| coordinator.cancel(now_ns, id).ok());
    }

    // --- misfortune --------------------------------------------------------------------------------------------------------

    fn chance(&mut self) {
        let wait_ms = if self.calm { 100 } else { self.rng.below(2_000) };
        self.at(wait_ms, Happening::Chance);
        self.settle_the_ended();
        let what = if self.calm { 20 + self.rng.below(20) } else { self.rng.below(40) };
        let now_ns = self.now_ms * 1_000_000;
        let id = INSTANCES[self.rng.below(3) as usize].0;
        match what {
            0 => self.kernel_dies(id),
            1 => {
                self.report.agent_restarts += 1;
                self.world.agent(id, false);
            }
            2..4 => self.world.leases_lapse(id),
            4 => self.store.is_full = true,
            6 => {
                let open = self.unfinished();
                if let Some(&id) = self.rng.pick(&open) {
                    self.call_off(id);
                }
            }
            5 | 7..16 | 20..26 => {
                self.world.agent(id, true);
                self.store.is_full = false;
            }
            // In a harsh run a command that timed out stays open for longer than anybody's patience.
            26..30
                if self.world.has_unfinished() && (self.calm || self.rng.below(self.harshness * 8) < 8) =>
            {
                let (which, happens) = (self.rng.below(3) as usize, self.rng.one_in(2));
                self.report.finished_late += u64::from(happens);
                self.world.finish_late(which, happens);
                self.log(format_args!("unfinished command {which} happens: {happens}"));
            }
            30..32 => self.repair_something(),
            32..36 => {
                if let Some(kernel) = self.unreported.first().copied() {
                    self.hear(Input::KernelDown(kernel));
                }
            }
            36..38 => self.boot_something(),
            38 => {
                let dead = self.coordinator.ledger().instances().find(|row| !row.running).map(|row| row.id);
                if let Some(id) = dead {
                    // The spawner detaches everything, the coordinator is told. A unit in transit is seen by its operation.
                    self.world.release(id);
                    self.persist(|coordinator| coordinator.release(now_ns, id).ok());
                    self.log(format_args!("{id} is released"));
                }
            }
            _ => {}
        }
        let known_dead = |kernel: &Kernel| !self.coordinator.ledger().is_running(*kernel);
        let unreported = std::mem::take(&mut self.unreported);
        self.unreported = unreported.into_iter().filter(|kernel| !known_dead(kernel)).collect();
    }

    fn kernel_dies(&mut self, id: InstanceId) {
        let Some(kernel) = self.world.running().into_iter().find(|kernel| kernel.instance == id) else {
            return;
        };
        self.report.kernel_deaths += 1;
        self.log(format_args!("{kernel} dies"));
        self.world.kernel_dies(id);
        self.unreported.push(kernel);
    }

    /// Boots what the coordinator knows to be dead: it is never booted before that.
    fn boot_something(&mut self) {
        let stopped = self.world.stopped();
        let Some(former) = self.rng.pick(&stopped).copied() else { return };
        if self.coordinator.ledger().is_running(former) || self.store.is_full {
            return;
        }
        self.boots += 1;
        let mut bits = [0; 16];
        bits[..4].copy_from_slice(&self.boots.to_be_bytes());
        let kernel = Kernel { instance: former.instance, incarnation: Incarnation(bits) };
        self.log(format_args!("{kernel} boots"));
        self.world.kernel_boots(kernel, self.coordinator.ledger());
        self.hear(Input::KernelUp(kernel));
        if !self.coordinator.ledger().is_running(kernel) {
            // The daemon died over it; the new one asks.
            self.hear(Input::KernelUp(kernel));
        }
    }

    /// What an operator does: look where a quarantined unit is, and say so.
    fn repair_something(&mut self) {
        let quarantined: Vec<UnitId> = self
            .coordinator
            .ledger()
            .entries()
            .filter(|entry| matches!(entry.owner, Owner::Quarantined(_)))
            .map(|entry| entry.unit.id)
            .collect();
        let now_ns = self.now_ms * 1_000_000;
        if let Some(&unit) = self.rng.pick(&quarantined)
            && let Some(place) = self.world.place(unit)
        {
            self.report.repairs += 1;
            self.log(format_args!("{unit} is found with {place} and repaired"));
            self.persist(|coordinator| coordinator.repair(now_ns, unit, place).ok());
        }
    }

    /// Counts and forgets operations that have ended.
    fn settle_the_ended(&mut self) {
        let ended: Vec<(OpId, Phase)> = self
            .coordinator
            .operations()
            .filter(|operation| operation.phase.is_terminal())
            .map(|operation| (operation.id, operation.phase))
            .collect();
        let ids: Vec<OpId> = ended.iter().map(|(id, _)| *id).collect();
        let now_ns = self.now_ms * 1_000_000;
        if !ids.is_empty() && self.persist(|coordinator| Some(coordinator.forget(now_ns, &ids))) {
            for (_, phase) in ended {
                match phase {
                    Phase::Committed => self.report.committed += 1,
                    Phase::Aborted => self.report.aborted += 1,
                    Phase::Partial => self.report.partial += 1,
                    Phase::Quarantined => self.report.quarantined += 1,
                    _ => self.report.needs_operator += 1,
                }
            }
        }
    }

    // --- small things ------------------------------------------------------------------------------------------------------

    fn has_unfinished_work(&self) -> bool {
        self.coordinator.operations().any(|operation| !operation.phase.is_terminal())
    }

    fn unfinished(&self) -> Vec<OpId> {
        let open = self.coordinator.operations().filter(|operation| !operation.phase.is_terminal());
        open.map(|operation| operation.id).collect()
    }

    fn loses(&mut self) -> bool {
        let lost = !self.calm && self.rng.one_in(30);
        self.report.messages_lost += u64::from(lost);
        lost
    }

    fn delay_ms(&mut self) -> u64 {
        1 + self.rng.below(50)
    }

    fn at(&mut self, after_ms: u64, happening: Happening) {
        self.serial += 1;
        self.happenings.insert(self.serial, happening);
        self.queue.push(Reverse((self.now_ms + after_ms, self.serial)));
    }

    fn log(&mut self, line: impl fmt::Display) {
        if self.log.len() == LOG_MAX {
            self.log.pop_front();
        }
        self.log.push_back(format!("{:>8} ms  {line}", self.now_ms));
    }
}
