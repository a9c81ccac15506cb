//! [`Sender`] and [`Receiver`]: the items of a call, in either direction, on either side.

use std::fmt;
use std::future::poll_fn;
use std::marker::PhantomData;
use std::task::{Context, Poll, ready};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::call::{StreamParts, decode, encode};
use super::slots::StreamPhase;
use crate::connection::SendError;
use crate::error::Failure;
use crate::scratch::Body;

/// Sends the items of one direction of a call. Dropping it ends that direction: the other side reads what was sent,
/// then `None`.
///
/// What the other side does not read costs this stream its credit and makes [`Sender::send`] wait; nothing else on the link
/// waits with it.
pub struct Sender<T> {
    parts: StreamParts,
    _item: PhantomData<fn(T)>,
}

/// Receives the items of one direction of a call.
///
/// Dropping it early tells the other side to stop; the call itself goes on.
pub struct Receiver<T> {
    parts: StreamParts,
    _item: PhantomData<fn() -> T>,
}

impl<T> Sender<T> {
    /// Made by the code of the macro.
    #[doc(hidden)]
    pub fn from_parts(parts: &StreamParts) -> Self {
        Self { parts: parts.clone(), _item: PhantomData }
    }

    fn poll_send(&self, cx: &mut Context<'_>, payload: &Body) -> Poll<Result<(), Failure>> {
        let call = match self.poll_started() {
            Ok(call) => call,
            Err(failure) => return Poll::Ready(Err(failure)),
        };
        let inner = &self.parts.inner;
        let sent = {
            let mut core = inner.core();
            let sent = core.conn.send_item(call, payload.as_payload());
            if sent == Err(SendError::Full) {
                self.parts.streams.lock().room_waker = Some(cx.waker().clone());
            }
            sent
        };
        inner.pump_tx();
        match sent {
            Ok(()) => Poll::Ready(Ok(())),
            Err(SendError::Full) => Poll::Pending,
            Err(SendError::Failed(failure)) => Poll::Ready(Err(failure)),
        }
    }

    /// The id of the call, sending it if need be.
    fn poll_started(&self) -> Result<u32, Failure> {
        self.parts.inner.start_stream(&self.parts.streams);
        match &self.parts.streams.lock().phase {
            StreamPhase::Started { call } => Ok(*call),
            StreamPhase::Over(failure) => Err(failure.clone().unwrap_or(Failure::StreamClosed)),
            StreamPhase::Ready(_) => Err(Failure::StreamClosed),
        }
    }

    /// Whether the other side wants no more items, or the call is over.
    pub fn is_closed(&self) -> bool {
        let state = self.parts.streams.lock();
        state.stopped || matches!(state.phase, StreamPhase::Over(_))
    }
}

impl<T: Serialize> Sender<T> {
    /// Sends one item; waits while the other side's window is full.
    ///
    /// # Errors
    /// [`Failure::StreamClosed`] if the other side wants no more; otherwise why the call is over.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the item either wholly sent or not at all.
    pub async fn send(&self, item: T) -> Result<(), Failure> {
        self.send_ref(&item).await
    }

    /// Sends one item without taking it. See [`Sender::send`].
    ///
    /// # Errors
    /// As [`Sender::send`].
    pub async fn send_ref(&self, item: &T) -> Result<(), Failure> {
        let payload = Body::from(encode(item)?.into_vec());
        poll_fn(|cx| self.poll_send(cx, &payload)).await?;
        // A sender that never has to wait still lets others run.
        tokio::task::consume_budget().await;
        Ok(())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let call = {
            let mut state = self.parts.streams.lock();
            state.sender_dropped = true;
            match state.phase {
                StreamPhase::Started { call } => call,
                StreamPhase::Ready(_) | StreamPhase::Over(_) => return,
            }
        };
        self.parts.inner.core().conn.end_items(call);
        self.parts.inner.pump_tx();
    }
}

impl<T: DeserializeOwned> Receiver<T> {
    /// Receives one item; `None` once the other side has ended the stream, or the call has been answered.
    ///
    /// # Errors
    /// Why the call failed, if it did so on its way. If the application answered with an error of its own, the
    /// stream just ends, and awaiting the call gives the error.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn recv(&mut self) -> Result<Option<T>, Failure> {
        let Some(payload) = poll_fn(|cx| self.poll_payload(cx)).await? else { return Ok(None) };
        decode(&payload, "an item").map(Some)
    }

    /// As [`Receiver::recv`], for hand-written futures.
    ///
    /// # Errors
    /// As [`Receiver::recv`].
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<T>, Failure>> {
        Poll::Ready(match ready!(self.poll_payload(cx))? {
            Some(payload) => decode(&payload, "an item").map(Some),
            None => Ok(None),
        })
    }
}

impl<T> Receiver<T> {
    /// Made by the code of the macro.
    #[doc(hidden)]
    pub fn from_parts(parts: &StreamParts) -> Self {
        Self { parts: parts.clone(), _item: PhantomData }
    }

    fn poll_payload(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Body>, Failure>> {
        self.parts.inner.start_stream(&self.parts.streams);
        if let Poll::Ready(taken) = self.poll_taken(cx) {
            return Poll::Ready(taken);
        }
        self.parts.inner.pump_rx(false);
        self.poll_taken(cx)
    }

    fn poll_taken(&self, cx: &mut Context<'_>) -> Poll<Result<Option<Body>, Failure>> {
        let (payload, cost, call) = {
            let mut state = self.parts.streams.lock();
            let call = match &state.phase {
                StreamPhase::Started { call } => Some(*call),
                _ => None,
            };
            match state.items.pop_front() {
                Some((payload, cost)) => (payload, cost, call),
                None => match &state.phase {
                    _ if state.items_ended => return Poll::Ready(Ok(None)),
                    StreamPhase::Over(None) => return Poll::Ready(Ok(None)),
                    StreamPhase::Over(Some(failure)) => return Poll::Ready(Err(failure.clone())),
                    _ => {
                        state.items_waker = Some(cx.waker().clone());
                        return Poll::Pending;
                    }
                },
            }
        };
        if let Some(call) = call {
            let wants = {
                let mut core = self.parts.inner.core();
                core.conn.consumed(call, cost);
                core.conn.wants_transmit()
            };
            if wants {
                self.parts.inner.pump_tx();
            }
        }
        Poll::Ready(Ok(Some(payload)))
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let call = {
            let mut state = self.parts.streams.lock();
            state.items.clear();
            state.receiver_dropped = true;
            match state.phase {
                StreamPhase::Started { call } if !state.items_ended => call,
                _ => return,
            }
        };
        self.parts.inner.core().conn.stop_items(call);
        self.parts.inner.pump_tx();
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sender<{}>", std::any::type_name::<T>())
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Receiver<{}>", std::any::type_name::<T>())
    }
}
