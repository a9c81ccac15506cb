//! A store in memory with the shape of the daemon's: rows of JSON, written in whole transactions.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::coordinator::{Commit, Coordinator};
use crate::kernel::InstanceId;
use crate::ledger::{Ledger, UnitChange};
use crate::owner::OpId;
use crate::unit::UnitId;

/// Rows as they would be on disk. Nothing but these survives a crash of the daemon.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    meta: Vec<u8>,
    units: BTreeMap<UnitId, Vec<u8>>,
    instances: BTreeMap<InstanceId, Vec<u8>>,
    operations: BTreeMap<OpId, Vec<u8>>,
    /// Transactions refused from now on, as on a full disk.
    pub is_full: bool,
}

/// The store takes no writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store is full; nothing was written")]
pub struct StoreFull;

impl MemoryStore {
    /// The rows of a ledger that was just discovered.
    pub fn new(ledger: &Ledger) -> Self {
        Self {
            meta: encode(ledger.meta()),
            units: ledger.entries().map(|entry| (entry.unit.id, encode(entry))).collect(),
            instances: ledger.instances().map(|row| (row.id, encode(row))).collect(),
            ..Self::default()
        }
    }

    /// Writes one transaction.
    ///
    /// # Errors
    /// [`StoreFull`] while [`is_full`](Self::is_full) is set; then nothing is written.
    pub fn write(&mut self, commit: &Commit) -> Result<(), StoreFull> {
        if self.is_full {
            return Err(StoreFull);
        }
        self.meta = encode(&commit.meta);
        for change in &commit.units {
            match change {
                UnitChange::Put(entry) => drop(self.units.insert(entry.unit.id, encode(entry))),
                UnitChange::Delete(unit) => drop(self.units.remove(unit)),
            }
        }
        for row in &commit.instances {
            self.instances.insert(row.id, encode(row));
        }
        for id in &commit.forgotten_instances {
            self.instances.remove(id);
        }
        for operation in &commit.operations {
            self.operations.insert(operation.id, encode(operation));
        }
        for id in &commit.forgotten_operations {
            self.operations.remove(id);
        }
        Ok(())
    }

    /// Reads all of it back, as a new daemon does.
    ///
    /// # Errors
    /// In words, if it cannot be read or does not add up.
    pub fn restore(&self) -> Result<Coordinator, String> {
        let meta = decode(&self.meta)?;
        let restored =
            Coordinator::restore(meta, all(&self.units)?, all(&self.instances)?, all(&self.operations)?);
        restored.map_err(|violation| violation.to_string())
    }
}

fn all<K, T: DeserializeOwned>(rows: &BTreeMap<K, Vec<u8>>) -> Result<Vec<T>, String> {
    rows.values().map(|row| decode(row)).collect()
}

/// JSON of a value of ours. None holds a map with keys other than strings, the one thing JSON cannot express.
fn encode(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

fn decode<T: DeserializeOwned>(row: &[u8]) -> Result<T, String> {
    serde_json::from_slice(row).map_err(|error| error.to_string())
}
