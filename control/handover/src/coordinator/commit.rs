//! What one step writes, and the step itself.

use serde::{Deserialize, Serialize};

use super::{Coordinator, Work};
use crate::kernel::{InstanceId, Kernel};
use crate::ledger::{InstanceRow, Meta, UnitChange};
use crate::operation::{Effect, Fate, Operation, Phase};
use crate::owner::{OpId, Owner};
use crate::unit::UnitId;

/// All that one step changes in the store: **one transaction**. In order; a later change of a row replaces an earlier one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// The one row of counters.
    pub meta: Meta,
    /// Rows of the table of units.
    pub units: Vec<UnitChange>,
    /// Rows of the table of instances to write.
    pub instances: Vec<InstanceRow>,
    /// Rows of the table of instances to delete.
    pub forgotten_instances: Vec<InstanceId>,
    /// Rows of the journal to write: whole records, by number.
    pub operations: Vec<Operation>,
    /// Rows of the journal to delete.
    pub forgotten_operations: Vec<OpId>,
    /// To be appended to the stream of events.
    pub events: Vec<Event>,
}

/// Something worth telling.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// In which operation.
    pub operation: Option<OpId>,
    /// What.
    pub kind: EventKind,
}

/// What can be told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// An operation was accepted.
    Accepted,
    /// An operation came further.
    Phase {
        /// From.
        from: Phase,
        /// To.
        to: Phase,
    },
    /// A unit of an operation has an owner again.
    Settled {
        /// Which.
        unit: UnitId,
        /// What became of it.
        fate: Fate,
    },
    /// A unit changed hands outside an operation: its kernel booted anew, was released, or somebody repaired it.
    Reassigned {
        /// Which.
        unit: UnitId,
        /// To whom.
        owner: Owner,
    },
    /// A kernel is dead for certain.
    KernelDown {
        /// Which.
        kernel: Kernel,
    },
    /// An instance booted anew.
    KernelUp {
        /// Which.
        kernel: Kernel,
    },
    /// A new daemon took an operation up again.
    Resumed {
        /// Where it had got.
        phase: Phase,
    },
}

/// A step that is decided and has not happened.
///
/// The effects are inside and come out only through [`persist`](Self::persist) or [`persist_async`](Self::persist_async), when the
/// commit is stored; the coordinator takes the change over at the same moment. Dropping a step undoes it. While it exists it holds
/// the coordinator, so no second step can be decided on a state that is not stored.
#[derive(Debug)]
#[must_use = "a step that is not persisted has not happened"]
pub struct Step<'a> {
    coordinator: &'a mut Coordinator,
    work: Work,
    commit: Option<Commit>,
    can_wait: bool,
}

impl<'a> Step<'a> {
    pub(super) fn new(coordinator: &'a mut Coordinator, mut work: Work) -> Self {
        let can_wait = work.only_notes_answers();
        let commit = work.commit();
        Self { coordinator, work, commit, can_wait }
    }

    /// What is to be stored; `None` if nothing has changed.
    pub fn commit(&self) -> Option<&Commit> {
        self.commit.as_ref()
    }

    /// Whether it may be lost with this process until a later step is stored: it only notes down an answer of an operation that has others
    /// to wait for. Nothing is done and nobody is told on the strength of it, a new daemon would ask again, and whatever is stored of that
    /// operation next holds all of it.
    pub fn can_wait(&self) -> bool {
        self.can_wait
    }

    /// Stores the step with `write`, and if that worked, makes it happen and returns what is to be done. `write` is not called
    /// for a step that changes nothing.
    ///
    /// # Errors
    /// The error of `write`. It must mean that nothing of the commit is stored; then nothing has happened.
    pub fn persist<E>(self, write: impl FnOnce(&Commit) -> Result<(), E>) -> Result<Vec<Effect>, E> {
        if let Some(commit) = &self.commit {
            write(commit)?;
        }
        Ok(self.happen())
    }

    /// As [`persist`](Self::persist), for a store that is written to asynchronously.
    ///
    /// # Errors
    /// The error of `write`. It must mean that nothing of the commit is stored.
    ///
    /// # Cancel safety
    /// Not cancel safe: if the future is dropped while `write` runs, the commit may be stored and the coordinator does not know.
    /// Then read the coordinator back with [`Coordinator::restore`], as after a crash.
    pub async fn persist_async<E, F>(self, write: impl FnOnce(Commit) -> F) -> Result<Vec<Effect>, E>
    where
        F: Future<Output = Result<(), E>>,
    {
        if let Some(commit) = &self.commit {
            write(commit.clone()).await?;
        }
        Ok(self.happen())
    }

    fn happen(self) -> Vec<Effect> {
        let Work { ledger, operations, forgotten_operations, effects, .. } = self.work;
        self.coordinator.take_over(ledger, operations, &forgotten_operations);
        effects
    }
}
