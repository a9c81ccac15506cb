//! [`PacedEndpoint`]: one kernel and its links.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::config::PacedConfig;
use super::core::{Link, Role};
use super::driver::Driver;
use super::shared::{Shared, User};
use super::sockets::{Dial, SocketsFrom, keep_accepting, keep_dialling};
use super::stream::PacedStream;
use crate::addr::{Addr, Cid, Port};
use crate::error::{Error, ResetCause, Result};
use crate::framed::IoStream;
use crate::incarnation::Incarnation;
use crate::ports::{BoundPort, PortTable};
use crate::vsock::VsockListener;

/// One kernel's end of its links: to its parent, or to each of its children. Cheap to clone; when the last clone, listener and stream
/// have gone, the links close after what was written.
#[derive(Clone, Debug)]
pub struct PacedEndpoint {
    hub: Arc<Hub>,
}

#[derive(Debug)]
struct Hub {
    local: Cid,
    config: PacedConfig,
    /// Who listens here, for the peers of all links.
    ports: PortTable<PacedStream>,
    links: Mutex<HashMap<Cid, Entrance>>,
    servers: Mutex<Vec<AbortHandle>>,
}

/// A link, as the endpoint holds it.
#[derive(Debug)]
struct Entrance {
    user: Arc<User>,
    role: Role,
}

/// Takes sockets of one child, the newest in place of the one before.
#[derive(Clone, Debug)]
pub struct PacedAcceptor {
    shared: Arc<Shared>,
}

/// Where calls from the peers of all links to one port arrive.
#[derive(Debug)]
pub struct PacedListener {
    bound: BoundPort<PacedStream>,
    // Listening goes on after the endpoint itself has been dropped.
    _hub: Arc<Hub>,
}

impl PacedEndpoint {
    /// An endpoint of kernel `local`, without links.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a `config` that cannot work.
    pub fn new(local: Cid, config: PacedConfig) -> Result<Self> {
        config.check()?;
        let hub = Hub {
            local,
            config,
            ports: PortTable::new(local),
            links: Mutex::default(),
            servers: Mutex::default(),
        };
        Ok(Self { hub: Arc::new(hub) })
    }

    /// A link to `peer` (a child's to its parent) whose sockets we make: `dial` is asked for one now and whenever one is lost. Must be
    /// called on a Tokio runtime.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there is a link to `peer` already.
    pub fn dial(&self, peer: Cid, dial: impl Dial) -> Result<()> {
        let (shared, seed) = self.add_link(peer, Role::Dialler, self.hub.config)?;
        tokio::spawn(keep_dialling(shared, dial, self.hub.config, seed));
        Ok(())
    }

    /// A link to `peer` (a parent's to its child) whose sockets the peer makes; hand each to [`PacedAcceptor::replace`], unless
    /// [`PacedEndpoint::serve`] does. Must be called on a Tokio runtime.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there is a link to `peer` already.
    pub fn expect(&self, peer: Cid) -> Result<PacedAcceptor> {
        self.expect_with(peer, self.hub.config)
    }

    /// As [`PacedEndpoint::expect`], for a link that differs from those of this endpoint.
    ///
    /// # Errors
    /// As [`PacedEndpoint::expect`]; [`Error::Invalid`] for a `config` that cannot work.
    pub fn expect_with(&self, peer: Cid, config: PacedConfig) -> Result<PacedAcceptor> {
        config.check()?;
        let (shared, _) = self.add_link(peer, Role::Acceptor, config)?;
        Ok(PacedAcceptor { shared })
    }

    /// Takes the sockets that arrive at `listener` for the links to the kernels they come from; those of kernels that are not
    /// [expected](PacedEndpoint::expect) are closed. Ends with the last clone of this endpoint. Must be called on a Tokio runtime.
    pub fn serve(&self, listener: VsockListener, from: SocketsFrom) {
        let server =
            tokio::spawn(keep_accepting(WeakHub(Arc::downgrade(&self.hub)), listener, from)).abort_handle();
        self.hub.servers.lock().unwrap_or_else(PoisonError::into_inner).push(server);
    }

    /// Ends the link to `peer`: every stream of it fails with [`Error::Reset`], its socket is closed. False if there was none.
    pub fn remove(&self, peer: Cid) -> bool {
        let Some(Entrance { user, .. }) = self.hub.links().remove(&peer) else { return false };
        let mut state = user.0.lock();
        state.link.fail_all(&ResetCause::PeerKernelDied);
        state.is_removed = true;
        drop(state);
        user.0.task.wake();
        true
    }

    /// Whether there is a link to it.
    pub fn leads_to(&self, peer: Cid) -> bool {
        self.hub.links().contains_key(&peer)
    }

