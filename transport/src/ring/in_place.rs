//! Messages where they are: being written in the loan that they will be sent in, or read in the one they came in.
//!
//! Unlike [`LoanMut`](super::LoanMut) and [`Received`](super::Received) these last for one call and so need no account that threads share: which buffers
//! are free only the sender knows, which are done with only the receiver, until it tells of several at once.

use std::fmt;

use super::layout::{LOAN_HEAD, LOAN_HEAD_AT};
use crate::mem::{Memory, MemoryMut};

/// A message that is being written, in our half.
pub struct InPlaceMut<'a, M> {
    mem: &'a M,
    at: usize,
    len: &'a mut usize,
}

impl<'a, M: MemoryMut> InPlaceMut<'a, M> {
    #[inline]
    pub(super) fn new(mem: &'a M, at: usize, len: &'a mut usize) -> Self {
        Self { mem, at, len }
    }

    /// Length of the message, in bytes.
    #[inline]
    #[expect(clippy::len_without_is_empty, reason = "an empty message is one too")]
    pub fn len(&self) -> usize {
        *self.len
    }

    /// Shortens the message to `len` bytes; longer than it is has no effect.
    pub fn truncate(&mut self, len: usize) {
        *self.len = len.min(*self.len);
    }

    /// Copies `data` to `offset` in the message. What is not written holds whatever an earlier message left there.
    ///
    /// # Panics
    /// If it does not fit.
    #[inline]
    pub fn write_at(&mut self, offset: usize, data: &[u8]) {
        let fits = offset.checked_add(data.len()).is_some_and(|end| end <= *self.len);
        assert!(fits, "{} bytes at {offset} of a message of {}", data.len(), self.len);
        self.mem.write(self.at + offset, data);
    }
}

/// A message that is being read: in the sender's half, or a copy of it.
///
/// The sender may misbehave and change it while it is read: copy it, then parse the copy.
pub struct InPlace<'a, P>(Place<'a, P>);

enum Place<'a, P> {
    Copied(&'a [u8]),
    Lent { mem: &'a P, at: usize, len: usize, head: LoanHead },
}

impl<'a, P: Memory> InPlace<'a, P> {
    #[inline]
    pub(super) fn copied(message: &'a [u8]) -> Self {
        Self(Place::Copied(message))
    }

    #[inline]
    pub(super) fn lent(mem: &'a P, at: usize, len: usize, head: LoanHead) -> Self {
        Self(Place::Lent { mem, at, len, head })
    }

    /// Length of the message, in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        match &self.0 {
            Place::Copied(message) => message.len(),
            Place::Lent { len, .. } => *len,
        }
    }

    /// Whether the message is empty.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it lies in the sender's half.
    #[inline]
    pub fn is_loan(&self) -> bool {
        matches!(self.0, Place::Lent { .. })
    }

    /// Copies `out.len()` bytes at `offset` of the message.
    ///
    /// # Panics
    /// If the message does not have that many bytes there.
    #[inline]
    pub fn read_at(&self, offset: usize, out: &mut [u8]) {
        let fits = offset.checked_add(out.len()).is_some_and(|end| end <= self.len());
        assert!(fits, "{} bytes at {offset} of a message of {}", out.len(), self.len());
        match &self.0 {
            Place::Copied(message) => out.copy_from_slice(&message[offset..offset + out.len()]),
            Place::Lent { mem, at, head, .. } => {
                let known = head.copy(offset, out);
                if known != out.len() {
                    mem.read(at + offset + known, &mut out[known..]);
                }
            }
        }
    }
}

/// The first bytes of a message in a loan, as its slot had them: most messages begin with what says what they are.
pub(super) struct LoanHead {
    bytes: [u8; LOAN_HEAD],
    len: usize,
}

impl LoanHead {
    /// Of a message of `len` bytes, from the slot at `at`.
    #[inline]
    pub(super) fn read<P: Memory>(peer: &P, at: usize, len: usize) -> Self {
        let mut head = Self { bytes: [0; LOAN_HEAD], len: len.min(LOAN_HEAD) };
        peer.read(at + LOAN_HEAD_AT, &mut head.bytes[..head.len]);
        head
    }

    /// Copies to `out` what there is of the message from `offset` on; returns how many bytes.
    #[inline]
    pub(super) fn copy(&self, offset: usize, out: &mut [u8]) -> usize {
        let known = self.bytes[..self.len].get(offset..).unwrap_or_default();
        let count = known.len().min(out.len());
        out[..count].copy_from_slice(&known[..count]);
        count
    }
}

impl<M: MemoryMut> fmt::Debug for InPlaceMut<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InPlaceMut").field("len", &self.len).finish_non_exhaustive()
    }
}

impl<P: Memory> fmt::Debug for InPlace<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InPlace")
            .field("len", &self.len())
            .field("is_loan", &self.is_loan())
            .finish_non_exhaustive()
    }
}
