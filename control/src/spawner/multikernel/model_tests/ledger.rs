//! The daemon's own books over the spawner's: its journal of instances and its ledger, in a store on disk, and lives as the daemon's task leads them.
//! Keepers, agents and links are left out; what has to do with the kernel is done by the spawner, on the model.
//!
//! Whatever the kernel and other programs do, and at whatever write to the journal or call of the kernel the daemon dies: each unit has one
//! owner, whatever is ours in the kernel is an instance of the journal, and the ledger has as running what the kernel's tree shows running. Where that
//! cannot be told the spawner says why, and leaves it alone.
//!
//! `TOMBOLO_CASES` says how many random histories are played.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::AsFd as _;
use std::panic::resume_unwind;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;
use tombolo_handover::coordinator::{Coordinator, Needs};
use tombolo_handover::{
    Bounds, Input as LedgerInput, InstanceId, InstanceRow, Kind, Ledger, Limits, Party, Unit,
};
use tombolo_mksim::model::Quirk;
use tombolo_transport::{Cid, Incarnation};

use super::bench::Bench;
use super::crashes::{check_books, quirk};
use super::deeds::{Happening, NAMES, any_time, between_steps, number};
use super::world::{Actor, Crash, Faults, MIB, dies_of};
use crate::core::backoff::RestartPolicy;
use crate::core::lifecycle::{Effect, End, Found, Input};
use crate::core::{InstanceSpec, State};
use crate::daemon::row_of;
use crate::spawner::SpawnerKind;
use crate::spawner::multikernel::folder;
use crate::spawner::multikernel::hold::Hold;
use crate::spawner::multikernel::interface::InstanceStatus;
use crate::spawner::multikernel::lock::WAIT_MAX;
use crate::spawner::multikernel::record::{Origin, Record};
use crate::spawner::multikernel::taken_over::{Known, offer};
use crate::store::{Batch, InstanceRecord, Store, StoredLedger};

/// Histories that are played unless it is said otherwise: some seconds.
const CASES: u32 = 60;
/// The names of other programs' instances that can be taken over, besides ours.
const THEIRS: [&str; 2] = ["other", "spare"];

/// What an operator wants, or what happens by itself.
#[derive(Clone, Debug)]
enum Wish {
    Create {
        name: usize,
        cpus: u32,
    },
    Adopt {
        name: usize,
        force: bool,
    },
    Start(usize),
    Kill(usize),
    Remove(usize),
    /// The daemon sees which kernels have ended.
    Look,
    /// Time passes, in seconds.
    Wait(u64),
    Quirk(usize, bool),
}

/// A wish, and what comes upon it.
#[derive(Clone, Debug)]
struct Turn {
    before: Option<Happening>,
    wish: Wish,
    /// By the number of the call of the kernel that it comes before.
    meanwhile: Vec<(u64, Happening)>,
    /// The half of a call of the kernel at which we die.
    crash_at_call: Option<u64>,
    /// The half of a write to the journal at which we die.
    crash_at_write: Option<u64>,
    /// Whether our lock is left behind.
    leaves_lock: bool,
}

fn any_name(name: usize) -> &'static str {
    NAMES.iter().chain(&THEIRS).copied().nth(name % (NAMES.len() + THEIRS.len())).unwrap_or("web")
}

fn turn() -> impl Strategy<Value = Turn> {
    let one = || 0..NAMES.len() + THEIRS.len();
    let wish = prop_oneof![
        3 => (0..NAMES.len(), 1..4_u32).prop_map(|(name, cpus)| Wish::Create { name, cpus }),
        3 => (one(), any::<bool>()).prop_map(|(name, force)| Wish::Adopt { name, force }),
        5 => one().prop_map(Wish::Start),
        3 => one().prop_map(Wish::Kill),
        2 => one().prop_map(Wish::Remove),
        2 => Just(Wish::Look),
        1 => (0..40_u64).prop_map(Wish::Wait),
        1 => (0..Quirk::ALL.len(), any::<bool>()).prop_map(|(quirk, on)| Wish::Quirk(quirk, on)),
    ];
    (
        prop::option::weighted(0.4, between_steps()),
        wish,
        prop::collection::vec((0..60_u64, any_time()), 0..2),
        prop::option::weighted(0.2, 0..100_u64),
        prop::option::weighted(0.3, 0..12_u64),
        any::<bool>(),
    )
        .prop_map(|(before, wish, meanwhile, crash_at_call, crash_at_write, leaves_lock)| Turn {
            before,
            wish,
            meanwhile,
            crash_at_call,
            crash_at_write,
            leaves_lock,
        })
}

