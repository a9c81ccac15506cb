//! How far an operation has come.

use std::fmt;

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

/// What an operation has *achieved*. It is stored before anything is done to achieve the next, so the stored phase alone tells a
/// daemon that was killed in between where to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The plan is accepted and stored. Under way: the agents of both kernels vote.
    Planned,
    /// The agents agree. Under way: the applications' check hooks vote.
    Checked,
    /// The ledger says the units are in transit. Under way: both agents take note of epoch and lease; a look whether each unit
    /// is where the ledger had it.
    Reserved,
    /// Reserved on both sides. Under way: `pre` hooks, then the donor drains unit by unit.
    Draining,
    /// Every unit that goes on is seen drained. Under way: both agents confirm a last time.
    Offlined,
    /// **Point of no return**: it is decided and stored that the donor loses the units. Under way: the spawner detaches them.
    Revoked,
    /// Every unit that goes on is seen detached. Under way: the spawner attaches, the receiver's agent brings into use.
    Granting,
    /// Every unit is settled, at least one with the receiver. Under way: `post` hooks.
    Onlined,
    /// It will not happen. Under way: what was drained goes back into use; `undo` hooks.
    Undoing,
    /// Ended: all units are with the receiver and in use.
    Committed,
    /// Ended before the point of no return: no unit went to the receiver.
    Aborted,
    /// Ended after it: k of n units are with the receiver; where the others are is known.
    Partial,
    /// Ended with units whose whereabouts could not be proven; looking again may resolve it.
    Quarantined,
    /// Ended with units that only a person can place.
    NeedsOperator,
}

impl Phase {
    /// Whether it has ended.
    pub fn is_terminal(self) -> bool {
        use Phase::*;
        matches!(self, Committed | Aborted | Partial | Quarantined | NeedsOperator)
    }

    /// Whether it can still be called off.
    pub fn is_before_point_of_no_return(self) -> bool {
        self < Self::Revoked
    }

    /// Whether the ledger has its units in transit.
    pub fn holds_units(self) -> bool {
        self >= Self::Reserved && !self.is_terminal()
    }

    /// Whether it may ever go from here to `next` in one step.
    pub fn may_become(self, next: Self) -> bool {
        use Phase::*;
        match self {
            Planned => matches!(next, Checked | Aborted),
            Checked => matches!(next, Reserved | Aborted),
            Reserved => matches!(next, Draining | Undoing),
            Draining => matches!(next, Offlined | Undoing),
            Offlined => matches!(next, Revoked | Undoing),
            Revoked => matches!(next, Granting | Onlined | Partial | Quarantined | NeedsOperator),
            Granting => matches!(next, Onlined | Partial | Quarantined | NeedsOperator),
            Onlined => matches!(next, Committed | Partial | Quarantined | NeedsOperator),
            Undoing => matches!(next, Aborted | Quarantined | NeedsOperator),
            Committed | Aborted | Partial | Quarantined | NeedsOperator => false,
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Planned => "planned",
            Self::Checked => "checked",
            Self::Reserved => "reserved",
            Self::Draining => "draining",
            Self::Offlined => "offlined",
            Self::Revoked => "revoked",
            Self::Granting => "granting",
            Self::Onlined => "onlined",
            Self::Undoing => "undoing",
            Self::Committed => "committed",
            Self::Aborted => "aborted",
            Self::Partial => "partial",
            Self::Quarantined => "quarantined",
            Self::NeedsOperator => "needs-operator",
        })
    }
}
