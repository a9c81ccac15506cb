//! Choosing memory.

use std::collections::BTreeMap;

use super::{LOT_BYTES_MAX, Refusal, Scope, Take};
use crate::kernel::Party;
use crate::ledger::Entry;
use crate::unit::{Kind, UnitId};

/// `bytes` of memory.
pub(super) fn pick(scope: &Scope<'_>, bytes: u64, notes: &mut Vec<String>) -> Result<Vec<Take>, Refusal> {
    let granule_bytes = scope.ledger.meta().granule_bytes.max(1);
    if bytes == 0 {
        return Err(Refusal::Nothing);
    }
    let wanted = bytes / granule_bytes;
    if !bytes.is_multiple_of(granule_bytes) {
        let below = wanted * granule_bytes;
        let above = below.saturating_add(granule_bytes);
        return Err(Refusal::OddSize { bytes, granule_bytes, below, above });
    }
    scope.check_limits(Kind::Memory, wanted)?;
    let node = scope.receiver_node();
    let mut held: Vec<&Entry> = scope.held(Kind::Memory).collect();
    held.sort_by_key(|entry| (entry.unit.node != node, entry.unit.id));
    let available = held.iter().map(|entry| entry.unit.size()).sum();
    if available < wanted {
        return Err(scope.not_enough(Kind::Memory, wanted, available));
    }
    if held.iter().any(|entry| matches!(entry.unit.id, UnitId::Lot(_))) {
        return lots(scope, &held, wanted, LOT_BYTES_MAX / granule_bytes);
    }
    if matches!(scope.donor, Party::Instance(_)) {
        return regions(scope, &held, wanted, notes);
    }
    Ok(first_fit(&held, wanted))
}

/// An amount, in pieces.
fn lots(scope: &Scope<'_>, held: &[&Entry], wanted: u64, piece_max: u64) -> Result<Vec<Take>, Refusal> {
    let busy = scope.traffic.busy_with_lots(scope.donor, scope.receiver);
    if let Some(operation) = busy {
        let kernel = if scope.donor == Party::Pool { scope.receiver } else { scope.donor };
        return Err(Refusal::MemoryBusy { name: scope.ledger.name(kernel), operation });
    }
    let mut takes = Vec::new();
    let mut missing = wanted;
    for entry in held {
        let mut left = entry.unit.size();
        while missing > 0 && left > 0 {
            let size = missing.min(left).min(piece_max.max(1));
            // The last piece of a lot is what remains of it, not a cut.
            takes.push(Take { unit: entry.unit.id, size, cut: size < left, epoch: entry.epoch });
            missing -= size;
            left -= size;
        }
    }
    Ok(takes)
}

/// Free ranges, lowest first and cut where they need to be: the order in which a kernel that chooses the address itself would
/// choose, so that both name the same one.
fn first_fit(held: &[&Entry], wanted: u64) -> Vec<Take> {
    let mut missing = wanted;
    let mut takes = Vec::new();
    for entry in held {
        if missing == 0 {
            break;
        }
        let size = missing.min(entry.unit.size());
        takes.push(Take { unit: entry.unit.id, size, cut: size < entry.unit.size(), epoch: entry.epoch });
        missing -= size;
    }
    takes
}

/// Whole regions of a kernel that add up to what is wanted.
fn regions(
    scope: &Scope<'_>,
    held: &[&Entry],
    wanted: u64,
    notes: &mut Vec<String>,
) -> Result<Vec<Take>, Refusal> {
    // For each sum that can be made, the last region in it: the fewest-first order of `held` prefers near regions.
    let mut made_by: BTreeMap<u64, Option<usize>> = BTreeMap::from([(0, None)]);
    for (at, entry) in held.iter().enumerate() {
        let sums: Vec<u64> = made_by.keys().copied().collect();
        for sum in sums {
            made_by.entry(sum + entry.unit.size()).or_insert(Some(at));
        }
        if made_by.contains_key(&wanted) {
            break;
        }
        // Regions are few and sums are bounded by the donor's memory; this bounds both for a hostile layout.
        if made_by.len() > SUMS_MAX {
            notes.push(
                "the donor holds too many regions of different sizes to try every combination".to_owned(),
            );
            break;
        }
    }
    if !made_by.contains_key(&wanted) {
        let granule_bytes = scope.ledger.meta().granule_bytes;
        let below = made_by.range(..wanted).next_back().map_or(0, |(sum, _)| *sum);
        let above = made_by.range(wanted..).next().map_or(below, |(sum, _)| *sum);
        notes.push(format!("a granule is {granule_bytes} bytes"));
        return Err(Refusal::CannotCut { name: scope.ledger.name(scope.donor), wanted, below, above });
    }
    let mut takes = Vec::new();
    let mut sum = wanted;
    while let Some(Some(at)) = made_by.get(&sum) {
        takes.push(Take::whole(held[*at]));
        sum -= held[*at].unit.size();
    }
    takes.reverse();
    Ok(takes)
}

/// Most sums to remember when looking for regions that add up.
const SUMS_MAX: usize = 65_536;
