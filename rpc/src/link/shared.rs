//! [`Inner`]: what all handles of a link and its driver share, and the pumps that move frames.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tombolo_transport::{MessageReceiver, MessageSender};

use super::slots::{Deadline, Request, Slot, StreamPhase, Streams};
use super::{Alive, Auth, LinkConfig, Served};
use crate::connection::{Connection, Event, Payload, PeerInfo};
use crate::error::{Failure, LinkError};
use crate::schema::MethodKind;
use crate::service::{Reply, ReplyKind, Router, ServeRequest, Started};

/// Frames taken in one go before other tasks get their turn.
const RX_BUDGET: usize = 64;

/// How far a link is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LinkState {
    Connecting,
    Open,
    Closed(LinkError),
}

/// What all handles of a link share.
pub(crate) struct Inner {
    core: Mutex<Core>,
    tx: Mutex<Tx>,
    rx: Mutex<Rx>,
    /// Somebody found `tx` taken: whoever holds it looks again.
    tx_wanted: AtomicBool,
    pub(super) waker: Waker,
    pub(super) driver: Arc<WakeDriver>,
    /// When the driver's timer will fire, in nanoseconds.
    pub(super) armed_ns: AtomicU64,
    epoch: Instant,
    pub(crate) state: watch::Sender<LinkState>,
    peer: OnceLock<Arc<PeerInfo>>,
    pub(super) alive: OnceLock<Weak<Alive>>,
    pub(crate) config: LinkConfig,
    pub(crate) router: Router,
    runtime: Handle,
}

/// The state under the innermost lock.
pub(crate) struct Core {
    pub(crate) conn: Connection,
    slots: HashMap<u32, Slot, crate::connection::IdHasher>,
    pings: Vec<(u64, oneshot::Sender<()>)>,
}

struct Tx {
    sender: MessageSender,
    /// A frame that the transport had no room for.
    waiting: Vec<u8>,
    broken: bool,
}

struct Rx {
    receiver: MessageReceiver,
    wake: Vec<Waker>,
    opened: Vec<ServeRequest>,
}

/// Wakes the driver task, whoever polls the transport.
#[derive(Default)]
pub(super) struct WakeDriver(pub(super) AtomicWaker);

impl Wake for WakeDriver {
    fn wake(self: Arc<Self>) {
        self.0.wake();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.wake();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic under a lock is a bug of ours that its own caller sees; the state is still whole enough to close the link.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    pub(super) fn new(
        conn: Connection,
        epoch: Instant,
        (sender, receiver): (MessageSender, MessageReceiver),
        config: LinkConfig,
        router: Router,
        runtime: Handle,
    ) -> Arc<Self> {
        let driver = Arc::new(WakeDriver::default());
        Arc::new(Self {
            core: Mutex::new(Core { conn, slots: HashMap::default(), pings: Vec::new() }),
            tx: Mutex::new(Tx { sender, waiting: Vec::new(), broken: false }),
            rx: Mutex::new(Rx { receiver, wake: Vec::new(), opened: Vec::new() }),
            tx_wanted: AtomicBool::new(false),
            waker: Waker::from(driver.clone()),
            driver,
            armed_ns: AtomicU64::new(u64::MAX),
            epoch,
            state: watch::Sender::new(LinkState::Connecting),
            peer: OnceLock::new(),
            alive: OnceLock::new(),
            config,
            router,
            runtime,
        })
    }

    pub(crate) fn now_ns(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// The point on our clock as an [`Instant`].
    pub(crate) fn instant(&self, at_ns: u64) -> Option<Instant> {
        self.epoch.checked_add(std::time::Duration::from_nanos(at_ns))
    }

    pub(crate) fn core(&self) -> MutexGuard<'_, Core> {
        lock(&self.core)
    }

    pub(crate) fn peer(&self) -> Arc<PeerInfo> {
        self.peer
            .get_or_init(|| {
                let nobody = PeerInfo {
                    cid: tombolo_transport::Cid::ANY,
                    incarnation: tombolo_transport::Incarnation::NONE,
                    role: String::new(),
                    build: String::new(),
                    authenticated: false,
                    version: 0,
                };
                Arc::new(self.core().conn.peer().cloned().unwrap_or(nobody))
            })
            .clone()
    }

    pub(crate) fn close(&self, error: LinkError) {
        self.core().conn.close(error);
        self.settle();
    }

    pub(super) fn go_away(&self, reason: &str) {
        self.core().conn.go_away(reason);
        self.settle();
    }

    pub(super) fn ping(&self) -> oneshot::Receiver<()> {
        let (done, pong) = oneshot::channel();
        {
            let mut core = self.core();
            if core.conn.closed().is_none() {
                let now = self.now_ns();
                let token = core.conn.ping(now);
                core.pings.push((token, done));
            }
        }
        self.pump_tx();
        pong
    }

    /// Acts on events that no frame caused, then sends what is due.
    pub(crate) fn settle(&self) {
        let mut wake = Vec::new();
        let mut core = self.core();
        self.dispatch_queued(&mut core, &mut wake);
        drop(core);
        wake.drain(..).for_each(Waker::wake);
        self.pump_tx();
        // The driver's timer, and its end, depend on what just changed.
        self.waker.wake_by_ref();
    }

    /// Sends a unary call; the slot's waker is woken when it is answered.
    pub(super) fn open_unary(&self, request: &Request, waker: &Waker) -> Result<u32, Failure> {
        let mut core = self.core();
        let call = self.open(&mut core, request)?;
        core.slots.insert(call, Slot::Unary { waker: Some(waker.clone()), answer: None });
        Ok(call)
    }

    /// Sends a call with streams, unless that has been done.
    pub(super) fn start_stream(&self, streams: &Arc<Streams>) {
        if !matches!(streams.lock().phase, StreamPhase::Ready(_)) {
            return;
        }
        let mut wake = Vec::new();
        {
            let mut core = self.core();
            let mut state = streams.lock();
            let StreamPhase::Ready(request) = &state.phase else { return };
            match self.open(&mut core, request) {
                Ok(call) => {
                    core.slots.insert(call, Slot::Stream(streams.clone()));
                    state.phase = StreamPhase::Started { call };
                    if state.sender_dropped {
                        core.conn.end_items(call);
                    }
                    if state.receiver_dropped {
                        core.conn.stop_items(call);
                    }
                }
                Err(failure) => state.end(Some(failure), &mut wake),
            }
        }
        wake.drain(..).for_each(Waker::wake);
        self.pump_tx();
    }

    fn open(&self, core: &mut Core, request: &Request) -> Result<u32, Failure> {
        let payload = request.payload.as_ref().map_err(Clone::clone)?;
        let now = self.now_ns();
        let after = match request.deadline {
            Deadline::Default if request.method.kind == MethodKind::Unary => {
                Some(self.config.default_deadline)
            }
            Deadline::Default | Deadline::Never => None,
            Deadline::After(duration) => Some(duration),
        };
        let deadline = after.map(|d| now.saturating_add(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX - 1)));
        let call =
            core.conn.open(now, request.method, deadline, &request.metadata, Payload::Borrowed(payload))?;
        if deadline.is_some_and(|at| at < self.armed_ns.load(Ordering::Relaxed)) {
            self.waker.wake_by_ref();
        }
        Ok(call)
    }

