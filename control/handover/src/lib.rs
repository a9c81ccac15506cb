//! Who owns which CPU, memory and device of a machine with several kernels, and the operation that moves them between kernels
//! without losing or doubling one, whoever dies when.
//!
//! Everything here decides and nothing here acts: no I/O, no clock, no threads. The same code runs in the daemon, in the model
//! checker (`tests/model.rs`) and in the simulator ([`sim`]).
//!
//! # Reading order
//! [`mod@unit`], [`owner`], [`ledger`]: what there is and whose it is. [`observe`]: what witnesses say and what follows.
//! [`operation`]: one hand-over. [`coordinator`]: steps, and how the journal comes before the effect. [`request`], [`plan`]: from a wish
//! to units. [`balance`]: when to wish. [`sim`]: proof by misfortune.
//!
//! # Invariants
//! 1. Each unit has exactly one owner, and amounts are conserved ([`ledger::Ledger::check`]).
//! 2. A unit is granted only after it was *seen* detached from its former owner.
//! 3. A unit at rest in the ledger is where the ledger says; what is not proven is in transit or in quarantine.
//! 4. Nothing is done before the journal says that it may be done ([`coordinator::Step`]).
//! 5. Every operation ends.

#![forbid(unsafe_code)]

pub mod balance;
#[cfg(test)]
mod bench;
pub mod coordinator;
pub mod kernel;
pub mod ledger;
pub mod lots;
pub mod observe;
pub mod operation;
pub mod owner;
pub mod plan;
pub mod request;
pub mod sim;
pub mod unit;

pub use coordinator::{AdminError, Commit, Coordinator, Step, Submitted};
pub use kernel::{Incarnation, InstanceId, Kernel, Party};
pub use ledger::{Bounds, Entry, InstanceRow, Ledger, Limits, Meta};
pub use operation::{Effect, Input, Operation, Phase, Rules};
pub use owner::{OpId, Owner};
pub use plan::{Plan, Refusal};
pub use request::{Request, Side, What};
pub use unit::{Kind, PciAddress, Unit, UnitId};
