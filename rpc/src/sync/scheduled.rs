//! The surroundings of a link under shuttle. Time stands still: no timer comes to the rescue of somebody whom nobody has woken.

use std::any::Any;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

pub(crate) use shuttle::future::AbortHandle;
pub(crate) use shuttle::sync::{Mutex, MutexGuard, atomic};
use tokio::runtime::RuntimeFlavor;

/// Stands for the handle of a runtime with several threads: the tasks are shuttle's.
#[derive(Clone, Debug)]
pub(crate) struct Handle;

/// A task, to be awaited.
pub(crate) struct JoinHandle<T>(shuttle::future::JoinHandle<T>);

/// The task was aborted: those that panic end the test.
pub(crate) struct Aborted;

impl Handle {
    pub(crate) fn current() -> Self {
        Self
    }

    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        JoinHandle(shuttle::future::spawn(task))
    }

    pub(crate) fn runtime_flavor(&self) -> RuntimeFlavor {
        RuntimeFlavor::MultiThread
    }
}

impl<T> JoinHandle<T> {
    pub(crate) fn abort(&self) {
        self.0.abort();
    }

    pub(crate) fn abort_handle(&self) -> AbortHandle {
        self.0.abort_handle()
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, Aborted>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map_err(|_| Aborted)
    }
}

impl Aborted {
    pub(crate) fn is_panic(&self) -> bool {
        false
    }

    pub(crate) fn into_panic(self) -> Box<dyn Any + Send> {
        Box::new("a task that was aborted")
    }
}

pub(crate) mod time {
    use std::future::{Future, poll_fn};
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll};
    use std::time::{Duration, Instant};

    use shuttle::rand::{Rng, thread_rng};

    /// Turns that are waited at most before something takes too long.
    const TURNS_MAX: u32 = 64;

    /// A timer that does not fire.
    #[derive(Debug)]
    pub(crate) struct Sleep;

    /// It took too long.
    #[derive(Debug)]
    pub(crate) struct Elapsed;

    pub(crate) fn sleep(_: Duration) -> Sleep {
        Sleep
    }

    impl Sleep {
        pub(crate) fn reset(self: Pin<&mut Self>, _: tokio::time::Instant) {}
    }

    impl Future for Sleep {
        type Output = ();

        fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
            Poll::Pending
        }
    }

    /// Gives up at some moment, whatever the time: after as many turns as the schedule says.
    pub(crate) async fn timeout<F: Future>(_: Duration, future: F) -> Result<F::Output, Elapsed> {
        let mut future = pin!(future);
        let mut turns = thread_rng().gen_range(0..TURNS_MAX);
        poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Ok(output));
            }
            let Some(left) = turns.checked_sub(1) else { return Poll::Ready(Err(Elapsed)) };
            turns = left;
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await
    }

    /// The one time that there is.
    pub(crate) fn since(_: Instant) -> Duration {
        Duration::from_secs(1)
    }
}
