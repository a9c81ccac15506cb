//! A host that has more CPUs or devices to hand over than when its ledger was made.

use super::{Coordinator, EventKind, Step, Work};
use crate::ledger::{Entry, Ledger};
use crate::owner::{Owner, Quarantine};
use crate::unit::{Kind, Unit, UnitId};

/// A unit that others than the ledger dispose of as well, as they say it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Which.
    pub unit: Unit,
    /// Whether they have it free.
    pub is_free: bool,
}

impl Coordinator {
    /// Takes up the CPUs, devices and cache ways of a ledger that was just discovered which are not in this one, as they are there.
    /// What the host keeps for itself becomes what it is there. What is no longer there stays: somebody may have it, and whoever is
    /// asked for it will say so. Memory is left as it is: an amount that is in use cannot be counted anew.
    pub fn restock(&mut self, now_ns: u64, found: &Ledger) -> Step<'_> {
        let mut work = self.work(now_ns, None);
        work.limit_host(found.meta().host);
        let is_new = |entry: &&Entry| {
            entry.unit.id.kind() != Kind::Memory && self.ledger.entry(entry.unit.id).is_none()
        };
        for entry in found.entries().filter(is_new) {
            work.add(entry.clone());
        }
        Step::new(self, work)
    }

    /// Takes up the units of a kind that others dispose of as well: `seen` are all that there are. What is free by the ledger and not to be had is in
    /// quarantine until it is. What an instance or an operation has, or was put into quarantine for another reason, is left as it is: of that
    /// the ledger knows more.
    pub fn compare(&mut self, now_ns: u64, kind: Kind, seen: &[Seen]) -> Step<'_> {
        let mut work = self.work(now_ns, None);
        let resting = |is_free| match is_free {
            true => Owner::Pool,
            false => Owner::Quarantined(Quarantine::TakenByOthers),
        };
        for Seen { unit, is_free } in seen.iter().filter(|seen| self.ledger.entry(seen.unit.id).is_none()) {
            work.add(Entry { unit: unit.clone(), owner: resting(*is_free), epoch: 1 });
        }
        for entry in self.ledger.entries().filter(|entry| entry.unit.id.kind() == kind) {
            let unit = entry.unit.id;
            let owner = resting(seen.iter().any(|seen| seen.unit.id == unit && seen.is_free));
            let rests = [resting(true), resting(false)].contains(&entry.owner);
            if rests && entry.owner != owner {
                work.note_unit(EventKind::Reassigned { unit, owner: owner.clone() });
                work.settle(unit, owner);
            }
        }
        Step::new(self, work)
    }

    /// The same for memory, of which nobody says which it is: there are `total` granules now, of which others than the ledger have `taken`. What came is
    /// free. What others have taken, or taken out, is in quarantine as far as it was free by the ledger.
    pub fn compare_memory(&mut self, now_ns: u64, total: u64, taken: u64) -> Step<'_> {
        let mut work = self.work(now_ns, None);
        let known = work.ledger.total(Kind::Memory);
        if let Some(more) = total.checked_sub(known).filter(|more| *more > 0) {
            work.add_lot(more);
        }
        let taken = taken.saturating_add(known.saturating_sub(total));
        let others = Owner::Quarantined(Quarantine::TakenByOthers);
        let lots_of = |work: &Work, owner: &Owner| -> Vec<(UnitId, u64)> {
            let is_it = |entry: &&Entry| entry.unit.id.kind() == Kind::Memory && entry.owner == *owner;
            work.ledger.entries().filter(is_it).map(|entry| (entry.unit.id, entry.unit.size())).collect()
        };
        let has: u64 = lots_of(&work, &others).iter().map(|(_, size)| size).sum();
        let (from, to, mut missing) = match taken.checked_sub(has) {
            Some(missing) => (Owner::Pool, others, missing),
            None => (others, Owner::Pool, has - taken),
        };
        for (unit, size) in lots_of(&work, &from) {
            let take = missing.min(size);
            let taken = match take {
                0 => break,
                take if take == size => Some(unit),
                take => work.split(unit, take),
            };
            if let Some(unit) = taken {
                work.note_unit(EventKind::Reassigned { unit, owner: to.clone() });
                work.settle(unit, to.clone());
                missing -= take;
            }
        }
        Step::new(self, work)
    }

    /// Which units, memory left out, are in this ledger and in one that was just discovered, and not the same in both.
    pub fn changed_stock(&self, found: &Ledger) -> Vec<UnitId> {
        let others = found.entries().filter(|entry| entry.unit.id.kind() != Kind::Memory);
        let differs =
            |entry: &&Entry| self.ledger.entry(entry.unit.id).is_some_and(|known| known.unit != entry.unit);
        others.filter(differs).map(|entry| entry.unit.id).collect()
    }

    /// Which units of this ledger, memory left out, are not in one that was just discovered.
    pub fn out_of_stock(&self, found: &Ledger) -> Vec<UnitId> {
        let units = self.ledger.entries().map(|entry| entry.unit.id);
        units.filter(|unit| unit.kind() != Kind::Memory && found.entry(*unit).is_none()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{Coordinator, Entry, Quarantine, Seen};
    use crate::bench::{DB, coordinator, party, persist};
    use crate::kernel::Party;
    use crate::ledger::{Bounds, Ledger, Limits};
    use crate::owner::Owner;
    use crate::unit::{Kind, Unit, UnitId};

    fn found(host: Limits, units: Vec<Unit>) -> Ledger {
        let units = units.into_iter().map(|unit| (unit, Party::Pool));
        Ledger::discover(64 << 20, host, units).unwrap()
    }

    #[test]
    fn what_others_have_taken_is_in_quarantine_until_they_give_it_back() {
        let taken = || Owner::Quarantined(Quarantine::TakenByOthers);
        let units = vec![
            (Unit::cpu(0, 0, None), Party::Pool),
            (Unit::cpu(1, 1, None), party(DB)),
            (Unit::cpu(2, 2, None), Party::Pool),
            (Unit::lot(0, 4, None), Party::Pool),
        ];
        let mut coordinator = coordinator(units);
        let see = |coordinator: &mut Coordinator, cpus: &[(u32, bool)]| {
            let seen = |&(id, is_free): &(u32, bool)| Seen { unit: Unit::cpu(id, id, None), is_free };
            let seen: Vec<Seen> = cpus.iter().map(seen).collect();
            drop(persist(coordinator.compare(0, Kind::Cpu, &seen)));
            coordinator.check().unwrap();
            let owners = coordinator.ledger().entries().filter(|entry| entry.unit.id.kind() == Kind::Cpu);
            owners.map(|entry| entry.owner.clone()).collect::<Vec<_>>()
        };
        let db: Owner = party(DB).into();
        let mut owners = see(&mut coordinator, &[(0, false), (1, false), (3, true), (4, false)]);
        assert_eq!(owners, [taken(), db.clone(), taken(), Owner::Pool, taken()], "2 is in the pool no more");
        owners = see(&mut coordinator, &[(0, true), (1, true), (2, true), (3, true), (4, true)]);
        assert_eq!(owners, [Owner::Pool, db, Owner::Pool, Owner::Pool, Owner::Pool]);
        assert_eq!(coordinator.ledger().held(Party::Pool, Kind::Memory), 4, "nobody spoke of memory");
    }

    #[test]
    fn memory_that_others_have_is_in_quarantine_as_far_as_it_was_free() {
        let units = vec![(Unit::lot(0, 10, None), Party::Pool), (Unit::lot(1, 4, None), party(DB))];
        let mut coordinator = coordinator(units);
        let mut see = |total, taken| {
            drop(persist(coordinator.compare_memory(0, total, taken)));
            coordinator.check().unwrap();
            let ledger = coordinator.ledger();
            let others = ledger.entries().filter(|entry| matches!(entry.owner, Owner::Quarantined(_)));
            let taken: u64 = others.map(|entry| entry.unit.size()).sum();
            assert_eq!(ledger.held(party(DB), Kind::Memory), 4, "that the ledger knows better");
            (ledger.held(Party::Pool, Kind::Memory), taken)
        };
        assert_eq!(see(14, 0), (10, 0));
        assert_eq!(see(14, 3), (7, 3));
        assert_eq!(see(14, 8), (2, 8));
        assert_eq!(see(14, 12), (0, 10), "no more than there was to take");
        assert_eq!(see(14, 1), (9, 1));
        assert_eq!(see(20, 1), (15, 1), "the pool has grown");
        assert_eq!(see(16, 1), (11, 5), "and was made smaller");
        assert_eq!(see(20, 0), (16, 0));
    }

    #[test]
    fn what_may_yet_happen_to_a_unit_is_not_forgotten_because_others_have_it_free() {
        let mut coordinator = coordinator(vec![(Unit::cpu(0, 0, None), party(DB))]);
        let mut entries: Vec<Entry> = coordinator.ledger().entries().cloned().collect();
        let doubtful = Owner::Quarantined(Quarantine::MayChangeYet { after: None });
        entries[0].owner = doubtful.clone();
        let ledger = coordinator.ledger();
        let ledger = Ledger::restore(ledger.meta().clone(), entries, ledger.instances().cloned()).unwrap();
        coordinator = Coordinator::new(ledger);
        let seen = Seen { unit: Unit::cpu(0, 0, None), is_free: true };
        assert!(coordinator.compare(0, Kind::Cpu, &[seen]).commit().is_none());
        assert_eq!(coordinator.ledger().entry(UnitId::Cpu(0)).unwrap().owner, doubtful);
    }

    #[test]
    fn what_is_new_is_free_and_what_is_gone_stays_with_whoever_has_it() {
        let units = vec![(Unit::cpu(0, 0, None), party(DB)), (Unit::lot(0, 4, None), party(DB))];
        let mut coordinator = coordinator(units);
        let version = coordinator.ledger().version();
        let host = Limits { memory: Bounds::new(2, 9), ..Limits::default() };
        let found = found(host, vec![Unit::cpu(1, 1, None), Unit::lot(0, 9, None)]);
        assert_eq!(coordinator.out_of_stock(&found), [UnitId::Cpu(0)]);
        assert!(coordinator.changed_stock(&found).is_empty());
        drop(persist(coordinator.restock(0, &found)));
        let ledger = coordinator.ledger();
        assert_eq!(ledger.entry(UnitId::Cpu(1)).unwrap().owner, Owner::Pool);
        assert_eq!(ledger.held(party(DB), Kind::Cpu), 1);
        assert_eq!(ledger.held(party(DB), Kind::Memory), 4, "memory is left as it is");
        assert_eq!(ledger.floor(Party::Host, Kind::Memory), 2);
        assert!(ledger.version() > version, "whoever planned before is told so");
        coordinator.check().unwrap();
        assert!(coordinator.restock(0, &found).commit().is_none(), "nothing is new any more");
        let moved = super::tests::found(host, vec![Unit::cpu(1, 1, Some(1)), Unit::lot(0, 9, None)]);
        assert_eq!(coordinator.changed_stock(&moved), [UnitId::Cpu(1)]);
    }
}
