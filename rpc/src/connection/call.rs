//! One call, seen from one end.

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher};

use bytes::Bytes;

use crate::schema::MethodInfo;
use crate::wire::frame::Open;

/// A call under way.
#[derive(Debug, Default)]
pub(super) struct Call {
    /// What we called; `None` if the peer called us.
    pub(super) method: Option<&'static MethodInfo>,
    /// `u64::MAX` for none.
    pub(super) deadline_ns: u64,
    /// Ours: the first frame of the OPEN has been handed to the transport.
    pub(super) sent: bool,
    /// The peer's: the request is complete and has been reported.
    pub(super) running: bool,

    /// Long messages that wait for their turn, and what must not overtake them.
    pub(super) queue: VecDeque<Outgoing>,
    pub(super) queued_bytes: usize,
    /// Its frames that wait in the lane of small ones: what is in `queue` must not overtake them.
    pub(super) in_lane: u32,
    /// Whether the call is in the list of those that take turns.
    pub(super) scheduled: bool,
    /// Bytes of items that the peer lets us send.
    pub(super) credit: u64,
    /// We send no more items.
    pub(super) ended: bool,
    /// The peer wants no more items.
    pub(super) stopped: bool,
    /// The peer's: its answer is queued.
    pub(super) answering: bool,
    /// Our user waits for room for items.
    pub(super) wants_room: bool,

    /// A message that has arrived in part, and what it is.
    pub(super) partial: Vec<u8>,
    pub(super) partial_of: Partial,
    /// What of `partial` counts towards the limit over all calls.
    pub(super) assembling: usize,
    /// Bytes of items that we have let the peer send and that it has not yet sent.
    pub(super) granted: u64,
    /// Bytes of items read that have not yet been granted anew.
    pub(super) returnable: u32,
    /// Items reported and not yet consumed.
    pub(super) unread: u32,
    /// What the partial item has cost and has not been given back.
    pub(super) partial_cost: u32,
    /// The peer sends no more items.
    pub(super) items_ended: bool,
    /// We want no more items.
    pub(super) discarding: bool,
}

/// What a partly arrived message will be.
#[derive(Debug, Default)]
pub(super) enum Partial {
    #[default]
    Nothing,
    Request(Box<(Open, Bytes)>),
    Item,
    Answer {
        app_error: bool,
    },
}

/// Something that waits for its turn.
#[derive(Debug)]
pub(super) enum Outgoing {
    /// What is left of a request whose OPEN has its own place, or a part of that.
    Request {
        payload: Bytes,
        sent: usize,
        /// No other part of the request follows.
        last: bool,
    },
    Item {
        payload: Bytes,
        sent: usize,
    },
    End,
    Stop,
    Answer {
        app_error: bool,
        payload: Bytes,
        sent: usize,
        /// No other part of the answer follows.
        last: bool,
    },
    /// An encoded frame (ERROR).
    Frame(Vec<u8>),
}

/// A hash for ids: one multiplication spreads those of calls, which are handed out in sequence.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct IdHasher;

#[derive(Debug, Default)]
pub(crate) struct IdHash(u64);

impl BuildHasher for IdHasher {
    type Hasher = IdHash;

    fn build_hasher(&self) -> IdHash {
        IdHash(0)
    }
}

impl Hasher for IdHash {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
    }

    /// Ids of methods are hashes already, and which there are is for the server to say, not for the peer.
    fn write_u64(&mut self, id: u64) {
        self.0 = id;
    }

    fn write_u32(&mut self, id: u32) {
        self.0 = u64::from(id).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// Whether `id` comes after `other` in the order of ids, which wraps around (RFC 1982).
pub(super) fn is_after(id: u32, other: u32) -> bool {
    let ahead = id.wrapping_sub(other);
    ahead != 0 && ahead < 1 << 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_ordered_across_the_wrap() {
        assert!(is_after(3, 1) && !is_after(1, 3) && !is_after(3, 3));
        assert!(is_after(1, u32::MAX) && !is_after(u32::MAX, 1));
    }
}
