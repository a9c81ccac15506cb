//! What the ledger gives to the instance's kernel.

use tombolo_handover::{AdminError, Kernel as Booted, Kind};
use tombolo_transport::Incarnation;

use super::Instance;
use crate::core::State;
use crate::core::lifecycle::Timer;
use crate::daemon::handover::{Holding, LedgerError, Movable, instance_of, mib_of, round_up};
use crate::spawner::SpawnerKind;

/// What a kernel boots with.
pub(super) struct BootsWith {
    pub(super) memory_bytes: u64,
    /// The least it can be left with while it runs.
    pub(super) memory_min_bytes: u64,
    /// The most it can be given while it runs.
    pub(super) memory_max_bytes: u64,
    pub(super) cpus: Vec<u32>,
    pub(super) devices: Vec<tombolo_handover::PciAddress>,
    /// Whether these come and go while it runs, as the ledger says.
    pub(super) devices_move: bool,
}

impl Instance {
    /// Enters the boot in the ledger, and takes what it is to have.
    pub(super) async fn take_holding(
        &self,
        kind: SpawnerKind,
        incarnation: Incarnation,
    ) -> Result<BootsWith, String> {
        let spec = &self.record.spec;
        spec.check_for(kind, &self.record.name).map_err(|error| error.to_string())?;
        let (units_are, is_taken_over) = (self.shared.ledger.units_are(), self.record.taken_over.is_some());
        if let Some(reason) = units_are.refusal(kind, is_taken_over, spec) {
            return Err(reason);
        }
        let movable = units_are.movable(kind, is_taken_over);
        let Holding { memory_bytes, cpus, devices } = self.enter_boot(kind, incarnation, movable).await?;
        let (memory_bytes, least, most) = match movable.memory {
            true => {
                let least = if movable.keeps_memory { spec.memory_mib } else { spec.memory_min_mib() };
                (memory_bytes, round_up(least << 20), round_up(spec.memory_max_mib() << 20))
            }
            false => (spec.memory_mib << 20, spec.memory_mib << 20, spec.memory_mib << 20),
        };
        let (memory_min_bytes, memory_max_bytes) = (least.min(memory_bytes), most.max(memory_bytes));
        let devices_move = movable.devices;
        Ok(BootsWith { memory_bytes, memory_min_bytes, memory_max_bytes, cpus, devices, devices_move })
    }

    async fn enter_boot(
        &self,
        spawner: SpawnerKind,
        incarnation: Incarnation,
        movable: Movable,
    ) -> Result<Holding, String> {
        let (record, ledger) = (&self.record, &self.shared.ledger);
        let boot = ledger.boot(record.cid, record.name.as_str(), incarnation, &record.spec, movable);
        boot.await.map_err(|error| match error {
            LedgerError::Admin(AdminError::NotEnough { kind, wanted, missing, .. }) => {
                let (wanted, missing) = match kind {
                    Kind::Memory => (
                        format!("{} MiB", mib_of(wanted)),
                        format!("{} MiB more than this host has to give", mib_of(missing)),
                    ),
                    kind => (format!("{wanted} {kind}"), format!("{missing} more than there are")),
                };
                let more = match spawner {
                    SpawnerKind::Multikernel => ", and `tombolo multikernel pool` adds to it",
                    _ => "",
                };
                format!("it is to have {wanted}, {missing} left; `tombolo pool` shows who has the rest{more}")
            }
            error => error.to_string(),
        })
    }

    /// A kernel that was started, or found running by a new daemon, is in the ledger and has what the ledger says. A hand-over that
    /// is under way sees to its own.
    pub(super) async fn check_holding(&self) {
        let (Some(kernel), Some(kind), Some(incarnation)) =
            (self.kernel.clone(), self.record.spawner, self.record.incarnation)
        else {
            return;
        };
        let movable = self.shared.ledger.units_are().movable(kind, self.record.taken_over.is_some());
        // It may have been started by a daemon whose ledger had other CPUs, memory or devices.
        let movable = Movable {
            cpus: movable.cpus && kernel.moves_cpus(),
            memory: movable.memory && kernel.moves_memory(),
            devices: movable.devices && kernel.moves_devices(),
            ..movable
        };
        if let Err(reason) = self.enter_boot(kind, incarnation, movable).await {
            tracing::warn!(instance = %self.record.name, reason, "the ledger does not know what it has");
            return;
        }
        let booted = Booted { instance: instance_of(self.record.cid), incarnation };
        self.shared.ledger.mend(self.record.name.clone(), booted, kernel).await;
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
