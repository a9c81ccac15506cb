//! A host that has more CPUs or devices to hand over than when its ledger was made.

use super::{Coordinator, Step};
use crate::ledger::{Entry, Ledger};
use crate::unit::{Kind, UnitId};

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
