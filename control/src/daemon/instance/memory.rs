//! How much memory the instance's kernel has: the ledger says, the kernel follows.

use std::time::Duration;

use tombolo_handover::AdminError;
use tombolo_transport::Incarnation;

use super::{Instance, effects};
use crate::core::State;
use crate::core::lifecycle::Timer;
use crate::daemon::handover::{LedgerError, mib_of, round_up};
use crate::spawner::SpawnerKind;

/// How long a kernel that was found running may take to have what the ledger says.
const CHANGE_MAX: Duration = Duration::from_secs(10);

/// What a kernel boots with.
pub(super) struct BootMemory {
    pub(super) bytes: u64,
    /// The least it can be left with while it runs.
    pub(super) min_bytes: u64,
    /// The most it can be given while it runs.
    pub(super) max_bytes: u64,
}

impl Instance {
    /// Enters the boot in the ledger, and takes the memory it is to have.
    pub(super) async fn take_memory(
        &self,
        kind: SpawnerKind,
        incarnation: Incarnation,
    ) -> Result<BootMemory, String> {
        let (record, can_move) = (&self.record, kind.can_move_memory());
        let ledger = &self.shared.ledger;
        let boot = ledger.boot(record.cid, record.name.as_str(), incarnation, &record.spec, can_move);
        let bytes = boot.await.map_err(|error| match error {
            LedgerError::Admin(AdminError::NotEnoughMemory { wanted, missing, .. }) => format!(
                "it is to have {} MiB, {} MiB more than this host has left; `tombolo pool` shows who has the rest",
                mib_of(wanted),
                mib_of(missing)
            ),
            error => error.to_string(),
        })?;
        let (min_bytes, max_bytes) = match can_move {
            true => {
                (round_up(record.spec.memory_min_mib() << 20), round_up(record.spec.memory_max_mib() << 20))
            }
            false => (bytes, bytes),
        };
        Ok(BootMemory { bytes, min_bytes: min_bytes.min(bytes), max_bytes: max_bytes.max(bytes) })
    }

    /// A kernel that was started, or found running by a new daemon, is in the ledger and has what the ledger says. A hand-over that
    /// is under way sees to its own.
    pub(super) async fn check_memory(&self) {
        let (Some(kernel), Some(kind), Some(incarnation)) =
            (self.kernel.clone(), self.record.spawner, self.record.incarnation)
        else {
            return;
        };
        let memory = match self.take_memory(kind, incarnation).await {
            Ok(memory) => memory,
            Err(reason) => {
                tracing::warn!(instance = %self.record.name, reason, "the ledger does not know its memory");
                return;
            }
        };
        let (name, ledger, cid) = (self.record.name.clone(), self.shared.ledger.clone(), self.record.cid);
        tokio::spawn(async move {
            let Ok(Some(present)) = kernel.memory().await else { return };
            if present.pending
                || !present.certain
                || present.present_bytes == memory.bytes
                || !ledger.is_certain(cid)
            {
                return;
            }
            tracing::warn!(
                instance = %name,
                has_mib = present.present_bytes >> 20,
                ledger_mib = memory.bytes >> 20,
                "its memory is not what the ledger says: it is changed"
            );
            if let Err(error) = kernel.set_memory(memory.bytes, CHANGE_MAX).await {
                tracing::error!(instance = %name, error = effects::chain(&error), "its memory cannot be changed");
            }
        });
    }

    /// Frees what an instance holds that has no kernel and will not have one by itself.
    pub(super) async fn settle_ledger(&self) {
        let state = self.record.life.state();
        let starts = self.timers.contains_key(&Timer::Restart) || !self.inputs.is_empty();
        if !state.may_have_kernel() && state != State::Reserved && !starts {
            self.shared.ledger.release(self.record.cid).await;
        }
    }
}
