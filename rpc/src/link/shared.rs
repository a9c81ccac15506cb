//! [`Inner`]: what all handles of a link and its driver share.

use std::sync::{Arc, LazyLock, OnceLock, PoisonError, Weak};
use std::task::{Wake, Waker};

use futures_util::task::AtomicWaker;
use tokio::sync::{oneshot, watch};
use tombolo_transport::{MessageReceiver, MessageSender};

use super::slots::{Answer, Cancel, Deadline, Request, Slot, StreamPhase, Streams};
use super::{Alive, LinkConfig};
use crate::clock;
use crate::connection::{Connection, IdMap, Payload, PeerInfo};
use crate::encoded::Encoded;
use crate::error::{Failure, LinkError};
use crate::schema::MethodKind;
use crate::service::{Reply, Router, ServeRequest};
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use crate::sync::{Handle, Mutex, MutexGuard};

static NOBODY: LazyLock<Arc<PeerInfo>> = LazyLock::new(|| {
    Arc::new(PeerInfo {
        cid: tombolo_transport::Cid::ANY,
        incarnation: tombolo_transport::Incarnation::NONE,
        role: String::new(),
        build: String::new(),
        authenticated: false,
        version: 0,
    })
});

/// Calls under way from which on a new one waits for the driver, which sends several at once.
const CROWD: usize = 4;

/// One in so many calls of a caller that is always alone gives way to other tasks, at a tenth of a microsecond each time.
const LONE_CALLS_MAX: u32 = 8;

/// How far a link is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LinkState {
    Connecting,
    Open,
    Closed(LinkError),
}

/// What all handles of a link share.
pub(crate) struct Inner {
    pub(super) core: Mutex<Core>,
    pub(super) tx: Mutex<Tx>,
    pub(super) rx: Mutex<Rx>,
    /// Somebody found `tx` taken: whoever holds it looks again.
    pub(super) tx_wanted: AtomicBool,
    /// Somebody found `rx` taken: whoever holds it wakes the driver.
    pub(super) rx_wanted: AtomicBool,
    pub(super) rx_waker: Arc<RxWaker>,
    pub(super) rx_ready: Waker,
    pub(super) waker: Waker,
    /// The link is over.
    pub(super) over: AtomicBool,
    pub(super) driver: Arc<WakeDriver>,
    /// Calls that were made without a crowd since one gave way to other tasks, and how many it takes until the next does.
    lone_calls: AtomicU32,
    calls_to_give_way: AtomicU32,
    /// When the driver's timer will fire, in nanoseconds.
    pub(super) armed_ns: AtomicU64,
    pub(crate) state: watch::Sender<LinkState>,
    pub(super) peer: OnceLock<Arc<PeerInfo>>,
    pub(super) alive: OnceLock<Weak<Alive>>,
    pub(crate) config: LinkConfig,
    pub(crate) router: Router,
    pub(super) runtime: Handle,
}

/// The state under the innermost lock.
pub(crate) struct Core {
    pub(crate) conn: Connection,
    pub(super) slots: IdMap<Slot>,
    pub(super) pings: Vec<(u64, oneshot::Sender<()>)>,
    /// From calls that did not need them, for the next.
    pub(super) spares: Vec<Cancel>,
}

pub(super) struct Tx {
    /// `None` once it has failed or the link is over.
    pub(super) sender: Option<MessageSender>,
    /// A frame that the transport had no room for.
    pub(super) waiting: Vec<u8>,
}

pub(super) struct Rx {
    /// `None` once the link is over.
    pub(super) receiver: Option<MessageReceiver>,
    /// The frame at hand; its memory is used again for the next.
    pub(super) frame: Vec<u8>,
    pub(super) wake: Vec<Waker>,
    pub(super) crowd: Crowd,
    /// Whether the transport, when it last had nothing, asked to be polled again at once.
    pub(super) hot: bool,
}

/// Calls of the peer that are to be started: mostly one.
#[derive(Default)]
pub(super) struct Opened {
    pub(super) first: Option<ServeRequest>,
    pub(super) more: Vec<ServeRequest>,
}

