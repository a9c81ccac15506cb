//! The ledger: for every unit of the machine, its one owner.
//!
//! ```text
//! unit ── owner ∈ { host, pool, instance@incarnation, in transit(operation), quarantined(reason) } ── epoch
//! ```
//!
//! The epoch of a unit rises with every change of owner and with everything that is asked of a witness about it. It is the
//! fencing token: whoever has seen epoch *e* for a unit refuses anything older, and an answer to anything but the newest question
//! is dropped.
//!
//! Each mutation returns the rows it changed, and the rows alone rebuild the ledger ([`Ledger::restore`]). Nothing here decides
//! *whether* a change is right; [`Ledger::check`] says whether the books add up.

mod check;
mod limits;
mod row;

pub use check::Violation;
pub use limits::{Bounds, Limits};
pub use row::{Entry, InstanceRow, Meta, UnitChange};

use std::collections::BTreeMap;

use crate::kernel::{InstanceId, Kernel, Party};
use crate::owner::{OpId, Owner};
use crate::unit::{Kind, Traits, Unit, UnitId};

/// Who owns what.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ledger {
    meta: Meta,
    units: BTreeMap<UnitId, Entry>,
    instances: BTreeMap<InstanceId, InstanceRow>,
}

impl Ledger {
    /// A ledger of what was discovered on a host: units with their first owners, the size of a granule, what the host keeps.
    ///
    /// # Errors
    /// A [`Violation`] if a unit is listed twice, ranges overlap, or a size is 0.
    pub fn discover(
        granule_bytes: u64,
        host: Limits,
        units: impl IntoIterator<Item = (Unit, Party)>,
    ) -> Result<Self, Violation> {
        let mut ledger = Self {
            meta: Meta { version: 1, next_op: 1, next_lot: 0, granule_bytes, host, totals: Vec::new() },
            units: BTreeMap::new(),
            instances: BTreeMap::new(),
        };
        for (unit, owner) in units {
            let id = unit.id;
            if let UnitId::Lot(number) = id {
                ledger.meta.next_lot = ledger.meta.next_lot.max(number.saturating_add(1));
            }
            if ledger.units.insert(id, Entry { unit, owner: owner.into(), epoch: 1 }).is_some() {
                return Err(Violation::Twice { unit: id });
            }
        }
        ledger.meta.totals = ledger.totals();
        ledger.check()?;
        Ok(ledger)
    }

    /// The ledger that these rows describe.
    ///
    /// # Errors
    /// A [`Violation`] if they do not add up.
    pub fn restore(
        meta: Meta,
        entries: impl IntoIterator<Item = Entry>,
        instances: impl IntoIterator<Item = InstanceRow>,
    ) -> Result<Self, Violation> {
        let mut ledger = Self { meta, units: BTreeMap::new(), instances: BTreeMap::new() };
        for entry in entries {
            let id = entry.unit.id;
            if ledger.units.insert(id, entry).is_some() {
                return Err(Violation::Twice { unit: id });
            }
        }
        ledger.instances.extend(instances.into_iter().map(|row| (row.id, row)));
        ledger.check()?;
        Ok(ledger)
    }

    /// Counters, totals and limits of the host.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Rises with every commit; a client that planned on an older one is told so.
    pub fn version(&self) -> u64 {
        self.meta.version
    }

    /// Every unit, in order of name.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.units.values()
    }

    /// One unit.
    pub fn entry(&self, unit: UnitId) -> Option<&Entry> {
        self.units.get(&unit)
    }

    /// Every instance.
    pub fn instances(&self) -> impl Iterator<Item = &InstanceRow> {
        self.instances.values()
    }

    /// One instance.
    pub fn instance(&self, id: InstanceId) -> Option<&InstanceRow> {
        self.instances.get(&id)
    }

    /// An instance by its name.
    pub fn instance_named(&self, name: &str) -> Option<&InstanceRow> {
        self.instances.values().find(|row| row.name == name)
    }

    /// Whether this boot of this instance runs, so far as is known.
    pub fn is_running(&self, kernel: Kernel) -> bool {
        self.instance(kernel.instance).is_some_and(|row| row.running && row.incarnation == kernel.incarnation)
    }

    /// The same holder in its present boot.
    pub fn present(&self, party: Party) -> Party {
        match party {
            Party::Instance(kernel) => {
                Party::Instance(self.instance(kernel.instance).map_or(kernel, InstanceRow::kernel))
            }
            Party::Host | Party::Pool => party,
        }
    }

    /// The name people know a party by.
    pub fn name(&self, party: Party) -> String {
        match party {
            Party::Host => "host".to_owned(),
            Party::Pool => "pool".to_owned(),
            Party::Instance(kernel) => {
                self.instance(kernel.instance).map_or_else(|| kernel.to_string(), |row| row.name.clone())
            }
        }
    }

    /// The units at rest with this holder, whichever boot of it.
    pub fn held_by(&self, party: Party) -> impl Iterator<Item = &Entry> {
        self.units
            .values()
            .filter(move |entry| entry.owner.party().is_some_and(|owner| owner.is_same_holder(party)))
    }

    /// How much of a kind rests with this holder.
    pub fn held(&self, party: Party, kind: Kind) -> u64 {
        self.held_by(party).filter(|entry| entry.unit.id.kind() == kind).map(|entry| entry.unit.size()).sum()
    }

    fn totals(&self) -> Vec<(Kind, u64)> {
        Kind::ALL.into_iter().map(|kind| (kind, self.total(kind))).collect()
    }

    /// How much of a kind there is.
    pub(crate) fn total(&self, kind: Kind) -> u64 {
        self.units.values().filter(|entry| entry.unit.id.kind() == kind).map(|entry| entry.unit.size()).sum()
    }
}

