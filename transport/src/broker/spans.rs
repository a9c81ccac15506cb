//! Sets of bytes of a file, as spans.

use std::collections::BTreeMap;
use std::ops::Range;

/// Spans by their start; neighbours are always merged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Spans(BTreeMap<u64, u64>);

impl Spans {
    pub(crate) fn covers(&self, range: &Range<u64>) -> bool {
        let before = self.0.range(..=range.start).next_back();
        range.is_empty() || before.is_some_and(|(_, end)| *end >= range.end)
    }

    pub(crate) fn add(&mut self, Range { mut start, mut end }: Range<u64>) {
        if start >= end {
            return;
        }
        // From the last one that touches it to the first.
        while let Some((&at, &until)) = self.0.range(..=end).next_back()
            && until >= start
        {
            self.0.remove(&at);
            (start, end) = (start.min(at), end.max(until));
        }
        self.0.insert(start, end);
    }

    /// Takes out what of `range` is in the set, and returns it.
    pub(crate) fn take(&mut self, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut taken = Vec::new();
        if range.is_empty() {
            return taken;
        }
        while let Some((&at, &until)) = self.0.range(..range.end).next_back()
            && until > range.start
        {
            self.0.remove(&at);
            taken.push(at.max(range.start)..until.min(range.end));
            if until > range.end {
                self.0.insert(range.end, until);
            }
            if at < range.start {
                self.0.insert(at, range.start);
                break;
            }
        }
        taken.reverse();
        taken
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.0.iter().map(|(start, end)| *start..*end)
    }

    /// Takes everything out.
    pub(crate) fn take_all(&mut self) -> Vec<Range<u64>> {
        std::mem::take(&mut self.0).into_iter().map(|(start, end)| start..end).collect()
    }
}

#[cfg(test)]
impl FromIterator<Range<u64>> for Spans {
    fn from_iter<T: IntoIterator<Item = Range<u64>>>(ranges: T) -> Self {
        let mut spans = Self::default();
        ranges.into_iter().for_each(|range| spans.add(range));
        spans
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn spans_are_a_set_of_bytes(steps in proptest::collection::vec((any::<bool>(), 0_u64..64, 0_u64..16), 1..60)) {
            let mut spans = Spans::default();
            let mut bytes = [false; 80];
            for (adds, start, len) in steps {
                let range = start..start + len;
                prop_assert_eq!(spans.covers(&range), range.clone().all(|byte| bytes[byte as usize]));
                if adds {
                    spans.add(range.clone());
                } else {
                    let taken: Vec<u64> = spans.take(&range).into_iter().flatten().collect();
                    let expected: Vec<u64> = range.clone().filter(|byte| bytes[*byte as usize]).collect();
                    prop_assert_eq!(taken, expected);
                }
                range.for_each(|byte| bytes[byte as usize] = adds);
                let expected: Spans = (0..80).filter(|byte| bytes[*byte as usize]).map(|byte| byte..byte + 1).collect();
                prop_assert_eq!(&spans, &expected, "merged, and nothing else");
            }
        }
    }

    #[test]
    fn all_can_be_taken() {
        let mut spans: Spans = [0..2, 5..6, 2..3].into_iter().collect();
        assert_eq!(spans.take_all(), [0..3, 5..6]);
        assert_eq!(spans, Spans::default());
    }
}
