//! The broker: the one process of a kernel that owns its extent's heap and its doorbells, and brokers connections.
//!
//! Applications reach it through a Unix socket; data then flows between them without it.

mod config;
pub(crate) mod core;
mod handle;
mod heap;
mod link;
mod locks;
mod policy;
pub(crate) mod protocol;
pub(crate) mod record;
mod shell;

pub use config::BrokerConfig;
pub use handle::{Broker, BrokerHandle, BrokerStatus, MemberStatus};
pub use policy::{KernelId, KernelMatch, ParsePolicyError, Policy, PolicyAction, PolicyRule, PortMatch};
