//! Asking kernels: carrying out what the coordinator decided, and looking what came of it.
//!
//! Nothing here decides anything. A kernel that does not answer is reported as silent, never as done.

use std::sync::Arc;
use std::time::Duration;

use tombolo_agent::api::handover::{Action, Asked, HandoverClient, Order, Piece, Seen};
use tombolo_handover::coordinator::Coordinator;
use tombolo_handover::observe::{Command, Inside, Sighting};
use tombolo_handover::operation::{Act, Ask, End, Input, Progress, Question, Reply, Veto};
use tombolo_handover::{Kernel, Kind, OpId, Party, UnitId};
use tombolo_rpc::{CallError, Failure, Link};
use tombolo_transport::Cid;

use super::Ledger;
use super::books::{Books, GRANULE_BYTES};
use super::place::{Has, Lots, inside_host};
use crate::daemon::instance::Face;
use crate::daemon::registry::Registry;
use crate::spawner::{self, SpawnError};

/// How long an agent may take to answer a question.
const ANSWER_MAX: Duration = Duration::from_secs(8);
/// The same for hooks that get applications ready.
const PRE_HOOKS_MAX: Duration = Duration::from_secs(55);
/// How long an agent may take to drain a unit or to prove one.
const ORDER_MAX: Duration = Duration::from_secs(25);
/// How long it may take to look at one.
const LOOK_MAX: Duration = Duration::from_secs(5);
/// How long a spawner may take to attach or detach a unit.
const MOVE_MAX: Duration = Duration::from_secs(20);
/// How long to wait for a kernel or an agent that is not known now: an agent that has lost its link dials within a second.
const FACE_MAX: Duration = Duration::from_secs(3);
/// When a spawner that refused may be told again, in ms.
const RETRY_AFTER_MS: u64 = 500;

/// Reaches kernels and their agents.
#[derive(Clone, Debug)]
pub(super) struct Witnesses {
    registry: Arc<Registry>,
    ledger: Ledger,
}

impl Witnesses {
    pub(super) fn new(registry: Arc<Registry>, ledger: Ledger) -> Self {
        Self { registry, ledger }
    }

    /// Puts a question to a party; `None` if it does not answer.
    pub(super) async fn ask(&self, ask: Ask) -> Option<Input> {
        let reply = match ask.to {
            // What the host uses is its own affair; the one who asks has said that it is to change.
            Party::Host | Party::Pool => Reply::Yes,
            Party::Instance(kernel) => self.ask_agent(kernel, &ask).await?,
        };
        let Ask { operation, round, question, end, .. } = ask;
        Some(Input::Answered { operation, round, question, end, reply })
    }

    async fn ask_agent(&self, kernel: Kernel, ask: &Ask) -> Option<Reply> {
        let sizes = self.with_operation(ask.operation, |units| {
            units.iter().map(|unit| bytes_of(unit.unit, unit.size)).collect::<Vec<_>>()
        })?;
        let pieces = ask.units.iter().zip(sizes).map(|(&(unit, epoch), bytes)| Piece { unit, bytes, epoch });
        let Ask { operation, question, end, lease_ms, .. } = *ask;
        let asked = Asked { operation, question, end, pieces: pieces.collect(), lease_ms };
        let patience = if question == Question::PreHooks { PRE_HOOKS_MAX } else { ANSWER_MAX };
        let link = self.link(kernel).await?;
        match HandoverClient::new(link).ask(asked).deadline(patience).await {
            Ok(None) => Some(Reply::Yes),
            Ok(Some(veto)) => Some(Reply::No(veto)),
            Err(CallError::Failed(
                failure @ (Failure::UnknownService { .. }
                | Failure::UnknownMethod { .. }
                | Failure::SchemaMismatch { .. }),
            )) => Some(Reply::No(veto(&format!("its agent takes part in no such move: {failure}"), None))),
            Err(error) => {
                tracing::warn!(instance = kernel.instance.0, %operation, %question, %error, "an agent does not answer");
                None
            }
        }
    }

    /// Does something about a unit, or nothing, and looks where it is. `None` if nobody waits for that any more.
    pub(super) async fn act(&self, act: Act) -> Option<Input> {
        if act.after_ms > 0 {
            tokio::time::sleep(Duration::from_millis(act.after_ms)).await;
        }
        let Act { operation, epoch, .. } = act;
        let unit = act.unit.id;
        let (lots, at, progress) = self.lots(&act)?;
        let (mut refused, mut seen) = (None, None);
        match act.command {
            None => {}
            Some(Command::Drain) => seen = self.order(&act, End::Donor, Some(Action::Drain)).await,
            Some(Command::Undrain) => seen = self.order(&act, End::Donor, Some(Action::Undrain)).await,
            Some(Command::Online) => seen = self.order(&act, End::Receiver, Some(Action::Online)).await,
            Some(Command::Revoke(from)) => refused = self.detach(from, &lots, at, &progress).await,
            Some(Command::Grant(to)) => refused = self.attach(to, &lots, at).await,
        }
        if let Some(seen) = &seen {
            refused = seen.refused.clone();
        }
        let sighting = self.look(&act, &lots, at, &progress).await;
        Some(Input::Acted { operation, unit, epoch, refused, sighting })
    }

