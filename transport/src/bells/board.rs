//! The page of an extent on which its kernel counts bells.

use std::sync::atomic::Ordering;

use crate::mem::{CACHE_LINE, Memory, MemoryMut, PAGE};
use crate::ring::layout::HALF_ALIGN;

/// Bytes of a board: a page of its own, since every process of the kernel writes it.
pub(crate) const BOARD_BYTES: usize = PAGE;
/// Groups of connections.
pub(super) const GROUPS: usize = 256;
/// Groups in one summary.
pub(super) const GROUPS_OF_SUMMARY: usize = 16;
pub(super) const SUMMARIES: usize = GROUPS / GROUPS_OF_SUMMARY;

const AT_SUMMARIES: usize = 0;
const AT_GROUPS: usize = 2048;
const _: () = assert!(AT_SUMMARIES + 8 * SUMMARIES <= AT_GROUPS && AT_GROUPS.is_multiple_of(CACHE_LINE));
const _: () = assert!(AT_GROUPS + 8 * GROUPS <= BOARD_BYTES);

/// The group of the half at `offset` of the pool: both sides know that, and halves of any size spread evenly.
pub(super) fn group_of(half_offset: u64) -> usize {
    // Fibonacci hashing (Knuth, The Art of Computer Programming 3, 6.4), of the place.
    let place = (half_offset / HALF_ALIGN as u64) as u32;
    (place.wrapping_mul(0x9E37_79B1) >> 24) as usize
}

/// Where the bells of our kernel are counted.
#[derive(Clone, Debug)]
pub(crate) struct Board<M>(M);

impl<M: MemoryMut> Board<M> {
    /// Over [`BOARD_BYTES`] of our extent. What is there already counts on.
    pub(crate) fn new(mem: M) -> Self {
        Self(mem)
    }

    /// Counts a bell for the connection of our half at `half_offset`, after the half's own count and before it is rung.
    pub(crate) fn count(&self, half_offset: u64) {
        let group = group_of(half_offset);
        // Release: whoever sees the one sees what was counted before it. SYNC: bells
        self.0.fetch_add(AT_GROUPS + 8 * group, 1);
        self.0.fetch_add(AT_SUMMARIES + 8 * (group / GROUPS_OF_SUMMARY), 1);
    }
}

/// What was last seen on the board of one member.
#[derive(Debug)]
pub(super) struct Seen<P> {
    board: P,
    summaries: [u64; SUMMARIES],
    groups: [u64; GROUPS],
}

impl<P: Memory> Seen<P> {
    pub(super) fn new(board: P) -> Self {
        let mut seen = Self { board, summaries: [0; SUMMARIES], groups: [0; GROUPS] };
        seen.changed(|_| ());
        seen
    }

    /// Names each group in which a bell was counted since the last look.
    pub(super) fn changed(&mut self, mut name: impl FnMut(usize)) {
        for summary in 0..SUMMARIES {
            // Acquire, SYNC: bells. What is counted after this load changes the summary again.
            if !look(&self.board, AT_SUMMARIES + 8 * summary, &mut self.summaries[summary]) {
                continue;
            }
            for group in summary * GROUPS_OF_SUMMARY..(summary + 1) * GROUPS_OF_SUMMARY {
                if look(&self.board, AT_GROUPS + 8 * group, &mut self.groups[group]) {
                    name(group);
                }
            }
        }
    }
}

/// Whether a count is another than the one that was seen last. Any value is possible.
fn look(board: &impl Memory, at: usize, seen: &mut u64) -> bool {
    let count = board.load(at, Ordering::Acquire);
    std::mem::replace(seen, count) != count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::ModelMemory;
    use crate::ring::HalfLayout;

    #[test]
    fn halves_of_any_size_spread_over_the_groups() {
        let messages = HalfLayout { slots_log2: 6, bytes_log2: 12, ..HalfLayout::MESSAGES };
        let sizes =
            [messages, HalfLayout::MESSAGES, HalfLayout::STREAM].map(|layout| layout.total_len() as u64);
        let pages = [1, 2, 16, 65, 66, 512].map(|pages| pages * PAGE as u64);
        for stride in sizes.into_iter().chain(pages).chain([HALF_ALIGN as u64]) {
            let mut counts = [0; GROUPS];
            let first = 82 * PAGE as u64;
            (0..10_000).for_each(|number| counts[group_of(first + number * stride)] += 1);
            let most = counts.iter().max().unwrap();
            assert!(*most <= 120, "{most} of 10000 halves, {stride} bytes apart, in one of {GROUPS} groups");
        }
    }

    #[test]
    fn a_bell_names_its_group_once() {
        let memory: ModelMemory = ModelMemory::new(BOARD_BYTES);
        let (board, mut seen) = (Board::new(memory.clone()), Seen::new(memory));
        let changed = |seen: &mut Seen<ModelMemory>| {
            let mut groups = Vec::new();
            seen.changed(|group| groups.push(group));
            groups
        };
        assert!(changed(&mut seen).is_empty());
        let offsets = [0, 65, 4711].map(|page| page * PAGE as u64);
        offsets.iter().for_each(|offset| board.count(*offset));
        board.count(offsets[0]);
        let mut expected = offsets.map(group_of).to_vec();
        expected.sort_unstable();
        assert_eq!(changed(&mut seen), expected);
        assert!(changed(&mut seen).is_empty());
    }

    #[test]
    fn what_was_counted_before_the_first_look_is_no_news() {
        let memory: ModelMemory = ModelMemory::new(BOARD_BYTES);
        Board::new(memory.clone()).count(7 * PAGE as u64);
        Seen::new(memory).changed(|group| panic!("group {group}"));
    }
}