/// What one go needs for many calls of the peer, empty between two: memory that is used again.
#[derive(Default)]
pub(super) struct Crowd {
    pub(super) opened: Vec<ServeRequest>,
    pub(super) answers: Vec<(u32, Reply)>,
}

impl Opened {
    pub(super) fn push(&mut self, request: ServeRequest) {
        if self.first.is_none() {
            self.first = Some(request);
        } else {
            self.more.push(request);
        }
    }
}

/// What the transport wakes when something may have arrived. While somebody is polling it, that is only noted: whoever polls
/// looks again, or hands over to the driver at the end.
pub(super) struct RxWaker {
    pub(super) polling: AtomicBool,
    /// The transport has woken us since it was last polled. Also its way of saying "ask me again soon".
    pub(super) asked: AtomicBool,
    driver: Arc<WakeDriver>,
}

impl Wake for RxWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // SeqCst here and where `polling` ends: either the poller sees the note or we see that it has ended.
        self.asked.store(true, Ordering::SeqCst);
        if !self.polling.load(Ordering::SeqCst) {
            self.driver.wake_now();
        }
    }
}

/// Wakes the driver task, whoever polls the transport.
#[derive(Default)]
pub(super) struct WakeDriver {
    waker: AtomicWaker,
    /// Somebody has asked for the driver since it last [began](WakeDriver::begin).
    asked: AtomicBool,
}

impl WakeDriver {
    /// The driver, which is to be woken by `waker`, begins to look at everything.
    pub(super) fn begin(&self, waker: &Waker) {
        self.waker.register(waker);
        self.asked.store(false, Ordering::Relaxed);
    }

    /// Has the driver look at what the caller has done under the lock of [`Core`], which it has let go of since.
    ///
    /// Many callers are let off with one load. Whoever sees that it was asked for may rely on it: had the driver begun after that and been under
    /// the lock before the caller, the caller would have seen, by that lock, that it began.
    #[inline]
    pub(super) fn ask(&self) {
        if !self.asked.load(Ordering::Relaxed) {
            self.asked.store(true, Ordering::Relaxed);
            self.waker.wake();
        }
    }

    fn wake_now(&self) {
        self.waker.wake();
    }
}

impl Wake for WakeDriver {
    fn wake(self: Arc<Self>) {
        self.wake_now();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.wake_now();
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic under a lock is a bug of ours that its own caller sees; the state is still whole enough to close the link.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    pub(super) fn new(
        conn: Connection,
        (sender, receiver): (MessageSender, MessageReceiver),
        config: LinkConfig,
        router: Router,
        runtime: Handle,
    ) -> Arc<Self> {
        let driver = Arc::new(WakeDriver::default());
        let rx_waker = Arc::new(RxWaker {
            polling: AtomicBool::new(false),
            asked: AtomicBool::new(false),
            driver: driver.clone(),
        });
        Arc::new(Self {
            core: Mutex::new(Core { conn, slots: IdMap::default(), pings: Vec::new(), spares: Vec::new() }),
            tx: Mutex::new(Tx { sender: Some(sender), waiting: Vec::new() }),
            rx: Mutex::new(Rx {
                receiver: Some(receiver),
                frame: Vec::new(),
                wake: Vec::new(),
                crowd: Crowd::default(),
                hot: false,
            }),
            tx_wanted: AtomicBool::new(false),
            rx_wanted: AtomicBool::new(false),
            rx_ready: Waker::from(rx_waker.clone()),
            rx_waker,
            waker: Waker::from(driver.clone()),
            over: AtomicBool::new(false),
            driver,
            lone_calls: AtomicU32::new(0),
            calls_to_give_way: AtomicU32::new(1),
            armed_ns: AtomicU64::new(u64::MAX),
            state: watch::Sender::new(LinkState::Connecting),
            peer: OnceLock::new(),
            alive: OnceLock::new(),
            config,
            router,
            runtime,
        })
    }

    pub(crate) fn core(&self) -> MutexGuard<'_, Core> {
        lock(&self.core)
    }

