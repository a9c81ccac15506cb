//! Where sockets come from: the end that dials, and AF_VSOCK on either end.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::config::PacedConfig;
use super::core::BackOff;
use super::driver::next_random;
use super::endpoint::WeakHub;
use super::shared::{Shared, Want};
use crate::addr::Addr;
use crate::framed::IoStream;
use crate::vsock::{VsockEndpoint, VsockListener, VsockStream};

/// Makes sockets to one peer. Implemented by closures that return a future of a socket.
pub trait Dial: Send + 'static {
    /// What it makes.
    type Socket: IoStream;

    /// One attempt. Abandoned, by dropping the future, after [`PacedConfig::redial_max`] or one second, whichever is longer.
    fn dial(&mut self) -> impl Future<Output = io::Result<Self::Socket>> + Send;
}

impl<F, Dialling, Socket> Dial for F
where
    F: FnMut() -> Dialling + Send + 'static,
    Dialling: Future<Output = io::Result<Socket>> + Send,
    Socket: IoStream,
{
    type Socket = Socket;

    fn dial(&mut self) -> impl Future<Output = io::Result<Socket>> + Send {
        self()
    }
}

/// Which sockets of a child [`PacedEndpoint::serve`](super::PacedEndpoint::serve) takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketsFrom {
    /// Those of its privileged programs, whose ports are below 1024. The child's kernel vouches for that, so that no other program in it
    /// can take the place of its link.
    PrivilegedPorts,
    /// Those of every program in it: any of them can end all streams of the link by taking its place.
    AnyPort,
}

/// Dials a port over AF_VSOCK.
#[derive(Clone, Debug)]
pub struct VsockDial {
    vsock: VsockEndpoint,
    addr: Addr,
}

impl VsockDial {
    /// Dials `addr`, where the parent [serves](super::PacedEndpoint::serve); from a port below 1024 if this program may have one
    /// (CAP_NET_BIND_SERVICE).
    pub fn new(vsock: VsockEndpoint, addr: Addr) -> Self {
        Self { vsock, addr }
    }
}

impl Dial for VsockDial {
    type Socket = VsockStream;

    async fn dial(&mut self) -> io::Result<VsockStream> {
        // The link has its own pacing, and has to know of each refusal.
        Ok(self.vsock.connect_privileged(self.addr, ATTEMPT_MIN).await?.without_pacing())
    }
}

/// The least that an attempt may take.
const ATTEMPT_MIN: Duration = Duration::from_secs(1);

/// Dials whenever the link wants a socket, until the link is over.
pub(super) async fn keep_dialling<D: Dial>(
    shared: Arc<Shared>,
    mut dial: D,
    config: PacedConfig,
    mut seed: u64,
) {
    let mut want = shared.want.subscribe();
    let mut back_off = BackOff::new(config.redial());
    let attempt_max = config.redial_max.max(ATTEMPT_MIN);
    let mut is_first = true;
    loop {
        let Ok(wanted) = want.wait_for(|want| *want != Want::Nothing).await.map(|want| *want) else { return };
        if wanted == Want::End {
            return;
        }
        if !std::mem::replace(&mut is_first, false) {
            let pause = back_off.pause(next_random(&mut seed));
            tokio::time::sleep(Duration::from_nanos(pause)).await;
        }
        match timeout(attempt_max, dial.dial()).await {
            Ok(Ok(socket)) => {
                // Whether it leads to a peer shows only later: pauses grow until one did.
                let ups = shared.lock().link.ups();
                shared.replace_socket(Box::new(socket));
                let Ok(_) = want.wait_for(|want| *want != Want::Nothing).await else { return };
                if shared.lock().link.ups() > ups {
                    back_off.reset();
                }
            }
            Ok(Err(error)) => {
                tracing::debug!(peer = %shared.peer, %error, "dialling for a paced link failed");
            }
            Err(_) => tracing::debug!(peer = %shared.peer, "dialling for a paced link took too long"),
        }
    }
}

/// Takes the sockets of all children that are expected.
pub(super) async fn keep_accepting(endpoint: WeakHub, listener: VsockListener, from: SocketsFrom) {
    loop {
        match listener.accept().await {
            Ok(socket) => {
                let Addr { cid, port } = socket.peer_addr();
                if from == SocketsFrom::PrivilegedPorts && !port.is_privileged() {
                    tracing::warn!(%cid, %port, "a socket for a paced link of a program without privilege is closed");
                    continue;
                }
                match endpoint.acceptor(cid) {
                    Some(acceptor) => acceptor.replace(socket.without_pacing()),
                    None => {
                        tracing::debug!(%cid, "a socket for a paced link of a kernel that is not expected");
                    }
                }
            }
            Err(error) => {
                // Out of descriptors, most likely: those who left free some.
                tracing::warn!(%error, "cannot accept sockets for paced links; trying again in 50 ms");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}
