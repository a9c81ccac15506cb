//! Where a lot of memory is: from what kernels have, and for the host and the pool, of which nobody can be asked, from the
//! journal. No I/O.

use tombolo_handover::lots::{Lot, locate};
use tombolo_handover::observe::{Command, Inside};
use tombolo_handover::operation::{Progress, Resting, Step};
use tombolo_handover::{Party, UnitId};

use super::books::GRANULE_BYTES;
use crate::keeper::MemoryState;

/// What is known of one end of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Has {
    /// A kernel that runs has so much, in granules.
    Granules(u64),
    /// A kernel that runs cannot be asked now.
    Unknown,
    /// A kernel that runs, and whose memory its spawner cannot change while it does: no lot is or was with it.
    Fixed,
    /// A kernel that is dead for certain: it has nothing any more.
    Nothing,
    /// The host or the pool: its memory is what no kernel has.
    TheRest,
}

impl Has {
    /// What a keeper says.
    pub(crate) fn of(memory: &MemoryState) -> Self {
        if memory.certain { Self::Granules(memory.present_bytes / GRANULE_BYTES) } else { Self::Unknown }
    }
}

/// The lots of an operation that have no owner yet, in order, and its ends.
#[derive(Clone, Debug)]
pub(crate) struct Lots {
    pub(crate) units: Vec<UnitId>,
    pub(crate) sizes: Vec<u64>,
    pub(crate) resting: Resting,
    pub(crate) donor: Party,
    pub(crate) receiver: Party,
}

impl Lots {
    /// To whom the lot `at` is attached: the pool if to nobody, `None` if that cannot be told. `progress` is its record.
    pub(crate) fn attached(
        &self,
        at: usize,
        progress: &Progress,
        donor_has: Has,
        receiver_has: Has,
    ) -> Option<Party> {
        let total: u64 = self.sizes.iter().sum();
        let receiver_has = match receiver_has {
            Has::Granules(has) => has,
            // No operation is begun at one whose memory is fixed: nothing follows from it.
            Has::Unknown | Has::Fixed => return None,
            Has::Nothing | Has::TheRest => self.resting.receiver,
        };
        let arrived = receiver_has.checked_sub(self.resting.receiver)?;
        let donor_has = match donor_has {
            Has::Granules(has) => has,
            Has::Unknown | Has::Fixed => return None,
            Has::Nothing => self.resting.donor,
            Has::TheRest => self.resting.donor.checked_add(total.checked_sub(arrived)?)?,
        };
        match locate(&self.sizes, self.resting, donor_has, receiver_has)?.get(at)? {
            Lot::Free if self.has_reached_host(progress) => Some(Party::Host),
            Lot::Donor if self.donor == Party::Pool && self.has_reached_host(progress) => Some(Party::Host),
            Lot::Donor if self.donor == Party::Host && has_left_host(progress) => Some(Party::Pool),
            Lot::Donor => Some(self.donor),
            Lot::Free => Some(Party::Pool),
            Lot::Receiver => Some(self.receiver),
            Lot::Between => None,
        }
    }

    /// Whether the host has taken a lot that no kernel has.
    fn has_reached_host(&self, progress: &Progress) -> bool {
        self.receiver == Party::Host
            && progress.step == Step::Granting
            && progress.told == Some(Command::Grant(Party::Host))
    }

    /// What the donor is to have left when the lot `at` has gone: lots leave from the front.
    pub(crate) fn donor_after(&self, at: usize) -> u64 {
        self.resting.donor + self.sizes.iter().skip(at + 1).sum::<u64>()
    }

    /// What the receiver is to have when the lot `at` has come: lots arrive from the front.
    pub(crate) fn receiver_after(&self, at: usize) -> u64 {
        self.resting.receiver + self.sizes.iter().take(at + 1).sum::<u64>()
    }
}

/// The host's memory is where the journal says; a command that is noted there has been carried out as soon as it is looked at.
fn has_left_host(progress: &Progress) -> bool {
    match progress.step {
        Step::Revoking => matches!(progress.told, Some(Command::Revoke(Party::Host))),
        Step::Revoked | Step::Granting | Step::Withdrawing => true,
        _ => false,
    }
}

/// What goes on with a unit in the host, which does at once what it is told.
pub(crate) fn inside_host(progress: &Progress, is_donor: bool) -> Inside {
    if is_donor && progress.touched && progress.told != Some(Command::Undrain) {
        Inside::Offline
    } else {
        Inside::Online
    }
}

#[cfg(test)]
mod tests {
    use tombolo_handover::observe::{Doubt, Whereabouts};
    use tombolo_handover::{Incarnation, InstanceId, Kernel};

    use super::*;

    fn kernel(id: u32) -> Party {
        Party::Instance(Kernel { instance: InstanceId(id), incarnation: Incarnation([1; 16]) })
    }