    /// Takes the answer to a unary call of ours, or leaves the waker for when it comes.
    pub(super) fn take_answer(&self, call: u32, waker: &Waker) -> Option<super::slots::Answer> {
        let mut core = self.core();
        let Some(Slot::Unary { waker: slot, answer }) = core.slots.get_mut(&call) else {
            return Some(Err(Failure::Cancelled { started: true }));
        };
        match answer.take() {
            Some(answer) => {
                core.slots.remove(&call);
                Some(answer)
            }
            None => {
                match slot {
                    Some(known) => known.clone_from(waker),
                    None => *slot = Some(waker.clone()),
                }
                None
            }
        }
    }

    /// Gives up a call of ours.
    pub(super) fn cancel(&self, call: u32) -> bool {
        let started = {
            let mut core = self.core();
            core.slots.remove(&call);
            core.conn.cancel(call)
        };
        self.pump_tx();
        started
    }

    /// Moves frames in. `inline`: handlers may take their first step here. Returns at once if somebody else is at it.
    pub(crate) fn pump_rx(self: &Arc<Self>, inline: bool) {
        let Ok(mut rx) = self.rx.try_lock() else { return };
        let mut cx = Context::from_waker(&self.waker);
        for taken in 0.. {
            if taken == RX_BUDGET {
                self.waker.wake_by_ref();
                break;
            }
            let Rx { receiver, wake, opened } = &mut *rx;
            let mut core = match receiver.poll_recv(&mut cx) {
                Poll::Pending => break,
                Poll::Ready(Ok(Some(frame))) => {
                    let mut core = self.core();
                    if let Some(event) = core.conn.handle_frame(self.now_ns(), &frame) {
                        self.dispatch(&mut core, event, &frame, wake, opened);
                    }
                    core
                }
                Poll::Ready(end) => {
                    let mut core = self.core();
                    if core.conn.closed().is_some() {
                        break;
                    }
                    core.conn.lost(match end {
                        Err(error) => LinkError::Lost(error.to_string()),
                        Ok(_) => LinkError::Lost("the peer closed it without a word".to_owned()),
                    });
                    core
                }
            };
            self.dispatch_queued(&mut core, wake);
            let over = core.conn.closed().is_some();
            drop(core);
            wake.drain(..).for_each(Waker::wake);
            if over {
                self.waker.wake_by_ref();
                break;
            }
        }
        let opened = std::mem::take(&mut rx.opened);
        drop(rx);
        for request in opened {
            self.serve(request, inline);
        }
    }

