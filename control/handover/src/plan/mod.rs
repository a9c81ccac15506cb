//! From a wish to units: which ones, why, or why not.
//!
//! A plan changes nothing. It notes the epoch of every unit it chose, and the reservation compares them: whatever happened to a
//! unit in between makes the plan stale.

mod cpu;
mod device;
mod memory;
mod refusal;
mod traffic;

pub use refusal::Refusal;
pub(crate) use traffic::Traffic;

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

use crate::kernel::Party;
use crate::ledger::{Entry, Ledger};
use crate::owner::Owner;
use crate::request::{KEY_BYTES_MAX, Request, Side, What};
use crate::unit::{Kind, UnitId};

/// What a request would do. This is what `--dry-run` shows.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, Schema)]
pub struct Plan {
    /// The version of the ledger it was made on.
    pub version: u64,
    /// Who gives.
    pub donor: Party,
    /// Who gets.
    pub receiver: Party,
    /// What would be taken, in the order in which it would be worked on.
    pub takes: Vec<Take>,
    /// What the one who asked should know about the choice.
    pub notes: Vec<String>,
}

/// A unit, or part of one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, Schema)]
pub struct Take {
    /// Which unit.
    pub unit: UnitId,
    /// How much of it, in granules of memory or 1.
    pub size: u64,
    /// Whether it is cut from the unit, the rest of which stays.
    pub cut: bool,
    /// The epoch of the unit when the plan was made.
    pub epoch: u64,
}

/// How large the pieces are in which an amount of memory moves, in bytes: small enough to be called off and reported one by one,
/// large enough that a gigabyte is not thousands of steps.
pub const LOT_BYTES_MAX: u64 = 128 << 20;

/// Chooses the units for a request.
///
/// # Errors
/// A [`Refusal`] that says what is wrong and what would be right.
pub(crate) fn plan(ledger: &Ledger, traffic: &Traffic, request: &Request) -> Result<Plan, Refusal> {
    if request.key.is_empty() || request.key.len() > KEY_BYTES_MAX {
        return Err(Refusal::BadKey { bytes: request.key.len() as u64, max: KEY_BYTES_MAX as u64 });
    }
    if let Some(expected) = request.if_version
        && expected != ledger.version()
    {
        return Err(Refusal::StaleVersion { expected, found: ledger.version() });
    }
    let donor = find(ledger, &request.from)?;
    let receiver = find(ledger, &request.to)?;
    if donor.is_same_holder(receiver) {
        return Err(Refusal::SameParty { name: ledger.name(donor) });
    }
    let scope = Scope { ledger, traffic, donor, receiver };
    let mut notes = Vec::new();
    let takes = match &request.what {
        What::CpuCount(count) => cpu::pick(&scope, u64::from(*count), &mut notes)?,
        What::Cpus(ids) => cpu::named(&scope, ids, &mut notes)?,
        What::MemoryBytes(bytes) => memory::pick(&scope, *bytes, &mut notes)?,
        What::Device(address) => device::named(&scope, *address, request.allow_no_reset, &mut notes)?,
        What::LlcWays { cache, count } => device::ways(&scope, *cache, *count)?,
    };
    Ok(Plan { version: ledger.version(), donor, receiver, takes, notes })
}

fn find(ledger: &Ledger, side: &Side) -> Result<Party, Refusal> {
    match side {
        Side::Host => Ok(Party::Host),
        Side::Pool => Ok(Party::Pool),
        Side::Instance(name) => match ledger.instance_named(name) {
            None => Err(Refusal::NoSuchInstance { name: name.chars().take(64).collect() }),
            Some(row) if !row.running => Err(Refusal::NotRunning { name: name.clone() }),
            Some(row) => Ok(Party::Instance(row.kernel())),
        },
    }
}

/// What every chooser needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scope<'a> {
    ledger: &'a Ledger,
    traffic: &'a Traffic,
    donor: Party,
    receiver: Party,
}

impl<'a> Scope<'a> {
    /// The donor's units of a kind, at rest.
    fn held(&self, kind: Kind) -> impl Iterator<Item = &'a Entry> + use<'a> {
        self.ledger.held_by(self.donor).filter(move |entry| entry.unit.id.kind() == kind)
    }

    /// The row of a unit that somebody named, if the donor can dispose of it.
    fn own(&self, unit: UnitId) -> Result<&'a Entry, Refusal> {
        let entry = self.ledger.entry(unit).ok_or(Refusal::NoSuchUnit { unit })?;
        match (&entry.owner, entry.owner.party()) {
            (_, Some(party)) if party.is_same_holder(self.donor) => Ok(entry),
            (_, Some(party)) => Err(Refusal::NotOwned {
                unit,
                owner: self.ledger.name(party),
                expected: self.ledger.name(self.donor),
            }),
            (Owner::InTransit(operation), None) => Err(Refusal::Busy { unit, operation: *operation }),
            (owner, None) => Err(Refusal::InQuarantine { unit, owner: owner.clone() }),
        }
    }

    /// Whether both ends keep to their limits.
    fn check_limits(&self, kind: Kind, size: u64) -> Result<(), Refusal> {
        let Self { ledger, donor, receiver, .. } = *self;
        if let Some(outsider) = [donor, receiver].into_iter().find(|end| ledger.ceiling(*end, kind) == 0) {
            return Err(Refusal::TakesNoPart { name: ledger.name(outsider), kind });
        }
        let checked = self.traffic.check(ledger, donor, receiver, kind, size);
        checked.map_err(|reached| reached.refusal(ledger.name(reached.of)))
    }

    /// The refusal for a donor that can dispose of less than is wanted.
    fn not_enough(&self, kind: Kind, wanted: u64, available: u64) -> Refusal {
        let held = self.ledger.held(self.donor, kind);
        Refusal::NotEnough {
            name: self.ledger.name(self.donor),
            kind,
            wanted,
            available,
            held_back: held.saturating_sub(available) + self.traffic.leaving(self.donor, kind),
        }
    }

    /// The NUMA node most of the receiver's CPUs are on, else most of its memory.
    fn receiver_node(&self) -> Option<u32> {
        [Kind::Cpu, Kind::Memory].into_iter().find_map(|kind| {
            let mut counts: Vec<(u64, u32)> = Vec::new();
            for entry in self.ledger.held_by(self.receiver).filter(|entry| entry.unit.id.kind() == kind) {
                let Some(node) = entry.unit.node else { continue };
                match counts.iter_mut().find(|(_, counted)| *counted == node) {
                    Some((count, _)) => *count += entry.unit.size(),
                    None => counts.push((entry.unit.size(), node)),
                }
            }
            let lowest_of_most = |&(count, node): &(u64, u32)| (count, std::cmp::Reverse(node));
            counts.into_iter().max_by_key(lowest_of_most).map(|(_, node)| node)
        })
    }
}

impl Take {
    fn whole(entry: &Entry) -> Self {
        Self { unit: entry.unit.id, size: entry.unit.size(), cut: false, epoch: entry.epoch }
    }
}

#[cfg(test)]
mod tests;
