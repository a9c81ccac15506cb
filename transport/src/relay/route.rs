//! [`Relay`]: what goes to the next kernel, and what comes from it.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::listeners::{Caller, Listeners};
use super::pump::{carry, carry_on};
use super::request::{ANSWER_BYTES, Answer, REQUEST_HEAD_BYTES, Refusal, Request, What};
use super::socket::RelaySocket;
use crate::addr::{Addr, Cid, Port};
use crate::broker::BrokerHandle;
use crate::broker::core::{Ask, Elsewhere};
use crate::broker::protocol::{Failure, Reply};
use crate::broker::record::ConnKind;
use crate::endpoint::Endpoint;
use crate::error::{Error, Result};
use crate::listener::Listener;
use crate::options::{ConnectOptions, ListenOptions};
use crate::paced::PacedEndpoint;
use crate::stream::Stream;

/// How long one who has opened a stream may take to say what it is for.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a kernel may take to say where one of its services listens.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
/// What one kernel has relayed at a time, calls and questions under way included: half the streams of a paced link, so that none takes all of another's.
const CONNECTIONS_MAX: usize = 256;
/// Streams that may wait to be taken.
const BACKLOG: u32 = 128;

/// Which kernels there are, for the relay of the primary.
pub trait Directory: Send + Sync + 'static {
    /// The name of the kernel that has this CID now, the primary's own included.
    fn name_of(&self, cid: Cid) -> Option<String>;
    /// The CID of the kernel of this name.
    fn cid_of(&self, name: &str) -> Option<Cid>;
}

/// Relays in one kernel. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Relay(Arc<Inner>);

/// A relay that works, until this is dropped. Connections that were made stay.
#[derive(Debug)]
pub struct RelayHandle(pub(super) Vec<JoinHandle<()>>);

#[derive(Debug)]
struct Inner {
    cid: Cid,
    here: Here,
    way: Way,
    /// By the kernel that calls.
    rooms: Mutex<HashMap<Cid, Arc<Semaphore>>>,
}

/// Who listens in this kernel.
#[derive(Debug)]
pub(super) enum Here {
    Pool(BrokerHandle),
    Apart(Arc<Listeners>),
}

/// How to get to the next kernel.
enum Way {
    /// Everything goes to the primary.
    Primary { endpoint: Endpoint, primary: Cid },
    /// This is the primary.
    Each { fabric: Endpoint, paced: PacedEndpoint, directory: Arc<dyn Directory> },
}

impl Drop for RelayHandle {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

impl RelayHandle {
    /// Relays in the primary kernel: between its applications and kernels that share no memory, and between any two others of which one
    /// does not.
    ///
    /// # Errors
    /// What listening on [`Port::RELAY`] fails with.
    pub async fn of_primary(
        broker: &BrokerHandle,
        paced: PacedEndpoint,
        directory: Arc<dyn Directory>,
    ) -> Result<Self> {
        let fabric = broker.endpoint().await?;
        let over_links = Endpoint::paced(paced.clone());
        let doors = [&fabric, &over_links].map(|endpoint| endpoint.clone());
        let way = Way::Each { fabric: fabric.clone(), paced, directory };
        Relay::new(fabric.local_cid(), Here::Pool(broker.clone()), way).start(&doors).await
    }

    /// Relays in a spawned kernel that shares memory: to and from those that do not, by the primary.
    ///
    /// # Errors
    /// What listening on [`Port::RELAY`] fails with.
    pub async fn of_member(broker: &BrokerHandle, primary: Cid) -> Result<Self> {
        let endpoint = broker.endpoint().await?;
        let way = Way::Primary { endpoint: endpoint.clone(), primary };
        Relay::new(endpoint.local_cid(), Here::Pool(broker.clone()), way).start(&[endpoint]).await
    }
}

impl Relay {
    /// Of a kernel that shares no memory.
    pub(super) fn apart(listeners: Arc<Listeners>, endpoint: Endpoint, primary: Cid) -> Self {
        Self::new(listeners.cid(), Here::Apart(listeners), Way::Primary { endpoint, primary })
    }

