//! Exhaustive checking of the hand-over machine by stateright.
//!
//! The model drives the code that runs: [`Coordinator`] with its steps, and the [`World`] of the simulator. What it adds is every order in
//! which things can happen:
//!
//! - a message is delivered at any later time, or never (which is loss); an answer may be delivered twice;
//! - a deadline may pass at any time, however little has happened;
//! - the daemon may be killed at any time, keeping nothing but ledger and journal. A message never delivered is also one that a daemon
//!   died before sending, an answer never delivered one that it died before storing, so this is a crash at every instruction;
//! - either kernel may die, be noticed, be released and boot anew; its agent may restart and forget; its leases may run out;
//! - a command may be refused, time out, or be carried out unseen; on one kind of spawner what timed out may happen later.
//!
//! Misfortunes other than delay, loss and deadlines come out of a budget, so that the space is finite. No action can repeat for ever (each
//! uses up a message, a misfortune or patience), so the graph has no cycle, and *every operation ends* is: no state without a next one has
//! an operation that has not ended.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::time::Instant;

use stateright::{Checker, Model, Property};
use tombolo_handover::observe::Sighting;
use tombolo_handover::operation::{Act, Ask, DrainRule, Reply};
use tombolo_handover::request::Shortfall;
use tombolo_handover::sim::{Luck, Spawner, World};
use tombolo_handover::{
    Coordinator, Effect, Incarnation, Input, InstanceId, InstanceRow, Kernel, Ledger, Limits, OpId, Owner,
    Party, Phase, Request, Rules, Side, Step, Submitted, Unit, UnitId, What,
};

const DB: InstanceId = InstanceId(3);
const WEB: InstanceId = InstanceId(4);

/// What to check.
#[derive(Clone, Debug)]
struct Machine {
    /// CPUs that move.
    units: u32,
    from: &'static str,
    to: &'static str,
    spawner: Spawner,
    drain: DrainRule,
    /// Misfortunes in one history.
    misfortunes: u8,
    hooks: bool,
    shortfall: Shortfall,
    /// Whether the same units are asked for by a second operation at any time.
    rival: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    /// What the daemon has in memory, which is what it has stored.
    coordinator: Coordinator,
    world: World,
    acts: BTreeSet<Act>,
    asks: BTreeSet<Ask>,
    answers: BTreeSet<Input>,
    /// The one timer of each operation. It dies with the daemon.
    timers: BTreeMap<OpId, u32>,
    misfortunes: u8,
    unreported: Vec<Kernel>,
    released: Vec<InstanceId>,
    boots: u8,
    rival_asked: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum Action {
    Act(Act, Luck),
    Answer(Ask),
    Veto(Ask),
    Hear(Input),
    HearAndAgain(Input),
    Expire(OpId, u32),
    DaemonDies,
    KernelDies(InstanceId),
    Report(Kernel),
    Release(InstanceId),
    Boot(InstanceId),
    AgentRestarts(InstanceId),
    LeasesLapse(InstanceId),
    FinishLate(bool),
    Cancel(OpId),
    Rival,
}

impl Machine {
    fn request(&self, key: &str) -> Request {
        let ids = (1..=self.units).collect();
        let mut request = Request::new(key, Side::named(self.from), Side::named(self.to), What::Cpus(ids));
        request.hooks = self.hooks;
        request.shortfall = self.shortfall;
        request
    }

    fn rules(&self) -> Rules {
        Rules { drain: self.drain, tries_max: 2, looks_max: 1, patience: 2, ..Rules::default() }
    }

