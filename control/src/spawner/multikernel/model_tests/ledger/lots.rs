//! Memory on its way: what the daemon's desk and its witnesses do, on the model.

use tombolo_handover::coordinator::Submitted;
use tombolo_handover::observe::{Command, Inside, Sighting};
use tombolo_handover::operation::{Act, Progress, Resting, Veto};
use tombolo_handover::{
    Input, InstanceId, InstanceRow, Kind, Owner, Party, Request, Rules, Side, UnitId, What,
};

use super::daemon::{Daemon, store};
use crate::daemon::{Amount, GRANULE_BYTES, Has, Lots, Whereabouts, find_lot};
use crate::keeper::MemoryState;
use crate::spawner::MemoryWanted;
use crate::spawner::multikernel::live::LiveError;
use crate::spawner::multikernel::memory::LiveMemory;
use crate::spawner::multikernel::model_tests::world::{MIB, Model};

/// In what memory moves here.
pub(super) const STEP_BYTES: u64 = 128 * MIB;

impl Daemon {
    /// How much memory the ledger gives to an instance, in granules.
    pub(super) fn memory_of(&self, id: InstanceId) -> u64 {
        let ledger = self.coordinator.ledger();
        ledger.instance(id).map_or(0, |row| ledger.held(Party::Instance(row.kernel()), Kind::Memory))
    }

    pub(super) fn move_memory(&mut self, from: usize, to: usize, steps: u64) {
        let names: Vec<String> = self.records.keys().cloned().collect();
        let side = |at: usize| names.get(at % (names.len() + 1)).map_or(Side::Pool, |name| Side::named(name));
        let what = What::MemoryBytes(steps * STEP_BYTES);
        let request = Request::new(format!("k{}", self.draw()), side(from), side(to), what);
        self.compare();
        if let Ok(Submitted::New(_, step)) = self.coordinator.submit(1, request, Rules::default()) {
            let effects = store(&mut self.journal, step);
            self.carry_on(effects);
        }
    }

    /// As `Witnesses::act_on_lot`, one at a time.
    pub(super) fn act_on_lot(&mut self, act: &Act) -> Option<Input> {
        let (operation, unit) = (act.operation, act.unit.id);
        let units = self.coordinator.operation(operation)?.units.clone();
        let open: Vec<&Progress> = units.iter().filter(|unit| !unit.is_settled()).collect();
        let at = open.iter().position(|open| open.unit == unit && open.epoch == act.epoch)?;
        let held = |party| self.coordinator.ledger().held(party, Kind::Memory);
        let lots = Lots {
            units: open.iter().map(|open| open.unit).collect(),
            sizes: open.iter().map(|open| open.size).collect(),
            resting: Resting { donor: held(act.donor), receiver: held(act.receiver) },
            donor: act.donor,
            receiver: act.receiver,
        };
        let progress = open[at];
        let bytes = |granules: u64| granules * GRANULE_BYTES;
        let refused = match act.command {
            Some(Command::Revoke(from)) if from.is_same_holder(lots.donor) => {
                self.set_memory(from, MemoryWanted::AtMost(bytes(lots.donor_after(at))))
            }
            Some(Command::Revoke(from)) => {
                let (has, donor_has) = (self.has(from).0, self.has(lots.donor).0);
                let attached = lots.attached(at, progress, donor_has, has);
                match has {
                    Has::Granules(has) if attached.is_some_and(|party| party.is_same_holder(from)) => {
                        let left = bytes(has.saturating_sub(progress.size));
                        self.set_memory(from, MemoryWanted::AtMost(left))
                    }
                    _ => None,
                }
            }
            Some(Command::Grant(to)) => {
                self.set_memory(to, MemoryWanted::AtLeast(bytes(lots.receiver_after(at))))
            }
            Some(Command::Drain | Command::Undrain | Command::Online) | None => None,
        };
        let (donor, receiver) = (self.has(act.donor), self.has(act.receiver));
        let attached = lots.attached(at, progress, donor.0, receiver.0);
        let inside = |party: Party| match party.instance() {
            _ if attached.is_some_and(|holder| !holder.is_same_holder(party)) => Inside::Absent,
            None => Inside::Absent,
            Some(id) if self.guest_has(id).is_none() => Inside::Unknown,
            // Of memory an agent knows what it keeps free.
            Some(_) if self.drained.contains(&(operation, unit)) => Inside::Offline,
            Some(_) => Inside::Online,
        };
        let (donor_inside, receiver_inside) = (inside(act.donor), inside(act.receiver));
        let sighting = Sighting {
            attached,
            donor: donor_inside,
            receiver: receiver_inside,
            pending: donor.1 || receiver.1,
        };
        Some(Input::Acted { operation, unit, epoch: act.epoch, refused, sighting })
    }

