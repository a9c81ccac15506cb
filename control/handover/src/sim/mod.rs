//! A whole machine in memory, in which everything that can go wrong does: seeded, with its own clock, replayed by its seed.
//!
//! The coordinator and its store are the real ones. The kernels, agents and the spawner are a [`World`], in which units really are
//! somewhere; after every step it is compared with what the ledger says. The model checker drives the same world.

mod machine;
mod rng;
mod run;
mod store;
mod world;

pub use rng::Rng;
pub use run::{Config, Failure, Report, run};

pub use store::{MemoryStore, StoreFull};
pub use world::{Disagreement, Luck, Spawner, World};
