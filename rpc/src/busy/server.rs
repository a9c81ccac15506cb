//! [`BusyServer`].

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::{FramePipe, Polled, Received};
use crate::connection::{Event, PeerInfo, SMALL_BYTES, Side};
use crate::encoded::Encoded;
use crate::error::LinkError;
use crate::link::{Cancel, LinkConfig};
use crate::scratch;
use crate::service::{Handler, Reply, ReplyKind, Router, ServeRequest, Started};

/// Serves the unary methods of a [`Router`] by polling. Handlers run here, one step at a time; one that waits is polled
/// again at every turn.
pub struct BusyServer<P: FramePipe> {
    end: Polled<P>,
    router: Router,
    peer: Arc<PeerInfo>,
    frame: Vec<u8>,
    waiting: Vec<Waiting>,
    frames: u32,
    /// From a call that did not need it, for the next.
    spare: Option<Cancel>,
}

/// Frames served between two readings of the clock.
const FRAMES_PER_CLOCK: u32 = 32;

/// A handler that waits for something.
struct Waiting {
    call: u32,
    handler: Handler,
    cancel: Cancel,
}

impl<P: FramePipe> BusyServer<P> {
    /// Makes a link on a connection that this side accepted; polls until it stands.
    ///
    /// # Errors
    /// As [`Link::accept`](crate::Link::accept).
    pub fn accept(pipe: P, config: LinkConfig, router: Router) -> Result<Self, LinkError> {
        let end = Polled::establish(pipe, config, Side::Acceptor)?;
        let Some(peer) = end.conn.peer().cloned() else { return Err(LinkError::Closed) };
        Ok(Self {
            end,
            router,
            peer: Arc::new(peer),
            frame: Vec::with_capacity(16 * 1024),
            waiting: Vec::new(),
            frames: 0,
            spare: None,
        })
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &PeerInfo {
        &self.peer
    }

    /// Takes one turn: serves what has come in, and polls handlers that wait. Returns whether there was anything to do.
    ///
    /// # Errors
    /// Why the link is over; [`LinkError::Closed`] if it ended well.
    pub fn poll(&mut self) -> Result<bool, LinkError> {
        let mut busy = false;
        if let Some(received) = self.end.receive(&mut self.frame) {
            busy = true;
            self.handle(received);
        } else {
            self.end.idle();
        }
        if !self.waiting.is_empty() {
            self.poll_waiting();
        }
        while let Some(event) = self.end.conn.poll_event() {
            if let Event::Cancelled { call, .. } = event {
                self.cancel(call);
            }
        }
        if self.end.conn.wants_transmit() {
            self.end.transmit();
        }
        self.end.conn.closed().cloned().map_or(Ok(busy), Err)
    }

    /// Polls until the link is over, and says why.
    pub fn run(&mut self) -> LinkError {
        loop {
            if let Err(error) = self.poll() {
                return error;
            }
        }
    }

    fn handle(&mut self, received: Received) {
        // Deadlines are counted from here, so under load too the clock is read, if not for every call.
        self.frames = self.frames.wrapping_add(1);
        if self.frames.is_multiple_of(FRAMES_PER_CLOCK) {
            self.end.tick();
        }
        match self.end.handle(received, &self.frame) {
            Some(Event::Opened { call, method, fingerprint, deadline_ns, metadata, payload }) => {
                let cancel = std::mem::take(&mut self.spare).unwrap_or_default();
                let request = ServeRequest {
                    call,
                    method,
                    fingerprint,
                    deadline_ns,
                    metadata: metadata.into(),
                    payload: payload.into(),
                    cancel: cancel.clone(),
                };
                match self.router.start_polled(&self.peer, request) {
                    Started::Done(reply) => {
                        self.finish(call, reply);
                        // Whatever the handler has started and left behind is told; mostly there is nobody.
                        if cancel.is_fresh() { self.spare = Some(cancel) } else { cancel.cancel() }
                    }
                    Started::Running(handler) => self.waiting.push(Waiting { call, handler, cancel }),
                }
            }
            Some(Event::Cancelled { call, .. }) => self.cancel(call),
            _ => {}
        }
    }

    fn poll_waiting(&mut self) {
        let mut cx = Context::from_waker(Waker::noop());
        let mut i = 0;
        while i < self.waiting.len() {
            match Pin::new(&mut self.waiting[i].handler).poll(&mut cx) {
                Poll::Pending => i += 1,
                Poll::Ready(reply) => {
                    let done = self.waiting.swap_remove(i);
                    done.cancel.cancel();
                    self.finish(done.call, reply);
                }
            }
        }
    }

    fn finish(&mut self, call: u32, reply: Reply) {
        match reply.0 {
            ReplyKind::Answer { app_error, payload: Encoded { head, tail } } => {
                if head.len() <= SMALL_BYTES {
                    self.end.conn.respond_with(call, app_error, (&head[..]).into(), &tail);
                    scratch::give(head);
                } else {
                    self.end.conn.respond_with(call, app_error, head.into(), &tail);
                }
            }
            ReplyKind::Fault(fault) => self.end.conn.fail(call, fault),
        }
    }

    fn cancel(&mut self, call: u32) {
        if let Some(at) = self.waiting.iter().position(|waiting| waiting.call == call) {
            self.waiting.swap_remove(at).cancel.cancel();
        }
    }
}

impl<P: FramePipe> std::fmt::Debug for BusyServer<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BusyServer").field("peer", &self.peer).field("waiting", &self.waiting.len()).finish()
    }
}