    /// Whether the peer's end of the link to it is there now.
    pub fn is_up(&self, peer: Cid) -> bool {
        self.hub.links().get(&peer).is_some_and(|entrance| entrance.user.0.lock().link.is_up())
    }

    /// The CID of this kernel.
    pub fn local_cid(&self) -> Cid {
        self.hub.local
    }

    /// Connects to a port of a peer. While the link is down the call waits for it.
    ///
    /// # Errors
    /// [`Error::Refused`] when no link leads to that kernel, nobody listens there or the backlog is full; [`Error::TimedOut`] when
    /// nothing is heard of the peer within `deadline`; [`Error::Reset`] when it has died meanwhile.
    ///
    /// # Cancel safety
    /// Dropping the future abandons the call; a connection that was made meanwhile is closed.
    pub async fn connect(&self, addr: Addr, deadline: Duration) -> Result<PacedStream> {
        let refused = |reason: &str| Error::Refused { addr, reason: reason.into() };
        let user = self.hub.links().get(&addr.cid).map(|entrance| Arc::clone(&entrance.user));
        let user = user.ok_or_else(|| refused("no paced link leads from this kernel to that one"))?;
        let local = Addr::new(self.hub.local, self.hub.ports.ephemeral());
        let opened = user.0.lock().link.open(local.port, addr.port);
        let id =
            opened.map_err(|_| refused("as many streams are open to that kernel as it takes; close some"))?;
        user.0.task.wake();
        let stream = PacedStream::new(user, id, local, addr);
        let answered = timeout(deadline, poll_fn(|cx| stream.poll_answer(cx))).await;
        answered.map_err(|_| Error::TimedOut { addr, deadline_ms: deadline.as_millis() as u64 })??;
        Ok(stream)
    }

    /// Listens on `port` ([`Port::ANY`]: a free one) for calls of the peers of all links; `backlog` of them may wait to be accepted.
    ///
    /// # Errors
    /// [`Error::AddrInUse`].
    pub fn listen(&self, port: Port, backlog: u32) -> Result<PacedListener> {
        Ok(PacedListener { bound: self.hub.ports.bind(port, backlog)?, _hub: Arc::clone(&self.hub) })
    }

    fn add_link(&self, peer: Cid, role: Role, config: PacedConfig) -> Result<(Arc<Shared>, u64)> {
        let life = Incarnation::random()?;
        let mut seed = [0; 8];
        seed.copy_from_slice(&Incarnation::random()?.0[..8]);
        let seed = u64::from_le_bytes(seed);
        let mut links = self.hub.links();
        let Entry::Vacant(place) = links.entry(peer) else {
            return Err(Error::Invalid(format!("there is a paced link to cid {peer} already")));
        };
        let (user, shared) = Shared::new(self.hub.local, peer, Link::new(role, config.pace(), life));
        place.insert(Entrance { user, role });
        let driver = Driver::new(Arc::clone(&shared), self.hub.ports.clone(), config.sockets, seed);
        tokio::spawn(driver);
        Ok((shared, seed))
    }
}

impl Hub {
    fn links(&self) -> MutexGuard<'_, HashMap<Cid, Entrance>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        let servers = self.servers.get_mut().unwrap_or_else(PoisonError::into_inner);
        servers.iter().for_each(AbortHandle::abort);
    }
}

impl PacedAcceptor {
    /// Uses `socket`, newly accepted from that child, in place of the one before, which is closed. Streams do not notice, unless the
    /// child turns out to live another life.
    pub fn replace(&self, socket: impl IoStream) {
        self.shared.replace_socket(Box::new(socket));
    }
}

impl PacedListener {
    /// The next caller, in the order they called.
    ///
    /// # Cancel safety
    /// Dropping the future loses no caller.
    pub async fn accept(&mut self) -> Result<PacedStream> {
        let local = self.bound.addr();
        let arrived = self.bound.accept().await;
        arrived.ok_or_else(|| Error::Invalid(format!("the listener on {local} has been closed")))
    }

    /// Where this listens.
    pub fn local_addr(&self) -> Addr {
        self.bound.addr()
    }
}

/// An endpoint, without keeping it.
#[derive(Clone, Debug)]
pub(super) struct WeakHub(Weak<Hub>);

impl WeakHub {
    /// Where the sockets of `peer` go, if it is expected.
    pub(super) fn acceptor(&self, peer: Cid) -> Option<PacedAcceptor> {
        let hub = self.0.upgrade()?;
        let links = hub.links();
        let entrance = links.get(&peer).filter(|entrance| entrance.role == Role::Acceptor)?;
        Some(PacedAcceptor { shared: Arc::clone(&entrance.user.0) })
    }
}
