//! A process's attachment to its broker: requests and answers, connections that arrive, and the broker's end.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::addr::{Addr, Cid, Port};
use crate::bells::Board;
use crate::broker::protocol::{self, ClientMessage, Failure, Reply, ServerMessage};
use crate::doorbell::{self, Bell};
use crate::error::{Error, Result};
use crate::fds;
use crate::mem::OwnSpan;
use crate::options::AttachOptions;
use crate::pool::{Member, Place, Pool};
use crate::relay::{RelaySocket, RelayedConn};
use crate::shm::conn::{Conn, OwnWords};
use crate::shm::conns::Conns;
use crate::shm::{budget, reactor};

/// How long the broker may take to welcome us.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the broker may take to answer what needs no time of its own; twice what it gives another broker to tell a name.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The attachment. Ends when the last endpoint, listener and connection of it is dropped.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) cid: Cid,
    pub(super) member: Member,
    pub(super) pool: Pool,
    pub(super) own_words: OwnWords,
    /// How long a task asks before it sleeps, at most.
    pub(super) budget_ticks: u64,
    /// This kernel has one processor.
    pub(super) is_uniprocessor: bool,
    /// Our own description of the pool, or of the file of locks: the broker's locks on our halves last as long as it. See `broker::locks`.
    _locks: OwnedFd,
    bell: OwnedFd,
    /// The doorbell line of this kernel, where we may ring it without our broker.
    line: Option<OwnedFd>,
    outgoing: mpsc::UnboundedSender<Vec<u8>>,
    broker_died: AtomicBool,
    next_request: AtomicU64,
    /// `None` once the broker is lost: nobody would answer.
    pending: Mutex<Option<HashMap<u64, Pending>>>,
    listeners: Mutex<HashMap<Port, mpsc::UnboundedSender<Arrival>>>,
    conns: Mutex<Conns>,
    /// Where bells of this kernel are counted.
    board: Board<OwnSpan>,
    /// The bells of other processes of this kernel.
    neighbours: Mutex<HashMap<u64, Arc<OwnedFd>>>,
    /// Directions that sleep.
    parked_count: AtomicUsize,
    pub(super) first_parked: Arc<Notify>,
    pub(super) found_by_timer: AtomicU64,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

/// A connection that was made.
#[derive(Debug)]
pub(super) enum Arrival {
    /// Through the pool.
    Pool(Arc<Conn>),
    /// Relayed; the broker's number for it.
    Relayed(u64, RelayedConn),
}
/// Where a listener's connections come out, and where it listens.
pub(super) type Listening = (Addr, mpsc::UnboundedReceiver<Arrival>);

/// Who waits for an answer. Answers are turned into what owns its resources before they are passed on, so that one who has
/// stopped waiting leaves nothing behind.
#[derive(Debug)]
enum Pending {
    Connect(Addr, u64, oneshot::Sender<Result<Arrival>>),
    Listen(Addr, Option<String>, oneshot::Sender<Result<Listening>>),
    Resolve(String, oneshot::Sender<Result<Addr>>),
}

impl Client {
    pub(super) async fn attach_path(socket: &Path, options: &AttachOptions) -> Result<Attached> {
        let attempt = || format!("attaching to the broker at {}", socket.display());
        let stream = UnixStream::connect(socket).await.map_err(|e| Error::io(attempt(), e))?;
        Self::attach(stream, options, &attempt()).await
    }

    pub(super) async fn attach(
        stream: UnixStream,
        options: &AttachOptions,
        attempt: &str,
    ) -> Result<Attached> {
        let welcome = tokio::time::timeout(WELCOME_TIMEOUT, welcome(stream));
        let welcome = welcome
            .await
            .map_err(|_| io::ErrorKind::TimedOut.into())
            .and_then(|welcome| welcome)
            .map_err(|e| Error::io(attempt, e))?;
        let welcome = match welcome {
            Welcomed::Pool(welcome) => *welcome,
            Welcomed::Apart(cid) => return Ok(Attached::Apart(cid)),
        };
        let Welcome { stream, rest, cid, member, place, pool: pool_fd, eventfd, bell, locks, line } = welcome;
        let pool = Pool::map(&pool_fd, place, member, "of the broker")?;
        let board = Board::new(pool.own_board()?);
        let (read_half, write_half) = stream.into_split();
        let (outgoing, queue) = mpsc::unbounded_channel();
        let client = Arc::new(Self {
            cid,
            member,
            own_words: OwnWords::new(&pool, member),
            pool,
            budget_ticks: budget::budget_ticks(options.spin),
            is_uniprocessor: budget::is_uniprocessor(),
            _locks: locks.unwrap_or(pool_fd),
            bell,
            line,
            outgoing,
            broker_died: AtomicBool::new(false),
            next_request: AtomicU64::new(1),
            pending: Mutex::new(Some(HashMap::new())),
            listeners: Mutex::default(),
            conns: Mutex::default(),
            board,
            neighbours: Mutex::default(),
            parked_count: AtomicUsize::new(0),
            first_parked: Arc::new(Notify::new()),
            found_by_timer: AtomicU64::new(0),
            tasks: Mutex::default(),
        });
        let weak = || Arc::downgrade(&client);
        let reactor = reactor::spawn(weak(), eventfd, options.recheck)?;
        tokio::spawn(write(write_half, queue));
        *lock(&client.tasks) = vec![reactor, tokio::spawn(read(read_half, rest, weak()))];
        Ok(Attached::Pool(client))
    }

