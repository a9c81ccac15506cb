//! The daemon: what it has in memory and on disk, and what it does about instances.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::resume_unwind;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use tombolo_handover::coordinator::{Coordinator, Step};
use tombolo_handover::{
    Bounds, Effect as LedgerEffect, Input as LedgerInput, InstanceId, InstanceRow, Ledger, Limits, OpId,
    UnitId,
};
use tombolo_mksim::model::Quirk;
use tombolo_transport::{Cid, Incarnation};

use super::{Turn, Wish, any_name};
use crate::core::backoff::RestartPolicy;
use crate::core::lifecycle::{Effect, End, Found, Input};
use crate::core::{InstanceSpec, State};
use crate::daemon::{GRANULE_BYTES, Movable, UnitsAre, needs_of, row_of};
use crate::spawner::SpawnerKind;
use crate::spawner::multikernel::folder;
use crate::spawner::multikernel::hold::Hold;
use crate::spawner::multikernel::ids::PhysicalCpu;
use crate::spawner::multikernel::lock::WAIT_MAX;
use crate::spawner::multikernel::model_tests::bench::Bench;
use crate::spawner::multikernel::model_tests::crashes::quirk;
use crate::spawner::multikernel::model_tests::deeds::{Happening, NAMES, number};
use crate::spawner::multikernel::model_tests::world::{
    Actor, Crash, DEVICES, Deed, Faults, MIB, World, dies_of,
};
use crate::spawner::multikernel::record::{Origin, Record};
use crate::spawner::multikernel::taken_over::{Known, offer};
use crate::store::{Batch, InstanceRecord, Store, StoredLedger};

/// The store, and the deaths at it.
pub(super) struct Journal {
    /// `None` between two daemons.
    pub(super) store: Option<Store>,
    pub(super) writes: u64,
    pub(super) crash_at: Option<u64>,
}

impl Journal {
    pub(super) fn open(&mut self, dir: &Path) {
        // The file belongs to one handle at a time.
        self.store = None;
        self.store = Some(Store::open(dir).unwrap());
    }

