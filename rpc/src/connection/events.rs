//! What a [`Connection`](super::Connection) tells its user.

use std::ops::Deref;

use bytes::Bytes;

use crate::error::{Failure, LinkError};

/// Bytes of a message: borrowed from the frame it came in, or put together from several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload<'a> {
    /// A part of the frame.
    Borrowed(&'a [u8]),
    /// On its own.
    Owned(Bytes),
}

impl Payload<'_> {
    /// The bytes on their own, copied if they are borrowed.
    pub fn into_bytes(self) -> Bytes {
        match self {
            Self::Borrowed([]) => Bytes::new(),
            Self::Borrowed(part) => Bytes::copy_from_slice(part),
            Self::Owned(bytes) => bytes,
        }
    }
}

impl Deref for Payload<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }
}

impl<'a> From<&'a [u8]> for Payload<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::Borrowed(bytes)
    }
}

impl From<Bytes> for Payload<'_> {
    fn from(bytes: Bytes) -> Self {
        Self::Owned(bytes)
    }
}

impl From<Vec<u8>> for Payload<'_> {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Owned(bytes.into())
    }
}

/// Why a served call is over before it was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The caller no longer wants it.
    ByCaller,
    /// Its deadline has passed.
    Deadline,
    /// There is no room for what the caller sends.
    Overload,
    /// The link is gone.
    LinkLost,
}

/// Something that happened on a connection.
#[derive(Clone, Debug, PartialEq)]
pub enum Event<'a> {
    /// The peer's HELLO came and [`Proof::Chosen`](super::Proof::Chosen) asks for its secret: call
    /// [`Connection::authenticate`](super::Connection::authenticate) or `close`.
    PeerHello(super::PeerInfo),
    /// Both ends may call.
    Established,
    /// The peer calls a method of ours.
    Opened {
        /// The call.
        call: u32,
        /// Which method.
        method: u64,
        /// The shape of the method as the peer knows it.
        fingerprint: u64,
        /// When it must have been answered, in nanoseconds.
        deadline_ns: Option<u64>,
        /// Encoded [`Metadata`](crate::Metadata).
        metadata: Payload<'a>,
        /// The encoded arguments.
        payload: Payload<'a>,
    },
    /// An item of a stream came. Say [`Connection::consumed`](super::Connection::consumed) once it has been read.
    Item {
        /// The call.
        call: u32,
        /// The encoded item.
        payload: Payload<'a>,
        /// What to return with `consumed`, in bytes.
        cost: u32,
    },
    /// The peer sends no more items on this call.
    ItemsEnded {
        /// The call.
        call: u32,
    },
    /// The peer wants no more items on this call.
    ItemsStopped {
        /// The call.
        call: u32,
    },
    /// Items can be sent again on this call, after `send_item` had no room.
    Writable {
        /// The call.
        call: u32,
    },
    /// Our call has been answered and is over.
    Answered {
        /// The call.
        call: u32,
        /// Whether the payload is the application's error.
        app_error: bool,
        /// The encoded answer or error.
        payload: Payload<'a>,
    },
    /// Our call has failed and is over.
    Failed {
        /// The call.
        call: u32,
        /// Why.
        failure: Failure,
    },
    /// A call of the peer's is over: drop its handler.
    Cancelled {
        /// The call.
        call: u32,
        /// Why.
        why: Ended,
    },
    /// A ping came back.
    Pong {
        /// What [`Connection::ping`](super::Connection::ping) returned.
        token: u64,
    },
    /// The peer takes no new calls.
    GoingAway {
        /// Why.
        reason: String,
    },
    /// The connection is over.
    Closed(LinkError),
}
