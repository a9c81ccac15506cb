//! The broker: the one process of a kernel that owns its extent's heap and its doorbells, and brokers connections.
//!
//! Applications reach it through a Unix socket; data then flows between them without it.

mod config;
mod handle;
mod policy;

pub use config::BrokerConfig;
pub use handle::{Broker, BrokerHandle, BrokerStatus, MemberStatus};
pub use policy::{KernelId, KernelMatch, ParsePolicyError, Policy, PolicyAction, PolicyRule, PortMatch};
