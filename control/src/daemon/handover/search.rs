//! Who has a unit that is in quarantine: from what every kernel has. No I/O.
//!
//! It is found only if nothing is left that could contradict it: every kernel that may have it has said what it has, and none of
//! them is still about to get or to lose something.

use tombolo_handover::{OpId, Party};

use super::place::Has;
use super::tie::Tie;

/// What was seen of one kernel that runs.
#[derive(Clone, Debug)]
pub(crate) struct Seen<T> {
    pub(crate) party: Party,
    /// Its instance.
    pub(crate) name: String,
    pub(crate) has: T,
}

/// How much memory a kernel has, in granules.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Amount {
    pub(crate) has: Has,
    /// What the ledger gives to it.
    pub(crate) held: u64,
    /// Whether it may still change by itself.
    pub(crate) is_changing: bool,
    /// An operation that moves something from or to it.
    pub(crate) moving: Option<OpId>,
}

/// Why it cannot be said who has a unit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the fields are named after what they hold, and the messages say it in words")]
pub(crate) enum Unproven {
    #[error("`{name}` cannot be asked what it has; thaw it or kill it, then look again")]
    Silent { name: String },
    #[error("`{name}` was told to let it go, or to take it, and may yet; wait or kill it, then look again")]
    Changing { name: String },
    #[error("{operation} moves something at `{name}`; wait for it to end, then look again")]
    Moving { name: String, operation: OpId },
    #[error("`{name}` uses it without having it; make it stop or kill it, then look again")]
    UsesIt { name: String },
    #[error("both `{first}` and `{second}` have it; detach it from one of them, then look again")]
    Twice { first: String, second: String },
    #[error(
        "`{name}` has {has} granules of memory where the ledger gives it {held}, and that is not what is in quarantine; \
         find out who moved memory there"
    )]
    OtherAmount { name: String, has: u64, held: u64 },
    #[error("no spawner tells who has such a unit")]
    NotTold,
    #[error("the ledger changed again and again while it was looked for; look again")]
    Overtaken,
}

/// Who has a CPU or a device.
pub(crate) fn find_unit(seen: &[Seen<Tie>]) -> Result<Party, Unproven> {
    let mut found: Option<&Seen<Tie>> = None;
    for kernel in seen {
        let name = kernel.name.clone();
        match (kernel.has, found) {
            (Tie::None, _) => {}
            (Tie::Unknown, _) => return Err(Unproven::Silent { name }),
            (Tie::Leaving(_) | Tie::Coming, _) => return Err(Unproven::Changing { name }),
            (Tie::UsesIt, _) => return Err(Unproven::UsesIt { name }),
            (Tie::Attached(_), Some(first)) => {
                return Err(Unproven::Twice { first: first.name.clone(), second: name });
            }
            (Tie::Attached(_), None) => found = Some(kernel),
        }
    }
    Ok(found.map_or(Party::Pool, |kernel| kernel.party))
}

/// Who has a lot of `size` granules. Memory is an amount: whoever has that much more than the ledger gives to it has the lot, or another
/// like it, which is the same.
pub(crate) fn find_lot(size: u64, seen: &[Seen<Amount>]) -> Result<Party, Unproven> {
    let mut surplus = None;
    let mut found = None;
    for kernel in seen {
        let (name, amount) = (kernel.name.clone(), &kernel.has);
        if let Some(operation) = amount.moving {
            return Err(Unproven::Moving { name, operation });
        }
        let has = match amount.has {
            Has::Granules(has) => has,
            Has::Unknown => return Err(Unproven::Silent { name }),
            Has::Fixed | Has::Nothing | Has::TheRest => continue,
        };
        if amount.is_changing {
            return Err(Unproven::Changing { name });
        }
        let other = Unproven::OtherAmount { name, has, held: amount.held };
        match has.checked_sub(amount.held) {
            None => return Err(other),
            Some(0) => {}
            Some(more) if more >= size => found = found.or(Some(kernel.party)),
            Some(_) => surplus = Some(other),
        }
    }
    match (found, surplus) {
        (Some(party), _) => Ok(party),
        // Part of a lot is with somebody, which nobody was told to bring about.
        (None, Some(other)) => Err(other),
        (None, None) => Ok(Party::Pool),
    }
}

