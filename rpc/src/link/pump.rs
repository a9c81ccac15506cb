//! The pumps: frames from the transport to the protocol and back, by whoever is there.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tombolo_transport::TryRecvApart;

use super::Inner;
use super::shared::{Core, Crowd, Opened, Rx, Tx, lock};
use super::slots::{Slot, Streams};
use crate::clock;
use crate::connection::{Frame, SMALL_BYTES};
use crate::encoded::Encoded;
use crate::error::LinkError;
use crate::scratch;
use crate::service::{Reply, ReplyKind, ServeRequest, Started};
use crate::sync::MutexGuard;
use crate::sync::atomic::{Ordering, fence};

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
        let mut opened = Opened { first: None, more: std::mem::take(&mut rx.crowd.opened) };
        let (more, sends) = self.take_frames(&mut rx, &mut opened);
        self.rx_waker.polling.store(false, Ordering::SeqCst);
        let again = more || self.rx_waker.asked.load(Ordering::SeqCst);
        let Opened { first, more: opened } = opened;
        let crowd = match opened.is_empty() {
            true => {
                rx.crowd.opened = opened;
                None
            }
            false => Some(Crowd { opened, answers: std::mem::take(&mut rx.crowd.answers) }),
        };
        drop(rx);
        fence(Ordering::SeqCst);
        if (again && !driver) || self.rx_wanted.load(Ordering::Relaxed) {
            self.waker.wake_by_ref();
        }
        match (first, crowd) {
            // What the frames have made due (PONG, what waited for CREDIT) is for whoever took them to send. The driver does so anyhow.
            (None, _) if sends && !driver => self.pump_tx(),
            (None, _) => {}
            (Some(request), None) => self.serve_one(request, driver),
            (Some(request), Some(crowd)) => self.serve_crowd(request, crowd, driver),
        }
        again
    }

    /// Starts the handler of a call. The driver sends what is left.
    fn serve_one(self: &Arc<Self>, request: ServeRequest, driver: bool) {
        let call = request.call;
        if let Some(reply) = self.serve(request, driver) {
            self.finish(Some((call, reply)));
        }
        if !driver {
            self.pump_tx();
        }
    }

    /// As [`Inner::serve_one`], for many calls.
    fn serve_crowd(self: &Arc<Self>, first: ServeRequest, crowd: Crowd, driver: bool) {
        let Crowd { mut opened, mut answers } = crowd;
        for request in std::iter::once(first).chain(opened.drain(..)) {
            let call = request.call;
            answers.extend(self.serve(request, driver).map(|reply| (call, reply)));
            if !driver || answers.len() == ANSWERS_MAX {
                self.finish(answers.drain(..));
                self.pump_tx();
            }
        }
        self.finish(answers.drain(..));
        if let Ok(mut rx) = self.rx.try_lock() {
            rx.crowd = Crowd { opened, answers };
        }
    }

    /// Takes frames until there are none, or others must get their turn. Returns whether the driver is to look again
    /// although the transport has not said so, and whether something is to be sent.
    fn take_frames(&self, rx: &mut Rx, opened: &mut Opened) -> (bool, bool) {
        let Rx { receiver, frame, wake, hot, .. } = rx;
        let Some(receiver) = receiver else { return (false, false) };
        let mut cx = Context::from_waker(&self.rx_ready);
        let looks_max = if self.core().slots.len() > 1 { 1 } else { LOOKS };
        let (mut taken, mut looks) = (0, 0);
        // Held while frames are there already: most batches take it once.
        let mut core: Option<MutexGuard<'_, Core>> = None;
        // So many frames are taken in far less than what the clock is allowed to be late.
        let mut now_ns = None;
        let mut sends = false;
        let goes_on = loop {
            if taken == RX_BUDGET {
                break true;
            }
            let is_polled = taken == 0 || !*hot;
            if is_polled || wake.len() >= WAKES_MAX {
                // Not while others may be needed to go on.
                core = None;
                now_ns = None;
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
                    if let Some(event) =
                        core.conn.handle_frame(*now_ns.get_or_insert_with(clock::ceiling_ns), frame)
                    {
                        self.dispatch(core, event, wake, opened);
                    }
                }
                Ok(TryRecvApart::Apart(rest)) => {
                    taken += 1;
                    if let Some(event) =
                        core.conn.handle_placed(*now_ns.get_or_insert_with(clock::ceiling_ns), frame, rest)
                    {
                        self.dispatch(core, event, wake, opened);
                    }
                }
                Ok(TryRecvApart::End) => {
                    core.conn.lost(LinkError::Lost("the peer closed it without a word".to_owned()));
                }
                Err(error) => core.conn.lost(LinkError::Lost(error.to_string())),
            }
            self.dispatch_queued(core, wake);
            sends = core.conn.wants_transmit();
            if core.conn.closed().is_some() {
                self.waker.wake_by_ref();
                break false;
            }
        };
        drop(core);
        wake.drain(..).for_each(Waker::wake);
        (goes_on, sends)
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
            self.driver.begin(cx.waker());
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

    /// Starts a handler. Returns its answer if it has one already.
    fn serve(self: &Arc<Self>, request: ServeRequest, inline: bool) -> Option<Reply> {
        let call = request.call;
        let inline = inline && self.config.inline_handlers;
        match self.router.start(self, request, inline) {
            Started::Done(reply) => Some(reply),
            Started::Running(handler) => {
                let inner = self.clone();
                let task = self.runtime.spawn(async move {
                    let reply = handler.await;
                    inner.finish(Some((call, reply)));
                    inner.pump_tx();
                });
                let mut core = self.core();
                match core.slots.get_mut(call) {
                    Some(Slot::Served(served)) => served.abort = Some(task.abort_handle()),
                    // Over already: answered, or given up before it began.
                    _ => task.abort(),
                }
                None
            }
        }
    }

    /// The streams of a served call, unless it is over already.
    pub(crate) fn served_streams(&self, call: u32) -> Option<Arc<Streams>> {
        self.core().streams(call).cloned()
    }

    /// Notes the answers to calls; the next [`Inner::pump_tx`] sends them.
    fn finish(&self, answers: impl IntoIterator<Item = (u32, Reply)>) {
        let mut wake = Vec::new();
        let mut core = self.core();
        for (call, reply) in answers {
            core.finish(call, reply, &mut wake);
        }
        self.dispatch_queued(&mut core, &mut wake);
        drop(core);
        wake.drain(..).for_each(Waker::wake);
    }
}

impl Core {
    fn finish(&mut self, call: u32, reply: Reply, wake: &mut Vec<Waker>) {
        let Some(Slot::Served(served)) = self.slots.remove(call) else { return };
        if let Some(streams) = &served.streams {
            streams.lock().end(None, wake);
        }
        let cancel = served.cancel;
        // Whatever the handler has started and left behind is told; mostly there is nobody.
        if !cancel.is_fresh() {
            cancel.cancel();
        } else if self.spares.len() < SPARES_MAX {
            self.spares.push(cancel);
        }
        match reply.0 {
            ReplyKind::Answer { app_error, payload: Encoded { head, tail } } => {
                if head.len() <= SMALL_BYTES {
                    self.conn.respond_with(call, app_error, (&head[..]).into(), &tail);
                    scratch::give(head);
                } else {
                    self.conn.respond_with(call, app_error, head.into(), &tail);
                }
            }
            ReplyKind::Fault(fault) => self.conn.fail(call, fault),
        }
    }
}
