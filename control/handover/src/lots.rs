//! Which lots of an operation are where, from what two kernels have.
//!
//! A kernel that holds an *amount* of memory can say how much it has, not which. The lots of one operation are worked on in order, and
//! no second operation moves memory at the same kernels meanwhile, so counting is enough: the donor gives up lots from the front, the
//! receiver gets them from the front.

use crate::operation::Resting;

/// Where a lot is, by counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lot {
    /// With the donor.
    Donor,
    /// With neither.
    Free,
    /// With the receiver.
    Receiver,
    /// On its way in or out, in part: not established yet.
    Between,
}

/// Where each of an operation's unsettled lots is. `lots` are their sizes in order, `resting` is what else the kernels are to have, and
/// the two amounts are what they say they have; all in granules. `None` if the amounts fit no distribution of these lots: somebody else
/// has moved memory.
pub fn locate(lots: &[u64], resting: Resting, donor_has: u64, receiver_has: u64) -> Option<Vec<Lot>> {
    let total: u64 = lots.iter().sum();
    let at_donor = donor_has.checked_sub(resting.donor)?;
    let at_receiver = receiver_has.checked_sub(resting.receiver)?;
    if at_donor.checked_add(at_receiver)? > total {
        return None;
    }
    // Laid end to end: the receiver has the first granules, the donor the last.
    let kept_from = total - at_donor;
    let mut begin = 0;
    let places = lots.iter().map(|size| {
        let end = begin + size;
        let place = if end <= at_receiver {
            Lot::Receiver
        } else if begin >= kept_from {
            Lot::Donor
        } else if begin >= at_receiver && end <= kept_from {
            Lot::Free
        } else {
            Lot::Between
        };
        begin = end;
        place
    });
    Some(places.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESTING: Resting = Resting { donor: 100, receiver: 50 };

    fn places(donor_has: u64, receiver_has: u64) -> Option<Vec<Lot>> {
        locate(&[10, 10, 5], RESTING, donor_has, receiver_has)
    }

    #[test]
    fn lots_leave_and_arrive_from_the_front() {
        use Lot::*;
        assert_eq!(places(125, 50), Some(vec![Donor, Donor, Donor]));
        assert_eq!(places(115, 50), Some(vec![Free, Donor, Donor]));
        assert_eq!(places(115, 60), Some(vec![Receiver, Donor, Donor]));
        assert_eq!(places(100, 60), Some(vec![Receiver, Free, Free]));
        assert_eq!(places(100, 75), Some(vec![Receiver, Receiver, Receiver]));
    }

    #[test]
    fn a_lot_in_part_is_nowhere_yet() {
        use Lot::*;
        assert_eq!(places(120, 50), Some(vec![Between, Donor, Donor]));
        assert_eq!(places(115, 55), Some(vec![Between, Donor, Donor]));
    }

    #[test]
    fn amounts_that_fit_no_distribution_are_not_explained_away() {
        assert_eq!(places(99, 50), None, "the donor has less than it rests with");
        assert_eq!(places(126, 50), None, "more than there is");
        assert_eq!(places(125, 60), None, "a lot would be in two places");
        assert_eq!(places(u64::MAX, 50), None);
    }
}
