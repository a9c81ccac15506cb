//! CPUs and devices on their way: what the daemon's desk and its witnesses do, on the model, with agents that say what their kernels have.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tombolo_agent::api::handover::Here;
use tombolo_handover::coordinator::{Coordinator, Seen, Submitted};
use tombolo_handover::observe::{Command, Inside, Sighting};
use tombolo_handover::operation::{Act, Ask, DrainRule, Question, Reply, Veto};
use tombolo_handover::{
    Effect, Input, InstanceId, InstanceRow, Kind, OpId, Owner, Party, PciAddress, Request, Rules, Side,
    UnitId, What,
};

use super::daemon::{Daemon, store};
use crate::api::beside::PoolDevice;
use crate::daemon::{
    Tie, Whereabouts, attached, cpu_of_kernels, device_of_kernels, find_unit, granules_of, held_memory,
};
use crate::spawner::multikernel::LiveChange;
use crate::spawner::multikernel::books::{devices_of_pool, memory_of_pool};
use crate::spawner::multikernel::ids::PhysicalCpu;
use crate::spawner::multikernel::interface;
use crate::spawner::multikernel::live::LiveError;
use crate::spawner::multikernel::model_tests::world::DEVICES;
use crate::spawner::multikernel::record::Record;

/// An operation ends within so many steps.
const STEPS_MAX: u32 = 5_000;

impl Daemon {
    /// The CPUs that the ledger gives to an instance.
    pub(super) fn cpus_of(&self, id: InstanceId) -> Vec<u32> {
        let ledger = self.coordinator.ledger();
        let held = ledger.instance(id).map(|row| ledger.held_by(Party::Instance(row.kernel())));
        held.into_iter().flatten().filter_map(|entry| number(entry.unit.id)).collect()
    }

    /// The devices that it gives to one.
    pub(super) fn devices_of(&self, id: InstanceId) -> Vec<PciAddress> {
        let ledger = self.coordinator.ledger();
        let held = ledger.instance(id).map(|row| ledger.held_by(Party::Instance(row.kernel())));
        held.into_iter().flatten().filter_map(|entry| function(entry.unit.id)).collect()
    }

    /// Those of which nobody knows who has them.
    pub(super) fn cpus_in_doubt(&self) -> Vec<u32> {
        let entries = self.coordinator.ledger().entries().filter(|entry| entry.owner.party().is_none());
        entries.filter_map(|entry| number(entry.unit.id)).collect()
    }

    /// As `Desk::compare`.
    pub(super) fn compare(&mut self) {
        let Ok(pool) = interface::pool_or_none(&self.bench.model) else { return };
        let seen = pool
            .cpus
            .iter()
            .map(|cpu| Seen { unit: cpu_of_kernels(cpu.0), is_free: pool.cpus_available.contains(cpu) });
        let seen: Vec<Seen> = seen.collect();
        let step = self.coordinator.compare(1, Kind::Cpu, &seen);
        store(&mut self.journal, step);
        if let Ok(devices) = devices_of_pool(&self.bench.model, &self.bench.settings()) {
            let seen = |device: &PoolDevice| Seen {
                unit: device_of_kernels(device),
                is_free: device.held_by.is_none(),
            };
            let seen: Vec<Seen> = devices.iter().map(seen).collect();
            let step = self.coordinator.compare(1, Kind::Device, &seen);
            store(&mut self.journal, step);
        }
        let held = held_memory(&self.coordinator);
        let Ok(memory) = memory_of_pool(&self.bench.model, &held) else { return };
        let (total, taken) = granules_of(memory);
        let step = self.coordinator.compare_memory(1, total, taken);
        store(&mut self.journal, step);
    }

    pub(super) fn move_cpus(&mut self, from: usize, to: usize, count: u32) {
        let names: Vec<String> = self.records.keys().cloned().collect();
        let side = |at: usize| names.get(at % (names.len() + 1)).map_or(Side::Pool, |name| Side::named(name));
        let request = Request::new(format!("k{}", self.draw()), side(from), side(to), What::CpuCount(count));
        self.compare();
        let is_of_a_kernel = matches!(request.from, Side::Instance(_));
        let drain = if is_of_a_kernel { DrainRule::LeaveOnline } else { DrainRule::Offline };
        let submitted = self.coordinator.submit(1, request, Rules { drain, ..Rules::default() });
        if let Ok(Submitted::New(_, step)) = submitted {
            let effects = store(&mut self.journal, step);
            self.carry_on(effects);
        }
    }

