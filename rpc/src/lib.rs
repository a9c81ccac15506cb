//! Typed calls and streams between kernels.
//!
//! A service is a trait. [`macro@service`] writes its server, for a [`Router`], and its client, for a [`Link`]. A link is
//! symmetric: both ends serve and both ends call, over one connection of
//! [`Messages`](tombolo_transport::Messages) (shared memory, AF_VSOCK, or any byte stream).
//!
//! ```
//! use serde::{Deserialize, Serialize};
//! use tombolo_rpc::{Blob, Ctx, Link, LinkConfig, Receiver, Router, Schema, Sender};
//! use tombolo_transport::{Addr, Cid, Messages, Port};
//!
//! #[derive(Debug, Serialize, Deserialize, Schema, thiserror::Error)]
//! pub enum KvError {
//!     #[error("no such store: {0}")]
//!     NoSuchStore(String),
//! }
//!
//! #[tombolo_rpc::service(name = "tombolo.demo.Kv")]
//! pub trait Kv {
//!     /// Unary: one request, one answer.
//!     async fn read(&self, cx: &Ctx, key: String) -> Result<Option<Blob>, KvError>;
//!     /// The server sends items, then answers with their number.
//!     async fn scan(&self, cx: &Ctx, prefix: String, out: Sender<String>) -> Result<u64, KvError>;
//!     /// The client sends items.
//!     async fn load(&self, cx: &Ctx, store: String, input: Receiver<Blob>) -> Result<u64, KvError>;
//! }
//!
//! struct Store;
//!
//! impl Kv for Store {
//!     async fn read(&self, _: &Ctx, key: String) -> Result<Option<Blob>, KvError> {
//!         Ok((key == "k").then(|| Blob::from("value")))
//!     }
//!
//!     async fn scan(&self, _: &Ctx, prefix: String, out: Sender<String>) -> Result<u64, KvError> {
//!         for i in 0..3 {
//!             // An error says that the caller wants no more.
//!             if out.send(format!("{prefix}{i}")).await.is_err() {
//!                 return Ok(i);
//!             }
//!         }
//!         Ok(3)
//!     }
//!
//!     async fn load(&self, _: &Ctx, _: String, mut input: Receiver<Blob>) -> Result<u64, KvError> {
//!         let mut bytes = 0;
//!         while let Ok(Some(item)) = input.recv().await {
//!             bytes += item.len() as u64;
//!         }
//!         Ok(bytes)
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Any byte stream will do; between kernels it is `endpoint.connect_messages(addr)`.
//! let (a, b) = tokio::io::duplex(64 * 1024);
//! let addr = Addr::new(Cid::LOCAL, Port(1));
//! let (a, b) = (Messages::framed(a, addr, addr, 1 << 20), Messages::framed(b, addr, addr, 1 << 20));
//!
//! let router = Router::new().service(KvServer::new(Store));
//! let (client, server) = tokio::join!(
//!     Link::connect(a, LinkConfig::new("client"), Router::new()),
//!     Link::accept(b, LinkConfig::new("server"), router),
//! );
//! let (client, _server) = (client?, server?);
//!
//! let kv = KvClient::new(client);
//! assert_eq!(kv.read("k".into()).await?, Some(Blob::from("value")));
//!
//! let (call, mut items) = kv.scan("p".into());
//! while let Some(item) = items.recv().await? {
//!     assert!(item.starts_with('p'));
//! }
//! assert_eq!(call.await?, 3);
//!
//! let (call, items) = kv.load("s".into());
//! items.send(Blob::from("12345")).await?;
//! drop(items);
//! assert_eq!(call.deadline(std::time::Duration::from_secs(1)).await?, 5);
//! # Ok(())
//! # }
//! ```
//!
//! # What holds
//! - **Deadlines** travel with the call, as time left, and both ends enforce them. Unary calls have one of 10 s unless they
//!   say otherwise ([`Call::deadline`], [`Call::no_deadline`]).
//! - **Dropping** a [`Call`] cancels it: its handler is dropped at the other end. The link is not affected.
//! - **Errors** are the application's own, or a [`Failure`] on the way, and each says whether the handler may have run
//!   ([`CallError::outcome`]) and whether to try again ([`CallError::retryable`]).
//! - **Streams** have credit in bytes: one that is not read stalls alone. Long messages travel in fragments that take
//!   turns, behind small calls.
//! - **Types** of both ends are compared at every call, by a hash of their shape. A method whose types have changed is
//!   refused, never misread; change by adding methods ([`schema`]).
//! - **Identity**: both ends prove a per-boot secret to each other ([`Auth`]), bound to this link, this direction and these
//!   two boots.
//! - **Retries**: a call that carries an idempotency key is run once by a server that says [`Router::replay`], however
//!   often it is sent.
//! - **Memory**: what a peer can make this end hold is bounded by [`LinkConfig`]: parts of messages
//!   ([`LinkConfig::assembly_bytes_max`]), unread items (a window per call), answers that are not read (one per call).
//! - **Handlers** that panic fail their call, not the link. A unary handler takes its first step on the link's own task;
//!   it must not block or compute for long before its first `.await` (or see [`LinkConfig::inline_handlers`]).
//!
//! # Where to look
//! [`connection`] is the protocol without I/O; [`busy`] calls and serves without a runtime; [`health`] lets a program say how it
//! is; `docs/rpc-wire.md` is the format.

extern crate self as tombolo_rpc;

mod blob;
pub mod busy;
mod clock;
pub mod connection;
mod encoded;
mod error;
mod link;
pub mod schema;
mod scratch;
mod service;
mod sync;
mod wire;

pub use blob::Blob;
pub use busy::{BusyClient, BusyServer, FramePipe};
pub use connection::PeerInfo;
pub use error::{CallError, Failure, LinkError, Never, Outcome};
pub use link::{Auth, Call, Chooser, Link, LinkConfig, Receiver, Sender};
pub use postcard_schema::Schema;
pub use service::{
    CallInfo, Cancellation, Ctx, HandlerFuture, MethodCounters, Reject, ReplayLimits, Reply, Router, Service,
    health, reflection,
};
pub use tombolo_rpc_macros::service;
pub use wire::metadata::{IDEMPOTENCY_KEY, Metadata, MetadataError, TRACEPARENT};
pub use wire::trace::{BadTraceparent, TraceContext};

/// What the macro's code uses. Not for others.
#[doc(hidden)]
pub mod __private {
    pub use crate::link::{StreamParts, stream, unary};
    pub use crate::schema::{MethodInfo, MethodKind, ServiceInfo};
    pub use crate::service::{HandlerFuture, Incoming, Reply};
    pub use postcard_schema::Schema;
}
