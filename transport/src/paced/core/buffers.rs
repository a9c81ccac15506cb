//! Buffers of frames on their way out: a payload is copied once, to where its header goes before it.

use super::frame::{HEADER_BYTES, Header};

/// Room of a buffer, header included: a packet of Multikernel's ring, and two sizes above for sockets that take longer frames.
const SIZES_BYTES: [usize; 3] = [4028, 12 * 1024, 32 * 1024];
/// Bytes in buffers that wait to be used again.
const SPARE_BYTES_MAX: usize = 1 << 20;

/// Buffers that are used again: taking one of them allocates nothing.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    spare: [Vec<Vec<u8>>; SIZES_BYTES.len()],
    spare_bytes: usize,
}

/// The payload of one frame, with room for a header before it.
#[derive(Debug)]
pub(crate) struct Chunk {
    bytes: Vec<u8>,
    /// Where the header goes: what is before it has gone in another frame.
    start: usize,
}

impl Buffers {
    /// An empty one with room for `len` bytes of payload, or for as many as the longest has.
    pub(crate) fn take(&mut self, len: usize) -> Chunk {
        let wanted = HEADER_BYTES + len;
        let fits = SIZES_BYTES.iter().position(|size| *size >= wanted).unwrap_or(SIZES_BYTES.len() - 1);
        let mut bytes = match self.spare[fits].pop() {
            Some(bytes) => {
                self.spare_bytes -= SIZES_BYTES[fits];
                bytes
            }
            None => Vec::with_capacity(SIZES_BYTES[fits]),
        };
        bytes.resize(HEADER_BYTES, 0);
        Chunk { bytes, start: 0 }
    }

    /// To be used again.
    pub(crate) fn give_back(&mut self, chunk: Chunk) {
        let mut bytes = chunk.bytes;
        let Some(size) = SIZES_BYTES.iter().position(|size| *size == bytes.capacity()) else { return };
        if self.spare_bytes + SIZES_BYTES[size] <= SPARE_BYTES_MAX {
            self.spare_bytes += SIZES_BYTES[size];
            bytes.clear();
            self.spare[size].push(bytes);
        }
    }
}

impl Chunk {
    /// Bytes of payload.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - HEADER_BYTES - self.start
    }

    /// Takes some of `bytes` while the whole is not longer than `len_max`; how many.
    pub(crate) fn append(&mut self, bytes: &[u8], len_max: usize) -> usize {
        let room = (self.bytes.capacity() - self.bytes.len()).min(len_max.saturating_sub(self.len()));
        let taken = room.min(bytes.len());
        self.bytes.extend_from_slice(&bytes[..taken]);
        taken
    }

    /// Moves the first `len` bytes into one of `buffers`.
    pub(crate) fn split_off_front(&mut self, len: usize, buffers: &mut Buffers) -> Self {
        let mut front = buffers.take(len);
        let from = self.start + HEADER_BYTES;
        front.bytes.extend_from_slice(&self.bytes[from..from + len]);
        self.start += len;
        front
    }

    /// The frame; its header is of no meaning before [`Chunk::seal`].
    pub(crate) fn frame(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// Writes the header.
    pub(crate) fn seal(&mut self, header: &Header) {
        header.seal(&mut self.bytes[self.start..]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::{Frame, Kind};
    use super::*;
    use crate::incarnation::Incarnation;

    fn payload(chunk: &mut Chunk) -> Vec<u8> {
        let incarnation = Incarnation([1; 16]);
        chunk.seal(&Header { kind: Kind::Data, flags: 0, incarnation, seq: 1, ack: 0, stream: 1 });
        let (frame, _) = Frame::decode(chunk.frame(), 32 * 1024).unwrap();
        frame.payload.to_vec()
    }

    #[test]
    fn front_that_is_split_off_and_the_rest_are_frames_of_their_own() {
        let mut buffers = Buffers::default();
        let mut chunk = buffers.take(9000);
        let sent: Vec<u8> = (0..9000).map(|at| at as u8).collect();
        assert_eq!(chunk.append(&sent, usize::MAX), 9000);
        let mut front = chunk.split_off_front(100, &mut buffers);
        assert_eq!(payload(&mut front), sent[..100]);
        assert_eq!((payload(&mut chunk), chunk.len()), (sent[100..].to_vec(), 8900));
    }

    #[test]
    fn what_waits_to_be_used_again_is_bounded() {
        let mut buffers = Buffers::default();
        let taken: Vec<Chunk> = (0..100).map(|_| buffers.take(60_000)).collect();
        taken.into_iter().for_each(|chunk| buffers.give_back(chunk));
        assert_eq!((buffers.spare_bytes, buffers.spare.iter().flatten().count()), (SPARE_BYTES_MAX, 32));
    }
}
