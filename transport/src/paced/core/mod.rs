//! One end of a paced link, without I/O: bytes and times in, bytes and events out.
//!
//! The shell around a [`Link`] moves bytes between it and a socket, and calls, in this order, whenever something happened:
//! 1. [`Link::feed`] with what arrived, [`Link::socket_opened`] or [`Link::socket_lost`];
//! 2. [`Link::handle_timeout`] with the present time, which never goes back;
//! 3. [`Link::poll_event`] until there is none;
//! 4. [`Link::poll_transmit`] (or, after it, [`Link::transmittable`]) until there is nothing to write, each time followed by [`Link::transmitted`] or [`Link::refused`];
//! 5. and sleeps until [`Link::next_timeout`].
//!
//! ```text
//!            socket_opened             HELLO of the peer
//!   no socket ──────────▶ greeting ───────────────────────▶ up
//!       ▲                    │                               │
//!       └────────────────────┴── lost, silent, damaged, gap ─┘   what is not acknowledged goes again on the next socket
//! ```
//! A **session** outlives sockets: it is a pair of lives, ours and the peer's. It ends when the peer turns out to live another life, when
//! it is silent past [`Pace::give_up`], or when it breaks the protocol; then every stream fails. In the latter two cases we begin another
//! life ourselves, so that the peer, who may not have noticed, ends its session too.

mod arrived;
mod buffers;
mod end;
mod frame;
#[cfg(any(test, feature = "fuzzing"))]
mod fuzz;
mod inbox;
mod limits;
mod line;
mod operations;
mod outbox;
mod pace;
mod receive;
mod stream;
mod streams;
#[cfg(test)]
mod tests;
mod transmit;

use std::collections::VecDeque;

pub(crate) use self::arrived::Block;
pub(crate) use self::frame::{Refusal, Role};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::fuzz::link as fuzz_link;
use self::inbox::Inbox;
pub(crate) use self::limits::Limits;
use self::outbox::Outbox;
pub(crate) use self::pace::{BackOff, BackOffRange, Nanos, Pace};
pub(crate) use self::stream::StreamError;
pub(crate) use self::streams::StreamId;
use self::streams::Streams;
pub(crate) use self::transmit::SLICES_MAX;
use crate::addr::Port;
use crate::error::ResetCause;
use crate::incarnation::Incarnation;

/// One end of a link to one peer.
#[derive(Debug)]
pub(crate) struct Link {
    role: Role,
    pace: Pace,
    /// Our life: the first one as given, one more for each that followed.
    life: Incarnation,
    /// The peer's life, of the session that goes on.
    peer: Option<Incarnation>,
    socket: Socket,
    inbox: Inbox,
    outbox: Outbox,
    streams: Streams,
    events: VecDeque<Event>,
    /// The last numbered frame of the peer that we have, with all before it.
    received: u64,
    acks: Acks,
    writing: Writing,
    clocks: Clocks,
    ups: u64,
    /// The number of our last opening.
    opening: u64,
    /// The number of the peer's last opening of which we have heard, in its present life.
    heard_opening: u64,
    /// The session has been up before.
    has_begun: bool,
    /// Bytes of HELLOs and ACKs written since the peer was last heard.
    unheard_bytes: usize,
}

/// How far the present socket has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Socket {
    None,
    /// The peer's HELLO has not come, or it did not know us yet.
    Greeting {
        since: Nanos,
    },
    Up,
}

/// What we owe the peer in acknowledgements.
#[derive(Debug, Default)]
struct Acks {
    frames: usize,
    bytes: usize,
    /// When to acknowledge if nothing else goes; `None`: nothing to acknowledge.
    by: Option<Nanos>,
}

/// What is being written to the socket: a batch, or frames from where they are kept.
#[derive(Debug)]
struct Writing {
    /// Our HELLO has yet to go into this socket.
    greets: bool,
    /// The life of the peer that our last HELLO in it knew.
    greeted: Option<Incarnation>,
    /// Copies of frames.
    batch: Vec<u8>,
    /// In place of the batch, so many frames from that which [`Outbox::unsent`] gives.
    kept: usize,
    /// Bytes of the batch, or of the first of those frames, that went.
    written: usize,
    /// With what is being written something begins to wait for its acknowledgement.
    begins_to_wait: bool,
    back_off: BackOff,
    refused_until: Option<Nanos>,
}

#[derive(Debug, Default)]
struct Clocks {
    /// A whole frame of the peer came.
    heard: Nanos,
    /// A whole frame of ours went.
    spoke: Nanos,
    /// Something was acknowledged, or began to wait for that, or was asked after.
    progressed: Nanos,
}

