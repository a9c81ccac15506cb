//! `tombolo.control.Handover`: who owns which CPU, memory and device, and moving them between running kernels.
//!
//! What is asked and what is told is in the words of [`tombolo_handover`].

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};
use tombolo_handover::{
    Entry, InstanceRow, Kind, Meta, OpId, Operation, Owner, Party, PciAddress, Plan, Request, Side, UnitId,
};
use tombolo_rpc::Ctx;

use super::ControlError;

/// Who owns what, and hand-overs.
#[tombolo_rpc::service(name = "tombolo.control.Handover")]
pub trait Handover {
    /// Everything the ledger says.
    async fn pool(&self, cx: &Ctx) -> Result<Books, ControlError>;
    /// What a request would do. Changes nothing.
    async fn plan(&self, cx: &Ctx, request: Request) -> Result<Plan, ControlError>;
    /// Accepts a request as an operation, or finds the one it is by its key, and returns at once.
    async fn submit(&self, cx: &Ctx, request: Request) -> Result<Operation, ControlError>;
    /// Every operation that is remembered, oldest first.
    async fn operations(&self, cx: &Ctx) -> Result<Vec<Operation>, ControlError>;
    /// One operation.
    async fn operation(&self, cx: &Ctx, id: OpId) -> Result<Operation, ControlError>;
    /// Sends an operation as it is and again whenever it has changed, until it has ended; the answer is how it ended.
    async fn watch(&self, cx: &Ctx, id: OpId, out: Sender<Operation>) -> Result<Operation, ControlError>;
    /// Calls an operation off, which works until the point of no return.
    async fn cancel(&self, cx: &Ctx, id: OpId) -> Result<Operation, ControlError>;
    /// Takes a unit out of quarantine: the caller vouches that it is with `owner` and with nobody else.
    async fn repair(&self, cx: &Ctx, unit: UnitId, owner: Side) -> Result<(), ControlError>;
    /// Looks who has a unit that is in quarantine, and takes it out if that can be proven; the answer is who. Every kernel that runs is asked.
    async fn search(&self, cx: &Ctx, unit: UnitId) -> Result<Side, ControlError>;
}

/// Everything the ledger says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct Books {
    /// Counters, the size of a granule, the host's limits.
    pub meta: Meta,
    /// Every unit.
    pub units: Vec<Entry>,
    /// Every instance it knows.
    pub instances: Vec<InstanceRow>,
}

impl Books {
    /// The instance of this name, if the ledger knows it.
    pub fn instance(&self, name: &str) -> Option<&InstanceRow> {
        self.instances.iter().find(|row| row.name == name)
    }

    /// What a party is called.
    pub fn name(&self, party: Party) -> String {
        let instance = |row: &&InstanceRow| party == Party::Instance(row.kernel());
        match party {
            Party::Host => "host".to_owned(),
            Party::Pool => "pool".to_owned(),
            Party::Instance(kernel) => {
                let found = self.instances.iter().find(instance);
                found.map_or_else(|| format!("instance {}", kernel.instance.0), |row| row.name.clone())
            }
        }
    }

    /// Every unit of memory.
    pub fn memory(&self) -> impl Iterator<Item = &Entry> {
        self.units.iter().filter(|entry| entry.unit.id.kind() == Kind::Memory)
    }

    /// How much memory a party has, in bytes.
    pub fn memory_bytes(&self, party: Party) -> u64 {
        let its = self.memory().filter(|entry| entry.owner.party() == Some(party));
        self.bytes(its.map(|entry| entry.unit.size()).sum())
    }

    /// Every unit that rests with a party.
    pub fn units_of(&self, party: Party) -> impl Iterator<Item = &Entry> {
        self.units.iter().filter(move |entry| entry.owner.party() == Some(party))
    }

    /// Every device, and who has it.
    pub fn devices(&self) -> impl Iterator<Item = (PciAddress, &Owner)> {
        self.units.iter().filter_map(|entry| match entry.unit.id {
            UnitId::Device(address) => Some((address, &entry.owner)),
            _ => None,
        })
    }

    /// How many CPUs, or devices, rest with a party.
    pub fn count(&self, party: Party, kind: Kind) -> u64 {
        self.units_of(party).filter(|entry| entry.unit.id.kind() == kind).map(|entry| entry.unit.size()).sum()
    }

    /// How much memory so many granules are, in bytes.
    pub fn bytes(&self, granules: u64) -> u64 {
        granules.saturating_mul(self.meta.granule_bytes)
    }
}