    pub(super) fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    pub(super) fn write(&mut self, batch: &Batch) {
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
pub(super) struct Daemon {
    pub(super) bench: Bench,
    pub(super) state: TempDir,
    pub(super) journal: Journal,
    pub(super) coordinator: Coordinator,
    pub(super) records: BTreeMap<String, InstanceRecord>,
    /// For whom a keeper stands.
    pub(super) kept: BTreeSet<String>,
    /// What the agents keep out of use.
    pub(super) drained: BTreeSet<(OpId, UnitId)>,
    /// Boots and nonces are told apart, and the same in every run.
    pub(super) drawn: u128,
}

impl Daemon {
    pub(super) fn new() -> Self {
        let state = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let mut journal = Journal { store: None, writes: 0, crash_at: None };
        journal.open(state.path());
        let none = Bounds::NONE;
        let host = Limits { memory: none, cpus: none, devices: none, llc_ways: none };
        // As for a pool that is empty still: what there is is looked at.
        let ledger = Ledger::discover(GRANULE_BYTES, host, []).unwrap();
        journal.write(&Batch::new().begin_ledger(StoredLedger::discovered(&ledger)));
        let coordinator = Coordinator::new(ledger);
        let (records, kept, drained) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        let mut daemon =
            Self { bench: Bench::new(), state, journal, coordinator, records, kept, drained, drawn: 0 };
        daemon.compare();
        daemon
    }

    /// Whether it died at it.
    pub(super) fn take(&mut self, turn: &Turn) -> bool {
        {
            let mut world = self.bench.model.world();
            turn.before.into_iter().for_each(|happening| happening.happen(&mut world));
            let calls = world.calls;
            for (at, happening) in turn.meanwhile.iter().copied() {
                world.deeds.insert(calls + at, Box::new(move |world| happening.happen(world)));
            }
            world.while_waiting = turn.thaws_after.map(|seconds| -> (u64, Deed) {
                let thaws = |world: &mut World| {
                    for name in 0..NAMES.len() {
                        Happening::Hangs { name, hangs: false }.happen(world);
                    }
                };
                (seconds * 1_000_000_000, Box::new(thaws))
            });
            world.crash_at = turn.crash_at_call.map(|half| 2 * calls + half);
        }
        self.journal.crash_at = turn.crash_at_write.map(|half| 2 * self.journal.writes + half);
        let died = dies_of(|| self.perform_wish(&turn.wish));
        {
            let mut world = self.bench.model.world();
            (world.faults, world.crash_at) = (Faults::default(), None);
            world.deeds.clear();
            world.while_waiting = None;
        }
        self.journal.crash_at = None;
        if died {
            if turn.leaves_lock {
                std::fs::write(self.bench.lock(), "tombolo 1 7\n").unwrap();
            }
            self.start_again();
        }
        self.check();
        died
    }

    pub(super) fn perform_wish(&mut self, wish: &Wish) {
        match *wish {
            Wish::Create { name, cpus } => self.create(NAMES[name], number(name), cpus),
            Wish::Adopt { name, force } => self.adopt(any_name(name), force),
            Wish::Start(name) => self.with_one(name, |daemon, name| daemon.step(name, Input::Start)),
            Wish::Kill(name) => self.with_one(name, Self::kill),
            Wish::Remove(name) => self.with_one(name, Self::remove),
            Wish::Move { from, to, count } => self.move_cpus(from, to, count),
            Wish::MoveMemory { from, to, steps } => self.move_memory(from, to, steps),
            Wish::MoveDevice { from, to, device } => self.move_device(from, to, device),
            Wish::Pins(name, is_pinned) => self.bench.model.world().machine.pinned(number(name), is_pinned),
            Wish::Look => {
                self.look();
                self.heal();
            }
            Wish::Wait(seconds) => self.bench.model.world().pass(Duration::from_secs(seconds)),
            Wish::LosesAcks(on) => {
                for quirk in [Quirk::CpuAddAckLost, Quirk::MemoryAckLost, Quirk::DeviceAckLost] {
                    self.bench.model.world().machine.set_quirk(quirk, on);
                }
            }
            Wish::Quirk(index, on) => self.bench.model.world().machine.set_quirk(quirk(index), on),
        }
    }

    /// Does something to one of those that are there.
    pub(super) fn with_one(&mut self, which: usize, act: impl FnOnce(&mut Self, &str)) {
        if let Some(name) = self.records.keys().nth(which % self.records.len().max(1)).cloned() {
            act(self, &name);
        }
    }

    pub(super) fn draw(&mut self) -> u128 {
        self.drawn += 1;
        self.drawn
    }

    pub(super) fn create(&mut self, name: &str, cid: u32, cpus: u32) {
        // Each its own, while that is free.
        let own = NAMES.iter().position(|other| *other == name).map(|at| DEVICES[at].parse().unwrap());
        let spec = InstanceSpec {
            cpus,
            cpus_max: Some(4),
            memory_mib: 128,
            memory_max_mib: Some(768),
            devices: own.map(|own| vec![own]),
            ..spec()
        };
        if !self.records.contains_key(name) && self.records.values().all(|record| record.cid.0 != cid) {
            self.enter(InstanceRecord::new(name.parse().unwrap(), Cid(cid), 1, spec, 1));
        }
    }

    /// As `Registry::adopt` does it.
    pub(super) fn adopt(&mut self, name: &str, force: bool) {
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
        let mut world = self.bench.model.world();
        // A program that does not keep to the lock may have removed it while it was looked at.
        if world.machine.instance(name).is_some() {
            world.makers.insert(name.into(), Actor::Us);
        }
    }

    pub(super) fn enter(&mut self, record: InstanceRecord) {
        self.journal.write(&Batch::new().put_instance(&record));
        self.records.insert(record.name.to_string(), record);
    }

    /// As `Instance::step` does it: decides, records, does.
    pub(super) fn step(&mut self, name: &str, input: Input) {
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

    pub(super) fn perform(&mut self, name: &str, effect: Effect) -> Option<Input> {
        match effect {
            Effect::Reserve => {
                let incarnation = Incarnation(self.draw().to_le_bytes());
                self.records.get_mut(name)?.incarnation = Some(incarnation);
                Some(Input::Reserved)
            }
            Effect::Load => {
                let record = self.records.get_mut(name)?;
                record.spawner = Some(SpawnerKind::Multikernel);
                let (row, needs) = (row(record)?, needs_of(&record.spec, movable(record)));
                self.compare();
                // There may be too few CPUs.
                let Ok(step) = self.coordinator.boot(1, row, needs) else { return Some(Input::StepFailed) };
                let effects = store(&mut self.journal, step);
                self.carry_on(effects);
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
    pub(super) fn spawn(&mut self, name: &str) -> Option<()> {
        let nonce = format!("{:032x}", self.draw());
        let (bench, folder, store) = (&self.bench, self.bench.folder(name), &self.records[name]);
        folder::clear(&bench.model, &folder).ok()?;
        let id = u16::try_from(store.cid.0).unwrap();
        let cpus = self.cpus_of(InstanceId(store.cid.0));
        let made = Record {
            nonce,
            memory_bytes: match self.memory_of(InstanceId(store.cid.0)) {
                0 => store.spec.memory_mib * MIB,
                granules => granules * GRANULE_BYTES,
            },
            memory_max_bytes: (!cpus.is_empty()).then_some(768 * MIB),
            cpus_wanted: store.spec.cpus,
            cpus_withheld: self.cpus_in_doubt().into_iter().map(PhysicalCpu).collect(),
            moves_cpus: !cpus.is_empty(),
            devices: self.devices_of(InstanceId(store.cid.0)),
            moves_devices: store.taken_over.is_none(),
            ..bench.record(name, id, &cpus)
        };
        let taken = store.taken_over.clone();
        let taken = taken.map(|it| Record { origin: Origin::TakenOver(it), ..made.clone() });
        let is_there = match &taken {
            Some(taken) => Hold::on(&bench.model, taken).ours().ok()?.is_some(),
            None => false,
        };
        let loaded = match taken.filter(|_| is_there) {
            Some(mut taken) => {
                folder::load_taken_over(&bench.model, &folder, &mut taken, bench.image()).map(|()| taken)
            }
            None => {
                let mut made = made;
                folder::make(&bench.model, &folder, &mut made, bench.image()).map(|()| made)
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

    pub(super) fn end(&mut self, name: &str) -> Option<Input> {
        let folder = self.bench.folder(name);
        folder::end(&self.bench.model, &folder).ok()?;
        (!folder::may_run(&self.bench.model, &folder)).then_some(Input::Ended(End::Signaled(9)))
    }

    pub(super) fn kill(&mut self, name: &str) {
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
    pub(super) fn remove(&mut self, name: &str) {
        let Some(record) = self.records.get(name) else { return };
        let state = record.life.state();
        if state.may_have_kernel() || state == State::Reserved {
            return;
        }
        let known = self.known(name);
        if let Some(record) = known.record(&self.bench.settings()).unwrap() {
            if self
                .bench
                .hold(&record)
                .release(&self.bench.folder(record.name.as_str()), WAIT_MAX, || false)
                .is_err()
            {
                return;
            }
            Record::remove(&known.folder).unwrap();
        }
        self.journal.write(&Batch::new().delete_instance(&name.parse().unwrap()));
        let cid = self.records.remove(name).unwrap().cid;
        self.dismiss(InstanceId(cid.0));
    }

    pub(super) fn look(&mut self) {
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
    pub(super) fn settle(&mut self, name: &str) {
        let state = self.records[name].life.state();
        if !state.may_have_kernel() && state != State::Reserved {
            self.down(name);
            self.release(InstanceId(self.records[name].cid.0));
        }
    }

    /// What it held is free.
    fn release(&mut self, id: InstanceId) {
        let is_running = |row: &InstanceRow| self.coordinator.ledger().is_running(row.kernel());
        if self.coordinator.ledger().instance(id).is_none_or(is_running)
            || self.cpus_of(id).is_empty() && self.memory_of(id) == 0 && self.devices_of(id).is_empty()
        {
            return;
        }
        let step = self.coordinator.release(1, id).unwrap();
        let effects = store(&mut self.journal, step);
        self.carry_on(effects);
    }

    pub(super) fn down(&mut self, name: &str) {
        let id = InstanceId(self.records[name].cid.0);
        let Some(kernel) = self.coordinator.ledger().instance(id).map(InstanceRow::kernel) else { return };
        let step = self.coordinator.handle(1, LedgerInput::KernelDown(kernel));
        let effects = store(&mut self.journal, step);
        self.carry_on(effects);
    }

    pub(super) fn dismiss(&mut self, id: InstanceId) {
        if self.coordinator.ledger().instance(id).is_none() {
            return;
        }
        self.release(id);
        let step = self.coordinator.dismiss(1, id).unwrap();
        store(&mut self.journal, step);
    }

    pub(super) fn known(&self, name: &str) -> Known {
        let record = &self.records[name];
        Known {
            folder: self.bench.folder(name),
            name: name.into(),
            cid: record.cid.0,
            taken_over: record.taken_over.clone(),
        }
    }

    /// The next daemon, which has only what is on disk.
    pub(super) fn start_again(&mut self) {
        self.journal.open(self.state.path());
        let (coordinator, orphans) = self.journal.store().ledger().unwrap().unwrap().restore().unwrap();
        assert_eq!(orphans, 0);
        self.coordinator = coordinator;
        self.compare();
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
        let recovered = self.coordinator.recover(1);
        let effects = store(&mut self.journal, recovered);
        self.carry_on(effects);
        // An instance that was removed, and whose row was not yet.
        let rows: Vec<InstanceId> = self.coordinator.ledger().instances().map(|row| row.id).collect();
        for id in rows {
            if self.records.values().all(|record| record.cid.0 != id.0) {
                self.dismiss(id);
            }
        }
    }
}

pub(super) fn spec() -> InstanceSpec {
    let spawner = Some(SpawnerKind::Multikernel);
    InstanceSpec { spawner, restart: RestartPolicy::Never, ..InstanceSpec::default() }
}

pub(super) fn row(record: &InstanceRecord) -> Option<InstanceRow> {
    let name = record.name.as_str();
    Some(row_of(record.cid, name, record.incarnation?, &record.spec, movable(record)))
}

/// What of it can be moved.
pub(super) fn movable(record: &InstanceRecord) -> Movable {
    UnitsAre::OfKernels { and_devices: true }.movable(SpawnerKind::Multikernel, record.taken_over.is_some())
}

/// Stores a step; what is to be done then.
pub(super) fn store(journal: &mut Journal, step: Step<'_>) -> Vec<LedgerEffect> {
    let stored = step.persist(|commit| {
        journal.write(&Batch::new().ledger_step(commit.clone()).essential(true));
        Ok::<_, ()>(())
    });
    stored.unwrap()
}
