//! What is to be done about the units of one operation: in the order in which it was decided, and together where nothing depends on it.
//!
//! Lots of memory go together: what kernels have is asked once for all of them, agents have an order of their own, and since where a lot is follows from
//! amounts, one change of an amount moves several. What can be told apart is seen to one by one: each CPU and device is a question of its own to a
//! machine, which answers one at a time.

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc::UnboundedReceiver;
use tombolo_handover::UnitId;
use tombolo_handover::observe::Command;
use tombolo_handover::operation::Act;

use super::witness::{Together, Witnesses};
use super::{Ledger, Order};

/// Lots of memory that are moved by one change at most: half a gigabyte, for which the time of one change is enough.
const CHANGES_MAX: usize = 4;

/// Carries out what comes, until nothing can come any more, and has the ledger told of each.
pub(super) async fn carry_out_all(mut acts: UnboundedReceiver<Act>, witnesses: Witnesses, ledger: Ledger) {
    let mut first = acts.recv().await;
    while let Some(act) = first.take() {
        let group;
        (group, first) = take_with(act, || acts.try_recv().ok());
        let together = Together::of(&group);
        let mut under_way: FuturesUnordered<_> =
            group.into_iter().map(|act| witnesses.act(act, &together)).collect();
        while let Some(input) = under_way.next().await {
            if let Some(input) = input {
                let _ = ledger.orders.send(Order::Input(Box::new(input))).await;
            }
        }
        if first.is_none() {
            first = acts.recv().await;
        }
    }
}

/// What can be carried out together with `first` of what comes behind it; also the one that has to wait for them.
fn take_with(first: Act, mut next: impl FnMut() -> Option<Act>) -> (Vec<Act>, Option<Act>) {
    let mut group = vec![first];
    while let Some(act) = next() {
        if !goes_with(&act, &group) {
            return (group, Some(act));
        }
        group.push(act);
    }
    (group, None)
}

fn goes_with(act: &Act, group: &[Act]) -> bool {
    let is_again = group.iter().any(|other| other.unit.id == act.unit.id);
    let changes = group.iter().filter(|other| changes_what_is_attached(other)).count();
    if is_again || changes >= CHANGES_MAX {
        return false;
    }
    let is_like = |other: &Act| match changes_what_is_attached(act) {
        true => other.command == act.command && follows_from_an_amount(other),
        false => !changes_what_is_attached(other),
    };
    is_lot(act) && follows_from_an_amount(act) && group.iter().all(|other| is_lot(other) && is_like(other))
}

fn changes_what_is_attached(act: &Act) -> bool {
    matches!(act.command, Some(Command::Revoke(_) | Command::Grant(_)))
}

fn is_lot(act: &Act) -> bool {
    matches!(act.unit.id, UnitId::Lot(_))
}

/// Whether it follows from what the operation's end is to have, and not from what there is when it is carried out.
fn follows_from_an_amount(act: &Act) -> bool {
    !matches!(act.command, Some(Command::Revoke(from)) if !from.is_same_holder(act.donor))
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use tombolo_handover::operation::Resting;
    use tombolo_handover::{OpId, Party, Unit};

    use super::*;

    fn act(lot: u64, command: Option<Command>) -> Act {
        Act {
            operation: OpId(1),
            unit: Unit::lot(lot, 64, None),
            epoch: 1,
            command,
            donor: Party::Host,
            receiver: Party::Pool,
            resting: Some(Resting { donor: 0, receiver: 0 }),
            lease_ms: 0,
            after_ms: 0,
        }
    }

    /// In which groups these are carried out.
    fn groups(acts: &[(u64, Option<Command>)]) -> Vec<Vec<u64>> {
        let mut waiting: VecDeque<Act> = acts.iter().map(|&(lot, command)| act(lot, command)).collect();
        let mut groups = Vec::new();
        let mut first = waiting.pop_front();
        while let Some(act) = first.take() {
            let (together, next) = take_with(act, || waiting.pop_front());
            let lot = |act: &Act| match act.unit.id {
                UnitId::Lot(lot) => lot,
                other => panic!("{other} is no lot"),
            };
            groups.push(together.iter().map(lot).collect());
            first = next.or_else(|| waiting.pop_front());
        }
        groups
    }

    #[test]
    fn looks_and_orders_to_agents_go_together() {
        assert_eq!(groups(&[(1, None), (2, None), (3, Some(Command::Drain))]), [vec![1, 2, 3]]);
    }

    #[test]
    fn one_change_of_an_amount_moves_several_lots_but_not_all_of_a_large_move() {
        let (revoke, grant) = (Some(Command::Revoke(Party::Host)), Some(Command::Grant(Party::Pool)));
        assert_eq!(groups(&[(1, revoke), (2, revoke), (3, grant)]), [vec![1, 2], vec![3]]);
        assert_eq!(groups(&[(1, None), (2, revoke), (3, None), (4, None)]), [vec![1], vec![2], vec![3, 4]]);
        let many: Vec<_> = (0..10).map(|lot| (lot, grant)).collect();
        assert_eq!(groups(&many), [vec![0, 1, 2, 3], vec![4, 5, 6, 7], vec![8, 9]]);
    }

    #[test]
    fn what_is_taken_back_from_the_receiver_goes_alone() {
        let back = Some(Command::Revoke(Party::Pool));
        assert_eq!(groups(&[(1, back), (2, back)]), [[1], [2]]);
    }

    #[test]
    fn what_can_be_told_apart_is_seen_to_one_by_one() {
        for command in [Some(Command::Grant(Party::Pool)), Some(Command::Drain), None] {
            let of = |cpu| Act { unit: Unit::cpu(cpu, 0, None), ..act(0, command) };
            let mut waiting = VecDeque::from([of(2), of(3)]);
            let (group, next) = take_with(of(1), || waiting.pop_front());
            assert_eq!((group, next), (vec![of(1)], Some(of(2))));
        }
    }

    #[test]
    fn a_unit_is_not_told_two_things_at_a_time() {
        let (drain, undrain) = (Some(Command::Drain), Some(Command::Undrain));
        assert_eq!(groups(&[(1, drain), (2, drain), (1, undrain), (2, undrain)]), [vec![1, 2], vec![1, 2]]);
    }
}
