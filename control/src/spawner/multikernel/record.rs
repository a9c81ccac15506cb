//! What was made in the kernel for one of our instances: written before it is made, removed when it is gone.
//!
//! Its nonce is how an instance of ours is told from one that another program made, even if both have the same name and number; one that was taken
//! over is known by the transaction that made it.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tombolo_handover::PciAddress;

use super::Settings;
use super::ids::{InstanceId, InstanceName, PhysicalCpu};
use super::taken_over::TakenOver;
use crate::keeper::{remove_all, write_atomically};

/// Its name in the runtime folder.
pub(super) const NAME: &str = "multikernel.json";

/// An instance in the kernel that is ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(super) settings: Settings,
    pub(super) name: InstanceName,
    pub(super) id: InstanceId,
    pub(super) memory_bytes: u64,
    /// How many CPUs it is to have.
    pub(super) cpus_wanted: u32,
    /// Which: chosen when it is made.
    pub(super) cpus: Vec<PhysicalCpu>,
    /// Those that it is not to have, although no instance has them: they may run in another kernel.
    #[serde(default)]
    pub(super) cpus_withheld: Vec<PhysicalCpu>,
    /// Whether they are those that the ledger gave it, so that they can be moved while it runs.
    #[serde(default)]
    pub(super) moves_cpus: bool,
    /// The most memory that it may have while it runs, in bytes, if it is the ledger's, so that it can be moved.
    #[serde(default)]
    pub(super) memory_max_bytes: Option<u64>,
    /// The PCI functions that it is to have when it starts.
    #[serde(default)]
    pub(super) devices: Vec<PciAddress>,
    /// Whether they are the ledger's, so that they can be moved while it runs.
    #[serde(default)]
    pub(super) moves_devices: bool,
    /// What its transactions carry, besides a number.
    pub(super) nonce: String,
    /// Who made it.
    #[serde(default)]
    pub(super) origin: Origin,
    /// Who can stand for it again, should its keeper die.
    pub(super) keeper_binary: PathBuf,
}

/// Who made an instance of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Origin {
    /// We did: its transaction carries the record's nonce.
    #[default]
    Made,
    /// Another program did, and it was taken over.
    TakenOver(TakenOver),
}

impl Record {
    pub(super) fn write(&self, dir: &Path) -> io::Result<()> {
        write_atomically(&dir.join(NAME), &serde_json::to_vec_pretty(self)?)
    }

    /// The record in a runtime folder, if there is one.
    pub(super) fn read(dir: &Path) -> io::Result<Option<Self>> {
        match std::fs::read(dir.join(NAME)) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn remove(dir: &Path) -> io::Result<()> {
        remove_all(&[dir.join(NAME)])
    }
}