    pub(super) async fn connect(
        self: &Arc<Self>,
        addr: Addr,
        timeout: Duration,
        message: impl FnOnce(u64) -> ClientMessage,
    ) -> Result<Arrival> {
        let deadline_ms = timeout.as_millis() as u64;
        let answer = self.request(|sender| Pending::Connect(addr, deadline_ms, sender), message)?;
        // The broker keeps the time; this is for a broker that hangs.
        let grace = Duration::from_secs(1);
        match tokio::time::timeout(timeout.saturating_add(grace), answer.wait()).await {
            Ok(result) => result,
            Err(_) => Err(Error::TimedOut { addr, deadline_ms }),
        }
    }

    pub(super) async fn listen(
        self: &Arc<Self>,
        addr: Addr,
        name: Option<String>,
        message: impl FnOnce(u64) -> ClientMessage,
    ) -> Result<Listening> {
        self.request(|sender| Pending::Listen(addr, name, sender), message)?.wait_bounded().await
    }

    pub(super) async fn resolve(self: &Arc<Self>, name: &str) -> Result<Addr> {
        let (wanted, asked) = (name.to_owned(), name.to_owned());
        let message = |request| ClientMessage::Resolve { request, name: asked };
        self.request(|sender| Pending::Resolve(wanted, sender), message)?.wait_bounded().await
    }

    fn request<T>(
        self: &Arc<Self>,
        pending: impl FnOnce(oneshot::Sender<Result<T>>) -> Pending,
        message: impl FnOnce(u64) -> ClientMessage,
    ) -> Result<Answer<T>> {
        let request = self.next_request.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        lock(&self.pending).as_mut().ok_or_else(broker_gone)?.insert(request, pending(sender));
        let answer = Answer { client: Arc::clone(self), request, receiver };
        self.outgoing.send(protocol::encode(&message(request))?).map_err(|_| broker_gone())?;
        Ok(answer)
    }

    pub(super) fn unlisten(&self, port: Port) {
        lock(&self.listeners).remove(&port);
        self.send(&ClientMessage::Unlisten { port });
    }

    pub(super) fn send(&self, message: &ClientMessage) {
        if let Ok(bytes) = protocol::encode(message) {
            let _ = self.outgoing.send(bytes);
        }
    }

    /// Rings for the connection with our half at `own_offset`: counts its bell, and makes the peer look, itself if we have its bell, else through
    /// its broker.
    pub(super) fn ring_for(&self, own_offset: u64, peer: Member, peer_bell: Option<&OwnedFd>) {
        self.board.count(own_offset);
        match peer_bell {
            Some(bell) => doorbell::ring_eventfd(bell),
            None => self.ring(peer),
        }
    }

    /// The bell of another process of this kernel, if the broker has passed it.
    pub(super) fn neighbour(&self, process: u64) -> Option<Arc<OwnedFd>> {
        lock(&self.neighbours).get(&process).cloned()
    }

    /// Rings a member's broker: over the line if we may, else through our broker, which also remembers whom a full line could
    /// not tell. A full pipe means that our broker has bells enough to look for.
    fn ring(&self, member: Member) {
        let bell = Bell::of(member);
        if let Some(line) = self.line.as_ref().filter(|_| member != self.member)
            && bell.ring(line).is_ok()
        {
            return;
        }
        let _ = bell.ring(&self.bell);
    }

    #[inline]
    pub(super) fn broker_died(&self) -> bool {
        self.broker_died.load(Ordering::Relaxed)
    }

    pub(super) fn register(&self, conn: &Arc<Conn>) {
        lock(&self.conns).insert(&self.pool, conn);
    }

    pub(super) fn forget(&self, conn: &Conn) {
        lock(&self.conns).remove(conn);
    }

