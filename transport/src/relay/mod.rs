//! Connections of applications to and from kernels that share no memory: relayed, hop by hop, by agents and the primary's `tombolod`.
//!
//! ```text
//!  kernel "web"                     primary                      kernel "db"
//!  app ══ socket ══ agent ── paced link ── tombolod ── paced link ── agent ══ socket ══ app
//!                                             ║  └───── shared memory ── agent ══ socket ══ app   kernel "log"
//!                                             ╚ socket ══ app
//! ```
//! An application attaches to the broker of its kernel as anywhere ([`Endpoint::attach`](crate::Endpoint::attach)). Where there is no pool that broker is a
//! [`RelayedBroker`], and says so. A connection that does not go through a pool reaches the application as one end of a pair of Unix sockets;
//! whoever has the other end carries its bytes to the next kernel in a stream to [`Port::RELAY`](crate::Port::RELAY), which begins with who calls whom and
//! whether the call is taken.
//!
//! - **An end is said**, on the socket as on the stream. Whatever breaks off without that, because an application, an agent, a kernel or
//!   `tombolod` has died, is a reset at the other side, after what had come.
//! - **Slow readers** hold up their own connection only: each has its own socket, stream and bounded buffers.
//! - **Who calls** is told by the primary, which knows from where a stream came. The broker of the kernel that is called asks its
//!   policy, as with every connection. Other kernels believe nobody but the primary, whose broker lets only privileged programs
//!   call that port.
//!
//! `docs/relay.md` has the bytes.

mod broker;
mod endpoint;
mod listeners;
mod pump;
mod request;
mod route;
mod socket;
#[cfg(any(test, feature = "conformance"))]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use broker::{RelayedBroker, RelayedBrokerConfig};
pub use route::{Directory, RelayHandle};

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use request::fuzz_requests;

pub(crate) use endpoint::{RelayEndpoint, RelayListener, RelayedConn};
pub(crate) use listeners::Caller;
pub(crate) use request::Refusal;
pub(crate) use route::Answered;
pub(crate) use socket::RelaySocket;