#[cfg(test)]
mod tests {
    use tombolo_agent::api::handover::Here;
    use tombolo_handover::{Incarnation, InstanceId, Kernel};

    use super::*;

    fn seen<T>(id: u32, has: T) -> Seen<T> {
        let party = Party::Instance(Kernel { instance: InstanceId(id), incarnation: Incarnation([1; 16]) });
        Seen { party, name: format!("k{id}"), has }
    }

    fn amount(has: u64, held: u64) -> Amount {
        Amount { has: Has::Granules(has), held, is_changing: false, moving: None }
    }

    #[test]
    fn a_unit_is_with_the_one_kernel_that_has_it_and_free_if_none_has() {
        let here = Tie::Attached(Here::Cpu { index: 1 });
        let web = seen(3, here);
        assert_eq!(find_unit(&[web.clone(), seen(4, Tie::None)]), Ok(web.party));
        assert_eq!(find_unit(&[seen(3, Tie::None), seen(4, Tie::None)]), Ok(Party::Pool));
        assert_eq!(find_unit(&[]), Ok(Party::Pool), "no kernel runs");
        let twice = Unproven::Twice { first: "k3".into(), second: "k4".into() };
        assert_eq!(find_unit(&[web, seen(4, here)]), Err(twice));
    }

    #[test]
    fn nothing_is_said_of_a_unit_while_any_kernel_may_yet_contradict_it() {
        let (here, name) = (Here::Cpu { index: 1 }, || "k4".to_owned());
        for (tie, unproven) in [
            (Tie::Unknown, Unproven::Silent { name: name() }),
            (Tie::Leaving(here), Unproven::Changing { name: name() }),
            (Tie::Coming, Unproven::Changing { name: name() }),
            (Tie::UsesIt, Unproven::UsesIt { name: name() }),
        ] {
            let found = find_unit(&[seen(3, Tie::Attached(here)), seen(4, tie)]);
            assert_eq!(found, Err(unproven), "although another has it");
        }
    }

    #[test]
    fn a_lot_is_with_whoever_has_that_much_more_than_the_ledger_gives_to_it() {
        let web = seen(3, amount(70, 60));
        assert_eq!(find_lot(10, &[seen(4, amount(50, 50)), web.clone()]), Ok(web.party));
        assert_eq!(
            find_lot(4, std::slice::from_ref(&web)),
            Ok(web.party),
            "another lot is in quarantine, too"
        );
        assert_eq!(find_lot(10, &[seen(3, amount(60, 60))]), Ok(Party::Pool));
        let dead = seen(4, Amount { has: Has::Nothing, ..amount(0, 50) });
        assert_eq!(find_lot(10, &[dead]), Ok(Party::Pool), "a dead kernel has none");
        let fixed = seen(4, Amount { has: Has::Fixed, ..amount(0, 50) });
        assert_eq!(find_lot(10, &[fixed]), Ok(Party::Pool), "nor can one have it whose memory cannot change");
    }

    #[test]
    fn nothing_is_said_of_a_lot_when_amounts_do_not_fit_or_may_change() {
        let other = |has, held| Err(Unproven::OtherAmount { name: "k3".into(), has, held });
        assert_eq!(find_lot(10, &[seen(3, amount(65, 60))]), other(65, 60), "half of it");
        assert_eq!(find_lot(10, &[seen(3, amount(59, 60))]), other(59, 60), "it lost some");
        let name = || "k3".to_owned();
        for (has, unproven) in [
            (Amount { has: Has::Unknown, ..amount(0, 60) }, Unproven::Silent { name: name() }),
            (Amount { is_changing: true, ..amount(70, 60) }, Unproven::Changing { name: name() }),
            (
                Amount { moving: Some(OpId(7)), ..amount(70, 60) },
                Unproven::Moving { name: name(), operation: OpId(7) },
            ),
        ] {
            assert_eq!(find_lot(10, &[seen(3, has)]), Err(unproven));
        }
    }
}
