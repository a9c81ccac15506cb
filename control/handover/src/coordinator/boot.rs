//! The boot of an instance: one step that ends its former boot, enters the new one and gives it what it needs to start.

use super::{AdminError, Coordinator, EventKind, Step, Work};
use crate::kernel::{Kernel, Party};
use crate::ledger::InstanceRow;
use crate::owner::Owner;
use crate::unit::{Kind, PciAddress, Traits, UnitId};

/// The least a kernel starts with. What it holds beyond that from its former boot, it keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// In granules.
    pub memory: u64,
    /// In CPUs.
    pub cpus: u64,
    /// Devices that it boots with if they are free.
    pub devices: Vec<PciAddress>,
}

impl Coordinator {
    /// Enters a boot of an instance, in place of its former one, with the name and limits of `row`. It is given what it lacks out
    /// of what is free, then out of what the host can spare. Its boot CPU is the lowest it has.
    ///
    /// A boot that the ledger has as running already changes nothing.
    ///
    /// # Errors
    /// [`AdminError::NameTaken`] or [`AdminError::NotEnough`].
    pub fn boot(&mut self, now_ns: u64, row: InstanceRow, needs: Needs) -> Result<Step<'_>, AdminError> {
        if self.ledger.instances().any(|other| other.name == row.name && other.id != row.id) {
            return Err(AdminError::NameTaken { name: row.name });
        }
        let mut work = self.work(now_ns, None);
        let kernel = row.kernel();
        if self.ledger.is_running(kernel) {
            return Ok(Step::new(self, work));
        }
        if let Some(former) = self.ledger.instance(row.id).map(InstanceRow::kernel) {
            // Only one boot of an instance exists at a time, and this one is about to.
            self.mark_down(former, &mut work);
        }
        work.put_instance(InstanceRow { running: false, ..row.clone() });
        take_over(&mut work, kernel);
        for (kind, wanted) in [(Kind::Memory, needs.memory), (Kind::Cpu, needs.cpus)] {
            let missing = provide(&mut work, kernel, kind, wanted);
            if missing > 0 {
                return Err(AdminError::NotEnough { instance: row.id, kind, wanted, missing });
            }
        }
        for device in needs.devices {
            let device = UnitId::Device(device);
            if work.ledger.entry(device).is_some_and(|entry| entry.owner == Owner::Pool) {
                work.note_unit(EventKind::Reassigned { unit: device, owner: Owner::Instance(kernel) });
                work.settle(device, Owner::Instance(kernel));
            }
        }
        self.start(InstanceRow { running: true, ..row }, &mut work);
        Ok(Step::new(self, work))
    }

    pub(super) fn kernel_up(&mut self, now_ns: u64, kernel: Kernel) -> Step<'_> {
        let mut work = self.work(now_ns, None);
        if let Some(row) = self.ledger.instance(kernel.instance).cloned()
            && (!row.running || row.incarnation != kernel.incarnation)
        {
            // Nobody said that the former boot had ended; it has.
            self.mark_down(row.kernel(), &mut work);
            let row = InstanceRow { incarnation: kernel.incarnation, running: true, ..row };
            work.put_instance(row.clone());
            take_over(&mut work, kernel);
            self.start(row, &mut work);
        }
        Step::new(self, work)
    }

    /// The last part of either: it runs, and operations look anew at what they move from or to it.
    fn start(&self, mut row: InstanceRow, work: &mut Work) {
        let id = row.id;
        let kernel = row.kernel();
        row.boot_cpu = lowest_cpu(work, kernel).or(row.boot_cpu);
        work.note_unit(EventKind::KernelUp { kernel });
        work.put_instance(row);
        for operation in self.unfinished() {
            self.with(operation, work, |operation, work| operation.instance_changed(id, work));
        }
    }
}

/// What the former boot held is this one's.
fn take_over(work: &mut Work, kernel: Kernel) {
    for unit in held(work, Party::Instance(kernel), None) {
        let owner = Owner::Instance(kernel);
        if work.ledger.entry(unit).is_some_and(|entry| entry.owner != owner) {
            work.note_unit(EventKind::Reassigned { unit, owner: owner.clone() });
            work.assign(unit, owner);
        }
    }
}

/// Gives a kernel so much of a kind, what it has included; returns how much is missing.
fn provide(work: &mut Work, kernel: Kernel, kind: Kind, wanted: u64) -> u64 {
    let mut missing = wanted.saturating_sub(work.ledger.held(Party::Instance(kernel), kind));
    for giver in [Party::Pool, Party::Host] {
        let mut spare = work.ledger.held(giver, kind).saturating_sub(work.ledger.floor(giver, kind));
        for unit in held(work, giver, Some(kind)) {
            let Some(entry) = work.ledger.entry(unit) else { continue };
            if matches!(entry.unit.traits, Traits::Cpu { boot: true, .. }) {
                continue;
            }
            let size = entry.unit.size();
            let take = missing.min(size).min(spare);
            let taken = match take {
                0 => continue,
                take if take == size => Some(unit),
                take => work.split(unit, take),
            };
            if let Some(taken) = taken {
                work.settle(taken, Owner::Instance(kernel));
                missing -= take;
                spare -= take;
            }
        }
    }
    missing
}

fn lowest_cpu(work: &Work, kernel: Kernel) -> Option<UnitId> {
    held(work, Party::Instance(kernel), Some(Kind::Cpu)).into_iter().min()
}

