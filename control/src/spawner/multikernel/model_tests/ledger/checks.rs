//! What must be so after each step, and in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tombolo_handover::{InstanceId, InstanceRow, Owner, PciAddress, UnitId};
use tombolo_mksim::model::Quirk;

use super::daemon::Daemon;
use super::moves::narrow;
use crate::core::State;
use crate::spawner::multikernel::interface::InstanceStatus;
use crate::spawner::multikernel::model_tests::crashes::check_books;
use crate::spawner::multikernel::model_tests::world::Actor;

impl Daemon {
    pub(super) fn check(&self) {
        self.bench.check();
        check_books(&self.bench.model.world().machine);
        self.coordinator.check().unwrap();
        self.check_store();
        self.check_owners();
        self.check_ledger();
        self.check_cpus();
        self.check_memory();
        self.check_devices();
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
        }
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

    /// Each CPU at rest is where the ledger has it: by the kernel's books, and by what the kernels themselves have online. No two of ours have
    /// one, whatever the books say.
    fn check_cpus(&self) {
        let mut online: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        for (name, record) in self.records.iter().filter(|(_, record)| record.taken_over.is_none()) {
            let Some(in_kernel) = self.known(name).record(&self.bench.settings()).unwrap() else { continue };
            if self.bench.hold(&in_kernel).ours() != Ok(Some(InstanceStatus::Active)) {
                continue;
            }
            let (booked, has) = {
                let world = self.bench.model.world();
                let instance = world.machine.instance(name).unwrap();
                let guest = instance.guest.as_ref().map(|guest| guest.cpus.clone());
                (narrow(&instance.cpus), narrow(&guest.unwrap_or_default()))
            };
            has.into_iter().for_each(|cpu| online.entry(cpu).or_default().push(name.clone()));
            let holds = self.cpus_of(InstanceId(record.cid.0));
            let lacks: Vec<&u32> = holds.iter().filter(|cpu| !booked.contains(cpu)).collect();
            assert!(lacks.is_empty(), "`{name}` holds {holds:?} and has {booked:?}");
            let in_doubt = self.cpus_in_doubt();
            let stray = |cpu: &&u32| !holds.contains(cpu) && !in_doubt.contains(cpu);
            let strays: Vec<&u32> = booked.iter().filter(stray).collect();
            assert!(strays.is_empty(), "`{name}` has {booked:?} and holds {holds:?}");
        }
        for entry in self.coordinator.ledger().entries() {
            let UnitId::Cpu(cpu) = entry.unit.id else { continue };
            let users = online.get(&cpu).map(Vec::as_slice).unwrap_or_default();
            assert!(users.len() <= 1, "CPU {cpu} runs in {users:?}");
            assert!(!matches!(entry.owner, Owner::InTransit(_)), "{entry:?}");
            assert!(
                entry.owner != Owner::Pool || users.is_empty(),
                "CPU {cpu} is free, and runs in {users:?}"
            );
        }
    }

    /// The same of devices.
    fn check_devices(&self) {
        let mut used: BTreeMap<PciAddress, Vec<String>> = BTreeMap::new();
        let is_in_doubt = |device: &PciAddress| {
            let entry = self.coordinator.ledger().entry(UnitId::Device(*device));
            entry.is_none_or(|entry| entry.owner.party().is_none())
        };
        for (name, record) in self.records.iter().filter(|(_, record)| record.taken_over.is_none()) {
            let Some(in_kernel) = self.known(name).record(&self.bench.settings()).unwrap() else { continue };
            if self.bench.hold(&in_kernel).ours() != Ok(Some(InstanceStatus::Active)) {
                continue;
            }
            let read = |device: &str| -> PciAddress { device.parse().unwrap() };
            let (booked, has): (Vec<PciAddress>, Vec<PciAddress>) = {
                let world = self.bench.model.world();
                let instance = world.machine.instance(name).unwrap();
                let has = instance.guest.iter().flat_map(|guest| &guest.devices);
                (
                    instance.devices.iter().map(|device| read(&device.pci_id)).collect(),
                    has.map(|device| read(device)).collect(),
                )
            };
            has.into_iter().for_each(|device| used.entry(device).or_default().push(name.clone()));
            let holds = self.devices_of(InstanceId(record.cid.0));
            let lacks: Vec<&PciAddress> = holds.iter().filter(|device| !booked.contains(device)).collect();
            assert!(lacks.is_empty(), "`{name}` holds {holds:?} and has {booked:?}");
            let stray = |device: &&PciAddress| !holds.contains(device) && !is_in_doubt(device);
            let strays: Vec<&PciAddress> = booked.iter().filter(stray).collect();
            assert!(strays.is_empty(), "`{name}` has {booked:?} and holds {holds:?}");
        }
        for entry in self.coordinator.ledger().entries() {
            let UnitId::Device(device) = entry.unit.id else { continue };
            let users = used.get(&device).map(Vec::as_slice).unwrap_or_default();
            assert!(users.len() <= 1, "{device} is used in {users:?}");
            assert!(
                entry.owner != Owner::Pool || users.is_empty(),
                "{device} is free, and used in {users:?}"
            );
        }
    }

    /// All is ended and removed, once nothing is in the way.
    pub(super) fn leave(&mut self) {
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
        self.heal();
        self.compare();
        self.check();
        let needs_nobody = |owner: &Owner| match owner {
            Owner::Quarantined(reason) => reason.needs_operator(),
            owner => matches!(owner, Owner::Pool | Owner::Host),
        };
        assert!(self.coordinator.ledger().entries().all(|entry| needs_nobody(&entry.owner)));
        let world = self.bench.model.world();
        assert!(world.makers.values().all(|maker| *maker == Actor::Another), "{:?}", world.makers);
        assert_eq!(self.coordinator.ledger().instances().count(), 0);
    }
}
