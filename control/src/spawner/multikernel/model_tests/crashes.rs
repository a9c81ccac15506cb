//! Whatever the kernel does, whoever else works on it, and wherever we die: nothing has two owners, nothing of ours is lost, and nothing of
//! others is touched.

use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use tombolo_mksim::model::{Machine, Quirk, State};

use super::bench::Bench;
use super::deeds::{Happening, NAMES, any_time, between_steps, number};
use super::world::{Actor, Faults, MIB, dies_of};
use crate::spawner::multikernel::folder;
use crate::spawner::multikernel::ids::PhysicalCpu;
use crate::spawner::multikernel::interface;
use crate::spawner::multikernel::pool::{Wish, change_on};
use crate::spawner::multikernel::record::Record;

/// What we do.
#[derive(Clone, Debug)]
enum Step {
    Make {
        name: usize,
        cpus: usize,
        memory: u64,
    },
    Boot(usize),
    End(usize),
    Release(usize),
    Pool {
        cpus: Option<u8>,
        memory: Option<u64>,
    },
    /// Time passes, in seconds.
    Wait(u64),
    Quirk(usize, bool),
}

/// A step, and what comes upon it.
#[derive(Clone, Debug)]
struct Turn {
    before: Option<Happening>,
    step: Step,
    /// By the number of the call that it comes before.
    meanwhile: Vec<(u64, Happening)>,
    /// The half of a call at which we die.
    crash: Option<u64>,
    /// Whether our lock is left behind.
    leaves_lock: bool,
    busy_calls: u32,
    deaf_halts: u32,
}

/// Those that decide what we see. Without time limits an operation of another program may never be over. What force has missed no tree shows: whoever
/// forced it and dies before it does so again leaves it running, and so does another program.
pub(super) fn quirk(index: usize) -> Quirk {
    let left_out =
        |quirk: &Quirk| matches!(quirk, Quirk::ItemTimesOut | Quirk::HaltTimesOut | Quirk::ForceMissesACpu);
    let quirks: Vec<Quirk> = Quirk::ALL.into_iter().filter(|quirk| !left_out(quirk)).collect();
    quirks[index % quirks.len()]
}

fn step() -> impl Strategy<Value = Step> {
    let name = || 0..NAMES.len();
    prop_oneof![
        4 => (name(), 1..4_usize, 1..6_u64).prop_map(|(name, cpus, memory)| Step::Make { name, cpus, memory }),
        3 => name().prop_map(Step::Boot),
        2 => name().prop_map(Step::End),
        2 => name().prop_map(Step::Release),
        1 => (prop::option::of(any::<u8>()), prop::option::of(0..5_u64))
            .prop_map(|(cpus, memory)| Step::Pool { cpus, memory }),
        1 => (0..40_u64).prop_map(Step::Wait),
        2 => (0..Quirk::ALL.len(), any::<bool>()).prop_map(|(quirk, on)| Step::Quirk(quirk, on)),
    ]
}

fn turn() -> impl Strategy<Value = Turn> {
    (
        prop::option::weighted(0.3, between_steps()),
        step(),
        prop::collection::vec((0..60_u64, any_time()), 0..3),
        prop::option::weighted(0.3, 0..100_u64),
        any::<bool>(),
        prop_oneof![3 => Just(0_u32), 1 => 0..8_u32],
        prop_oneof![3 => Just(0_u32), 1 => 0..5_u32],
    )
        .prop_map(|(before, step, meanwhile, crash, leaves_lock, busy_calls, deaf_halts)| Turn {
            before,
            step,
            meanwhile,
            crash,
            leaves_lock,
            busy_calls,
            deaf_halts,
        })
}

/// What we are: the daemon, whose memory is its records.
struct Daemon {
    bench: Bench,
    /// Nonces are told apart, and the same in every run.
    nonces: u32,
}

impl Daemon {
    fn new() -> Self {
        Self { bench: Bench::new(), nonces: 0 }
    }

    fn take(&mut self, turn: &Turn) {
        let calls = {
            let mut world = self.bench.model.world();
            turn.before.into_iter().for_each(|happening| happening.happen(&mut world));
            world.faults.busy_calls = turn.busy_calls;
            world.faults.deaf_halts = turn.deaf_halts;
            let calls = world.calls;
            for (at, happening) in turn.meanwhile.iter().copied() {
                world.deeds.insert(calls + at, Box::new(move |world| happening.happen(world)));
            }
            world.crash_at = turn.crash.map(|half| 2 * calls + half);
            calls
        };
        let died = dies_of(|| self.perform(&turn.step));
        {
            let mut world = self.bench.model.world();
            world.faults = Faults::default();
            world.deeds.clear();
            world.crash_at = None;
            assert!(world.calls - calls < 10_000, "a step has an end");
        }
        if died {
            if turn.leaves_lock {
                std::fs::write(self.bench.lock(), "tombolo 1 7\n").unwrap();
            }
            self.start_again();
        }
        self.check();
    }

