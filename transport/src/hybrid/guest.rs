//! A monitor and its guest in one: serves `PATH` to host programs, dials their `PATH_<port>`.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::HybridConfig;
use super::handshake;
use super::stream::HybridStream;
use super::unix::{PathListener, dial, port_path};
use crate::addr::{Addr, Cid, Port};
use crate::error::{Error, Result};
use crate::ports::{BoundPort, PortTable};

/// How long a caller may take over its `CONNECT` line.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// Callers between connecting and their `CONNECT` line; more wait in the Unix socket's own queue.
const HANDSHAKES_MAX: usize = 128;
/// Queue of the Unix socket at `PATH`, before anything is known about the port wanted.
const MONITOR_BACKLOG: u32 = 1024;

/// The monitor of one guest together with that guest. Cheap to clone; the socket goes with the last clone.
#[derive(Clone, Debug)]
pub struct GuestSide {
    path: PathBuf,
    guest: Cid,
    host: Cid,
    ports: PortTable<HybridStream>,
    _server: Arc<Server>,
}

/// Where connections from the host to one port of the guest arrive.
#[derive(Debug)]
pub struct GuestListener {
    bound: BoundPort<HybridStream>,
    // Listening goes on after the endpoint itself has been dropped.
    _server: Arc<Server>,
}

#[derive(Debug)]
struct Server(AbortHandle);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl GuestSide {
    /// Serves `config.path`. Must be called on a Tokio runtime.
    ///
    /// # Errors
    /// [`Error::AddrInUse`] while another process serves that path.
    pub fn new(config: HybridConfig) -> Result<Self> {
        let HybridConfig { path, guest_cid: guest, host_cid: host, .. } = config;
        let socket = PathListener::bind(&path, Addr::new(guest, Port::ANY), MONITOR_BACKLOG)?;
        let ports = PortTable::new(guest);
        let server = tokio::spawn(serve(socket, ports.clone(), guest, host));
        Ok(Self { path, guest, host, ports, _server: Arc::new(Server(server.abort_handle())) })
    }

    /// The CID of the guest.
    pub fn local_cid(&self) -> Cid {
        self.guest
    }

    /// Connects to a port of the host.
    ///
    /// # Errors
    /// [`Error::Refused`] when nobody serves `PATH_<port>` or its backlog is full.
    pub async fn connect(&self, addr: Addr, deadline: Duration) -> Result<HybridStream> {
        if addr.cid != self.host {
            let reason = format!("only the host, cid {}, can be reached from here", self.host);
            return Err(Error::Refused { addr, reason });
        }
        let path = port_path(&self.path, addr.port);
        let timed_out = |_| Error::TimedOut { addr, deadline_ms: deadline.as_millis() as u64 };
        let io = timeout(deadline, dial(&path, addr)).await.map_err(timed_out)??;
        Ok(HybridStream::new(io, Addr::new(self.guest, self.ports.ephemeral()), addr))
    }

    /// Listens on a port of the guest ([`Port::ANY`]: a free one).
    ///
    /// # Errors
    /// [`Error::AddrInUse`].
    pub fn listen(&self, port: Port, backlog: u32) -> Result<GuestListener> {
        Ok(GuestListener { bound: self.ports.bind(port, backlog)?, _server: Arc::clone(&self._server) })
    }
}

impl GuestListener {
    /// The next connection from the host, in the order they were acknowledged.
    ///
    /// # Cancel safety
    /// Dropping the future loses no connection.
    pub async fn accept(&mut self) -> Result<HybridStream> {
        let local = self.bound.addr();
        let arrived = self.bound.accept().await;
        arrived.ok_or_else(|| Error::Invalid(format!("the listener on {local} has been closed")))
    }

    /// Where this listens.
    pub fn local_addr(&self) -> Addr {
        self.bound.addr()
    }
}

async fn serve(socket: PathListener, ports: PortTable<HybridStream>, guest: Cid, host: Cid) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let order = Arc::new(Mutex::new(()));
    loop {
        let Ok(turn) = Arc::clone(&handshakes).acquire_owned().await else { return };
        match socket.accept().await {
            Ok(io) => {
                let (ports, order) = (ports.clone(), Arc::clone(&order));
                tokio::spawn(async move {
                    // Who is too slow, or talks something else, is hung up on: the convention has no other answer.
                    let _ = timeout(HANDSHAKE_DEADLINE, welcome(io, &ports, &order, guest, host)).await;
                    drop(turn);
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: those who left free some.
                tracing::warn!(%error, "hybrid monitor cannot accept; trying again in 50 ms");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Answers one host program. Hanging up without `OK` is how the convention refuses.
async fn welcome(
    mut io: UnixStream,
    ports: &PortTable<HybridStream>,
    order: &Mutex<()>,
    guest: Cid,
    host: Cid,
) -> Option<()> {
    let line = handshake::read_line(&mut io).await.ok()?;
    let port = handshake::parse_connect(&line)?;
    let place = ports.reserve(port).ok()?;
    let caller = ports.ephemeral();
    let ok = handshake::ok_line(caller);
    io.writable().await.ok()?;
    // The acceptor may write as soon as it has the stream, so `OK` goes first; and who got `OK` first is accepted
    // first, so nobody comes between the two. An empty send buffer takes the line at once.
    let _order = order.lock().unwrap_or_else(PoisonError::into_inner);
    if io.try_write(ok.as_bytes()).ok()? == ok.len() {
        place.send(HybridStream::new(io, Addr::new(guest, port), Addr::new(host, caller)));
    }
    Some(())
}
