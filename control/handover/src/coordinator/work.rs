//! What one step changes and wants done, on a copy.

use super::commit::{Commit, Event, EventKind};
use crate::kernel::{InstanceId, Party};
use crate::ledger::{Entry, InstanceRow, Ledger, Limits, UnitChange};
use crate::observe::Command;
use crate::operation::{Act, Effect, Fate, Operation, Phase, Resting};
use crate::owner::{OpId, Owner};
use crate::plan::Traffic;
use crate::unit::{Kind, Unit, UnitId};

/// One step in the making: a copy of the ledger, what has been changed in it, what is to be done once that is stored.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    pub(crate) now_ns: u64,
    pub(crate) ledger: Ledger,
    pub(crate) traffic: Traffic,
    pub(crate) effects: Vec<Effect>,
    pub(super) operations: Vec<Operation>,
    host_changed: bool,
    units: Vec<UnitChange>,
    instances: Vec<InstanceRow>,
    forgotten_instances: Vec<InstanceId>,
    pub(super) forgotten_operations: Vec<OpId>,
    events: Vec<Event>,
}

impl Work {
    pub(super) fn new(now_ns: u64, ledger: Ledger, traffic: Traffic) -> Self {
        Self {
            now_ns,
            ledger,
            traffic,
            effects: Vec::new(),
            operations: Vec::new(),
            host_changed: false,
            units: Vec::new(),
            instances: Vec::new(),
            forgotten_instances: Vec::new(),
            forgotten_operations: Vec::new(),
            events: Vec::new(),
        }
    }

    /// What has to be stored, if anything.
    pub(super) fn commit(&mut self) -> Option<Commit> {
        let changed = self.changes_books() || !self.operations.is_empty();
        // An answer that was noted down changes nothing that anybody could have planned on.
        if changed && !self.only_notes_answers() {
            self.ledger.raise_version();
        }
        changed.then(|| Commit {
            meta: self.ledger.meta().clone(),
            units: std::mem::take(&mut self.units),
            instances: std::mem::take(&mut self.instances),
            forgotten_instances: std::mem::take(&mut self.forgotten_instances),
            operations: self.operations.clone(),
            forgotten_operations: self.forgotten_operations.clone(),
            events: std::mem::take(&mut self.events),
        })
    }

    /// Whether all that has changed is which answers operations under way still wait for.
    pub(super) fn only_notes_answers(&self) -> bool {
        self.effects.is_empty()
            && !self.changes_books()
            && self.events.is_empty()
            && self.operations.iter().all(|operation| !operation.phase.is_terminal())
    }

    /// Whether anything has changed but the records of operations.
    fn changes_books(&self) -> bool {
        self.host_changed
            || !(self.units.is_empty()
                && self.instances.is_empty()
                && self.forgotten_instances.is_empty()
                && self.forgotten_operations.is_empty())
    }

    /// Says what the host keeps for itself, and may have.
    pub(super) fn limit_host(&mut self, limits: Limits) {
        self.host_changed |= self.ledger.limit_host(limits);
    }

    /// Enters a unit that was not there before.
    pub(super) fn add(&mut self, entry: Entry) {
        self.units.push(self.ledger.add(entry));
    }

    /// Enters memory that was not there before, and is free.
    pub(super) fn add_lot(&mut self, granules: u64) {
        let lot = self.ledger.next_lot();
        self.add(Entry { unit: Unit::lot(lot, granules, None), owner: Owner::Pool, epoch: 1 });
        self.settle(UnitId::Lot(lot), Owner::Pool);
    }

    /// Gives a unit to an owner; returns its new epoch.
    pub(crate) fn assign(&mut self, unit: UnitId, owner: Owner) -> u64 {
        let change = self.ledger.assign(unit, owner);
        debug_assert!(change.is_some(), "{unit} is in an operation and not in the ledger");
        self.units.extend(change);
        self.ledger.entry(unit).map_or(0, |entry| entry.epoch)
    }

    /// Gives a unit to its last owner for now, and lets memory flow together with what that owner has.
    pub(crate) fn settle(&mut self, unit: UnitId, owner: Owner) {
        let resting = owner.party();
        self.assign(unit, owner);
        if unit.kind() == Kind::Memory
            && let Some(party) = resting
        {
            let joined = self.ledger.join(party);
            self.units.extend(joined);
        }
    }

    pub(crate) fn raise_epoch(&mut self, unit: UnitId) -> u64 {
        let raised = self.ledger.raise_epoch(unit);
        debug_assert!(raised.is_some(), "{unit} is in an operation and not in the ledger");
        raised.map_or(0, |(epoch, change)| {
            self.units.push(change);
            epoch
        })
    }

    /// Cuts memory; returns the new unit.
    pub(crate) fn split(&mut self, unit: UnitId, take: u64) -> Option<UnitId> {
        let (taken, changes) = self.ledger.split(unit, take)?;
        // A range that was cut is known by another name from here on.
        if self.ledger.entry(unit).is_none() {
            self.units.push(UnitChange::Delete(unit));
        }
        self.units.extend(changes);
        Some(taken)
    }

    pub(crate) fn put_instance(&mut self, row: InstanceRow) {
        self.ledger.put_instance(row.clone());
        self.instances.push(row);
    }

    pub(crate) fn remove_instance(&mut self, id: InstanceId) {
        self.ledger.remove_instance(id);
        self.forgotten_instances.push(id);
    }

    #[allow(clippy::too_many_arguments, reason = "an effect has this many independent parts")]
    pub(crate) fn act(
        &mut self,
        operation: OpId,
        unit: UnitId,
        command: Option<Command>,
        after_ms: u64,
        donor: Party,
        receiver: Party,
        lease_ms: u64,
    ) {
        let Some(entry) = self.ledger.entry(unit) else { return };
        let resting = matches!(unit, UnitId::Lot(_)).then(|| Resting {
            donor: self.ledger.held(donor, Kind::Memory),
            receiver: self.ledger.held(receiver, Kind::Memory),
        });
        let (unit, epoch) = (entry.unit.clone(), entry.epoch);
        let act = Act { operation, unit, epoch, command, after_ms, donor, receiver, resting, lease_ms };
        self.effects.push(Effect::Act(act));
    }

    pub(crate) fn arm(&mut self, operation: OpId, round: u32, after_ms: u64) {
        self.effects.push(Effect::Arm { operation, round, after_ms });
    }

    pub(crate) fn note_phase(&mut self, operation: OpId, from: Phase, to: Phase) {
        debug_assert!(from == to || from.may_become(to), "{operation} may not go from {from} to {to}");
        if from != to {
            self.note(operation, EventKind::Phase { from, to });
        }
    }

    pub(crate) fn note_settled(&mut self, operation: OpId, unit: UnitId, fate: &Fate) {
        self.note(operation, EventKind::Settled { unit, fate: fate.clone() });
    }

    pub(crate) fn note(&mut self, operation: OpId, kind: EventKind) {
        self.events.push(Event { operation: Some(operation), kind });
    }

    pub(crate) fn note_unit(&mut self, kind: EventKind) {
        self.events.push(Event { operation: None, kind });
    }
}
