//! The protocol of one link, without I/O: bytes and time in, bytes and events out.
//!
//! A [`Connection`] is one end. Whoever drives it feeds it each frame that arrives ([`Connection::handle_frame`]) and
//! the time ([`Connection::handle_timeout`], nanoseconds on any clock that only goes forward), sends what
//! [`Connection::poll_transmit`] yields, and acts on events: at most one comes straight back from
//! `handle_frame`, borrowing the frame; the rest are in [`Connection::poll_event`]. Same input, same output: nothing
//! here reads a clock, a socket or a random source.
//!
//! ```text
//!            HELLO sent        HELLO ok           PROOF ok (or none wanted)
//!   new() ─▶ Greeting ───────▶ Proving ─────────▶ Open ──▶ Closed
//!                │                 │                │         ▲
//!                └─────────────────┴── violation, CLOSE, timeout
//! ```
//! What goes out has three lanes: control (credit, pings, cancels), then frames that carry a whole small message,
//! then fragments of long messages, taken from their calls in turn. So nobody waits for somebody else's bulk.

mod call;
mod events;
mod handshake;
mod id_map;
mod inbound;
mod lanes;
mod outbound;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use tombolo_transport::{Cid, Incarnation};

use crate::error::{Failure, LinkError};
use crate::wire::fault::clip;
use crate::wire::frame::{HEADER_BYTES, Header, Kind};
use crate::wire::hello::{FRAME_BYTES_MIN, Hello, Limits, WINDOW_BYTES_MIN};
use call::Call;
pub(crate) use call::IdHasher;
pub use events::{Ended, Event, Payload};
pub(crate) use id_map::IdMap;
use lanes::{About, Lane};
pub use outbound::{Frame, SendError};

pub use crate::wire::hello::Side;

/// The longest fragment while others wait for their turn, in bytes. The first of a message is never longer, so that the peer begins soon.
pub(crate) const FRAGMENT_BYTES: usize = 16 * 1024;
/// The longest frame that carries such a fragment, in bytes.
pub(crate) const FRAGMENT_FRAME_BYTES: u32 = (FRAGMENT_BYTES + HEADER_BYTES) as u32;
/// Messages up to this long, in bytes, go before those that are longer.
pub(crate) const SMALL_BYTES: usize = 4 * 1024;
/// Records of ended calls that are kept for others.
const SPARE_CALLS_MAX: usize = 64;
/// Bytes of items of one call that may wait for their turn before its sender is told to wait.
const SEND_BUFFER_BYTES: usize = 128 * 1024;
/// Bytes of small frames that may wait to be sent before new calls are refused here: the transport is stuck.
const LANE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Bytes of small frames that may wait before items wait with their calls, each of which has room for few.
const LANE_ITEM_BYTES_MAX: usize = 256 * 1024;
/// Refusals, credit and answers to pings that may wait before a peer that does not read them is dropped.
const REPLIES_MAX: u32 = 4096;

/// How an end proves, and has the other end prove, the per-boot secret.
#[derive(Clone, PartialEq, Eq)]
pub enum Proof {
    /// Nothing is proven in either direction.
    None,
    /// Both ends prove this secret.
    Secret([u8; 32]),
    /// Both ends prove a secret that [`Connection::authenticate`] supplies once [`Event::PeerHello`] says who claims to be there.
    Chosen,
}

impl std::fmt::Debug for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Secret(_) => "Secret(..)",
            Self::Chosen => "Chosen",
        })
    }
}

/// What one end is and takes. See [`LinkConfig`](crate::LinkConfig) for defaults and meaning.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which end this is.
    pub side: Side,
    /// This kernel.
    pub cid: Cid,
    /// This boot of this kernel.
    pub incarnation: Incarnation,
    /// 32 fresh random bytes, never used before.
    pub nonce: [u8; 32],
    /// How the two ends prove who they are.
    pub proof: Proof,
    /// What this end is, in a word.
    pub role: String,
    /// What program this is, for people.
    pub build: String,
    /// Longest frame taken, in bytes.
    pub frame_bytes_max: u32,
    /// How long the fragments of a request or an answer are while no other waits for its turn, in bytes; never less than 16 KiB, nor more than
    /// the peer takes.
    pub fragment_bytes: u32,
    /// Longest request, answer or item taken, in bytes.
    pub message_bytes_max: u32,
    /// Longest metadata taken, in bytes.
    pub metadata_bytes_max: u16,
    /// Most calls from the peer under way at once.
    pub calls_max: u32,
    /// Most bytes of messages that have arrived in part, over all calls.
    pub assembly_bytes_max: usize,
    /// Credit that each stream towards this end starts with, in bytes.
    pub window_bytes: u32,
    /// How long HELLO and PROOF may take.
    pub handshake_timeout: Duration,
    /// Silence after which the peer is asked for a sign of life.
    pub keepalive: Duration,
    /// Silence after which the peer is taken for dead.
    pub silence_max: Duration,
}

