//! Hand-overs: the one task that writes ledger and journal, and the tasks that ask kernels for it.
//!
//! ```text
//!  services, instances ──▶ desk ──▶ coordinator (decides) ──▶ store (one transaction) ──▶ effects
//!                           ▲                                                               │
//!                           └───── inputs ◀── witnesses: agents, spawner, timers ◀──────────┘
//! ```
//!
//! Readers never wait for the desk: they take the books as they were stored last.

mod books;
mod desk;
mod heal;
mod mend;
mod movable;
mod place;
mod queue;
mod search;
mod tie;
mod witness;

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use tombolo_handover::coordinator::{AdminError, Coordinator, Needs};
use tombolo_handover::{
    InstanceRow, Kernel, Kind, OpId, Operation, Party, PciAddress, Refusal, Request, UnitId,
};
use tombolo_transport::{Cid, Incarnation};

pub(crate) use self::books::{Books, CpuStock, GRANULE_BYTES, Stock, device_of_kernels};
use self::desk::Desk;
#[cfg(test)]
pub(crate) use self::desk::{granules_of, held_memory, needs_of, row_of};
use self::mend::Mend;
pub(crate) use self::movable::{Movable, UnitsAre};
pub(crate) use self::search::Unproven;
use self::witness::Witnesses;
#[cfg(test)]
pub(crate) use self::{
    books::cpu_of_kernels,
    place::{Has, Lots},
    search::{Amount, Seen as Whereabouts, find_lot, find_unit},
    tie::{Tie, attached},
};
use super::registry::Registry;
use super::shared::Shared;
use crate::core::{EventKind, InstanceName, InstanceSpec};
use crate::spawner;
use crate::store::{Store, StoreError};

/// Orders that may wait for the desk.
const ORDERS_MAX: usize = 256;

/// How everybody reaches the ledger. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    orders: mpsc::Sender<Order>,
    books: watch::Receiver<Books>,
    units_are: UnitsAre,
}

/// What becomes the desk once the instances are known.
#[derive(Debug)]
pub(crate) struct Opening {
    orders: mpsc::Receiver<Order>,
    books: watch::Sender<Books>,
    coordinator: Result<Coordinator, String>,
}

/// What the desk is told.
#[derive(Debug)]
enum Order {
    Submit {
        request: Box<Request>,
        reply: oneshot::Sender<Result<Operation, LedgerError>>,
    },
    Cancel {
        id: OpId,
        reply: oneshot::Sender<Result<Operation, LedgerError>>,
    },
    Repair {
        unit: UnitId,
        owner: Party,
        /// Only if the ledger is still at this version.
        if_version: Option<u64>,
        reply: oneshot::Sender<Result<(), LedgerError>>,
    },
    /// Who has a unit in quarantine is to be found out, and it is to be given to them.
    Search {
        unit: UnitId,
        reply: oneshot::Sender<Result<Party, LedgerError>>,
    },
    /// A kernel is about to be started with at least so much.
    Boot {
        row: Box<InstanceRow>,
        needs: Needs,
        reply: oneshot::Sender<Result<Holding, LedgerError>>,
    },
    /// A kernel is dead for certain.
    Down {
        kernel: Kernel,
    },
    /// What a dead instance holds is free.
    Release {
        cid: Cid,
    },
    /// An instance is no more.
    Dismiss {
        cid: Cid,
    },
    /// What others dispose of as well may have changed.
    Compare,
    /// A kernel is to have what the ledger says.
    Mend(Box<Mend>),
    Input(Box<tombolo_handover::Input>),
}

/// What the ledger gives to an instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Holding {
    /// In bytes.
    pub(crate) memory_bytes: u64,
    /// In order; its kernel boots on the first.
    pub(crate) cpus: Vec<u32>,
    /// In order.
    pub(crate) devices: Vec<PciAddress>,
}

/// Why the ledger was not changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LedgerError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Admin(#[from] AdminError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("it cannot be proven who has it: {0}")]
    Unproven(#[from] Unproven),
    #[error(
        "the ledger of memory and devices cannot be used ({0}); nothing can be started or moved until that is mended"
    )]
    Unusable(Arc<str>),
    #[error("the daemon is about to end")]
    Ending,
}

