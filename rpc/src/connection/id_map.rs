//! [`IdMap`]: calls by their id.

use std::collections::HashMap;

use super::IdHasher;

/// Places to begin with, and at most. Powers of two.
const PLACES: std::ops::RangeInclusive<usize> = 16..=4096;

/// A map from ids of calls, of both sides.
///
/// Each side hands out its ids in sequence, so those under way at a time mostly differ in their low bits, and these say where in a table each is: a look-up is
/// one comparison. Calls that last, and so meet a later one at their place, or a peer that chooses its ids to meet cost no more than a hash map.
#[derive(Debug)]
pub(crate) struct IdMap<T> {
    places: Vec<Option<(u32, T)>>,
    /// How many of the places are taken.
    placed: usize,
    /// Whoever found its place taken.
    others: HashMap<u32, T, IdHasher>,
}

impl<T> Default for IdMap<T> {
    fn default() -> Self {
        Self { places: Vec::new(), placed: 0, others: HashMap::default() }
    }
}

impl<T> IdMap<T> {
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.placed + self.others.len()
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where `id` would be; beyond the end as long as there are no places. The ids of the two sides are the even and the odd ones, and lie half a table apart.
    #[inline]
    fn place(&self, id: u32) -> usize {
        let (nth, side) = (id as usize >> 1, id as usize & 1);
        let places = self.places.len();
        nth.wrapping_add(side * (places / 2)) & places.wrapping_sub(1)
    }

    #[inline]
    pub(crate) fn get(&self, id: u32) -> Option<&T> {
        match self.places.get(self.place(id)) {
            Some(Some((known, value))) if *known == id => Some(value),
            _ if self.others.is_empty() => None,
            _ => self.others.get(&id),
        }
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, id: u32) -> Option<&mut T> {
        let place = self.place(id);
        match self.places.get_mut(place) {
            Some(Some((known, value))) if *known == id => Some(value),
            _ if self.others.is_empty() => None,
            _ => self.others.get_mut(&id),
        }
    }

    #[inline]
    pub(crate) fn contains(&self, id: u32) -> bool {
        self.get(id).is_some()
    }

    /// Adds a call, in the place of the one with that id if there is one.
    #[inline]
    pub(crate) fn insert(&mut self, id: u32, value: T) {
        if let Some(known) = self.get_mut(id) {
            *known = value;
            return;
        }
        if 2 * self.placed >= self.places.len() && self.places.len() < *PLACES.end() {
            self.grow();
        }
        let place = self.place(id);
        match self.places.get_mut(place) {
            Some(place @ None) => {
                *place = Some((id, value));
                self.placed += 1;
            }
            _ => {
                self.others.insert(id, value);
            }
        }
    }

    #[inline]
    pub(crate) fn remove(&mut self, id: u32) -> Option<T> {
        let place = self.place(id);
        match self.places.get_mut(place) {
            Some(place @ Some(_)) if place.as_ref().is_some_and(|(known, _)| *known == id) => {
                self.placed -= 1;
                place.take().map(|(_, value)| value)
            }
            _ if self.others.is_empty() => None,
            _ => self.others.remove(&id),
        }
    }

    /// All, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        let placed = self.places.iter().flatten().map(|(id, value)| (*id, value));
        placed.chain(self.others.iter().map(|(id, value)| (*id, value)))
    }

    #[cold]
    fn grow(&mut self) {
        let places = (2 * self.places.len()).max(*PLACES.start());
        let before = std::mem::take(&mut self.places);
        let others = std::mem::take(&mut self.others);
        self.places.resize_with(places, || None);
        self.placed = 0;
        for (id, value) in before.into_iter().flatten().chain(others) {
            let place = self.place(id);
            if self.places[place].is_none() {
                self.places[place] = Some((id, value));
                self.placed += 1;
            } else {
                self.others.insert(id, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u32),
        Remove(u32),
        Change(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        // Some in sequence, some that meet wherever there are places.
        let id = prop_oneof![0..200_u32, (0..40_u32).prop_map(|id| id << 13), Just(u32::MAX)];
        (id, 0..5_u8).prop_map(|(id, what)| match what {
            0..3 => Step::Insert(id),
            3 => Step::Remove(id),
            _ => Step::Change(id),
        })
    }

    proptest! {
        #[test]
        fn it_holds_what_a_hash_map_holds(steps in prop::collection::vec(step(), 1..400)) {
            let (mut map, mut oracle) = (IdMap::default(), HashMap::new());
            for (value, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Insert(id) => {
                        map.insert(id, value);
                        oracle.insert(id, value);
                    }
                    Step::Remove(id) => prop_assert_eq!(map.remove(id), oracle.remove(&id)),
                    Step::Change(id) => {
                        prop_assert_eq!(map.get_mut(id), oracle.get_mut(&id));
                        if let (Some(one), Some(other)) = (map.get_mut(id), oracle.get_mut(&id)) {
                            (*one, *other) = (value, value);
                        }
                    }
                }
                prop_assert_eq!((map.len(), map.is_empty()), (oracle.len(), oracle.is_empty()));
            }
            for (id, value) in &oracle {
                prop_assert_eq!(map.get(*id), Some(value));
            }
            prop_assert_eq!(map.iter().map(|(id, value)| (id, *value)).collect::<HashMap<_, _>>(), oracle);
        }
    }

    #[test]
    fn calls_in_sequence_need_no_hash_map() {
        let mut map = IdMap::default();
        for id in 1..100_000_u32 {
            map.insert(id, ());
            if id > 128 {
                map.remove(id - 128).unwrap();
            }
            assert!(map.others.is_empty());
        }
    }
}
