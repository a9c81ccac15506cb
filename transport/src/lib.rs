//! vsock-shaped sockets between kernels: shared memory, AF_VSOCK, or a hybrid Unix socket, behind one API.
//!
//! An [`Endpoint`] is a process's attachment. It [connects](Endpoint::connect) and [listens](Endpoint::listen) at [addresses](Addr) made of a
//! kernel ([`Cid`]) and a [`Port`], as in vsock(7). A connection is a [`Stream`] of bytes, or [`Messages`] that arrive whole.
//!
//! ```no_run
//! use tombolo_transport::{Endpoint, ListenOptions, Port};
//!
//! # async fn example() -> tombolo_transport::Result<()> {
//! // In one kernel ...
//! let endpoint = Endpoint::attach("/run/tombolo/broker.sock").await?;
//! let mut listener = endpoint.listen_messages(Port::ANY, ListenOptions::named("kv")).await?;
//! let (mut messages, caller) = listener.accept().await?;
//! while let Some(message) = messages.recv().await? {
//!     println!("{caller} sent {} bytes", message.len());
//! }
//!
//! // ... and in another.
//! let endpoint = Endpoint::attach("/run/tombolo/broker.sock").await?;
//! let addr = endpoint.resolve("db/kv").await?;
//! let mut messages = endpoint.connect_messages(addr).await?;
//! messages.send(b"hello").await?;
//! # Ok(())
//! # }
//! ```
//!
//! # The same everywhere
//! Whatever carries it: nobody listening is [`Error::Refused`], a peer that died is [`Error::Reset`] and never silence, a full peer makes senders
//! wait, each direction ends by itself, no future loses data when it is dropped. One suite (the feature `conformance`) holds every backend to it.
//!
//! # One poor socket
//! Where two kernels have nothing but a socket without flow control that may lose bytes, a [`paced`] link makes of it a carrier like the others.
//!
//! Applications reach kernels behind such a link as any other: see [`relay`].
//!
//! # Shared memory
//! Kernels that share a [`pool`] talk at the speed of memory. Each runs one [`Broker`], which makes connections; the data then
//! flow from process to process through [`ring`]s. Every byte has one writer, and nothing a peer writes is believed unchecked: see
//! `docs/pool-format.md` for the bytes, [`ring`] for the protocol, [`mem`] for the only `unsafe` code.

pub mod addr;
mod bells;
pub mod broker;
#[cfg(feature = "conformance")]
pub mod conformance;
mod doorbell;
pub mod endpoint;
pub mod error;
mod fds;
mod found;
pub mod framed;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod hybrid;
pub mod incarnation;
pub mod listener;
pub mod loan;
pub mod mem;
pub mod memory;
pub mod messages;
pub mod options;
pub mod paced;
pub mod pool;
mod ports;
pub mod relay;
pub mod rhythm;
pub mod ring;
mod shm;
mod sockets;
pub mod stream;
pub mod unix_socket;
pub mod vsock;

pub use addr::{Addr, Cid, Port};
pub use broker::{Broker, BrokerConfig, BrokerHandle};
pub use endpoint::Endpoint;
pub use error::{Error, ResetCause, Result};
pub use incarnation::Incarnation;
pub use listener::{Listener, MessageListener};
pub use loan::{Loan, MessageMut, MessageRef, Received};
pub use messages::{MessageReceiver, MessageSender, Messages, TryRead, TryRecv, TryRecvApart};
pub use options::{AttachOptions, ConnectOptions, ListenOptions, Sizes};
pub use pool::{Member, Pool};
pub use stream::{Stream, StreamReader, StreamWriter};
