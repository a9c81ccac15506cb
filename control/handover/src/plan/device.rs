//! Choosing PCI functions and cache ways.

use super::{Refusal, Scope, Take};
use crate::ledger::Entry;
use crate::unit::{Kind, PciAddress, Traits, UnitId};

/// This function.
pub(super) fn named(
    scope: &Scope<'_>,
    device: PciAddress,
    allow_no_reset: bool,
    notes: &mut Vec<String>,
) -> Result<Vec<Take>, Refusal> {
    let first = scope.own(UnitId::Device(device))?;
    let mut takes = vec![first];
    // What the IOMMU cannot hold apart moves together.
    let (with_donor, elsewhere): (Vec<&Entry>, Vec<&Entry>) =
        companions(scope, first).partition(|other| scope.own(other.unit.id).is_ok());
    if !elsewhere.is_empty() {
        let others = elsewhere.iter().map(|other| other.unit.id).collect();
        return Err(Refusal::SharedGroup { device, others });
    }
    for other in &with_donor {
        notes.push(format!("{} moves along: it shares an IOMMU group with {device}", other.unit.id));
    }
    takes.extend(with_donor);
    for entry in &takes {
        if let (UnitId::Device(device), Traits::Device { can_reset: false, .. }) =
            (entry.unit.id, entry.unit.traits)
        {
            if !allow_no_reset {
                return Err(Refusal::CannotReset { device });
            }
            notes.push(format!("{device} is not reset between owners, as was asked for"));
        }
    }
    scope.check_limits(Kind::Device, takes.len() as u64)?;
    Ok(takes.into_iter().map(Take::whole).collect())
}

/// Devices of the same IOMMU group that are not with the receiver already.
fn companions<'a>(scope: &Scope<'a>, first: &'a Entry) -> impl Iterator<Item = &'a Entry> + use<'a> {
    let group = |entry: &Entry| match entry.unit.traits {
        Traits::Device { iommu_group, .. } => iommu_group,
        _ => None,
    };
    let (of, receiver) = (group(first), scope.receiver);
    scope.ledger.entries().filter(move |other| {
        let with_receiver = other.owner.party().is_some_and(|owner| owner.is_same_holder(receiver));
        of.is_some() && group(other) == of && other.unit.id != first.unit.id && !with_receiver
    })
}

/// So many ways of this cache, the highest numbers first.
pub(super) fn ways(scope: &Scope<'_>, cache: u32, count: u8) -> Result<Vec<Take>, Refusal> {
    if count == 0 {
        return Err(Refusal::Nothing);
    }
    let of_cache = |entry: &&Entry| matches!(entry.unit.id, UnitId::LlcWay { cache: of, .. } if of == cache);
    let mut held: Vec<&Entry> = scope.held(Kind::LlcWay).filter(of_cache).collect();
    let wanted = u64::from(count);
    if (held.len() as u64) < wanted {
        return Err(scope.not_enough(Kind::LlcWay, wanted, held.len() as u64));
    }
    scope.check_limits(Kind::LlcWay, wanted)?;
    let keep = held.len() - usize::from(count);
    Ok(held.split_off(keep).into_iter().map(Take::whole).collect())
}
