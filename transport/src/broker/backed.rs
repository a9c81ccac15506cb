//! Which parts of an extent have their pages already, so that the kernel is not asked again.

use std::collections::BTreeMap;
use std::ops::Range;

/// Spans of a file, by their start; neighbours are always merged.
#[derive(Debug, Default)]
pub(crate) struct Backed(BTreeMap<u64, u64>);

impl Backed {
    /// Makes sure that `range` is backed: asks with `back` unless all of it is known to be. Nobody takes pages from an extent in use.
    pub(crate) fn ensure<E>(
        &mut self,
        range: Range<u64>,
        back: impl FnOnce(Range<u64>) -> Result<(), E>,
    ) -> Result<(), E> {
        if !self.covers(&range) {
            back(range.clone())?;
            self.add(range);
        }
        Ok(())
    }

    fn covers(&self, range: &Range<u64>) -> bool {
        let before = self.0.range(..=range.start).next_back();
        range.is_empty() || before.is_some_and(|(_, end)| *end >= range.end)
    }

    fn add(&mut self, Range { mut start, mut end }: Range<u64>) {
        // From the last one that touches it to the first.
        while let Some((&at, &until)) = self.0.range(..=end).next_back()
            && until >= start
        {
            self.0.remove(&at);
            (start, end) = (start.min(at), end.max(until));
        }
        self.0.insert(start, end);
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_could_not_be_backed_is_asked_for_again() {
        let mut backed = Backed::default();
        assert_eq!(backed.ensure(0..8, |_| Err("full")), Err("full"));
        assert_eq!(backed.ensure(0..8, |_| Ok::<_, &str>(())), Ok(()));
        assert_eq!(backed.ensure(2..8, |_| Err("is not asked")), Ok(()));
    }

    proptest! {
        #[test]
        fn exactly_what_is_not_backed_is_asked_for(ranges in proptest::collection::vec((0_u64..64, 0_u64..16), 1..50)) {
            let mut backed = Backed::default();
            let mut pages = [false; 80];
            for (start, len) in ranges {
                let range = start..start + len;
                let mut asked = false;
                let told: Result<(), Infallible> = backed.ensure(range.clone(), |_| { asked = true; Ok(()) });
                prop_assert_eq!(told, Ok(()));
                let there = range.clone().all(|page| pages[page as usize]);
                prop_assert_eq!(asked, !there);
                range.for_each(|page| pages[page as usize] = true);
            }
        }
    }
}
