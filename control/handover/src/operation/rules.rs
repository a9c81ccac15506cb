//! What an operation goes by: how a spawner wants units drained, how long things may take, how often to try.

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

use super::Phase;
use crate::observe::Inside;

/// What *drained* means. It belongs to the spawner and to the kind of unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum DrainRule {
    /// The donor takes it offline (QEMU, user-mode Linux; memory and devices everywhere).
    Offline,
    /// The donor empties it and leaves it **online** (CPUs on Multikernel Linux: its kernel parks only a CPU that departs; one
    /// that is offline already would sleep on in the donor's image while the host is told it was removed).
    LeaveOnline,
}

/// What an operation goes by. Stored with it, so that a new daemon finishes it by the rules it was begun with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, Schema)]
pub struct Rules {
    /// What *drained* means here.
    pub drain: DrainRule,
    /// How often a command is given for one unit in one step. Default 3.
    pub tries_max: u8,
    /// How often in a row to look again at a unit that cannot be placed, before waiting for the deadline. Default 4.
    pub looks_max: u8,
    /// After the point of no return and when undoing: how many deadlines may pass before what is not proven is quarantined.
    /// Default 3.
    pub patience: u8,
    /// How long to wait before looking again, in ms. Default 100.
    pub look_again_ms: u64,
    /// How long an agent keeps a unit drained or a place for it without hearing of us, in ms. Renewed by all that is asked of
    /// it. When it runs out the donor's agent puts the unit back into use by itself. Default 30 000.
    pub lease_ms: u64,
    /// Time for each phase.
    pub deadlines: Deadlines,
}

/// Time for each phase, in ms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, Schema)]
pub struct Deadlines {
    /// For the votes of agents, and again for those of hooks. Default 10 000.
    pub check_ms: u64,
    /// For both agents to take note. Default 5 000.
    pub reserve_ms: u64,
    /// For hooks and draining. Default 60 000.
    pub drain_ms: u64,
    /// For the last confirmation. Default 5 000.
    pub confirm_ms: u64,
    /// For detaching: once, and again for each round of patience. Default 30 000: Multikernel Linux answers within 10 s or not at all.
    pub revoke_ms: u64,
    /// For attaching and bringing into use: once, and again for each round of patience. Default 60 000: under emulation on a
    /// loaded host bringing a CPU online has been seen to take 23 s.
    pub grant_ms: u64,
    /// For `post` hooks; late ones are a warning. Default 10 000.
    pub post_ms: u64,
    /// For undoing: once, and again for each round of patience. Default 30 000.
    pub undo_ms: u64,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            check_ms: 10_000,
            reserve_ms: 5_000,
            drain_ms: 60_000,
            confirm_ms: 5_000,
            revoke_ms: 30_000,
            grant_ms: 60_000,
            post_ms: 10_000,
            undo_ms: 30_000,
        }
    }
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            drain: DrainRule::Offline,
            tries_max: 3,
            looks_max: 4,
            patience: 3,
            look_again_ms: 100,
            lease_ms: 30_000,
            deadlines: Deadlines::default(),
        }
    }
}

impl DrainRule {
    /// Whether a unit that looks like this from inside the donor is drained.
    pub fn is_drained(self, inside: Inside) -> bool {
        match self {
            Self::Offline => inside == Inside::Offline,
            Self::LeaveOnline => inside == Inside::Emptied,
        }
    }
}

impl Rules {
    /// The time a phase has, in ms; `None` for one that is an end.
    pub fn deadline_ms(&self, phase: Phase) -> Option<u64> {
        let times = &self.deadlines;
        match phase {
            Phase::Planned | Phase::Checked => Some(times.check_ms),
            Phase::Reserved => Some(times.reserve_ms),
            Phase::Draining => Some(times.drain_ms),
            Phase::Offlined => Some(times.confirm_ms),
            Phase::Revoked => Some(times.revoke_ms),
            Phase::Granting => Some(times.grant_ms),
            Phase::Onlined => Some(times.post_ms),
            Phase::Undoing => Some(times.undo_ms),
            Phase::Committed
            | Phase::Aborted
            | Phase::Partial
            | Phase::Quarantined
            | Phase::NeedsOperator => None,
        }
    }
}