    fn set_memory(&self, party: Party, wanted: MemoryWanted) -> Option<Veto> {
        let veto = |reason: String| Veto { reason, retry_after_ms: Some(500) };
        let kernel = party.kernel()?;
        if !self.coordinator.ledger().is_running(kernel) {
            return Some(veto("that boot of it does not run".into()));
        }
        match self.with_memory(party, |memory| memory.set(wanted)) {
            Some(Err(LiveError::Refused(reason))) => Some(veto(reason)),
            Some(_) => None,
            None => Some(veto("it has no memory that can leave or come".into())),
        }
    }

    fn with_memory(
        &self,
        party: Party,
        act: impl FnOnce(LiveMemory<'_, Model>) -> Result<MemoryState, LiveError>,
    ) -> Option<Result<MemoryState, LiveError>> {
        let record = self.in_kernel(party)?;
        let folder = self.bench.folder(record.name.as_str());
        LiveMemory::on(&self.bench.model, &record, &folder).map(act)
    }

    /// As `Witnesses::has`.
    fn has(&self, party: Party) -> (Has, bool) {
        let Party::Instance(kernel) = party else { return (Has::TheRest, false) };
        let ledger = self.coordinator.ledger();
        let kernel = ledger.present(party).kernel().unwrap_or(kernel);
        if !ledger.is_running(kernel) {
            return (Has::Nothing, false);
        }
        if self.in_kernel(party).is_none() {
            return (Has::Unknown, false);
        }
        match self.with_memory(party, |memory| memory.state()) {
            Some(Ok(memory)) => (Has::of(&memory), memory.pending),
            Some(Err(_)) => (Has::Unknown, false),
            None => (Has::Fixed, false),
        }
    }

    /// As `Witnesses::repair` of a lot.
    pub(super) fn heal_lot(&mut self, unit: UnitId) {
        let Some(entry) = self.coordinator.ledger().entry(unit).cloned() else { return };
        let rows: Vec<InstanceRow> =
            self.coordinator.ledger().instances().filter(|row| row.running).cloned().collect();
        let mut seen = Vec::new();
        for row in rows {
            let party = Party::Instance(row.kernel());
            if self.has(party).1 && self.guest_has(row.id).is_some() {
                let settle = |memory: LiveMemory<'_, Model>| memory.settle().and_then(|()| memory.state());
                let _ = self.with_memory(party, settle);
            }
            let (has, is_changing) = self.has(party);
            let held = self.coordinator.ledger().held(party, Kind::Memory);
            let moving = self.coordinator.moving_at(row.id);
            seen.push(Whereabouts { party, name: row.name, has: Amount { has, held, is_changing, moving } });
        }
        if let Ok(owner) = find_lot(entry.unit.size(), &seen) {
            let step = self.coordinator.repair(1, unit, owner).unwrap();
            store(&mut self.journal, step);
        }
    }

    /// Each running kernel has the memory that the ledger gives it, by the host's books and by its own, unless something of its is in doubt. No memory is
    /// used in two.
    pub(super) fn check_memory(&self) {
        let granules = |bytes: u64| bytes / GRANULE_BYTES;
        let mut users: Vec<(u64, String)> = Vec::new();
        for (name, record) in self.records.iter().filter(|(_, record)| record.taken_over.is_none()) {
            let id = InstanceId(record.cid.0);
            let Some(row) = self.coordinator.ledger().instance(id).filter(|row| row.running) else {
                continue;
            };
            let party = Party::Instance(row.kernel());
            let Some(Ok(state)) = self.with_memory(party, |memory| memory.state()) else { continue };
            let world = self.bench.model.world();
            let instance = world.machine.instance(name).unwrap();
            let Some(guest) = &instance.guest else { continue };
            users.extend(guest.memory.iter().map(|base| (*base, name.clone())));
            let (held, booked) = (self.memory_of(id), granules(instance.memory_bytes()));
            if state.certain {
                let mut bases: Vec<u64> = instance.regions.iter().map(|region| region.range.base).collect();
                let mut online = guest.memory.clone();
                bases.sort_unstable();
                online.sort_unstable();
                assert_eq!(bases, online, "`{name}`");
                // What a lot that is in quarantine is, an amount does not tell.
                assert!(held <= booked, "`{name}` holds {held} and has {booked}");
                let in_doubt = self.lots_in_doubt();
                assert!(
                    booked <= held + in_doubt,
                    "`{name}` holds {held} and has {booked}, {in_doubt} in doubt"
                );
            } else {
                assert!(held <= granules(state.present_bytes), "`{name}` holds {held} of {state:?}");
            }
        }
        users.sort();
        assert!(users.windows(2).all(|pair| pair[0].0 != pair[1].0), "used twice: {users:?}");
        for entry in self.coordinator.ledger().entries() {
            assert!(!matches!(entry.owner, Owner::InTransit(_)), "{entry:?}");
        }
    }

    /// How much memory nobody is known to have, in granules.
    fn lots_in_doubt(&self) -> u64 {
        let entries = self.coordinator.ledger().entries();
        let in_doubt = entries.filter(|entry| entry.unit.id.kind() == Kind::Memory);
        in_doubt.filter(|entry| entry.owner.party().is_none()).map(|entry| entry.unit.size()).sum()
    }
}