    /// Does a step, and compares what it says with what is so.
    fn perform(&mut self, step: &Step) {
        match *step {
            Step::Make { name, cpus, memory } => self.make(name, cpus, memory),
            Step::Boot(name) => {
                if let Some(record) = self.record(name)
                    && self.bench.hold(&record).boot(|| false).is_ok()
                {
                    assert_eq!(self.maker(name), Some(Actor::Us));
                }
            }
            Step::End(name) => {
                if folder::end(&self.bench.model, &self.bench.folder(NAMES[name])).is_ok()
                    && self.record(name).is_some()
                    && self.maker(name) == Some(Actor::Us)
                {
                    assert_ne!(
                        self.bench.state(NAMES[name]),
                        Some(State::Active),
                        "it says that it has ended"
                    );
                }
            }
            Step::Release(name) => self.release(name),
            Step::Pool { cpus, memory } => self.change_pool(cpus, memory),
            Step::Wait(seconds) => self.bench.model.world().pass(Duration::from_secs(seconds)),
            Step::Quirk(index, on) => self.bench.model.world().machine.set_quirk(quirk(index), on),
        }
    }

    /// As the spawner does it: an earlier one is given back first, and so is one that could not be made.
    fn make(&mut self, name: usize, cpus: usize, memory: u64) {
        let folder = self.bench.folder(NAMES[name]);
        if folder::may_run(&self.bench.model, &folder) || self.bench.release(NAMES[name]).is_err() {
            return;
        }
        let Ok(pool) = interface::pool_or_none(&self.bench.model) else { return };
        let free: Vec<u32> = pool.cpus_available.iter().take(cpus).map(|cpu| cpu.0).collect();
        let id = u16::try_from(number(name)).unwrap();
        let mut record = self.bench.record(NAMES[name], id, if free.is_empty() { &[2] } else { &free });
        record.memory_bytes = memory * 64 * MIB;
        self.nonces += 1;
        record.nonce = format!("{:032x}", self.nonces);
        match self.bench.make(&mut record) {
            Ok(()) => {
                assert_eq!(self.maker(name), Some(Actor::Us));
                assert_eq!(self.bench.state(NAMES[name]), Some(State::Loaded));
            }
            Err(_) => self.release(name),
        }
    }

    fn release(&self, name: usize) {
        if self.bench.release(NAMES[name]).is_ok() {
            assert!(self.record(name).is_none());
            assert_ne!(self.maker(name), Some(Actor::Us), "it says that it is given back");
        }
    }

    fn change_pool(&self, cpus: Option<u8>, memory: Option<u64>) {
        let all = [2, 4, 6, 1, 3, 5, 7, 0];
        let wanted = |mask: u8| all.iter().enumerate().filter(move |(bit, _)| mask >> bit & 1 == 1);
        let wish = Wish {
            cpus: cpus.map(|mask| wanted(mask).map(|(_, cpu)| PhysicalCpu(*cpu)).collect()),
            memory_bytes: memory.map(|quarters| quarters * 256 * MIB),
            ..Wish::default()
        };
        if change_on(&self.bench.model, &self.bench.settings(), &self.bench.instances(), &wish, false)
            .is_err()
        {
            return;
        }
        let world = self.bench.model.world();
        let pool = world.machine.pool();
        if let Some(wanted) = &wish.cpus {
            let mut has: Vec<u64> = pool.map(|pool| pool.cpus.clone()).unwrap_or_default();
            has.sort_unstable();
            let mut wanted: Vec<u64> = wanted.iter().map(|cpu| u64::from(cpu.0)).collect();
            wanted.sort_unstable();
            assert_eq!(has, wanted, "it says that this is done");
        }
        if let Some(wanted) = wish.memory_bytes {
            let has: u64 = pool.iter().flat_map(|pool| &pool.chunks).map(|chunk| chunk.range.size).sum();
            assert_eq!(has, wanted, "it says that this is done");
        }
    }

    /// What the daemon does when it starts: kernels that run are kept, and everything else is given back.
    fn start_again(&self) {
        for (name, text) in NAMES.iter().enumerate() {
            if !folder::may_run(&self.bench.model, &self.bench.folder(text)) {
                self.release(name);
            }
        }
    }

    fn record(&self, name: usize) -> Option<Record> {
        let folder: &Path = &self.bench.folder(NAMES[name]);
        Record::read(folder).unwrap()
    }

    fn maker(&self, name: usize) -> Option<Actor> {
        self.bench.model.world().makers.get(NAMES[name]).copied()
    }

