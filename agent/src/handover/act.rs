//! Doing what is ordered, and undoing what lapses.
//!
//! Once begun, an action goes on to its end whoever waits for it: with its turn, into the book, and with somebody who watches its lease. An
//! order that nobody waits for any more before its turn has come is never begun.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, OwnedMutexGuard};
use tombolo_handover::observe::Inside;
use tombolo_handover::operation::{End, Veto};
use tombolo_handover::{OpId, UnitId};

use super::book::Begun;
use super::veto::never;
use super::{HandoverService, boot};
use crate::api::handover::{Action, Here, Order};

/// How long after it could not be used again that is tried again, at first, and at most; twice as long each time.
const USE_AGAIN_MIN: Duration = Duration::from_secs(1);
pub(super) const USE_AGAIN_MAX: Duration = Duration::from_secs(60);

/// Whose turn it is: what is done to one unit changes what others of its kind look at. Kinds do not wait for each other, so a driver that
/// hangs keeps no memory from moving.
#[derive(Debug, Default)]
pub(super) struct Turns {
    memory: Arc<Mutex<()>>,
    cpus: Arc<Mutex<()>>,
    devices: Arc<Mutex<()>>,
}

/// A turn, for as long as this is held.
pub(super) type Turn = OwnedMutexGuard<()>;

impl Turns {
    /// The next turn of its kind.
    pub(super) async fn of(&self, here: Here) -> Turn {
        Arc::clone(self.kind(here)).lock_owned().await
    }

    /// The next turn of each kind that there is among these.
    pub(super) async fn of_all(&self, heres: &[Here]) -> Vec<Turn> {
        let mut turns = Vec::new();
        // Always in the same order, so that two who wait never wait for each other.
        for kind in [&self.memory, &self.cpus, &self.devices] {
            if heres.iter().any(|here| Arc::ptr_eq(self.kind(*here), kind)) {
                turns.push(Arc::clone(kind).lock_owned().await);
            }
        }
        turns
    }

    fn kind(&self, here: Here) -> &Arc<Mutex<()>> {
        match here {
            Here::Memory { .. } => &self.memory,
            Here::Cpu { .. } | Here::PhysicalCpu { .. } => &self.cpus,
            Here::Device { .. } => &self.devices,
        }
    }
}

impl HandoverService {
    /// Carries out an order when it is its turn; why not, if it is refused.
    pub(super) async fn carry_out(&self, order: &Order, action: Action, until: Duration) -> Option<Veto> {
        let (unit, operation) = (order.unit.id, order.operation);
        if let Err(veto) = self.book().admit(unit, order.epoch) {
            return Some(veto);
        }
        let Some(here) = order.here else { return Some(never(format!("{unit} is not in this kernel"))) };
        let turn = self.0.turns.of(here).await;
        let begun = Begun { operation, here, action, until };
        if let Err(veto) = self.book().begin(unit, order.epoch, begun) {
            return Some(veto);
        }
        let service = self.clone();
        let done = tokio::spawn(async move { service.act(&turn, unit, begun).await.err() });
        done.await.unwrap_or_else(|error| Some(never(format!("it broke off: {error}"))))
    }

    /// Does what the book says is begun, has it say how that ended, and somebody watch over what is kept drained.
    async fn act(&self, _turn: &Turn, unit: UnitId, begun: Begun) -> Result<(), Veto> {
        let Begun { operation, here, action, .. } = begun;
        // With what is kept free already for the same operation.
        let kept_bytes = self.book().drained_bytes(operation, unit);
        let service = self.clone();
        let acted = blocking(move || {
            service.save_now();
            let acted = service.0.kernel.act(here, action, kept_bytes);
            // What counts is what is seen.
            let inside = if acted.is_err() { service.0.kernel.look(here) } else { Inside::Unknown };
            Ok((acted, inside))
        });
        let (acted, inside) = acted.await.unwrap_or_else(|veto| (Err(veto), self.0.kernel.look(here)));
        let is_done = acted.is_ok()
            || matches!(
                (action, inside),
                (Action::Drain, Inside::Offline) | (Action::Undrain, Inside::Online)
            );
        self.book().finish(unit, is_done);
        if action == Action::Drain && is_done {
            self.watch_lease(operation, unit);
        }
        self.save().await;
        acted
    }

    /// Has somebody use again what was drained when nothing has been heard of its operation for so long.
    pub(super) fn watch_lease(&self, operation: OpId, unit: UnitId) {
        if self.book().watch(operation, unit) {
            let service = self.clone();
            tokio::spawn(async move { service.keep_lease(operation, unit).await });
        }
    }

    /// A CPU goes online, a device gets its driver back, memory just is not kept free any longer. What was confirmed is left alone, and
    /// so is what somebody else takes up. What cannot be used again is tried until it can.
    async fn keep_lease(&self, operation: OpId, unit: UnitId) {
        let mut pause = USE_AGAIN_MIN;
        loop {
            let Some((here, until)) = self.book().watched(operation, unit) else { return };
            tokio::time::sleep(until.saturating_sub(boot::elapsed())).await;
            let turn = self.0.turns.of(here).await;
            let Some(begun) = self.book().begin_lapse(operation, unit, boot::elapsed()) else { continue };
            if self.inside(operation, unit, Some(here), End::Donor).await == Inside::Absent {
                tracing::warn!(%operation, %unit, %here, "nothing was heard of the move any more, and it is not here");
                self.book().finish(unit, true);
                self.save().await;
                continue;
            }
            tracing::warn!(%operation, %unit, %here, "nothing was heard of the move any more: it is used again");
            let Err(veto) = self.act(&turn, unit, begun).await else { continue };
            drop(turn);
            tracing::error!(%operation, %unit, %here, reason = veto.reason, retry_after = ?pause, "it cannot be used again yet");
            tokio::time::sleep(pause).await;
            pause = USE_AGAIN_MAX.min(pause * 2);
        }
    }
}

/// Runs what makes system calls that take their time.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Veto> + Send + 'static,
) -> Result<T, Veto> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(never(format!("it broke off: {error}"))))
}
