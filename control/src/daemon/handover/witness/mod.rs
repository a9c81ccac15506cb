//! Asking kernels: carrying out what the coordinator decided, and looking what came of it.
//!
//! Nothing here decides anything. A kernel that does not answer is reported as silent, never as done. [`memory`] is about amounts, [`unit`]
//! about what can be told apart, [`search`] about what nobody is known to have.

mod memory;
mod search;
mod unit;

use std::sync::Arc;
use std::time::Duration;

use tombolo_agent::api::handover::{Action, Answer, Asked, HandoverClient, Here, Order, Piece, Seen};
use tombolo_handover::coordinator::Coordinator;
use tombolo_handover::observe::{Inside, Sighting};
use tombolo_handover::operation::{Act, Ask, End, Input, Progress, Question, Reply, Veto};
use tombolo_handover::{InstanceId, Kernel, Kind, OpId, Party, UnitId};
use tombolo_rpc::{CallError, Failure, Link};
use tombolo_transport::Cid;

pub(super) use self::memory::Together;
use super::books::Books;
use super::{Ledger, instance_of};
use crate::core::InstanceName;
use crate::daemon::instance::{Face, Handle};
use crate::daemon::registry::Registry;
use crate::spawner::{self, Device, SpawnError};

/// How long an agent may take to answer a question.
const ANSWER_MAX: Duration = Duration::from_secs(8);
/// The same for hooks that get applications ready.
const PRE_HOOKS_MAX: Duration = Duration::from_secs(55);
/// How long an agent may take to drain a unit or to prove one.
const ORDER_MAX: Duration = Duration::from_secs(25);
/// How long it may take to look at one.
const LOOK_MAX: Duration = Duration::from_secs(5);
/// How long to wait for a kernel or an agent that is not known now: an agent that has lost its link dials within a second.
const FACE_MAX: Duration = Duration::from_secs(3);
/// When a spawner that refused may be told again, in ms.
const RETRY_AFTER_MS: u64 = 500;

/// Reaches kernels and their agents.
#[derive(Clone, Debug)]
pub(super) struct Witnesses {
    registry: Arc<Registry>,
    ledger: Ledger,
    catalogue: Arc<[Device]>,
}

impl Witnesses {
    pub(super) fn new(registry: Arc<Registry>, ledger: Ledger, catalogue: Arc<[Device]>) -> Self {
        Self { registry, ledger, catalogue }
    }

    /// Puts a question to a party; `None` if it does not answer.
    pub(super) async fn ask(&self, ask: Ask) -> Option<Input> {
        let reply = match ask.to {
            // What the host uses is its own affair; the one who asks has said that it is to change.
            Party::Host | Party::Pool if ask.question == Question::Vote => Reply::YesWithoutHooks,
            Party::Host | Party::Pool => Reply::Yes,
            Party::Instance(kernel) => self.ask_agent(kernel, &ask).await?,
        };
        let Ask { operation, round, question, end, .. } = ask;
        Some(Input::Answered { operation, round, question, end, reply })
    }

    async fn ask_agent(&self, kernel: Kernel, ask: &Ask) -> Option<Reply> {
        let names: Vec<UnitId> = ask.units.iter().map(|(unit, _)| *unit).collect();
        let mut heres = self.names_inside(kernel, &names).await?;
        let sizes = self.with_operation(ask.operation, |units| {
            units.iter().map(|unit| (unit.unit, unit.size)).collect::<Vec<_>>()
        })?;
        for (unit, size) in sizes.into_iter().filter(|(unit, _)| unit.kind() == Kind::Memory) {
            heres.insert(unit, memory::here(size));
        }
        let piece = |&(unit, epoch): &(UnitId, u64)| Piece { unit, here: heres.get(&unit).copied(), epoch };
        let pieces = ask.units.iter().map(piece);
        let Ask { operation, question, end, lease_ms, .. } = *ask;
        let asked = Asked { operation, question, end, pieces: pieces.collect(), lease_ms };
        let patience = if question == Question::PreHooks { PRE_HOOKS_MAX } else { ANSWER_MAX };
        let link = self.link(kernel).await?;
        match HandoverClient::new(link).ask(asked).deadline(patience).await {
            Ok(Answer { veto: Some(veto), .. }) => Some(Reply::No(veto)),
            Ok(Answer { veto: None, has_hooks: false }) if question == Question::Vote => {
                Some(Reply::YesWithoutHooks)
            }
            Ok(Answer { veto: None, .. }) => Some(Reply::Yes),
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

    /// Does something about a unit, or nothing, and looks where it is. `None` if nobody waits for that any more. `together`: with what it is
    /// done.
    pub(super) async fn act(&self, act: Act, together: &Together) -> Option<Input> {
        if act.after_ms > 0 {
            tokio::time::sleep(Duration::from_millis(act.after_ms)).await;
        }
        let Act { operation, epoch, .. } = act;
        let unit = act.unit.id;
        let (refused, sighting) = match unit.kind() {
            Kind::Memory => self.act_on_lot(&act, together).await?,
            Kind::Cpu | Kind::Device => self.act_on_unit(&act).await?,
            Kind::LlcWay => {
                let unseen = Sighting {
                    attached: None,
                    donor: Inside::Unknown,
                    receiver: Inside::Unknown,
                    pending: false,
                };
                (Some(veto("no spawner moves cache ways", None)), unseen)
            }
        };
        Some(Input::Acted { operation, unit, epoch, refused, sighting })
    }

    /// Has the agent at one end carry out an order; `None` if it does not answer.
    async fn order(&self, act: &Act, end: End, here: Option<Here>, action: Option<Action>) -> Option<Seen> {
        let party = if end == End::Donor { act.donor } else { act.receiver };
        let kernel = party.kernel()?;
        let Act { operation, epoch, lease_ms, .. } = *act;
        let order = Order { operation, end, unit: act.unit.clone(), here, epoch, action, lease_ms };
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

    /// The devices that machines can be lent.
    pub(super) fn catalogue(&self) -> &[Device] {
        &self.catalogue
    }

    /// All other instances that may have a kernel, and that kernel, if it is known yet.
    pub(super) fn others(&self, than: InstanceId) -> Vec<(InstanceName, Option<spawner::Kernel>)> {
        let kernel_of = |handle: Handle| {
            let face = handle.face.borrow();
            let is_other = instance_of(Cid(face.view.cid)) != than && face.view.state.may_have_kernel();
            is_other.then(|| (handle.name.clone(), face.kernel.clone()))
        };
        self.registry.all().into_iter().filter_map(kernel_of).collect()
    }

    /// Returns when the ledger knows that a kernel is dead.
    pub(super) async fn down(&self, kernel: Kernel) {
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

/// Whether a spawner refused; whatever else went wrong, it may have been done: the look that follows decides.
fn refusal(outcome: Result<(), SpawnError>, kernel: &spawner::Kernel) -> Option<Veto> {
    match outcome {
        Ok(()) => None,
        Err(SpawnError::Refused { reason, .. }) => Some(veto(&reason, Some(RETRY_AFTER_MS))),
        Err(error) => {
            tracing::warn!(
                pid = kernel.pid(),
                error = crate::daemon::chain(&error),
                "it is not known what it came to"
            );
            None
        }
    }
}

fn veto(reason: &str, retry_after_ms: Option<u64>) -> Veto {
    Veto { reason: reason.to_owned(), retry_after_ms }
}