    async fn look(&self, act: &Act, lots: &Lots, at: usize, progress: &Progress) -> Sighting {
        let ((donor_has, donor_pending), (receiver_has, receiver_pending)) =
            (self.has(act.donor).await, self.has(act.receiver).await);
        let attached = lots.attached(at, progress, donor_has, receiver_has);
        // Lots of one kernel are interchangeable: it uses one of them only if one is attached to it.
        let inside = async |end: End, party: Party| match party {
            Party::Pool => Inside::Absent,
            _ if attached.is_some_and(|holder| !holder.is_same_holder(party)) => Inside::Absent,
            Party::Host => inside_host(progress, end == End::Donor),
            Party::Instance(_) => {
                self.order(act, end, None).await.map_or(Inside::Unknown, |seen| seen.inside)
            }
        };
        Sighting {
            attached,
            donor: inside(End::Donor, act.donor).await,
            receiver: inside(End::Receiver, act.receiver).await,
            pending: donor_pending || receiver_pending,
        }
    }

    /// Has the agent at one end carry out an order; `None` if it does not answer.
    async fn order(&self, act: &Act, end: End, action: Option<Action>) -> Option<Seen> {
        let party = if end == End::Donor { act.donor } else { act.receiver };
        let kernel = party.kernel()?;
        let bytes = bytes_of(act.unit.id, act.unit.size());
        let Act { operation, epoch, lease_ms, .. } = *act;
        let order = Order { operation, end, unit: act.unit.clone(), bytes, epoch, action, lease_ms };
        let link = self.link(kernel).await?;
        let patience = if action.is_some() { ORDER_MAX } else { LOOK_MAX };
        match HandoverClient::new(link).order(order).deadline(patience).await {
            Ok(seen) => Some(seen),
            Err(CallError::App(error)) => {
                let refused = Some(Veto { reason: error.to_string(), retry_after_ms: Some(RETRY_AFTER_MS) });
                Some(Seen { refused, inside: Inside::Unknown })
            }
            Err(error) => {
                tracing::warn!(instance = kernel.instance.0, %operation, %error, "an agent does not answer");
                None
            }
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
    async fn has(&self, party: Party) -> (Has, bool) {
        let Party::Instance(kernel) = party else { return (Has::TheRest, false) };
        let present = self.coordinator().map(|books| books.ledger().present(party));
        let kernel = present.and_then(Party::kernel).unwrap_or(kernel);
        if self.coordinator().is_some_and(|books| !books.ledger().is_running(kernel)) {
            return (Has::Nothing, false);
        }
        let Some(handle) = self.running(kernel).await else { return (Has::Unknown, false) };
        match handle.memory().await {
            Ok(Some(memory)) => (Has::of(&memory), memory.pending),
            Ok(None) | Err(_) => (Has::Unknown, false),
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

    /// The link to the agent of that very boot.
    async fn link(&self, kernel: Kernel) -> Option<Link> {
        self.wait_for(kernel, |face| face.link.clone()).await
    }

    /// That very boot, if it runs.
    async fn running(&self, kernel: Kernel) -> Option<spawner::Kernel> {
        self.wait_for(kernel, |face| face.kernel.clone()).await
    }

    /// What others see of that very boot, waited for a little: after a start of the daemon its kernels are found, and their
    /// agents dial in, one by one.
    async fn wait_for<T>(&self, kernel: Kernel, look: impl Fn(&Face) -> Option<T>) -> Option<T> {
        let mut face = self.registry.find_by_cid(Cid(kernel.instance.0))?.face;
        let incarnation = kernel.incarnation.to_string();
        let is_there = |face: &Face| {
            let is_it = face.view.incarnation.as_deref() == Some(incarnation.as_str());
            if is_it { look(face) } else { None }
        };
        let seen = async { is_there(&*face.wait_for(|face| is_there(face).is_some()).await.ok()?) };
        tokio::select! {
            seen = seen => seen,
            () = self.down(kernel) => None,
            () = tokio::time::sleep(FACE_MAX) => None,
        }
    }

    /// Returns when the ledger knows that a kernel is dead.
    async fn down(&self, kernel: Kernel) {
        let is_down = |books: &Books| match books {
            Books::Kept(coordinator) => !coordinator.ledger().is_running(kernel),
            Books::Unusable(_) => false,
        };
        if self.ledger.watch().wait_for(is_down).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    fn coordinator(&self) -> Option<Arc<Coordinator>> {
        self.ledger.coordinator().ok()
    }

    fn with_operation<T>(&self, id: OpId, read: impl FnOnce(&[Progress]) -> T) -> Option<T> {
        let coordinator = self.coordinator()?;
        Some(read(&coordinator.operation(id)?.units))
    }
}

/// How much memory a unit of this size is, in bytes; 0 for anything else.
fn bytes_of(unit: UnitId, size: u64) -> u64 {
    if unit.kind() == Kind::Memory { size.saturating_mul(GRANULE_BYTES) } else { 0 }
}

async fn set_memory(kernel: &spawner::Kernel, granules: u64) -> Option<Veto> {
    match kernel.set_memory(granules.saturating_mul(GRANULE_BYTES), MOVE_MAX).await {
        Ok(()) => None,
        Err(SpawnError::Refused { reason, .. }) => Some(veto(&reason, Some(RETRY_AFTER_MS))),
        Err(error) => {
            // It may have been done: the look that follows decides.
            tracing::warn!(
                pid = kernel.pid(),
                error = crate::daemon::chain(&error),
                "its memory was not changed in time"
            );
            None
        }
    }
}

fn veto(reason: &str, retry_after_ms: Option<u64>) -> Veto {
    Veto { reason: reason.to_owned(), retry_after_ms }
}