/// Reads the ledger, or makes it. Orders wait until [`Opening::serve`].
pub(crate) async fn open(store: &Store, stock: &Stock) -> (Ledger, Opening) {
    let coordinator = books::open(store, stock).await;
    let found = match &coordinator {
        Ok(coordinator) => Books::Kept(Arc::new(coordinator.clone())),
        Err(reason) => Books::Unusable(reason.as_str().into()),
    };
    let (orders, inbox) = mpsc::channel(ORDERS_MAX);
    let (publish, books) = watch::channel(found);
    let units_are = UnitsAre::of(stock);
    (Ledger { orders, books, units_are }, Opening { orders: inbox, books: publish, coordinator })
}

impl Opening {
    /// Serves until the daemon ends, which it does by itself once it has stored `die_after_steps` steps of operations.
    pub(crate) async fn serve(
        self,
        shared: Arc<Shared>,
        registry: Arc<Registry>,
        die_after_steps: Option<u64>,
    ) {
        let witnesses = Witnesses::new(registry.clone(), shared.ledger.clone(), shared.catalogue.clone());
        match self.coordinator {
            Ok(coordinator) => {
                tokio::spawn(heal::run(shared.clone()));
                let desk = Desk::new(shared, registry, witnesses, coordinator, self.books, die_after_steps);
                desk.serve(self.orders).await;
            }
            Err(reason) => {
                tracing::error!(reason, "the ledger cannot be used");
                shared.note(None, EventKind::LedgerUnusable { reason: reason.clone() }).await;
                refuse_everything(self.orders, &reason.into()).await;
            }
        }
    }
}

async fn refuse_everything(mut orders: mpsc::Receiver<Order>, reason: &Arc<str>) {
    let unusable = || LedgerError::Unusable(reason.clone());
    while let Some(order) = orders.recv().await {
        match order {
            Order::Submit { reply, .. } | Order::Cancel { reply, .. } => drop(reply.send(Err(unusable()))),
            Order::Repair { reply, .. } => drop(reply.send(Err(unusable()))),
            Order::Search { reply, .. } => drop(reply.send(Err(unusable()))),
            Order::Boot { reply, .. } => drop(reply.send(Err(unusable()))),
            Order::Down { .. }
            | Order::Release { .. }
            | Order::Dismiss { .. }
            | Order::Compare
            | Order::Mend(_)
            | Order::Input(_) => {}
        }
    }
}

impl Ledger {
    /// Ledger and operations as they were stored last.
    pub(crate) fn books(&self) -> Books {
        self.books.borrow().clone()
    }

    /// The same as it changes.
    pub(crate) fn watch(&self) -> watch::Receiver<Books> {
        self.books.clone()
    }

    /// The coordinator as it was stored last.
    pub(crate) fn coordinator(&self) -> Result<Arc<Coordinator>, LedgerError> {
        match self.books() {
            Books::Kept(coordinator) => Ok(coordinator),
            Books::Unusable(reason) => Err(LedgerError::Unusable(reason)),
        }
    }

    /// How much memory rests with an instance, in MiB; `None` if the ledger does not know it.
    pub(crate) fn memory_mib(&self, cid: Cid) -> Option<u64> {
        let coordinator = self.coordinator().ok()?;
        let ledger = coordinator.ledger();
        let row = ledger.instance(instance_of(cid)).filter(|row| row.running)?;
        Some(mib_of(ledger.held(Party::Instance(row.kernel()), Kind::Memory)))
    }

    pub(crate) async fn submit(&self, request: Request) -> Result<Operation, LedgerError> {
        self.order(|reply| Order::Submit { request: Box::new(request), reply }).await
    }

    pub(crate) async fn cancel(&self, id: OpId) -> Result<Operation, LedgerError> {
        self.order(|reply| Order::Cancel { id, reply }).await
    }

    /// Gives a unit in quarantine to `owner`, on the word of whoever asks.
    pub(crate) async fn repair(&self, unit: UnitId, owner: Party) -> Result<(), LedgerError> {
        self.order(|reply| Order::Repair { unit, owner, if_version: None, reply }).await
    }

