//! What the witnesses say of one unit, and what follows from it.
//!
//! Nothing is believed because a command returned success. Every command is followed by a look at the unit, and the answer
//! to a command *is* that look. Two witnesses speak: the **spawner** says whom the unit is attached to, and the **agents** of the
//! two kernels say what goes on inside. [`judge`] makes one statement of it, or says why it cannot.
//!
//! A look is also a *barrier*. It carries the unit's epoch like a command does, and a witness that has answered epoch `e` refuses whatever
//! comes later with a smaller or equal one. So what was asked before a look either shows in it or never happens. A spawner that
//! cannot promise that (Multikernel Linux may carry out a command that it has reported as timed out) says `pending`, and then
//! its word decides nothing.

use std::fmt;

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

use crate::kernel::Party;

/// What a shell can be told to do to a unit. All are idempotent: the state asked for may already be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    /// Ask the donor's agent to stop using it, in the sense of [`DrainRule`](crate::operation::DrainRule).
    Drain,
    /// Ask the donor's agent to use it again.
    Undrain,
    /// Have the spawner detach it from this party.
    Revoke(Party),
    /// Have the spawner attach it to this party. Refused for any other boot of that instance.
    Grant(Party),
    /// Ask the receiver's agent to use it and to prove that it does (run a thread there, touch the pages, see a driver bind).
    Online,
}

/// What an agent says about a unit in its kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum Inside {
    /// In use.
    Online,
    /// Online and idle: nothing runs on it and nothing will be put there.
    Emptied,
    /// Present and not in use.
    Offline,
    /// Not present.
    Absent,
    /// The agent does not answer, or cannot tell.
    Unknown,
}

/// What the witnesses say about one unit, all of it looked up after the command it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Sighting {
    /// Whom the spawner says it is attached to: [`Party::Pool`] for nobody, `None` if the spawner cannot tell.
    pub attached: Option<Party>,
    /// What the donor's agent says.
    pub donor: Inside,
    /// What the receiver's agent says.
    pub receiver: Inside,
    /// Whether something asked of the spawner earlier may still change whom it is attached to.
    pub pending: bool,
}

/// Where a unit is, seen from an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum Whereabouts {
    /// Attached to the donor.
    Donor(Inside),
    /// Attached to nobody.
    Free,
    /// Attached to the receiver.
    Receiver(Inside),
    /// Attached to somebody else.
    Elsewhere(Party),
    /// Not established.
    Undecided(Doubt),
}

/// Why it is not established where a unit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum Doubt {
    /// The spawner cannot tell.
    Unseen,
    /// Something asked earlier may still happen.
    Pending,
    /// The spawner says one thing, an agent another.
    Contradiction {
        /// Whom the spawner said to have it.
        attached: Party,
        /// Who claims to be using it.
        claimed_by: Party,
    },
}

/// Where the unit is, by these witnesses, for an operation between `donor` and `receiver`.
///
/// The spawner alone says whom a unit is attached to. An agent can contradict it only by claiming to *use* a unit that is not
/// attached to its kernel: that is how a CPU would run in two kernels. Silence of an agent contradicts nothing.
pub fn judge(sighting: &Sighting, donor: Party, receiver: Party) -> Whereabouts {
    let Some(attached) = sighting.attached else {
        return Whereabouts::Undecided(Doubt::Unseen);
    };
    if sighting.pending {
        return Whereabouts::Undecided(Doubt::Pending);
    }
    let with_donor = attached.is_same_holder(donor);
    let with_receiver = attached.is_same_holder(receiver);
    let claim = [(with_donor, donor, sighting.donor), (with_receiver, receiver, sighting.receiver)]
        .into_iter()
        .find(|(has_it, party, inside)| !has_it && *party != Party::Pool && inside.is_running());
    if let Some((_, claimed_by, _)) = claim {
        return Whereabouts::Undecided(Doubt::Contradiction { attached, claimed_by });
    }
    match attached {
        Party::Pool => Whereabouts::Free,
        _ if with_donor => Whereabouts::Donor(sighting.donor.attached()),
        _ if with_receiver => Whereabouts::Receiver(sighting.receiver.attached()),
        other => Whereabouts::Elsewhere(other),
    }
}

impl Command {
    /// Whether it changes whom a unit is attached to.
    pub fn moves(self) -> bool {
        matches!(self, Self::Revoke(_) | Self::Grant(_))
    }
}

impl Inside {
    fn is_running(self) -> bool {
        matches!(self, Self::Online | Self::Emptied)
    }

    /// What it means for a unit that the spawner says is attached: one not seen yet is one not in use yet.
    fn attached(self) -> Self {
        if self == Self::Absent { Self::Offline } else { self }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drain => f.write_str("drain"),
            Self::Undrain => f.write_str("undo the drain"),
            Self::Revoke(from) => write!(f, "detach from {from}"),
            Self::Grant(to) => write!(f, "attach to {to}"),
            Self::Online => f.write_str("bring into use"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{Incarnation, InstanceId, Kernel};

    fn kernel(id: u32, boot: u8) -> Party {
        Party::Instance(Kernel { instance: InstanceId(id), incarnation: Incarnation([boot; 16]) })
    }

    fn place(attached: Option<Party>, donor: Inside, receiver: Inside, pending: bool) -> Whereabouts {
        judge(&Sighting { attached, donor, receiver, pending }, kernel(3, 1), kernel(4, 1))
    }

    #[test]
    fn the_spawner_says_whose_it_is_and_the_agent_what_goes_on_inside() {
        use Inside::*;
        assert_eq!(place(Some(kernel(3, 1)), Emptied, Absent, false), Whereabouts::Donor(Emptied));
        assert_eq!(place(Some(kernel(4, 1)), Absent, Online, false), Whereabouts::Receiver(Online));
        assert_eq!(place(Some(kernel(4, 1)), Absent, Absent, false), Whereabouts::Receiver(Offline));
        assert_eq!(place(Some(Party::Pool), Absent, Absent, false), Whereabouts::Free);
        assert_eq!(place(Some(Party::Host), Absent, Absent, false), Whereabouts::Elsewhere(Party::Host));
    }

    #[test]
    fn a_later_boot_of_the_donor_is_the_donor() {
        assert_eq!(
            place(Some(kernel(3, 2)), Inside::Online, Inside::Absent, false),
            Whereabouts::Donor(Inside::Online)
        );
    }

    #[test]
    fn a_kernel_that_uses_what_it_does_not_hold_is_a_contradiction() {
        use Inside::*;
        let doubt = place(Some(Party::Pool), Online, Absent, false);
        let expected = Doubt::Contradiction { attached: Party::Pool, claimed_by: kernel(3, 1) };
        assert_eq!(doubt, Whereabouts::Undecided(expected));
        assert!(matches!(place(Some(kernel(3, 1)), Online, Online, false), Whereabouts::Undecided(_)));
    }

    #[test]
    fn nothing_is_decided_while_an_earlier_command_may_still_happen() {
        let seen = place(Some(Party::Pool), Inside::Absent, Inside::Absent, true);
        assert_eq!(seen, Whereabouts::Undecided(Doubt::Pending));
    }

    #[test]
    fn silence_of_an_agent_contradicts_nothing() {
        assert_eq!(place(Some(Party::Pool), Inside::Unknown, Inside::Unknown, false), Whereabouts::Free);
    }
}
