//! Bytes in, frames out, over any split of the bytes.

use super::frame::{FRAME_BYTES_MAX, Frame, NoFrame, frame_len};

/// Holds the part of a frame that has arrived: never more than one frame.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    partial: Vec<u8>,
}

impl Inbox {
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

    /// Calls `each` for every whole frame, in order, until one fails. Frames that lie whole in `bytes` are not copied.
    pub(crate) fn feed<E: From<NoFrame>>(
        &mut self,
        mut bytes: &[u8],
        mut each: impl FnMut(Frame<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        while !self.partial.is_empty() && !bytes.is_empty() {
            let wanted = match frame_len(&self.partial) {
                Ok(len) => len - self.partial.len(),
                Err(NoFrame::Incomplete) => 1,
                Err(other) => return Err(other.into()),
            };
            let (now, later) = bytes.split_at(wanted.min(bytes.len()));
            self.partial.extend_from_slice(now);
            bytes = later;
            match Frame::decode(&self.partial) {
                Ok((frame, _)) => each(frame)?,
                Err(NoFrame::Incomplete) => continue,
                Err(other) => return Err(other.into()),
            }
            self.partial.clear();
        }
        while !bytes.is_empty() {
            match Frame::decode(bytes) {
                Ok((frame, len)) => {
                    each(frame)?;
                    bytes = &bytes[len..];
                }
                Err(NoFrame::Incomplete) => {
                    self.partial.reserve_exact(FRAME_BYTES_MAX);
                    self.partial.extend_from_slice(bytes);
                    return Ok(());
                }
                Err(other) => return Err(other.into()),
            }
        }
        Ok(())
    }
}
