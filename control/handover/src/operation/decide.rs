//! What to do about one unit, given where it is: one table for the ordinary course, for retries and for recovery.
//!
//! | step \ place | with donor, in use | with donor, drained | free | with receiver, idle | with receiver, in use |
//! |---|---|---|---|---|---|
//! | looking | ready | ready | pooled (ready if the donor is the pool) | quarantine | quarantine |
//! | draining | drain | **offlined** | **offlined** | quarantine | quarantine |
//! | revoking | drain | revoke | **revoked** | quarantine | quarantine |
//! | granting | returned | returned | grant | online | **moved** |
//! | withdrawing | returned | returned | **pooled** | revoke | moved |
//! | undoing | **returned** | undrain | pooled | quarantine | quarantine |
//!
//! The table knows no history but the number of tries, so it does not matter whether the daemon that looks now is the one that
//! gave the last command.

use super::progress::{Fate, Progress, Step};
use super::rules::DrainRule;
use crate::kernel::Party;
use crate::observe::{Command, Doubt, Inside, Whereabouts};
use crate::owner::Quarantine;

/// What the table must know beside the unit.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    pub(super) drain: DrainRule,
    pub(super) tries_max: u8,
    pub(super) donor: Party,
    pub(super) donor_runs: bool,
    /// Whether the donor has booted anew since: what it was not told to give up may have gone with its former boot.
    pub(super) donor_rebooted: bool,
    pub(super) receiver: Party,
    /// Whether the boot of the receiver that agreed still runs.
    pub(super) receiver_runs: bool,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Give this command.
    Tell(Command),
    /// Look again.
    Look,
    /// This step is done; the unit waits for the others.
    Reach(Step),
    /// Go on with another step.
    Turn(Step),
    /// Its owner is known.
    Settle(Fate),
    /// This step cannot be done.
    Fail,
}

use Decision::{Fail, Look, Reach, Settle, Tell, Turn};

/// What to do about a unit that was seen where `unit.place` says.
pub(super) fn decide(unit: &Progress, view: &View) -> Decision {
    let tries_left = unit.tries < view.tries_max;
    let place = unit.place;
    match (&unit.step, place) {
        (Step::Waiting | Step::Ready | Step::Offlined | Step::Revoked | Step::Settled(_), _) => Look,
        (_, Whereabouts::Undecided(_)) => Look,
        (_, Whereabouts::Elsewhere(with)) => found_elsewhere(with),

        (Step::Looking, Whereabouts::Donor(_)) => Reach(Step::Ready),
        (Step::Looking, Whereabouts::Free) if view.donor == Party::Pool => Reach(Step::Ready),
        (Step::Looking, Whereabouts::Free) => Settle(Fate::Pooled),

        (Step::Draining, Whereabouts::Free) => Reach(Step::Offlined),
        (Step::Draining, Whereabouts::Donor(inside)) => match toward_drained(view.drain, inside) {
            Drained::Yes => Reach(Step::Offlined),
            Drained::Unknown => Look,
            Drained::After(command) if tries_left => Tell(command),
            Drained::After(_) => Fail,
        },

        (Step::Revoking, Whereabouts::Free) if view.receiver == Party::Pool => Settle(Fate::Moved),
        (Step::Revoking, Whereabouts::Free) => Reach(Step::Revoked),
        (Step::Revoking, Whereabouts::Donor(inside)) if tries_left => {
            match toward_drained(view.drain, inside) {
                // It was seen drained; a donor that has fallen silent does not hold up what is decided.
                Drained::Yes | Drained::Unknown => Tell(Command::Revoke(view.donor)),
                Drained::After(command) => Tell(command),
            }
        }
        // Proven to be with the donor, and nothing asked before can still take it away.
        (Step::Revoking, Whereabouts::Donor(_)) => Turn(Step::Undoing),

        (Step::Granting, Whereabouts::Free) if view.receiver_runs && tries_left => {
            Tell(Command::Grant(view.receiver))
        }
        (Step::Granting, Whereabouts::Free) => Settle(Fate::Pooled),
        (Step::Granting | Step::Withdrawing, Whereabouts::Receiver(Inside::Online | Inside::Emptied)) => {
            Settle(Fate::Moved)
        }
        (Step::Granting | Step::Withdrawing, Whereabouts::Receiver(_)) if !view.receiver_runs => {
            Settle(Fate::Stranded)
        }
        (Step::Granting, Whereabouts::Receiver(Inside::Unknown)) => Look,
        (Step::Granting, Whereabouts::Receiver(_)) if tries_left => Tell(Command::Online),
        (Step::Granting, Whereabouts::Receiver(_)) => Turn(Step::Withdrawing),
        (Step::Granting | Step::Withdrawing, Whereabouts::Donor(_)) => Settle(Fate::Returned),

        (Step::Withdrawing, Whereabouts::Free) => Settle(Fate::Pooled),
        (Step::Withdrawing, Whereabouts::Receiver(_)) if tries_left => Tell(Command::Revoke(view.receiver)),
        (Step::Withdrawing, Whereabouts::Receiver(_)) => Settle(Fate::Stranded),

        (Step::Undoing, Whereabouts::Free) => Settle(Fate::Pooled),
        (Step::Undoing, Whereabouts::Donor(_)) if !view.donor_runs => Settle(Fate::Returned),
        (Step::Undoing, Whereabouts::Donor(inside)) => {
            let in_use = inside == Inside::Online;
            let outdated = !unit.touched || unit.told == Some(Command::Undrain);
            if (in_use && outdated) || !tries_left { Settle(Fate::Returned) } else { Tell(Command::Undrain) }
        }

        (Step::Looking | Step::Draining | Step::Revoking | Step::Undoing, Whereabouts::Receiver(_)) => {
            found_elsewhere(view.receiver)
        }
    }
}

