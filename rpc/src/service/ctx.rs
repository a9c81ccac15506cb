//! [`Ctx`]: what a handler is told about its call.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::clock;
use crate::connection::PeerInfo;
use crate::link::{Cancel, Inner, Link};
use crate::schema::MethodInfo;
use crate::wire::metadata::Metadata;

/// What a handler is told about its call. Cheap to clone, for tasks that the handler starts.
#[derive(Clone, Debug)]
pub struct Ctx {
    pub(crate) method: &'static MethodInfo,
    pub(crate) origin: Origin,
    /// In nanoseconds on the clock of all links.
    pub(crate) deadline_ns: Option<u64>,
    pub(crate) metadata: Metadata,
    pub(crate) cancel: Cancel,
}

/// Where a call came in.
#[derive(Clone, Debug)]
pub(crate) enum Origin {
    Link(Arc<Inner>),
    /// A busy-poll server, with this peer.
    Polled(Arc<PeerInfo>),
}

impl Origin {
    pub(crate) fn peer(&self) -> &PeerInfo {
        match self {
            Self::Link(inner) => inner.peer(),
            Self::Polled(peer) => peer,
        }
    }
}

/// Says that a call is over: answered, cancelled, expired, or lost with its link.
#[derive(Clone, Debug)]
pub struct Cancellation(Cancel);

impl Ctx {
    /// The method that was called.
    pub fn method(&self) -> &'static MethodInfo {
        self.method
    }

    /// Who calls.
    pub fn peer(&self) -> &PeerInfo {
        self.origin.peer()
    }

    /// When the caller stops waiting, if ever. The handler is dropped then.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline_ns.and_then(clock::instant)
    }

    /// How long the caller still waits, to hand on to calls that this one makes; `None` if for ever.
    pub fn remaining(&self) -> Option<Duration> {
        self.deadline().map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// What travelled with the call, such as a trace context.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The link that the call came over, to call the caller back. `None` on a busy-poll server, or if the link is closing.
    pub fn link(&self) -> Option<Link> {
        match &self.origin {
            Origin::Link(inner) => Link::of(inner),
            Origin::Polled(_) => None,
        }
    }

    /// Waits until the call is over. The handler itself is dropped then; this is for tasks and threads that it started.
    pub async fn cancelled(&self) {
        self.cancel.cancelled().await;
    }

    /// Whether the call is over.
    pub fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// The same, on its own.
    pub fn cancellation(&self) -> Cancellation {
        Cancellation(self.cancel.clone())
    }
}

impl Cancellation {
    /// Waits until the call is over.
    pub async fn cancelled(&self) {
        self.0.cancelled().await;
    }

    /// Whether the call is over.
    pub fn is_cancelled(&self) -> bool {
        self.0.is_cancelled()
    }
}
