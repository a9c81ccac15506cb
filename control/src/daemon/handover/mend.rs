//! What a kernel has: the ledger says, the kernel follows.
//!
//! A kernel that was started, or was found running by a new daemon, may have other than the ledger says. While it is changed nothing
//! may move from or to it, or a device that has just been given away could be plugged into it a second time: the desk
//! hands out one [`Claim`] per instance, and lets whatever concerns that instance wait until it is dropped.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tombolo_handover::{Coordinator, InstanceId, Kernel, Kind, Owner, PciAddress, UnitId};

use super::witness::Witnesses;
use super::{Holding, Order};
use crate::core::{EventKind, InstanceName};
use crate::daemon::chain;
use crate::daemon::shared::Shared;
use crate::spawner::{self, Device, MemoryWanted, SpawnError, SpawnerKind};

/// How long a kernel may take for each change.
const CHANGE_MAX: Duration = Duration::from_secs(10);
/// How often it is tried before others may have their turn, and the time in between: another kernel is being changed as well.
const TRIES_AT_ONCE: u32 = 8;
const TRY_AGAIN: Duration = Duration::from_millis(300);
/// From one turn to the next, and how many there are: a machine that starts cannot be asked for a while.
const NEXT_TURN: Duration = Duration::from_secs(2);
const TURNS_MAX: u32 = 30;

/// A kernel that is to have what the ledger says.
#[derive(Debug)]
pub(super) struct Mend {
    pub(super) name: InstanceName,
    pub(super) kernel: Kernel,
    pub(super) handle: spawner::Kernel,
    /// How many turns it had before.
    pub(super) turns: u32,
}

/// What it is to have, and of what that cannot be said.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) holding: Holding,
    /// Of these nobody knows who has them: they are left where they are.
    quarantined: BTreeSet<UnitId>,
    /// All that there are, whoever has them.
    devices: Vec<PciAddress>,
}

/// The instances whose kernels are being changed.
#[derive(Clone, Debug, Default)]
pub(super) struct Claims(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    claimed: Mutex<BTreeSet<InstanceId>>,
    dropped: Notify,
}

/// The right to change what an instance's kernel has, until it is dropped.
#[derive(Debug)]
pub(super) struct Claim {
    instance: InstanceId,
    claims: Claims,
}

impl Claims {
    /// Claims an instance; `None` while another has.
    pub(super) fn claim(&self, instance: InstanceId) -> Option<Claim> {
        let is_new = self.claimed().insert(instance);
        is_new.then(|| Claim { instance, claims: self.clone() })
    }

    pub(super) fn is_claimed(&self, instance: InstanceId) -> bool {
        self.claimed().contains(&instance)
    }

    /// Returns once a claim has been dropped since the last time. Cancel safe.
    pub(super) async fn dropped(&self) {
        self.0.dropped.notified().await;
    }

    fn claimed(&self) -> MutexGuard<'_, BTreeSet<InstanceId>> {
        self.0.claimed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.claims.claimed().remove(&self.instance);
        self.claims.0.dropped.notify_one();
    }
}

impl Target {
    /// What the books say that an instance is to have.
    pub(super) fn new(coordinator: &Coordinator, holding: Holding) -> Self {
        let quarantined = coordinator
            .ledger()
            .entries()
            .filter_map(|entry| matches!(entry.owner, Owner::Quarantined(_)).then_some(entry.unit.id));
        let devices = coordinator.ledger().entries().filter_map(|entry| match entry.unit.id {
            UnitId::Device(address) => Some(address),
            _ => None,
        });
        Self { holding, quarantined: quarantined.collect(), devices: devices.collect() }
    }

    /// The devices that it may have or not, as the ledger says: machines know of those in the catalogue alone.
    fn devices(&self, kind: SpawnerKind, catalogue: &[Device]) -> Vec<PciAddress> {
        let of_machines = || catalogue.iter().map(|device| device.address).collect();
        let all = if kind == SpawnerKind::Multikernel { self.devices.clone() } else { of_machines() };
        all.into_iter().filter(|address| self.knows_of(UnitId::Device(*address))).collect()
    }

