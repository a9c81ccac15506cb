//! Several messages announced by one slot.
//!
//! Kind `RUN + n`: n messages, 1 to [`RUN_MAX`], one after the other in the byte ring. Their lengths, 16 bits each, follow the header: the first in the
//! lowest bits of the first word. For the credit a run counts as one message, consumed once the last of it is.

use std::sync::atomic::Ordering;

use crate::mem::{Memory, MemoryMut};

/// The kind of a run of no messages.
pub(super) const RUN: u64 = 64;
/// Most messages in a run: what the rest of a slot has lengths for.
pub(super) const RUN_MAX: usize = 28;
/// The longest message that waits for others, in bytes; and a run this long waits for no more.
pub(super) const RUN_BYTES: usize = 2048;

const PER_WORD: usize = 4;

/// Messages that were put and are not published.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// The slot claimed for them.
    pub(super) at: usize,
    pub(super) count: u32,
    bytes: u32,
    /// Made with the first run: most connections have none.
    lengths: Option<Box<[u64; RUN_MAX / PER_WORD]>>,
}

impl Pending {
    /// Adds messages of the lengths, in bytes, that `next` gives, until it gives none or no other may follow. Returns whether none may.
    #[inline]
    pub(super) fn fill(&mut self, mut next: impl FnMut() -> Option<usize>) -> bool {
        let lengths = self.lengths.get_or_insert_default();
        let (mut count, mut bytes) = (self.count as usize, self.bytes as usize);
        let mut is_full = false;
        while !is_full && let Some(len) = next() {
            let (word, shift) = (count / PER_WORD, 16 * (count % PER_WORD));
            let before = if shift == 0 { 0 } else { lengths[word] };
            lengths[word] = before | (len as u64) << shift;
            count += 1;
            bytes += len;
            is_full = count == RUN_MAX || bytes >= RUN_BYTES;
        }
        (self.count, self.bytes) = (count as u32, bytes as u32);
        is_full
    }

    /// Adds a message of `len` bytes. Returns whether no other may follow.
    #[inline]
    pub(super) fn push(&mut self, len: usize) -> bool {
        let (word, place) = (self.count as usize / PER_WORD, self.count as usize % PER_WORD);
        let lengths = self.lengths.get_or_insert_default();
        if place == 0 {
            lengths[word] = 0;
        }
        lengths[word] |= (len as u64) << (16 * place);
        self.count += 1;
        self.bytes += len as u32;
        self.count as usize == RUN_MAX || self.bytes as usize >= RUN_BYTES
    }

    /// Writes the lengths into the slot and begins anew. Returns the kind to publish.
    #[inline]
    pub(super) fn take<M: MemoryMut>(&mut self, mem: &M) -> u64 {
        let words = (self.count as usize).div_ceil(PER_WORD);
        for (word, lengths) in self.lengths.iter().flat_map(|lengths| &lengths[..words]).enumerate() {
            mem.store(self.at + 8 + 8 * word, *lengths, Ordering::Relaxed);
        }
        self.bytes = 0;
        RUN + u64::from(std::mem::take(&mut self.count))
    }
}

/// A run that is being received.
#[derive(Debug, Default)]
pub(super) struct Arrived {
    next: u32,
    count: u32,
    /// As in [`Pending`].
    lengths: Option<Box<[u16; RUN_MAX]>>,
    /// From the header, for when all of it is consumed.
    pub(super) acks: u64,
}

impl Arrived {
    /// Begins with the run announced in the slot at `at` by this kind, if it has at most `bytes_max` bytes. Returns how many it has; `None` if there can be
    /// no such run. Then, and if they are too many, nothing is begun.
    pub(super) fn begin<P: Memory>(
        &mut self,
        mem: &P,
        at: usize,
        kind: u64,
        acks: u64,
        bytes_max: usize,
    ) -> Option<usize> {
        let count = kind.checked_sub(RUN).filter(|count| (1..=RUN_MAX as u64).contains(count))? as usize;
        let lengths = &mut self.lengths.get_or_insert_default()[..count];
        for (word, lengths) in lengths.chunks_mut(PER_WORD).enumerate() {
            let found = mem.load(at + 8 + 8 * word, Ordering::Relaxed);
            for (place, len) in lengths.iter_mut().enumerate() {
                *len = (found >> (16 * place)) as u16;
            }
        }
        let bytes = lengths.iter().map(|len| usize::from(*len)).sum();
        if bytes <= bytes_max {
            (self.next, self.count, self.acks) = (0, count as u32, acks);
        }
        Some(bytes)
    }

    /// Whether there are messages left.
    #[inline]
    pub(super) fn is_open(&self) -> bool {
        self.next != self.count
    }

    /// Length of the next message, in bytes.
    #[inline]
    pub(super) fn front(&self) -> usize {
        let len = self.lengths.as_ref().and_then(|lengths| lengths.get(self.next as usize));
        len.copied().unwrap_or_default().into()
    }

    /// The lengths of all that are left, in bytes.
    #[inline]
    pub(super) fn rest(&self) -> &[u16] {
        let all = self.lengths.as_ref().map_or(&[][..], |lengths| &lengths[..]);
        all.get(self.next as usize..self.count as usize).unwrap_or_default()
    }

    /// All that are left are consumed.
    #[inline]
    pub(super) fn pop_all(&mut self) {
        self.next = self.count;
    }

    /// The next message is consumed. Returns whether it was the last.
    #[inline]
    pub(super) fn pop(&mut self) -> bool {
        self.next += 1;
        !self.is_open()
    }
}
