//! The rows a ledger is stored as.

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

use super::Limits;
use crate::kernel::{Incarnation, InstanceId, Kernel};
use crate::owner::Owner;
use crate::unit::{Kind, Unit, UnitId};

/// One unit, its owner and its epoch.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, Schema)]
pub struct Entry {
    /// The unit.
    pub unit: Unit,
    /// Its owner.
    pub owner: Owner,
    /// Raised with every change of owner and everything asked about it.
    pub epoch: u64,
}

/// A change to one row of the table of units.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UnitChange {
    /// Write this row, in place of any earlier one of the same unit.
    Put(Entry),
    /// Delete the row: its memory is part of another unit now.
    Delete(UnitId),
}

/// What the ledger must know of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, Schema)]
pub struct InstanceRow {
    /// Its id.
    pub id: InstanceId,
    /// The name people know it by.
    pub name: String,
    /// Its present boot, or its last.
    pub incarnation: Incarnation,
    /// Whether that boot runs. False only once it is fenced: known to be dead, not merely silent.
    pub running: bool,
    /// What it may hold.
    pub limits: Limits,
    /// The CPU its kernel booted on, which it cannot give away.
    pub boot_cpu: Option<UnitId>,
}

/// What belongs to no single unit. One row.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, Schema)]
pub struct Meta {
    /// Raised with every commit but those that only note answers down.
    pub version: u64,
    /// The number of the next operation.
    pub next_op: u64,
    /// The number of the next lot.
    pub next_lot: u64,
    /// The unit in which memory moves, in bytes.
    pub granule_bytes: u64,
    /// What the host keeps for itself.
    pub host: Limits,
    /// How much of each kind was discovered. No move changes it: nothing is lost, nothing doubled.
    pub totals: Vec<(Kind, u64)>,
}

impl InstanceRow {
    /// The instance in its present boot.
    pub fn kernel(&self) -> Kernel {
        Kernel { instance: self.id, incarnation: self.incarnation }
    }
}
