//! The allocator of an extent's heap, its books kept in private memory.
//!
//! Small spans of one owner lie in *blocks* of its own as long as there are blocks, lowest first and close together: what is used again is what is in the
//! caches, and the record locks on an owner's spans (see [`locks`](super::locks)) are few, since the kernel merges those that touch each other, and walks all there
//! are on a file for each one it is asked for. Large spans come from the other end of the heap, small ones from anywhere when all blocks are taken.
//!
//! A page is never given to two owners, since what a process can write is a matter of pages: what is in no block takes whole ones.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;

use crate::ring::layout::HALF_ALIGN;

const PAGE: u64 = crate::mem::PAGE as u64;
/// Spans in a block are multiples of this, in bytes, and lie at such.
const GRAIN: u64 = HALF_ALIGN as u64;

/// Bytes of a block: a 32nd of the heap, rounded up to a power of two within these.
const BLOCK_BYTES: (u64, u64) = (1 << 20, 8 << 20);
/// A span of more than this part of a block is large.
const SMALL_PART: u64 = 4;

/// Free spans of a heap, by offset. Offsets are those of the pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Heap {
    /// Offset of a free span -> its length. Neighbours are always merged.
    free: BTreeMap<u64, u64>,
    start: u64,
    len: u64,
    block_len: u64,
    /// Blocks that have an owner, by their number.
    blocks: HashMap<u64, Block>,
    /// The numbers of each owner's blocks.
    of_owner: HashMap<u64, BTreeSet<u64>>,
    /// Offsets of the spans that lie in no block of their owner: they take whole pages.
    in_pages: HashSet<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Block {
    owner: u64,
    /// Bytes that the owner has of it.
    used: u64,
}

impl Heap {
    /// `start` and `len` are whole pages.
    pub(crate) fn new(start: u64, len: u64) -> Self {
        let (min, max) = BLOCK_BYTES;
        let block_len = (len / 32).clamp(min, max).next_power_of_two();
        Self::with_blocks(start, len, block_len)
    }

    fn with_blocks(start: u64, len: u64, block_len: u64) -> Self {
        let (blocks, of_owner, in_pages) = Default::default();
        Self { free: BTreeMap::from([(start, len)]), start, len, block_len, blocks, of_owner, in_pages }
    }

    /// `len` bytes at a multiple of `align` (a power of two from [`HALF_ALIGN`] to a page) for an owner.
    pub(crate) fn allocate(&mut self, len: u64, align: u64, owner: u64) -> Option<u64> {
        let len = len.checked_next_multiple_of(GRAIN).filter(|len| *len > 0)?;
        let is_small = len <= self.block_len / SMALL_PART;
        if is_small
            && let Some((offset, block)) =
                self.find_in_blocks(len, align, owner).or_else(|| self.find_block())
        {
            self.withhold(offset, len);
            self.blocks.entry(block).or_insert(Block { owner, used: 0 }).used += len;
            self.of_owner.entry(owner).or_default().insert(block);
            return Some(offset);
        }
        let len = len.checked_next_multiple_of(PAGE)?;
        // The whole pages of a free span.
        let mut pages = self.free.iter().map(|(span, span_len)| {
            let end = span + span_len;
            span.next_multiple_of(PAGE)..end - end % PAGE
        });
        let fits = |pages: &Range<u64>| pages.end.saturating_sub(pages.start) >= len;
        let offset = if is_small { pages.find(fits)?.start } else { pages.rfind(fits)?.end - len };
        self.withhold(offset, len);
        self.in_pages.insert(offset);
        Some(offset)
    }

    /// The lowest place for `len` bytes in a block of this owner, and the block.
    fn find_in_blocks(&self, len: u64, align: u64, owner: u64) -> Option<(u64, u64)> {
        let mut blocks = self.of_owner.get(&owner)?.iter().copied();
        blocks.find_map(|block| {
            let used = self.blocks.get(&block).map_or(0, |block| block.used);
            if self.block_len - used < len {
                return None;
            }
            let (from, to) = self.bounds(block);
            let before = self.free.range(..from).next_back();
            let mut spans = before.into_iter().chain(self.free.range(from..to));
            spans.find_map(|(span, span_len)| {
                let (start, end) = ((*span).max(from).next_multiple_of(align), (span + span_len).min(to));
                (start + len <= end).then_some((start, block))
            })
        })
    }

