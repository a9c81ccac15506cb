//! CPUs and devices: units that can be told apart, each with at most one kernel.

use std::collections::HashMap;
use std::time::Duration;

use tombolo_agent::api::handover::{Action, Here};
use tombolo_handover::observe::{Command, Inside, Sighting};
use tombolo_handover::operation::{Act, End, Veto};
use tombolo_handover::{Kernel, Kind, Party, PciAddress, UnitId};

use super::{Witnesses, refusal, veto};
use crate::daemon::handover::tie::{Tie, attached};
use crate::spawner::{Device, SpawnError};

/// How long a kernel may take to let a device go.
const UNPLUG_MAX: Duration = Duration::from_secs(10);

impl Witnesses {
    /// Does something about a unit, or nothing, and looks where it is. `None` if the question has been overtaken.
    pub(super) async fn act_on_unit(&self, act: &Act) -> Option<(Option<Veto>, Sighting)> {
        let unit = act.unit.id;
        let is_current = self.with_operation(act.operation, |units| {
            units.iter().any(|progress| progress.unit == unit && progress.epoch == act.epoch)
        })?;
        if !is_current {
            return None;
        }
        let refused = match act.command {
            None => None,
            Some(Command::Drain) => self.order_at(act, End::Donor, Action::Drain).await,
            Some(Command::Undrain) => self.order_at(act, End::Donor, Action::Undrain).await,
            Some(Command::Online) => self.order_at(act, End::Receiver, Action::Online).await,
            Some(Command::Revoke(from)) => self.change(from, unit, false).await,
            Some(Command::Grant(to)) => self.change(to, unit, true).await,
        };
        Some((refused, self.look_at_unit(act).await))
    }

    async fn order_at(&self, act: &Act, end: End, action: Action) -> Option<Veto> {
        let party = if end == End::Donor { act.donor } else { act.receiver };
        let here = self.tie(party, act.unit.id).await.here();
        self.order(act, end, here, Some(action)).await?.refused
    }

    async fn look_at_unit(&self, act: &Act) -> Sighting {
        let unit = act.unit.id;
        let (donor, receiver) = tokio::join!(self.tie(act.donor, unit), self.tie(act.receiver, unit));
        let inside = async |end: End, tie: Tie| match tie {
            Tie::Attached(here) => {
                self.order(act, end, Some(here), None).await.map_or(Inside::Unknown, |seen| seen.inside)
            }
            Tie::UsesIt => Inside::Online,
            Tie::None => Inside::Absent,
            Tie::Unknown => Inside::Unknown,
        };
        let (of_donor, of_receiver) =
            tokio::join!(inside(End::Donor, donor), inside(End::Receiver, receiver));
        Sighting {
            attached: attached((act.donor, donor), (act.receiver, receiver)),
            donor: of_donor,
            receiver: of_receiver,
            pending: false,
        }
    }

    /// What a party has to do with a unit now, in its present boot.
    async fn tie(&self, party: Party, unit: UnitId) -> Tie {
        let Some(coordinator) = self.coordinator() else { return Tie::Unknown };
        let Some(kernel) = coordinator.ledger().present(party).kernel() else { return Tie::None };
        if !coordinator.ledger().is_running(kernel) {
            return Tie::None;
        }
        let Some(handle) = self.running(kernel).await else { return Tie::Unknown };
        match unit {
            UnitId::Cpu(number) => match handle.cpus().await {
                Ok(Some(cpus)) => cpus
                    .iter()
                    .find(|cpu| cpu.unit == Some(number) && (cpu.lent || cpu.runs))
                    .map_or(Tie::None, |cpu| match cpu.lent {
                        true => Tie::Attached(Here::Cpu { index: cpu.index }),
                        false => Tie::UsesIt,
                    }),
                Ok(None) => Tie::None,
                Err(_) => Tie::Unknown,
            },
            UnitId::Device(address) => match handle.devices().await {
                Ok(Some(devices)) if devices.contains(&address) => Tie::Attached(Here::Device { address }),
                Ok(_) => Tie::None,
                Err(_) => Tie::Unknown,
            },
            UnitId::Lot(_) | UnitId::Range(_) | UnitId::LlcWay { .. } => Tie::Unknown,
        }
    }

    /// What these units are called inside a kernel; those that it does not have are left out.
    pub(super) async fn names_inside(&self, kernel: Kernel, units: &[UnitId]) -> HashMap<UnitId, Here> {
        let mut names = HashMap::new();
        for &unit in units.iter().filter(|unit| matches!(unit.kind(), Kind::Cpu | Kind::Device)) {
            if let Some(here) = self.tie(Party::Instance(kernel), unit).await.here() {
                names.insert(unit, here);
            }
        }
        names
    }

    /// Has the spawner give a unit to a kernel, or take it from one.
    async fn change(&self, party: Party, unit: UnitId, give: bool) -> Option<Veto> {
        let kernel = party.kernel()?;
        let Some(handle) = self.running(kernel).await else {
            return Some(veto("that boot of it does not run", None));
        };
        let changed = match (unit, give) {
            (UnitId::Cpu(number), true) => handle.lend_cpu(number).await,
            (UnitId::Cpu(number), false) => handle.take_cpu(number).await,
            (UnitId::Device(address), _) => match self.device(address) {
                Ok(device) if give => handle.plug(device).await,
                Ok(device) => handle.unplug(device, UNPLUG_MAX).await,
                Err(veto) => return Some(veto),
            },
            (UnitId::Lot(_) | UnitId::Range(_) | UnitId::LlcWay { .. }, _) => Ok(()),
        };
        if let Err(error @ SpawnError::Ended { .. }) = &changed {
            return Some(veto(&error.to_string(), None));
        }
        refusal(changed, &handle)
    }

    fn device(&self, address: PciAddress) -> Result<&Device, Veto> {
        let found = self.catalogue.iter().find(|device| device.address == address);
        found.ok_or_else(|| {
            veto(
                &format!(
                    "this daemon was started without `--device {address}=...`, so it knows nothing of it"
                ),
                None,
            )
        })
    }
}