    fn new(cid: Cid, here: Here, way: Way) -> Self {
        Self(Arc::new(Inner { cid, here, way, rooms: Mutex::default() }))
    }

    /// Takes what comes through these doors, and what the broker asks for.
    pub(super) async fn start(self, doors: &[Endpoint]) -> Result<RelayHandle> {
        let mut handle = RelayHandle(Vec::new());
        for door in doors {
            let options = ListenOptions { backlog: BACKLOG, ..ListenOptions::default() };
            let listener = door.listen(Port::RELAY, options).await?;
            handle.0.push(tokio::spawn(self.clone().serve(listener)));
        }
        if let Here::Pool(broker) = &self.0.here {
            let mut asked = broker.relay_elsewhere()?;
            let relay = self.clone();
            handle.0.push(tokio::spawn(async move {
                while let Some(elsewhere) = asked.recv().await {
                    tokio::spawn(relay.clone().ask_for_broker(elsewhere));
                }
            }));
        }
        Ok(handle)
    }

    async fn serve(self, mut listener: Listener) {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => drop(tokio::spawn(self.clone().answer(stream, peer))),
                // The broker of this kernel has ended, in good order as a rule: whoever runs it says why if not.
                Err(error) => {
                    tracing::debug!(%error, "connections from kernels without shared memory are taken no more");
                    return;
                }
            }
        }
    }

    /// Connects an application of this kernel to `target` elsewhere. What came is to be [carried](Relayed::into_socket).
    pub(super) async fn connect(
        &self,
        source: Port,
        target: Addr,
        kind: ConnKind,
        within: Duration,
    ) -> Result<Relayed, Refusal> {
        let source = Addr::new(self.0.cid, source);
        let what = What::Connection(kind);
        let room = self.room(self.0.cid)?;
        let request = self.stamped(Request { what, within, source, target, name: String::new() }, self.0.cid);
        let stream = timeout(within, self.dial(&request)).await.map_err(|_| Refusal::TimedOut)??;
        Ok(Relayed { stream, room })
    }

    /// Finds `NAME/SERVICE` elsewhere.
    pub(super) async fn resolve(&self, name: &str) -> Result<Addr, Refusal> {
        match &self.0.way {
            Way::Primary { .. } => self.ask_for_name(Addr::new(Cid::ANY, Port::ANY), name).await,
            Way::Each { directory, .. } => {
                let (kernel, service) = name.split_once('/').ok_or(Refusal::NoSuchName)?;
                let by_number = || kernel.parse().ok().map(Cid);
                let cid = directory.cid_of(kernel).or_else(by_number).ok_or(Refusal::NoSuchName)?;
                if cid == self.0.cid {
                    return self.resolve_here(service).await;
                }
                self.ask_for_name(Addr::new(cid, Port::ANY), service).await
            }
        }
    }

    async fn ask_for_name(&self, target: Addr, name: &str) -> Result<Addr, Refusal> {
        let _room = self.room(self.0.cid)?;
        let source = Addr::new(self.0.cid, Port::ANY);
        let request =
            Request { what: What::Name, within: RESOLVE_TIMEOUT, source, target, name: name.into() };
        let asked = timeout(RESOLVE_TIMEOUT, self.ask(&request)).await.map_err(|_| Refusal::TimedOut)?;
        match asked? {
            (_, Answer::Resolved(addr)) => Ok(addr),
            (_, Answer::Refused(refusal)) => Err(refusal),
            (_, Answer::Connected) => Err(Refusal::BadRequest),
        }
    }

    async fn resolve_here(&self, service: &str) -> Result<Addr, Refusal> {
        match &self.0.here {
            Here::Apart(listeners) => listeners.resolve(service).ok_or(Refusal::NoSuchName),
            Here::Pool(broker) => {
                let services = broker.services().await.map_err(|_| Refusal::NoKernel)?;
                let found = services.into_iter().find(|(name, _)| name == service);
                let (_, port) = found.ok_or(Refusal::NoSuchName)?;
                Ok(Addr::new(self.0.cid, port))
            }
        }
    }

    async fn dial(&self, request: &Request) -> Result<Stream, Refusal> {
        match self.ask(request).await? {
            (stream, Answer::Connected) => Ok(stream),
            (_, Answer::Refused(refusal)) => Err(refusal),
            (_, Answer::Resolved(_)) => Err(Refusal::BadRequest),
        }
    }

    /// Asks the next kernel on the way to the target. Whoever calls keeps the time.
    async fn ask(&self, request: &Request) -> Result<(Stream, Answer), Refusal> {
        let (endpoint, cid) = match &self.0.way {
            Way::Primary { endpoint, primary } => (endpoint.clone(), *primary),
            Way::Each { paced, .. } if paced.leads_to(request.target.cid) => {
                (Endpoint::paced(paced.clone()), request.target.cid)
            }
            Way::Each { fabric, .. } => (fabric.clone(), request.target.cid),
        };
        let options = ConnectOptions { timeout: request.within, ..ConnectOptions::default() };
        let connected = endpoint.connect_with(Addr::new(cid, Port::RELAY), &options).await;
        let mut stream = connected.map_err(|error| match error {
            Error::TimedOut { .. } => Refusal::TimedOut,
            _ => Refusal::NoKernel,
        })?;
        let mut answer = [0; ANSWER_BYTES];
        let asking = async {
            stream.write_all(&request.encode()).await?;
            stream.read_exact(&mut answer).await
        };
        asking.await.map_err(|_: io::Error| Refusal::NoKernel)?;
        Ok((stream, Answer::decode(&answer).ok_or(Refusal::BadRequest)?))
    }

    /// One who has opened a stream to us.
    async fn answer(self, mut stream: Stream, peer: Addr) {
        let Ok(Ok(request)) = timeout(REQUEST_TIMEOUT, read_request(&mut stream)).await else { return };
        let outcome = match request {
            Some(request) => self.decide(request, peer).await,
            None => Err(Refusal::BadRequest),
        };
        let said = match &outcome {
            Ok(Decided::Name(addr)) => Answer::Resolved(*addr),
            Ok(Decided::Here { .. } | Decided::Elsewhere(_)) => Answer::Connected,
            Err(refusal) => Answer::Refused(*refusal),
        };
        if stream.write_all(&said.encode()).await.is_err() {
            return;
        }
        match outcome {
            Ok(Decided::Here { socket, room: _room }) => carry(socket, stream).await,
            Ok(Decided::Elsewhere(Relayed { stream: other, room: _room })) => carry_on(stream, other).await,
            Ok(Decided::Name(_)) | Err(_) => {
                let _ = stream.shutdown().await;
            }
        }
    }

    async fn decide(&self, request: Request, peer: Addr) -> Result<Decided, Refusal> {
        let is_primary = match &self.0.way {
            // Only the primary speaks for others.
            Way::Primary { primary, .. } if peer.cid != *primary => return Err(Refusal::Denied),
            Way::Primary { primary, .. } => request.source.cid == *primary,
            Way::Each { .. } => peer.cid == self.0.cid,
        };
        let request = self.stamped(request, peer.cid);
        let kind = match (request.what, &self.0.way) {
            (What::Name, Way::Primary { .. }) => {
                return self.resolve_here(&request.name).await.map(Decided::Name);
            }
            (What::Name, Way::Each { .. }) => return self.resolve(&request.name).await.map(Decided::Name),
            (What::Connection(kind), _) => kind,
        };
        let room = self.room(request.source.cid)?;
        let target = request.target;
        if target.cid == self.0.cid {
            let caller = Caller { addr: request.source, name: request.name, is_primary };
            let socket = self.arrive(caller, target.port, kind).await?;
            return Ok(Decided::Here { socket, room });
        }
        if matches!(self.0.way, Way::Primary { .. }) {
            return Err(Refusal::NoKernel);
        }
        let stream = timeout(request.within, self.dial(&request)).await.map_err(|_| Refusal::TimedOut)??;
        Ok(Decided::Elsewhere(Relayed { stream, room }))
    }

    /// A request as the next kernel may believe it. The primary says itself whose it is: the kernel that it came from.
    fn stamped(&self, mut request: Request, from: Cid) -> Request {
        if let (Way::Each { directory, .. }, What::Connection(_)) = (&self.0.way, request.what) {
            request.source.cid = from;
            request.name = directory.name_of(from).unwrap_or_default();
        }
        request
    }

    /// Somebody calls a port of this kernel.
    pub(super) async fn arrive(
        &self,
        caller: Caller,
        port: Port,
        kind: ConnKind,
    ) -> Result<RelaySocket, Refusal> {
        match &self.0.here {
            Here::Pool(broker) => broker.arrive(caller, port, kind).await,
            Here::Apart(listeners) => {
                let mut near = None;
                listeners.arrive(&caller, port, kind, |conn| {
                    let (ours, theirs) = RelaySocket::pair(conn)?;
                    near = Some(ours);
                    Ok(theirs)
                })?;
                near.ok_or(Refusal::TooMany)
            }
        }
    }

    async fn ask_for_broker(self, elsewhere: Elsewhere) {
        let Here::Pool(broker) = &self.0.here else { return };
        let Elsewhere { client, request, ask, failure } = elsewhere;
        // What the broker knows of its kernel says more than that it is not there.
        let said = |refusal: Refusal, target| match refusal {
            Refusal::NoKernel | Refusal::NoSuchName => failure.clone(),
            other => other.failure(target),
        };
        let answered = match ask {
            Ask::Connection { source, target, kind, within } => {
                let connected = self.connect(source, target, kind, within).await;
                let socket = connected.and_then(|relayed| relayed.into_socket(request));
                let local = Addr::new(self.0.cid, source);
                socket
                    .map(|socket| (Reply::Relayed { local, remote: target }, Some(socket)))
                    .map_err(|refusal| said(refusal, target))
            }
            Ask::Name(name) => {
                let resolved = self.resolve(&name).await;
                let nowhere = Addr::new(Cid::ANY, Port::ANY);
                resolved.map(|addr| (Reply::Resolved(addr), None)).map_err(|refusal| said(refusal, nowhere))
            }
        };
        broker.answer_elsewhere(client, request, answered);
    }

    /// A place among what kernel `of` has relayed here.
    fn room(&self, of: Cid) -> Result<OwnedSemaphorePermit, Refusal> {
        let mut rooms = self.0.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        let room = rooms.entry(of).or_insert_with(|| Arc::new(Semaphore::new(CONNECTIONS_MAX)));
        Arc::clone(room).try_acquire_owned().map_err(|_| Refusal::TooMany)
    }
}

