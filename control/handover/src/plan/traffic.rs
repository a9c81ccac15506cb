//! What operations under way have taken out of the ledger's owners and not yet delivered.

use super::refusal::{LimitReached, Which};
use crate::kernel::Party;
use crate::ledger::Ledger;
use crate::operation::Operation;
use crate::owner::OpId;
use crate::unit::{Kind, UnitId};

/// The operations that hold units.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    flows: Vec<Flow>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Flow {
    operation: OpId,
    donor: Party,
    receiver: Party,
    kind: Kind,
    /// On its way to the receiver, in the count of its kind.
    size: u64,
    lots: bool,
}

impl Traffic {
    /// What these operations have under way.
    pub(crate) fn of<'a>(operations: impl IntoIterator<Item = &'a Operation>) -> Self {
        let flows = operations.into_iter().filter(|operation| operation.phase.holds_units()).filter_map(
            |operation| {
                let first = operation.units.first()?.unit;
                let size =
                    operation.units.iter().filter(|unit| !unit.is_settled()).map(|unit| unit.size).sum();
                Some(Flow {
                    operation: operation.id,
                    donor: operation.donor,
                    receiver: operation.receiver,
                    kind: first.kind(),
                    size,
                    lots: matches!(first, UnitId::Lot(_)),
                })
            },
        );
        Self { flows: flows.collect() }
    }

    /// What is on its way to a holder and may arrive, what is coming back to it if undone included.
    fn arriving(&self, party: Party, kind: Kind) -> u64 {
        self.flows
            .iter()
            .filter(|flow| flow.kind == kind)
            .filter(|flow| flow.receiver.is_same_holder(party) || flow.donor.is_same_holder(party))
            .map(|flow| flow.size)
            .sum()
    }

    /// What is on its way from a holder.
    pub(crate) fn leaving(&self, party: Party, kind: Kind) -> u64 {
        let leaves = |flow: &&Flow| flow.kind == kind && flow.donor.is_same_holder(party);
        self.flows.iter().filter(leaves).map(|flow| flow.size).sum()
    }

    /// Whether both ends keep to their limits if `size` of `kind` moves. What is in transit is counted against both: it is no
    /// longer the donor's, and may yet be either's.
    pub(crate) fn check(
        &self,
        ledger: &Ledger,
        donor: Party,
        receiver: Party,
        kind: Kind,
        size: u64,
    ) -> Result<(), LimitReached> {
        let has = ledger.held(donor, kind);
        let floor = ledger.floor(donor, kind);
        if has.saturating_sub(size) < floor {
            return Err(LimitReached {
                of: donor,
                which: Which::Floor,
                kind,
                has,
                limit: floor,
                wanted: size,
            });
        }
        let has = ledger.held(receiver, kind) + self.arriving(receiver, kind);
        let ceiling = ledger.ceiling(receiver, kind);
        if has.saturating_add(size) > ceiling {
            return Err(LimitReached {
                of: receiver,
                which: Which::Ceiling,
                kind,
                has,
                limit: ceiling,
                wanted: size,
            });
        }
        Ok(())
    }

    /// An operation that moves an amount of memory at one of these kernels. Amounts are told apart by counting what a kernel has,
    /// so a second one at the same kernel could not be.
    pub(crate) fn busy_with_lots(&self, donor: Party, receiver: Party) -> Option<OpId> {
        let shares = |flow: &Flow| {
            [donor, receiver]
                .into_iter()
                .filter(|party| *party != Party::Pool)
                .any(|party| flow.donor.is_same_holder(party) || flow.receiver.is_same_holder(party))
        };
        self.flows.iter().find(|flow| flow.lots && shares(flow)).map(|flow| flow.operation)
    }
}
