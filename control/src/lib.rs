//! The control plane of Tombolo: daemon `tombolod` and command `tombolo`.
//!
//! Read [`core`] for what is decided, [`daemon`] for how it is done, [`api`] for what can be asked, [`spawner`] and
//! [`keeper`] for how kernels come to be, [`topology`] for what the host is, [`store`] for what is remembered, [`cli`] for what people type.

pub mod api;
pub mod cli;
pub mod core;
pub mod daemon;
pub mod doctor;
pub mod keeper;
mod meminfo;
pub mod paths;
pub mod spawner;
pub mod store;
pub mod time;
pub mod topology;

pub use spawner::multikernel::shared::pool_holder;
pub use spawner::multikernel::warden::run as warden;