    fn dispatch_queued(&self, core: &mut Core, wake: &mut Vec<Waker>) {
        while let Some(event) = core.conn.poll_event() {
            self.dispatch(core, event, &Bytes::new(), wake, &mut Vec::new());
        }
    }

    fn dispatch(
        &self,
        core: &mut Core,
        event: Event<'_>,
        frame: &Bytes,
        wake: &mut Vec<Waker>,
        opened: &mut Vec<ServeRequest>,
    ) {
        match event {
            Event::Answered { call, app_error, payload } => {
                core.answered(call, Ok((app_error, payload.into_bytes(frame))), wake);
            }
            Event::Failed { call, failure } => core.answered(call, Err(failure), wake),
            Event::Opened { call, method, fingerprint, deadline_ns, metadata, payload } => {
                let served = Served::default();
                opened.push(ServeRequest {
                    cancel: served.cancel.clone(),
                    call,
                    method,
                    fingerprint,
                    deadline_ns,
                    metadata: metadata.into_bytes(frame),
                    payload: payload.into_bytes(frame),
                });
                core.slots.insert(call, Slot::Served(served));
            }
            Event::Item { call, payload, cost } => {
                let Some(streams) = core.streams(call) else { return };
                let mut state = streams.lock();
                state.items.push_back((payload.into_bytes(frame), cost));
                wake.extend(state.items_waker.take());
            }
            Event::ItemsEnded { call } => {
                let Some(streams) = core.streams(call) else { return };
                let mut state = streams.lock();
                state.items_ended = true;
                wake.extend(state.items_waker.take());
            }
            Event::ItemsStopped { call } => {
                let Some(streams) = core.streams(call) else { return };
                let mut state = streams.lock();
                state.stopped = true;
                wake.extend(state.room_waker.take());
            }
            Event::Writable { call } => {
                let Some(streams) = core.streams(call) else { return };
                wake.extend(streams.lock().room_waker.take());
            }
            Event::Cancelled { call, why } => {
                if let Some(Slot::Served(served)) = core.slots.remove(&call) {
                    served.end(why, wake);
                }
            }
            Event::Pong { token } => {
                let done = |(known, _): &mut (u64, _)| *known <= token;
                core.pings.extract_if(.., done).for_each(|(_, done)| {
                    let _ = done.send(());
                });
            }
            Event::PeerHello(peer) => self.authenticate(core, &peer),
            Event::Established => {
                let expected = self.config.expect_incarnation;
                let found = core.conn.peer().map(|peer| peer.incarnation);
                if let (Some(expected), Some(found)) = (expected, found)
                    && expected != found
                {
                    core.conn.close(LinkError::NotAuthenticated(format!(
                        "stale or foreign incarnation: expected {expected}, found {found}"
                    )));
                    return;
                }
                self.state.send_replace(LinkState::Open);
            }
            Event::GoingAway { reason } => tracing::debug!(reason, "the peer takes no new calls"),
            Event::Closed(error) => {
                core.pings.clear();
                self.state.send_replace(LinkState::Closed(error));
            }
        }
    }

    fn authenticate(&self, core: &mut Core, peer: &PeerInfo) {
        let Auth::Choose(choose) = &self.config.auth else { return };
        match choose(peer) {
            Ok(secret) => core.conn.authenticate(secret),
            Err(reason) => core.conn.close(LinkError::NotAuthenticated(reason)),
        }
    }

    /// Moves frames out until there are none or the transport is full.
    pub(crate) fn pump_tx(&self) {
        loop {
            self.tx_wanted.store(true, Ordering::Relaxed);
            // Pairs with the fence below: either we find the lock free, or its holder finds our note.
            fence(Ordering::SeqCst);
            let Ok(mut tx) = self.tx.try_lock() else { return };
            self.tx_wanted.store(false, Ordering::Relaxed);
            let mut wake = Vec::new();
            self.transmit(&mut tx, &mut wake);
            drop(tx);
            fence(Ordering::SeqCst);
            wake.drain(..).for_each(Waker::wake);
            if !self.tx_wanted.load(Ordering::Relaxed) {
                return;
            }
        }
    }

    fn transmit(&self, tx: &mut Tx, wake: &mut Vec<Waker>) {
        if tx.broken {
            return;
        }
        let mut cx = Context::from_waker(&self.waker);
        let result = self.transmit_all(tx, &mut cx, wake);
        if let Err(error) = result {
            tx.broken = true;
            let mut core = self.core();
            core.conn.lost(LinkError::Lost(error.to_string()));
            self.dispatch_queued(&mut core, wake);
            self.waker.wake_by_ref();
        }
    }

