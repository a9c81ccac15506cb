//! [`Call`]: a call of ours, to be awaited.

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::Link;
use super::slots::{Answer, Deadline, Request, StreamPhase, Streams};
use crate::blob::with_source;
use crate::encoded::{Encoded, encode_into};
use crate::error::{CallError, Failure};
use crate::schema::MethodInfo;
use crate::scratch::{self, Body};
use crate::wire::metadata::Metadata;

/// A call of ours: await it for the answer.
///
/// A unary call is sent when it is first polled; a call with streams when it or one of its streams is first used.
/// Until then its deadline and metadata can be set.
///
/// # Cancel safety
/// Dropping it cancels the call: the peer drops the handler. The link is not affected.
#[must_use = "a call does nothing unless awaited, and dropping it cancels it"]
pub struct Call<T, E> {
    link: Link,
    state: State,
    /// It was sent, and then others had their turn before it was looked whether it is answered.
    gave_way: bool,
    _answer: PhantomData<fn() -> Result<T, E>>,
}

enum State {
    Ready(Request),
    Waiting(u32),
    Stream(Arc<Streams>),
    Done,
}

impl<T, E> Call<T, E> {
    pub(crate) fn unary(link: Link, request: Request) -> Self {
        Self { link, state: State::Ready(request), gave_way: false, _answer: PhantomData }
    }

    pub(crate) fn stream(link: Link, streams: Arc<Streams>) -> Self {
        Self { link, state: State::Stream(streams), gave_way: false, _answer: PhantomData }
    }

    /// Fails the call if it is not answered within `duration` from when it is sent. Both sides enforce it.
    pub fn deadline(mut self, duration: Duration) -> Self {
        self.change(|request| request.deadline = Deadline::After(duration));
        self
    }

    /// Lets the call take as long as it takes. Calls with streams have no deadline unless one is set.
    pub fn no_deadline(mut self) -> Self {
        self.change(|request| request.deadline = Deadline::Never);
        self
    }

    /// Sends `metadata` along, such as a trace context.
    pub fn metadata(mut self, metadata: &Metadata) -> Self {
        self.change(|request| request.metadata = metadata.encode());
        self
    }

    fn change(&mut self, change: impl FnOnce(&mut Request)) {
        match &mut self.state {
            State::Ready(request) => change(request),
            State::Stream(streams) => {
                if let StreamPhase::Ready(request) = &mut streams.lock().phase {
                    change(request);
                }
            }
            State::Waiting(_) | State::Done => {}
        }
    }

    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Answer> {
        let inner = &self.link.inner;
        if let State::Stream(streams) = &self.state {
            inner.start_stream(streams);
            let take = |cx: &mut Context<'_>| {
                let mut state = streams.lock();
                if let Some(answer) = state.answer.take() {
                    return Poll::Ready(answer);
                }
                if let StreamPhase::Over(failure) = &state.phase {
                    let failure = failure.clone();
                    return Poll::Ready(Err(failure.unwrap_or(Failure::Cancelled { started: true })));
                }
                state.call_waker = Some(cx.waker().clone());
                Poll::Pending
            };
            if let Poll::Ready(answer) = take(cx) {
                return Poll::Ready(answer);
            }
            inner.pump_rx(false);
            return take(cx);
        }
        match &mut self.state {
            State::Ready(request) => {
                let (call, is_crowded) = match inner.open_unary(request, cx.waker()) {
                    Ok(opened) => opened,
                    Err(failure) => return Poll::Ready(Err(failure)),
                };
                if let Ok(payload) = &mut request.payload {
                    scratch::give(std::mem::take(payload).head);
                }
                self.state = State::Waiting(call);
                if is_crowded {
                    // Whoever else is about to call or to be answered comes first: the driver then sends and takes for all of them at once.
                    inner.driver.ask();
                    return Poll::Pending;
                }
                inner.pump_tx();
                if inner.gives_way() {
                    self.gave_way = true;
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
            State::Waiting(call) => {
                if std::mem::take(&mut self.gave_way) {
                    inner.has_given_way();
                }
                if let Some(answer) = inner.take_answer(*call, cx.waker()) {
                    return Poll::Ready(answer);
                }
            }
            State::Stream(_) | State::Done => {}
        }
        let State::Waiting(call) = self.state else {
            return Poll::Ready(Err(Failure::Cancelled { started: true }));
        };
        // The answer may be there already: look, instead of waiting for the driver to hand it over.
        inner.pump_rx(false);
        match inner.take_answer(call, cx.waker()) {
            Some(answer) => Poll::Ready(answer),
            None => Poll::Pending,
        }
    }
}

impl<T: DeserializeOwned, E: DeserializeOwned> Future for Call<T, E> {
    type Output = Result<T, CallError<E>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // Answers may come so fast that a task would never wait; it lets others run all the same.
        let turn = ready!(tokio::task::coop::poll_proceed(cx));
        let answer = ready!(self.poll_answer(cx));
        turn.made_progress();
        self.state = State::Done;
        Poll::Ready(decode_answer(answer))
    }
}

