//! Who waits for the bells of one member.

use super::board::{GROUPS, Seen, group_of};
use crate::mem::Memory;

/// Of all groups this part is looked at in one [sweep](Hearers::sweep).
const SWEEPS: usize = 64;

/// Items that bells of one member are for, each with a half of that member.
#[derive(Debug)]
pub(crate) struct Hearers<P, T> {
    seen: Seen<P>,
    groups: Box<[Vec<(u64, T)>]>,
    next_swept: usize,
    len: usize,
}

impl<P: Memory, T> Hearers<P, T> {
    /// Of the member with this board.
    pub(crate) fn new(board: P) -> Self {
        let groups = std::iter::repeat_with(Vec::new).take(GROUPS).collect();
        Self { seen: Seen::new(board), groups, next_swept: 0, len: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds one whose bells are counted for the member's half at `half_offset`. Bells counted before it may not be reported.
    pub(crate) fn insert(&mut self, half_offset: u64, item: T) {
        let group = &mut self.groups[group_of(half_offset)];
        if group.len() == group.capacity() {
            // By a quarter, since there are many groups: half of what doubling makes would be in no use.
            group.reserve_exact(group.len() / 4 + 1);
        }
        group.push((half_offset, item));
        self.len += 1;
    }

    /// Takes out the one that `is_it` of those with this half.
    pub(crate) fn remove(&mut self, half_offset: u64, is_it: impl Fn(&T) -> bool) -> Option<T> {
        let group = &mut self.groups[group_of(half_offset)];
        let at = group.iter().position(|(offset, item)| *offset == half_offset && is_it(item))?;
        let (_, item) = group.swap_remove(at);
        if group.is_empty() {
            *group = Vec::new();
        }
        self.len -= 1;
        Some(item)
    }

    /// Visits all for which a bell may have been counted since the last time.
    pub(crate) fn rung(&mut self, mut visit: impl FnMut(&mut T)) {
        let groups = &mut self.groups;
        self.seen.changed(|group| groups[group].iter_mut().for_each(|(_, item)| visit(item)));
    }

    /// Visits the next part of all, whatever the member has counted: after so many sweeps, everything has been.
    pub(crate) fn sweep(&mut self, mut visit: impl FnMut(&mut T)) {
        let part = GROUPS / SWEEPS;
        let groups = self.groups[self.next_swept * part..][..part].iter_mut().flatten();
        groups.for_each(|(_, item)| visit(item));
        self.next_swept = (self.next_swept + 1) % SWEEPS;
    }

    /// Visits all.
    pub(crate) fn all(&mut self, mut visit: impl FnMut(&mut T)) {
        self.groups.iter_mut().flatten().for_each(|(_, item)| visit(item));
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BOARD_BYTES, Board};
    use super::*;
    use crate::mem::{ModelMemory, PAGE};

    fn offset(number: u64) -> u64 {
        number * 65 * PAGE as u64
    }

    fn crowd(count: u64) -> (Board<ModelMemory>, Hearers<ModelMemory, u64>) {
        let memory: ModelMemory = ModelMemory::new(BOARD_BYTES);
        let mut hearers = Hearers::new(memory.clone());
        (0..count).for_each(|number| hearers.insert(offset(number), number));
        (Board::new(memory), hearers)
    }

    #[test]
    fn a_bell_visits_those_of_its_group_and_few_others() {
        let (board, mut hearers) = crowd(10_000);
        board.count(offset(17));
        let mut visited = Vec::new();
        hearers.rung(|number| visited.push(*number));
        assert!(visited.contains(&17));
        assert!(visited.len() < 100, "{} were looked at", visited.len());
        hearers.rung(|number| panic!("{number} again"));
    }

    #[test]
    fn what_was_taken_out_is_not_visited() {
        let (board, mut hearers) = crowd(3);
        assert_eq!(hearers.remove(offset(1), |number| *number == 7), None);
        assert_eq!(hearers.remove(offset(1), |_| true), Some(1));
        assert_eq!(hearers.remove(offset(1), |_| true), None);
        board.count(offset(1));
        hearers.rung(|number| assert_ne!(*number, 1));
        let mut left = Vec::new();
        hearers.all(|number| left.push(*number));
        left.sort_unstable();
        assert_eq!(left, [0, 2]);
        assert!(!hearers.is_empty());
    }

    #[test]
    fn sweeps_come_by_everywhere() {
        let (_, mut hearers) = crowd(1000);
        let mut visited = vec![0; 1000];
        (0..SWEEPS).for_each(|_| hearers.sweep(|number| visited[*number as usize] += 1));
        assert!(visited.iter().all(|visits| *visits == 1));
    }
}
