//! The peer program of the suite: works an endpoint of this kernel for drivers in others, see [`remote`](super::remote).

use std::collections::HashMap;
use std::future::poll_fn;
use std::io::ErrorKind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::Failure;
use super::wire::{self, Ask, Connection, Got, Problem, Reply, Request};
use crate::addr::{Addr, Port};
use crate::endpoint::Endpoint;
use crate::listener::{Listener, MessageListener};
use crate::messages::{MessageReceiver, MessageSender, Messages};
use crate::options::{ConnectOptions, ListenOptions};
use crate::stream::{Stream, StreamReader, StreamWriter};

/// Serves drivers on [`PEER_PORT`](super::PEER_PORT) until the endpoint ends. Each gets objects of its own, which go with it: one driver
/// after the other, so that none finds the memory of connections taken that belonged to the one before.
///
/// # Errors
/// [`Failure`] if the port cannot be had, or the endpoint ends.
pub async fn serve_peer(endpoint: Endpoint, ready: impl FnOnce()) -> Result<(), Failure> {
    let options = ListenOptions { sizes: wire::sizes(), ..ListenOptions::default() };
    let mut listener = endpoint.listen_messages(wire::PEER_PORT, options).await?;
    ready();
    loop {
        let (driver, _) = listener.accept().await?;
        serve(endpoint.clone(), driver).await;
    }
}

/// What a driver has here.
struct Session {
    endpoint: Endpoint,
    replies: mpsc::UnboundedSender<Reply>,
    books: Mutex<Books>,
}

#[derive(Default)]
struct Books {
    last_object: u64,
    objects: HashMap<u64, mpsc::UnboundedSender<Work>>,
    /// How to cancel what is under way or waits to be.
    cancels: HashMap<u64, oneshot::Sender<()>>,
    tasks: JoinSet<()>,
}

struct Work {
    op: u64,
    ask: Ask,
    cancelled: oneshot::Receiver<()>,
}

enum Object {
    Listener(Listener),
    MessageListener(MessageListener),
    Reader(StreamReader),
    Writer(StreamWriter),
    Sender(MessageSender),
    Receiver(MessageReceiver),
}

async fn serve(endpoint: Endpoint, driver: Messages) {
    let (mut sender, mut receiver) = driver.split();
    let (replies, mut queue) = mpsc::unbounded_channel::<Reply>();
    let session = Arc::new(Session { endpoint, replies, books: Mutex::default() });
    let answering = tokio::spawn(async move {
        while let Some(reply) = queue.recv().await {
            let Ok(message) = wire::encode(&reply) else { return };
            if sender.send(&message).await.is_err() {
                return;
            }
        }
    });
    while let Ok(Some(message)) = receiver.recv().await {
        match wire::decode(&message) {
            Ok(Request::End) | Err(_) => break,
            Ok(request) => handle(&session, request),
        }
    }
    let mut books = std::mem::take(&mut *session.lock());
    books.tasks.shutdown().await;
    answering.abort();
}

fn handle(session: &Arc<Session>, request: Request) {
    let mut books = session.lock();
    match request {
        Request::Do { op, object, ask } => {
            let (cancel, cancelled) = oneshot::channel();
            let work = Work { op, ask, cancelled };
            if object == 0 {
                books.cancels.insert(op, cancel);
                let session = Arc::clone(session);
                books.tasks.spawn(async move { session.endpoint_work(work).await });
            } else if let Some(queue) = books.objects.get(&object) {
                if queue.send(work).is_ok() {
                    books.cancels.insert(op, cancel);
                }
            } else {
                let result = Err(Problem::new(ErrorKind::NotFound, format!("there is no object {object}")));
                let _ = session.replies.send(Reply { op, result });
            }
        }
        Request::Cancel { op } => {
            if let Some(cancel) = books.cancels.remove(&op) {
                let _ = cancel.send(());
            }
        }
        Request::Drop { object } => drop(books.objects.remove(&object)),
        Request::End => {} // taken by `serve`
    }
    while books.tasks.try_join_next().is_some() {}
}

impl Session {
    async fn endpoint_work(self: Arc<Self>, work: Work) {
        let Work { op, ask, cancelled } = work;
        let doing = async {
            match ask {
                Ask::Connect { addr, timeout_ms, messages } => self.connect(addr, timeout_ms, messages).await,
                Ask::Listen { port, backlog, messages } => self.listen(port, backlog, messages).await,
                other => Err(does_not(&other, "the endpoint")),
            }
        };
        self.finish(op, doing, cancelled).await;
    }

    async fn object_work(self: Arc<Self>, mut object: Object, mut queue: mpsc::UnboundedReceiver<Work>) {
        while let Some(Work { op, ask, cancelled }) = queue.recv().await {
            self.finish(op, self.perform(&mut object, ask), cancelled).await;
        }
    }