fn simple(wish: Wish) -> Turn {
    let (before, meanwhile) = (None, Vec::new());
    Turn { before, wish, meanwhile, crash_at_call: None, crash_at_write: None, leaves_lock: false }
}

/// The store, and the deaths at it.
struct Journal {
    /// `None` between two daemons.
    store: Option<Store>,
    writes: u64,
    crash_at: Option<u64>,
}

impl Journal {
    fn open(&mut self, dir: &Path) {
        // The file belongs to one handle at a time.
        self.store = None;
        self.store = Some(Store::open(dir).unwrap());
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn write(&mut self, batch: &Batch) {
        let half = 2 * self.writes;
        self.writes += 1;
        if self.crash_at == Some(half) {
            resume_unwind(Box::new(Crash));
        }
        self.store().commit_now(batch).unwrap();
        if self.crash_at == Some(half + 1) {
            resume_unwind(Box::new(Crash));
        }
    }
}

/// The daemon: what it has in memory, and what is left of it when it dies.
struct Daemon {
    bench: Bench,
    state: TempDir,
    journal: Journal,
    coordinator: Coordinator,
    records: BTreeMap<String, InstanceRecord>,
    /// For whom a keeper stands.
    kept: BTreeSet<String>,
    /// Boots and nonces are told apart, and the same in every run.
    drawn: u128,
}

impl Daemon {
    fn new() -> Self {
        let state = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let mut journal = Journal { store: None, writes: 0, crash_at: None };
        journal.open(state.path());
        let (memory, none) = (Bounds::default(), Bounds::NONE);
        let host = Limits { memory, cpus: none, devices: none, llc_ways: none };
        let cpu = |number| (Unit::cpu(number, number, None), Party::Pool);
        let units = [(Unit::lot(0, 64, None), Party::Host), cpu(0), cpu(1)];
        let ledger = Ledger::discover(2 * MIB, host, units).unwrap();
        journal.write(&Batch::new().begin_ledger(StoredLedger::discovered(&ledger)));
        let coordinator = Coordinator::new(ledger);
        let (records, kept) = (BTreeMap::new(), BTreeSet::new());
        Self { bench: Bench::new(), state, journal, coordinator, records, kept, drawn: 0 }
    }

    fn take(&mut self, turn: &Turn) {
        {
            let mut world = self.bench.model.world();
            turn.before.into_iter().for_each(|happening| happening.happen(&mut world));
            let calls = world.calls;
            for (at, happening) in turn.meanwhile.iter().copied() {
                world.deeds.insert(calls + at, Box::new(move |world| happening.happen(world)));
            }
            world.crash_at = turn.crash_at_call.map(|half| 2 * calls + half);
        }
        self.journal.crash_at = turn.crash_at_write.map(|half| 2 * self.journal.writes + half);
        let died = dies_of(|| self.perform_wish(&turn.wish));
        {
            let mut world = self.bench.model.world();
            (world.faults, world.crash_at) = (Faults::default(), None);
            world.deeds.clear();
        }
        self.journal.crash_at = None;
        if died {
            if turn.leaves_lock {
                std::fs::write(self.bench.lock(), "tombolo 1 7\n").unwrap();
            }
            self.start_again();
        }
        self.check();
    }

    fn perform_wish(&mut self, wish: &Wish) {
        match *wish {
            Wish::Create { name, cpus } => self.create(NAMES[name], number(name), cpus),
            Wish::Adopt { name, force } => self.adopt(any_name(name), force),
            Wish::Start(name) => self.with_one(name, |daemon, name| daemon.step(name, Input::Start)),
            Wish::Kill(name) => self.with_one(name, Self::kill),
            Wish::Remove(name) => self.with_one(name, Self::remove),
            Wish::Look => self.look(),
            Wish::Wait(seconds) => self.bench.model.world().pass(Duration::from_secs(seconds)),
            Wish::Quirk(index, on) => self.bench.model.world().machine.set_quirk(quirk(index), on),
        }
    }

    /// Does something to one of those that are there.
    fn with_one(&mut self, which: usize, act: impl FnOnce(&mut Self, &str)) {
        if let Some(name) = self.records.keys().nth(which % self.records.len().max(1)).cloned() {
            act(self, &name);
        }
    }

