//! Where the ledger comes from when the daemon starts: the store, or what this host has.

use std::sync::Arc;

use tombolo_handover::coordinator::Coordinator;
use tombolo_handover::{Bounds, Kind, Ledger, Limits, Party, Unit};

use crate::meminfo;
use crate::store::{Batch, Store, StoredLedger};

/// The unit in which memory moves, in bytes: what virtio-mem moves on x86-64, and a multiple of any page size there.
pub(crate) const GRANULE_BYTES: u64 = 2 << 20;

/// Ledger and operations, or why there are none.
#[derive(Clone, Debug)]
pub(crate) enum Books {
    /// As they were stored last.
    Kept(Arc<Coordinator>),
    /// They cannot be used: nothing is started or moved.
    Unusable(Arc<str>),
}

/// What was stored; or, the first time and whenever nothing is in use, what this host has.
pub(super) async fn open(store: &Store) -> Result<Coordinator, String> {
    let text = std::fs::read_to_string("/proc/meminfo");
    let text = text.map_err(|error| format!("could not read /proc/meminfo: {error}"))?;
    let host_bytes = meminfo::bytes_of("MemTotal", &text).ok_or("/proc/meminfo does not tell MemTotal")?;
    if let Some(stored) = store.ledger().map_err(|error| error.to_string())? {
        let (coordinator, orphans) = stored.restore()?;
        if orphans > 0 {
            tracing::error!(orphans, "units of operations that are not in the journal are quarantined");
        }
        let granule_bytes = coordinator.ledger().meta().granule_bytes;
        if granule_bytes != GRANULE_BYTES {
            return Err(format!(
                "it counts memory in steps of {granule_bytes} bytes, and this version in steps of {GRANULE_BYTES}"
            ));
        }
        let total = |meta: &tombolo_handover::Meta| {
            meta.totals.iter().find(|(kind, _)| *kind == Kind::Memory).map_or(0, |(_, total)| *total)
        };
        let same = total(coordinator.ledger().meta()) == host_bytes / GRANULE_BYTES;
        if same || orphans > 0 || is_in_use(&coordinator) {
            return Ok(coordinator);
        }
        tracing::info!("this host has other memory than when the ledger was made: it is made anew");
    }
    let ledger = discover(host_bytes)?;
    let begin = Batch::new().begin_ledger(StoredLedger::discovered(&ledger));
    store.commit(begin).await.map_err(|error| error.to_string())?;
    Ok(Coordinator::new(ledger))
}

/// A ledger of this host's memory, all of it the host's own.
fn discover(host_bytes: u64) -> Result<Ledger, String> {
    let memory = Unit::lot(0, (host_bytes / GRANULE_BYTES).max(1), None);
    let host = Limits { memory: Bounds::default(), ..Limits::default() };
    Ledger::discover(GRANULE_BYTES, host, [(memory, Party::Host)]).map_err(|violation| violation.to_string())
}

/// Whether anything would be forgotten if the ledger were made anew.
fn is_in_use(coordinator: &Coordinator) -> bool {
    coordinator.operations().any(|operation| !operation.phase.is_terminal())
        || coordinator
            .ledger()
            .entries()
            .any(|entry| !matches!(entry.owner.party(), Some(Party::Host | Party::Pool)))
}