    /// Where what must outlive a call runs.
    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Who is at the other end; nobody before the link is open.
    pub(crate) fn peer(&self) -> &Arc<PeerInfo> {
        self.peer.get().unwrap_or(&NOBODY)
    }

    pub(crate) fn close(&self, error: LinkError) {
        self.core().conn.close(error);
        self.settle();
    }

    pub(super) fn go_away(&self, reason: &str) {
        let now = clock::coarse_ns();
        self.core().conn.go_away(now, reason);
        self.settle();
    }

    pub(super) fn ping(&self) -> oneshot::Receiver<()> {
        let (done, pong) = oneshot::channel();
        {
            let mut core = self.core();
            if core.conn.closed().is_none() {
                let now = clock::coarse_ns();
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

    /// Begins a unary call, which wakes `waker` when it is answered: [`Inner::take_answer`] then has the answer. Also returns whether so many
    /// calls are under way that frames go out and in together sooner than each by itself.
    pub(super) fn open_unary(&self, request: &Request, waker: &Waker) -> Result<(u32, bool), Failure> {
        let mut core = self.core();
        let call = self.open(&mut core, request)?;
        core.slots.insert(call, Slot::Unary { waker: Some(waker.clone()), answer: None });
        Ok((call, core.slots.len() >= CROWD))
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
        let Encoded { head, tail } = request.payload.as_ref().map_err(Clone::clone)?;
        let now = clock::ceiling_ns();
        let after = match request.deadline {
            Deadline::Default if request.method.kind == MethodKind::Unary => {
                Some(self.config.default_deadline)
            }
            Deadline::Default | Deadline::Never => None,
            Deadline::After(duration) => Some(duration),
        };
        let deadline = after.map(|d| now.saturating_add(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX - 1)));
        if deadline.is_some_and(|at| at <= now) {
            return Err(Failure::DeadlineExceeded { started: false });
        }
        let remaining = deadline.map(|at| at - now);
        let Request { method, metadata, .. } = request;
        let head = Payload::Borrowed(head);
        let call = core.conn.open_with(method, remaining, deadline, metadata, head, tail)?;
        if deadline.is_some_and(|at| at < self.armed_ns.load(Ordering::Relaxed)) {
            self.waker.wake_by_ref();
        }
        Ok(call)
    }

    /// Whether a caller that finds itself alone lets other tasks run before it looks for its answer. One that got all its answers by looking
    /// would never wait, and those that would call beside it never begin.
    pub(super) fn gives_way(&self) -> bool {
        let calls = self.lone_calls.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let gives_way = calls >= self.calls_to_give_way.load(Ordering::Relaxed);
        if gives_way {
            self.lone_calls.store(0, Ordering::Relaxed);
        }
        gives_way
    }

    /// A caller has given way: the more often that brought company, the sooner the next does.
    pub(super) fn has_given_way(&self) {
        let has_company = self.core().slots.len() > 1;
        let calls = self.calls_to_give_way.load(Ordering::Relaxed);
        let calls = if has_company { 1 } else { (calls * 2).min(LONE_CALLS_MAX) };
        self.calls_to_give_way.store(calls, Ordering::Relaxed);
    }

    /// Takes the answer to a unary call of ours, or leaves the waker for when it comes.
    pub(super) fn take_answer(&self, call: u32, waker: &Waker) -> Option<Answer> {
        let mut core = self.core();
        let Some(Slot::Unary { waker: slot, answer }) = core.slots.get_mut(call) else {
            return Some(Err(Failure::Cancelled { started: true }));
        };
        match answer.take() {
            Some(answer) => {
                core.slots.remove(call);
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
            core.slots.remove(call);
            core.conn.cancel(call)
        };
        self.pump_tx();
        started
    }

    /// Acts on the time.
    pub(super) fn handle_timeout(&self) {
        let mut wake = Vec::new();
        {
            let mut core = self.core();
            core.conn.handle_timeout(clock::exact_ns());
            self.dispatch_queued(&mut core, &mut wake);
        }
        wake.drain(..).for_each(Waker::wake);
    }
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("state", &*self.state.borrow()).finish_non_exhaustive()
    }
}