    fn draw(&mut self) -> u128 {
        self.drawn += 1;
        self.drawn
    }

    fn create(&mut self, name: &str, cid: u32, cpus: u32) {
        let spec = InstanceSpec { cpus, memory_mib: 128, ..spec() };
        if !self.records.contains_key(name) && self.records.values().all(|record| record.cid.0 != cid) {
            self.enter(InstanceRecord::new(name.parse().unwrap(), Cid(cid), 1, spec, 1));
        }
    }

    /// As `Registry::adopt` does it.
    fn adopt(&mut self, name: &str, force: bool) {
        if self.records.contains_key(name) {
            return;
        }
        let Ok(offer) = offer(&self.bench.model, &self.bench.settings(), name, force) else { return };
        let spec = InstanceSpec { cpus: offer.cpus, memory_mib: offer.memory_bytes >> 20, ..spec() };
        let key = name.parse().unwrap();
        if spec.validate(&key).is_err() || self.records.values().any(|record| record.cid.0 == offer.id) {
            return;
        }
        let mut record = InstanceRecord::new(key, Cid(offer.id), 1, spec, 1);
        record.spawner = Some(SpawnerKind::Multikernel);
        record.taken_over = Some(offer.taken_over.clone());
        self.enter(record);
        self.bench.model.world().makers.insert(name.into(), Actor::Us);
    }

    fn enter(&mut self, record: InstanceRecord) {
        self.journal.write(&Batch::new().put_instance(&record));
        self.records.insert(record.name.to_string(), record);
    }

    /// As `Instance::step` does it: decides, records, does.
    fn step(&mut self, name: &str, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let Some(record) = self.records.get_mut(name) else { return };
            let before = record.clone();
            let effects = record.life.handle(&record.spec.rules(), 1, input);
            let batch = Batch::new().put_instance(record).essential(input.is_of_an_end());
            let (is_changed, moved) = (*record != before, record.life.state() != before.life.state());
            if is_changed {
                self.journal.write(&batch);
            }
            for effect in effects {
                inputs.extend(self.perform(name, effect));
            }
            if moved && inputs.is_empty() {
                self.settle(name);
            }
        }
    }

    fn perform(&mut self, name: &str, effect: Effect) -> Option<Input> {
        match effect {
            Effect::Reserve => {
                let incarnation = Incarnation(self.draw().to_le_bytes());
                self.records.get_mut(name)?.incarnation = Some(incarnation);
                Some(Input::Reserved)
            }
            Effect::Load => {
                let record = self.records.get_mut(name)?;
                record.spawner = Some(SpawnerKind::Multikernel);
                let row = row(record)?;
                let step = self.coordinator.boot(1, row, Needs::default()).unwrap();
                let stored = step.persist(|commit| {
                    self.journal.write(&Batch::new().ledger_step(commit.clone()));
                    Ok::<_, ()>(())
                });
                stored.unwrap();
                Some(Input::Loaded)
            }
            Effect::Spawn => {
                Some(if self.spawn(name).is_some() { Input::Spawned } else { Input::StepFailed })
            }
            Effect::Kill | Effect::Drain(_) => self.end(name),
            Effect::Release => {
                self.down(name);
                if self.kept.remove(name) {
                    // What cannot be given back now stays noted.
                    let _ = folder::release(&self.bench.model, &self.bench.folder(name));
                }
                None
            }
            _ => None,
        }
    }

    /// As the spawner does it, and its warden; `None` if no kernel runs then.
    fn spawn(&mut self, name: &str) -> Option<()> {
        let nonce = format!("{:032x}", self.draw());
        let (bench, folder, store) = (&self.bench, self.bench.folder(name), &self.records[name]);
        folder::clear(&bench.model, &folder).ok()?;
        let id = u16::try_from(store.cid.0).unwrap();
        let made = Record {
            nonce,
            memory_bytes: store.spec.memory_mib * MIB,
            cpus_wanted: store.spec.cpus,
            ..bench.record(name, id, &[])
        };
        let taken = store.taken_over.clone();
        let taken = taken.map(|it| Record { origin: Origin::TakenOver(it), ..made.clone() });
        let nothing = std::fs::File::open("/dev/null").unwrap();
        let files = (nothing.as_fd(), nothing.as_fd());
        let is_there = match &taken {
            Some(taken) => Hold::on(&bench.model, taken).ours().ok()?.is_some(),
            None => false,
        };
        let loaded = match taken.filter(|_| is_there) {
            Some(mut taken) => {
                folder::load_taken_over(&bench.model, &folder, &mut taken, files, "quiet").map(|()| taken)
            }
            None => {
                let mut made = made;
                folder::make(&bench.model, &folder, &mut made, files, "quiet").map(|()| made)
            }
        };
        let Ok(record) = loaded else {
            let _ = folder::clear(&bench.model, &folder);
            return None;
        };
        let booted = bench.hold(&record).boot(|| false).is_ok() || folder::may_run(&bench.model, &folder);
        if !booted {
            let _ = folder::release(&bench.model, &folder);
            return None;
        }
        self.kept.insert(name.into());
        Some(())
    }

