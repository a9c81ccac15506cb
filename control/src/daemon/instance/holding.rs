//! What the instance's kernel has: the ledger says, the kernel follows.

use std::collections::BTreeSet;
use std::time::Duration;

use tombolo_handover::{AdminError, Kind};
use tombolo_transport::Incarnation;

use super::{Instance, effects};
use crate::core::State;
use crate::core::lifecycle::Timer;
use crate::daemon::handover::{Holding, LedgerError, mib_of, round_up};
use crate::spawner::{Device, Kernel, SpawnError, SpawnerKind};

/// How long a kernel that was found running may take to have what the ledger says.
const CHANGE_MAX: Duration = Duration::from_secs(10);

/// What a kernel boots with.
pub(super) struct BootsWith {
    pub(super) memory_bytes: u64,
    /// The least it can be left with while it runs.
    pub(super) memory_min_bytes: u64,
    /// The most it can be given while it runs.
    pub(super) memory_max_bytes: u64,
    pub(super) cpus: Vec<u32>,
    pub(super) devices: Vec<tombolo_handover::PciAddress>,
}

impl Instance {
    /// Enters the boot in the ledger, and takes what it is to have.
    pub(super) async fn take_holding(
        &self,
        kind: SpawnerKind,
        incarnation: Incarnation,
    ) -> Result<BootsWith, String> {
        let spec = &self.record.spec;
        if kind.makes_kernels() && !kind.can_move_cpus_and_devices() && spec.cpus_max() > 1 {
            let cpus = spec.cpus_max();
            return Err(format!(
                "it is to have up to {cpus} CPUs, and kernels of the spawner `{kind}` have one"
            ));
        }
        let Holding { memory_bytes, cpus, devices } = self.enter_boot(kind, incarnation).await?;
        let (memory_bytes, least, most) = match kind.can_move_memory() {
            true => {
                (memory_bytes, round_up(spec.memory_min_mib() << 20), round_up(spec.memory_max_mib() << 20))
            }
            false => (spec.memory_mib << 20, spec.memory_mib << 20, spec.memory_mib << 20),
        };
        let (memory_min_bytes, memory_max_bytes) = (least.min(memory_bytes), most.max(memory_bytes));
        Ok(BootsWith { memory_bytes, memory_min_bytes, memory_max_bytes, cpus, devices })
    }

    async fn enter_boot(&self, kind: SpawnerKind, incarnation: Incarnation) -> Result<Holding, String> {
        let (record, ledger) = (&self.record, &self.shared.ledger);
        let boot = ledger.boot(record.cid, record.name.as_str(), incarnation, &record.spec, kind);
        boot.await.map_err(|error| match error {
            LedgerError::Admin(AdminError::NotEnough { kind, wanted, missing, .. }) => {
                let (wanted, missing) = match kind {
                    Kind::Memory => (
                        format!("{} MiB", mib_of(wanted)),
                        format!("{} MiB more than this host has", mib_of(missing)),
                    ),
                    kind => (format!("{wanted} {kind}"), format!("{missing} more than there are")),
                };
                format!("it is to have {wanted}, {missing} left; `tombolo pool` shows who has the rest")
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
        let holding = match self.enter_boot(kind, incarnation).await {
            Ok(holding) => holding,
            Err(reason) => {
                tracing::warn!(instance = %self.record.name, reason, "the ledger does not know what it has");
                return;
            }
        };
        let (name, shared, cid) = (self.record.name.clone(), self.shared.clone(), self.record.cid);
        tokio::spawn(async move {
            if !shared.ledger.is_certain(cid) {
                return;
            }
            let mended = [
                mend_memory(&kernel, &holding).await,
                mend_cpus(&kernel, &holding).await,
                mend_devices(&kernel, &holding, &shared.catalogue).await,
            ];
            for outcome in mended {
                match outcome {
                    Ok(None) => {}
                    Ok(Some(what)) => {
                        tracing::warn!(instance = %name, what, "it had other than the ledger says: changed");
                    }
                    Err(error) => {
                        let error = effects::chain(&error);
                        tracing::error!(instance = %name, error, "it cannot be made to have what the ledger says");
                    }
                }
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

/// Each of these returns what was changed, if it was. A machine that cannot be asked now (it starts, say) is left alone.
type Mended = Result<Option<String>, SpawnError>;

async fn mend_memory(kernel: &Kernel, holding: &Holding) -> Mended {
    match kernel.memory().await {
        Ok(Some(present))
            if present.certain && !present.pending && present.present_bytes != holding.memory_bytes =>
        {
            kernel.set_memory(holding.memory_bytes, CHANGE_MAX).await?;
            Ok(Some(format!("{} -> {} MiB", present.present_bytes >> 20, holding.memory_bytes >> 20)))
        }
        _ => Ok(None),
    }
}

async fn mend_cpus(kernel: &Kernel, holding: &Holding) -> Mended {
    let Ok(Some(cpus)) = kernel.cpus().await else { return Ok(None) };
    let has: BTreeSet<u32> = cpus.iter().filter(|cpu| cpu.lent).filter_map(|cpu| cpu.unit).collect();
    let wanted: BTreeSet<u32> = holding.cpus.iter().copied().collect();
    for unit in has.difference(&wanted) {
        kernel.take_cpu(*unit).await?;
    }
    for unit in wanted.difference(&has) {
        kernel.lend_cpu(*unit).await?;
    }
    Ok((has != wanted).then(|| format!("CPUs {has:?} -> {wanted:?}")))
}

async fn mend_devices(kernel: &Kernel, holding: &Holding, catalogue: &[Device]) -> Mended {
    let Ok(Some(has)) = kernel.devices().await else { return Ok(None) };
    let mut changed = Vec::new();
    for device in catalogue {
        let plugged = has.iter().find(|state| state.address == device.address);
        if plugged.is_some_and(|state| state.is_leaving) {
            continue;
        }
        match (plugged.is_some(), holding.devices.contains(&device.address)) {
            (false, true) => kernel.plug(device).await?,
            (true, false) => kernel.unplug(device, CHANGE_MAX).await?,
            _ => continue,
        }
        changed.push(device.address.to_string());
    }
    Ok((!changed.is_empty()).then(|| format!("devices {}", changed.join(", "))))
}
