//! Numbered frames that the peer has not acknowledged: the window, and what is sent again after the loss of a socket.

use std::collections::VecDeque;

use super::frame::{HEADER_BYTES, Kind, PAYLOAD_BYTES_MAX};

/// Bytes under way at most, headers included, all streams together. Half of what Multikernel's ring of 64 slots holds in 16 of
/// them, which leaves room for the console, for notices of the kernel and for other kernels.
pub(crate) const WINDOW_BYTES: usize = 32 * 1024;
/// Frames under way at most: each takes one slot of that ring, however short it is.
pub(crate) const WINDOW_FRAMES: usize = 16;

#[derive(Debug)]
pub(crate) struct Outbox {
    /// Bytes under way at most: [`WINDOW_BYTES`], or less.
    window_bytes: usize,
    kept: VecDeque<Kept>,
    /// Buffers of frames that were acknowledged, to be filled again.
    spare: Vec<Vec<u8>>,
    bytes: usize,
    /// The last frame that the peer has, with all before it.
    acked: u64,
    /// The last frame that went wholly into the present socket, or that the peer had before.
    sent: u64,
}

#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) seq: u64,
    pub(crate) kind: Kind,
    pub(crate) stream: u64,
    pub(crate) payload: Vec<u8>,
}

impl Outbox {
    pub(crate) fn new(window_bytes: usize) -> Self {
        Self { window_bytes, kept: VecDeque::new(), spare: Vec::new(), bytes: 0, acked: 0, sent: 0 }
    }

    /// The longest payload with which two frames have room.
    pub(crate) fn payload_bytes_max(&self) -> usize {
        (self.window_bytes / 2 - HEADER_BYTES).min(PAYLOAD_BYTES_MAX)
    }

    /// Whether a frame with `payload_len` bytes may be made now.
    pub(crate) fn has_room(&self, payload_len: usize) -> bool {
        self.kept.len() < WINDOW_FRAMES && self.bytes + HEADER_BYTES + payload_len <= self.window_bytes
    }

    /// Makes the next frame; `fill` writes its payload into an empty buffer.
    pub(crate) fn push(&mut self, kind: Kind, stream: u64, fill: impl FnOnce(&mut Vec<u8>)) {
        let mut payload = self.spare.pop().unwrap_or_else(|| Vec::with_capacity(PAYLOAD_BYTES_MAX));
        fill(&mut payload);
        self.bytes += HEADER_BYTES + payload.len();
        self.kept.push_back(Kept { seq: self.last_made() + 1, kind, stream, payload });
    }

    /// The next frame that has not gone into the present socket.
    pub(crate) fn unsent(&self) -> Option<&Kept> {
        self.kept.get((self.sent - self.acked) as usize)
    }

    /// The frame of [`Outbox::unsent`] went.
    pub(crate) fn sent_one(&mut self) {
        self.sent += 1;
    }

    pub(crate) fn last_sent(&self) -> u64 {
        self.sent
    }

    /// Whether something that went is not acknowledged.
    pub(crate) fn is_waiting(&self) -> bool {
        self.sent > self.acked
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// The peer has everything up to `ack`: true if that is news.
    pub(crate) fn acknowledge(&mut self, ack: u64) -> Result<bool, String> {
        if ack < self.acked || ack > self.sent {
            let (acked, sent) = (self.acked, self.sent);
            return Err(format!("it acknowledged frame {ack}, we had sent {sent} and heard of {acked}"));
        }
        Ok(self.drop_until(ack))
    }

    /// A new socket: the peer has everything up to `ack`, the rest is sent again.
    pub(crate) fn resume(&mut self, ack: u64) -> Result<(), String> {
        let made = self.last_made();
        if ack < self.acked || ack > made {
            let acked = self.acked;
            return Err(format!("it says to have frame {ack}, we had made {made} and heard of {acked}"));
        }
        self.drop_until(ack);
        self.sent = ack;
        Ok(())
    }

    /// A new session: numbers begin again, nothing is kept.
    pub(crate) fn clear(&mut self) {
        self.drop_until(self.last_made());
        (self.acked, self.sent) = (0, 0);
    }

    #[cfg(test)]
    pub(crate) fn bytes_under_way(&self) -> usize {
        self.bytes
    }

    #[cfg(test)]
    pub(crate) fn frames_under_way(&self) -> usize {
        self.kept.len()
    }

    fn last_made(&self) -> u64 {
        self.acked + self.kept.len() as u64
    }

    fn drop_until(&mut self, ack: u64) -> bool {
        let news = ack > self.acked;
        while self.acked < ack {
            let Some(mut kept) = self.kept.pop_front() else { break };
            self.acked += 1;
            self.bytes -= HEADER_BYTES + kept.payload.len();
            kept.payload.clear();
            self.spare.push(kept.payload);
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_of_the_longest_frames_and_no_more_have_room_in_a_small_window() {
        let mut outbox = Outbox::new(3584);
        let len = outbox.payload_bytes_max();
        for _ in 0..2 {
            assert!(outbox.has_room(len));
            outbox.push(Kind::Data, 1, |payload| payload.resize(len, 0));
        }
        assert!(!outbox.has_room(0));
        assert_eq!(outbox.bytes_under_way(), 3584);
        assert_eq!(Outbox::new(WINDOW_BYTES).payload_bytes_max(), PAYLOAD_BYTES_MAX);
    }
}
