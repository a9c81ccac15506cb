//! [`RelayedBroker`]: the broker of a kernel that shares no memory.
//!
//! Applications reach it at the same Unix socket as any other, and say hello in the same words; the answer says that there is no pool. Then a
//! call, a listener or a question has a connection of its own to that socket, which ends with it.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::listeners::{Arrived, Bound, Caller, Listeners, Wanted};
use super::request::Refusal;
use super::route::{Relay, RelayHandle};
use super::socket::RelaySocket;
use crate::addr::{Addr, Cid, Port};
use crate::broker::Policy;
use crate::broker::door::{self, Door};
use crate::broker::protocol::{self, ClientMessage, Failure, Reply, ServerMessage};
use crate::broker::record::ConnKind;
use crate::endpoint::Endpoint;
use crate::error::{Error, Result};
use crate::fds;
use crate::paced::PacedEndpoint;
use crate::unix_socket::SocketFile;

/// How long a process may take to say what it wants, and to take an answer.
const PROCESS_TIMEOUT: Duration = Duration::from_secs(5);
/// Calls, listeners and questions at a time.
const PROCESSES_MAX: usize = 4096;

/// How to start the broker of a kernel that shares no memory.
#[derive(Clone, Debug)]
pub struct RelayedBrokerConfig {
    /// The CID of this kernel.
    pub cid: Cid,
    /// Its name.
    pub name: String,
    /// The CID of the primary, to which the paced link leads.
    pub primary: Cid,
    /// Unix socket on which applications attach. A stale file of a dead broker is replaced.
    pub socket: PathBuf,
    /// Group that may attach beside root and our own user. Default none.
    pub allowed_gid: Option<u32>,
    /// Who may connect to us. Default [`Policy::default`].
    pub policy: Policy,
}

impl RelayedBrokerConfig {
    /// Defaults for the kernel `name`, which has this CID.
    pub fn new(cid: Cid, name: impl Into<String>, primary: Cid, socket: impl Into<PathBuf>) -> Self {
        let (name, socket, policy) = (name.into(), socket.into(), Policy::default());
        Self { cid, name, primary, socket, allowed_gid: None, policy }
    }
}

/// A running broker of a kernel that shares no memory. Dropping the last clone stops it: nobody can attach or listen any more. Clones share it.
#[derive(Clone, Debug)]
pub struct RelayedBroker(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    listeners: Arc<Listeners>,
    _relay: RelayHandle,
    _socket: SocketFile,
}

/// What every process is attended with.
#[derive(Clone, Debug)]
struct Desk {
    listeners: Arc<Listeners>,
    relay: Relay,
}

impl RelayedBroker {
    /// Starts it as tasks of the current Tokio runtime. Everything to and from other kernels goes over `paced`.
    ///
    /// # Errors
    /// [`Error::Io`] if the socket cannot be bound; [`Error::AddrInUse`] if something else on `paced` listens on [`Port::RELAY`].
    pub async fn start(config: RelayedBrokerConfig, paced: PacedEndpoint) -> Result<Self> {
        let RelayedBrokerConfig { cid, name, primary, socket, allowed_gid, policy } = config;
        let listeners = Listeners::new(cid, name, policy);
        let endpoint = Endpoint::paced(paced);
        let relay = Relay::apart(Arc::clone(&listeners), endpoint.clone(), primary);
        let (listener, socket) = door::listen(&socket, allowed_gid)?;
        let desk = Desk { listeners: Arc::clone(&listeners), relay: relay.clone() };
        let mut handle = relay.start(&[endpoint]).await?;
        handle.0.push(tokio::spawn(desk.serve(listener, Door { allowed_gid })));
        Ok(Self(Arc::new(Inner { listeners, _relay: handle, _socket: socket })))
    }

    /// Replaces the policy. Connections already made stay.
    pub fn set_policy(&self, policy: Policy) {
        self.0.listeners.set_policy(policy);
    }

    /// The named services that listen in this kernel.
    pub fn services(&self) -> Vec<(String, Port)> {
        self.0.listeners.services()
    }
}

