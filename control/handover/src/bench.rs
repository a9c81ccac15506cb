//! A small machine for unit tests: two kernels, a world that does what it is told, and a shell that stops where a test wants.

use crate::coordinator::{Coordinator, Step, Submitted};
use crate::kernel::{Incarnation, InstanceId, Kernel, Party};
use crate::ledger::{InstanceRow, Ledger, Limits};
use crate::observe::Command;
use crate::operation::{Act, Ask, DrainRule, Effect, Input, Operation, Phase, Question, Reply, Rules, Veto};
use crate::owner::{OpId, Owner};
use crate::request::{Request, Side, What};
use crate::sim::{Luck, Spawner, World};
use crate::unit::{PciAddress, Unit, UnitId};

pub(crate) const DB: InstanceId = InstanceId(3);
pub(crate) const WEB: InstanceId = InstanceId(4);
pub(crate) const GRANULE: u64 = 64 << 20;

pub(crate) fn kernel(id: InstanceId, boot: u8) -> Kernel {
    Kernel { instance: id, incarnation: Incarnation([boot; 16]) }
}

pub(crate) fn party(id: InstanceId) -> Party {
    Party::Instance(kernel(id, 0))
}

pub(crate) fn pci(text: &str) -> PciAddress {
    text.parse().unwrap()
}

pub(crate) fn row(id: InstanceId, name: &str) -> InstanceRow {
    InstanceRow {
        id,
        name: name.to_owned(),
        incarnation: kernel(id, 0).incarnation,
        running: true,
        limits: Limits::default(),
        boot_cpu: None,
    }
}

pub(crate) fn request(from: &str, to: &str, what: What) -> Request {
    Request::new("key", Side::named(from), Side::named(to), what)
}

/// Rows of a ledger with `db` and `web`, checked as a stored one is.
pub(crate) fn coordinator(units: Vec<(Unit, Party)>) -> Coordinator {
    let pooled = units.iter().map(|(unit, _)| (unit.clone(), Party::Pool));
    let ledger = Ledger::discover(GRANULE, Limits::default(), pooled).unwrap();
    let entries = ledger.entries().cloned().map(|mut entry| {
        let owner =
            units.iter().find(|(unit, _)| unit.id == entry.unit.id).map_or(Party::Pool, |(_, owner)| *owner);
        entry.owner = owner.into();
        entry
    });
    let instances = [row(DB, "db"), row(WEB, "web")];
    Coordinator::restore(ledger.meta().clone(), entries.collect::<Vec<_>>(), instances, []).unwrap()
}

pub(crate) fn persist(step: Step<'_>) -> Vec<Effect> {
    step.persist(|_| Ok::<(), std::convert::Infallible>(())).unwrap()
}

/// A coordinator, a world, and what is on its way between them.
pub(crate) struct Bench {
    pub(crate) coordinator: Coordinator,
    pub(crate) world: World,
    pub(crate) rules: Rules,
    pub(crate) effects: Vec<Effect>,
    /// Every command that was carried out, in order.
    pub(crate) commands: Vec<Command>,
    pub(crate) asked: Vec<Question>,
}

impl Bench {
    pub(crate) fn new(units: Vec<(Unit, Party)>, drain: DrainRule, spawner: Spawner) -> Self {
        let coordinator = coordinator(units);
        let world = World::new(spawner, drain, coordinator.ledger());
        let rules = Rules { drain, ..Rules::default() };
        Self { coordinator, world, rules, effects: Vec::new(), commands: Vec::new(), asked: Vec::new() }
    }

    /// `db` has CPUs 1 to 3, the host CPU 0.
    pub(crate) fn cpus() -> Self {
        let mut units = vec![(Unit::boot_cpu(0, 0, None), Party::Host)];
        units.extend((1..4).map(|id| (Unit::cpu(id, id, None), party(DB))));
        Self::new(units, DrainRule::Offline, Spawner::Certain)
    }

    pub(crate) fn submit(&mut self, request: Request) -> OpId {
        let Ok(Submitted::New(id, step)) = self.coordinator.submit(0, request, self.rules) else {
            panic!("not accepted");
        };
        self.effects.extend(persist(step));
        id
    }

    pub(crate) fn hear(&mut self, input: Input) {
        self.effects.extend(persist(self.coordinator.handle(0, input)));
        let coordinator = &self.coordinator;
        self.world.follow(coordinator.ledger(), |owner| match owner {
            Owner::InTransit(id) => coordinator.operation(*id).map(|operation| operation.donor),
            _ => None,
        });
    }

    /// Does everything that is to be done, as `luck` and `reply` say, until `stop` or until nothing is left.
    pub(crate) fn run_until(
        &mut self,
        stop: impl Fn(&Coordinator) -> bool,
        luck: impl Fn(&Act) -> Luck,
        reply: impl Fn(&Ask) -> Option<Reply>,
    ) {
        while !stop(&self.coordinator) {
            let next = self.effects.iter().position(|effect| !matches!(effect, Effect::Arm { .. }));
            let Some(at) = next else { return };
            match self.effects.remove(at) {
                Effect::Act(act) => {
                    self.commands.extend(act.command);
                    let (refused, sighting) = self.world.act(&act, luck(&act));
                    let (operation, unit, epoch) = (act.operation, act.unit.id, act.epoch);
                    self.hear(Input::Acted { operation, unit, epoch, refused, sighting });
                }
                Effect::Ask(ask) => {
                    self.asked.push(ask.question);
                    if let Some(reply) = reply(&ask) {
                        let Ask { operation, round, question, end, .. } = ask;
                        self.hear(Input::Answered { operation, round, question, end, reply });
                    }
                }
                Effect::Arm { .. } => {}
            }
        }
    }

    /// Everything works and everybody agrees.
    pub(crate) fn run(&mut self) {
        self.run_until(|_| false, |_| Luck::Works, |_| Some(Reply::Yes));
    }

    /// As [`run`](Self::run), up to this phase.
    pub(crate) fn run_to(&mut self, phase: Phase) {
        let reached =
            |coordinator: &Coordinator| coordinator.operations().any(|operation| operation.phase == phase);
        self.run_until(reached, |_| Luck::Works, |_| Some(Reply::Yes));
        assert!(reached(&self.coordinator), "{phase} was not reached");
    }

    pub(crate) fn expire(&mut self, id: OpId) {
        let round = self.operation(id).round;
        self.hear(Input::Expired { operation: id, round });
    }

    pub(crate) fn operation(&self, id: OpId) -> &Operation {
        self.coordinator.operation(id).unwrap()
    }

    pub(crate) fn owner(&self, unit: UnitId) -> &Owner {
        &self.coordinator.ledger().entry(unit).unwrap().owner
    }

    /// Books and world agree.
    pub(crate) fn check(&self) {
        self.coordinator.check().unwrap();
        self.world.agrees(self.coordinator.ledger()).unwrap();
    }
}

pub(crate) fn no(reason: &str) -> Option<Reply> {
    Some(Reply::No(Veto { reason: reason.to_owned(), retry_after_ms: None }))
}
