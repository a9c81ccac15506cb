//! An instance that another program made and that was taken over on request (`tombolo adopt`): what is looked at before, and how it is known
//! again.
//!
//! Taking over changes nothing in the kernel, and makes no file: it is the daemon's record that says so. The instance is known by the transaction
//! that made it, as the kernel keeps that; as soon as another transaction removes it or makes it anew it is nobody's of ours.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ids::{FIRST, InstanceId, InstanceName};
use super::interface::{self, AskError, InstanceStatus, Interface};
use super::lock::Lock;
use super::provenance;
use super::record::{Origin, Record};
use super::{MARK, Settings};

/// By what an instance is known again that another program made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenOver {
    /// The number of the kernel's transaction that made it: `tx_N`.
    pub transaction: u64,
    /// The BLAKE3 hash of that transaction's overlay, in hex.
    pub digest: String,
    /// The boot id of the host's kernel: the next one numbers its transactions anew.
    pub host_boot: String,
}

impl TakenOver {
    /// Whether it is this transaction that made it.
    pub(super) fn is(&self, transaction: u64, blob: &[u8]) -> bool {
        self.transaction == transaction && self.digest == digest(blob)
    }
}

/// What is known here of an instance of ours.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    /// Its runtime folder.
    pub(crate) folder: PathBuf,
    /// Its name.
    pub(crate) name: String,
    /// Its address, which is its number in the kernel.
    pub(crate) cid: u32,
    /// Where it was taken over.
    pub(crate) taken_over: Option<TakenOver>,
}

impl Known {
    /// What there is of it in the kernel, as far as that is noted: what was made for it, else what was taken over.
    pub(super) fn record(&self, settings: &Settings) -> Result<Option<Record>, String> {
        let noted = Record::read(&self.folder)
            .map_err(|error| format!("could not read what was made for `{}`: {error}", self.name))?;
        match (noted, &self.taken_over) {
            (Some(record), _) => Ok(Some(record)),
            (None, Some(taken_over)) => {
                let id = u16::try_from(self.cid).map_err(|error| error.to_string())?;
                let nonce =
                    tombolo_transport::Incarnation::random().map_err(|error| error.to_string())?.to_string();
                Ok(Some(Record {
                    settings: settings.clone(),
                    name: self.name.parse()?,
                    id: InstanceId::try_from(id)?,
                    memory_bytes: 0,
                    cpus_wanted: 0,
                    cpus_withheld: Vec::new(),
                    moves_cpus: false,
                    memory_max_bytes: None,
                    devices: Vec::new(),
                    moves_devices: false,
                    cpus: Vec::new(),
                    nonce,
                    origin: Origin::TakenOver(taken_over.clone()),
                    keeper_binary: PathBuf::new(),
                }))
            }
            (None, None) => Ok(None),
        }
    }
}

/// An instance that can be taken over, as it is. As long as this is held no program that takes the lock changes it.
#[derive(Debug)]
pub(crate) struct Offer {
    pub(crate) taken_over: TakenOver,
    /// Its number.
    pub(crate) id: u32,
    /// How many CPUs it has.
    pub(crate) cpus: u32,
    pub(crate) memory_bytes: u64,
    /// As the kernel says it, such as `ready`.
    pub(crate) status: String,
    _lock: Lock,
}

/// Why an instance cannot be taken over. Nothing was changed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum OfferError {
    /// The kernel has none of that name.
    NotFound,
    /// It is not to be taken over, or not now.
    Refused(String),
    /// It could not be found out.
    Failed(String),
}

impl From<AskError> for OfferError {
    fn from(error: AskError) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Looks whether the instance of this name can be taken over. `force`: also one that runs, and one that a `tombolod` made of which nothing is
/// known here.
pub(super) fn offer(
    kernel: &impl Interface,
    settings: &Settings,
    name: &str,
    force: bool,
) -> Result<Offer, OfferError> {
    let name: InstanceName = name.parse().map_err(OfferError::Refused)?;
    if name.is_reserved() {
        return Err(OfferError::Refused(format!(
            "the name `{name}` belongs to kmorph, which keeps it for the kernel that it switches to"
        )));
    }
    // Whoever holds it changes something, perhaps this: what is seen now would not be so for long.
    let lock = Lock::take(&settings.lock, Duration::ZERO).map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => OfferError::Refused(format!(
            "another program is changing what the kernel has, and holds the lock {}: try again when it is done",
            settings.lock.display()
        )),
        _ => OfferError::Failed(format!("could not take the lock {}: {error}", settings.lock.display())),
    })?;
    let (Some(status), Some(tree)) = (interface::status(kernel, &name)?, interface::instance(kernel, &name)?)
    else {
        return Err(OfferError::NotFound);
    };
    if !force && matches!(status, InstanceStatus::Active | InstanceStatus::Failed) {
        return Err(OfferError::Refused(runs(&name, status)));
    }
    if u32::from(tree.id.0) < FIRST {
        return Err(OfferError::Refused(format!(
            "its number is {}, and an instance's number is its address, of which those below {FIRST} mean this kernel: make it with another number (kerf create --id)",
            tree.id
        )));
    }
    let (transaction, blob) = provenance::made_by(kernel, &name)?.map_err(OfferError::Refused)?;
    if !force && provenance::carries(&blob, MARK) {
        return Err(OfferError::Refused(format!(
            "a tombolod made it (tx_{transaction}), of which nothing is known here: if no other daemon looks after it, take it over with --force"
        )));
    }
    let host_boot = host_boot().map_err(OfferError::Failed)?;
    Ok(Offer {
        taken_over: TakenOver { transaction, digest: digest(&blob), host_boot },
        id: tree.id.0.into(),
        cpus: u32::try_from(tree.cpus.len()).unwrap_or(u32::MAX),
        memory_bytes: tree.memory_bytes,
        status: format!("{status:?}").to_lowercase(),
        _lock: lock,
    })
}

fn runs(name: &InstanceName, status: InstanceStatus) -> String {
    let status = format!("{status:?}").to_lowercase();
    format!(
        "it is {status}, so that a kernel runs in it, or may: end that first (kerf kill {name}), or take it over as it is with --force. Then it runs on, without an agent and not watched; it cannot be stopped in good order, nor started, until `tombolo kill {name}` has ended it by force"
    )
}

fn digest(blob: &[u8]) -> String {
    blake3::hash(blob).to_hex().to_string()
}

/// The boot id of this kernel.
pub(super) fn host_boot() -> Result<String, String> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    let text = std::fs::read_to_string(PATH).map_err(|error| format!("could not read {PATH}: {error}"))?;
    Ok(text.trim().to_owned())
}