    /// Wakes whoever sleeps on a connection for which there may be something; when no bell was heard (`by_timer`) also looks at a part of
    /// those for which none was counted. `found` is room to work in.
    pub(super) fn look(&self, by_timer: bool, found: &mut Vec<Arc<Conn>>) {
        lock(&self.conns).rung(&self.pool, by_timer, found);
        for conn in found.drain(..).filter(|conn| conn.is_parked()) {
            if conn.look() && by_timer {
                self.found_by_timer.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(?conn, "a lost bell was found by the timer");
            }
        }
    }

    pub(super) fn parked(&self) {
        if self.parked_count.fetch_add(1, Ordering::Relaxed) == 0 {
            self.first_parked.notify_one();
        }
    }

    pub(super) fn unparked(&self) {
        self.parked_count.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn is_anyone_parked(&self) -> bool {
        self.parked_count.load(Ordering::Relaxed) != 0
    }

    fn handle(self: &Arc<Self>, message: ServerMessage, passed: &mut Passed) {
        match message {
            ServerMessage::Done { request, result } => {
                self.handle_answer(request, result, passed.sockets.remove(&request));
            }
            ServerMessage::Relayed { port, conn, remote, .. } => {
                let Some(socket) = passed.sockets.remove(&conn) else {
                    // We had no descriptor left for it: it has been reset.
                    return self.send(&ClientMessage::Accepted { conn });
                };
                let local = Addr::new(self.cid, port);
                if let Some(listener) = lock(&self.listeners).get(&port) {
                    let relayed = RelayedConn { socket, local, remote };
                    let _ = listener.send(Arrival::Relayed(conn, relayed));
                }
            }
            ServerMessage::Incoming { port, grant } => {
                // A connection that cannot be opened has been given back already.
                let Ok(conn) = Conn::open(self, &grant) else { return };
                let listener = lock(&self.listeners).get(&port).cloned();
                if let Some(listener) = listener {
                    // If it has just been dropped, dropping the connection resets it.
                    let _ = listener.send(Arrival::Pool(conn));
                }
            }
            ServerMessage::Neighbour { process } => {
                // Without it (we have no descriptors left) the broker rings for us.
                if let Some(bell) = passed.bells.pop_front() {
                    lock(&self.neighbours).insert(process, Arc::new(bell));
                }
            }
            ServerMessage::NeighbourGone { process } => {
                lock(&self.neighbours).remove(&process);
            }
            ServerMessage::Welcome { .. } | ServerMessage::Apart { .. } | ServerMessage::Rejected { .. } => {}
        }
    }

    fn handle_answer(
        self: &Arc<Self>,
        request: u64,
        result: Result<Reply, Failure>,
        socket: Option<RelaySocket>,
    ) {
        let pending = lock(&self.pending).as_mut().and_then(|pending| pending.remove(&request));
        let odd = |reply: &Reply| Error::Invalid(format!("the broker's answer does not fit: {reply:?}"));
        match (pending, result) {
            (Some(Pending::Connect(addr, deadline_ms, sender)), result) => {
                let _ = sender.send(match result {
                    Ok(Reply::Connected(grant)) => Conn::open(self, &grant).map(Arrival::Pool),
                    Ok(Reply::Relayed { local, remote }) => socket
                        .map(|socket| Arrival::Relayed(0, RelayedConn { socket, local, remote }))
                        .ok_or_else(|| Error::Invalid("no descriptor is free for a connection".into())),
                    Ok(reply) => Err(odd(&reply)),
                    Err(failure) => Err(failure.for_connect(addr, deadline_ms)),
                });
            }
            (Some(Pending::Listen(addr, name, sender)), result) => {
                let result = match result {
                    Ok(Reply::Listening(addr)) => {
                        let (arrivals, receiver) = mpsc::unbounded_channel();
                        lock(&self.listeners).insert(addr.port, arrivals);
                        Ok((addr, receiver))
                    }
                    Ok(reply) => Err(odd(&reply)),
                    Err(failure) => Err(failure.for_listen(addr, name.as_deref())),
                };
                if let Err(Ok((addr, _))) = sender.send(result) {
                    self.unlisten(addr.port);
                }
            }
            (Some(Pending::Resolve(name, sender)), result) => {
                let _ = sender.send(match result {
                    Ok(Reply::Resolved(addr)) => Ok(addr),
                    Ok(reply) => Err(odd(&reply)),
                    Err(failure) => Err(failure.for_resolve(&name)),
                });
            }
            // Nobody waits for it any more.
            (None, Ok(Reply::Connected(grant))) => drop(Conn::open(self, &grant)),
            (None, Ok(Reply::Listening(addr))) => self.unlisten(addr.port),
            (None, _) => {}
        }
    }

    fn lose_broker(&self) {
        self.broker_died.store(true, Ordering::SeqCst);
        // Dropping the senders ends every wait.
        *lock(&self.pending) = None;
        lock(&self.listeners).clear();
        let mut all = Vec::new();
        lock(&self.conns).all(&mut all);
        all.iter().for_each(|conn| conn.broker_died());
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        lock(&self.tasks).drain(..).for_each(|task| task.abort());
    }
}

/// Waits for the answer to one request; dropped before it comes, cancels the request.
struct Answer<T> {
    client: Arc<Client>,
    request: u64,
    receiver: oneshot::Receiver<Result<T>>,
}

impl<T> Answer<T> {
    async fn wait(mut self) -> Result<T> {
        (&mut self.receiver).await.unwrap_or_else(|_| Err(broker_gone()))
    }

