//! The paced links to kernels that share no memory with this one: their sockets arrive here, and everything goes over them.
//!
//! The sockets are the daemon's own, and none of the keeper's: a new daemon listens where the former did, the kernels dial it within a second, and
//! to them it is another life, so that every stream begins anew.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::AbortHandle;
use tombolo_agent::config::PacedLine;
use tombolo_transport::paced::{PacedAcceptor, PacedEndpoint, SocketsFrom};
use tombolo_transport::unix_socket;
use tombolo_transport::{Cid, Endpoint, Port};

use crate::spawner::multikernel::{HostEnd, vsock};

/// Before listening is tried again where it was refused.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);
/// Sockets of all kernels that may wait to be taken.
const BACKLOG: u32 = 64;

/// All paced links of this daemon.
#[derive(Debug)]
pub(crate) struct PacedLinks {
    endpoint: PacedEndpoint,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Vsock ports on which somebody listens, or tries to.
    ports: HashMap<Port, AbortHandle>,
    /// Whoever takes the sockets of a kernel whose own they are.
    servers: HashMap<Cid, AbortHandle>,
}

impl PacedLinks {
    /// None yet.
    pub(crate) fn new() -> tombolo_transport::Result<Self> {
        let endpoint = PacedEndpoint::new(Cid::HOST, PacedLine::pace())?;
        Ok(Self { endpoint, state: Mutex::default() })
    }

    /// What the agents of such kernels call, and what calls them.
    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint::paced(self.endpoint.clone())
    }

    /// The links themselves, for what applications say over them.
    pub(crate) fn links(&self) -> PacedEndpoint {
        self.endpoint.clone()
    }

    /// Takes the sockets of this kernel from now on. One that is expected already stays so.
    pub(crate) fn expect(&self, cid: Cid, end: &HostEnd) {
        let config = match end {
            HostEnd::Vsock(_) => PacedLine::pace(),
            HostEnd::Unix(_) => PacedLine::pace_of_terminal(),
        };
        let Ok(acceptor) = self.endpoint.expect_with(cid, config) else { return };
        let mut state = self.lock();
        match end {
            HostEnd::Vsock(port) => {
                let port = *port;
                let endpoint = self.endpoint.clone();
                state
                    .ports
                    .entry(port)
                    .or_insert_with(|| tokio::spawn(listen(endpoint, port)).abort_handle());
            }
            HostEnd::Unix(path) => {
                let server = tokio::spawn(take_sockets(path.clone(), acceptor)).abort_handle();
                if let Some(former) = state.servers.insert(cid, server) {
                    former.abort();
                }
            }
        }
    }

    /// The kernel is gone: every stream to it is reset.
    pub(crate) fn remove(&self, cid: Cid) {
        self.endpoint.remove(cid);
        if let Some(server) = self.lock().servers.remove(&cid) {
            server.abort();
        }
    }

    /// Whether its end is there now.
    pub(crate) fn is_up(&self, cid: Cid) -> bool {
        self.endpoint.is_up(cid)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for PacedLinks {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        state.ports.values().chain(state.servers.values()).for_each(AbortHandle::abort);
    }
}

/// Listens for all kernels on one port of the vsock, once that can be had.
async fn listen(endpoint: PacedEndpoint, port: Port) {
    let mut told = false;
    loop {
        match vsock().and_then(|vsock| vsock.listen(port, BACKLOG)) {
            Ok(listener) => return endpoint.serve(listener, SocketsFrom::PrivilegedPorts),
            Err(error) if !told => {
                told = true;
                let error = super::chain(&error);
                tracing::error!(%port, error, "kernels without shared memory cannot be reached; it is tried again");
            }
            Err(_) => {}
        }
        tokio::time::sleep(LISTEN_AGAIN).await;
    }
}

/// Takes the sockets that arrive at a Unix socket, which are all of one kernel.
async fn take_sockets(path: PathBuf, acceptor: PacedAcceptor) -> io::Result<()> {
    let mut told = false;
    let (listener, _file) = loop {
        match unix_socket::listen(&path, BACKLOG) {
            Ok(listening) => break listening,
            Err(error) if !told => {
                told = true;
                tracing::error!(path = %path.display(), %error, "a kernel without shared memory cannot be reached; it is tried again");
            }
            Err(_) => {}
        }
        tokio::time::sleep(LISTEN_AGAIN).await;
    };
    loop {
        match listener.accept().await {
            Ok((socket, _)) => acceptor.replace(socket),
            Err(error) => {
                // Out of descriptors, most likely: those who left free some.
                tracing::warn!(%error, "a socket of a kernel without shared memory could not be taken");
                tokio::time::sleep(LISTEN_AGAIN).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixStream;
    use tombolo_transport::{Addr, ListenOptions};

    use super::*;

    const KERNEL: Cid = Cid(5);

    fn kernel(path: &std::path::Path) -> Endpoint {
        let paced = PacedEndpoint::new(KERNEL, PacedLine::pace()).unwrap();
        let path = path.to_owned();
        paced.dial(Cid::HOST, move || UnixStream::connect(path.clone())).unwrap();
        Endpoint::paced(paced)
    }

    #[tokio::test]
    async fn the_next_daemon_listens_where_the_former_did_and_the_kernel_finds_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("link");
        let inside = kernel(&path);
        let mut former = None;
        for _ in 0..2 {
            let links = PacedLinks::new().unwrap();
            links.expect(KERNEL, &HostEnd::Unix(path.clone()));
            let mut listener = links.endpoint().listen(Port(9), ListenOptions::default()).await.unwrap();
            // The former daemon's end is another life: a call that was on its way may end with it.
            let mut called = loop {
                if let Ok(called) = inside.connect(Addr::new(Cid::HOST, Port(9))).await {
                    break called;
                }
            };
            let (mut stream, peer) = listener.accept().await.unwrap();
            assert_eq!(peer.cid, KERNEL);
            assert!(links.is_up(KERNEL));
            stream.write_all(b"hello").await.unwrap();
            let mut read = [0; 5];
            called.read_exact(&mut read).await.unwrap();
            former = Some(called);
            links.remove(KERNEL);
            assert!(stream.read(&mut read).await.is_err(), "the kernel is gone");
        }
        drop(former);
    }
}
