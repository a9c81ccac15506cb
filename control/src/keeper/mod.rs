//! The keeper: one small process per kernel, which outlives the daemon.

mod job;

pub use job::{Exit, ExitHow};