    async fn repair_at(&self, version: u64, unit: UnitId, owner: Party) -> Result<(), LedgerError> {
        self.order(|reply| Order::Repair { unit, owner, if_version: Some(version), reply }).await
    }

    /// Gives a unit in quarantine to whoever is found to have it, if that can be proven; says who that is.
    pub(crate) async fn search(&self, unit: UnitId) -> Result<Party, LedgerError> {
        self.order(|reply| Order::Search { unit, reply }).await
    }

    /// Whose the CPUs are that are moved.
    pub(crate) fn units_are(&self) -> UnitsAre {
        self.units_are
    }

    /// The CPUs set aside for kernels beside this one of which nobody knows who has them.
    pub(crate) fn cpus_in_doubt(&self) -> Vec<u32> {
        let Ok(coordinator) = self.coordinator() else { return Vec::new() };
        if !self.units_are.are_of_kernels() {
            return Vec::new();
        }
        let in_doubt =
            coordinator.ledger().entries().filter_map(|entry| match (entry.unit.id, entry.owner.party()) {
                (UnitId::Cpu(number), None) => Some(number),
                _ => None,
            });
        in_doubt.collect()
    }

    /// Says that others may have changed what they dispose of as well.
    pub(crate) async fn compare(&self) {
        let _ = self.orders.send(Order::Compare).await;
    }

    /// Says, before a kernel is started or when it is found running, which boot of which instance it is. Returns what it is to have.
    ///
    /// What of it cannot be moved is not in the ledger: of that it is given nothing.
    pub(crate) async fn boot(
        &self,
        cid: Cid,
        name: &str,
        incarnation: Incarnation,
        spec: &InstanceSpec,
        movable: Movable,
    ) -> Result<Holding, LedgerError> {
        let row = desk::row_of(cid, name, incarnation, spec, movable);
        let needs = desk::needs_of(spec, movable);
        self.order(|reply| Order::Boot { row: Box::new(row), needs, reply }).await
    }

    /// Says that a kernel is dead for certain. What it held is kept for its next boot.
    pub(crate) async fn down(&self, cid: Cid, incarnation: Incarnation) {
        let kernel = Kernel { instance: instance_of(cid), incarnation };
        let _ = self.orders.send(Order::Down { kernel }).await;
    }

    /// Frees what an instance holds that does not run and is not started again by itself.
    pub(crate) async fn release(&self, cid: Cid) {
        let _ = self.orders.send(Order::Release { cid }).await;
    }

    /// Has a kernel that runs made to have what the ledger says, as soon as nothing moves from or to it.
    pub(crate) async fn mend(&self, name: InstanceName, kernel: Kernel, handle: spawner::Kernel) {
        self.order_mend(Mend { name, kernel, handle, turns: 0 }).await;
    }

    /// Forgets an instance that was removed.
    pub(crate) async fn dismiss(&self, cid: Cid) {
        let _ = self.orders.send(Order::Dismiss { cid }).await;
    }

    async fn order<T>(
        &self,
        order: impl FnOnce(oneshot::Sender<Result<T, LedgerError>>) -> Order,
    ) -> Result<T, LedgerError> {
        let (reply, answer) = oneshot::channel();
        self.orders.send(order(reply)).await.map_err(|_| LedgerError::Ending)?;
        answer.await.unwrap_or(Err(LedgerError::Ending))
    }
}

pub(super) fn instance_of(cid: Cid) -> tombolo_handover::InstanceId {
    tombolo_handover::InstanceId(cid.0)
}

/// So many bytes, or a little more: whole granules.
pub(crate) fn round_up(bytes: u64) -> u64 {
    bytes.div_ceil(GRANULE_BYTES) * GRANULE_BYTES
}

/// How much so many granules are, in MiB.
pub(crate) fn mib_of(granules: u64) -> u64 {
    granules.saturating_mul(GRANULE_BYTES) >> 20
}

/// As many granules as hold so many MiB.
fn granules(mib: u64) -> u64 {
    (mib << 20).div_ceil(GRANULE_BYTES)
}
