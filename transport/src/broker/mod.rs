//! The broker: the one process of a kernel that owns its extent's heap and its doorbells, and brokers connections.
//!
//! [`Broker::start`] runs it as a task, in the agent of a spawned kernel and in the control daemon of the primary. Applications reach it through
//! a Unix socket ([`Endpoint::attach`](crate::Endpoint::attach)): it checks who they are and what [`Policy`] says, grants each side of a connection
//! its half in the pool, and passes bells on. Data then flow between the applications without it.
//!
//! ```text
//!  kernel A                                   kernel B
//!  app ── socket ── broker ══ control rings ══ broker ── socket ── app
//!   │   └─ bell ──▶   │  ──  doorbell line  ──   │   ◀─ eventfd ─┘  │
//!   └──────────────── rings of the connection ─────────────────────┘
//! ```
//!
//! # When somebody dies
//! - An application: its connections reset at once, its ports are free, its memory is given out again when nobody can write or read it any more.
//! - A broker: the connections of its applications reset at once ([`ResetCause::BrokerDied`](crate::ResetCause::BrokerDied)), those of their peers when the
//!   next broker starts, the kernel is fenced, or the peers look for themselves (100 ms). The next broker leaves alone what applications of the earlier one
//!   may still write (they hold locks on it), and gives it out when they let go.
//! - A kernel: nothing, until the primary says so with [`BrokerHandle::fence`]; then everywhere at once. A fenced kernel that was only frozen notices, drops its
//!   applications, and goes on in a new generation: its applications have to connect and listen again.
//!
//! The decisions are in a state machine without I/O (`core`), the rest is its shell.

mod config;
pub(crate) mod core;
pub(crate) mod door;
mod handle;
mod heap;
mod link;
pub(crate) mod locks;
mod policy;
pub(crate) mod protocol;
mod quota;
pub(crate) mod record;
mod shell;
mod spans;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::core::fuzz_core;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use link::fuzz_control;

pub use config::BrokerConfig;
pub use handle::{Broker, BrokerHandle, BrokerStatus, MemberStatus};
pub use policy::{KernelId, KernelMatch, ParsePolicyError, Policy, PolicyAction, PolicyRule, PortMatch};
pub use quota::PeerQuota;
pub(crate) use shell::Command;
