//! An endpoint in another kernel, worked from here: every call goes to a [peer program](super::peer) there, which does the real
//! thing on its own endpoint and answers.
//!
//! Giving up a call (dropping its future) makes the peer program drop its future as well. What that had got by then is not
//! lost: the answer says so, and the next call on the same object gets it.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::ReadBuf;
use tokio::sync::{mpsc, oneshot};

use super::Failure;
use super::wire::{self, Ask, Connection, Got, PIECE_BYTES_MAX, Problem, Reply, Request};
use crate::addr::{Addr, Cid, Port};
use crate::endpoint::Endpoint;
use crate::error::Result;
use crate::messages::MessageReceiver;
use crate::options::{ConnectOptions, ListenOptions};

/// The endpoint of a peer program. Clones share it; dropping the last clone and all that came from it ends it.
#[derive(Clone, Debug)]
pub struct RemoteParty {
    session: Arc<Session>,
    cid: Cid,
}

#[derive(Debug)]
struct Session {
    requests: mpsc::UnboundedSender<Request>,
    waiting: Arc<Mutex<Waiting>>,
    next_op: AtomicU64,
}

/// Who waits for which answer; `None` when there will be no more.
type Waiting = Option<HashMap<u64, oneshot::Sender<Answer>>>;
type Answer = std::result::Result<Got, Problem>;

impl RemoteParty {
    /// The endpoint of the peer program in kernel `cid`, which must serve there ([`serve_peer`](super::serve_peer)). `through` reaches it.
    ///
    /// # Errors
    /// [`Failure`] if it does not answer.
    pub async fn connect_to(through: &Endpoint, cid: Cid) -> std::result::Result<Self, Failure> {
        let options = ConnectOptions { sizes: wire::sizes(), ..ConnectOptions::default() };
        let wire = through.connect_messages_with(Addr::new(cid, wire::PEER_PORT), &options).await?;
        let (mut sender, receiver) = wire.split();
        let (requests, mut queue) = mpsc::unbounded_channel::<Request>();
        let waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        tokio::spawn(async move {
            while let Some(request) = queue.recv().await {
                let Ok(message) = wire::encode(&request) else { continue };
                if sender.send(&message).await.is_err() {
                    return;
                }
            }
            let _ = sender.shutdown().await;
        });
        tokio::spawn(pass_answers_on(receiver, Arc::clone(&waiting), requests.downgrade()));
        Ok(Self { session: Arc::new(Session { requests, waiting, next_op: AtomicU64::new(1) }), cid })
    }

    /// Ends the party when it is dropped, although tasks that a behaviour left behind may still use it.
    pub fn ends(&self) -> impl std::fmt::Debug + Send + Sync + use<> {
        EndOnDrop(Arc::clone(&self.session))
    }

    pub(super) fn local_cid(&self) -> Cid {
        self.cid
    }

    pub(super) async fn connect(&self, addr: Addr, options: &ConnectOptions) -> Result<RemoteStream> {
        let timeout_ms = Some(options.timeout.as_millis() as u64);
        let conn = self.endpoint(Ask::Connect { addr, timeout_ms, messages: false }).await?;
        Ok(RemoteStream::new(&self.session, &conn.connection()?))
    }

    pub(super) async fn connect_messages(&self, addr: Addr) -> Result<(RemoteSender, RemoteReceiver)> {
        let conn = self.endpoint(Ask::Connect { addr, timeout_ms: None, messages: true }).await?;
        Ok(messages(&self.session, &conn.connection()?))
    }

    pub(super) async fn listen(
        &self,
        port: Port,
        options: &ListenOptions,
        messages: bool,
    ) -> Result<RemoteListener> {
        match self.endpoint(Ask::Listen { port, backlog: options.backlog, messages }).await? {
            Got::Listening { object, local } => {
                Ok(RemoteListener { lane: Lane::new(&self.session, object), local })
            }
            other => Err(other.strange().into()),
        }
    }

    /// Of the endpoint: several at once, and what comes of one given up is dropped.
    async fn endpoint(&self, ask: Ask) -> Result<Got> {
        let mut lane = Lane::new(&self.session, 0);
        Ok(poll_fn(|cx| lane.poll(cx, &ask)).await?)
    }
}

#[derive(Debug)]
struct EndOnDrop(Arc<Session>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        // Whoever still waits for an answer is told that there will be none.
        *lock(&self.0.waiting) = None;
        let _ = self.0.requests.send(Request::End);
    }
}

