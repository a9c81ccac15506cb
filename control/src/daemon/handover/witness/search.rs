//! Looking for a unit at every kernel there is.

use tombolo_handover::coordinator::AdminError;
use tombolo_handover::{Entry, Kind, Owner, Party, UnitId};

use super::Witnesses;
use crate::daemon::handover::search::{Amount, Seen, Unproven, find_lot, find_unit};
use crate::daemon::handover::{Ledger, LedgerError};

/// How often it is looked while the ledger changes meanwhile.
const LOOKS_MAX: u32 = 5;

impl Witnesses {
    /// Gives a unit in quarantine to whoever has it.
    pub(in crate::daemon::handover) async fn repair(
        &self,
        ledger: &Ledger,
        unit: UnitId,
    ) -> Result<Party, LedgerError> {
        for _ in 0..LOOKS_MAX {
            let coordinator = ledger.coordinator()?;
            let entry = coordinator.ledger().entry(unit).ok_or(AdminError::NoSuchUnit { unit })?;
            if !matches!(entry.owner, Owner::Quarantined(_)) {
                return Err(AdminError::NotQuarantined { unit, owner: entry.owner.clone() }.into());
            }
            let owner = self.search(entry).await?;
            // What was seen is of the ledger as it was: a move in between may have made it untrue.
            match ledger.repair_at(coordinator.ledger().version(), unit, owner).await {
                Err(LedgerError::Unproven(Unproven::Overtaken)) => {}
                outcome => return outcome.map(|()| owner),
            }
        }
        Err(Unproven::Overtaken.into())
    }

    /// Who has a unit, whatever the ledger says of it.
    async fn search(&self, entry: &Entry) -> Result<Party, Unproven> {
        let kernels = self.kernels();
        match entry.unit.id {
            UnitId::Lot(_) => {
                let mut seen = Vec::new();
                for (party, name) in kernels {
                    self.settle_memory(party).await;
                    seen.push(Seen { party, name, has: self.amount(party).await });
                }
                find_lot(entry.unit.size(), &seen)
            }
            unit @ (UnitId::Cpu(_) | UnitId::Device(_)) => {
                let mut seen = Vec::new();
                for (party, name) in kernels {
                    self.settle(party, unit).await;
                    seen.push(Seen { party, name, has: self.tie(party, unit).await });
                }
                find_unit(&seen)
            }
            UnitId::Range(_) | UnitId::LlcWay { .. } => Err(Unproven::NotTold),
        }
    }

    /// Every kernel that runs by the ledger, and the name of its instance.
    fn kernels(&self) -> Vec<(Party, String)> {
        let Some(coordinator) = self.coordinator() else { return Vec::new() };
        let running = coordinator.ledger().instances().filter(|row| row.running);
        running.map(|row| (Party::Instance(row.kernel()), row.name.clone())).collect()
    }

    /// Has a kernel that was asked for memory, or for some of its own, and may still carry it out, asked again, if it lives: its answer ends the doubt.
    async fn settle_memory(&self, party: Party) {
        let Some(kernel) = party.kernel() else { return };
        let (_, is_changing) = self.has(party).await;
        if is_changing
            && let Some(handle) = self.running(kernel).await
            && let Err(error) = handle.settle_memory().await
        {
            tracing::debug!(
                instance = kernel.instance.0,
                error = crate::daemon::chain(&error),
                "it stays in doubt"
            );
        }
    }

    async fn amount(&self, party: Party) -> Amount {
        let (has, is_changing) = self.has(party).await;
        let coordinator = self.coordinator();
        let held = coordinator.as_ref().map_or(0, |books| books.ledger().held(party, Kind::Memory));
        let moving = party.instance().and_then(|id| coordinator.as_ref()?.moving_at(id));
        Amount { has, held, is_changing, moving }
    }
}
