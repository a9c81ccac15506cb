//! CPUs and devices: units that can be told apart, each with at most one kernel.

use std::collections::HashMap;
use std::time::Duration;

use tombolo_agent::api::handover::{Action, Here};
use tombolo_handover::observe::{Command, Inside, Sighting};
use tombolo_handover::operation::{Act, End, Progress, Veto};
use tombolo_handover::{Kernel, Kind, Party, PciAddress, UnitId};

use super::{RETRY_AFTER_MS, Witnesses, refusal, veto};
use crate::daemon::handover::tie::{Tie, attached};
use crate::spawner::{SpawnError, SpawnerKind, not_in_catalogue};

/// How long a kernel may take to let a device go.
const UNPLUG_MAX: Duration = Duration::from_secs(10);

impl Witnesses {
    /// Does something about a unit, or nothing, and looks where it is. `None` if the question has been overtaken.
    pub(super) async fn act_on_unit(&self, act: &Act) -> Option<(Option<Veto>, Sighting)> {
        if !self.is_awaited(act) {
            return None;
        }
        let refused = match act.command {
            None => None,
            Some(Command::Drain) => self.order_at(act, End::Donor, Action::Drain).await,
            Some(Command::Undrain) => self.order_at(act, End::Donor, Action::Undrain).await,
            Some(Command::Online) => self.order_at(act, End::Receiver, Action::Online).await,
            Some(Command::Revoke(from)) => self.change(from, act, false).await,
            Some(Command::Grant(to)) => self.change(to, act, true).await,
        };
        Some((refused, self.look_at_unit(act).await))
    }

    /// Whether the answer is still waited for: an order that has waited itself must not be carried out once its unit has an owner again.
    fn is_awaited(&self, act: &Act) -> bool {
        let awaits = |units: &[Progress]| {
            units
                .iter()
                .any(|progress| progress.unit == act.unit.id && progress.epoch == act.epoch && progress.asked)
        };
        self.with_operation(act.operation, awaits).unwrap_or(false)
    }

    async fn order_at(&self, act: &Act, end: End, action: Action) -> Option<Veto> {
        let party = if end == End::Donor { act.donor } else { act.receiver };
        match self.tie(party, act.unit.id).await {
            Tie::Unknown => Some(veto("its machine could not be asked now", Some(RETRY_AFTER_MS))),
            tie => self.order(act, end, tie.here(), Some(action)).await?.refused,
        }
    }

    async fn look_at_unit(&self, act: &Act) -> Sighting {
        let unit = act.unit.id;
        let (donor, receiver) = tokio::join!(self.tie(act.donor, unit), self.tie(act.receiver, unit));
        let inside = async |end: End, tie: Tie| match tie {
            Tie::Attached(here) | Tie::Leaving(here) => {
                self.order(act, end, Some(here), None).await.map_or(Inside::Unknown, |seen| seen.inside)
            }
            Tie::UsesIt => Inside::Online,
            Tie::None => self.look_for_unit(act, end).await,
            Tie::Coming | Tie::Unknown => Inside::Unknown,
        };
        let (of_donor, of_receiver) =
            tokio::join!(inside(End::Donor, donor), inside(End::Receiver, receiver));
        Sighting {
            attached: attached((act.donor, donor), (act.receiver, receiver)),
            donor: of_donor,
            receiver: of_receiver,
            pending: donor.is_changing() || receiver.is_changing(),
        }
    }

    /// Whether a kernel uses a unit that is not there by all that the spawner says. Nothing shows that from outside of a CPU or a device that a kernel beside this
    /// one was once asked to take, or to let go: its agent is asked by what the hardware calls it.
    async fn look_for_unit(&self, act: &Act, end: End) -> Inside {
        let party = if end == End::Donor { act.donor } else { act.receiver };
        let here = match act.unit.id {
            UnitId::Cpu(number) => Here::PhysicalCpu { id: number },
            UnitId::Device(address) => Here::Device { address },
            UnitId::Lot(_) | UnitId::Range(_) | UnitId::LlcWay { .. } => return Inside::Absent,
        };
        let Some(kernel) = party.kernel() else { return Inside::Absent };
        match self.running(kernel).await {
            Some(handle) if handle.kind() == SpawnerKind::Multikernel => {
                self.order(act, end, Some(here), None).await.map_or(Inside::Unknown, |seen| seen.inside)
            }
            _ => Inside::Absent,
        }
    }

