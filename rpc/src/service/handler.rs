//! [`Handler`]: a running handler, with its panics caught and its calls counted.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::{HandlerFuture, MethodCounters, Reply};
use crate::clock;
use crate::wire::fault::{Code, Fault};

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

    /// Takes the first step here. A future must cope with a later waker, so this one is a dummy: the handler is polled
    /// again at once by the task that it moves to.
    pub(super) fn step(mut self) -> Started {
        match Pin::new(&mut self).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(reply) => Started::Done(reply),
            Poll::Pending => Started::Running(self),
        }
    }
}

impl Future for Handler {
    type Output = Reply;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Reply> {
        let this = &mut *self;
        // A handler that panicked is never polled again, so nobody sees a state that it left half changed but its own service.
        match catch_unwind(AssertUnwindSafe(|| this.future.as_mut().poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(reply)) => {
                this.count.well = reply.is_answer();
                Poll::Ready(reply)
            }
            Err(panic) => Poll::Ready(panicked(&*panic)),
        }
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
