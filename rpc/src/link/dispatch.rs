//! From what the protocol says happened to whoever waits for it.

use std::sync::Arc;
use std::task::Waker;

use super::shared::{Core, Opened};
use super::slots::{Answer, Slot, StreamPhase, Streams};
use super::{Auth, Inner, LinkState, Served};
use crate::connection::{Event, PeerInfo};
use crate::error::LinkError;
use crate::service::ServeRequest;
use crate::sync::atomic::Ordering;

impl Inner {
    pub(super) fn dispatch_queued(&self, core: &mut Core, wake: &mut Vec<Waker>) {
        while let Some(event) = core.conn.poll_event() {
            self.dispatch(core, event, wake, &mut Opened::default());
        }
    }

    pub(super) fn dispatch(
        &self,
        core: &mut Core,
        event: Event<'_>,
        wake: &mut Vec<Waker>,
        opened: &mut Opened,
    ) {
        match event {
            Event::Answered { call, app_error, payload } => {
                core.answered(call, Ok((app_error, payload.into())), wake);
            }
            Event::Failed { call, failure } => core.answered(call, Err(failure), wake),
            Event::Opened { call, method, fingerprint, deadline_ns, metadata, payload } => {
                let cancel = core.spares.pop().unwrap_or_default();
                let served = Served { cancel, ..Served::default() };
                opened.push(ServeRequest {
                    cancel: served.cancel.clone(),
                    call,
                    method,
                    fingerprint,
                    deadline_ns,
                    metadata: metadata.into(),
                    payload: payload.into(),
                });
                core.slots.insert(call, Slot::Served(served));
            }
            Event::Item { call, payload, cost } => {
                let Some(streams) = core.streams(call) else { return };
                let mut state = streams.lock();
                state.items.push_back((payload.into(), cost));
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
                if let Some(Slot::Served(served)) = core.slots.remove(call) {
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
                let Some(peer) = core.conn.peer() else { return };
                if let Some(error) = self.config.unexpected(Some(peer.incarnation)) {
                    core.conn.close(error);
                    return;
                }
                let _ = self.peer.set(Arc::new(peer.clone()));
                self.state.send_replace(LinkState::Open);
            }
            Event::GoingAway { reason } => tracing::debug!(reason, "the peer takes no new calls"),
            Event::Closed(error) => {
                core.pings.clear();
                self.over.store(true, Ordering::Release);
                // Whoever ends it: the driver lets go of the transport.
                self.waker.wake_by_ref();
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
}

impl Core {
    /// The streams of a call. Those of a served call are made when first asked for: its items may come before its
    /// handler is started.
    pub(super) fn streams(&mut self, call: u32) -> Option<&Arc<Streams>> {
        match self.slots.get_mut(call)? {
            Slot::Unary { .. } => None,
            Slot::Stream(streams) => Some(streams),
            Slot::Served(served) => {
                Some(served.streams.get_or_insert_with(|| Streams::new(StreamPhase::Started { call })))
            }
        }
    }

    fn answered(&mut self, call: u32, result: Answer, wake: &mut Vec<Waker>) {
        match self.slots.get_mut(call) {
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
                self.slots.remove(call);
            }
            _ => {}
        }
    }
}