    fn submit(&self, state: &mut State, key: &str) -> bool {
        let effects = match state.coordinator.submit(0, self.request(key), self.rules()) {
            Ok(Submitted::New(_, step)) => persist(step),
            Ok(Submitted::Known(_)) | Err(_) => return false,
        };
        state.send(effects);
        true
    }
}

impl State {
    fn send(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Act(act) => drop(self.acts.insert(act)),
                Effect::Ask(ask) => drop(self.asks.insert(ask)),
                Effect::Arm { operation, round, .. } => drop(self.timers.insert(operation, round)),
            }
        }
    }

    fn hear(&mut self, input: Input) {
        let effects = persist(self.coordinator.handle(0, input));
        self.send(effects);
    }

    /// Forgets messages that can change nothing any more, after making sure that they do not.
    ///
    /// Epochs and rounds only rise, so what is stale stays so. A stale question or look changes nothing outside, and its answer would be
    /// stale too. A stale *command* is kept for as long as its target would obey it.
    fn prune(&mut self) {
        let coordinator = self.coordinator.clone();
        let awaits = |id: OpId, unit: UnitId, epoch: u64| {
            coordinator.operation(id).is_some_and(|operation| {
                operation.units.iter().any(|p| p.asked && p.unit == unit && p.epoch == epoch)
            })
        };
        self.asks.retain(|ask| {
            coordinator.operation(ask.operation).is_some_and(|operation| {
                operation.round == ask.round && operation.open.contains(&(ask.question, ask.end))
            })
        });
        let mut ignored = coordinator.clone();
        self.answers.retain(|answer| {
            let Input::Acted { operation, unit, epoch, .. } = answer else { return true };
            let awaited = awaits(*operation, *unit, *epoch);
            if !awaited {
                assert!(persist(ignored.handle(0, answer.clone())).is_empty(), "a stale answer had effects");
                assert!(ignored == coordinator, "a stale answer changed something");
            }
            awaited
        });
        let world = &self.world;
        self.acts.retain(|act| {
            awaits(act.operation, act.unit.id, act.epoch) || (act.command.is_some() && !world.is_fenced(act))
        });
    }

    /// How an epoch of a unit compares with all others that matter for it.
    fn rank(&self, unit: UnitId, epoch: u64) -> usize {
        let mut epochs: Vec<u64> = self.world.fences(unit).collect();
        epochs.extend(self.coordinator.ledger().entry(unit).map(|entry| entry.epoch));
        let progress = self.coordinator.operations().flat_map(|operation| &operation.units);
        epochs.extend(progress.filter(|p| p.unit == unit && !p.is_settled()).map(|p| p.epoch));
        epochs.extend(self.acts.iter().filter(|act| act.unit.id == unit).map(|act| act.epoch));
        epochs.extend(self.answers.iter().filter_map(|answer| match answer {
            Input::Acted { unit: of, epoch, .. } if *of == unit => Some(*epoch),
            _ => None,
        }));
        epochs.sort_unstable();
        epochs.dedup();
        epochs.iter().take_while(|other| **other < epoch).count()
    }
}

/// Two states are the same if nothing can tell them apart: what is only reported (causes, warnings, refusals, versions) is left out,
/// and of epochs only the order counts.
impl Hash for State {
    fn hash<H: Hasher>(&self, into: &mut H) {
        let rank = |unit, epoch| self.rank(unit, epoch);
        for entry in self.coordinator.ledger().entries() {
            (entry.unit.id, &entry.owner, rank(entry.unit.id, entry.epoch)).hash(into);
        }
        for row in self.coordinator.ledger().instances() {
            row.hash(into);
        }
        for operation in self.coordinator.operations() {
            let phase = operation.phase;
            (operation.id, phase, operation.expiries, &operation.open, operation.hooks_ran).hash(into);
            (self.timers.get(&operation.id) == Some(&operation.round)).hash(into);
            for p in &operation.units {
                let refused = p.veto.is_some();
                (p.unit, &p.step, p.asked, p.tries, p.looks, p.told, p.touched, p.place, refused).hash(into);
                if !p.is_settled() {
                    rank(p.unit, p.epoch).hash(into);
                }
            }
        }
        self.world.hash_shape(rank, into);
        for act in &self.acts {
            (act.operation, act.unit.id, rank(act.unit.id, act.epoch), act.command).hash(into);
        }
        for ask in &self.asks {
            (ask.operation, ask.question, ask.end).hash(into);
        }
        for answer in &self.answers {
            if let Input::Acted { operation, unit, epoch, refused, sighting } = answer {
                (operation, unit, rank(*unit, *epoch), refused.is_some(), sighting).hash(into);
            }
        }
        (self.misfortunes, &self.unreported, &self.released, self.boots, self.rival_asked).hash(into);
    }
}

fn persist(step: Step<'_>) -> Vec<Effect> {
    match step.persist(|_| Ok::<(), std::convert::Infallible>(())) {
        Ok(effects) => effects,
        Err(never) => match never {},
    }
}