    pub(super) fn move_device(&mut self, from: usize, to: usize, device: usize) {
        let names: Vec<String> = self.records.keys().cloned().collect();
        let side = |at: usize| names.get(at % (names.len() + 1)).map_or(Side::Pool, |name| Side::named(name));
        let what = What::Device(DEVICES[device % DEVICES.len()].parse().unwrap());
        let request = Request::new(format!("k{}", self.draw()), side(from), side(to), what);
        self.compare();
        if let Ok(Submitted::New(_, step)) = self.coordinator.submit(1, request, Rules::default()) {
            let effects = store(&mut self.journal, step);
            self.carry_on(effects);
        }
    }

    /// Sees to effects until nothing is left to be done or waited for.
    pub(super) fn carry_on(&mut self, effects: Vec<Effect>) {
        let mut waiting = VecDeque::from(effects);
        let mut timers: BTreeMap<OpId, (u32, u64)> = BTreeMap::new();
        for _ in 0..STEPS_MAX {
            let input = match waiting.pop_front() {
                Some(Effect::Ask(ask)) => self.ask(&ask),
                Some(Effect::Act(act)) => self.act(&act),
                Some(Effect::Arm { operation, round, after_ms }) => {
                    timers.insert(operation, (round, after_ms));
                    None
                }
                None => {
                    let is_open = |coordinator: &Coordinator, id: &OpId| {
                        coordinator.operation(*id).is_some_and(|operation| !operation.phase.is_terminal())
                    };
                    timers.retain(|id, _| is_open(&self.coordinator, id));
                    let Some((operation, (round, after_ms))) = timers.pop_first() else { return };
                    self.bench.model.world().pass(Duration::from_millis(after_ms));
                    Some(Input::Expired { operation, round })
                }
            };
            if let Some(input) = input {
                let step = self.coordinator.handle(1, input);
                waiting.extend(store(&mut self.journal, step));
            }
        }
        panic!("an operation does not end");
    }

    /// An agent answers as long as its kernel does not hang.
    fn ask(&self, ask: &Ask) -> Option<Input> {
        let reply = match (ask.to.instance(), ask.question) {
            (Some(id), _) if self.guest_has(id).is_none() => return None,
            (_, Question::Vote) => Reply::YesWithoutHooks,
            _ => Reply::Yes,
        };
        let Ask { operation, round, question, end, .. } = *ask;
        Some(Input::Answered { operation, round, question, end, reply })
    }

    /// As `Witnesses::act_on_unit`.
    fn act(&mut self, act: &Act) -> Option<Input> {
        self.bench.model.world().pass(Duration::from_millis(act.after_ms));
        let (operation, unit) = (act.operation, act.unit.id);
        match act.command {
            Some(Command::Drain) => {
                self.drained.insert((operation, unit));
            }
            Some(Command::Undrain) => {
                self.drained.remove(&(operation, unit));
            }
            _ => {}
        }
        if unit.kind() == Kind::Memory {
            return self.act_on_lot(act);
        }
        let refused = match act.command {
            Some(Command::Grant(party)) => self.change_unit(party, unit, LiveChange::Give),
            Some(Command::Revoke(party)) => self.change_unit(party, unit, LiveChange::Take),
            Some(Command::Drain | Command::Undrain | Command::Online) | None => None,
        };
        let (donor, receiver) = (self.tie(act.donor, unit), self.tie(act.receiver, unit));
        let inside = |party: Party, tie: Tie| match (tie, party.instance().map(|id| self.uses(id, unit))) {
            (Tie::Unknown | Tie::Coming, _) | (_, Some(None)) => Inside::Unknown,
            (_, Some(Some(true))) if self.drained.contains(&(operation, unit)) => match unit {
                UnitId::Device(_) => Inside::Offline,
                _ => Inside::Emptied,
            },
            (_, Some(Some(true))) => Inside::Online,
            _ => Inside::Absent,
        };
        let sighting = Sighting {
            attached: attached((act.donor, donor), (act.receiver, receiver)),
            donor: inside(act.donor, donor),
            receiver: inside(act.receiver, receiver),
            pending: donor.is_changing() || receiver.is_changing(),
        };
        Some(Input::Acted { operation, unit, epoch: act.epoch, refused, sighting })
    }

    /// Has the spawner do something about a CPU or a device.
    fn change_unit(&self, party: Party, unit: UnitId, change: LiveChange) -> Option<Veto> {
        let record = self.in_kernel(party)?;
        let changed = match unit {
            UnitId::Cpu(number) => self.bench.live(&record, |live| match change {
                LiveChange::Give => live.give(PhysicalCpu(number)),
                LiveChange::Take => live.take(PhysicalCpu(number)),
                LiveChange::Settle => live.settle(PhysicalCpu(number)),
            }),
            UnitId::Device(function) => self.bench.devices(&record, |devices| match change {
                LiveChange::Give => devices.give(function),
                LiveChange::Take => devices.take(function),
                LiveChange::Settle => devices.settle(function),
            }),
            _ => Ok(()),
        };
        match changed {
            Err(LiveError::Refused(reason)) => Some(Veto { reason, retry_after_ms: Some(500) }),
            _ => None,
        }
    }