    fn end(&mut self, name: &str) -> Option<Input> {
        let folder = self.bench.folder(name);
        folder::end(&self.bench.model, &folder).ok()?;
        (!folder::may_run(&self.bench.model, &folder)).then_some(Input::Ended(End::Signaled(9)))
    }

    fn kill(&mut self, name: &str) {
        self.step(name, Input::Kill);
        if let Some(record) = self.records.get(name)
            && record.taken_over.is_some()
            && !self.kept.contains(name)
            && let Some(record) = self.known(name).record(&self.bench.settings()).unwrap()
        {
            let _ = self.bench.hold(&record).end(|_| ());
        }
    }

    /// As `Instance::remove` does it.
    fn remove(&mut self, name: &str) {
        let Some(record) = self.records.get(name) else { return };
        let state = record.life.state();
        if state.may_have_kernel() || state == State::Reserved {
            return;
        }
        let known = self.known(name);
        if let Some(record) = known.record(&self.bench.settings()).unwrap() {
            if self.bench.hold(&record).release(WAIT_MAX, || false).is_err() {
                return;
            }
            Record::remove(&known.folder).unwrap();
        }
        self.journal.write(&Batch::new().delete_instance(&name.parse().unwrap()));
        let cid = self.records.remove(name).unwrap().cid;
        self.dismiss(InstanceId(cid.0));
    }

    fn look(&mut self) {
        for name in self.kept.clone() {
            let is_draining = self.records[&name].life.state() == State::Draining;
            let ended = match is_draining {
                true => self.end(&name),
                false => (!folder::may_run(&self.bench.model, &self.bench.folder(&name)))
                    .then_some(Input::Ended(End::Vanished)),
            };
            ended.into_iter().for_each(|input| self.step(&name, input));
        }
    }

    /// As `Instance::settle_ledger`, and the release that comes first.
    fn settle(&mut self, name: &str) {
        let state = self.records[name].life.state();
        if !state.may_have_kernel() && state != State::Reserved {
            self.down(name);
        }
    }

    fn down(&mut self, name: &str) {
        let id = InstanceId(self.records[name].cid.0);
        let Some(kernel) = self.coordinator.ledger().instance(id).map(InstanceRow::kernel) else { return };
        let step = self.coordinator.handle(1, LedgerInput::KernelDown(kernel));
        let stored = step.persist(|commit| {
            self.journal.write(&Batch::new().ledger_step(commit.clone()).essential(true));
            Ok::<_, ()>(())
        });
        stored.unwrap();
    }

    fn dismiss(&mut self, id: InstanceId) {
        if self.coordinator.ledger().instance(id).is_none() {
            return;
        }
        let step = self.coordinator.dismiss(1, id).unwrap();
        let stored = step.persist(|commit| {
            self.journal.write(&Batch::new().ledger_step(commit.clone()));
            Ok::<_, ()>(())
        });
        stored.unwrap();
    }

    fn known(&self, name: &str) -> Known {
        let record = &self.records[name];
        Known {
            folder: self.bench.folder(name),
            name: name.into(),
            cid: record.cid.0,
            taken_over: record.taken_over.clone(),
        }
    }

