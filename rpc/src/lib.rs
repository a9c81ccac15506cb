//! Typed calls and streams between kernels.

extern crate self as tombolo_rpc;

mod blob;
pub mod busy;
pub mod connection;
mod error;
mod link;
pub mod schema;
mod service;
mod wire;

pub use blob::Blob;
pub use busy::{BusyClient, BusyServer, FramePipe};
pub use connection::PeerInfo;
pub use error::{CallError, Failure, LinkError, Never, Outcome};
pub use link::{Auth, Call, Chooser, Link, LinkConfig, Receiver, Sender};
pub use postcard_schema::Schema;
pub use service::{CallInfo, Cancellation, Ctx, MethodCounters, Reject, Router, Service, reflection};
pub use tombolo_rpc_macros::service;
pub use wire::metadata::{Metadata, MetadataError, TRACEPARENT};

/// What the macro's code uses. Not for others.
#[doc(hidden)]
pub mod __private {
    pub use crate::link::{StreamParts, stream, unary};
    pub use crate::schema::{MethodInfo, MethodKind, ServiceInfo};
    pub use crate::service::{HandlerFuture, Incoming, Reply};
    pub use postcard_schema::Schema;
}
