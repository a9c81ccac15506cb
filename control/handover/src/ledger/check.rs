//! What must be true of a ledger at all times.

use super::Ledger;
use crate::owner::Owner;
use crate::unit::{Kind, Traits, UnitId};

/// The books do not add up. In running code this is a bug; in a stored ledger it is damage, and nothing may be moved before it
/// is repaired.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Two rows for one unit.
    #[error("{unit} is listed twice")]
    Twice {
        /// Which.
        unit: UnitId,
    },
    /// A row under the name of another.
    #[error("the row of {key} describes {unit}")]
    Misfiled {
        /// Where it stood.
        key: UnitId,
        /// What it says.
        unit: UnitId,
    },
    /// A unit whose traits are not of its kind, or memory of size 0.
    #[error("{unit} is described as something it cannot be")]
    Malformed {
        /// Which.
        unit: UnitId,
    },
    /// Two ranges share memory.
    #[error("{first} and {second} overlap")]
    Overlap {
        /// The lower one.
        first: UnitId,
        /// The one that begins inside it.
        second: UnitId,
    },
    /// Units were lost, or appeared.
    #[error("there are {found} {kind} where {expected} were discovered")]
    NotConserved {
        /// Of which kind.
        kind: Kind,
        /// How much there was at discovery.
        expected: u64,
        /// How much is accounted for.
        found: u64,
    },
    /// The number of a lot has not been handed out yet.
    #[error("{unit} has a number that was never given out")]
    FromTheFuture {
        /// Which.
        unit: UnitId,
    },
    /// An owner of whom there is no record.
    #[error("{unit} belongs to {owner}, of which there is no record")]
    UnknownOwner {
        /// Which unit.
        unit: UnitId,
        /// Whose it is said to be.
        owner: Owner,
    },
    /// A unit in transit is not among the units of its operation, or one of an operation's units is not in transit.
    #[error("{unit} belongs to {owner}, but the operation's record disagrees")]
    OperationDisagrees {
        /// Which unit.
        unit: UnitId,
        /// Whose it is said to be.
        owner: Owner,
    },
}

impl Ledger {
    /// Whether the books add up: one owner each (by construction of the table), nothing lost, nothing doubled.
    ///
    /// # Errors
    /// The first [`Violation`] found.
    pub fn check(&self) -> Result<(), Violation> {
        let mut range_end: Option<(UnitId, u64)> = None;
        for (&key, entry) in &self.units {
            let id = entry.unit.id;
            if key != id {
                return Err(Violation::Misfiled { key, unit: id });
            }
            let fits = match (id, entry.unit.traits) {
                (UnitId::Cpu(_), Traits::Cpu { .. })
                | (UnitId::Device(_), Traits::Device { .. })
                | (UnitId::LlcWay { .. }, Traits::LlcWay) => true,
                (UnitId::Range(first), Traits::Memory { granules }) => {
                    granules > 0 && first.checked_add(granules).is_some()
                }
                (UnitId::Lot(_), Traits::Memory { granules }) => granules > 0,
                _ => false,
            };
            if !fits {
                return Err(Violation::Malformed { unit: id });
            }
            // The table is in order of unit, so ranges come one after another by address.
            if let UnitId::Range(first) = id {
                if let Some((below, end)) = range_end
                    && first < end
                {
                    return Err(Violation::Overlap { first: below, second: id });
                }
                range_end = Some((id, first + entry.unit.size()));
            }
            if matches!(id, UnitId::Lot(number) if number >= self.meta.next_lot) {
                return Err(Violation::FromTheFuture { unit: id });
            }
            if let Owner::Instance(kernel) = &entry.owner
                && !self.instances.contains_key(&kernel.instance)
            {
                return Err(Violation::UnknownOwner { unit: id, owner: entry.owner.clone() });
            }
        }
        for &(kind, expected) in &self.meta.totals {
            let found = self.total(kind);
            if found != expected {
                return Err(Violation::NotConserved { kind, expected, found });
            }
        }
        Ok(())
    }
}