/// What an application is told, and its end of the connection.
pub(crate) type Answered = Result<(Reply, Option<OwnedFd>), Failure>;

/// A connection to another kernel that has been accepted there.
pub(super) struct Relayed {
    stream: Stream,
    room: OwnedSemaphorePermit,
}

impl Relayed {
    /// Carries it from now on. The application's end, of connection `id`.
    pub(super) fn into_socket(self, id: u64) -> Result<OwnedFd, Refusal> {
        let (near, far) = RelaySocket::pair(id).map_err(|error| {
            tracing::warn!(%error, "no socket for a connection could be made");
            Refusal::TooMany
        })?;
        let Self { stream, room } = self;
        tokio::spawn(async move {
            carry(near, stream).await;
            drop(room);
        });
        Ok(far)
    }
}

/// What comes of one who called.
enum Decided {
    Name(Addr),
    Here { socket: RelaySocket, room: OwnedSemaphorePermit },
    Elsewhere(Relayed),
}

/// `None`: it makes no sense.
async fn read_request(stream: &mut Stream) -> io::Result<Option<Request>> {
    let mut head = [0; REQUEST_HEAD_BYTES];
    stream.read_exact(&mut head).await?;
    let mut name = vec![0; Request::name_len(&head)];
    stream.read_exact(&mut name).await?;
    Ok(Request::decode(&head, &name))
}

impl fmt::Debug for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Primary { .. } => "Primary",
            Self::Each { .. } => "Each",
        })
    }
}