    /// For what a broker answers at once, or after a bounded time.
    async fn wait_bounded(self) -> Result<T> {
        let silent = || Error::io("asking the broker of this kernel", io::ErrorKind::TimedOut.into());
        tokio::time::timeout(ANSWER_TIMEOUT, self.wait()).await.unwrap_or_else(|_| Err(silent()))
    }
}

impl<T> Drop for Answer<T> {
    fn drop(&mut self) {
        let pending = lock(&self.client.pending).as_mut().and_then(|pending| pending.remove(&self.request));
        if pending.is_some() {
            self.client.send(&ClientMessage::Cancel { request: self.request });
        }
    }
}

struct Welcome {
    stream: UnixStream,
    /// Bytes received after the welcome.
    rest: Vec<u8>,
    cid: Cid,
    member: Member,
    place: Place,
    pool: OwnedFd,
    eventfd: OwnedFd,
    bell: OwnedFd,
    locks: Option<OwnedFd>,
    line: Option<OwnedFd>,
}

/// The broker's first answer.
enum Welcomed {
    Pool(Box<Welcome>),
    /// It has no pool, and its kernel this CID.
    Apart(Cid),
}

/// An attachment to a broker.
pub(super) enum Attached {
    Pool(Arc<Client>),
    /// It has no pool, and its kernel this CID.
    Apart(Cid),
}

/// Descriptors that came and are not yet asked for.
#[derive(Default)]
struct Passed {
    bells: VecDeque<OwnedFd>,
    /// Relayed connections, by what they begin with.
    sockets: HashMap<u64, RelaySocket>,
}

impl Passed {
    fn take_up(&mut self, fds: &mut Vec<OwnedFd>) {
        for fd in fds.drain(..) {
            match RelaySocket::recognise(fd) {
                Ok((id, socket)) => drop(self.sockets.insert(id, socket)),
                Err(bell) => self.bells.push_back(bell),
            }
        }
    }
}

async fn welcome(mut stream: UnixStream) -> io::Result<Welcomed> {
    let other = |reason: String| io::Error::other(reason);
    let hello = protocol::encode(&ClientMessage::Hello { version: protocol::VERSION })?;
    stream.write_all(&hello).await?;
    let (mut data, mut passed) = (Vec::new(), Vec::new());
    let answer = loop {
        if let Some(answer) = protocol::take::<ServerMessage>(&mut data)? {
            break answer;
        }
        if receive(&stream, &mut data, &mut passed).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    };
    match answer {
        ServerMessage::Welcome {
            version: protocol::VERSION,
            cid,
            member,
            pool_offset,
            pool_len,
            has_lock_file,
            ..
        } => {
            let mut passed = passed.into_iter();
            let (Some(pool), Some(eventfd), Some(bell)) = (passed.next(), passed.next(), passed.next())
            else {
                return Err(other("the broker did not pass the descriptors".into()));
            };
            let locks = has_lock_file.then(|| passed.next()).flatten();
            if has_lock_file && locks.is_none() {
                return Err(other("the broker did not pass the file of locks".into()));
            }
            let (place, line) = (Place { offset: pool_offset, len: pool_len }, passed.next());
            let welcome =
                Welcome { stream, rest: data, cid, member, place, pool, eventfd, bell, locks, line };
            Ok(Welcomed::Pool(Box::new(welcome)))
        }
        ServerMessage::Apart { version: protocol::VERSION, cid } => Ok(Welcomed::Apart(cid)),
        ServerMessage::Welcome { version, .. } | ServerMessage::Apart { version, .. } => Err(other(format!(
            "the broker speaks version {version}, this program version {}: use builds of one release",
            protocol::VERSION
        ))),
        ServerMessage::Rejected { reason } => Err(io::Error::new(io::ErrorKind::PermissionDenied, reason)),
        _ => Err(other("the broker's first answer was no welcome".into())),
    }
}

async fn read(stream: OwnedReadHalf, mut buffer: Vec<u8>, client: Weak<Client>) {
    let mut passed = Vec::new();
    let mut taken = Passed::default();
    loop {
        match protocol::take::<ServerMessage>(&mut buffer) {
            Ok(Some(message)) => match client.upgrade() {
                Some(client) => client.handle(message, &mut taken),
                None => return,
            },
            Ok(None) => match receive(stream.as_ref(), &mut buffer, &mut passed).await {
                Ok(n) if n > 0 => taken.take_up(&mut passed),
                _ => break,
            },
            Err(error) => {
                tracing::warn!(%error, "the broker talks nonsense");
                break;
            }
        }
    }
    if let Some(client) = client.upgrade() {
        client.lose_broker();
    }
}

/// Waits for bytes, and the descriptors beside them. 0 bytes: the end.
async fn receive(stream: &UnixStream, data: &mut Vec<u8>, passed: &mut Vec<OwnedFd>) -> io::Result<usize> {
    loop {
        stream.readable().await?;
        match stream.try_io(Interest::READABLE, || fds::receive(stream, data, passed)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            outcome => return outcome,
        }
    }
}

/// Messages that go out in one write.
const MESSAGES_AT_ONCE: usize = 64;

async fn write(mut stream: OwnedWriteHalf, mut queue: mpsc::UnboundedReceiver<Vec<u8>>) {
    let (mut waiting, mut bytes) = (Vec::new(), Vec::new());
    while queue.recv_many(&mut waiting, MESSAGES_AT_ONCE).await != 0 {
        waiting.drain(..).for_each(|message: Vec<u8>| bytes.extend_from_slice(&message));
        if stream.write_all(&bytes).await.is_err() {
            return;
        }
        bytes.clear();
    }
}

fn broker_gone() -> Error {
    Error::io("asking the broker of this kernel", io::Error::new(io::ErrorKind::NotConnected, "it has gone"))
}

/// Nothing panics while it holds one of these locks, so poison means nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::pool::{Geometry, PoolSource, open_source};