    /// The next daemon, which has only what is on disk.
    fn start_again(&mut self) {
        self.journal.open(self.state.path());
        let (coordinator, orphans) = self.journal.store().ledger().unwrap().unwrap().restore().unwrap();
        assert_eq!(orphans, 0);
        self.coordinator = coordinator;
        let instances = self.journal.store().instances().unwrap();
        self.records = instances.into_iter().map(|record| (record.name.to_string(), record)).collect();
        self.kept.clear();
        let names: Vec<String> = self.records.keys().cloned().collect();
        for name in names {
            let folder = self.bench.folder(&name);
            if self.records[&name].taken_over.is_some()
                && let Some(record) = self.known(&name).record(&self.bench.settings()).unwrap()
                && self.bench.hold(&record).ours().is_ok_and(|status| status.is_some())
            {
                // It may have been recorded at the moment of death.
                self.bench.model.world().makers.insert(name.clone(), Actor::Us);
            }
            let may_run = self.records[&name].life.state().may_have_kernel()
                && folder::may_run(&self.bench.model, &folder);
            if may_run {
                self.kept.insert(name.clone());
            }
            self.step(&name, Input::Resume(if may_run { Found::Alive } else { Found::Nothing }));
            self.settle(&name);
        }
        // An instance that was removed, and whose row was not yet.
        let rows: Vec<InstanceId> = self.coordinator.ledger().instances().map(|row| row.id).collect();
        for id in rows {
            if self.records.values().all(|record| record.cid.0 != id.0) {
                self.dismiss(id);
            }
        }
    }

    fn check(&self) {
        self.bench.check();
        check_books(&self.bench.model.world().machine);
        self.coordinator.check().unwrap();
        self.check_store();
        self.check_owners();
        self.check_ledger();
    }

    /// What is in memory is on disk.
    fn check_store(&self) {
        let store = self.journal.store();
        let stored: BTreeMap<String, State> = store
            .instances()
            .unwrap()
            .into_iter()
            .map(|record| (record.name.to_string(), record.life.state()))
            .collect();
        let held = self.records.iter().map(|(name, record)| (name.clone(), record.life.state())).collect();
        assert_eq!(stored, held);
        let ledger = store.ledger().unwrap().unwrap();
        let rows: Vec<InstanceRow> = self.coordinator.ledger().instances().cloned().collect();
        assert_eq!(ledger.instances, rows);
    }

    /// What is ours in the kernel is an instance of the journal, with its address, and is known by that; no two have one address.
    fn check_owners(&self) {
        let addresses: BTreeSet<u32> = self.records.values().map(|record| record.cid.0).collect();
        assert_eq!(addresses.len(), self.records.len(), "two have one address");
        let ours: Vec<(String, u32)> = {
            let world = self.bench.model.world();
            let is_ours = |name: &str| world.makers.get(name) == Some(&Actor::Us);
            let snapshot = world.machine.snapshot();
            let ours = snapshot.instances.iter().filter(|instance| is_ours(&instance.name));
            ours.map(|instance| (instance.name.clone(), instance.id)).collect()
        };
        for (name, id) in ours {
            let record = self.records.get(&name).unwrap_or_else(|| panic!("`{name}` is nobody's"));
            assert_eq!(record.cid.0, id, "`{name}`");
            let known = self.known(&name).record(&self.bench.settings()).unwrap();
            assert!(known.is_some(), "`{name}` is in the kernel, and nothing says why");
        }
    }

    /// The ledger has as running what the tree shows running, and what it lends is of the host alone.
    fn check_ledger(&self) {
        let ledger = self.coordinator.ledger();
        for row in ledger.instances() {
            let record = self.records.values().find(|record| record.cid.0 == row.id.0);
            let record = record.unwrap_or_else(|| panic!("`{}` has a row, and no record", row.name));
            let state = record.life.state();
            assert!(!row.running || state.may_have_kernel() || state == State::Reserved, "{row:?}, {state}");
            for kind in [Kind::Memory, Kind::Cpu] {
                assert_eq!(ledger.held(Party::Instance(row.kernel()), kind), 0, "{row:?}");
            }
        }
        assert!(ledger.entries().all(|entry| entry.owner.party().is_some()), "none is in quarantine");
        for (name, record) in &self.records {
            let Some(in_kernel) = self.known(name).record(&self.bench.settings()).unwrap() else { continue };
            match self.bench.hold(&in_kernel).ours() {
                Ok(Some(InstanceStatus::Active)) => {
                    let row = ledger.instance(InstanceId(record.cid.0));
                    let is_running = row.is_some_and(|row| row.running);
                    let is_as_it_was_taken = record.taken_over.is_some() && !self.kept.contains(name);
                    assert!(is_running || is_as_it_was_taken, "`{name}` runs: {record:?} {row:?}");
                }
                Ok(_) => {}
                Err(reason) => assert!(reason.contains("nothing is done to it"), "`{name}`: {reason}"),
            }
        }
    }

