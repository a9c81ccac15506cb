//! What the shell keeps for each call under way.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};
use std::task::Waker;

use tokio::sync::Notify;

use crate::connection::Ended;
use crate::encoded::Encoded;
use crate::error::Failure;
use crate::schema::MethodInfo;
use crate::scratch::Body;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{AbortHandle, Mutex, MutexGuard};

/// What became of a call of ours: the encoded answer (or application error), or why there is none.
pub(crate) type Answer = Result<(bool, Body), Failure>;

/// A call under way, as the shell sees it.
#[derive(Debug)]
pub(crate) enum Slot {
    /// Ours, unary: whoever awaits it.
    Unary { waker: Option<Waker>, answer: Option<Answer> },
    /// Ours, with streams.
    Stream(Arc<Streams>),
    /// The peer's.
    Served(Served),
}

/// A call of the peer's.
#[derive(Debug, Default)]
pub(crate) struct Served {
    pub(crate) cancel: Cancel,
    pub(crate) abort: Option<AbortHandle>,
    pub(crate) streams: Option<Arc<Streams>>,
}

/// Tells a handler, and what it started, that its call is over.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cancel(Arc<CancelState>);

#[derive(Debug, Default)]
struct CancelState {
    cancelled: AtomicBool,
    notify: Notify,
}

impl Cancel {
    pub(crate) fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::Release);
        self.0.notify.notify_waiters();
    }

    /// Whether nobody else holds this any more and it has not been used: good for another call.
    pub(crate) fn is_fresh(&self) -> bool {
        // Nobody else holds it and there are no weak ones, so nobody can come to hold it either.
        Arc::strong_count(&self.0) == 1 && !self.is_cancelled()
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::Acquire)
    }

    pub(crate) async fn cancelled(&self) {
        let notified = self.0.notify.notified();
        tokio::pin!(notified);
        // Registered before the flag is read, so that a cancel in between is not missed.
        notified.as_mut().enable();
        if !self.is_cancelled() {
            notified.await;
        }
    }
}

/// The two directions of items of one call, and on the calling side its answer. Shared by the call's future, its
/// sender, its receiver and the link.
#[derive(Debug)]
pub(crate) struct Streams(Mutex<StreamState>);

#[derive(Debug)]
pub(crate) struct StreamState {
    pub(crate) phase: StreamPhase,
    /// Ours only.
    pub(crate) answer: Option<Answer>,
    pub(crate) call_waker: Option<Waker>,
    /// Items that came and were not read, with what to return as credit.
    pub(crate) items: VecDeque<(Body, u32)>,
    pub(crate) items_ended: bool,
    pub(crate) items_waker: Option<Waker>,
    pub(crate) room_waker: Option<Waker>,
    /// The other side reads no more.
    pub(crate) stopped: bool,
    /// Dropped before the call was sent.
    pub(crate) sender_dropped: bool,
    /// Dropped before the call was sent.
    pub(crate) receiver_dropped: bool,
}

/// How far a call with streams is.
#[derive(Debug)]
pub(crate) enum StreamPhase {
    /// Ours, not yet sent: starts when any of its parts is first used.
    Ready(Box<Request>),
    Started {
        call: u32,
    },
    /// Over; the failure is what streams report, `None` if it ended well.
    Over(Option<Failure>),
}

/// A call of ours that has not been sent.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) method: &'static MethodInfo,
    pub(crate) payload: Result<Encoded, Failure>,
    pub(crate) deadline: Deadline,
    pub(crate) metadata: Vec<u8>,
}

/// How long a call may take.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Deadline {
    Default,
    After(std::time::Duration),
    Never,
}

impl Streams {
    pub(crate) fn new(phase: StreamPhase) -> Arc<Self> {
        Arc::new(Self(Mutex::new(StreamState {
            phase,
            answer: None,
            call_waker: None,
            items: VecDeque::new(),
            items_ended: false,
            items_waker: None,
            room_waker: None,
            stopped: false,
            sender_dropped: false,
            receiver_dropped: false,
        })))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, StreamState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StreamState {
    /// The call is over: everybody who waits is woken.
    pub(crate) fn end(&mut self, failure: Option<Failure>, wake: &mut Vec<Waker>) {
        self.phase = StreamPhase::Over(failure);
        wake.extend(self.call_waker.take());
        wake.extend(self.items_waker.take());
        wake.extend(self.room_waker.take());
    }
}

impl Served {
    /// The call is over without an answer from its handler.
    pub(crate) fn end(self, why: Ended, wake: &mut Vec<Waker>) {
        self.cancel.cancel();
        if let Some(abort) = self.abort {
            abort.abort();
        }
        if let Some(streams) = self.streams {
            let failure = match why {
                Ended::ByCaller => Failure::Cancelled { started: true },
                Ended::Deadline => Failure::DeadlineExceeded { started: true },
                Ended::Overload => Failure::Overloaded { retry_after: std::time::Duration::from_millis(10) },
                Ended::LinkLost => Failure::LinkLost { reason: "the caller is gone".into(), started: true },
            };
            streams.lock().end(Some(failure), wake);
        }
    }
}