    /// Has a kernel that was asked for a change, and may still carry it out, asked again, if it lives: its answer ends the doubt.
    pub(super) async fn settle(&self, party: Party, unit: UnitId) {
        if !self.tie(party, unit).await.is_changing() {
            return;
        }
        let Some(kernel) = party.kernel() else { return };
        let Some(handle) = self.running(kernel).await else { return };
        let settled = match unit {
            UnitId::Cpu(number) => handle.settle_cpu(number).await,
            UnitId::Device(address) => handle.settle_device(address).await,
            UnitId::Lot(_) | UnitId::Range(_) | UnitId::LlcWay { .. } => Ok(()),
        };
        if let Err(error) = settled {
            tracing::debug!(%unit, error = crate::daemon::chain(&error), "it stays in doubt");
        }
    }

    /// What a party has to do with a unit now, in its present boot.
    pub(super) async fn tie(&self, party: Party, unit: UnitId) -> Tie {
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
                    .find(|cpu| cpu.unit == Some(number) && (cpu.lent || cpu.runs || cpu.may_change))
                    .map_or(Tie::None, |cpu| {
                        let here = match handle.kind() {
                            SpawnerKind::Multikernel => Here::PhysicalCpu { id: cpu.index },
                            _ => Here::Cpu { index: cpu.index },
                        };
                        Tie::of_cpu(here, cpu.lent, cpu.may_change)
                    }),
                Ok(None) => Tie::None,
                Err(_) => Tie::Unknown,
            },
            UnitId::Device(address) => match handle.devices().await {
                Ok(devices) => {
                    let found = devices.into_iter().flatten().find(|device| device.address == address);
                    found.map_or(Tie::None, |device| {
                        Tie::of_device(Here::Device { address }, device.is_there, device.may_change)
                    })
                }
                Err(_) => Tie::Unknown,
            },
            UnitId::Lot(_) | UnitId::Range(_) | UnitId::LlcWay { .. } => Tie::Unknown,
        }
    }

    /// What these units are called inside a kernel; those that it does not have are left out. `None` if its machine cannot be asked.
    pub(super) async fn names_inside(
        &self,
        kernel: Kernel,
        units: &[UnitId],
    ) -> Option<HashMap<UnitId, Here>> {
        let mut names = HashMap::new();
        for &unit in units.iter().filter(|unit| matches!(unit.kind(), Kind::Cpu | Kind::Device)) {
            match self.tie(Party::Instance(kernel), unit).await {
                Tie::Unknown => return None,
                tie => names.extend(tie.here().map(|here| (unit, here))),
            }
        }
        Some(names)
    }

    /// Has the spawner give a unit to a kernel, or take it from one.
    async fn change(&self, party: Party, act: &Act, give: bool) -> Option<Veto> {
        let (kernel, unit) = (party.kernel()?, act.unit.id);
        let Some(handle) = self.running(kernel).await else {
            return Some(veto("that boot of it does not run", None));
        };
        let changed = match (unit, give) {
            _ if !self.is_awaited(act) => return None,
            (UnitId::Cpu(number), true) => handle.lend_cpu(number).await,
            (UnitId::Cpu(number), false) => handle.take_cpu(number).await,
            (UnitId::Device(address), _) if !self.knows(address, handle.kind()) => {
                return Some(veto(&not_in_catalogue(address), None));
            }
            (UnitId::Device(address), true) => handle.plug(address, self.catalogue()).await,
            (UnitId::Device(address), false) => handle.unplug(address, self.catalogue(), UNPLUG_MAX).await,
            (UnitId::Lot(_) | UnitId::Range(_) | UnitId::LlcWay { .. }, _) => Ok(()),
        };
        if let Err(error @ SpawnError::Ended { .. }) = &changed {
            return Some(veto(&error.to_string(), None));
        }
        refusal(changed, &handle)
    }

    /// Whether this daemon can say what a device is that a kernel of this spawner is given: a kernel beside this one gets the function itself.
    fn knows(&self, address: PciAddress, kind: SpawnerKind) -> bool {
        kind == SpawnerKind::Multikernel || self.catalogue.iter().any(|device| device.address == address)
    }
}