    async fn finish(
        &self,
        op: u64,
        doing: impl Future<Output = Result<Got, Problem>>,
        cancelled: oneshot::Receiver<()>,
    ) {
        let result = tokio::select! {
            biased;
            result = doing => result,
            Ok(()) = cancelled => Ok(Got::Cancelled),
        };
        self.lock().cancels.remove(&op);
        let _ = self.replies.send(Reply { op, result });
    }

    async fn connect(
        self: &Arc<Self>,
        addr: Addr,
        timeout_ms: Option<u64>,
        messages: bool,
    ) -> Result<Got, Problem> {
        let mut options = ConnectOptions::default();
        if let Some(timeout_ms) = timeout_ms {
            options.timeout = std::time::Duration::from_millis(timeout_ms);
        }
        if messages {
            Ok(self.take_messages(self.endpoint.connect_messages_with(addr, &options).await?))
        } else {
            Ok(self.take_stream(self.endpoint.connect_with(addr, &options).await?))
        }
    }

    async fn listen(self: &Arc<Self>, port: Port, backlog: u32, messages: bool) -> Result<Got, Problem> {
        let options = ListenOptions { backlog, ..ListenOptions::default() };
        let (object, local) = if messages {
            let listener = self.endpoint.listen_messages(port, options).await?;
            let local = listener.local_addr();
            (Object::MessageListener(listener), local)
        } else {
            let listener = self.endpoint.listen(port, options).await?;
            let local = listener.local_addr();
            (Object::Listener(listener), local)
        };
        Ok(Got::Listening { object: self.enter(object), local })
    }

    async fn perform(self: &Arc<Self>, object: &mut Object, ask: Ask) -> Result<Got, Problem> {
        Ok(match (object, ask) {
            (Object::Listener(listener), Ask::Accept) => self.take_stream(listener.accept().await?.0),
            (Object::MessageListener(listener), Ask::Accept) => {
                self.take_messages(listener.accept().await?.0)
            }
            (Object::Reader(reader), Ask::Read { max }) => {
                let mut bytes = vec![0; max.min(wire::PIECE_BYTES_MAX)];
                let read = reader.read(&mut bytes).await?;
                bytes.truncate(read);
                Got::Bytes(bytes)
            }
            (Object::Writer(writer), Ask::Write { bytes }) => Got::Written(writer.write(&bytes).await?),
            (Object::Writer(writer), Ask::Flush) => {
                writer.flush().await?;
                Got::Done
            }
            (Object::Writer(writer), Ask::Shutdown) => {
                writer.shutdown().await?;
                Got::Done
            }
            (Object::Sender(sender), Ask::Send { message }) => {
                poll_fn(|cx| sender.poll_send(cx, &message)).await?;
                Got::Done
            }
            (Object::Sender(sender), Ask::Flush) => {
                poll_fn(|cx| sender.poll_flush(cx)).await?;
                Got::Done
            }
            (Object::Sender(sender), Ask::Shutdown) => {
                sender.shutdown().await?;
                Got::Done
            }
            (Object::Receiver(receiver), Ask::Recv) => {
                Got::Message(receiver.recv().await?.map(|message| message.to_vec()))
            }
            (_, ask) => return Err(does_not(&ask, "that object")),
        })
    }

    fn take_stream(self: &Arc<Self>, stream: Stream) -> Got {
        let (local, peer) = (stream.local_addr(), stream.peer_addr());
        let (reader, writer) = stream.split();
        let (reader, writer) = (self.enter(Object::Reader(reader)), self.enter(Object::Writer(writer)));
        Got::Connection(Connection { reader, writer, local, peer, max_len: 0 })
    }

    fn take_messages(self: &Arc<Self>, messages: Messages) -> Got {
        let (local, peer, max_len) = (messages.local_addr(), messages.peer_addr(), messages.max_len());
        let (sender, receiver) = messages.split();
        let (reader, writer) = (self.enter(Object::Receiver(receiver)), self.enter(Object::Sender(sender)));
        Got::Connection(Connection { reader, writer, local, peer, max_len })
    }

    fn enter(self: &Arc<Self>, object: Object) -> u64 {
        let (queue, works) = mpsc::unbounded_channel();
        let mut books = self.lock();
        books.last_object += 1;
        let number = books.last_object;
        books.objects.insert(number, queue);
        let session = Arc::clone(self);
        books.tasks.spawn(async move { session.object_work(object, works).await });
        number
    }

    /// Nothing panics while it holds this, so poison means nothing.
    fn lock(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn does_not(ask: &Ask, whom: &str) -> Problem {
    Problem::new(ErrorKind::InvalidInput, format!("{whom} does not do {ask:?}"))
}
