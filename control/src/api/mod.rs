//! What `tombolo` and other programs on this host ask of `tombolod`, as `tombolo-rpc` services on its Unix socket.
//!
//! | service | for |
//! |---|---|
//! | `tombolo.control.Fleet` | instances: create, start, stop, look at, wait for |
//! | `tombolo.control.Host` | the daemon and what this host can run |
//! | `tombolo.control.Journal` | events |
//! | `tombolo.control.Rules` | who may connect to whom |
//! | `tombolo.control.Handover` | who owns what, and moving it between running kernels |
//! | `tombolo.control.Balance` | CPUs that move by themselves |
//! | `tombolo.control.Beside` | what Multikernel Linux sets aside for other kernels |
//! | `tombolo.control.Inside` | what the agents offer, passed on to one instance |

pub mod balance;
pub mod beside;
pub mod error;
pub mod fleet;
pub mod handover;
pub mod host;
pub mod inside;
pub mod journal;
pub mod measure;
pub mod role;
pub mod rules;

pub use error::{ControlError, ExitKind};
pub use fleet::{Condition, CreateRequest, InstanceDetail, InstanceView, LastWord, LinkKind};
pub use role::Role;