/// Who is at the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerInfo {
    /// Its kernel.
    pub cid: Cid,
    /// The boot of its kernel.
    pub incarnation: Incarnation,
    /// What it is, in a word.
    pub role: String,
    /// What program it is.
    pub build: String,
    /// Whether it has proven the per-boot secret. Otherwise all of the above is only what it says.
    pub authenticated: bool,
    /// The protocol version in use.
    pub version: u16,
}

/// One end of a link, without I/O.
#[derive(Debug)]
pub struct Connection {
    config: Config,
    phase: Phase,
    /// The body of our HELLO, as sent: part of both proofs.
    hello: Vec<u8>,
    peer: Option<Hello>,
    peer_hello: Vec<u8>,
    peer_info: Option<PeerInfo>,
    /// What the peer takes; all zero before its HELLO.
    peer_limits: Limits,

    calls: IdMap<Box<Call>>,
    /// Of calls that are over, for others.
    #[allow(clippy::vec_box, reason = "they go back into the map, which moves boxes and not records")]
    spare_calls: Vec<Box<Call>>,
    calls_mine: u32,
    calls_theirs: u32,
    /// The id of our next call.
    next_id: u32,
    /// The highest id that the peer has opened, 0 before the first.
    last_peer_id: u32,
    assembling_bytes: usize,

    control: Lane,
    small: Lane,
    /// Calls that have fragments to send and credit to send them, in turn.
    bulk: VecDeque<u32>,
    /// The frame being handed out, when it comes from `bulk`: its header, and what it carries.
    scratch: Vec<u8>,
    fragment: Bytes,
    small_in_a_row: u32,
    /// Answers to calls of the peer's that wait in the lane of small frames.
    answers_waiting: u32,
    /// What else the peer has caused and that waits in a lane.
    replies_waiting: u32,
    /// A CLOSE that goes out even though the connection is closed.
    farewell: Option<Vec<u8>>,

    events: VecDeque<Event<'static>>,
    /// No call's deadline is before this.
    earliest_ns: u64,
    started_ns: u64,
    heard_ns: u64,
    pinged_ns: u64,
    ping_token: u64,
    draining: bool,
    /// The ping after our GOAWAY: once it comes back, no call is on its way that we have not seen.
    drain_token: Option<u64>,
    peer_draining: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Greeting,
    /// The peer's HELLO is here; we wait for our user's secret, or the peer's proof of it.
    Proving {
        secret: Option<[u8; 32]>,
    },
    Open,
    Closed(LinkError),
}

impl Connection {
    /// A new end; its HELLO is the first thing to transmit.
    pub fn new(mut config: Config, now_ns: u64) -> Self {
        config.window_bytes = config.window_bytes.max(WINDOW_BYTES_MIN);
        config.frame_bytes_max = config.frame_bytes_max.max(FRAME_BYTES_MIN);
        let mut connection = Self {
            phase: Phase::Greeting,
            hello: Vec::new(),
            peer: None,
            peer_hello: Vec::new(),
            peer_info: None,
            peer_limits: Limits {
                frame_bytes: 0,
                message_bytes: 0,
                metadata_bytes: 0,
                calls: 0,
                window_bytes: 0,
            },
            calls: IdMap::default(),
            spare_calls: Vec::new(),
            calls_mine: 0,
            calls_theirs: 0,
            next_id: config.side as u32,
            last_peer_id: 0,
            assembling_bytes: 0,
            control: Lane::default(),
            small: Lane::default(),
            bulk: VecDeque::new(),
            scratch: Vec::new(),
            fragment: Bytes::new(),
            small_in_a_row: 0,
            answers_waiting: 0,
            replies_waiting: 0,
            farewell: None,
            events: VecDeque::new(),
            earliest_ns: u64::MAX,
            started_ns: now_ns,
            heard_ns: now_ns,
            pinged_ns: now_ns,
            ping_token: 0,
            draining: false,
            drain_token: None,
            peer_draining: None,
            config,
        };
        connection.greet();
        connection
    }

    /// Who is at the other end; `None` until [`Event::Established`].
    pub fn peer(&self) -> Option<&PeerInfo> {
        self.peer_info.as_ref().filter(|_| self.phase == Phase::Open)
    }

    /// Why the connection is closed, if it is.
    pub fn closed(&self) -> Option<&LinkError> {
        match &self.phase {
            Phase::Closed(error) => Some(error),
            _ => None,
        }
    }

    /// Calls under way: ours and the peer's.
    pub fn in_flight(&self) -> (u32, u32) {
        (self.calls_mine, self.calls_theirs)
    }