    /// As `Witnesses::tie`.
    fn tie(&self, party: Party, unit: UnitId) -> Tie {
        let ledger = self.coordinator.ledger();
        let Some(kernel) = ledger.present(party).kernel() else { return Tie::None };
        if !ledger.is_running(kernel) {
            return Tie::None;
        }
        let Some(record) = self.in_kernel(party) else { return Tie::Unknown };
        match unit {
            UnitId::Cpu(id) if record.moves_cpus => {
                let Ok(cpus) = self.bench.live(&record, |live| live.cpus()) else { return Tie::Unknown };
                let here = Here::PhysicalCpu { id };
                let seen = cpus.iter().find(|seen| seen.cpu == PhysicalCpu(id));
                seen.map_or(Tie::None, |seen| Tie::of_cpu(here, seen.is_there, seen.may_change))
            }
            UnitId::Device(address) if record.moves_devices => {
                let devices = self.bench.devices(&record, |devices| devices.all());
                let Ok(devices) = devices else { return Tie::Unknown };
                let here = Here::Device { address };
                let seen = devices.iter().find(|seen| seen.function == address);
                seen.map_or(Tie::None, |seen| Tie::of_device(here, seen.is_there, seen.may_change))
            }
            _ => Tie::None,
        }
    }

    /// What was made for the instance of a party, if anything was.
    pub(super) fn in_kernel(&self, party: Party) -> Option<Record> {
        let id = party.instance()?;
        let name = self.records.iter().find(|(_, record)| record.cid.0 == id.0)?.0;
        Record::read(&self.bench.folder(name)).unwrap()
    }

    /// The CPUs that a kernel has online, if it answers.
    pub(super) fn guest_has(&self, id: InstanceId) -> Option<Vec<u32>> {
        let world = self.bench.model.world();
        let guest = world.machine.instance_by_id(id.0)?.guest.as_ref().filter(|guest| !guest.is_frozen)?;
        Some(narrow(&guest.cpus))
    }

    /// Whether a kernel uses a unit, if it answers.
    fn uses(&self, id: InstanceId, unit: UnitId) -> Option<bool> {
        let has = self.guest_has(id)?;
        match unit {
            UnitId::Cpu(number) => Some(has.contains(&number)),
            UnitId::Device(address) => {
                let world = self.bench.model.world();
                let guest = world.machine.instance_by_id(id.0)?.guest.as_ref()?;
                Some(guest.devices.contains(&address.to_string()))
            }
            _ => Some(false),
        }
    }

    /// As `heal` and `Witnesses::repair`: looks at every kernel for what may be found by looking again.
    pub(super) fn heal(&mut self) {
        let is_curable =
            |owner: &Owner| matches!(owner, Owner::Quarantined(reason) if !reason.needs_operator());
        let entries = self.coordinator.ledger().entries().filter(|entry| is_curable(&entry.owner));
        let units: Vec<UnitId> = entries.map(|entry| entry.unit.id).collect();
        for unit in units {
            if unit.kind() == Kind::Memory {
                self.heal_lot(unit);
                continue;
            }
            let rows: Vec<InstanceRow> =
                self.coordinator.ledger().instances().filter(|row| row.running).cloned().collect();
            let mut seen = Vec::new();
            for row in rows {
                let party = Party::Instance(row.kernel());
                if self.tie(party, unit).is_changing() && self.guest_has(row.id).is_some() {
                    self.change_unit(party, unit, LiveChange::Settle);
                }
                seen.push(Whereabouts { party, name: row.name, has: self.tie(party, unit) });
            }
            if let Ok(owner) = find_unit(&seen) {
                let step = self.coordinator.repair(1, unit, owner).unwrap();
                store(&mut self.journal, step);
            }
        }
    }
}

fn number(unit: UnitId) -> Option<u32> {
    match unit {
        UnitId::Cpu(number) => Some(number),
        _ => None,
    }
}

fn function(unit: UnitId) -> Option<PciAddress> {
    match unit {
        UnitId::Device(address) => Some(address),
        _ => None,
    }
}

/// Numbers of CPUs, as the ledger has them.
pub(super) fn narrow(cpus: &[u64]) -> Vec<u32> {
    cpus.iter().map(|cpu| u32::try_from(*cpu).unwrap()).collect()
}