/// What to do about a unit when patience is at an end and no answer has placed it.
///
/// What nobody was told to take away is the donor's, for as long as the donor lives; what was seen free and nobody was told to attach is
/// free. Anything else would be a guess.
pub(super) fn give_up(unit: &Progress, view: &View) -> Decision {
    let doubt = match unit.place {
        // What was seen last was before the last command.
        _ if unit.asked => Doubt::Unseen,
        Whereabouts::Undecided(doubt) => doubt,
        _ => Doubt::Unseen,
    };
    let unproven = Settle(Fate::Quarantined(match doubt {
        Doubt::Unseen => Quarantine::Unobserved { after: unit.told },
        Doubt::Pending => Quarantine::MayChangeYet { after: unit.told },
        Doubt::Contradiction { attached, claimed_by } => Quarantine::Contradiction { attached, claimed_by },
    }));
    match unit.step {
        _ if doubt != Doubt::Unseen => unproven,
        // Attached to it for certain, and it never said whether it uses it.
        Step::Granting | Step::Withdrawing
            if !unit.asked && matches!(unit.place, Whereabouts::Receiver(_)) =>
        {
            Settle(Fate::Stranded)
        }
        Step::Looking | Step::Draining => Fail,
        Step::Undoing if !view.donor_rebooted => Settle(Fate::Returned),
        Step::Granting if !unit.told.is_some_and(Command::moves) => Settle(Fate::Pooled),
        Step::Revoking if !view.donor_rebooted && !unit.told.is_some_and(Command::moves) => {
            Settle(Fate::Returned)
        }
        Step::Granting | Step::Revoking | Step::Withdrawing | Step::Undoing => unproven,
        Step::Waiting | Step::Ready | Step::Offlined | Step::Revoked | Step::Settled(_) => Look,
    }
}

enum Drained {
    Yes,
    Unknown,
    After(Command),
}

fn toward_drained(rule: DrainRule, inside: Inside) -> Drained {
    match (rule, inside) {
        (_, Inside::Unknown) => Drained::Unknown,
        (rule, inside) if rule.is_drained(inside) => Drained::Yes,
        // Somebody took it offline by hand, and such a one would never be parked.
        (DrainRule::LeaveOnline, Inside::Offline | Inside::Absent) => Drained::After(Command::Undrain),
        _ => Drained::After(Command::Drain),
    }
}

fn found_elsewhere(with: Party) -> Decision {
    Settle(Fate::Quarantined(Quarantine::FoundElsewhere { with }))
}
