//! Lots of memory: amounts of which kernels can say how much they have, not which.

use std::time::Duration;

use tokio::sync::{Mutex, OnceCell};
use tombolo_agent::api::handover::{Action, Here, Seen};
use tombolo_handover::observe::{Command, Inside, Sighting};
use tombolo_handover::operation::{Act, End, Progress, Resting, Veto};
use tombolo_handover::{Kernel, Kind, Party, UnitId};

use super::{Witnesses, refusal, veto};
use crate::daemon::handover::books::GRANULE_BYTES;
use crate::daemon::handover::place::{Has, Lots, inside_host};
use crate::keeper::MemoryState;
use crate::spawner::MemoryWanted;

/// How long a spawner may take to attach or detach memory.
const MOVE_MAX: Duration = Duration::from_secs(20);

impl Witnesses {
    /// Does something about a lot, or nothing, and looks where it is. `None` if the question has been overtaken.
    pub(super) async fn act_on_lot(
        &self,
        act: &Act,
        together: &Together,
    ) -> Option<(Option<Veto>, Sighting)> {
        let (lots, at, progress) = self.lots(act)?;
        // Nothing but what is changed now can change: the others are asked meanwhile.
        let beside = async |party: Party, amount: &OnceCell<(Has, bool)>| match act.command {
            Some(Command::Revoke(changed) | Command::Grant(changed)) if changed == party => None,
            _ => Some(*amount.get_or_init(|| self.has(party)).await),
        };
        let ((refused, known), donor_has, receiver_has) = tokio::join!(
            self.carry_out(act, &lots, at, &progress, together),
            beside(act.donor, &together.donor_has),
            beside(act.receiver, &together.receiver_has)
        );
        let has = async |party: Party, seen: Option<(Has, bool)>| match (seen, known.memory) {
            (Some(seen), _) => seen,
            (None, Some(state)) => (Has::of(&state), state.pending),
            (None, None) => self.has(party).await,
        };
        let donor_has = has(act.donor, donor_has).await;
        let receiver_has = has(act.receiver, receiver_has).await;
        let attached = lots.attached(at, &progress, donor_has.0, receiver_has.0);
        let look = Look { act, progress: &progress, attached, known: known.inside };
        let sighting = Sighting {
            attached,
            donor: self.look_inside(&look, End::Donor, act.donor).await,
            receiver: self.look_inside(&look, End::Receiver, act.receiver).await,
            pending: donor_has.1 || receiver_has.1,
        };
        Some((refused, sighting))
    }

    /// Does what an act says; why not, if it is refused, and what is known from that.
    async fn carry_out(
        &self,
        act: &Act,
        lots: &Lots,
        at: usize,
        progress: &Progress,
        together: &Together,
    ) -> (Option<Veto>, Known) {
        let here = Some(here(act.unit.size()));
        let order = async |end, action| match self.order(act, end, here, Some(action)).await {
            Some(Seen { refused, inside }) => {
                (refused, Known { inside: Some((end, inside)), ..Known::default() })
            }
            None => (None, Known::default()),
        };
        let changed = match act.command {
            None => return (None, Known::default()),
            Some(Command::Drain) => return order(End::Donor, Action::Drain).await,
            Some(Command::Undrain) => return order(End::Donor, Action::Undrain).await,
            Some(Command::Online) => return order(End::Receiver, Action::Online).await,
            Some(Command::Revoke(from)) => match from.kernel() {
                None => None,
                Some(kernel) if from.is_same_holder(lots.donor) => {
                    let left = |at| MemoryWanted::AtMost(bytes_of(lots.donor_after(at)));
                    self.change_together(kernel, lots, at, left, together).await
                }
                Some(kernel) => self.take_back(kernel, lots, at, progress).await,
            },
            Some(Command::Grant(to)) => match to.kernel() {
                None => None,
                Some(kernel) => {
                    let has = |at| MemoryWanted::AtLeast(bytes_of(lots.receiver_after(at)));
                    self.change_together(kernel, lots, at, has, together).await
                }
            },
        };
        match changed {
            Some(Ok(state)) => (None, Known { memory: Some(state), ..Known::default() }),
            Some(Err(veto)) => (Some(veto), Known::default()),
            None => (None, Known::default()),
        }
    }

    /// What goes on with a lot inside the kernel at one end. Lots of one kernel are interchangeable: it uses one of them only if one is attached to it.
    async fn look_inside(&self, look: &Look<'_>, end: End, party: Party) -> Inside {
        let Look { act, progress, attached, known } = *look;
        match party {
            Party::Pool => Inside::Absent,
            _ if attached.is_some_and(|holder| !holder.is_same_holder(party)) => Inside::Absent,
            Party::Host => inside_host(progress, end == End::Donor),
            Party::Instance(_) => match known {
                Some((seen_at, inside)) if seen_at == end => inside,
                _ => self
                    .order(act, end, Some(here(act.unit.size())), None)
                    .await
                    .map_or(Inside::Unknown, |seen| seen.inside),
            },
        }
    }

