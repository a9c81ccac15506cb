//! Where a CPU or a device is: from what the machines at both ends of an operation have. No I/O.

use tombolo_agent::api::handover::Here;
use tombolo_handover::Party;

/// What the machine of a party has to do with a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tie {
    /// Nothing, as the host, the pool and a kernel that is dead for certain.
    None,
    /// It has it, by this name.
    Attached(Here),
    /// The same, and it was told to let it go, which it may still do.
    Leaving(Here),
    /// It does not have it, and was told to take it, which it may still do.
    Coming,
    /// It does not have it any more, and its kernel uses it all the same.
    UsesIt,
    /// It cannot be asked now.
    Unknown,
}

impl Tie {
    /// Of a CPU that a spawner speaks of: whether its machine has it, and whether that may change by itself.
    pub(crate) fn of_cpu(here: Here, lent: bool, may_change: bool) -> Self {
        match (lent, may_change) {
            (true, true) => Self::Leaving(here),
            (true, false) => Self::Attached(here),
            (false, true) => Self::Coming,
            // It is spoken of because it runs.
            (false, false) => Self::UsesIt,
        }
    }

    /// Of a device that a spawner speaks of: whether its machine has it, and whether that may change by itself.
    pub(crate) fn of_device(here: Here, is_there: bool, may_change: bool) -> Self {
        match (is_there, may_change) {
            (true, true) => Self::Leaving(here),
            (true, false) => Self::Attached(here),
            (false, true) => Self::Coming,
            (false, false) => Self::None,
        }
    }

    /// What the unit is called inside, if it is there.
    pub(super) fn here(self) -> Option<Here> {
        match self {
            Self::Attached(here) | Self::Leaving(here) => Some(here),
            Self::None | Self::Coming | Self::UsesIt | Self::Unknown => None,
        }
    }

    /// Whether it may change by itself.
    pub(crate) fn is_changing(self) -> bool {
        matches!(self, Self::Leaving(_) | Self::Coming)
    }
}

/// To whom a unit is attached: the pool if to nobody, `None` if that cannot be told.
pub(crate) fn attached(
    (donor, of_donor): (Party, Tie),
    (receiver, of_receiver): (Party, Tie),
) -> Option<Party> {
    match (of_donor, of_receiver) {
        // No spawner does that; nothing can be said of it.
        (Tie::Attached(_) | Tie::Leaving(_), Tie::Attached(_) | Tie::Leaving(_)) => None,
        (Tie::Attached(_) | Tie::Leaving(_), _) => Some(donor),
        (_, Tie::Attached(_) | Tie::Leaving(_)) => Some(receiver),
        (Tie::Unknown, _) | (_, Tie::Unknown) => None,
        (Tie::None | Tie::Coming | Tie::UsesIt, Tie::None | Tie::Coming | Tie::UsesIt) => Some(Party::Pool),
    }
}

#[cfg(test)]
mod tests {
    use tombolo_handover::{Incarnation, InstanceId, Kernel};

    use super::*;

    fn kernel(id: u32) -> Party {
        Party::Instance(Kernel { instance: InstanceId(id), incarnation: Incarnation([1; 16]) })
    }

    #[test]
    fn a_unit_is_with_the_machine_that_has_it_and_free_if_none_does() {
        let here = Tie::Attached(Here::Cpu { index: 1 });
        let at = |donor, receiver| attached((kernel(3), donor), (kernel(4), receiver));
        assert_eq!(at(here, Tie::None), Some(kernel(3)));
        assert_eq!(at(Tie::None, here), Some(kernel(4)));
        assert_eq!(at(Tie::Unknown, here), Some(kernel(4)));
        assert_eq!(at(Tie::None, Tie::None), Some(Party::Pool));
        assert_eq!(at(Tie::UsesIt, Tie::None), Some(Party::Pool), "what its kernel does is told apart");
        assert_eq!(at(Tie::Coming, Tie::None), Some(Party::Pool), "that it may change is told apart, too");
        assert_eq!(at(here, here), None);
        assert_eq!(at(Tie::Unknown, Tie::None), None);
    }
}
