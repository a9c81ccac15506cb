//! What a process in a kernel without shared memory has of its broker.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::socket::{RelaySocket, RelayStream};
use crate::addr::{Addr, Cid, Port};
use crate::broker::protocol::{self, ClientMessage, Reply, ServerMessage};
use crate::broker::record::ConnKind;
use crate::error::{Error, ResetCause, Result};
use crate::fds;
use crate::messages::Messages;
use crate::options::{ConnectOptions, ListenOptions};
use crate::stream::Stream;

/// How long the broker may take to answer what needs no time of its own; twice what it gives another to tell a name.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Added to the time of a call, which the broker keeps: for one that hangs.
const GRACE: Duration = Duration::from_secs(1);

/// An attachment to the broker of a kernel that shares no memory. It holds nothing: each call, listener and question dials the broker.
#[derive(Clone, Debug)]
pub(crate) struct RelayEndpoint {
    socket: Arc<PathBuf>,
    cid: Cid,
    last_request: Arc<AtomicU64>,
}

/// Where connections for one port arrive.
#[derive(Debug)]
pub(crate) struct RelayListener {
    session: Session,
    local: Addr,
    message_bytes_max: usize,
}

/// A connection, with who is at its ends.
#[derive(Debug)]
pub(crate) struct RelayedConn {
    pub(crate) socket: RelaySocket,
    pub(crate) local: Addr,
    pub(crate) remote: Addr,
}

impl RelayedConn {
    pub(crate) fn into_stream(self) -> Stream {
        let Self { socket, local, remote } = self;
        Stream::from_io(RelayStream::new(socket, remote), local, remote)
    }

    pub(crate) fn into_messages(self, message_bytes_max: usize) -> Messages {
        let Self { socket, local, remote } = self;
        Messages::framed(RelayStream::new(socket, remote), local, remote, message_bytes_max)
    }
}

impl RelayEndpoint {
    /// The broker at `socket` has said that its kernel, `cid`, shares no memory.
    pub(crate) fn new(socket: PathBuf, cid: Cid) -> Self {
        Self { socket: Arc::new(socket), cid, last_request: Arc::default() }
    }

    pub(crate) fn local_cid(&self) -> Cid {
        self.cid
    }

    pub(crate) async fn connect(&self, addr: Addr, options: &ConnectOptions) -> Result<Stream> {
        Ok(self.dial(addr, ConnKind::Stream, options).await?.into_stream())
    }

    pub(crate) async fn connect_messages(&self, addr: Addr, options: &ConnectOptions) -> Result<Messages> {
        let conn = self.dial(addr, ConnKind::Messages, options).await?;
        Ok(conn.into_messages(options.sizes.message_bytes_max))
    }

    pub(crate) async fn resolve(&self, name: &str) -> Result<Addr> {
        let request = self.request();
        let message = ClientMessage::Resolve { request, name: name.to_owned() };
        match self.ask_in_time(&message).await?.1 {
            Ok(Reply::Resolved(addr)) => Ok(addr),
            Ok(reply) => Err(odd(&reply)),
            Err(failure) => Err(failure.for_resolve(name)),
        }
    }

    pub(crate) async fn listen(
        &self,
        port: Port,
        kind: ConnKind,
        options: ListenOptions,
    ) -> Result<RelayListener> {
        let ListenOptions { backlog, name, sizes } = options;
        let asked = name.clone();
        let message = ClientMessage::Listen { request: self.request(), port, kind, backlog, name, layout: 0 };
        let (session, result) = self.ask_in_time(&message).await?;
        match result {
            Ok(Reply::Listening(local)) => {
                Ok(RelayListener { session, local, message_bytes_max: sizes.message_bytes_max })
            }
            Ok(reply) => Err(odd(&reply)),
            Err(failure) => Err(failure.for_listen(Addr::new(self.cid, port), asked.as_deref())),
        }
    }

    async fn dial(&self, addr: Addr, kind: ConnKind, options: &ConnectOptions) -> Result<RelayedConn> {
        let request = self.request();
        let deadline_ms = options.timeout.as_millis() as u64;
        let message = ClientMessage::Connect { request, addr, kind, layout: 0, timeout_ms: deadline_ms };
        let answered = timeout(options.timeout.saturating_add(GRACE), self.ask(&message)).await;
        let (mut session, result) = answered.map_err(|_| Error::TimedOut { addr, deadline_ms })??;
        match result {
            Ok(Reply::Relayed { local, remote }) => {
                let lost =
                    || Error::Invalid("the broker passed no connection, or no descriptor is free".into());
                let socket = session.sockets.remove(&request).ok_or_else(lost)?;
                Ok(RelayedConn { socket, local, remote })
            }
            Ok(reply) => Err(odd(&reply)),
            Err(failure) => Err(failure.for_connect(addr, deadline_ms)),
        }
    }