fn held(work: &Work, party: Party, kind: Option<Kind>) -> Vec<UnitId> {
    let units = work.ledger.held_by(party).map(|entry| entry.unit.id);
    units.filter(|unit| kind.is_none_or(|kind| unit.kind() == kind)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{Bench, DB, WEB, kernel, party, pci, persist, row};
    use crate::kernel::InstanceId;
    use crate::operation::{DrainRule, Input};
    use crate::sim::Spawner;
    use crate::unit::Unit;

    fn boot_of(id: InstanceId, boot: u8) -> InstanceRow {
        InstanceRow { incarnation: kernel(id, boot).incarnation, ..row(id, "db") }
    }

    fn needs(memory: u64, cpus: u64) -> Needs {
        Needs { memory, cpus, devices: Vec::new() }
    }

    #[test]
    fn an_instance_is_given_what_it_lacks_out_of_what_is_free_and_then_of_the_hosts() {
        let mut units = vec![(Unit::lot(0, 4, None), Party::Pool), (Unit::lot(1, 10, None), Party::Host)];
        units.extend((0..3).map(|id| (Unit::cpu(id, id, None), Party::Pool)));
        let mut bench = Bench::new(units, DrainRule::Offline, Spawner::Certain);
        let held = |bench: &Bench, party, kind| bench.coordinator.ledger().held(party, kind);
        drop(persist(bench.coordinator.boot(0, boot_of(DB, 1), needs(8, 2)).unwrap()));
        let db = Party::Instance(kernel(DB, 1));
        assert_eq!(
            [Party::Pool, Party::Host, db].map(|holder| held(&bench, holder, Kind::Memory)),
            [0, 6, 8],
            "the free memory went first"
        );
        assert_eq!([Party::Pool, db].map(|holder| held(&bench, holder, Kind::Cpu)), [1, 2]);
        assert_eq!(bench.coordinator.ledger().instance(DB).unwrap().boot_cpu, Some(UnitId::Cpu(0)));
        let again = bench.coordinator.boot(0, boot_of(DB, 1), needs(9, 3)).unwrap();
        assert!(again.commit().is_none(), "that boot runs already");
        bench.coordinator.check().unwrap();
    }

    #[test]
    fn the_next_boot_takes_over_what_the_last_one_held_in_the_same_step() {
        let units = (0..3).map(|id| (Unit::cpu(id, id, None), if id < 2 { party(DB) } else { Party::Pool }));
        let mut bench = Bench::new(units.collect(), DrainRule::Offline, Spawner::Certain);
        let step = bench.coordinator.boot(0, boot_of(DB, 1), needs(0, 1)).unwrap();
        drop(persist(step));
        let ledger = bench.coordinator.ledger();
        assert_eq!(ledger.held(Party::Instance(kernel(DB, 1)), Kind::Cpu), 2, "it keeps what it had");
        assert!(ledger.is_running(kernel(DB, 1)) && !ledger.is_running(kernel(DB, 0)));
        bench.coordinator.check().unwrap();
    }

    #[test]
    fn a_boot_that_cannot_be_provided_for_changes_nothing() {
        let units = vec![(Unit::lot(0, 4, None), Party::Host), (Unit::boot_cpu(0, 0, None), Party::Host)];
        let mut bench = Bench::new(units, DrainRule::Offline, Spawner::Certain);
        let before = bench.coordinator.clone();
        let mut refused = |needs| bench.coordinator.boot(0, boot_of(DB, 1), needs).map(drop).unwrap_err();
        let not_enough =
            |kind, wanted, missing| AdminError::NotEnough { instance: DB, kind, wanted, missing };
        assert_eq!(refused(needs(5, 0)), not_enough(Kind::Memory, 5, 1));
        assert_eq!(refused(needs(4, 1)), not_enough(Kind::Cpu, 1, 1), "the host runs on its boot CPU");
        assert_eq!(bench.coordinator, before);
        let taken = bench.coordinator.boot(0, boot_of(WEB, 1), needs(0, 0)).map(drop).unwrap_err();
        assert_eq!(taken, AdminError::NameTaken { name: "db".into() });
    }

    #[test]
    fn devices_that_are_free_are_booted_with_and_those_of_others_stay_there() {
        let [free, taken, unknown] = ["0000:01:00.0", "0000:02:00.0", "0000:03:00.0"].map(pci);
        let units = vec![
            (Unit::device(free, None, true), Party::Pool),
            (Unit::device(taken, None, true), party(WEB)),
        ];
        let mut bench = Bench::new(units, DrainRule::Offline, Spawner::Certain);
        let needs = Needs { devices: vec![taken, free, unknown], ..Needs::default() };
        drop(persist(bench.coordinator.boot(0, boot_of(DB, 1), needs).unwrap()));
        let owner = |device| bench.coordinator.ledger().entry(UnitId::Device(device)).unwrap().owner.clone();
        assert_eq!([owner(free), owner(taken)], [Owner::Instance(kernel(DB, 1)), party(WEB).into()]);
        bench.coordinator.check().unwrap();
    }

    #[test]
    fn a_boot_that_is_told_of_late_takes_over_too() {
        let units = vec![(Unit::lot(0, 4, None), party(DB))];
        let mut bench = Bench::new(units, DrainRule::Offline, Spawner::Certain);
        drop(persist(bench.coordinator.handle(0, Input::KernelUp(kernel(DB, 1)))));
        assert_eq!(bench.coordinator.ledger().held(Party::Instance(kernel(DB, 1)), Kind::Memory), 4);
        bench.coordinator.check().unwrap();
    }
}
