//! The pumps: frames from the transport to the protocol and back, by whoever is there.

use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, MutexGuard};
use std::task::{Context, Poll, Waker};

use tombolo_transport::TryRecvApart;

use super::Inner;
use super::shared::{Core, Opened, Rx, Tx, lock};
use super::slots::{Slot, Streams};
use crate::clock;
use crate::connection::{Frame, SMALL_BYTES};
use crate::encoded::Encoded;
use crate::error::LinkError;
use crate::scratch;
use crate::service::{Reply, ReplyKind, ServeRequest, Started};

/// Frames taken in one go before other tasks get their turn.
const RX_BUDGET: usize = 64;

/// Wakers kept until they are all woken at once.
const WAKES_MAX: usize = 16;

/// Answers that may wait for each other, to go out in one go.
const ANSWERS_MAX: usize = 16;

/// Cancellations kept for later calls: those of one go.
const SPARES_MAX: usize = RX_BUDGET;

/// Looks at a transport that asks to be polled again, before others get their turn: one or two microseconds.
const LOOKS: u32 = 24;

impl Inner {
    /// Moves frames in. `driver`: handlers may take their first step here. Returns at once if somebody else is at it; the
    /// driver is then woken to look again once that is done.
    ///
    /// Where the transport asks to be polled again at once, this looks a few times itself, which is cheaper than a
    /// round through the scheduler and often catches the answer to what was just sent; not among several calls under way, where others have
    /// something to do meanwhile. Returns whether to go on asking: the driver does that, which others wake.
    pub(crate) fn pump_rx(self: &Arc<Self>, driver: bool) -> bool {
        // The driver may have been woken for something that the holder of the lock has just missed.
        self.rx_wanted.store(true, Ordering::Relaxed);
        // Pairs with the fence below: either we find the lock free, or its holder finds our note.
        fence(Ordering::SeqCst);
        let Ok(mut rx) = self.rx.try_lock() else { return false };
        self.rx_wanted.store(false, Ordering::Relaxed);
        self.rx_waker.polling.store(true, Ordering::SeqCst);
        let mut opened = Opened::default();
        let more = self.take_frames(&mut rx, &mut opened);
        self.rx_waker.polling.store(false, Ordering::SeqCst);
        let again = more || self.rx_waker.asked.load(Ordering::SeqCst);
        drop(rx);
        fence(Ordering::SeqCst);
        if (again && !driver) || self.rx_wanted.load(Ordering::Relaxed) {
            self.waker.wake_by_ref();
        }
        let mut answers = 0;
        for request in opened {
            answers += usize::from(self.serve(request, driver));
            // The driver sends what is left.
            if !driver || answers == ANSWERS_MAX {
                self.pump_tx();
                answers = 0;
            }
        }
        again
    }

    /// Takes frames until there are none, or others must get their turn. Returns whether the driver is to look again
    /// although the transport has not said so.
    fn take_frames(&self, rx: &mut Rx, opened: &mut Opened) -> bool {
        let Rx { receiver, frame, wake, hot } = rx;
        let Some(receiver) = receiver else { return false };
        let mut cx = Context::from_waker(&self.rx_ready);
        let looks_max = if self.core().slots.len() > 1 { 1 } else { LOOKS };
        let (mut taken, mut looks) = (0, 0);
        // Held while frames are there already: most batches take it once.
        let mut core: Option<MutexGuard<'_, Core>> = None;
        let goes_on = loop {
            if taken == RX_BUDGET {
                break true;
            }
            let is_polled = taken == 0 || !*hot;
            if is_polled || wake.len() >= WAKES_MAX {
                // Not while others may be needed to go on.
                core = None;
                wake.drain(..).for_each(Waker::wake);
            }
            let slot = &mut core;
            let place = move |head: &[u8], rest| {
                let slot = slot; // moved, so that what is returned may outlive this call
                slot.get_or_insert_with(|| self.core()).conn.place(head, rest)
            };
            let found = if is_polled {
                self.rx_waker.asked.store(false, Ordering::SeqCst);
                match receiver.poll_recv_apart(&mut cx, frame, place) {
                    Poll::Ready(found) => found,
                    Poll::Pending => {
                        *hot = self.rx_waker.asked.load(Ordering::SeqCst);
                        looks += 1;
                        if taken != 0 || looks == looks_max || !*hot {
                            break false;
                        }
                        std::hint::spin_loop();
                        continue;
                    }
                }
            } else {
                // Polling would linger for the next frame, with this one still to be acted on.
                receiver.try_recv_apart(frame, place)
            };
            let core = core.get_or_insert_with(|| self.core());
            match found {
                Ok(TryRecvApart::Empty) => break true,
                Ok(TryRecvApart::Whole) => {
                    taken += 1;
                    if let Some(event) = core.conn.handle_frame(clock::ceiling_ns(), frame) {
                        self.dispatch(core, event, wake, opened);
                    }
                }
                Ok(TryRecvApart::Apart(rest)) => {
                    taken += 1;
                    if let Some(event) = core.conn.handle_placed(clock::ceiling_ns(), frame, rest) {
                        self.dispatch(core, event, wake, opened);
                    }
                }
                Ok(TryRecvApart::End) => {
                    core.conn.lost(LinkError::Lost("the peer closed it without a word".to_owned()));
                }
                Err(error) => core.conn.lost(LinkError::Lost(error.to_string())),
            }
            self.dispatch_queued(core, wake);
            if core.conn.closed().is_some() {
                self.waker.wake_by_ref();
                break false;
            }
        };
        drop(core);
        wake.drain(..).for_each(Waker::wake);
        goes_on
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
        if let Err(error) = self.transmit_all(tx, wake) {
            tx.sender = None;
            let mut core = self.core();
            core.conn.lost(LinkError::Lost(error.to_string()));
            self.dispatch_queued(&mut core, wake);
            self.waker.wake_by_ref();
        }
    }

