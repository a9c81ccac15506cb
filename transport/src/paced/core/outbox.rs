//! Numbered frames that the peer has not acknowledged: the window, and what is sent again after the loss of a socket.

use std::collections::VecDeque;

use super::buffers::{Buffers, Chunk};
use super::frame::{HEADER_BYTES, Header, Kind};
use super::limits::Limits;

/// The longest payload of a control frame.
const CONTROL_BYTES_MAX: usize = 8;

#[derive(Debug)]
pub(crate) struct Outbox {
    /// What both ends take.
    limits: Limits,
    kept: VecDeque<Kept>,
    pub(crate) buffers: Buffers,
    bytes: usize,
    /// The last frame that the peer has, with all before it.
    acked: u64,
    /// The last frame that went into the present socket, or that the peer had before.
    sent: u64,
}

#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) seq: u64,
    pub(crate) kind: Kind,
    pub(crate) stream: u64,
    body: Body,
}

#[derive(Debug)]
enum Body {
    Control { frame: [u8; HEADER_BYTES + CONTROL_BYTES_MAX], len: usize },
    Data(Chunk),
}

impl Kept {
    /// The frame, header included.
    pub(crate) fn frame(&self) -> &[u8] {
        match &self.body {
            Body::Control { frame, len } => &frame[..*len],
            Body::Data(chunk) => chunk.frame(),
        }
    }

    /// Writes the header.
    pub(crate) fn seal(&mut self, header: &Header) {
        match &mut self.body {
            Body::Control { frame, len } => header.seal(&mut frame[..*len]),
            Body::Data(chunk) => chunk.seal(header),
        }
    }
}

impl Outbox {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, kept: VecDeque::new(), buffers: Buffers::default(), bytes: 0, acked: 0, sent: 0 }
    }

    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    /// What both ends take, where nothing is kept.
    pub(crate) fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Whether a frame with `payload_len` bytes may be made now.
    pub(crate) fn has_room(&self, payload_len: usize) -> bool {
        self.kept.len() < self.limits.window_frames
            && self.bytes + HEADER_BYTES + payload_len <= self.limits.window_bytes
    }

    /// Makes the next frame, of control.
    pub(crate) fn push_control(&mut self, kind: Kind, stream: u64, payload: &[u8]) {
        let mut frame = [0; HEADER_BYTES + CONTROL_BYTES_MAX];
        let len = HEADER_BYTES + payload.len();
        frame[HEADER_BYTES..len].copy_from_slice(payload);
        self.push(kind, stream, Body::Control { frame, len });
    }

    /// Makes the next frame, of bytes of a stream.
    pub(crate) fn push_data(&mut self, stream: u64, chunk: Chunk) {
        self.push(Kind::Data, stream, Body::Data(chunk));
    }

    fn push(&mut self, kind: Kind, stream: u64, body: Body) {
        let kept = Kept { seq: self.last_made() + 1, kind, stream, body };
        self.bytes += kept.frame().len();
        self.kept.push_back(kept);
    }

    /// The frames that have not gone into the present socket, from the `nth` on.
    pub(crate) fn unsent(&self, nth: usize) -> impl Iterator<Item = &Kept> {
        self.kept.iter().skip((self.sent - self.acked) as usize + nth)
    }

    /// The `nth` of them, to give it its header.
    pub(crate) fn unsent_mut(&mut self, nth: usize) -> Option<&mut Kept> {
        self.kept.get_mut((self.sent - self.acked) as usize + nth)
    }

    /// The first of [`Outbox::unsent`] went, or will go whatever happens to what is kept.
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

    /// Of all frames that are kept.
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
            let Some(kept) = self.kept.pop_front() else { break };
            self.acked += 1;
            self.bytes -= kept.frame().len();
            if let Body::Data(chunk) = kept.body {
                self.buffers.give_back(chunk);
            }
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_is_full_in_bytes_or_in_frames() {
        let limits = Limits::PACKETS.with_window(3584);
        let mut outbox = Outbox::new(limits);
        for _ in 0..2 {
            let len = limits.payload_bytes();
            assert!(outbox.has_room(len));
            let mut chunk = outbox.buffers.take(len);
            chunk.append(&vec![0; len], len);
            outbox.push_data(1, chunk);
        }
        assert!(!outbox.has_room(0));
        assert_eq!(outbox.bytes_under_way(), 3584);
        let mut outbox = Outbox::new(Limits::PACKETS);
        (0..16).for_each(|_| outbox.push_control(Kind::End, 1, &[]));
        assert!(!outbox.has_room(0));
    }
}
