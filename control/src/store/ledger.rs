//! The ledger of CPUs, memory and devices, and the journal of operations, as the store keeps them.
//!
//! One row per unit, instance and operation, each JSON with named fields; the counters are one row. A step of
//! [`tombolo_handover`] is one transaction.

use redb::{TableDefinition, WriteTransaction};
use serde::Serialize;
use tombolo_handover::coordinator::{Commit, Coordinator};
use tombolo_handover::ledger::{Entry, InstanceRow, Ledger, Meta, UnitChange};
use tombolo_handover::operation::Operation;

use super::{Store, StoreError, decode};

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("ledger_meta");
const UNITS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("ledger_units");
const INSTANCES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("ledger_instances");
const OPERATIONS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("operations");

/// The only key of the table of counters.
const COUNTERS: &str = "counters";

/// What is stored of ledger and journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredLedger {
    /// The counters.
    pub meta: Meta,
    /// Every unit.
    pub units: Vec<Entry>,
    /// Every instance it knows.
    pub instances: Vec<InstanceRow>,
    /// Every operation that is remembered.
    pub operations: Vec<Operation>,
}

/// A change of the ledger.
#[derive(Clone, Debug)]
pub(super) enum LedgerChange {
    /// In place of all that is there.
    Begin(Box<StoredLedger>),
    /// A step.
    Step(Box<Commit>),
}

impl StoredLedger {
    /// A ledger that was just discovered.
    pub fn discovered(ledger: &Ledger) -> Self {
        Self {
            meta: ledger.meta().clone(),
            units: ledger.entries().cloned().collect(),
            instances: ledger.instances().cloned().collect(),
            operations: Vec::new(),
        }
    }

    /// The coordinator that was stored. Units whose operation is not in the journal are quarantined; also says how many.
    ///
    /// # Errors
    /// What in the books does not add up.
    pub fn restore(mut self) -> Result<(Coordinator, usize), String> {
        let orphans = Coordinator::quarantine_orphans(&mut self.units, &self.operations);
        Coordinator::restore(self.meta, self.units, self.instances, self.operations)
            .map(|coordinator| (coordinator, orphans))
            .map_err(|violation| violation.to_string())
    }
}

impl Store {
    /// Ledger and journal; `None` before they were ever written.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if a row cannot be understood.
    pub fn ledger(&self) -> Result<Option<StoredLedger>, StoreError> {
        let found =
            self.read(META, |table| Ok(table.get(COUNTERS)?.map(|value| value.value().to_owned())))?;
        let Some(meta): Option<Vec<u8>> = found.flatten() else { return Ok(None) };
        Ok(Some(StoredLedger {
            meta: decode("ledger", COUNTERS, &meta)?,
            units: self.decode_all(UNITS, "unit of the ledger")?,
            instances: self.decode_all(INSTANCES, "instance of the ledger")?,
            operations: self.decode_all(OPERATIONS, "operation")?,
        }))
    }
}

impl LedgerChange {
    pub(super) fn apply(&self, transaction: &WriteTransaction) -> Result<(), redb::Error> {
        let mut meta = transaction.open_table(META)?;
        let mut units = transaction.open_table(UNITS)?;
        let mut instances = transaction.open_table(INSTANCES)?;
        let mut operations = transaction.open_table(OPERATIONS)?;
        let (counters, changes, rows, records) = match self {
            Self::Begin(begin) => {
                units.retain(|_, _| false)?;
                instances.retain(|_, _| false)?;
                operations.retain(|_, _| false)?;
                let changes = begin.units.iter().cloned().map(UnitChange::Put).collect();
                (&begin.meta, changes, &begin.instances, &begin.operations)
            }
            Self::Step(step) => (&step.meta, step.units.clone(), &step.instances, &step.operations),
        };
        meta.insert(COUNTERS, json(counters)?.as_slice())?;
        for change in changes {
            match change {
                UnitChange::Put(entry) => {
                    drop(units.insert(entry.unit.id.to_string().as_str(), json(&entry)?.as_slice())?);
                }
                UnitChange::Delete(unit) => drop(units.remove(unit.to_string().as_str())?),
            }
        }
        for row in rows {
            instances.insert(number(u64::from(row.id.0)).as_str(), json(row)?.as_slice())?;
        }
        for operation in records {
            operations.insert(number(operation.id.0).as_str(), json(operation)?.as_slice())?;
        }
        if let Self::Step(step) = self {
            for id in &step.forgotten_instances {
                instances.remove(number(u64::from(id.0)).as_str())?;
            }
            for id in &step.forgotten_operations {
                operations.remove(number(id.0).as_str())?;
            }
        }
        Ok(())
    }
}

/// A number as a key that sorts as numbers do.
fn number(number: u64) -> String {
    format!("{number:020}")
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, redb::Error> {
    serde_json::to_vec(value).map_err(|error| redb::Error::Io(std::io::Error::other(error)))
}
