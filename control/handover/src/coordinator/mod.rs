//! The single writer of ledger and journal.
//!
//! ```text
//!  input ─▶ handle ─▶ Step ─▶ persist(one transaction) ─▶ effects ─▶ shell ─▶ input
//!                      └─ dropped or not stored: nothing has happened
//! ```
//!
//! A step is decided on a copy. Only when its [`Commit`] is stored does the copy become the state and do the effects come out, so
//! the state in memory is at all times the one a new daemon would read, and nothing is done that the journal does not know of.

mod boot;
mod commit;
mod restock;
mod work;

pub use boot::Needs;
pub use commit::{Commit, Event, EventKind, Step};
pub use restock::Seen;
pub(crate) use work::Work;

use std::collections::BTreeMap;

use crate::kernel::{InstanceId, Kernel, Party};
use crate::ledger::{Entry, InstanceRow, Ledger, Meta, Violation};
use crate::operation::{Input, Operation, Rules, TooLate};
use crate::owner::{OpId, Owner, Quarantine};
use crate::plan::{Plan, Refusal, Traffic, plan};
use crate::request::Request;
use crate::unit::{Kind, UnitId};

/// Ledger and operations of one host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Coordinator {
    ledger: Ledger,
    operations: BTreeMap<OpId, Operation>,
}

/// What became of a request.
#[derive(Debug)]
#[must_use = "a request that is not persisted was not accepted"]
#[expect(clippy::large_enum_variant, reason = "made once per order and taken apart at once")]
pub enum Submitted<'a> {
    /// It is a new operation, once the step is persisted.
    New(OpId, Step<'a>),
    /// It was asked for before under the same key: this is the operation.
    Known(OpId),
}

/// Something the control plane wants of the ledger cannot be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the fields are named after what they hold, and the messages say it in words")]
pub enum AdminError {
    #[error("there is no {operation}")]
    NoSuchOperation { operation: OpId },
    #[error("there is no {instance} in the ledger")]
    NoSuchInstance { instance: InstanceId },
    #[error("another instance is called `{name}`")]
    NameTaken { name: String },
    #[error("{instance} runs; it can be released only when it is dead for certain")]
    StillRuns { instance: InstanceId },
    #[error("{instance} still has {unit}; move or release its units first")]
    StillHolds { instance: InstanceId, unit: UnitId },
    #[error("{operation} is under way at {instance}; wait for it to end")]
    StillMoving { instance: InstanceId, operation: OpId },
    #[error("there is no {unit} on this machine")]
    NoSuchUnit { unit: UnitId },
    #[error(
        "{instance} is to start with {wanted} {kind}, {missing} more than are free or the host's to give"
    )]
    NotEnough { instance: InstanceId, kind: Kind, wanted: u64, missing: u64 },
    #[error("{unit} is with {owner}, not in quarantine; there is nothing to repair")]
    NotQuarantined { unit: UnitId, owner: Owner },
    #[error(transparent)]
    TooLate(#[from] TooLate),
}

impl Coordinator {
    /// Begins with a ledger that was just discovered. The caller stores all of its rows first.
    pub fn new(ledger: Ledger) -> Self {
        Self { ledger, operations: BTreeMap::new() }
    }

    /// What was stored, as it was when the last step was persisted. Follow it with [`recover`](Self::recover).
    ///
    /// # Errors
    /// A [`Violation`] if the rows do not add up. Then nothing may be moved; the caller serves reads and says so.
    pub fn restore(
        meta: Meta,
        entries: impl IntoIterator<Item = Entry>,
        instances: impl IntoIterator<Item = InstanceRow>,
        operations: impl IntoIterator<Item = Operation>,
    ) -> Result<Self, Violation> {
        let ledger = Ledger::restore(meta, entries, instances)?;
        let operations = operations.into_iter().map(|operation| (operation.id, operation)).collect();
        let coordinator = Self { ledger, operations };
        coordinator.check()?;
        Ok(coordinator)
    }

    /// Who owns what.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Every operation that is remembered, oldest first.
    pub fn operations(&self) -> impl Iterator<Item = &Operation> {
        self.operations.values()
    }

    /// One operation.
    pub fn operation(&self, id: OpId) -> Option<&Operation> {
        self.operations.get(&id)
    }