    fn request(&self) -> u64 {
        self.last_request.fetch_add(1, Ordering::Relaxed) + 1
    }

    async fn ask_in_time(&self, message: &ClientMessage) -> Result<(Session, Answer)> {
        let silent = |_| asking(io::ErrorKind::TimedOut.into());
        timeout(ANSWER_TIMEOUT, self.ask(message)).await.map_err(silent)?
    }

    /// Asks the broker one thing. What else it says is for the session.
    async fn ask(&self, message: &ClientMessage) -> Result<(Session, Answer)> {
        let stream = UnixStream::connect(&*self.socket).await.map_err(asking)?;
        let mut session = Session { stream, said: Vec::new(), sockets: HashMap::new() };
        session.say(&ClientMessage::Hello { version: protocol::VERSION }).await?;
        match session.hear().await? {
            ServerMessage::Apart { version: protocol::VERSION, cid } if cid == self.cid => {}
            ServerMessage::Rejected { reason } => {
                return Err(asking(io::Error::new(io::ErrorKind::PermissionDenied, reason)));
            }
            _ => return Err(asking(io::Error::other("it is another one than before: attach again"))),
        }
        session.say(message).await?;
        match session.hear().await? {
            ServerMessage::Done { result, .. } => Ok((session, result)),
            _ => Err(asking(io::Error::other("it answered something else"))),
        }
    }
}

type Answer = std::result::Result<Reply, protocol::Failure>;

impl RelayListener {
    pub(crate) async fn accept_stream(&mut self) -> Result<(Stream, Addr)> {
        let conn = self.accept().await?;
        let remote = conn.remote;
        Ok((conn.into_stream(), remote))
    }

    pub(crate) async fn accept_messages(&mut self) -> Result<(Messages, Addr)> {
        let conn = self.accept().await?;
        let remote = conn.remote;
        Ok((conn.into_messages(self.message_bytes_max), remote))
    }

    pub(crate) fn local_addr(&self) -> Addr {
        self.local
    }

    /// Waits only for the next message: a dropped future loses nothing.
    async fn accept(&mut self) -> Result<RelayedConn> {
        loop {
            let gone = |_| Error::Reset { peer: self.local, cause: ResetCause::BrokerDied };
            let message = self.session.hear().await.map_err(gone)?;
            let ServerMessage::Relayed { conn, remote, .. } = message else { continue };
            if let Ok(bytes) = protocol::encode(&ClientMessage::Accepted { conn }) {
                // A broker that does not read it has gone, or counts us as waiting a little longer.
                let _ = self.session.stream.try_write(&bytes);
            }
            // One that could not be passed (we have no descriptors left) has been reset.
            if let Some(socket) = self.session.sockets.remove(&conn) {
                return Ok(RelayedConn { socket, local: self.local, remote });
            }
        }
    }
}

/// One conversation with the broker.
#[derive(Debug)]
struct Session {
    stream: UnixStream,
    said: Vec<u8>,
    /// Connections that came, by their number.
    sockets: HashMap<u64, RelaySocket>,
}

impl Session {
    async fn say(&mut self, message: &ClientMessage) -> Result<()> {
        self.stream.write_all(&protocol::encode(message)?).await.map_err(asking)
    }

    async fn hear(&mut self) -> Result<ServerMessage> {
        loop {
            if let Some(message) = protocol::take(&mut self.said)? {
                return Ok(message);
            }
            self.stream.readable().await.map_err(asking)?;
            let mut passed: Vec<OwnedFd> = Vec::new();
            let (stream, said) = (&self.stream, &mut self.said);
            match stream.try_io(Interest::READABLE, || fds::receive(stream, said, &mut passed)) {
                Ok(0) => return Err(asking(io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(asking(error)),
            }
            let recognised = passed.into_iter().filter_map(|fd| RelaySocket::recognise(fd).ok());
            self.sockets.extend(recognised);
        }
    }
}

fn asking(source: io::Error) -> Error {
    Error::io("asking the broker of this kernel", source)
}

fn odd(reply: &Reply) -> Error {
    Error::Invalid(format!("the broker's answer does not fit: {reply:?}"))
}