    fn transmit_all(
        &self,
        tx: &mut Tx,
        cx: &mut Context<'_>,
        wake: &mut Vec<Waker>,
    ) -> tombolo_transport::Result<()> {
        let Tx { sender, waiting, .. } = tx;
        let mut full = false;
        if !waiting.is_empty() {
            match sender.poll_send(cx, waiting) {
                Poll::Ready(sent) => {
                    sent?;
                    waiting.clear();
                }
                Poll::Pending => full = true,
            }
        }
        if !full {
            let mut core = self.core();
            while let Some(frame) = core.conn.poll_transmit() {
                match sender.poll_send(cx, frame) {
                    Poll::Ready(sent) => sent?,
                    Poll::Pending => {
                        waiting.extend_from_slice(frame);
                        break;
                    }
                }
            }
            self.dispatch_queued(&mut core, wake);
        }
        // Pending here means that the rest goes out when the driver is woken.
        match sender.poll_flush(cx) {
            Poll::Ready(flushed) => flushed,
            Poll::Pending => Ok(()),
        }
    }

    /// Ends our direction of the transport, after what was sent.
    pub(super) async fn shut_down(self: &Arc<Self>) {
        // Nobody sends any more, so the lock is free but for a moment; the sender moves out by reference only.
        std::future::poll_fn(|cx| {
            let mut tx = lock(&self.tx);
            if tx.broken {
                return Poll::Ready(());
            }
            let Tx { sender, waiting, .. } = &mut *tx;
            if !waiting.is_empty() {
                match sender.poll_send(cx, waiting) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(_) => waiting.clear(),
                }
            }
            sender.poll_flush(cx).map(|_| ())
        })
        .await;
    }

    fn serve(self: &Arc<Self>, request: ServeRequest, inline: bool) {
        let call = request.call;
        let inline = inline && self.config.inline_handlers;
        match self.router.start(self, request, inline) {
            Started::Done(reply) => self.finish(call, reply),
            Started::Running(handler) => {
                let inner = self.clone();
                let task = self.runtime.spawn(async move {
                    let reply = handler.await;
                    inner.finish(call, reply);
                });
                let mut core = self.core();
                match core.slots.get_mut(&call) {
                    Some(Slot::Served(served)) => served.abort = Some(task.abort_handle()),
                    // Over already: answered, or given up before it began.
                    _ => task.abort(),
                }
            }
        }
    }

    /// The streams of a served call, unless it is over already.
    pub(crate) fn served_streams(&self, call: u32) -> Option<Arc<Streams>> {
        self.core().streams(call).cloned()
    }

    fn finish(&self, call: u32, reply: Reply) {
        let mut wake = Vec::new();
        {
            let mut core = self.core();
            let Some(Slot::Served(served)) = core.slots.remove(&call) else { return };
            if let Some(streams) = &served.streams {
                streams.lock().end(None, &mut wake);
            }
            served.cancel.cancel();
            match reply.0 {
                ReplyKind::Answer { app_error, payload } => {
                    core.conn.respond(call, app_error, payload.into());
                }
                ReplyKind::Fault(fault) => core.conn.fail(call, fault),
            }
            self.dispatch_queued(&mut core, &mut wake);
        }
        wake.drain(..).for_each(Waker::wake);
        self.pump_tx();
    }

    /// Acts on the time.
    pub(super) fn handle_timeout(&self) {
        let mut wake = Vec::new();
        {
            let mut core = self.core();
            core.conn.handle_timeout(self.now_ns());
            self.dispatch_queued(&mut core, &mut wake);
        }
        wake.drain(..).for_each(Waker::wake);
    }
}

impl Core {
    /// The streams of a call. Those of a served call are made when first asked for: its items may come before its
    /// handler is started.
    fn streams(&mut self, call: u32) -> Option<&Arc<Streams>> {
        match self.slots.get_mut(&call)? {
            Slot::Unary { .. } => None,
            Slot::Stream(streams) => Some(streams),
            Slot::Served(served) => {
                Some(served.streams.get_or_insert_with(|| Streams::new(StreamPhase::Started { call })))
            }
        }
    }

    fn answered(&mut self, call: u32, result: super::slots::Answer, wake: &mut Vec<Waker>) {
        match self.slots.get_mut(&call) {
            Some(Slot::Unary { waker, answer }) => {
                *answer = Some(result);
                wake.extend(waker.take());
            }
            Some(Slot::Stream(streams)) => {
                let failure = result.as_ref().err().cloned();
                let mut state = streams.lock();
                if !matches!(state.phase, StreamPhase::Over(_)) {
                    state.answer = Some(result);
                    state.end(failure, wake);
                }
                drop(state);
                self.slots.remove(&call);
            }
            _ => {}
        }
    }
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("state", &*self.state.borrow()).finish_non_exhaustive()
    }
}
