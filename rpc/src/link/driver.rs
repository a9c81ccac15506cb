//! The driver: the one task of a link.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::runtime::RuntimeFlavor;
use tombolo_transport::Messages;

use super::LinkConfig;
use super::config::check_frame_bytes;
use super::shared::Inner;
use crate::clock;
use crate::connection::{Connection, Side};
use crate::error::LinkError;
use crate::service::Router;
use crate::sync::atomic::Ordering;
use crate::sync::{Handle, time};

/// Rounds, while the transport is hot, between two looks at the timer.
const ROUNDS_PER_TIMER: u32 = 32;
/// How long the last words may take to go out.
const FAREWELL: Duration = Duration::from_millis(500);

/// Makes the shared state of a link and starts its driver.
pub(super) fn spawn(
    messages: Messages,
    config: LinkConfig,
    router: Router,
    side: Side,
) -> Result<Arc<Inner>, LinkError> {
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce)
        .map_err(|error| LinkError::ClosedHere(format!("no random bytes for the handshake: {error}")))?;
    let (sender, receiver) = messages.split();
    let frame_bytes_max = u32::try_from(sender.max_len()).unwrap_or(u32::MAX);
    check_frame_bytes(frame_bytes_max)?;
    let core = config.core(side, nonce, frame_bytes_max, sender.part_len());
    let conn = Connection::new(core, clock::exact_ns());
    let runtime = Handle::current();
    let inner = Inner::new(conn, (sender, receiver), config, router, runtime.clone());
    runtime.spawn(drive(inner.clone()));
    Ok(inner)
}

async fn drive(inner: Arc<Inner>) {
    {
        let mut timer = pin!(time::sleep(Duration::ZERO));
        let mut rounds = 0u32;
        let is_one_thread = inner.runtime.runtime_flavor() == RuntimeFlavor::CurrentThread;
        poll_fn(|cx| {
            inner.driver.begin(cx.waker());
            let again = inner.pump_rx(true);
            inner.pump_tx();
            rounds = rounds.wrapping_add(1);
            // While the transport asks to be polled again at once, timers can wait for a few rounds.
            if !again || rounds.is_multiple_of(ROUNDS_PER_TIMER) {
                poll_timer(&inner, timer.as_mut(), cx);
            }
            if inner.over.load(Ordering::Acquire) {
                return Poll::Ready(());
            }
            if again && is_one_thread {
                after_the_others(cx);
            } else if again {
                // Idle threads may take over a task that waits in a queue, though not one that has yielded.
                cx.waker().wake_by_ref();
            }
            Poll::Pending
        })
        .await;
    }
    // The CLOSE frame tells the peer why; a peer that does not read is not waited for.
    let _ = time::timeout(FAREWELL, inner.flushed()).await;
    inner.disconnect();
    let reason = inner.core().conn.closed().cloned();
    tracing::debug!(peer = ?inner.peer(), ?reason, "link over");
}

/// Has this task polled again once everybody else has had a turn: all other tasks, the runtime's own look at descriptors and timers (a
/// system call), and the future of `block_on`, which a runtime of one thread would otherwise poll only after 61 turns of its tasks. An
/// answer that the driver has just taken may be what that future waits for.
fn after_the_others(cx: &mut Context<'_>) {
    // Its first poll does just that, and the rest is not needed.
    let _ = pin!(tokio::task::yield_now()).poll(cx);
}

/// Fires what is due and arms the timer for what comes next. A timer that is armed too early is left as it is: it fires
/// once for nothing, which is cheaper than moving it at every frame.
fn poll_timer(inner: &Inner, mut timer: std::pin::Pin<&mut time::Sleep>, cx: &mut Context<'_>) {
    loop {
        let Some(due_ns) = inner.core().conn.poll_timeout() else { return };
        let armed_ns = inner.armed_ns.load(Ordering::Relaxed);
        if due_ns < armed_ns {
            let Some(due) = clock::instant(due_ns) else { return };
            timer.as_mut().reset(due.into());
            inner.armed_ns.store(due_ns, Ordering::Relaxed);
        }
        if timer.as_mut().poll(cx).is_pending() {
            return;
        }
        inner.armed_ns.store(u64::MAX, Ordering::Relaxed);
        inner.handle_timeout();
        inner.pump_tx();
    }
}
