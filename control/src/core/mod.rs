//! Decisions without I/O: every module here is a pure function of its inputs, with time as an argument.

pub mod backoff;
pub mod balance;
pub mod cpus;
pub mod event;
pub mod fencing;
pub mod health;
pub mod layer;
pub mod lifecycle;
pub mod name;
pub mod phi;
pub mod policy;
pub mod spec;

pub use event::{Event, EventKind};
pub use lifecycle::{Desired, Effect, Input, Lifecycle, State};
pub use name::InstanceName;
pub use spec::InstanceSpec;