    fn progress(step: Step, told: Option<Command>) -> Progress {
        Progress {
            unit: UnitId::Lot(1),
            size: 10,
            cut: false,
            epoch: 1,
            step,
            asked: true,
            tries: 0,
            looks: 0,
            told,
            touched: true,
            place: Whereabouts::Undecided(Doubt::Unseen),
            veto: None,
        }
    }

    fn lots(donor: Party, receiver: Party) -> Lots {
        Lots {
            units: vec![UnitId::Lot(1), UnitId::Lot(2)],
            sizes: vec![10, 5],
            resting: Resting { donor: 100, receiver: 50 },
            donor,
            receiver,
        }
    }

    #[test]
    fn a_lot_between_two_kernels_is_where_their_amounts_say() {
        let (lots, progress) = (lots(kernel(3), kernel(4)), progress(Step::Revoking, None));
        let at =
            |at, donor, receiver| lots.attached(at, &progress, Has::Granules(donor), Has::Granules(receiver));
        assert_eq!(at(0, 115, 50), Some(kernel(3)));
        assert_eq!(at(0, 105, 50), Some(Party::Pool));
        assert_eq!(at(1, 105, 50), Some(kernel(3)));
        assert_eq!(at(0, 100, 60), Some(kernel(4)));
        assert_eq!(at(0, 107, 50), None, "half way");
        assert_eq!(at(0, 120, 50), None, "somebody else has moved memory");
        assert_eq!(at(0, 115, 40), None);
    }

    #[test]
    fn a_dead_kernel_has_nothing_and_one_that_cannot_be_asked_leaves_it_open() {
        let (lots, progress) = (lots(kernel(3), kernel(4)), progress(Step::Revoking, None));
        assert_eq!(lots.attached(0, &progress, Has::Nothing, Has::Granules(50)), Some(Party::Pool));
        assert_eq!(lots.attached(0, &progress, Has::Granules(115), Has::Nothing), Some(kernel(3)));
        assert_eq!(lots.attached(0, &progress, Has::Unknown, Has::Granules(50)), None);
        assert_eq!(lots.attached(0, &progress, Has::Granules(115), Has::Unknown), None);
        assert_eq!(lots.attached(0, &progress, Has::Fixed, Has::Granules(50)), None);
        assert_eq!(lots.attached(0, &progress, Has::Granules(115), Has::Fixed), None);
    }

    #[test]
    fn the_hosts_memory_is_where_the_journal_says() {
        let out = lots(Party::Host, kernel(4));
        let at =
            |progress: &Progress, receiver| out.attached(0, progress, Has::TheRest, Has::Granules(receiver));
        assert_eq!(at(&progress(Step::Draining, None), 50), Some(Party::Host));
        assert_eq!(at(&progress(Step::Revoking, None), 50), Some(Party::Host));
        assert_eq!(at(&progress(Step::Revoking, Some(Command::Revoke(Party::Host))), 50), Some(Party::Pool));
        assert_eq!(at(&progress(Step::Granting, None), 50), Some(Party::Pool));
        assert_eq!(at(&progress(Step::Granting, None), 60), Some(kernel(4)));
        let back = lots(kernel(3), Party::Host);
        let at = |progress: &Progress, donor| back.attached(0, progress, Has::Granules(donor), Has::TheRest);
        assert_eq!(at(&progress(Step::Granting, None), 105), Some(Party::Pool));
        assert_eq!(at(&progress(Step::Granting, Some(Command::Grant(Party::Host))), 105), Some(Party::Host));
    }

    #[test]
    fn what_is_free_becomes_the_hosts_and_back_without_any_kernel() {
        let at = |lots: &Lots, progress: &Progress| lots.attached(0, progress, Has::TheRest, Has::TheRest);
        let taken = progress(Step::Granting, Some(Command::Grant(Party::Host)));
        let to_host = lots(Party::Pool, Party::Host);
        assert_eq!(at(&to_host, &progress(Step::Granting, None)), Some(Party::Pool));
        assert_eq!(at(&to_host, &taken), Some(Party::Host));
        let to_pool = lots(Party::Host, Party::Pool);
        assert_eq!(at(&to_pool, &progress(Step::Revoking, None)), Some(Party::Host));
        assert_eq!(
            at(&to_pool, &progress(Step::Revoking, Some(Command::Revoke(Party::Host)))),
            Some(Party::Pool)
        );
    }

    #[test]
    fn what_is_free_is_the_pools() {
        let out = lots(Party::Pool, kernel(4));
        let seen = |receiver| {
            out.attached(0, &progress(Step::Granting, None), Has::TheRest, Has::Granules(receiver))
        };
        assert_eq!((seen(50), seen(60)), (Some(Party::Pool), Some(kernel(4))));
    }

    #[test]
    fn lots_leave_and_arrive_from_the_front() {
        let lots = lots(kernel(3), kernel(4));
        assert_eq!((lots.donor_after(0), lots.donor_after(1)), (105, 100));
        assert_eq!((lots.receiver_after(0), lots.receiver_after(1)), (60, 65));
    }
}
