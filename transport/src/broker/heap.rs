//! The allocator of an extent's heap: whole pages, first fit, its books kept in private memory.

use std::collections::BTreeMap;

use crate::mem::PAGE;

/// Free spans of a heap, by offset. Offsets are those of the pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Heap {
    /// Offset of a free span -> its length. Neighbours are always merged.
    free: BTreeMap<u64, u64>,
    start: u64,
    len: u64,
}

impl Heap {
    /// `start` and `len` are whole pages.
    pub(crate) fn new(start: u64, len: u64) -> Self {
        Self { free: BTreeMap::from([(start, len)]), start, len }
    }

    /// `len` bytes, rounded up to pages, at the lowest offset where they fit.
    pub(crate) fn allocate(&mut self, len: u64) -> Option<u64> {
        let len = len.checked_next_multiple_of(PAGE as u64).filter(|len| *len > 0)?;
        let (offset, span) = self.free.iter().map(|(o, l)| (*o, *l)).find(|(_, span)| *span >= len)?;
        self.free.remove(&offset);
        if span > len {
            self.free.insert(offset + len, span - len);
        }
        Some(offset)
    }

    /// Takes a given span out of what is free; whatever of it is not free stays as it is.
    pub(crate) fn withhold(&mut self, offset: u64, len: u64) {
        let end = offset.saturating_add(len);
        let touched: Vec<_> =
            self.free.range(..end).map(|(o, l)| (*o, *l)).filter(|(o, l)| o + l > offset).collect();
        for (span, span_len) in touched {
            self.free.remove(&span);
            if span < offset {
                self.free.insert(span, offset - span);
            }
            if span + span_len > end {
                self.free.insert(end, span + span_len - end);
            }
        }
    }

    /// Gives back what [`Heap::allocate`] gave or [`Heap::withhold`] took. `len` is rounded up to pages.
    ///
    /// # Panics
    /// If part of it is free already or outside the heap: our own books would be wrong.
    pub(crate) fn release(&mut self, offset: u64, len: u64) {
        let (mut offset, mut end) = (offset, offset + len.next_multiple_of(PAGE as u64));
        assert!(offset >= self.start && end <= self.start + self.len, "{offset:#x} is not of this heap");
        if let Some((&next, &next_len)) = self.free.range(offset..).next() {
            assert!(next >= end, "{offset:#x} released twice");
            if next == end {
                self.free.remove(&next);
                end = next + next_len;
            }
        }
        if let Some((&before, &before_len)) = self.free.range(..offset).next_back() {
            assert!(before + before_len <= offset, "{offset:#x} released twice");
            if before + before_len == offset {
                offset = before;
            }
        }
        self.free.insert(offset, end - offset);
    }

    pub(crate) fn free_bytes(&self) -> u64 {
        self.free.values().sum()
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const P: u64 = PAGE as u64;

    #[test]
    fn what_is_released_can_be_allocated_whole_again() {
        let mut heap = Heap::new(16 * P, 8 * P);
        let empty = heap.clone();
        let spans: Vec<_> = (0..4).map(|_| heap.allocate(2 * P - 5).unwrap()).collect();
        assert_eq!(heap.allocate(1), None);
        for index in [2, 0, 3, 1] {
            heap.release(spans[index], 2 * P - 5);
        }
        assert_eq!(heap, empty);
    }

    #[test]
    fn withheld_spans_are_not_handed_out_until_released() {
        let mut heap = Heap::new(0, 8 * P);
        let empty = heap.clone();
        heap.withhold(2 * P, 3 * P);
        assert_eq!(heap.free_bytes(), 5 * P);
        assert_eq!(heap.allocate(3 * P), Some(5 * P));
        heap.release(5 * P, 3 * P);
        heap.release(2 * P, 3 * P);
        assert_eq!(heap, empty);
    }

    #[test]
    #[should_panic(expected = "released twice")]
    fn releasing_twice_is_noticed() {
        let mut heap = Heap::new(0, 8 * P);
        let span = heap.allocate(P).unwrap();
        heap.release(span, P);
        heap.release(span, P);
    }

    #[test]
    fn absurd_lengths_do_not_fit() {
        let mut heap = Heap::new(0, 8 * P);
        for len in [0, 9 * P, u64::MAX, u64::MAX - P] {
            assert_eq!(heap.allocate(len), None);
        }
    }

    proptest! {
        #[test]
        fn spans_never_overlap_and_nothing_is_lost(steps in proptest::collection::vec((0u64..5, 0usize..16), 1..200)) {
            let mut heap = Heap::new(P, 32 * P);
            let mut held: Vec<(u64, u64)> = Vec::new();
            for (pages, victim) in steps {
                if pages == 0 && !held.is_empty() {
                    let (offset, len) = held.swap_remove(victim % held.len());
                    heap.release(offset, len);
                } else if let Some(offset) = heap.allocate(pages * P) {
                    for (other, len) in &held {
                        prop_assert!(offset + pages * P <= *other || other + len <= offset);
                    }
                    held.push((offset, pages * P));
                }
                let used: u64 = held.iter().map(|(_, len)| len).sum();
                prop_assert_eq!(heap.free_bytes() + used, 32 * P);
            }
        }
    }
}
