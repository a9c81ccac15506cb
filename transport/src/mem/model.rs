//! Memory that is not shared with anybody: for tests and models of the rings.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Memory, MemoryMut, Word};

/// Ordinary memory in words, behind the same traits as a mapping. Clones see the same memory.
///
/// `W` is the atomic to build it of: the standard one, or a model checker's. It can be sparse, since a model checker
/// pays for every word.
#[derive(Debug)]
pub struct ModelMemory<W = AtomicU64> {
    parts: Arc<[Part<W>]>,
    len: usize,
}

/// Words that follow each other, from the offset `start`.
#[derive(Debug)]
struct Part<W> {
    start: usize,
    words: Box<[W]>,
}

impl<W> Clone for ModelMemory<W> {
    fn clone(&self) -> Self {
        Self { parts: Arc::clone(&self.parts), len: self.len }
    }
}

impl<W: Word> ModelMemory<W> {
    /// Zeroed memory of `len` bytes (a multiple of 8).
    pub fn new(len: usize) -> Self {
        Self::sparse(len, std::iter::once(0..len))
    }

    /// Memory of `len` bytes in which only `ranges` (of whole words) exist; touching anything else panics.
    pub fn sparse(len: usize, ranges: impl IntoIterator<Item = Range<usize>>) -> Self {
        let part = |range: Range<usize>| Part {
            start: range.start,
            words: range.step_by(8).map(|_| W::new(0)).collect(),
        };
        Self { parts: ranges.into_iter().map(part).collect(), len }
    }

    fn word(&self, offset: usize) -> &W {
        assert!(offset.is_multiple_of(8) && offset < self.len, "word access at {offset} of {}", self.len);
        let found = self.parts.iter().find_map(|part| part.words.get(offset.checked_sub(part.start)? / 8));
        found.unwrap_or_else(|| panic!("this model memory has no word at {offset:#x}"))
    }
}

impl<W: Word> Memory for ModelMemory<W> {
    type Word = W;

    fn len(&self) -> usize {
        self.len
    }

    fn load(&self, offset: usize, order: Ordering) -> u64 {
        self.word(offset).load(order)
    }

    fn read(&self, offset: usize, out: &mut [u8]) {
        assert!(offset + out.len() <= self.len, "read of {} bytes at {offset} of {}", out.len(), self.len);
        let mut at = 0;
        while at < out.len() {
            let skew = (offset + at) % 8;
            let n = (8 - skew).min(out.len() - at);
            let word = self.word(offset + at - skew).load(Ordering::Relaxed).to_ne_bytes();
            out[at..at + n].copy_from_slice(&word[skew..skew + n]);
            at += n;
        }
    }

    fn fence() {
        W::fence();
    }
}

impl<W: Word> MemoryMut for ModelMemory<W> {
    fn store(&self, offset: usize, value: u64, order: Ordering) {
        self.word(offset).store(value, order);
    }

    fn write(&self, offset: usize, data: &[u8]) {
        assert!(offset + data.len() <= self.len, "write of {} bytes at {offset} of {}", data.len(), self.len);
        let mut at = 0;
        while at < data.len() {
            let skew = (offset + at) % 8;
            let n = (8 - skew).min(data.len() - at);
            let word = self.word(offset + at - skew);
            let mut bytes = word.load(Ordering::Relaxed).to_ne_bytes();
            bytes[skew..skew + n].copy_from_slice(&data[at..at + n]);
            word.store(u64::from_ne_bytes(bytes), Ordering::Relaxed);
            at += n;
        }
    }

    fn zero(&self, offset: usize, len: usize) {
        // Only what exists, if it is sparse.
        for part in self.parts.iter() {
            for (i, word) in part.words.iter().enumerate() {
                if (offset..offset + len).contains(&(part.start + 8 * i)) {
                    word.store(0, Ordering::Relaxed);
                }
            }
        }
    }

    fn fetch_or(&self, offset: usize, bits: u64) -> u64 {
        self.word(offset).fetch_or(bits, Ordering::AcqRel)
    }

    fn fetch_xor(&self, offset: usize, bits: u64) -> u64 {
        self.word(offset).fetch_xor(bits, Ordering::AcqRel)
    }

    fn fetch_add(&self, offset: usize, value: u64) -> u64 {
        self.word(offset).fetch_add(value, Ordering::AcqRel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unaligned_writes_keep_their_neighbours() {
        let memory: ModelMemory = ModelMemory::new(64);
        memory.write(0, &[1; 64]);
        memory.write(5, &[2; 13]);
        let mut out = [0; 64];
        memory.read(0, &mut out);
        let expected: Vec<u8> = (0..64).map(|i| if (5..18).contains(&i) { 2 } else { 1 }).collect();
        assert_eq!(out.as_slice(), expected);
    }
}
