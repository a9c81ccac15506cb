//! Serving: [`Service`] (what the macro writes), [`Router`] (which services a link offers), [`Ctx`] (what a handler is told).

mod counters;
mod ctx;
mod handler;
pub mod health;
mod once;
pub mod reflection;
mod replay;
mod router;

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::encoded::Encoded;
use crate::error::Failure;
use crate::link::StreamParts;
use crate::schema::ServiceInfo;
use crate::scratch::Body;
use crate::wire::fault::{Code, Fault};

pub use counters::MethodCounters;
pub(crate) use ctx::Origin;
pub use ctx::{Cancellation, Ctx};
pub use handler::HandlerFuture;
pub(crate) use handler::{Handler, Started};
pub use replay::ReplayLimits;
pub(crate) use router::ServeRequest;
pub use router::{CallInfo, Reject, Router};

/// A service that a [`Router`] can offer. Implemented by the `..Server` types that the macro writes.
pub trait Service: Send + Sync + 'static {
    /// The service and its methods.
    fn info(&self) -> &'static ServiceInfo;

    /// Runs the method at `method` in [`ServiceInfo::methods`].
    fn call(&self, method: usize, call: Incoming) -> HandlerFuture;
}

/// What a handler answers, encoded.
#[derive(Debug)]
pub struct Reply(pub(crate) ReplyKind);

#[derive(Debug)]
pub(crate) enum ReplyKind {
    Answer { app_error: bool, payload: Encoded },
    Fault(Fault),
}

impl Reply {
    pub(crate) fn fault(fault: Fault) -> Self {
        Self(ReplyKind::Fault(fault))
    }

    /// Whether the handler gave its answer, and not an error of the application's, and was neither refused nor cut short.
    pub fn is_answer(&self) -> bool {
        matches!(self.0, ReplyKind::Answer { app_error: false, .. })
    }

    /// Whether the handler gave an error of the application's.
    pub fn is_app_error(&self) -> bool {
        matches!(self.0, ReplyKind::Answer { app_error: true, .. })
    }
}

/// A call as the macro's code takes it apart.
#[derive(Debug)]
pub struct Incoming {
    pub(crate) cx: Ctx,
    pub(crate) args: Body,
    pub(crate) parts: Option<StreamParts>,
}

impl Incoming {
    /// What the handler is told about its call.
    pub fn cx(&self) -> &Ctx {
        &self.cx
    }

    /// The arguments, as a tuple.
    ///
    /// # Errors
    /// The reply to give if they do not decode.
    pub fn args<T: DeserializeOwned>(&self) -> Result<T, Reply> {
        crate::link::decode(&self.args, "the arguments")
            .map_err(|failure| Reply::fault(Fault::new(Code::Malformed, false, 0, failure.to_string())))
    }

    /// The streams of the call, from which its sender and receiver are made.
    ///
    /// # Errors
    /// The reply to give where there are none: on a busy-poll server.
    pub fn parts(&self) -> Result<&StreamParts, Reply> {
        let why = "this server takes no calls with streams";
        self.parts.as_ref().ok_or_else(|| Reply::fault(Fault::new(Code::Refused, false, 0, why)))
    }

    /// The reply to a method that the service does not have.
    pub fn no_such_method() -> Reply {
        Reply::fault(Fault::new(Code::UnknownMethod, false, 0, ""))
    }

    /// Encodes what the handler returned.
    pub fn reply<T: Serialize, E: Serialize>(result: &Result<T, E>) -> Reply {
        let (app_error, payload) = match result {
            Ok(answer) => (false, crate::link::encode(answer)),
            Err(error) => (true, crate::link::encode(error)),
        };
        match payload {
            Ok(payload) => Reply(ReplyKind::Answer { app_error, payload }),
            Err(Failure::Malformed(why)) => Reply::fault(Fault::new(Code::Malformed, true, 0, why)),
            Err(other) => Reply::fault(Fault::new(Code::Malformed, true, 0, other.to_string())),
        }
    }
}

impl<S: Service + ?Sized> Service for Arc<S> {
    fn info(&self) -> &'static ServiceInfo {
        (**self).info()
    }

    fn call(&self, method: usize, call: Incoming) -> HandlerFuture {
        (**self).call(method, call)
    }
}