async fn pass_answers_on(
    mut answers: MessageReceiver,
    waiting: Arc<Mutex<Waiting>>,
    requests: mpsc::WeakUnboundedSender<Request>,
) {
    while let Ok(Some(message)) = answers.recv().await {
        let Ok(Reply { op, result }) = wire::decode(&message) else { break };
        let asker = lock(&waiting).as_mut().and_then(|waiting| waiting.remove(&op));
        let unwanted = match asker {
            Some(asker) => asker.send(result).err(),
            None => Some(result),
        };
        // Objects that nobody knows must not live on.
        for object in unwanted.iter().flatten().flat_map(Got::objects) {
            if let Some(requests) = requests.upgrade() {
                let _ = requests.send(Request::Drop { object });
            }
        }
    }
    *lock(&waiting) = None;
}

impl Session {
    fn ask(&self, object: u64, ask: &Ask) -> UnderWay {
        let op = self.next_op.fetch_add(1, Ordering::Relaxed);
        let (asker, answer) = oneshot::channel();
        if let Some(waiting) = lock(&self.waiting).as_mut() {
            waiting.insert(op, asker);
        }
        let _ = self.requests.send(Request::Do { op, object, ask: ask.clone() });
        UnderWay { op, ask: ask.clone(), answer, cancelled: false }
    }
}

/// The operations of one object, one after the other. One that was given up stays under way until its end is known.
#[derive(Debug)]
struct Lane {
    session: Arc<Session>,
    object: u64,
    under_way: Option<UnderWay>,
}

#[derive(Debug)]
struct UnderWay {
    op: u64,
    ask: Ask,
    answer: oneshot::Receiver<Answer>,
    cancelled: bool,
}

impl Lane {
    fn new(session: &Arc<Session>, object: u64) -> Self {
        Self { session: Arc::clone(session), object, under_way: None }
    }

    /// Does `ask`, or goes on with the same that was given up. Something else that was given up is cancelled first.
    fn poll(&mut self, cx: &mut Context<'_>, ask: &Ask) -> Poll<Answer> {
        loop {
            let Some(under_way) = &mut self.under_way else {
                self.under_way = Some(self.session.ask(self.object, ask));
                continue;
            };
            let goes_on = under_way.ask.goes_on_as(ask);
            if !goes_on {
                self.cancel();
            }
            match ready!(self.poll_under_way(cx)) {
                Ok(Got::Cancelled) => {}
                Ok(Got::Written(written)) if !goes_on && written != 0 => {
                    let what = format!("{written} bytes of a write that was given up have gone out");
                    return Poll::Ready(Err(Problem::new(ErrorKind::InvalidData, what)));
                }
                Ok(_) if !goes_on => {}
                answer => return Poll::Ready(answer),
            }
        }
    }

    fn poll_under_way(&mut self, cx: &mut Context<'_>) -> Poll<Answer> {
        let Some(under_way) = &mut self.under_way else { return Poll::Ready(Ok(Got::Cancelled)) };
        let answer = ready!(Pin::new(&mut under_way.answer).poll(cx));
        self.under_way = None;
        let gone = || Problem::new(ErrorKind::Other, "the peer program of the suite has gone");
        Poll::Ready(answer.unwrap_or_else(|_| Err(gone())))
    }

    fn cancel(&mut self) {
        if let Some(under_way) = &mut self.under_way
            && !std::mem::replace(&mut under_way.cancelled, true)
        {
            let _ = self.session.requests.send(Request::Cancel { op: under_way.op });
        }
    }

    /// For futures: one that is dropped gives up what it has begun.
    async fn perform(&mut self, ask: Ask) -> Answer {
        struct GiveUp<'a>(&'a mut Lane);
        impl Drop for GiveUp<'_> {
            fn drop(&mut self) {
                self.0.cancel();
            }
        }
        let lane = GiveUp(self);
        poll_fn(|cx| lane.0.poll(cx, &ask)).await
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.cancel();
        let mut unknown = Vec::new();
        if let Some(mut under_way) = self.under_way.take() {
            under_way.answer.close();
            unknown.extend(under_way.answer.try_recv().iter().flatten().flat_map(Got::objects));
        }
        // The endpoint itself goes with the session.
        unknown.extend((self.object != 0).then_some(self.object));
        for object in unknown {
            let _ = self.session.requests.send(Request::Drop { object });
        }
    }
}

impl Ask {
    /// Whether what was begun as this may be finished as `other`.
    fn goes_on_as(&self, other: &Self) -> bool {
        matches!((self, other), (Self::Read { .. }, Self::Read { .. })) || self == other
    }
}