    /// All is ended and removed, once nothing is in the way.
    fn leave(&mut self) {
        for quirk in Quirk::ALL {
            self.bench.model.world().machine.set_quirk(quirk, quirk.is_default());
        }
        self.bench.model.world().pass(Duration::from_secs(60));
        self.look();
        let names: Vec<String> = self.records.keys().cloned().collect();
        for name in names {
            self.kill(&name);
            self.look();
            self.remove(&name);
            assert!(!self.records.contains_key(&name), "`{name}`: {:?}", self.records.get(&name));
        }
        self.check();
        let world = self.bench.model.world();
        assert!(world.makers.values().all(|maker| *maker == Actor::Another), "{:?}", world.makers);
        assert_eq!(self.coordinator.ledger().instances().count(), 0);
    }
}

fn spec() -> InstanceSpec {
    let spawner = Some(SpawnerKind::Multikernel);
    InstanceSpec { spawner, restart: RestartPolicy::Never, ..InstanceSpec::default() }
}

fn row(record: &InstanceRecord) -> Option<InstanceRow> {
    let (name, kind) = (record.name.as_str(), SpawnerKind::Multikernel);
    Some(row_of(record.cid, name, record.incarnation?, &record.spec, kind))
}

/// A life of one that we make, and of one that is taken over.
fn lives() -> [Vec<Wish>; 2] {
    let then = [Wish::Start(2), Wish::Kill(2), Wish::Start(2), Wish::Kill(2), Wish::Remove(2)];
    let of = |first: Wish| std::iter::once(first).chain(then.iter().cloned()).collect();
    [of(Wish::Create { name: 2, cpus: 2 }), of(Wish::Adopt { name: 2, force: false })]
}

/// Plays each life with a death at each half of a step of it. `count`: how many of what it dies at were done so far.
fn die_at_each(dies: impl Fn(&mut Turn, u64), count: impl Fn(&Daemon) -> u64) {
    for life in lives() {
        for dies_in in 0..life.len() {
            for half in 0.. {
                let mut daemon = Daemon::new();
                if matches!(life[0], Wish::Adopt { .. }) {
                    let create = Happening::CreateLikeOurs { name: 2, cpu: 0 };
                    create.happen(&mut daemon.bench.model.world());
                }
                life[..dies_in].iter().for_each(|wish| daemon.take(&simple(wish.clone())));
                let before = count(&daemon);
                let mut turn = simple(life[dies_in].clone());
                dies(&mut turn, half);
                daemon.take(&turn);
                let done = 2 * (count(&daemon) - before);
                daemon.leave();
                if half >= done {
                    break;
                }
            }
        }
    }
}

#[test]
fn death_at_any_write_to_the_journal_loses_nothing() {
    die_at_each(|turn, half| turn.crash_at_write = Some(half), |daemon| daemon.journal.writes);
}

#[test]
fn death_at_any_call_of_the_kernel_loses_nothing() {
    let calls = |daemon: &Daemon| daemon.bench.model.world().calls;
    die_at_each(|turn, half| turn.crash_at_call = Some(half), calls);
}

#[test]
fn lives_come_to_their_end_without_deaths() {
    for life in lives() {
        let mut daemon = Daemon::new();
        Happening::CreateLikeOurs { name: 2, cpu: 0 }.happen(&mut daemon.bench.model.world());
        if matches!(life[0], Wish::Create { .. }) {
            Happening::Remove(0).happen(&mut daemon.bench.model.world());
        }
        for wish in &life {
            daemon.take(&simple(wish.clone()));
            let state = daemon.records.get("cache").map(|record| record.life.state());
            match wish {
                Wish::Create { .. } | Wish::Adopt { .. } => assert_eq!(state, Some(State::Defined)),
                Wish::Start(_) => assert_eq!(state, Some(State::Booting)),
                Wish::Kill(_) => assert_eq!(state, Some(State::Stopped)),
                _ => assert_eq!(state, None),
            }
        }
        daemon.leave();
    }
}

fn cases() -> u32 {
    std::env::var("TOMBOLO_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(CASES)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn journal_ledger_and_kernel_agree_whatever_happens(turns in prop::collection::vec(turn(), 1..16)) {
        let mut daemon = Daemon::new();
        turns.iter().for_each(|turn| daemon.take(turn));
        daemon.leave();
    }
}
