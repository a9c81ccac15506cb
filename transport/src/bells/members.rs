//! A set of members that anybody adds to and anybody empties.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::mem::Word;
use crate::pool::{Geometry, Member};

/// Words of the set, each a bit of the summary.
const WORDS: usize = Geometry::MEMBERS_MAX.div_ceil(u64::BITS) as usize;
const _: () = assert!(WORDS <= u64::BITS as usize);

/// Bits by member, and a summary of the words that have some: one load tells that nobody is in it, however many there could be.
#[derive(Debug)]
pub(crate) struct MemberSet<W = AtomicU64> {
    summary: W,
    words: [W; WORDS],
}

impl<W: Word> MemberSet<W> {
    pub(crate) fn new() -> Self {
        Self { summary: W::new(0), words: std::array::from_fn(|_| W::new(0)) }
    }

    /// Adds a member, which is one that a pool can have.
    pub(crate) fn insert(&self, member: Member) {
        let (word, bit) = (member.index() / u64::BITS as usize, member.index() % u64::BITS as usize);
        self.words[word].fetch_or(1 << bit, Ordering::Relaxed);
        // Release: whoever takes the summary's bit finds the other. SYNC: member set
        self.summary.fetch_or(1 << word, Ordering::Release);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.summary.load(Ordering::Relaxed) == 0
    }

    /// Takes out those that are in it, in order. One added meanwhile is among them or stays.
    pub(crate) fn take(&self) -> Vec<Member> {
        let mut members = Vec::new();
        if self.is_empty() {
            return members;
        }
        // Acquire, SYNC: member set
        for word in ones(self.summary.fetch_and(0, Ordering::Acquire)) {
            let found = ones(self.words[word].fetch_and(0, Ordering::Relaxed));
            members.extend(found.map(|bit| Member((word * u64::BITS as usize + bit) as u16)));
        }
        members
    }
}

/// The places of the bits that are set, lowest first.
fn ones(mut bits: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lowest = bits.trailing_zeros();
        bits &= bits.wrapping_sub(1);
        (lowest < u64::BITS).then_some(lowest as usize)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_come_out_once_and_in_order() {
        let set: MemberSet = MemberSet::new();
        assert!(set.is_empty() && set.take().is_empty());
        for member in [1023, 64, 0, 63, 511, 64] {
            set.insert(Member(member));
        }
        assert!(!set.is_empty());
        assert_eq!(set.take(), [0, 63, 64, 511, 1023].map(Member));
        assert!(set.is_empty() && set.take().is_empty());
    }
}
