//! Bytes of the peer: where they lie before the application reads them.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

/// What the shell reads into: it may be kept, and is used again when nobody keeps it any more.
pub(crate) type Block = Arc<[u8]>;

/// A shorter payload is copied: it would keep a whole block.
const KEPT_BYTES_MIN: usize = 16 * 1024;

/// Where a payload lies, if what it lies in may be kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    pub(crate) block: &'a Block,
    pub(crate) from: usize,
}

/// Bytes of one stream that have arrived and are not read.
#[derive(Debug, Default)]
pub(crate) struct Arrived {
    pieces: VecDeque<Piece>,
    bytes: usize,
}

#[derive(Debug)]
enum Piece {
    Copied(VecDeque<u8>),
    Kept(Block, Range<usize>),
}

impl Arrived {
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Adds `payload`, which lies at `place` if that is known.
    pub(crate) fn push(&mut self, payload: &[u8], place: Option<Place<'_>>) {
        self.bytes += payload.len();
        match place {
            Some(place) if payload.len() >= KEPT_BYTES_MIN => {
                let range = place.from..place.from + payload.len();
                self.pieces.push_back(Piece::Kept(Arc::clone(place.block), range));
            }
            _ => match self.pieces.back_mut() {
                Some(Piece::Copied(bytes)) => bytes.extend(payload),
                _ => self.pieces.push_back(Piece::Copied(payload.iter().copied().collect())),
            },
        }
    }

    /// Moves bytes from the front; how many.
    pub(crate) fn take(&mut self, into: &mut [u8]) -> usize {
        let mut taken = 0;
        while taken < into.len() && taken < self.bytes {
            let Some(piece) = self.pieces.front_mut() else { break };
            let room = &mut into[taken..];
            let is_empty = match piece {
                Piece::Copied(bytes) => {
                    taken += take(bytes, room);
                    bytes.is_empty()
                }
                Piece::Kept(block, range) => {
                    let len = range.len().min(room.len());
                    room[..len].copy_from_slice(&block[range.start..range.start + len]);
                    range.start += len;
                    taken += len;
                    range.start == range.end
                }
            };
            // The last place for copies stays, to be filled again.
            if is_empty && !(self.pieces.len() == 1 && matches!(self.pieces[0], Piece::Copied(_))) {
                self.pieces.pop_front();
            }
        }
        self.bytes -= taken;
        taken
    }
}

fn take(queue: &mut VecDeque<u8>, into: &mut [u8]) -> usize {
    let (front, back) = queue.as_slices();
    let first = front.len().min(into.len());
    into[..first].copy_from_slice(&front[..first]);
    let second = back.len().min(into.len() - first);
    into[first..first + second].copy_from_slice(&back[..second]);
    queue.drain(..first + second);
    first + second
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_in_order_wherever_they_lie() {
        let block: Block = (0..100_000).map(|at| at as u8).collect();
        let mut arrived = Arrived::default();
        let mut expected = Vec::new();
        for (from, len) in
            [(0, 10), (10, 20_000), (20_010, 30_000), (50_010, 5), (50_015, 100), (50_115, 17_000)]
        {
            let payload = &block[from..from + len];
            arrived.push(payload, Some(Place { block: &block, from }));
            expected.extend_from_slice(payload);
        }
        assert_eq!((arrived.len(), Arc::strong_count(&block)), (expected.len(), 4));
        let mut read = Vec::new();
        for len in [1, 5, 7, 30_000, 0, 100_000, 10] {
            let mut into = vec![0; len];
            let taken = arrived.take(&mut into);
            assert!(taken == len.min(expected.len() - read.len()));
            read.extend_from_slice(&into[..taken]);
        }
        assert!(read == expected && arrived.is_empty());
        assert_eq!(Arc::strong_count(&block), 1, "what was read is kept");
    }
}