    /// An operation that is under way at an instance, if there is one.
    pub fn moving_at(&self, id: InstanceId) -> Option<OpId> {
        let under_way = |operation: &&Operation| !operation.phase.is_terminal() && operation.concerns(id);
        self.operations.values().find(under_way).map(|operation| operation.id)
    }

    /// Whether ledger and journal add up and agree with each other.
    ///
    /// # Errors
    /// The first [`Violation`] found.
    pub fn check(&self) -> Result<(), Violation> {
        self.ledger.check()?;
        for entry in self.ledger.entries() {
            if let Owner::InTransit(id) = entry.owner {
                let unit = entry.unit.id;
                let holds = |operation: &Operation| {
                    operation.phase.holds_units()
                        && operation
                            .units
                            .iter()
                            .any(|progress| progress.unit == unit && !progress.is_settled())
                };
                if !self.operations.get(&id).is_some_and(holds) {
                    return Err(Violation::OperationDisagrees { unit, owner: entry.owner.clone() });
                }
            }
        }
        for operation in self.operations.values().filter(|operation| operation.phase.holds_units()) {
            for progress in operation.units.iter().filter(|progress| !progress.is_settled()) {
                let entry = self.ledger.entry(progress.unit);
                let owner = entry.map_or(Owner::Pool, |entry| entry.owner.clone());
                if owner != Owner::InTransit(operation.id)
                    || entry.is_none_or(|entry| entry.unit.size() != progress.size)
                {
                    return Err(Violation::OperationDisagrees { unit: progress.unit, owner });
                }
            }
        }
        Ok(())
    }

    /// What a request would do. Changes nothing.
    ///
    /// # Errors
    /// A [`Refusal`] that says what is wrong with it.
    pub fn plan(&self, request: &Request) -> Result<Plan, Refusal> {
        plan(&self.ledger, &self.traffic(None), request)
    }

