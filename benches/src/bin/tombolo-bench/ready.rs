//! Driving a future by polling it again and again, without a runtime.

use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use anyhow::bail;

/// Nobody waits longer for the other side.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(10);
/// Looks between two looks at the clock.
pub(crate) const LOOKS_PER_CLOCK: u32 = 1 << 16;

/// Polls `future` until it is ready.
#[inline]
pub(crate) fn poll_until_ready<T>(future: impl Future<Output = T>) -> anyhow::Result<T> {
    let mut future = pin!(future);
    let mut cx = Context::from_waker(Waker::noop());
    look_until(|| match future.as_mut().poll(&mut cx) {
        Poll::Ready(value) => Ok(Some(value)),
        Poll::Pending => Ok(None),
    })
}

/// Looks until there is something.
#[inline]
pub(crate) fn look_until<T>(mut look: impl FnMut() -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
    let mut since = None;
    loop {
        for _ in 0..LOOKS_PER_CLOCK {
            if let Some(found) = look()? {
                return Ok(found);
            }
        }
        if since.get_or_insert_with(Instant::now).elapsed() > WAIT_MAX {
            bail!("nothing came from the other side for {WAIT_MAX:?}");
        }
    }
}
