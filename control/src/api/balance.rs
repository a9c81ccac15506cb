//! `tombolo.control.Balance`: CPUs move by themselves between running kernels, to where programs wait for one.

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};
use tombolo_handover::Bounds;
use tombolo_rpc::Ctx;

use super::ControlError;
use crate::core::balance::BalanceSettings;

/// Balancing of CPUs.
#[tombolo_rpc::service(name = "tombolo.control.Balance")]
pub trait Balance {
    /// How it stands.
    async fn status(&self, cx: &Ctx) -> Result<BalanceStatus, ControlError>;
    /// Asks every member for a second how it is, and says what would be moved if it stayed so; by these settings, or else those that
    /// are in force, or else the defaults. Changes nothing.
    async fn rehearse(
        &self,
        cx: &Ctx,
        settings: Option<BalanceSettings>,
    ) -> Result<BalanceStatus, ControlError>;
    /// Turns it on by these settings, or off. After this has returned, nothing is begun any more by former ones.
    async fn set(&self, cx: &Ctx, settings: Option<BalanceSettings>) -> Result<(), ControlError>;
}

/// How balancing stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Schema)]
pub struct BalanceStatus {
    /// What it goes by; `None` if it is off.
    pub settings: Option<BalanceSettings>,
    /// Every instance that is to take part.
    pub members: Vec<BalanceMember>,
    /// CPUs that are free.
    pub free_cpus: u64,
    /// What came of the last look; `None` if there was none.
    pub decision: Option<Decision>,
    /// The last move that this daemon began by itself.
    pub last_move: Option<BalanceMove>,
}

/// An instance that is to take part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Schema)]
pub struct BalanceMember {
    /// Its name.
    pub name: String,
    /// CPUs it has.
    pub cpus: u64,
    /// The fewest it is left with, what it is meant to have, the most it can be given; `None` if it takes no part now.
    pub limits: Option<Bounds>,
    /// Share of the last 10 s in which a program waited for a CPU; `None` if that is not known.
    pub stall_percent: Option<f64>,
    /// Share of its CPU time that was not idle since the look before.
    pub busy_percent: Option<f64>,
    /// For how long it still neither gives nor gets; 0 if it does not rest.
    pub rests_ms: u64,
    /// For how long it has been waiting for a CPU.
    pub wants_ms: Option<u64>,
    /// For how long it could have done without one.
    pub gives_ms: Option<u64>,
    /// Why it does not take part now.
    pub problem: Option<String>,
}

/// What came of a look.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// Nobody has waited for a CPU for long enough.
    NobodyWaits,
    /// Somebody waits, and nobody can give.
    NobodyGives,
    /// A move that was begun earlier is under way; there is one at a time.
    Waits {
        /// Its number.
        operation: u64,
    },
    /// One CPU is to move.
    Move {
        /// From whom: an instance, or `pool`.
        from: String,
        /// To whom.
        to: String,
        /// Why.
        why: String,
    },
}

/// A move that balancing began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct BalanceMove {
    /// When, in nanoseconds since 1970.
    pub at_unix_ns: u64,
    /// From whom: an instance, or `pool`.
    pub from: String,
    /// To whom.
    pub to: String,
    /// Why.
    pub why: String,
    /// Its number; `None` if it was refused at once.
    pub operation: Option<u64>,
    /// How it ended; `None` while it is under way.
    pub outcome: Option<MoveOutcome>,
}

/// How a move of balancing ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum MoveOutcome {
    /// It went there.
    Moved,
    /// It did not, for this reason.
    NotMoved(String),
}
