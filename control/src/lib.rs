//! The control plane of Tombolo: daemon `tombolod` and command `tombolo`.

pub mod keeper;
pub mod spawner;