    fn transmit_all(&self, tx: &mut Tx, wake: &mut Vec<Waker>) -> tombolo_transport::Result<()> {
        let Tx { sender: Some(sender), waiting } = tx else { return Ok(()) };
        let mut cx = Context::from_waker(&self.waker);
        if !waiting.is_empty() && sender.poll_send(&mut cx, waiting)?.is_ready() {
            waiting.clear();
        }
        if waiting.is_empty() {
            let mut core = self.core();
            while let Some(frame) = core.conn.poll_transmit() {
                let Frame { head, body } = frame;
                if sender.poll_send_parts(&mut cx, &[head, body])?.is_pending() {
                    waiting.extend_from_slice(head);
                    waiting.extend_from_slice(body);
                    break;
                }
            }
            self.dispatch_queued(&mut core, wake);
        }
        // Pending here means that the rest goes out when the driver is woken.
        let _ = sender.poll_flush(&mut cx)?;
        Ok(())
    }

    /// Waits until everything has gone out, the last words included.
    pub(super) async fn flushed(&self) {
        std::future::poll_fn(|cx| {
            self.driver.0.register(cx.waker());
            self.pump_tx();
            let mut tx = lock(&self.tx);
            let Tx { sender: Some(sender), waiting } = &mut *tx else { return Poll::Ready(()) };
            let flushed = sender.poll_flush(&mut Context::from_waker(&self.waker)).is_ready();
            if flushed && waiting.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Lets go of the transport.
    pub(super) fn disconnect(&self) {
        lock(&self.tx).sender = None;
        lock(&self.rx).receiver = None;
    }

    /// Starts a handler. Returns whether it has answered already: the answer is still to be sent.
    fn serve(self: &Arc<Self>, request: ServeRequest, inline: bool) -> bool {
        let call = request.call;
        let inline = inline && self.config.inline_handlers;
        match self.router.start(self, request, inline) {
            Started::Done(reply) => {
                self.finish(call, reply);
                true
            }
            Started::Running(handler) => {
                let inner = self.clone();
                let task = self.runtime.spawn(async move {
                    let reply = handler.await;
                    inner.finish(call, reply);
                    inner.pump_tx();
                });
                let mut core = self.core();
                match core.slots.get_mut(&call) {
                    Some(Slot::Served(served)) => served.abort = Some(task.abort_handle()),
                    // Over already: answered, or given up before it began.
                    _ => task.abort(),
                }
                false
            }
        }
    }

    /// The streams of a served call, unless it is over already.
    pub(crate) fn served_streams(&self, call: u32) -> Option<Arc<Streams>> {
        self.core().streams(call).cloned()
    }

    /// Notes the answer to a call; the next [`Inner::pump_tx`] sends it.
    fn finish(&self, call: u32, reply: Reply) {
        let mut wake = Vec::new();
        {
            let mut core = self.core();
            let Some(Slot::Served(served)) = core.slots.remove(&call) else { return };
            if let Some(streams) = &served.streams {
                streams.lock().end(None, &mut wake);
            }
            let cancel = served.cancel;
            // Whatever the handler has started and left behind is told; mostly there is nobody.
            if !cancel.is_fresh() {
                cancel.cancel();
            } else if core.spares.len() < SPARES_MAX {
                core.spares.push(cancel);
            }
            match reply.0 {
                ReplyKind::Answer { app_error, payload: Encoded { head, tail } } => {
                    if head.len() <= SMALL_BYTES {
                        core.conn.respond_with(call, app_error, (&head[..]).into(), &tail);
                        scratch::give(head);
                    } else {
                        core.conn.respond_with(call, app_error, head.into(), &tail);
                    }
                }
                ReplyKind::Fault(fault) => core.conn.fail(call, fault),
            }
            self.dispatch_queued(&mut core, &mut wake);
        }
        wake.drain(..).for_each(Waker::wake);
    }
}
