//! [`Lane`]: whole frames that wait to be sent, in one buffer that is reused.

use std::collections::VecDeque;
use std::ops::Range;

/// Whom a waiting frame is about, for the books.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum About {
    /// Nobody keeps books of it.
    Link,
    /// A call; what it queues elsewhere must not overtake this.
    Call(u32),
    /// The end of a call of the peer's.
    Answer,
    /// Anything else that the peer has caused.
    Reply,
}

/// Frames in order. Pushing encodes straight into the buffer; a drained lane allocates nothing.
#[derive(Debug, Default)]
pub(super) struct Lane {
    bytes: Vec<u8>,
    /// Where each frame ends, and whom it is about.
    frames: VecDeque<(usize, About)>,
    head: usize,
}

/// Bytes already sent that are worth moving the rest for.
const COMPACT_BYTES: usize = 64 * 1024;

impl Lane {
    /// Appends the frame that `encode` writes.
    #[inline]
    pub(super) fn push(&mut self, about: About, encode: impl FnOnce(&mut Vec<u8>)) {
        if self.frames.is_empty() {
            self.bytes.clear();
            self.head = 0;
        } else if self.head > COMPACT_BYTES && self.head * 2 > self.bytes.len() {
            self.bytes.drain(..self.head);
            for (end, _) in &mut self.frames {
                *end -= self.head;
            }
            self.head = 0;
        }
        encode(&mut self.bytes);
        self.frames.push_back((self.bytes.len(), about));
    }

    /// Takes the next frame: where it lies, and whom it is about.
    #[inline]
    pub(super) fn pop(&mut self) -> Option<(Range<usize>, About)> {
        let (end, about) = self.frames.pop_front()?;
        let start = std::mem::replace(&mut self.head, end);
        Some((start..end, about))
    }

    /// A frame that was just popped.
    pub(super) fn frame(&self, range: Range<usize>) -> &[u8] {
        &self.bytes[range]
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Bytes that wait.
    pub(super) fn len_bytes(&self) -> usize {
        self.bytes.len() - self.head
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_in_order_while_more_go_in() {
        let mut lane = Lane::default();
        let mut next = 0u32;
        for i in 0..40_000u32 {
            lane.push(About::Call(i), |out| out.extend_from_slice(&i.to_le_bytes()));
            if i % 2 == 1 {
                let (range, about) = lane.pop().unwrap();
                assert_eq!(about, About::Call(next));
                assert_eq!(lane.frame(range), next.to_le_bytes());
                next += 1;
            }
        }
        assert_eq!(lane.len_bytes(), 80_000);
        while let Some((range, _)) = lane.pop() {
            assert_eq!(lane.frame(range), next.to_le_bytes());
            next += 1;
        }
        assert_eq!(next, 40_000);
        assert!(lane.is_empty());
    }
}
