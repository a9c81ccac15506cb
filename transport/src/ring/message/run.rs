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
    pub(super) count: usize,
    bytes: usize,
    lengths: [u64; RUN_MAX / PER_WORD],
}

impl Pending {
    /// Adds a message of `len` bytes. Returns whether no other may follow.
    #[inline]
    pub(super) fn push(&mut self, len: usize) -> bool {
        let (word, place) = (self.count / PER_WORD, self.count % PER_WORD);
        if place == 0 {
            self.lengths[word] = 0;
        }
        self.lengths[word] |= (len as u64) << (16 * place);
        self.count += 1;
        self.bytes += len;
        self.count == RUN_MAX || self.bytes >= RUN_BYTES
    }

    /// Writes the lengths into the slot and begins anew. Returns the kind to publish.
    #[inline]
    pub(super) fn take<M: MemoryMut>(&mut self, mem: &M) -> u64 {
        for (word, lengths) in self.lengths[..self.count.div_ceil(PER_WORD)].iter().enumerate() {
            mem.store(self.at + 8 + 8 * word, *lengths, Ordering::Relaxed);
        }
        self.bytes = 0;
        RUN + std::mem::take(&mut self.count) as u64
    }
}

/// A run that is being received.
#[derive(Debug, Default)]
pub(super) struct Arrived {
    next: usize,
    count: usize,
    lengths: [u16; RUN_MAX],
    /// From the header, for when all of it is consumed.
    pub(super) acks: u64,
}

impl Arrived {
    /// The run announced in the slot at `at` by this kind, and how many bytes it has; `None` if there can be no such run.
    pub(super) fn read<P: Memory>(mem: &P, at: usize, kind: u64, acks: u64) -> Option<(Self, usize)> {
        let count = kind.checked_sub(RUN).filter(|count| (1..=RUN_MAX as u64).contains(count))? as usize;
        let mut run = Self { count, acks, ..Self::default() };
        for (word, lengths) in run.lengths[..count].chunks_mut(PER_WORD).enumerate() {
            let found = mem.load(at + 8 + 8 * word, Ordering::Relaxed);
            for (place, len) in lengths.iter_mut().enumerate() {
                *len = (found >> (16 * place)) as u16;
            }
        }
        let bytes = run.lengths.iter().map(|len| usize::from(*len)).sum();
        Some((run, bytes))
    }

    /// Whether there are messages left.
    #[inline]
    pub(super) fn is_open(&self) -> bool {
        self.next != self.count
    }

    /// Length of the next message, in bytes.
    #[inline]
    pub(super) fn front(&self) -> usize {
        self.lengths.get(self.next).copied().unwrap_or_default().into()
    }

    /// The next message is consumed. Returns whether it was the last.
    #[inline]
    pub(super) fn pop(&mut self) -> bool {
        self.next += 1;
        !self.is_open()
    }
}