    /// Amounts cannot be told apart: any of it may be what is in quarantine.
    fn knows_of_memory(&self) -> bool {
        !self.quarantined.iter().any(|unit| unit.kind() == Kind::Memory)
    }

    fn knows_of(&self, unit: UnitId) -> bool {
        !self.quarantined.contains(&unit)
    }
}

/// Why a kernel does not have what it is to have.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    /// It may only just have been started.
    #[error("what it has cannot be told")]
    NotTold(#[source] SpawnError),
    #[error("it cannot be changed")]
    NotChanged(#[source] SpawnError),
    #[error("{device} is plugged into `{other}`, too")]
    HeldElsewhere { device: PciAddress, other: InstanceName },
    #[error("`{other}` may have {device}, and cannot be asked yet")]
    NotKnownElsewhere { device: PciAddress, other: InstanceName },
}

impl Mend {
    /// Makes the kernel have what it is to have; has that ordered again if it does not work now.
    pub(super) async fn run(self, target: Target, claim: Claim, witnesses: Witnesses, shared: Arc<Shared>) {
        let outcome = tokio::select! {
            outcome = self.again_and_again(&target, &witnesses) => outcome,
            // Its next boot will be in the same place: nothing may be done there in the name of this one.
            () = witnesses.down(self.kernel) => Ok(()),
        };
        drop(claim);
        let Err(trouble) = outcome else { return };
        let (name, reason) = (&self.name, chain(&trouble));
        if self.turns + 1 >= TURNS_MAX {
            tracing::error!(instance = %name, reason, "it does not have what the ledger says, and stays as it is");
            return shared.note(Some(name), EventKind::StepFailed { step: "mend".to_owned(), reason }).await;
        }
        match trouble {
            Trouble::NotTold(_) => tracing::debug!(instance = %name, reason, "it is asked again"),
            _ => {
                tracing::warn!(instance = %name, reason, "it does not have what the ledger says: it is tried again");
            }
        }
        tokio::time::sleep(NEXT_TURN).await;
        shared.ledger.order_mend(Self { turns: self.turns + 1, ..self }).await;
    }

    /// While it is seen to have other than it is to have, nothing else may happen to it.
    async fn again_and_again(&self, target: &Target, witnesses: &Witnesses) -> Result<(), Trouble> {
        let mut tries = 1;
        loop {
            match self.all(target, witnesses).await {
                Err(
                    Trouble::NotChanged(_)
                    | Trouble::HeldElsewhere { .. }
                    | Trouble::NotKnownElsewhere { .. },
                ) if tries < TRIES_AT_ONCE => {
                    tries += 1;
                    tokio::time::sleep(TRY_AGAIN).await;
                }
                outcome => return outcome,
            }
        }
    }

    async fn all(&self, target: &Target, witnesses: &Witnesses) -> Result<(), Trouble> {
        let changes =
            [self.memory(target).await, self.cpus(target).await, self.devices(target, witnesses).await];
        let mut outcome = Ok(());
        for change in changes {
            match change {
                Ok(None) => {}
                Ok(Some(what)) => {
                    tracing::warn!(instance = %self.name, what, "it had other than the ledger says: changed");
                }
                Err(trouble) => outcome = Err(trouble),
            }
        }
        outcome
    }

    /// Each of these returns what was changed, if it was.
    async fn memory(&self, target: &Target) -> Result<Option<String>, Trouble> {
        let Some(present) = self.handle.memory().await.map_err(Trouble::NotTold)? else { return Ok(None) };
        let (has, wanted) = (present.present_bytes, target.holding.memory_bytes);
        if !target.knows_of_memory() || !present.certain || present.pending || has == wanted {
            return Ok(None);
        }
        let changed = self.handle.set_memory(MemoryWanted::Exactly(wanted), CHANGE_MAX).await;
        changed.map_err(Trouble::NotChanged)?;
        Ok(Some(format!("{} -> {} MiB", has >> 20, wanted >> 20)))
    }

    async fn cpus(&self, target: &Target) -> Result<Option<String>, Trouble> {
        let Some(cpus) = self.handle.cpus().await.map_err(Trouble::NotTold)? else { return Ok(None) };
        let has: BTreeSet<u32> = cpus.iter().filter(|cpu| cpu.lent).filter_map(|cpu| cpu.unit).collect();
        let wanted: BTreeSet<u32> = target.holding.cpus.iter().copied().collect();
        let is_known = |unit: &&u32| target.knows_of(UnitId::Cpu(**unit));
        let (surplus, missing): (Vec<&u32>, Vec<&u32>) = (
            has.difference(&wanted).filter(is_known).collect(),
            wanted.difference(&has).filter(is_known).collect(),
        );
        for unit in &surplus {
            self.handle.take_cpu(**unit).await.map_err(Trouble::NotChanged)?;
        }
        for unit in &missing {
            self.handle.lend_cpu(**unit).await.map_err(Trouble::NotChanged)?;
        }
        let is_changed = !surplus.is_empty() || !missing.is_empty();
        Ok(is_changed.then(|| format!("CPUs {has:?} -> {wanted:?}")))
    }

    async fn devices(&self, target: &Target, witnesses: &Witnesses) -> Result<Option<String>, Trouble> {
        let Some(has) = self.handle.devices().await.map_err(Trouble::NotTold)? else { return Ok(None) };
        let mut changed = Vec::new();
        for address in target.devices(self.handle.kind(), witnesses.catalogue()) {
            let plugged = has.iter().find(|state| state.address == address);
            if plugged.is_some_and(|state| state.may_change) {
                continue;
            }
            match (plugged.is_some(), target.holding.devices.contains(&address)) {
                (false, true) => self.plug(address, witnesses).await?,
                (true, false) => {
                    let unplugged = self.handle.unplug(address, witnesses.catalogue(), CHANGE_MAX).await;
                    unplugged.map_err(Trouble::NotChanged)?;
                }
                _ => continue,
            }
            changed.push(address.to_string());
        }
        Ok((!changed.is_empty()).then(|| format!("devices {}", changed.join(", "))))
    }

    /// Plugs a device in, unless another machine has it yet: that one is being mended, too.
    async fn plug(&self, address: PciAddress, witnesses: &Witnesses) -> Result<(), Trouble> {
        for (other, handle) in witnesses.others(self.kernel.instance) {
            let has = match handle {
                Some(handle) => handle.devices().await.ok(),
                None => None,
            };
            match has {
                None => return Err(Trouble::NotKnownElsewhere { device: address, other }),
                Some(has) if has.iter().flatten().any(|state| state.address == address) => {
                    return Err(Trouble::HeldElsewhere { device: address, other });
                }
                Some(_) => {}
            }
        }
        self.handle.plug(address, witnesses.catalogue()).await.map_err(Trouble::NotChanged)
    }
}

impl super::Ledger {
    pub(super) async fn order_mend(&self, mend: Mend) {
        let _ = self.orders.send(Order::Mend(Box::new(mend))).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: InstanceId = InstanceId(3);
    const DB: InstanceId = InstanceId(4);

    #[test]
    fn an_instance_is_claimed_once_until_the_claim_is_dropped() {
        let claims = Claims::default();
        let claim = claims.claim(WEB).unwrap();
        assert!(claims.claim(WEB).is_none());
        assert!(claims.claim(DB).is_some(), "another instance is another matter");
        drop(claim);
        assert!(!claims.is_claimed(WEB));
        assert!(claims.claim(WEB).is_some());
    }

    #[tokio::test]
    async fn a_claim_that_was_dropped_before_anybody_waited_is_not_missed() {
        let claims = Claims::default();
        drop(claims.claim(WEB));
        claims.dropped().await;
    }
}