    /// Accepts a request as an operation, or finds the operation it is.
    ///
    /// # Errors
    /// A [`Refusal`] that says what is wrong with it. Nothing has been changed.
    pub fn submit(&mut self, now_ns: u64, request: Request, rules: Rules) -> Result<Submitted<'_>, Refusal> {
        let known = self.operations.values().find(|operation| operation.request.key == request.key);
        if let Some(operation) = known {
            return if operation.request == request {
                Ok(Submitted::Known(operation.id))
            } else {
                Err(Refusal::KeyReused { key: request.key, operation: operation.id })
            };
        }
        let plan = self.plan(&request)?;
        let mut work = self.work(now_ns, None);
        let id = work.ledger.next_op();
        let mut operation = Operation::new(id, request, &plan, rules, now_ns);
        work.note(id, EventKind::Accepted);
        operation.begin(&mut work);
        work.operations.push(operation);
        Ok(Submitted::New(id, Step::new(self, work)))
    }

    /// Takes one input at `now_ns`, on any clock: it is only noted down. What no longer matters (a late or doubled answer, an
    /// old timer) gives a step that changes nothing.
    pub fn handle(&mut self, now_ns: u64, input: Input) -> Step<'_> {
        match input {
            Input::Answered { operation, round, question, end, reply } => {
                self.advance(now_ns, operation, |operation, work| {
                    operation.answered(round, question, end, reply, work)
                })
            }
            Input::Acted { operation, unit, epoch, refused, sighting } => {
                self.advance(now_ns, operation, |operation, work| {
                    operation.acted(unit, epoch, refused, &sighting, work)
                })
            }
            Input::Expired { operation, round } => {
                self.advance(now_ns, operation, |operation, work| operation.expired(round, work))
            }
            Input::KernelDown(kernel) => self.kernel_down(now_ns, kernel),
            Input::KernelUp(kernel) => self.kernel_up(now_ns, kernel),
        }
    }

    /// Takes up again, in a new daemon, every operation that has not ended: what was asked before may or may not have been done,
    /// so every unit in question is looked at, under a new epoch that outdates whatever is still on its way.
    pub fn recover(&mut self, now_ns: u64) -> Step<'_> {
        let open: Vec<OpId> = self
            .operations
            .values()
            .filter(|operation| !operation.phase.is_terminal())
            .map(|o| o.id)
            .collect();
        let mut work = self.work(now_ns, None);
        for id in open {
            self.with(id, &mut work, |operation, work| {
                work.note(id, EventKind::Resumed { phase: operation.phase });
                operation.recover(work);
                true
            });
        }
        Step::new(self, work)
    }

    /// Calls an operation off.
    ///
    /// # Errors
    /// [`AdminError::TooLate`] past the point of no return, [`AdminError::NoSuchOperation`] if it is not remembered.
    pub fn cancel(&mut self, now_ns: u64, id: OpId) -> Result<Step<'_>, AdminError> {
        let mut work = self.work(now_ns, Some(id));
        let Some(operation) = self.operations.get(&id) else {
            return Err(AdminError::NoSuchOperation { operation: id });
        };
        let mut operation = operation.clone();
        operation.cancel(&mut work)?;
        if Some(&operation) != self.operations.get(&id) {
            work.operations.push(operation);
        }
        Ok(Step::new(self, work))
    }

    /// Enters an instance, or changes its name, limits or boot CPU. Its boot is told by [`Input::KernelUp`].
    ///
    /// # Errors
    /// [`AdminError::NameTaken`] if another has the name.
    pub fn admit(&mut self, now_ns: u64, row: InstanceRow) -> Result<Step<'_>, AdminError> {
        if self.ledger.instances().any(|other| other.name == row.name && other.id != row.id) {
            return Err(AdminError::NameTaken { name: row.name });
        }
        let mut work = self.work(now_ns, None);
        let row = match self.ledger.instance(row.id) {
            Some(known) => InstanceRow { incarnation: known.incarnation, running: known.running, ..row },
            None => row,
        };
        work.put_instance(row);
        Ok(Step::new(self, work))
    }

    /// Forgets an instance that is dead and holds nothing.
    ///
    /// # Errors
    /// An [`AdminError`] that says what it still has.
    pub fn dismiss(&mut self, now_ns: u64, id: InstanceId) -> Result<Step<'_>, AdminError> {
        let row = self.dead(id)?;
        let party = Party::Instance(row.kernel());
        if let Some(entry) = self.ledger.held_by(party).next() {
            return Err(AdminError::StillHolds { instance: id, unit: entry.unit.id });
        }
        if let Some(operation) = self.moving_at(id) {
            return Err(AdminError::StillMoving { instance: id, operation });
        }
        let mut work = self.work(now_ns, None);
        work.remove_instance(id);
        Ok(Step::new(self, work))
    }

    /// Frees what a dead kernel holds. The caller has seen by the spawner's read-back that all of it is detached.
    ///
    /// # Errors
    /// [`AdminError::StillRuns`] or [`AdminError::NoSuchInstance`].
    pub fn release(&mut self, now_ns: u64, id: InstanceId) -> Result<Step<'_>, AdminError> {
        let party = Party::Instance(self.dead(id)?.kernel());
        let mut work = self.work(now_ns, None);
        let held: Vec<UnitId> = self.ledger.held_by(party).map(|entry| entry.unit.id).collect();
        for unit in held {
            work.note_unit(EventKind::Reassigned { unit, owner: Owner::Pool });
            work.settle(unit, Owner::Pool);
        }
        for operation in self.unfinished() {
            self.with(operation, &mut work, |operation, work| operation.instance_changed(id, work));
        }
        Ok(Step::new(self, work))
    }

    /// Takes a unit out of quarantine. The caller has seen, or the operator vouches, that it is with `owner` and with nobody else.
    ///
    /// # Errors
    /// [`AdminError::NotQuarantined`], [`AdminError::NoSuchUnit`], or [`AdminError::NoSuchInstance`] for the new owner.
    pub fn repair(&mut self, now_ns: u64, unit: UnitId, owner: Party) -> Result<Step<'_>, AdminError> {
        let entry = self.ledger.entry(unit).ok_or(AdminError::NoSuchUnit { unit })?;
        if !matches!(entry.owner, Owner::Quarantined(_)) {
            return Err(AdminError::NotQuarantined { unit, owner: entry.owner.clone() });
        }
        if let Some(instance) = owner.instance().filter(|&id| self.ledger.instance(id).is_none()) {
            return Err(AdminError::NoSuchInstance { instance });
        }
        let owner = Owner::from(self.ledger.present(owner));
        let mut work = self.work(now_ns, None);
        work.note_unit(EventKind::Reassigned { unit, owner: owner.clone() });
        work.settle(unit, owner);
        Ok(Step::new(self, work))
    }

    /// Forgets operations that have ended, and with them their idempotency keys.
    pub fn forget(&mut self, now_ns: u64, ids: &[OpId]) -> Step<'_> {
        let ended =
            |id: &&OpId| self.operations.get(id).is_some_and(|operation| operation.phase.is_terminal());
        let mut work = self.work(now_ns, None);
        work.forgotten_operations = ids.iter().filter(ended).copied().collect();
        Step::new(self, work)
    }

    /// Quarantines units that the ledger has in transit with an operation that is not in the journal. For a store that lost rows:
    /// [`restore`](Self::restore) refuses it, this makes it fit to be restored.
    pub fn quarantine_orphans(entries: &mut [Entry], operations: &[Operation]) -> usize {
        let mut orphans = 0;
        for entry in entries {
            if let Owner::InTransit(operation) = entry.owner
                && !operations.iter().any(|known| known.id == operation && known.phase.holds_units())
            {
                entry.owner = Owner::Quarantined(Quarantine::Orphaned { operation });
                entry.epoch += 1;
                orphans += 1;
            }
        }
        orphans
    }

    fn kernel_down(&mut self, now_ns: u64, kernel: Kernel) -> Step<'_> {
        let mut work = self.work(now_ns, None);
        self.mark_down(kernel, &mut work);
        Step::new(self, work)
    }

    fn mark_down(&self, kernel: Kernel, work: &mut Work) {
        let Some(row) = self.ledger.instance(kernel.instance) else { return };
        if !row.running || row.incarnation != kernel.incarnation {
            return;
        }
        work.note_unit(EventKind::KernelDown { kernel });
        work.put_instance(InstanceRow { running: false, ..row.clone() });
        for id in self.unfinished() {
            self.with(id, work, |operation, work| {
                operation.kernel_down(kernel, work);
                true
            });
        }
    }

    fn advance(
        &mut self,
        now_ns: u64,
        id: OpId,
        change: impl FnOnce(&mut Operation, &mut Work) -> bool,
    ) -> Step<'_> {
        let mut work = self.work(now_ns, Some(id));
        self.with(id, &mut work, change);
        Step::new(self, work)
    }

    /// Lets an operation take part in a step. Its record is written if it says that something happened.
    fn with(&self, id: OpId, work: &mut Work, change: impl FnOnce(&mut Operation, &mut Work) -> bool) {
        let earlier = work.operations.iter().position(|operation| operation.id == id);
        let operation = match earlier {
            Some(at) => Some(work.operations.swap_remove(at)),
            None => self.operations.get(&id).cloned(),
        };
        let Some(mut operation) = operation else { return };
        if change(&mut operation, work) || earlier.is_some() {
            work.operations.push(operation);
        }
    }

    fn unfinished(&self) -> Vec<OpId> {
        let unfinished = self.operations.values().filter(|operation| !operation.phase.is_terminal());
        unfinished.map(|operation| operation.id).collect()
    }

    fn dead(&self, id: InstanceId) -> Result<&InstanceRow, AdminError> {
        let row = self.ledger.instance(id).ok_or(AdminError::NoSuchInstance { instance: id })?;
        if row.running { Err(AdminError::StillRuns { instance: id }) } else { Ok(row) }
    }

    /// What operations other than `except` have under way.
    fn traffic(&self, except: Option<OpId>) -> Traffic {
        Traffic::of(self.operations.values().filter(|operation| Some(operation.id) != except))
    }

    fn work(&self, now_ns: u64, on: Option<OpId>) -> Work {
        Work::new(now_ns, self.ledger.clone(), self.traffic(on))
    }

    fn take_over(&mut self, ledger: Ledger, operations: Vec<Operation>, forgotten: &[OpId]) {
        self.ledger = ledger;
        self.operations.extend(operations.into_iter().map(|operation| (operation.id, operation)));
        self.operations.retain(|id, _| !forgotten.contains(id));
        debug_assert_eq!(self.check(), Ok(()), "a step left books that do not add up");
    }
}

#[cfg(test)]
mod tests;