/// What happened, for the shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The peer calls: answer by [`Link::accept`] or [`Link::refuse`] at once.
    Called { stream: StreamId, from: Port, to: Port },
    /// Whoever waits for bytes, or for the answer to its call, should look again.
    Readable(StreamId),
    /// Whoever waits for room should look again.
    Writable(StreamId),
    /// This socket is of no more use: close it, and get another. [`Link::socket_lost`] need not be called.
    CloseSocket {
        why: String,
        /// The peer broke the protocol, or speaks another version of it: people should know.
        is_violation: bool,
    },
    /// What came over the line makes no sense, and we begin anew on it.
    BeginsAnew { why: String },
    /// The peer is there: a new session, or the one that was.
    Up { resumed: bool },
    /// The session ended; its streams have failed.
    Ended(ResetCause),
}

/// Why the present socket is of no more use, or the session.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fault {
    /// The channel failed; the session goes on over another socket.
    Socket(String),
    /// The peer did what the protocol forbids.
    Violation(String),
}

impl From<String> for Fault {
    fn from(what: String) -> Self {
        Self::Violation(what)
    }
}

impl Link {
    /// An end in its first life, `life`: 128 random bits, so that no other life anywhere has them.
    pub(crate) fn new(role: Role, pace: Pace, life: Incarnation) -> Self {
        Self {
            role,
            pace,
            life,
            peer: None,
            socket: Socket::None,
            inbox: Inbox::new(pace.limits.frame_bytes),
            outbox: Outbox::new(pace.limits),
            streams: Streams::new(role),
            events: VecDeque::new(),
            received: 0,
            acks: Acks::default(),
            writing: Writing::new(pace.refused),
            clocks: Clocks::default(),
            ups: 0,
            opening: 0,
            heard_opening: 0,
            has_begun: false,
            unheard_bytes: 0,
        }
    }

    /// There is a new socket; whatever came of the old one is forgotten.
    pub(crate) fn socket_opened(&mut self, now: Nanos) {
        self.inbox.clear();
        self.writing = Writing::new(self.pace.refused);
        self.socket = Socket::Greeting { since: now };
        self.opening += 1;
    }

    /// The socket has failed, or the peer has closed it.
    pub(crate) fn socket_lost(&mut self) {
        self.socket = Socket::None;
        self.inbox.clear();
        self.writing = Writing::new(self.pace.refused);
        self.acks = Acks::default();
    }

    /// Bytes of the present socket. Ignored after [`Event::CloseSocket`], until there is another.
    pub(crate) fn feed(&mut self, bytes: &[u8], now: Nanos) {
        self.feed_from(bytes, None, now);
    }

    /// The same for the first `len` bytes of `block`, of which long payloads are kept until they are read.
    pub(crate) fn feed_block(&mut self, block: &Block, len: usize, now: Nanos) {
        self.feed_from(&block[..len], Some(block), now);
    }

    fn feed_from(&mut self, bytes: &[u8], block: Option<&Block>, now: Nanos) {
        if self.socket == Socket::None {
            return;
        }
        if self.pace.is_line {
            return self.feed_line(bytes, now);
        }
        let without = Inbox::new(self.pace.limits.frame_bytes);
        let mut inbox = std::mem::replace(&mut self.inbox, without);
        let fed = inbox.feed(bytes, block, |frame| self.on_frame(&frame, now));
        self.inbox = inbox;
        match fed {
            Ok(()) => {}
            Err(Fault::Socket(why)) => self.drop_socket(why),
            Err(Fault::Violation(what)) => self.end_for_violation(what),
        }
    }

    /// What happened since the last call.
    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Whether the peer is there.
    pub(crate) fn is_up(&self) -> bool {
        self.socket == Socket::Up
    }

    /// How often the peer has been there with a new socket.
    pub(crate) fn ups(&self) -> u64 {
        self.ups
    }

    /// Whether there is a session, be the peer there now or not.
    pub(crate) fn has_session(&self) -> bool {
        self.peer.is_some()
    }

    /// Whether nothing is left to be told to the peer, or to be heard from it.
    pub(crate) fn is_drained(&self) -> bool {
        self.streams.is_empty() && self.outbox.is_empty() && self.acks.by.is_none()
    }

    fn drop_socket(&mut self, why: String) {
        self.socket_lost();
        self.events.push_back(Event::CloseSocket { why, is_violation: false });
    }
}
