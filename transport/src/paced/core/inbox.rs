//! Bytes in, frames out, over any split of the bytes.

use super::arrived::{Block, Place};
use super::frame::{Frame, HEADER_BYTES, NoFrame, frame_len};

/// Holds the part of a frame that has arrived: never more than one frame.
#[derive(Debug)]
pub(crate) struct Inbox {
    partial: Vec<u8>,
    frame_bytes_max: usize,
}

impl Inbox {
    pub(crate) fn new(frame_bytes_max: usize) -> Self {
        Self { partial: Vec::new(), frame_bytes_max }
    }

    pub(crate) fn clear(&mut self) {
        self.partial.clear();
    }

    /// Takes what has come so far, for whoever looks through it byte by byte.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.partial)
    }

    /// Keeps what is to be looked at again with what comes.
    pub(crate) fn keep(&mut self, partial: Vec<u8>) {
        self.partial = partial;
    }

    #[cfg(test)]
    pub(crate) fn held_bytes(&self) -> usize {
        self.partial.len()
    }

    /// Calls `each` for every whole frame, in order, until one fails. Frames that lie whole in `bytes` are not copied, and tell where in `block`
    /// they lie, at the beginning of which are `bytes`.
    pub(crate) fn feed<E: From<NoFrame>>(
        &mut self,
        mut bytes: &[u8],
        block: Option<&Block>,
        mut each: impl FnMut(Frame<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let end = bytes.len();
        while !self.partial.is_empty() && !bytes.is_empty() {
            let wanted = match frame_len(&self.partial, self.frame_bytes_max) {
                Ok(len) => len - self.partial.len(),
                Err(NoFrame::Incomplete) => 1,
                Err(other) => return Err(other.into()),
            };
            let (now, later) = bytes.split_at(wanted.min(bytes.len()));
            self.partial.extend_from_slice(now);
            bytes = later;
            match Frame::decode(&self.partial, self.frame_bytes_max) {
                Ok((frame, _)) => each(frame)?,
                Err(NoFrame::Incomplete) => continue,
                Err(other) => return Err(other.into()),
            }
            self.partial.clear();
        }
        while !bytes.is_empty() {
            match Frame::decode(bytes, self.frame_bytes_max) {
                Ok((mut frame, len)) => {
                    let from = end - bytes.len() + HEADER_BYTES;
                    frame.place = block.map(|block| Place { block, from });
                    each(frame)?;
                    bytes = &bytes[len..];
                }
                Err(NoFrame::Incomplete) => {
                    self.partial.reserve_exact(self.frame_bytes_max);
                    self.partial.extend_from_slice(bytes);
                    return Ok(());
                }
                Err(other) => return Err(other.into()),
            }
        }
        Ok(())
    }
}
