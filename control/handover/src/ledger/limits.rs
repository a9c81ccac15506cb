//! How much a holder must keep, wants, and may have.

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

use super::Ledger;
use crate::kernel::Party;
use crate::unit::Kind;

/// Bounds on one kind of unit, in its own count: CPUs, granules, functions, ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, Schema)]
pub struct Bounds {
    /// It is never left with less. Default 0.
    pub min: u64,
    /// What it is meant to have; a balancer goes no further from it than it must. Default 0.
    pub desired: u64,
    /// Its quota: it is never given more. Default: no limit.
    pub max: u64,
}

/// Bounds on every kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, Schema)]
pub struct Limits {
    /// In CPUs. Whatever is said here, a running kernel keeps one.
    pub cpus: Bounds,
    /// In granules.
    pub memory: Bounds,
    /// In PCI functions.
    pub devices: Bounds,
    /// In cache ways.
    pub llc_ways: Bounds,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { min: 0, desired: 0, max: u64::MAX }
    }
}

impl Bounds {
    /// Of a kind that its holder can have nothing of.
    pub const NONE: Self = Self { min: 0, desired: 0, max: 0 };

    /// Between `min` and `max`.
    pub fn new(min: u64, max: u64) -> Self {
        Self { min, desired: min, max }
    }
}

impl Limits {
    /// The bounds on a kind.
    pub fn of(&self, kind: Kind) -> Bounds {
        match kind {
            Kind::Cpu => self.cpus,
            Kind::Memory => self.memory,
            Kind::Device => self.devices,
            Kind::LlcWay => self.llc_ways,
        }
    }
}

impl Ledger {
    /// The least of a kind that a holder must keep: what its limits say, and one CPU if it is a kernel that runs.
    pub fn floor(&self, party: Party, kind: Kind) -> u64 {
        let (limits, runs) = match party {
            Party::Pool => return 0,
            Party::Host => (self.meta().host, true),
            Party::Instance(kernel) => match self.instance(kernel.instance) {
                Some(row) => (row.limits, row.running),
                None => return 0,
            },
        };
        let needs = u64::from(kind == Kind::Cpu && runs);
        limits.of(kind).min.max(needs)
    }

    /// The most of a kind that a holder may have.
    pub fn ceiling(&self, party: Party, kind: Kind) -> u64 {
        match party {
            Party::Pool => u64::MAX,
            Party::Host => self.meta().host.of(kind).max,
            Party::Instance(kernel) => {
                self.instance(kernel.instance).map_or(u64::MAX, |row| row.limits.of(kind).max)
            }
        }
    }
}
