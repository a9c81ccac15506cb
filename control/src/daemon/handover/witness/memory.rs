//! Lots of memory: amounts of which kernels can say how much they have, not which.

use std::time::Duration;

use tombolo_agent::api::handover::{Action, Here};
use tombolo_handover::observe::{Command, Inside, Sighting};
use tombolo_handover::operation::{Act, End, Progress, Veto};
use tombolo_handover::{Kernel, Party};

use super::{Witnesses, refusal, veto};
use crate::daemon::handover::books::GRANULE_BYTES;
use crate::daemon::handover::place::{Has, Lots, inside_host};
use crate::spawner;

/// How long a spawner may take to attach or detach memory.
const MOVE_MAX: Duration = Duration::from_secs(20);

impl Witnesses {
    /// Does something about a lot, or nothing, and looks where it is. `None` if the question has been overtaken.
    pub(super) async fn act_on_lot(&self, act: &Act) -> Option<(Option<Veto>, Sighting)> {
        let (lots, at, progress) = self.lots(act)?;
        let (mut refused, mut seen) = (None, None);
        let order = async |end, action| self.order(act, end, Some(here(act.unit.size())), Some(action)).await;
        match act.command {
            None => {}
            Some(Command::Drain) => seen = order(End::Donor, Action::Drain).await,
            Some(Command::Undrain) => seen = order(End::Donor, Action::Undrain).await,
            Some(Command::Online) => seen = order(End::Receiver, Action::Online).await,
            Some(Command::Revoke(from)) => refused = self.detach(from, &lots, at, &progress).await,
            Some(Command::Grant(to)) => refused = self.attach(to, &lots, at).await,
        }
        if let Some(seen) = seen {
            refused = seen.refused;
        }
        let sighting = self.look(act, &lots, at, &progress).await;
        Some((refused, sighting))
    }

    async fn look(&self, act: &Act, lots: &Lots, at: usize, progress: &Progress) -> Sighting {
        let ((donor_has, donor_pending), (receiver_has, receiver_pending)) =
            tokio::join!(self.has(act.donor), self.has(act.receiver));
        let attached = lots.attached(at, progress, donor_has, receiver_has);
        // Lots of one kernel are interchangeable: it uses one of them only if one is attached to it.
        let inside = async |end: End, party: Party| match party {
            Party::Pool => Inside::Absent,
            _ if attached.is_some_and(|holder| !holder.is_same_holder(party)) => Inside::Absent,
            Party::Host => inside_host(progress, end == End::Donor),
            Party::Instance(_) => self
                .order(act, end, Some(here(act.unit.size())), None)
                .await
                .map_or(Inside::Unknown, |seen| seen.inside),
        };
        Sighting {
            attached,
            donor: inside(End::Donor, act.donor).await,
            receiver: inside(End::Receiver, act.receiver).await,
            pending: donor_pending || receiver_pending,
        }
    }

    /// Takes the lot `at` from whoever has it.
    async fn detach(&self, from: Party, lots: &Lots, at: usize, progress: &Progress) -> Option<Veto> {
        let Party::Instance(kernel) = from else { return None };
        let (present, handle) = match self.kernel_memory(kernel).await {
            Ok(found) => found,
            Err(veto) => return veto,
        };
        let target = if from.is_same_holder(lots.donor) {
            lots.donor_after(at)
        } else {
            let donor_has = self.has(lots.donor).await.0;
            match (lots.attached(at, progress, donor_has, present), present) {
                (Some(holder), Has::Granules(has)) if holder.is_same_holder(from) => {
                    has.saturating_sub(progress.size)
                }
                _ => return None,
            }
        };
        match present {
            Has::Granules(has) if has <= target => None,
            _ => set_memory(&handle, target).await,
        }
    }

    /// Gives the lot `at` to the receiver.
    async fn attach(&self, to: Party, lots: &Lots, at: usize) -> Option<Veto> {
        let Party::Instance(kernel) = to else { return None };
        let (present, handle) = match self.kernel_memory(kernel).await {
            Ok(found) => found,
            Err(veto) => return veto,
        };
        let target = lots.receiver_after(at);
        match present {
            Has::Granules(has) if has >= target => None,
            _ => set_memory(&handle, target).await,
        }
    }

    /// A kernel and how much memory it has; else the refusal, if it is one.
    async fn kernel_memory(&self, kernel: Kernel) -> Result<(Has, spawner::Kernel), Option<Veto>> {
        let handle =
            self.running(kernel).await.ok_or_else(|| Some(veto("that boot of it does not run", None)))?;
        match handle.memory().await {
            Ok(Some(memory)) => Ok((Has::of(&memory), handle)),
            Ok(None) => Err(Some(veto("its spawner cannot change its memory while it runs", None))),
            // Silence is no refusal; the look that follows will say so.
            Err(_) => Err(None),
        }
    }

    /// How much memory a party has, and whether that may still change by itself.
    pub(super) async fn has(&self, party: Party) -> (Has, bool) {
        let Party::Instance(kernel) = party else { return (Has::TheRest, false) };
        let present = self.coordinator().map(|books| books.ledger().present(party));
        let kernel = present.and_then(Party::kernel).unwrap_or(kernel);
        if self.coordinator().is_some_and(|books| !books.ledger().is_running(kernel)) {
            return (Has::Nothing, false);
        }
        let Some(handle) = self.running(kernel).await else { return (Has::Unknown, false) };
        match handle.memory().await {
            Ok(Some(memory)) => (Has::of(&memory), memory.pending),
            Ok(None) => (Has::Fixed, false),
            Err(_) => (Has::Unknown, false),
        }
    }

    /// The lots of an operation that have no owner yet, which of them this is, and its record; `None` if the question has
    /// been overtaken.
    fn lots(&self, act: &Act) -> Option<(Lots, usize, Progress)> {
        let resting = act.resting?;
        self.with_operation(act.operation, |units| {
            let open: Vec<&Progress> = units.iter().filter(|unit| !unit.is_settled()).collect();
            let at = open.iter().position(|unit| unit.unit == act.unit.id && unit.epoch == act.epoch)?;
            let sizes = open.iter().map(|unit| unit.size).collect();
            let progress = open.get(at).map(|unit| (*unit).clone())?;
            Some((Lots { sizes, resting, donor: act.donor, receiver: act.receiver }, at, progress))
        })?
    }
}

/// What a lot of so many granules is inside a kernel.
pub(super) fn here(granules: u64) -> Here {
    Here::Memory { bytes: granules.saturating_mul(GRANULE_BYTES) }
}

async fn set_memory(kernel: &spawner::Kernel, granules: u64) -> Option<Veto> {
    let changed = kernel.set_memory(granules.saturating_mul(GRANULE_BYTES), MOVE_MAX).await;
    refusal(changed, kernel)
}
