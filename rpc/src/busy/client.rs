//! [`BusyClient`].

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{FramePipe, Polled};
use crate::connection::{Event, Payload, PeerInfo, Side};
use crate::encoded::{Encoded, encode_into};
use crate::error::{CallError, Failure, LinkError};
use crate::link::{LinkConfig, decode_answer, decode_slice};
use crate::schema::MethodInfo;
use crate::scratch::Body;

/// Makes unary calls, one at a time, and polls for each answer. The macro writes a typed `..BusyClient` around it.
#[derive(Debug)]
pub struct BusyClient<P: FramePipe> {
    end: Polled<P>,
    args: Vec<u8>,
    frame: Vec<u8>,
    deadline: Duration,
}

impl<P: FramePipe> BusyClient<P> {
    /// Makes a link on a connection that this side opened; polls until it stands.
    ///
    /// # Errors
    /// As [`Link::connect`](crate::Link::connect).
    pub fn connect(pipe: P, config: LinkConfig) -> Result<Self, LinkError> {
        let deadline = config.default_deadline;
        let end = Polled::establish(pipe, config, Side::Connector)?;
        Ok(Self { end, args: Vec::with_capacity(256), frame: Vec::with_capacity(16 * 1024), deadline })
    }

    /// Who is at the other end.
    pub fn peer(&self) -> Option<&PeerInfo> {
        self.end.conn.peer()
    }

    /// Sets the deadline of the calls that follow; at first [`LinkConfig::default_deadline`].
    pub fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }

    /// Makes a unary call and polls until it is answered. The typed clients call this.
    ///
    /// # Errors
    /// As any call.
    pub fn call<A: Serialize, T: DeserializeOwned, E: DeserializeOwned>(
        &mut self,
        method: &'static MethodInfo,
        args: &A,
    ) -> Result<T, CallError<E>> {
        let Self { end, args: buffer, frame, deadline } = self;
        let Encoded { head, tail } = encode_into(args, std::mem::take(buffer))?;
        let remaining = u64::try_from(deadline.as_nanos()).unwrap_or(u64::MAX);
        let opened = end.conn.open_with(method, Some(remaining), None, &[], Payload::Borrowed(&head), &tail);
        *buffer = head;
        let call = opened?;
        end.transmit();
        // The clock is first read after some looks in vain; most calls have been answered by then.
        let mut since = None;
        loop {
            if let Some(received) = end.receive(frame) {
                match end.handle(received, frame) {
                    Some(Event::Answered { call: which, app_error, payload }) if which == call => {
                        // What is owed to the peer, such as a reply to a ping, goes out with the next call.
                        return answer(app_error, &payload);
                    }
                    Some(Event::Failed { call: which, failure }) if which == call => {
                        return Err(failure.into());
                    }
                    Some(Event::Opened { call, .. }) => end.conn.respond_not_served(call),
                    _ => {}
                }
            } else if end.idle() {
                let since = *since.get_or_insert(end.clock_ns);
                if end.clock_ns - since >= remaining {
                    let started = end.conn.cancel(call);
                    end.transmit();
                    return Err(Failure::DeadlineExceeded { started }.into());
                }
            }
            while let Some(event) = end.conn.poll_event() {
                if let Event::Failed { call: which, failure } = event
                    && which == call
                {
                    end.transmit();
                    return Err(failure.into());
                }
            }
            if end.conn.wants_transmit() {
                end.transmit();
            }
        }
    }

    /// Keeps the link alive between calls that are far apart: answers what the peer asked meanwhile.
    ///
    /// # Errors
    /// Why the link is over.
    pub fn poll(&mut self) -> Result<(), LinkError> {
        while let Some(received) = self.end.receive(&mut self.frame) {
            if let Some(Event::Opened { call, .. }) = self.end.handle(received, &self.frame) {
                self.end.conn.respond_not_served(call);
            }
        }
        self.end.idle();
        self.end.settle();
        self.end.transmit();
        self.end.conn.closed().cloned().map_or(Ok(()), Err)
    }
}

fn answer<T: DeserializeOwned, E: DeserializeOwned>(
    app_error: bool,
    payload: &Payload<'_>,
) -> Result<T, CallError<E>> {
    let bytes = match payload {
        Payload::Owned(bytes) => return decode_answer(Ok((app_error, Body::Shared(bytes.clone())))),
        Payload::Borrowed(bytes) => bytes,
    };
    if app_error {
        return Err(CallError::App(decode_slice(bytes, "the application's error")?));
    }
    Ok(decode_slice(bytes, "the answer")?)
}
