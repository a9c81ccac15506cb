//! [`Handler`]: a running handler, with its panics caught and its calls counted.

use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio_util::sync::ReusableBoxFuture;

use super::{MethodCounters, Reply};
use crate::clock;
use crate::wire::fault::{Code, Fault};

/// A future that runs a handler. Panics in it become a [`Reply`] too.
pub struct HandlerFuture {
    future: ReusableBoxFuture<'static, Reply>,
    /// Whether the box may be kept after the end, with the future in it.
    is_reusable: bool,
}

thread_local! {
    /// The box of the last handler of this thread that has ended: the next one mostly fits into it.
    static SPARE: Cell<Option<ReusableBoxFuture<'static, Reply>>> = const { Cell::new(None) };
}

impl HandlerFuture {
    /// Boxes `future`, in the memory of a handler that has ended if it fits.
    #[inline]
    pub fn new(future: impl Future<Output = Reply> + Send + 'static) -> Self {
        let future = match SPARE.take() {
            Some(mut spare) => {
                spare.set(future);
                spare
            }
            None => ReusableBoxFuture::new(future),
        };
        Self { future, is_reusable: true }
    }

    /// It is of somebody else's making, and may hold on to things (a permit, a span) until it is dropped.
    pub(super) fn dropped_at_end(mut self) -> Self {
        self.is_reusable = false;
        self
    }

    /// Takes a step; a panic is a reply too.
    #[inline]
    fn step(&mut self, cx: &mut Context<'_>) -> Poll<Reply> {
        // A handler that panicked is never polled again, so nobody sees a state that it left half changed but its own service.
        match catch_unwind(AssertUnwindSafe(|| self.future.poll(cx))) {
            Ok(step) => step,
            Err(panic) => Poll::Ready(panicked(&*panic)),
        }
    }

    /// Keeps the box of a handler that has ended: one that is an async block holds nothing any more.
    #[inline]
    fn reuse(self) {
        if self.is_reusable {
            SPARE.set(Some(self.future));
        }
    }
}

impl Future for HandlerFuture {
    type Output = Reply;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Reply> {
        self.step(cx)
    }
}

impl fmt::Debug for HandlerFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HandlerFuture")
    }
}

/// A handler under way.
pub(crate) struct Handler {
    future: HandlerFuture,
    count: Count,
}

/// Counts a call as ended when it is dropped.
struct Count {
    counters: Arc<MethodCounters>,
    started_ns: u64,
    well: bool,
}

/// What became of starting a handler.
pub(crate) enum Started {
    /// It answered at once, or was never started.
    Done(Reply),
    /// It waits for something.
    Running(Handler),
}

impl Handler {
    pub(super) fn new(future: HandlerFuture, counters: Arc<MethodCounters>) -> Self {
        counters.started();
        Self { future, count: Count { counters, started_ns: clock::coarse_ns(), well: false } }
    }

    /// Starts a handler and takes its first step here. A future must cope with a later waker, so this one is a dummy: the
    /// handler is polled again at once by the task that it moves to.
    #[inline]
    pub(super) fn start(mut future: HandlerFuture, counters: &Arc<MethodCounters>) -> Started {
        let weight = counters.started();
        let started_ns = if weight == 0 { 0 } else { clock::coarse_ns() };
        match future.step(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(reply) => {
                let took_ns = if weight == 0 { 0 } else { clock::coarse_ns().saturating_sub(started_ns) };
                counters.ended(reply.is_answer(), took_ns.saturating_mul(weight));
                future.reuse();
                Started::Done(reply)
            }
            Poll::Pending => {
                // It has hardly begun.
                let started_ns = clock::coarse_ns();
                let count = Count { counters: counters.clone(), started_ns, well: false };
                Started::Running(Self { future, count })
            }
        }
    }
}

impl Future for Handler {
    type Output = Reply;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Reply> {
        let this = &mut *self;
        let step = this.future.step(cx);
        if let Poll::Ready(reply) = &step {
            this.count.well = reply.is_answer();
        }
        step
    }
}

/// The reply for a handler that panicked.
pub(super) fn panicked(panic: &(dyn Any + Send)) -> Reply {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "it gave no reason".to_owned());
    Reply::fault(Fault::new(Code::HandlerPanicked, true, 0, text))
}

impl Drop for Count {
    fn drop(&mut self) {
        self.counters.ended(self.well, clock::coarse_ns().saturating_sub(self.started_ns));
    }
}