/// Changes. Each raises the epoch of what it touches and returns the rows to be stored.
impl Ledger {
    pub(crate) fn next_op(&mut self) -> OpId {
        let id = OpId(self.meta.next_op);
        self.meta.next_op += 1;
        id
    }

    pub(crate) fn next_lot(&mut self) -> u64 {
        let lot = self.meta.next_lot;
        self.meta.next_lot += 1;
        lot
    }

    pub(crate) fn raise_version(&mut self) {
        self.meta.version += 1;
    }

    /// Says what the host keeps and may have; whether that is news.
    pub(crate) fn limit_host(&mut self, limits: Limits) -> bool {
        std::mem::replace(&mut self.meta.host, limits) != limits
    }

    /// Enters a unit that was discovered after the ledger was made.
    pub(crate) fn add(&mut self, entry: Entry) -> UnitChange {
        self.units.insert(entry.unit.id, entry.clone());
        self.meta.totals = self.totals();
        UnitChange::Put(entry)
    }

    /// Gives a unit to an owner.
    pub(crate) fn assign(&mut self, unit: UnitId, owner: Owner) -> Option<UnitChange> {
        let entry = self.units.get_mut(&unit)?;
        entry.owner = owner;
        entry.epoch += 1;
        Some(UnitChange::Put(entry.clone()))
    }

    /// Raises a unit's epoch, and with it outdates whatever was asked of anybody before.
    pub(crate) fn raise_epoch(&mut self, unit: UnitId) -> Option<(u64, UnitChange)> {
        let entry = self.units.get_mut(&unit)?;
        entry.epoch += 1;
        Some((entry.epoch, UnitChange::Put(entry.clone())))
    }

    /// Cuts memory in two: `take` granules leave `unit` for a new unit of the same owner, which is returned.
    /// `None` if the unit is not memory or is not larger than that.
    pub(crate) fn split(&mut self, unit: UnitId, take: u64) -> Option<(UnitId, [UnitChange; 2])> {
        let entry = self.units.get_mut(&unit)?;
        let Traits::Memory { granules } = entry.unit.traits else { return None };
        if take == 0 || take >= granules {
            return None;
        }
        // A range gives up its low end: first fit leaves the high end of a free range whole.
        let (left, taken) = match unit {
            UnitId::Range(first) => (UnitId::Range(first + take), UnitId::Range(first)),
            UnitId::Lot(_) => (unit, UnitId::Lot(self.meta.next_lot)),
            UnitId::Cpu(_) | UnitId::Device(_) | UnitId::LlcWay { .. } => return None,
        };
        let epoch = entry.epoch + 1;
        let with = |id, granules| Entry {
            unit: Unit { id, node: entry.unit.node, traits: Traits::Memory { granules } },
            owner: entry.owner.clone(),
            epoch,
        };
        let rows = [with(left, granules - take), with(taken, take)];
        self.units.remove(&unit);
        for row in &rows {
            self.units.insert(row.unit.id, row.clone());
        }
        if matches!(taken, UnitId::Lot(_)) {
            self.meta.next_lot += 1;
        }
        Some((taken, rows.map(UnitChange::Put)))
    }

    /// Joins memory that rests with one owner: all lots of one node, and free ranges that touch. Returns the rows changed.
    pub(crate) fn join(&mut self, owner: Party) -> Vec<UnitChange> {
        let mut changes = Vec::new();
        let resting: Vec<(UnitId, Option<u32>, u64)> = self
            .held_by(owner)
            .filter(|entry| entry.unit.id.kind() == Kind::Memory)
            .map(|entry| (entry.unit.id, entry.unit.node, entry.unit.size()))
            .collect();
        let mut kept: Vec<(UnitId, Option<u32>, u64)> = Vec::new();
        for (id, node, size) in resting {
            let joins = |&(into, into_node, into_size): &(UnitId, Option<u32>, u64)| match (into, id) {
                (UnitId::Lot(_), UnitId::Lot(_)) => into_node == node,
                // A kernel gives back the regions it was given; only free ranges may be merged.
                (UnitId::Range(first), UnitId::Range(next)) => {
                    owner == Party::Pool && into_node == node && first + into_size == next
                }
                _ => false,
            };
            match kept.iter_mut().find(|into| joins(into)) {
                Some(into) => {
                    into.2 += size;
                    self.absorb(into.0, id, &mut changes);
                }
                None => kept.push((id, node, size)),
            }
        }
        changes
    }

    fn absorb(&mut self, into: UnitId, gone: UnitId, changes: &mut Vec<UnitChange>) {
        let Some(absorbed) = self.units.remove(&gone) else { return };
        if let Some(entry) = self.units.get_mut(&into) {
            entry.unit.traits = Traits::Memory { granules: entry.unit.size() + absorbed.unit.size() };
            // Above both, so that nothing said to either is believed of the whole.
            entry.epoch = entry.epoch.max(absorbed.epoch) + 1;
            changes.push(UnitChange::Delete(gone));
            changes.push(UnitChange::Put(entry.clone()));
        }
    }

    pub(crate) fn put_instance(&mut self, row: InstanceRow) {
        self.instances.insert(row.id, row);
    }

    pub(crate) fn remove_instance(&mut self, id: InstanceId) {
        self.instances.remove(&id);
    }
}

#[cfg(test)]
mod tests;