    /// The next thing that happened, apart from what `handle_frame` returned.
    pub fn poll_event(&mut self) -> Option<Event<'static>> {
        self.events.pop_front()
    }

    /// When [`Connection::handle_timeout`] wants to be called, in nanoseconds.
    pub fn poll_timeout(&self) -> Option<u64> {
        let ns = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        match self.phase {
            Phase::Closed(_) => None,
            Phase::Greeting | Phase::Proving { .. } => {
                Some(self.started_ns.saturating_add(ns(self.config.handshake_timeout)))
            }
            Phase::Open => {
                let ping = self.heard_ns.max(self.pinged_ns).saturating_add(ns(self.config.keepalive));
                let silent = self.heard_ns.saturating_add(ns(self.config.silence_max));
                Some(self.earliest_ns.min(ping).min(silent))
            }
        }
    }

    /// Acts on the time: expires calls, asks for signs of life, gives up on a silent peer.
    pub fn handle_timeout(&mut self, now_ns: u64) {
        let silent = Duration::from_nanos(now_ns.saturating_sub(self.heard_ns));
        match self.phase {
            Phase::Closed(_) => {}
            Phase::Greeting | Phase::Proving { .. } => {
                let taken = Duration::from_nanos(now_ns.saturating_sub(self.started_ns));
                if taken >= self.config.handshake_timeout {
                    self.close(LinkError::Silent { silent: taken });
                }
            }
            Phase::Open => {
                if silent >= self.config.silence_max {
                    return self.close(LinkError::Silent { silent });
                }
                let asked = Duration::from_nanos(now_ns.saturating_sub(self.pinged_ns));
                if silent >= self.config.keepalive && asked >= self.config.keepalive {
                    self.ping(now_ns);
                }
                self.expire(now_ns);
            }
        }
    }

    /// Asks the peer for a sign of life; [`Event::Pong`] with the token returned here says that it came.
    pub fn ping(&mut self, now_ns: u64) -> u64 {
        self.pinged_ns = now_ns;
        self.ping_token += 1;
        let token = self.ping_token;
        if self.phase == Phase::Open {
            self.control.push(About::Link, |out| {
                out.extend_from_slice(&Header::new(Kind::Ping, 0).to_bytes());
                out.extend_from_slice(&token.to_le_bytes());
            });
        }
        token
    }

    /// Nobody has listened until `now_ns`: the peer's silence up to now means nothing.
    pub(crate) fn resumed(&mut self, now_ns: u64) {
        self.heard_ns = self.heard_ns.max(now_ns);
    }

    /// Takes no new calls from the peer; closes once all calls, of both sides, have ended.
    pub fn go_away(&mut self, now_ns: u64, reason: &str) {
        if self.draining || self.phase != Phase::Open {
            return;
        }
        self.draining = true;
        let last = self.last_peer_id;
        self.control.push(About::Link, |out| {
            out.extend_from_slice(&Header::new(Kind::GoAway, last).to_bytes());
            out.extend_from_slice(clip(reason).as_bytes());
        });
        // Calls that the peer makes before it hears of this must be refused, not cut off: wait until it has heard.
        self.drain_token = Some(self.ping(now_ns));
    }

    /// Whether one of the two sides has said GOAWAY.
    pub fn is_draining(&self) -> bool {
        self.draining || self.peer_draining.is_some()
    }

    /// Ends the connection for `error`, telling the peer. All calls fail.
    pub fn close(&mut self, error: LinkError) {
        if self.closed().is_some() {
            return;
        }
        let mut frame = Vec::new();
        let header = Header { aux: error.close_code() as u16, ..Header::new(Kind::Close, 0) };
        frame.extend_from_slice(&header.to_bytes());
        frame.extend_from_slice(clip(&error.to_string()).as_bytes());
        self.farewell = Some(frame);
        self.end(error);
    }

    /// Ends the connection without a word to the peer: it is gone, or has closed already. All calls fail.
    pub fn lost(&mut self, error: LinkError) {
        if self.closed().is_none() {
            self.end(error);
        }
    }

    fn end(&mut self, error: LinkError) {
        let reason = error.to_string();
        // In order of ids, so that the same input gives the same output.
        let mut ids: Vec<u32> = self.calls.iter().map(|(id, _)| id).collect();
        ids.sort_unstable();
        for id in ids {
            let Some(call) = self.calls.remove(id) else { continue };
            self.events.push_back(if call.method.is_some() {
                Event::Failed {
                    call: id,
                    failure: Failure::LinkLost { reason: reason.clone(), started: call.sent },
                }
            } else {
                Event::Cancelled { call: id, why: Ended::LinkLost }
            });
        }
        (self.calls_mine, self.calls_theirs, self.assembling_bytes) = (0, 0, 0);
        (self.answers_waiting, self.replies_waiting) = (0, 0);
        self.control = Lane::default();
        self.small = Lane::default();
        self.bulk = VecDeque::new();
        self.phase = Phase::Closed(error.clone());
        self.events.push_back(Event::Closed(error));
    }

    fn close_if_drained(&mut self) {
        let done = self.draining && self.drain_token.is_none() && self.calls.is_empty();
        if done && self.phase == Phase::Open && self.small.is_empty() {
            self.close(LinkError::Closed);
        }
    }

    fn expire(&mut self, now_ns: u64) {
        if now_ns < self.earliest_ns {
            return;
        }
        let mut due = Vec::new();
        self.earliest_ns = u64::MAX;
        for (id, call) in self.calls.iter() {
            if call.deadline_ns <= now_ns {
                due.push(id);
            } else {
                self.earliest_ns = self.earliest_ns.min(call.deadline_ns);
            }
        }
        due.sort_unstable();
        for id in due {
            self.expire_call(id);
        }
    }
}