/// The answer that came, as the types of its method.
pub(crate) fn decode_answer<T: DeserializeOwned, E: DeserializeOwned>(
    answer: Answer,
) -> Result<T, CallError<E>> {
    match answer {
        Ok((false, payload)) => Ok(decode(&payload, "the answer")?),
        Ok((true, payload)) => Err(CallError::App(decode(&payload, "the application's error")?)),
        Err(failure) => Err(CallError::Failed(failure)),
    }
}

/// Decodes all of `payload`.
pub(crate) fn decode<T: DeserializeOwned>(payload: &Body, what: &str) -> Result<T, Failure> {
    match payload {
        Body::Short(bytes) => decode_slice(bytes, what),
        Body::Shared(bytes) => with_source(bytes, |bytes| decode_slice(bytes, what)),
    }
}

/// Decodes all of `bytes`.
#[inline]
pub(crate) fn decode_slice<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, Failure> {
    match postcard::take_from_bytes::<T>(bytes) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(undecodable(what, &format_args!("{} bytes are too many", rest.len()))),
        Err(error) => Err(undecodable(what, &error)),
    }
}

#[cold]
fn undecodable(what: &str, why: &dyn fmt::Display) -> Failure {
    Failure::Malformed(format!("{what} does not decode: {why}"))
}

impl<T, E> Drop for Call<T, E> {
    fn drop(&mut self) {
        match &self.state {
            State::Waiting(call) => {
                self.link.inner.cancel(*call);
            }
            State::Stream(streams) => {
                let mut wake = Vec::new();
                let started = {
                    let mut state = streams.lock();
                    let started = match state.phase {
                        StreamPhase::Started { call } => Some(call),
                        StreamPhase::Ready(_) => None,
                        StreamPhase::Over(_) => return,
                    };
                    state.end(Some(Failure::Cancelled { started: started.is_some() }), &mut wake);
                    started
                };
                wake.drain(..).for_each(std::task::Waker::wake);
                if let Some(call) = started {
                    self.link.inner.cancel(call);
                }
            }
            State::Ready(_) | State::Done => {}
        }
    }
}

impl<T, E> fmt::Debug for Call<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.state {
            State::Ready(_) => "Call(not sent)",
            State::Waiting(_) | State::Stream(_) => "Call(under way)",
            State::Done => "Call(over)",
        })
    }
}

/// A unary call: called by the code that the macro writes.
pub fn unary<A: serde::Serialize, T, E>(link: &Link, method: &'static MethodInfo, args: &A) -> Call<T, E> {
    Call::unary(link.clone(), request(method, args))
}

/// A call with streams, and the state that its parts share: called by the code that the macro writes.
pub fn stream<A: serde::Serialize, T, E>(
    link: &Link,
    method: &'static MethodInfo,
    args: &A,
) -> (Call<T, E>, StreamParts) {
    let streams = Streams::new(StreamPhase::Ready(Box::new(request(method, args))));
    let call = Call::stream(link.clone(), streams.clone());
    (call, StreamParts { _link: Some(link.clone()), inner: link.inner.clone(), streams })
}

fn request<A: serde::Serialize>(method: &'static MethodInfo, args: &A) -> Request {
    Request { method, payload: encode(args), deadline: Deadline::Default, metadata: Vec::new() }
}

/// Encodes a value; what cannot be encoded fails the call instead of the program.
pub(crate) fn encode<A: serde::Serialize>(value: &A) -> Result<Encoded, Failure> {
    encode_into(value, scratch::take())
}

/// From which the macro's code makes senders and receivers.
#[derive(Clone, Debug)]
pub struct StreamParts {
    /// Keeps the link alive on the calling side.
    pub(crate) _link: Option<Link>,
    pub(crate) inner: Arc<super::Inner>,
    pub(crate) streams: Arc<Streams>,
}