impl Got {
    fn objects(&self) -> impl Iterator<Item = u64> + use<> {
        let objects = match self {
            Self::Connection(conn) => [Some(conn.reader), Some(conn.writer)],
            Self::Listening { object, .. } => [Some(*object), None],
            _ => [None, None],
        };
        objects.into_iter().flatten()
    }

    fn connection(self) -> std::result::Result<Connection, Problem> {
        match self {
            Self::Connection(conn) => Ok(conn),
            other => Err(other.strange()),
        }
    }

    fn strange(&self) -> Problem {
        Problem::new(ErrorKind::InvalidData, format!("the peer program's answer does not fit: {self:?}"))
    }
}

#[derive(Debug)]
pub(super) struct RemoteListener {
    lane: Lane,
    local: Addr,
}

impl RemoteListener {
    pub(super) async fn accept_stream(&mut self) -> Result<(RemoteStream, Addr)> {
        let conn = self.lane.perform(Ask::Accept).await?.connection()?;
        Ok((RemoteStream::new(&self.lane.session, &conn), conn.peer))
    }

    pub(super) async fn accept_messages(&mut self) -> Result<((RemoteSender, RemoteReceiver), Addr)> {
        let conn = self.lane.perform(Ask::Accept).await?.connection()?;
        Ok((messages(&self.lane.session, &conn), conn.peer))
    }

    pub(super) fn local_addr(&self) -> Addr {
        self.local
    }
}

#[derive(Debug)]
pub(super) struct RemoteStream {
    pub(super) reader: RemoteReader,
    pub(super) writer: RemoteWriter,
    pub(super) local: Addr,
    pub(super) peer: Addr,
}

impl RemoteStream {
    fn new(session: &Arc<Session>, conn: &Connection) -> Self {
        Self {
            reader: RemoteReader { lane: Lane::new(session, conn.reader), left: Bytes::new() },
            writer: RemoteWriter { lane: Lane::new(session, conn.writer) },
            local: conn.local,
            peer: conn.peer,
        }
    }
}

#[derive(Debug)]
pub(super) struct RemoteReader {
    lane: Lane,
    /// Read for somebody who wanted more than whoever came after.
    left: Bytes,
}

impl RemoteReader {
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.left.is_empty() {
            let max = buf.remaining().min(PIECE_BYTES_MAX);
            match ready!(self.lane.poll(cx, &Ask::Read { max }))? {
                Got::Bytes(bytes) => self.left = bytes.into(),
                other => return Poll::Ready(Err(other.strange().into())),
            }
        }
        let now = self.left.split_to(self.left.len().min(buf.remaining()));
        buf.put_slice(&now);
        Poll::Ready(Ok(()))
    }
}

#[derive(Debug)]
pub(super) struct RemoteWriter {
    lane: Lane,
}

impl RemoteWriter {
    /// A write that was given up and is asked for again goes on.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let piece = bytes[..bytes.len().min(PIECE_BYTES_MAX)].to_vec();
        match ready!(self.lane.poll(cx, &Ask::Write { bytes: piece }))? {
            Got::Written(written) => Poll::Ready(Ok(written)),
            other => Poll::Ready(Err(other.strange().into())),
        }
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.lane.poll(cx, &Ask::Flush).map_ok(drop).map_err(Into::into)
    }

    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.lane.poll(cx, &Ask::Shutdown).map_ok(drop).map_err(Into::into)
    }
}

fn messages(session: &Arc<Session>, conn: &Connection) -> (RemoteSender, RemoteReceiver) {
    let sender = RemoteSender { lane: Lane::new(session, conn.writer), max_len: conn.max_len };
    (sender, RemoteReceiver { lane: Lane::new(session, conn.reader) })
}

#[derive(Debug)]
pub(super) struct RemoteSender {
    lane: Lane,
    max_len: usize,
}

impl RemoteSender {
    pub(super) fn max_len(&self) -> usize {
        self.max_len
    }

    /// A send that was given up and is asked for again goes on.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>, message: &[u8]) -> Poll<Result<()>> {
        self.lane.poll(cx, &Ask::Send { message: message.to_vec() }).map_ok(drop).map_err(Into::into)
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.lane.poll(cx, &Ask::Flush).map_ok(drop).map_err(Into::into)
    }

    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.lane.poll(cx, &Ask::Shutdown).map_ok(drop).map_err(Into::into)
    }
}

#[derive(Debug)]
pub(super) struct RemoteReceiver {
    lane: Lane,
}

impl RemoteReceiver {
    pub(super) async fn recv(&mut self) -> Result<Option<Bytes>> {
        match self.lane.perform(Ask::Recv).await? {
            Got::Message(message) => Ok(message.map(Bytes::from)),
            other => Err(other.strange().into()),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
