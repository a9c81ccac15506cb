//! Choosing CPUs.
//!
//! Whole cores first: SMT siblings in two kernels share caches and leak timing to each other. Then CPUs on the receiver's NUMA
//! node. Then the highest ids, so that a kernel keeps its low ones.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::{Refusal, Scope, Take};
use crate::kernel::Party;
use crate::ledger::Entry;
use crate::unit::{Kind, Traits, UnitId};

/// The best `count` CPUs.
pub(super) fn pick(scope: &Scope<'_>, count: u64, notes: &mut Vec<String>) -> Result<Vec<Take>, Refusal> {
    if count == 0 {
        return Err(Refusal::Nothing);
    }
    scope.check_limits(Kind::Cpu, count)?;
    let movable: Vec<&Entry> =
        scope.held(Kind::Cpu).filter(|entry| tied_to(scope, entry).is_none()).collect();
    if (movable.len() as u64) < count {
        return Err(scope.not_enough(Kind::Cpu, count, movable.len() as u64));
    }
    let chosen = best(scope, &movable, count as usize);
    finish(scope, chosen, notes)
}

/// These CPUs and no others.
pub(super) fn named(scope: &Scope<'_>, ids: &[u32], notes: &mut Vec<String>) -> Result<Vec<Take>, Refusal> {
    if ids.is_empty() {
        return Err(Refusal::Nothing);
    }
    let mut chosen = Vec::new();
    for (at, &id) in ids.iter().enumerate() {
        let unit = UnitId::Cpu(id);
        if ids[..at].contains(&id) {
            return Err(Refusal::NamedTwice { unit });
        }
        let entry = scope.own(unit)?;
        if let Some(name) = tied_to(scope, entry) {
            return Err(Refusal::BootCpu { unit, name });
        }
        chosen.push(entry);
    }
    scope.check_limits(Kind::Cpu, chosen.len() as u64)?;
    finish(scope, chosen, notes)
}

/// The kernel that booted on this CPU and still runs, by name.
fn tied_to(scope: &Scope<'_>, entry: &Entry) -> Option<String> {
    if matches!(entry.unit.traits, Traits::Cpu { boot: true, .. }) {
        return Some(scope.ledger.name(Party::Host));
    }
    let row = scope.ledger.instance(scope.donor.instance()?)?;
    (row.boot_cpu == Some(entry.unit.id)).then(|| row.name.clone())
}

fn best<'a>(scope: &Scope<'_>, movable: &[&'a Entry], count: usize) -> Vec<&'a Entry> {
    let node = scope.receiver_node();
    let mut cores: BTreeMap<u32, Vec<&'a Entry>> = BTreeMap::new();
    for &entry in movable {
        cores.entry(core(entry)).or_default().push(entry);
    }
    let mut cores: Vec<Vec<&'a Entry>> = cores.into_values().collect();
    let near =
        |threads: &[&Entry]| node.is_some() && threads.first().is_some_and(|entry| entry.unit.node == node);
    let highest = |threads: &[&Entry]| threads.iter().map(|entry| entry.unit.id).max();
    let mut chosen = Vec::new();
    // Whole cores, nearest first.
    let is_whole = |threads: &[&Entry]| threads.len() == threads_of(scope, core_of(threads)).count();
    cores.sort_by_key(|threads| {
        (Reverse(near(threads)), Reverse(is_whole(threads)), Reverse(highest(threads)))
    });
    cores.retain(|threads| {
        let takes = is_whole(threads) && chosen.len() + threads.len() <= count;
        if takes {
            chosen.extend(threads);
        }
        !takes
    });
    // Then threads of cores that are split already, then as few new splits as there must be.
    cores.sort_by_key(|threads| (is_whole(threads), Reverse(near(threads)), Reverse(highest(threads))));
    let single = cores.into_iter().flat_map(|mut threads| {
        threads.sort_by_key(|entry| Reverse(entry.unit.id));
        threads
    });
    let missing = count.saturating_sub(chosen.len());
    chosen.extend(single.take(missing));
    chosen
}

fn finish(scope: &Scope<'_>, mut chosen: Vec<&Entry>, notes: &mut Vec<String>) -> Result<Vec<Take>, Refusal> {
    // Ascending: some hypervisors cannot skip an id when they plug CPUs.
    chosen.sort_by_key(|entry| entry.unit.id);
    for entry in &chosen {
        let left_behind: Vec<String> = threads_of(scope, core(entry))
            .filter(|sibling| !chosen.iter().any(|taken| taken.unit.id == sibling.unit.id))
            .map(|sibling| format!("{} ({})", sibling.unit.id, sibling.owner))
            .collect();
        if !left_behind.is_empty() {
            notes.push(format!(
                "{} is an SMT sibling of {}, in another kernel",
                entry.unit.id,
                left_behind.join(", ")
            ));
        }
    }
    if let Some(node) = scope.receiver_node() {
        let far = chosen.iter().filter(|entry| entry.unit.node.is_some_and(|of| of != node)).count();
        if far > 0 {
            notes.push(format!(
                "{far} of {} CPUs are not on node {node}, where `{}` is",
                chosen.len(),
                scope.ledger.name(scope.receiver)
            ));
        }
    }
    Ok(chosen.into_iter().map(Take::whole).collect())
}

fn core(entry: &Entry) -> u32 {
    match entry.unit.traits {
        Traits::Cpu { core, .. } => core,
        _ => 0,
    }
}

fn core_of(threads: &[&Entry]) -> u32 {
    threads.first().map_or(0, |entry| core(entry))
}

fn threads_of<'a>(scope: &Scope<'a>, of: u32) -> impl Iterator<Item = &'a Entry> + use<'a> {
    scope.ledger.entries().filter(move |entry| entry.unit.id.kind() == Kind::Cpu && core(entry) == of)
}
