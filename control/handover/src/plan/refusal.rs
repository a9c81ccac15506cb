//! Why a request is refused, before anything is stored or asked.

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

use crate::kernel::Party;
use crate::owner::{OpId, Owner};
use crate::unit::{Kind, PciAddress, UnitId};

/// Why a request is refused. Nothing has been changed and nobody has been asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the fields are named after what they hold, and the messages say it in words")]
pub enum Refusal {
    #[error("the idempotency key has {bytes} bytes; it needs 1 to {max}")]
    BadKey { bytes: u64, max: u64 },
    #[error("the key `{key}` belongs to {operation}, which was asked for something else; choose a new key")]
    KeyReused { key: String, operation: OpId },
    #[error("the plan was made on version {expected} of the ledger, which is at {found}; plan anew")]
    StaleVersion { expected: u64, found: u64 },
    #[error("there is no instance `{name}`")]
    NoSuchInstance { name: String },
    #[error("`{name}` does not run; start it first, or change what it starts with")]
    NotRunning { name: String },
    #[error("giver and receiver are both `{name}`")]
    SameParty { name: String },
    #[error("there is no {unit} on this machine; `tombolo pool` lists what there is")]
    NoSuchUnit { unit: UnitId },
    #[error("{unit} is named twice")]
    NamedTwice { unit: UnitId },
    #[error("{unit} belongs to `{owner}`, not to `{expected}`")]
    NotOwned { unit: UnitId, owner: String, expected: String },
    #[error("{unit} is being moved by {operation}; wait for it to end, or call it off")]
    Busy { unit: UnitId, operation: OpId },
    #[error("{unit} is in {owner}")]
    InQuarantine { unit: UnitId, owner: Owner },
    #[error("{unit} is the CPU that `{name}` booted on; its kernel cannot run without it")]
    BootCpu { unit: UnitId, name: String },
    #[error("`{name}` has {has} CPU and runs on it; a running kernel keeps one")]
    LastCpu { name: String, has: u64 },
    #[error(
        "`{name}` takes no part in moves of {kind}: it can neither be given any nor lose any while it runs"
    )]
    TakesNoPart { name: String, kind: Kind },
    #[error("`{name}` has {has} {kind} and must keep {floor}; {wanted} cannot leave")]
    BelowMinimum { name: String, kind: Kind, has: u64, floor: u64, wanted: u64 },
    #[error("`{name}` has or is about to get {has} {kind} and may have {ceiling}; {wanted} more cannot come")]
    AboveMaximum { name: String, kind: Kind, has: u64, ceiling: u64, wanted: u64 },
    #[error(
        "`{name}` can give {available} {kind}, {wanted} are wanted; {held_back} more are in transit, quarantined or tied to it"
    )]
    NotEnough { name: String, kind: Kind, wanted: u64, available: u64, held_back: u64 },
    #[error("nothing is asked for: the size or count is 0")]
    Nothing,
    #[error(
        "{bytes} bytes are no whole number of granules of {granule_bytes} bytes; the nearest sizes are {below} and {above}"
    )]
    OddSize { bytes: u64, granule_bytes: u64, below: u64, above: u64 },
    #[error(
        "`{name}` holds regions that leave whole or not at all, and no set of them is {wanted} granules; \
         the nearest sizes are {below} and {above}"
    )]
    CannotCut { name: String, wanted: u64, below: u64, above: u64 },
    #[error("{operation} moves memory at `{name}`; two at once could not be told apart, wait for it to end")]
    MemoryBusy { name: String, operation: OpId },
    #[error(
        "{device} cannot be reset between owners: it could carry data or transfers from one to the other; `--allow-no-reset` moves it all the same"
    )]
    CannotReset { device: PciAddress },
    #[error("{device} shares an IOMMU group with {}, which the giver does not have; give it those first", list(.others))]
    SharedGroup { device: PciAddress, others: Vec<UnitId> },
}

/// A limit that a move would overstep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LimitReached {
    /// Whose.
    pub(crate) of: Party,
    pub(crate) which: Which,
    pub(crate) kind: Kind,
    pub(crate) has: u64,
    pub(crate) limit: u64,
    pub(crate) wanted: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    Floor,
    Ceiling,
}

impl LimitReached {
    /// The same for a caller, who knows the holder by this name.
    pub(crate) fn refusal(self, name: String) -> Refusal {
        let Self { kind, has, limit, wanted, .. } = self;
        match self.which {
            Which::Floor if kind == Kind::Cpu && limit == 1 && has <= 1 => Refusal::LastCpu { name, has },
            Which::Floor => Refusal::BelowMinimum { name, kind, has, floor: limit, wanted },
            Which::Ceiling => Refusal::AboveMaximum { name, kind, has, ceiling: limit, wanted },
        }
    }
}

fn list(units: &[UnitId]) -> String {
    units.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