    /// Makes the memory of a kernel what it is to be with the lot `at`: at once for all that go together, or, where that is refused, for one after the
    /// other, so that those move that can.
    async fn change_together(
        &self,
        kernel: Kernel,
        lots: &Lots,
        at: usize,
        wanted: impl Fn(usize) -> MemoryWanted,
        together: &Together,
    ) -> Option<Changed> {
        let last = lots.units.iter().rposition(|unit| together.units.contains(unit)).unwrap_or(at);
        let all = together.change.get_or_init(|| self.change_memory(kernel, wanted(last))).await;
        if !matches!(all, Some(Err(_))) || together.units.len() <= 1 {
            return all.clone();
        }
        let _turn = together.turn.lock().await;
        self.change_memory(kernel, wanted(at)).await
    }

    /// Takes the lot `at` from a kernel to which it was given already.
    async fn take_back(&self, from: Kernel, lots: &Lots, at: usize, progress: &Progress) -> Option<Changed> {
        let holder = Party::Instance(from);
        let ((present, _), (donor_has, _)) = tokio::join!(self.has(holder), self.has(lots.donor));
        let attached = lots.attached(at, progress, donor_has, present);
        match (attached.is_some_and(|attached| attached.is_same_holder(holder)), present) {
            (true, Has::Granules(has)) => {
                let left = bytes_of(has.saturating_sub(progress.size));
                self.change_memory(from, MemoryWanted::AtMost(left)).await
            }
            _ => None,
        }
    }

    /// What a kernel has after that, or why it was refused; `None` if that is not known, and the look that follows says so.
    async fn change_memory(&self, kernel: Kernel, wanted: MemoryWanted) -> Option<Changed> {
        let Some(handle) = self.running(kernel).await else {
            return Some(Err(veto("that boot of it does not run", None)));
        };
        match handle.set_memory(wanted, MOVE_MAX).await {
            Ok(state) => Some(Ok(state)),
            Err(error) => refusal(Err(error), &handle).map(Err),
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
        // A lot that has come to rest since this was decided is no longer open, and rests with somebody: both are to be of one moment.
        let coordinator = self.coordinator()?;
        let held = |party| coordinator.ledger().held(party, Kind::Memory);
        let resting =
            act.resting.map(|_| Resting { donor: held(act.donor), receiver: held(act.receiver) })?;
        let units = &coordinator.operation(act.operation)?.units;
        let open: Vec<&Progress> = units.iter().filter(|unit| !unit.is_settled()).collect();
        let at = open.iter().position(|unit| unit.unit == act.unit.id && unit.epoch == act.epoch)?;
        let sizes = open.iter().map(|unit| unit.size).collect();
        let units = open.iter().map(|unit| unit.unit).collect();
        let progress = open.get(at).map(|unit| (*unit).clone())?;
        Some((Lots { units, sizes, resting, donor: act.donor, receiver: act.receiver }, at, progress))
    }
}

/// What a lot of so many granules is inside a kernel.
pub(super) fn here(granules: u64) -> Here {
    Here::Memory { bytes: bytes_of(granules) }
}

fn bytes_of(granules: u64) -> u64 {
    granules.saturating_mul(GRANULE_BYTES)
}

/// What a kernel has after a change of its memory, or why that was refused.
type Changed = Result<MemoryState, Veto>;

/// What acts share that are carried out together.
#[derive(Debug, Default)]
pub(in crate::daemon::handover) struct Together {
    units: Vec<UnitId>,
    /// What the two ends have: each asked once for all that change neither.
    donor_has: OnceCell<(Has, bool)>,
    receiver_has: OnceCell<(Has, bool)>,
    /// What came of the change for all.
    change: OnceCell<Option<Changed>>,
    turn: Mutex<()>,
}

impl Together {
    pub(in crate::daemon::handover) fn of(acts: &[Act]) -> Self {
        Self { units: acts.iter().map(|act| act.unit.id).collect(), ..Self::default() }
    }
}

/// What is known from what was just done, and need not be asked.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    /// How much memory the kernel has of which that was changed.
    memory: Option<MemoryState>,
    /// What goes on with the lot inside the kernel at one end.
    inside: Option<(End, Inside)>,
}

/// What a look inside kernels goes by.
#[derive(Clone, Copy)]
struct Look<'a> {
    act: &'a Act,
    progress: &'a Progress,
    attached: Option<Party>,
    known: Option<(End, Inside)>,
}
