//! [`Link`]: a connection over which both ends call and serve.
//!
//! One task per link, the driver, sleeps until something arrives, a timer fires or the transport has room. The fast path
//! does not need it: whoever makes a call also sends the frame, and looks for the answer, on its own task.
//! Three locks, each held shortly and taken in this order: `rx` (who reads; others pass by), `tx` (who writes;
//! others leave a note), `core` (the protocol's state). Handlers run under none of them.

mod call;
mod config;
mod dispatch;
mod driver;
mod pump;
mod shared;
#[cfg(all(test, shuttle))]
mod shuttle_tests;
mod slots;
mod stream;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tombolo_transport::Messages;

use crate::connection::{PeerInfo, Side};
use crate::error::LinkError;
use crate::service::Router;
use crate::sync::time;

pub use call::{Call, StreamParts, stream, unary};
pub(crate) use call::{decode, decode_answer, decode_slice, encode};
pub(crate) use config::check_frame_bytes;
pub use config::{Auth, Chooser, LinkConfig};
pub(crate) use shared::{Inner, LinkState};
pub(crate) use slots::{Cancel, Served};
pub use stream::{Receiver, Sender};

/// One end of a connection over which both ends call and serve. Cheap to clone.
///
/// Dropping the last clone closes the link: keep one as long as the peer is to be served, for instance by awaiting
/// [`Link::closed`].
#[derive(Clone)]
pub struct Link {
    pub(crate) inner: Arc<Inner>,
    _alive: Arc<Alive>,
}

/// Closes the link when the last [`Link`] is dropped.
pub(crate) struct Alive(Arc<Inner>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.close(LinkError::Closed);
    }
}

impl Link {
    /// Makes a link on a connection that this side opened, and serves `router` on it.
    ///
    /// Returns once both sides have said HELLO and proven what [`LinkConfig::auth`] asks for.
    ///
    /// # Errors
    /// [`LinkError`]: the peer is silent for [`LinkConfig::handshake_timeout`], speaks no common version, or is not who it must be.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection.
    pub async fn connect(messages: Messages, config: LinkConfig, router: Router) -> Result<Self, LinkError> {
        Self::start(messages, config, router, Side::Connector).await
    }

    /// Makes a link on a connection that this side accepted, and serves `router` on it. See [`Link::connect`].
    ///
    /// # Errors
    /// As [`Link::connect`].
    pub async fn accept(messages: Messages, config: LinkConfig, router: Router) -> Result<Self, LinkError> {
        Self::start(messages, config, router, Side::Acceptor).await
    }

    async fn start(
        messages: Messages,
        config: LinkConfig,
        router: Router,
        side: Side,
    ) -> Result<Self, LinkError> {
        let inner = driver::spawn(messages, config, router, side)?;
        let alive = Arc::new(Alive(inner.clone()));
        inner.alive.set(Arc::downgrade(&alive)).ok();
        let link = Self { inner, _alive: alive };
        let mut state = link.inner.state.subscribe();
        let reached = state
            .wait_for(|state| !matches!(state, LinkState::Connecting))
            .await
            .map(|state| state.clone())
            .unwrap_or(LinkState::Closed(LinkError::Closed));
        match reached {
            LinkState::Closed(error) => Err(error),
            LinkState::Connecting | LinkState::Open => Ok(link),
        }
    }

    pub(crate) fn of(inner: &Arc<Inner>) -> Option<Self> {
        let alive = inner.alive.get()?.upgrade()?;
        Some(Self { inner: inner.clone(), _alive: alive })
    }

    /// Who is at the other end.
    pub fn peer(&self) -> Arc<PeerInfo> {
        self.inner.peer().clone()
    }

    /// Waits until the link is over, and says why.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn closed(&self) -> LinkError {
        let mut state = self.inner.state.subscribe();
        loop {
            if let LinkState::Closed(error) = &*state.borrow_and_update() {
                return error.clone();
            }
            if state.changed().await.is_err() {
                return LinkError::Closed;
            }
        }
    }

    /// Whether the link is over.
    pub fn is_closed(&self) -> bool {
        matches!(&*self.inner.state.borrow(), LinkState::Closed(_))
    }

    /// Takes no new calls from the peer, tells it so, and closes the link once the calls under way, of both sides, have
    /// ended. Returns at once; [`Link::closed`] tells when.
    pub fn goaway(&self, reason: &str) {
        self.inner.go_away(reason);
    }

    /// As [`Link::goaway`], and closes the link once `within` has passed, whoever is still at it. Returns why the link
    /// ended: [`LinkError::Closed`] if nothing was cut short.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the link draining, without the bound.
    pub async fn drain(&self, reason: &str, within: Duration) -> LinkError {
        self.goaway(reason);
        match time::timeout(within, self.closed()).await {
            Ok(ended) => ended,
            Err(_) => {
                self.close(reason);
                self.closed().await
            }
        }
    }

    /// Closes the link now. Calls under way fail on both sides.
    pub fn close(&self, reason: &str) {
        self.inner.close(LinkError::ClosedHere(reason.to_owned()));
    }

    /// Whether either side has said GOAWAY.
    pub fn is_draining(&self) -> bool {
        self.inner.core().conn.is_draining()
    }

    /// Calls under way: ours, and the peer's.
    pub fn in_flight(&self) -> (u32, u32) {
        self.inner.core().conn.in_flight()
    }

    /// Asks the peer's protocol engine (not its application) for a sign of life: how long it took.
    ///
    /// # Errors
    /// Why the link is over, if it ends first. A silent peer ends it after [`LinkConfig::silence_max`].
    pub async fn ping(&self) -> Result<Duration, LinkError> {
        let started = tokio::time::Instant::now();
        let pong = self.inner.ping();
        match pong.await {
            Ok(()) => Ok(started.elapsed()),
            Err(_) => Err(self.closed().await),
        }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("peer", &self.peer())
            .field("state", &*self.inner.state.borrow())
            .finish()
    }
}