impl Model for Machine {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let donor = match self.from {
            "host" => Party::Host,
            "pool" => Party::Pool,
            _ => Party::Instance(kernel(DB, 0)),
        };
        let mut units = vec![(Unit::boot_cpu(0, 0, None), Party::Host)];
        // One CPU that stays, so that the last one need not leave.
        units.push((Unit::cpu(9, 9, None), if donor == Party::Pool { Party::Pool } else { Party::Host }));
        units.extend((1..=self.units).map(|id| (Unit::cpu(id, id, None), Party::Pool)));
        let ledger = Ledger::discover(1 << 20, Limits::default(), units).unwrap();
        let mut coordinator = Coordinator::new(ledger);
        for (id, name) in [(DB, "db"), (WEB, "web")] {
            let row = InstanceRow {
                id,
                name: name.to_owned(),
                incarnation: kernel(id, 0).incarnation,
                running: true,
                limits: Limits::default(),
                boot_cpu: None,
            };
            persist(coordinator.admit(0, row).unwrap());
        }
        let coordinator = given(&coordinator, donor, self.units);
        let world = World::new(self.spawner, self.drain, coordinator.ledger());
        let mut state = State {
            coordinator,
            world,
            acts: BTreeSet::new(),
            asks: BTreeSet::new(),
            answers: BTreeSet::new(),
            timers: BTreeMap::new(),
            misfortunes: self.misfortunes,
            unreported: Vec::new(),
            released: Vec::new(),
            boots: 0,
            rival_asked: !self.rival,
        };
        assert!(self.submit(&mut state, "first"));
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let unlucky = state.misfortunes > 0;
        for act in &state.acts {
            actions.push(Action::Act(act.clone(), Luck::Works));
            if unlucky {
                actions.push(Action::Act(act.clone(), Luck::Unseen));
                if act.command.is_some() {
                    let bad = [Luck::Refused, Luck::RefusedForGood, Luck::TimesOut];
                    actions.extend(bad.map(|luck| Action::Act(act.clone(), luck)));
                }
            }
        }
        for ask in &state.asks {
            actions.push(Action::Answer(ask.clone()));
            if unlucky {
                actions.push(Action::Veto(ask.clone()));
            }
        }
        for answer in &state.answers {
            actions.push(Action::Hear(answer.clone()));
            if unlucky {
                actions.push(Action::HearAndAgain(answer.clone()));
            }
        }
        for operation in state.coordinator.operations().filter(|operation| !operation.phase.is_terminal()) {
            // However little has happened.
            if state.timers.get(&operation.id) == Some(&operation.round) {
                actions.push(Action::Expire(operation.id, operation.round));
            }
            if unlucky && operation.phase.is_before_point_of_no_return() {
                actions.push(Action::Cancel(operation.id));
            }
        }
        actions.extend(state.unreported.iter().map(|kernel| Action::Report(*kernel)));
        for kernel in state.world.stopped() {
            let known = !state.coordinator.ledger().is_running(kernel);
            if known && !state.released.contains(&kernel.instance) {
                actions.push(Action::Release(kernel.instance));
            }
            if known {
                actions.push(Action::Boot(kernel.instance));
            }
        }
        if state.world.has_unfinished() {
            actions.extend([Action::FinishLate(true), Action::FinishLate(false)]);
        }
        if !state.rival_asked {
            actions.push(Action::Rival);
        }
        let all_ended = state.coordinator.operations().all(|operation| operation.phase.is_terminal());
        let quiet = all_ended && state.acts.is_empty() && state.asks.is_empty() && state.answers.is_empty();
        // Nothing that could still go wrong has anything to do with an operation.
        if unlucky && !quiet {
            actions.push(Action::DaemonDies);
            for kernel in state.world.running() {
                let id = kernel.instance;
                actions.extend([Action::KernelDies(id), Action::AgentRestarts(id), Action::LeasesLapse(id)]);
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        let costs = match &action {
            Action::Act(_, luck) => *luck != Luck::Works,
            Action::Veto(_)
            | Action::HearAndAgain(_)
            | Action::DaemonDies
            | Action::KernelDies(_)
            | Action::AgentRestarts(_)
            | Action::LeasesLapse(_)
            | Action::Cancel(_) => true,
            _ => false,
        };
        state.misfortunes -= u8::from(costs);
        match action {
            Action::Act(act, luck) => {
                state.acts.remove(&act);
                let (refused, sighting): (_, Sighting) = state.world.act(&act, luck);
                let (operation, unit, epoch) = (act.operation, act.unit.id, act.epoch);
                state.answers.insert(Input::Acted { operation, unit, epoch, refused, sighting });
            }
            Action::Answer(ask) => answer(&mut state, &ask, Reply::Yes),
            Action::Veto(ask) => {
                let veto = tombolo_handover::operation::Veto { reason: "no".into(), retry_after_ms: None };
                answer(&mut state, &ask, Reply::No(veto));
            }
            Action::Hear(input) => {
                state.answers.remove(&input);
                state.hear(input);
            }
            Action::HearAndAgain(input) => state.hear(input),
            Action::Expire(operation, round) => state.hear(Input::Expired { operation, round }),
            Action::DaemonDies => {
                state.timers.clear();
                state.coordinator = reread(&state.coordinator);
                let effects = persist(state.coordinator.recover(0));
                state.send(effects);
            }
            Action::KernelDies(id) => {
                let kernel = state.world.running().into_iter().find(|kernel| kernel.instance == id)?;
                state.world.kernel_dies(id);
                state.unreported.push(kernel);
            }
            Action::Report(kernel) => {
                state.unreported.retain(|other| *other != kernel);
                state.hear(Input::KernelDown(kernel));
            }
            Action::Release(id) => {
                state.released.push(id);
                state.world.release(id);
                let effects = persist(state.coordinator.release(0, id).ok()?);
                state.send(effects);
            }
            Action::Boot(id) => {
                state.boots += 1;
                let kernel = kernel(id, state.boots);
                state.world.kernel_boots(kernel, state.coordinator.ledger());
                state.hear(Input::KernelUp(kernel));
            }
            Action::AgentRestarts(id) => {
                state.world.agent(id, false);
                state.world.agent(id, true);
                // What was on its way to the agent that is no more cannot reach the new one.
                state.asks.retain(|ask| ask.to.instance() != Some(id));
                state
                    .acts
                    .retain(|act| ![act.donor, act.receiver].iter().any(|end| end.instance() == Some(id)));
            }
            Action::LeasesLapse(id) => state.world.leases_lapse(id),
            Action::FinishLate(happens) => state.world.finish_late(0, happens),
            Action::Cancel(id) => {
                let effects = persist(state.coordinator.cancel(0, id).ok()?);
                state.send(effects);
            }
            Action::Rival => {
                state.rival_asked = true;
                self.submit(&mut state, "rival");
            }
        }
        state.prune();
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::<Self>::always("ledger and journal add up", |_, state| {
                state.coordinator.check().is_ok()
            }),
            Property::<Self>::always("each unit has one owner, the one in the ledger", |_, state| {
                state.world.agrees(state.coordinator.ledger()).is_ok()
            }),
            Property::<Self>::always("every operation ends", |machine, state| {
                let mut actions = Vec::new();
                machine.actions(state, &mut actions);
                !actions.is_empty() || state.has_ended()
            }),
            Property::<Self>::sometimes("committed", |_, state| state.is(Phase::Committed)),
            Property::<Self>::sometimes("aborted", |_, state| state.is(Phase::Aborted)),
        ];
        if self.to != "pool" && self.misfortunes > 0 {
            properties.push(Property::<Self>::sometimes("partial", |_, state| state.is(Phase::Partial)));
        }
        if self.spawner == Spawner::MayFinishLate && self.misfortunes > 0 {
            let quarantined = |_: &Self, state: &State| state.is(Phase::Quarantined);
            properties.push(Property::<Self>::sometimes("quarantined", quarantined));
        }
        properties
    }
}