impl Desk {
    async fn serve(self, listener: UnixListener, door: Door) {
        let processes = Arc::new(Semaphore::new(PROCESSES_MAX));
        loop {
            let Ok(turn) = Arc::clone(&processes).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let (desk, verdict) = (self.clone(), door.judge(&stream));
                    tokio::spawn(async move {
                        if let Err(error) = desk.attend(stream, verdict).await {
                            tracing::debug!(%error, "a process was not attended to");
                        }
                        drop(turn);
                    });
                }
                Err(error) => {
                    // Out of descriptors, most likely: it may pass.
                    tracing::warn!(%error, "a process could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn attend(self, mut stream: UnixStream, verdict: Result<bool, String>) -> Result<()> {
        let mut buffer = Vec::new();
        let hello = timeout(PROCESS_TIMEOUT, door::hello(&mut stream, &mut buffer, verdict)).await;
        let is_privileged = match hello.unwrap_or_else(|_| Err("no hello came in time".into())) {
            Ok(is_privileged) => is_privileged,
            Err(reason) => return tell(&stream, &ServerMessage::Rejected { reason }, None).await,
        };
        let welcome = ServerMessage::Apart { version: protocol::VERSION, cid: self.listeners.cid() };
        tell(&stream, &welcome, None).await?;
        // One who only wants to know whether we are there hangs up.
        let next = timeout(PROCESS_TIMEOUT, next_message(&mut stream, &mut buffer)).await;
        let Ok(Ok(Some(message))) = next else { return Ok(()) };
        match message {
            ClientMessage::Connect { request, addr, kind, timeout_ms, .. } => {
                let within = Duration::from_millis(timeout_ms);
                let answer = tokio::select! {
                    answer = self.connect(request, addr, kind, within) => answer,
                    () = gone(&stream) => return Ok(()),
                };
                let (result, socket) = apart(answer);
                tell(&stream, &ServerMessage::Done { request, result }, socket).await
            }
            ClientMessage::Resolve { request, name } => {
                let result = self.resolve(&name).await.map(Reply::Resolved);
                tell(&stream, &ServerMessage::Done { request, result }, None).await
            }
            ClientMessage::Listen { request, port, kind, backlog, name, .. } => {
                let stream = Arc::new(stream);
                let wanted = Wanted { port, kind, backlog, name, is_privileged };
                match self.listeners.bind(wanted, &stream) {
                    Ok(bound) => {
                        let result = Ok(Reply::Listening(bound.addr));
                        tell(&stream, &ServerMessage::Done { request, result }, None).await?;
                        listen(&stream, bound, kind, buffer).await
                    }
                    Err(failure) => {
                        tell(&stream, &ServerMessage::Done { request, result: Err(failure) }, None).await
                    }
                }
            }
            _ => Err(Error::Invalid("the first message of a process was no request".into())),
        }
    }

    async fn connect(
        &self,
        request: u64,
        target: Addr,
        kind: ConnKind,
        within: Duration,
    ) -> Result<(Reply, OwnedFd), Failure> {
        let own = self.listeners.cid();
        if target.port == Port::ANY || target.port.0 == 0 || target.port == Port::RELAY {
            return Err(Failure::Invalid { reason: format!("one cannot connect to port {}", target.port) });
        }
        let remote = if target.cid == Cid::LOCAL { Addr::new(own, target.port) } else { target };
        let local = Addr::new(own, self.listeners.ephemeral());
        let connected = if remote.cid == own {
            self.connect_here(request, local, remote.port, kind)
        } else {
            let relayed = self.relay.connect(local.port, remote, kind, within).await;
            relayed.and_then(|relayed| relayed.into_socket(request))
        };
        let socket = connected.map_err(|refusal| refusal.failure(remote))?;
        Ok((Reply::Relayed { local, remote }, socket))
    }

    /// Both ends are processes of this kernel, and have the connection to themselves.
    fn connect_here(
        &self,
        request: u64,
        source: Addr,
        port: Port,
        kind: ConnKind,
    ) -> Result<OwnedFd, Refusal> {
        let caller = Caller { addr: source, name: String::new(), is_primary: false };
        let mut near = None;
        self.listeners.arrive(&caller, port, kind, |conn| {
            let [ours, theirs] = RelaySocket::pair_for_others([request, conn])?;
            near = Some(ours);
            Ok(theirs)
        })?;
        near.ok_or(Refusal::TooMany)
    }

    async fn resolve(&self, name: &str) -> Result<Addr, Failure> {
        let found = if name.contains('/') {
            self.relay.resolve(name).await
        } else {
            self.listeners.resolve(name).ok_or(Refusal::NoSuchName)
        };
        found.map_err(|refusal| refusal.failure(Addr::new(Cid::ANY, Port::ANY)))
    }
}

/// Hands a process what comes for its listener, until it hangs up.
async fn listen(stream: &UnixStream, mut bound: Bound, kind: ConnKind, mut buffer: Vec<u8>) -> Result<()> {
    let failed = |source| Error::io("listening for a process", source);
    loop {
        while let Some(message) = protocol::take::<ClientMessage>(&mut buffer)? {
            match message {
                ClientMessage::Accepted { .. } => bound.accepted(),
                _ => return Err(Error::Invalid("a listener said something else".into())),
            }
        }
        tokio::select! {
            arrived = bound.arrivals.recv() => {
                let Some(Arrived { conn, source, socket }) = arrived else { return Ok(()) };
                let message = ServerMessage::Relayed { port: bound.addr.port, conn, kind, remote: source };
                tell(stream, &message, Some(socket)).await?;
            }
            ready = stream.readable() => {
                ready.map_err(failed)?;
                match stream.try_read_buf(&mut buffer) {
                    Ok(0) => return Ok(()),
                    Ok(_) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(failed(error)),
                }
            }
        }
    }
}

/// Waits until a process that waits for an answer waits no more: it has hung up, or says what it should not.
async fn gone(stream: &UnixStream) {
    loop {
        let is_ready = stream.readable().await;
        let heard = is_ready.and_then(|()| stream.try_read(&mut [0]));
        if !heard.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock) {
            return;
        }
    }
}

fn apart(answer: Result<(Reply, OwnedFd), Failure>) -> (Result<Reply, Failure>, Option<OwnedFd>) {
    match answer {
        Ok((reply, socket)) => (Ok(reply), Some(socket)),
        Err(failure) => (Err(failure), None),
    }
}

async fn tell(stream: &UnixStream, message: &ServerMessage, passed: Option<OwnedFd>) -> Result<()> {
    let bytes = protocol::encode(message)?;
    let failed = |source| Error::io("answering a process", source);
    let silent = |_| failed(std::io::ErrorKind::TimedOut.into());
    timeout(PROCESS_TIMEOUT, fds::pass(stream, &bytes, passed)).await.map_err(silent)?.map_err(failed)
}

/// `None`: it has hung up.
async fn next_message(stream: &mut UnixStream, buffer: &mut Vec<u8>) -> Result<Option<ClientMessage>> {
    loop {
        if let Some(message) = protocol::take(buffer)? {
            return Ok(Some(message));
        }
        let read = stream.read_buf(buffer).await;
        if read.map_err(|source| Error::io("hearing a process", source))? == 0 {
            return Ok(None);
        }
    }
}
