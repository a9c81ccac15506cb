//! The control plane of Tombolo: daemon `tombolod` and command `tombolo`.

pub mod core;
pub mod keeper;
pub mod spawner;
pub mod store;
pub mod time;