impl State {
    fn is(&self, phase: Phase) -> bool {
        self.coordinator.operations().any(|operation| operation.phase == phase)
    }

    fn has_ended(&self) -> bool {
        self.coordinator.operations().all(|operation| operation.phase.is_terminal())
            && !self.coordinator.ledger().entries().any(|entry| matches!(entry.owner, Owner::InTransit(_)))
    }
}

fn answer(state: &mut State, ask: &Ask, reply: Reply) {
    state.asks.remove(ask);
    let Ask { operation, round, question, end, .. } = *ask;
    // Being asked changes nothing, so the delay of the answer is no other than that of the question.
    state.hear(Input::Answered { operation, round, question, end, reply });
}

fn kernel(instance: InstanceId, boot: u8) -> Kernel {
    Kernel { instance, incarnation: Incarnation([boot; 16]) }
}

/// What a new daemon reads of what this one has stored.
fn reread(coordinator: &Coordinator) -> Coordinator {
    let ledger = coordinator.ledger();
    Coordinator::restore(
        ledger.meta().clone(),
        ledger.entries().cloned(),
        ledger.instances().cloned(),
        coordinator.operations().cloned(),
    )
    .expect("what was stored adds up")
}

/// The same with the CPUs that move given to the donor.
fn given(coordinator: &Coordinator, donor: Party, units: u32) -> Coordinator {
    let ledger = coordinator.ledger();
    let entries = ledger.entries().cloned().map(|mut entry| {
        let stays = donor.instance().is_some() && entry.unit.id == UnitId::Cpu(9);
        if stays || (1..=units).any(|id| entry.unit.id == UnitId::Cpu(id)) {
            entry.owner = donor.into();
        }
        entry
    });
    Coordinator::restore(ledger.meta().clone(), entries, ledger.instances().cloned(), []).unwrap()
}