    /// A client whose broker has welcomed it and then says nothing. The other end of its socket comes with it.
    async fn with_silent_broker(dir: &Path) -> (Arc<Client>, UnixStream) {
        let pool = dir.join("pool");
        Pool::create(&pool, Geometry { members_max: 2, ..Geometry::default() }).unwrap();
        let (pool, _) = open_source(PoolSource::path(&pool)).unwrap();
        let (eventfd, bell) = (doorbell::new_eventfd().unwrap(), doorbell::new_eventfd().unwrap());
        let (near, far) = UnixStream::pair().unwrap();
        let (version, member) = (protocol::VERSION, Member(0));
        let welcome = ServerMessage::Welcome {
            version,
            cid: Cid(2),
            member,
            pool_offset: 0,
            pool_len: 0,
            generation: 1,
            has_lock_file: false,
        };
        let welcome = protocol::encode(&welcome).unwrap();
        fds::send(&far, &welcome, &[pool.as_fd(), eventfd.as_fd(), bell.as_fd()]).unwrap();
        let attached = Client::attach(near, &AttachOptions::default(), "attaching").await.unwrap();
        let Attached::Pool(client) = attached else { panic!("there is a pool") };
        (client, far)
    }

    #[tokio::test]
    async fn broker_that_never_answers_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let (client, _silent) = with_silent_broker(dir.path()).await;
        tokio::time::pause();
        let resolved = client.resolve("db/kv").await;
        assert!(resolved.is_err_and(|error| error.kind() == io::ErrorKind::TimedOut));
        let message = |request| ClientMessage::Resolve { request, name: "stands in for listen".into() };
        let listened = client.listen(Addr::new(Cid(2), Port(5)), None, message).await;
        assert!(listened.is_err_and(|error| error.kind() == io::ErrorKind::TimedOut));
        assert!(lock(&client.pending).as_ref().unwrap().is_empty(), "nothing waits any more");
    }

    #[tokio::test]
    async fn nobody_waits_at_a_broker_that_was_lost_meanwhile() {
        let dir = tempfile::tempdir().unwrap();
        let (client, _silent) = with_silent_broker(dir.path()).await;
        client.lose_broker();
        // As in a request that had found the broker alive a moment before.
        let request = client.resolve("db/kv").await;
        assert!(request.is_err_and(|error| error.kind() == io::ErrorKind::NotConnected));
    }
}