    fn check(&self) {
        self.bench.check();
        check_books(&self.bench.model.world().machine);
        for (name, text) in NAMES.iter().enumerate() {
            let record = self.record(name);
            let is_there = self.maker(name) == Some(Actor::Us);
            assert!(record.is_some() || !is_there, "`{text}` is ours, and not recorded");
            let Some(record) = record.filter(|_| is_there) else { continue };
            let world = self.bench.model.world();
            let instance = world.machine.instance(text).unwrap();
            if !matches!(instance.state, State::Ready | State::Empty) {
                // Nothing is loaded before it was seen to be as it is wanted.
                let cpus: Vec<u64> = record.cpus.iter().map(|cpu| u64::from(cpu.0)).collect();
                assert_eq!(
                    (&instance.cpus, instance.memory_bytes()),
                    (&cpus, record.memory_bytes),
                    "`{text}`"
                );
            }
            let runs = instance.state == State::Active;
            drop(world);
            assert_eq!(folder::may_run(&self.bench.model, &self.bench.folder(text)), runs, "`{text}`");
        }
    }

    /// All is ended and given back, once nothing is in the way.
    fn leave(&self) {
        for quirk in Quirk::ALL {
            self.bench.model.world().machine.set_quirk(quirk, quirk.is_default());
        }
        self.bench.model.world().pass(Duration::from_secs(60));
        for (name, text) in NAMES.iter().enumerate() {
            folder::end(&self.bench.model, &self.bench.folder(text)).unwrap();
            self.bench.release(text).unwrap();
            assert_ne!(self.maker(name), Some(Actor::Us), "`{text}` is given back");
        }
        self.check();
    }
}

/// Each CPU, each device and each byte has one owner: the host, the pool, or one instance.
pub(super) fn check_books(machine: &Machine) {
    let snapshot = machine.snapshot();
    let mut cpus = snapshot.host.cpus.clone();
    cpus.extend(snapshot.pool.iter().flat_map(|pool| &pool.cpus_free));
    cpus.extend(snapshot.instances.iter().flat_map(|instance| &instance.cpus));
    cpus.sort_unstable();
    let mut all: Vec<u64> = machine.config().physical_cpus().collect();
    all.sort_unstable();
    assert_eq!(cpus, all, "CPUs");

    let mut devices: Vec<&str> = snapshot.host.devices.iter().map(|device| device.pci_id.as_str()).collect();
    devices.extend(snapshot.pool.iter().flat_map(|pool| &pool.devices).map(|device| device.pci_id.as_str()));
    let of_instances = snapshot.instances.iter().flat_map(|instance| &instance.devices);
    devices.extend(of_instances.map(|device| device.pci_id.as_str()));
    devices.sort_unstable();
    assert_eq!(devices, super::world::DEVICES, "devices");

    let chunks: Vec<_> =
        snapshot.pool.iter().flat_map(|pool| &pool.chunks).map(|chunk| chunk.range).collect();
    let mut given = snapshot.host.memory_given.clone();
    given.sort_unstable_by_key(|range| range.base);
    let mut pooled = chunks.clone();
    pooled.sort_unstable_by_key(|range| range.base);
    assert_eq!(given, pooled, "what the host gave away the pool has");
    let mut regions: Vec<_> = snapshot
        .instances
        .iter()
        .flat_map(|instance| instance.regions.iter().map(|region| region.range))
        .collect();
    regions.sort_unstable_by_key(|range| range.base);
    assert!(regions.windows(2).all(|pair| pair[0].end() <= pair[1].base), "{regions:?} overlap");
    assert_eq!(
        snapshot.pool.map(|pool| pool.used.clone()).unwrap_or_default(),
        regions,
        "what instances have"
    );
    let is_in = |range: &tombolo_mksim::model::Range| {
        chunks.iter().any(|chunk| chunk.base <= range.base && range.end() <= chunk.end())
    };
    assert!(regions.iter().all(is_in), "{regions:?} are of {chunks:?}");
}

fn simple(step: Step) -> Turn {
    Turn {
        before: None,
        step,
        meanwhile: Vec::new(),
        crash: None,
        leaves_lock: false,
        busy_calls: 0,
        deaf_halts: 0,
    }
}

#[test]
fn death_at_any_call_of_a_life_leaves_nothing_behind() {
    let life = [
        Step::Make { name: 0, cpus: 2, memory: 2 },
        Step::Boot(0),
        Step::End(0),
        Step::Release(0),
        Step::Pool { cpus: Some(0b1_0111), memory: Some(5) },
    ];
    for (at, _) in life.iter().enumerate() {
        for half in 0.. {
            let mut daemon = Daemon::new();
            life[..at].iter().for_each(|step| daemon.take(&simple(step.clone())));
            let calls = daemon.bench.model.world().calls;
            let dies = Turn { crash: Some(half), leaves_lock: half % 4 < 2, ..simple(life[at].clone()) };
            daemon.take(&dies);
            let made = 2 * (daemon.bench.model.world().calls - calls);
            daemon.leave();
            if half >= made {
                assert!(half > 2, "step {at} calls the kernel");
                break;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn nothing_has_two_owners_and_nothing_is_lost_whatever_happens(turns in prop::collection::vec(turn(), 1..14)) {
        let mut daemon = Daemon::new();
        turns.iter().for_each(|turn| daemon.take(turn));
        daemon.leave();
    }
}