fn check(name: &str, mut machine: Machine) {
    // Without optimization a state takes ten times as long.
    if cfg!(debug_assertions) {
        machine.misfortunes = machine.misfortunes.saturating_sub(1);
    }
    let began = Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let checker = machine.checker().threads(threads).spawn_bfs().join();
    println!(
        "{name}: {} states ({} unique), depth {}, {:.1} s",
        checker.state_count(),
        checker.unique_state_count(),
        checker.max_depth(),
        began.elapsed().as_secs_f64()
    );
    checker.assert_properties();
}

const MOVE: Machine = Machine {
    units: 1,
    from: "db",
    to: "web",
    spawner: Spawner::Certain,
    drain: DrainRule::Offline,
    misfortunes: 1,
    hooks: false,
    shortfall: Shortfall::Abort,
    rival: false,
};

#[test]
fn one_unit_moves_through_any_misfortunes() {
    check("move 1, certain spawner", Machine { misfortunes: 3, ..MOVE });
    let late = Machine { spawner: Spawner::MayFinishLate, drain: DrainRule::LeaveOnline, ..MOVE };
    check("move 1, spawner that may finish late", Machine { misfortunes: 3, ..late });
}

#[test]
fn one_unit_grows_and_shrinks_through_any_misfortunes() {
    for spawner in [Spawner::Certain, Spawner::MayFinishLate] {
        let machine = Machine { misfortunes: 2, spawner, ..MOVE };
        check("grow 1", Machine { from: "pool", to: "db", ..machine.clone() });
        check("grow 1 from the host", Machine { from: "host", to: "db", ..machine.clone() });
        check("shrink 1", Machine { from: "db", to: "pool", ..machine });
    }
}

#[test]
fn hooks_are_asked_through_any_misfortune() {
    check("move 1 with hooks", Machine { hooks: true, misfortunes: 2, ..MOVE });
}

#[test]
fn two_units_move_or_stay_through_any_misfortune() {
    check("move 2, all or none", Machine { units: 2, ..MOVE });
    let rest =
        Machine { units: 2, shortfall: Shortfall::MoveTheRest, spawner: Spawner::MayFinishLate, ..MOVE };
    check("move 2, or what can be had", rest);
}

#[test]
fn two_operations_for_the_same_unit_do_not_both_get_it() {
    check("move 1, twice", Machine { rival: true, misfortunes: 2, ..MOVE });
}

#[test]
fn three_units_move_by_deadlines_and_delays_alone() {
    check("move 3, no misfortune but delay and loss", Machine { units: 3, misfortunes: 0, ..MOVE });
}

/// Larger than an ordinary test run has time for: `cargo test --release -p tombolo-handover --test model -- --ignored --nocapture`.
#[test]
#[ignore = "minutes in release"]
fn larger_spaces() {
    for spawner in [Spawner::Certain, Spawner::MayFinishLate] {
        check("move 1, four misfortunes", Machine { misfortunes: 4, spawner, ..MOVE });
        check("move 2, two misfortunes", Machine { units: 2, misfortunes: 2, spawner, ..MOVE });
        check("move 3, one misfortune", Machine { units: 3, spawner, ..MOVE });
    }
}