    /// Where the lowest block starts that is free as a whole, and its number.
    fn find_block(&self) -> Option<(u64, u64)> {
        self.free.iter().find_map(|(span, span_len)| {
            let block = (span - self.start).div_ceil(self.block_len);
            let (from, to) = self.bounds(block);
            (to <= span + span_len).then_some((from, block))
        })
    }

    /// Where a block starts and ends.
    fn bounds(&self, block: u64) -> (u64, u64) {
        let from = self.start + block * self.block_len;
        (from, from + self.block_len)
    }

    /// Takes a given span out of what is free; whatever of it is not free stays as it is.
    pub(crate) fn withhold(&mut self, offset: u64, len: u64) {
        let end = offset.saturating_add(len);
        let before = self.free.range(..offset).next_back();
        let touched: Vec<_> = before
            .into_iter()
            .chain(self.free.range(offset..end))
            .map(|(o, l)| (*o, *l))
            .filter(|(o, l)| o + l > offset)
            .collect();
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

    /// What a span at `offset`, of `len` bytes by what [`Heap::allocate`] was told, takes of the heap.
    pub(crate) fn taken(&self, offset: u64, len: u64) -> u64 {
        len.next_multiple_of(if self.in_pages.contains(&offset) { PAGE } else { GRAIN })
    }

    /// Gives back what [`Heap::allocate`] gave.
    ///
    /// # Panics
    /// If part of it is free already or outside the heap: our own books would be wrong.
    pub(crate) fn release(&mut self, offset: u64, len: u64) {
        let len = self.taken(offset, len);
        if !self.in_pages.remove(&offset) {
            self.leave_block(offset, len);
        }
        self.restore(offset, len);
    }

    /// Gives back what [`Heap::withhold`] took.
    ///
    /// # Panics
    /// As [`Heap::release`].
    pub(crate) fn restore(&mut self, mut offset: u64, len: u64) {
        let mut end = offset + len;
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

    fn leave_block(&mut self, offset: u64, len: u64) {
        let number = offset.saturating_sub(self.start) / self.block_len;
        let Some(block) = self.blocks.get_mut(&number) else { return };
        block.used = block.used.saturating_sub(len);
        if block.used != 0 {
            return;
        }
        let owner = block.owner;
        self.blocks.remove(&number);
        if let Some(blocks) = self.of_owner.get_mut(&owner) {
            blocks.remove(&number);
            if blocks.is_empty() {
                self.of_owner.remove(&owner);
            }
        }
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

    const P: u64 = PAGE;
    const G: u64 = GRAIN;
    const A: u64 = 1;
    const B: u64 = 2;

    #[test]
    fn small_spans_of_one_owner_touch_each_other_however_owners_take_turns() {
        let mut heap = Heap::with_blocks(P, 64 * P, 16 * P);
        let empty = heap.clone();
        let turns: Vec<_> =
            (0..10).map(|_| [A, B].map(|owner| heap.allocate(2 * P, G, owner).unwrap())).collect();
        for owner in [0, 1] {
            let spans: Vec<_> = turns.iter().map(|turn| turn[owner]).collect();
            let neighbours = spans.windows(2).filter(|pair| pair[0] + 2 * P == pair[1]).count();
            assert_eq!(neighbours, 8, "eight to a block, so two runs: {spans:?}");
        }
        // What is given back is used again first.
        heap.release(turns[3][0], 2 * P);
        assert_eq!(heap.allocate(2 * P, G, B), Some(turns[9][1] + 2 * P));
        heap.release(turns[9][1] + 2 * P, 2 * P);
        assert_eq!(heap.allocate(2 * P, G, A), Some(turns[3][0]));
        turns.iter().flatten().for_each(|span| heap.release(*span, 2 * P));
        assert_eq!(heap, empty, "and nothing is owned any more");
    }

    #[test]
    fn large_spans_leave_the_blocks_alone_and_small_ones_take_what_is_left() {
        let mut heap = Heap::with_blocks(P, 32 * P, 16 * P);
        assert_eq!(heap.allocate(8 * P, G, A), Some(25 * P));
        assert_eq!(heap.allocate(P, G, A), Some(P));
        assert_eq!(heap.allocate(P, G, B), Some(2 * P), "no block is free as a whole");
        assert_eq!(heap.allocate(22 * P, G, B), Some(3 * P));
        assert_eq!(heap.allocate(P, G, A), None);
    }

    #[test]
    fn what_is_released_can_be_allocated_whole_again() {
        let mut heap = Heap::new(16 * P, 8 * P);
        let empty = heap.clone();
        let spans: Vec<_> = (0..4).map(|_| heap.allocate(2 * P - 5, G, A).unwrap()).collect();
        assert_eq!(heap.allocate(1, G, A), None);
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
        assert_eq!(heap.allocate(3 * P, G, A), Some(5 * P));
        heap.release(5 * P, 3 * P);
        heap.restore(2 * P, 3 * P);
        assert_eq!(heap, empty);
    }

    #[test]
    #[should_panic(expected = "released twice")]
    fn releasing_twice_is_noticed() {
        let mut heap = Heap::new(0, 8 * P);
        let span = heap.allocate(P, G, A).unwrap();
        heap.release(span, P);
        heap.release(span, P);
    }

    #[test]
    fn absurd_lengths_do_not_fit() {
        let mut heap = Heap::new(0, 8 * P);
        for len in [0, 9 * P, u64::MAX, u64::MAX - P] {
            assert_eq!(heap.allocate(len, G, A), None);
        }
    }

    #[test]
    fn small_spans_are_close_and_those_that_need_it_on_pages() {
        let mut heap = Heap::with_blocks(P, 32 * P, 16 * P);
        let empty = heap.clone();
        let len = 2 * P + 3 * G;
        let spans = [(len - 1, G), (len, G), (2 * P, P)];
        let [first, second, third] = spans.map(|(len, align)| heap.allocate(len, align, A).unwrap());
        assert_eq!((first, second), (P, P + len));
        assert_eq!(third, (second + len).next_multiple_of(P), "the next page");
        assert_eq!(heap.allocate(G, G, A), Some(second + len), "what is left of the page before");
        for (offset, len) in [(first, len - 1), (second, len), (third, 2 * P), (second + len, G)] {
            heap.release(offset, len);
        }
        assert_eq!(heap, empty);
    }

    proptest! {
        #[test]
        fn spans_never_overlap_nor_share_pages_and_nothing_is_lost(
            steps in proptest::collection::vec((0u64..150, 0usize..16, any::<bool>()), 1..200),
        ) {
            let mut heap = Heap::with_blocks(P, 32 * P, 8 * P);
            let empty = heap.clone();
            let mut held: Vec<(u64, u64, u64)> = Vec::new();
            for (grains, victim, on_page) in steps {
                let (owner, align) = (victim as u64 % 3, if on_page { P } else { G });
                // Few are of whole grains.
                let len = (grains * G).saturating_sub(grains % 3);
                if grains < 30 && !held.is_empty() {
                    let (offset, len, _) = held.swap_remove(victim % held.len());
                    heap.release(offset, len);
                } else if let Some(offset) = heap.allocate(len, align, owner) {
                    prop_assert!(offset.is_multiple_of(align));
                    for &(other, other_len, whose) in &held {
                        prop_assert!(offset + len <= other || other + other_len <= offset);
                        let pages = |from: u64, len: u64| from / P..=(from + len - 1) / P;
                        let (ours, theirs) = (pages(offset, len), pages(other, other_len));
                        prop_assert!(whose == owner || ours.end() < theirs.start() || theirs.end() < ours.start());
                    }
                    held.push((offset, len, owner));
                }
                let used: u64 = held.iter().map(|(offset, len, _)| heap.taken(*offset, *len)).sum();
                prop_assert_eq!(heap.free_bytes() + used, 32 * P);
            }
            held.into_iter().for_each(|(offset, len, _)| heap.release(offset, len));
            prop_assert_eq!(heap, empty);
        }
    }
}
