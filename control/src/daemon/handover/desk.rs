//! The single writer: takes one order at a time, has the coordinator decide, stores the step, and sees to its effects.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tombolo_handover::coordinator::{
    AdminError, Commit, Coordinator, EventKind as Told, Needs, Seen, Step, Submitted,
};
use tombolo_handover::operation::{Act, DrainRule, Effect, Fate, Operation, Rules};
use tombolo_handover::{
    Bounds, Input, InstanceId, InstanceRow, Kind, Limits, OpId, Party, Refusal, Request, UnitId, What,
};
use tombolo_transport::{Cid, Incarnation};

use super::books::{Books, GRANULE_BYTES, cpu_of_kernels, device_of_kernels};
use super::mend::{Claim, Claims, Mend, Target};
use super::queue::carry_out_all;
use super::witness::Witnesses;
use super::{Holding, LedgerError, Movable, Order, Unproven, granules, instance_of};
use crate::api::beside::PoolDevice;
use crate::core::{EventKind, InstanceSpec};
use crate::daemon::registry::Registry;
use crate::daemon::shared::Shared;
use crate::spawner::multikernel::{self, PoolMemory};
use crate::spawner::{self, SpawnerKind};
use crate::store::{Batch, Store, StoreError};
use crate::time::unix_ns;

/// How long the kernel may take to say what its pool has.
const COMPARE_MAX: Duration = Duration::from_secs(2);
/// How long the kernels that run by the books may take to be found, or found gone, by a daemon that begins.
const FIRST_LOOKS_MAX: Duration = Duration::from_secs(10);
/// When an answer that could not be stored is handled again.
const STORE_AGAIN: Duration = Duration::from_secs(2);
/// Operations that have ended and are remembered, with their idempotency keys; the oldest are forgotten first.
const ENDED_MAX: usize = 256;

pub(super) struct Desk {
    shared: Arc<Shared>,
    registry: Arc<Registry>,
    witnesses: Witnesses,
    coordinator: Coordinator,
    scribe: Scribe,
    books: watch::Sender<Books>,
    timers: HashMap<OpId, AbortHandle>,
    /// For each operation, what is to be done about its units, in the order in which it was decided.
    queues: HashMap<OpId, mpsc::UnboundedSender<Act>>,
    claims: Claims,
    /// In what memory of kernels beside this one comes and goes.
    memory_step_bytes: u64,
    /// Of the kernels that run by the books, those that this daemon has not yet seen to have what the books say: meanwhile anybody may have changed it.
    first_looks: BTreeMap<InstanceId, Claim>,
    /// What waits until a claim is dropped or an operation ends.
    parked: Vec<Order>,
}

impl Desk {
    pub(super) fn new(
        shared: Arc<Shared>,
        registry: Arc<Registry>,
        witnesses: Witnesses,
        coordinator: Coordinator,
        books: watch::Sender<Books>,
        die_after_steps: Option<u64>,
    ) -> Self {
        let (timers, queues) = (HashMap::new(), HashMap::new());
        let scribe = Scribe { store: shared.store.clone(), lives: die_after_steps.map(AtomicU64::new) };
        let (claims, parked) = (Claims::default(), Vec::new());
        let running = coordinator.ledger().instances().filter(|row| row.running).map(|row| row.id);
        let first_looks = running.filter_map(|id| Some((id, claims.claim(id)?))).collect();
        let memory_step_bytes = GRANULE_BYTES;
        Self {
            memory_step_bytes,
            shared,
            registry,
            witnesses,
            coordinator,
            scribe,
            books,
            timers,
            queues,
            claims,
            first_looks,
            parked,
        }
    }

    /// Takes up what an earlier daemon left, then one order after the other.
    pub(super) async fn serve(mut self, mut orders: mpsc::Receiver<Order>) {
        loop {
            let recovery = self.coordinator.recover(unix_ns());
            match self.scribe.write(recovery, false).await {
                Ok(effects) => break self.perform(effects),
                Err(error) => {
                    tracing::error!(%error, "hand-overs cannot be taken up again yet");
                    tokio::time::sleep(STORE_AGAIN).await;
                }
            }
        }
        self.compare().await;
        let first_looks_end = tokio::time::Instant::now() + FIRST_LOOKS_MAX;
        loop {
            tokio::select! {
                order = orders.recv() => match order {
                    Some(order) => self.take(order).await,
                    None => return,
                },
                () = self.claims.dropped() => {}
                () = tokio::time::sleep_until(first_looks_end), if !self.first_looks.is_empty() => {
                    let unseen: Vec<InstanceId> = self.first_looks.keys().copied().collect();
                    tracing::warn!(?unseen, "what their kernels have was not looked at; it is taken for what the books say");
                    self.first_looks.clear();
                }
            }
            for order in std::mem::take(&mut self.parked) {
                self.take(order).await;
            }
        }
    }

    async fn take(&mut self, order: Order) {
        match order {
            // Whoever asked has gone, and does not know whether it was begun: better not.
            Order::Submit { reply, .. } if reply.is_closed() => {}
            Order::Submit { ref request, .. } if self.is_being_mended(request) => self.parked.push(order),
            Order::Submit { request, reply } => {
                let outcome = self.submit(*request).await;
                drop(reply.send(outcome));
            }
            Order::Cancel { id, reply } => {
                let outcome = self.cancel(id).await;
                drop(reply.send(outcome));
            }
            Order::Repair { unit, owner, if_version, reply } => {
                let outcome = self.repair(unit, owner, if_version).await;
                drop(reply.send(outcome));
            }
            Order::Search { unit, reply } => {
                let (witnesses, ledger) = (self.witnesses.clone(), self.shared.ledger.clone());
                tokio::spawn(async move { reply.send(witnesses.repair(&ledger, unit).await) });
            }
            Order::Boot { row, needs, reply } => {
                let outcome = self.boot(*row, needs).await;
                drop(reply.send(outcome));
            }
            Order::Down { kernel } => {
                self.first_looks.remove(&kernel.instance);
                self.handle(Input::KernelDown(kernel)).await;
            }
            Order::Release { cid } => {
                self.first_looks.remove(&instance_of(cid));
                self.release(cid).await;
            }
            Order::Dismiss { cid } => {
                self.first_looks.remove(&instance_of(cid));
                self.dismiss(cid).await;
            }
            Order::Compare => self.compare().await,
            Order::Mend(mend) => self.mend(mend),
            Order::Input(input) => self.handle(*input).await,
        }
    }

    async fn submit(&mut self, request: Request) -> Result<Operation, LedgerError> {
        self.forget_the_oldest().await;
        self.compare().await;
        self.check_step(&request)?;
        let rules = Rules { drain: self.drain_rule(&request), ..Rules::default() };
        let id = match self.coordinator.submit(unix_ns(), request, rules)? {
            Submitted::Known(id) => id,
            Submitted::New(id, step) => {
                let effects = self.scribe.write(step, false).await?;
                self.perform(effects);
                id
            }
        };
        self.operation(id)
    }

    /// What *drained* means of what is to move. Kernels beside this one let a CPU go by themselves; all others take offline what leaves.
    fn drain_rule(&self, request: &Request) -> DrainRule {
        let is_of_cpus = matches!(request.what, What::CpuCount(_) | What::Cpus(_));
        let donor = self.coordinator.plan(request).ok().and_then(|plan| plan.donor.instance());
        let donor = donor.and_then(|donor| self.registry.find_by_cid(Cid(donor.0)));
        let kind = donor.and_then(|donor| donor.face.borrow().kernel.as_ref().map(spawner::Kernel::kind));
        match kind {
            Some(SpawnerKind::Multikernel) if is_of_cpus => DrainRule::LeaveOnline,
            _ => DrainRule::Offline,
        }
    }

    /// Looks what others have done with the CPUs that they dispose of as well, so that none of these is promised to anybody here. What cannot be looked at is
    /// left as it was: whoever is asked for it will say so.
    async fn compare(&mut self) {
        if !self.shared.ledger.units_are().are_of_kernels() {
            return;
        }
        let settings = self.shared.drivers.multikernel_settings().clone();
        let ours = held_memory(&self.coordinator);
        let with_devices = self.shared.ledger.units_are().devices_are_of_kernels();
        let looking = tokio::task::spawn_blocking(move || {
            let cpus = multikernel::pool_cpus(&settings)?;
            let memory = multikernel::pool_memory(&settings, &ours);
            let devices = with_devices.then(|| multikernel::pool_devices(&settings));
            Ok::<_, String>((cpus, memory, devices))
        });
        let (cpus, memory, devices) = match tokio::time::timeout(COMPARE_MAX, looking).await {
            Ok(Ok(Ok(seen))) => seen,
            Ok(Ok(Err(reason))) => return tracing::warn!(reason, "the kernel's pool cannot be read"),
            Ok(Err(panicked)) => return tracing::error!(%panicked, "the kernel's pool was not read"),
            Err(_) => {
                return tracing::warn!("the kernel does not say within {COMPARE_MAX:?} what its pool has");
            }
        };
        let seen: Vec<Seen> =
            cpus.into_iter().map(|(cpu, is_free)| Seen { unit: cpu_of_kernels(cpu), is_free }).collect();
        self.commit_or_warn(|desk| Ok(desk.compare(unix_ns(), Kind::Cpu, &seen))).await;
        match devices {
            Some(Ok(devices)) => {
                let seen = |device: &PoolDevice| Seen {
                    unit: device_of_kernels(device),
                    is_free: device.held_by.is_none(),
                };
                let seen: Vec<Seen> = devices.iter().map(seen).collect();
                self.commit_or_warn(|desk| Ok(desk.compare(unix_ns(), Kind::Device, &seen))).await;
            }
            Some(Err(reason)) => {
                tracing::warn!(reason, "what the kernel's pool has of devices cannot be read");
            }
            None => {}
        }
        match memory {
            Ok(memory) => {
                self.memory_step_bytes = memory.step_bytes;
                let (total, taken) = granules_of(memory);
                self.commit_or_warn(|desk| Ok(desk.compare_memory(unix_ns(), total, taken))).await;
            }
            Err(reason) => tracing::warn!(reason, "what the kernel's pool has of memory cannot be read"),
        }
    }

    /// Memory of kernels beside this one comes and goes in whole steps.
    fn check_step(&self, request: &Request) -> Result<(), Refusal> {
        let step = self.memory_step_bytes;
        match request.what {
            What::MemoryBytes(bytes)
                if self.shared.ledger.units_are().are_of_kernels() && !bytes.is_multiple_of(step) =>
            {
                let below = bytes / step * step;
                Err(Refusal::OddSize { bytes, granule_bytes: step, below, above: below.saturating_add(step) })
            }
            _ => Ok(()),
        }
    }

    /// Whether what a kernel has that this is about is being changed at this moment.
    fn is_being_mended(&self, request: &Request) -> bool {
        self.coordinator.plan(request).is_ok_and(|plan| {
            let ends = [plan.donor, plan.receiver];
            ends.into_iter().filter_map(Party::instance).any(|instance| self.claims.is_claimed(instance))
        })
    }

    fn mend(&mut self, mend: Box<Mend>) {
        let (kernel, ledger) = (mend.kernel, self.coordinator.ledger());
        let first = self.first_looks.remove(&kernel.instance);
        if !ledger.is_running(kernel) {
            return;
        }
        let is_moving = self.coordinator.moving_at(kernel.instance).is_some();
        let claim = if is_moving { None } else { first.or_else(|| self.claims.claim(kernel.instance)) };
        let Some(claim) = claim else { return self.parked.push(Order::Mend(mend)) };
        let target = Target::new(&self.coordinator, self.holding(kernel.instance));
        tokio::spawn(mend.run(target, claim, self.witnesses.clone(), self.shared.clone()));
    }

    async fn cancel(&mut self, id: OpId) -> Result<Operation, LedgerError> {
        self.commit(|desk| desk.cancel(unix_ns(), id)).await?;
        self.operation(id)
    }

    async fn repair(
        &mut self,
        unit: UnitId,
        owner: Party,
        if_version: Option<u64>,
    ) -> Result<(), LedgerError> {
        if if_version.is_some_and(|version| version != self.coordinator.ledger().version()) {
            return Err(Unproven::Overtaken.into());
        }
        self.commit(|desk| desk.repair(unix_ns(), unit, owner)).await?;
        let owner = self.coordinator.ledger().name(owner);
        self.shared.note(None, EventKind::UnitRepaired { unit: unit.to_string(), owner }).await;
        Ok(())
    }

    fn operation(&self, id: OpId) -> Result<Operation, LedgerError> {
        let found = self.coordinator.operation(id).cloned();
        found.ok_or_else(|| AdminError::NoSuchOperation { operation: id }.into())
    }

    /// Enters the boot of an instance; returns what it is to have.
    async fn boot(&mut self, row: InstanceRow, needs: Needs) -> Result<Holding, LedgerError> {
        let id = row.id;
        if !self.coordinator.ledger().is_running(row.kernel()) {
            self.compare().await;
            self.forget_namesakes(&row).await;
            let held = |kind| self.held(id, kind);
            // What it was left with is what it boots with; but not with less than its least.
            let least = |kind, wanted: u64| match held(kind) {
                0 => wanted,
                _ => row.limits.of(kind).min.min(wanted),
            };
            let is_left_with_something = held(Kind::Memory) + held(Kind::Cpu) > 0;
            let needs = Needs {
                memory: least(Kind::Memory, needs.memory),
                cpus: least(Kind::Cpu, needs.cpus),
                devices: if is_left_with_something { Vec::new() } else { needs.devices },
            };
            self.commit(|desk| desk.boot(unix_ns(), row, needs)).await?;
        }
        Ok(self.holding(id))
    }

    /// An instance of this name that was removed while something of it was under way, and so could not be forgotten then.
    async fn forget_namesakes(&mut self, row: &InstanceRow) {
        let others = self.coordinator.ledger().instances();
        let namesakes = others.filter(|other| other.name == row.name && other.id != row.id);
        let namesakes: Vec<InstanceId> = namesakes.map(|other| other.id).collect();
        for id in namesakes {
            self.commit_or_warn(|desk| desk.dismiss(unix_ns(), id)).await;
        }
    }

    async fn release(&mut self, cid: Cid) {
        let Some(kernel) = self.row(cid).map(InstanceRow::kernel) else { return };
        // It ended before it was ever seen to run, perhaps.
        self.handle(Input::KernelDown(kernel)).await;
        if self.holding(kernel.instance) != Holding::default() {
            self.commit_or_warn(|desk| desk.release(unix_ns(), kernel.instance)).await;
        }
    }

    async fn dismiss(&mut self, cid: Cid) {
        if self.row(cid).is_some() {
            self.release(cid).await;
            self.commit_or_warn(|desk| desk.dismiss(unix_ns(), instance_of(cid))).await;
        }
    }

    fn row(&self, cid: Cid) -> Option<&InstanceRow> {
        self.coordinator.ledger().instance(instance_of(cid))
    }

    fn held(&self, id: InstanceId, kind: Kind) -> u64 {
        let ledger = self.coordinator.ledger();
        let party = ledger.instance(id).map(|row| Party::Instance(row.kernel()));
        party.map_or(0, |party| ledger.held(party, kind))
    }

    fn holding(&self, id: InstanceId) -> Holding {
        let ledger = self.coordinator.ledger();
        let Some(row) = ledger.instance(id) else { return Holding::default() };
        let mut holding = Holding::default();
        for entry in ledger.held_by(Party::Instance(row.kernel())) {
            match entry.unit.id {
                UnitId::Lot(_) | UnitId::Range(_) => {
                    holding.memory_bytes += entry.unit.size().saturating_mul(GRANULE_BYTES);
                }
                UnitId::Cpu(number) => holding.cpus.push(number),
                UnitId::Device(address) => holding.devices.push(address),
                UnitId::LlcWay { .. } => {}
            }
        }
        holding
    }

    /// Takes an input. One that cannot be stored is handled again later: nothing that has happened is lost.
    async fn handle(&mut self, input: Input) {
        let step = self.coordinator.handle(unix_ns(), input.clone());
        match self.scribe.write(step, is_of_an_end(&input)).await {
            Ok(effects) => self.perform(effects),
            Err(error) => {
                tracing::error!(%error, ?input, "a step of the ledger could not be stored; it is tried again");
                let ledger = self.shared.ledger.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(STORE_AGAIN).await;
                    let _ = ledger.orders.send(Order::Input(Box::new(input))).await;
                });
            }
        }
    }

    async fn commit(
        &mut self,
        decide: impl FnOnce(&mut Coordinator) -> Result<Step<'_>, AdminError>,
    ) -> Result<(), LedgerError> {
        let step = decide(&mut self.coordinator)?;
        let effects = self.scribe.write(step, false).await?;
        self.perform(effects);
        Ok(())
    }

    async fn commit_or_warn(
        &mut self,
        decide: impl FnOnce(&mut Coordinator) -> Result<Step<'_>, AdminError>,
    ) {
        if let Err(error) = self.commit(decide).await {
            tracing::warn!(%error, "the ledger could not be brought up to date");
        }
    }

    async fn forget_the_oldest(&mut self) {
        let ended: Vec<OpId> = self
            .coordinator
            .operations()
            .filter(|operation| operation.phase.is_terminal())
            .map(|operation| operation.id)
            .collect();
        let excess = ended.len().saturating_sub(ENDED_MAX);
        if excess > 0 {
            self.commit_or_warn(|desk| Ok(desk.forget(unix_ns(), &ended[..excess]))).await;
        }
    }

    /// Sees to what was decided, once it is stored.
    fn perform(&mut self, effects: Vec<Effect>) {
        self.books.send_replace(Books::Kept(Arc::new(self.coordinator.clone())));
        for effect in effects {
            match effect {
                Effect::Ask(ask) => {
                    let (witnesses, ledger) = (self.witnesses.clone(), self.shared.ledger.clone());
                    tokio::spawn(async move {
                        if let Some(input) = witnesses.ask(ask).await {
                            let _ = ledger.orders.send(Order::Input(Box::new(input))).await;
                        }
                    });
                }
                Effect::Act(act) => self.queue(act),
                Effect::Arm { operation, round, after_ms } => self.arm(operation, round, after_ms),
            }
        }
        self.close_what_has_ended();
    }

    fn arm(&mut self, operation: OpId, round: u32, after_ms: u64) {
        let ledger = self.shared.ledger.clone();
        let timer = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(after_ms)).await;
            let _ = ledger.orders.send(Order::Input(Box::new(Input::Expired { operation, round }))).await;
        });
        if let Some(earlier) = self.timers.insert(operation, timer.abort_handle()) {
            earlier.abort();
        }
    }

    fn queue(&mut self, act: Act) {
        let queue = self.queues.entry(act.operation).or_insert_with(|| {
            let (queue, acts) = mpsc::unbounded_channel();
            tokio::spawn(carry_out_all(acts, self.witnesses.clone(), self.shared.ledger.clone()));
            queue
        });
        let _ = queue.send(act);
    }

    fn close_what_has_ended(&mut self) {
        let is_open = |id: &OpId| {
            self.coordinator.operation(*id).is_some_and(|operation| !operation.phase.is_terminal())
        };
        let ended: Vec<OpId> = self.timers.keys().filter(|id| !is_open(id)).copied().collect();
        for id in ended {
            self.queues.remove(&id);
            if let Some(timer) = self.timers.remove(&id) {
                timer.abort();
            }
            let Some(operation) = self.coordinator.operation(id) else { continue };
            tracing::info!(%id, phase = %operation.phase, "a hand-over has ended");
            for instance in [operation.donor, operation.receiver].into_iter().filter_map(Party::instance) {
                if let Some(handle) = self.registry.find_by_cid(Cid(instance.0)) {
                    tokio::spawn(async move { handle.mailbox.ledger_changed().await });
                }
            }
        }
    }
}

/// Stores steps.
struct Scribe {
    store: Store,
    /// How many steps of operations may be stored yet before this process is to die, for tests.
    lives: Option<AtomicU64>,
}

impl Scribe {
    /// Stores a step with the events that tell of it; then it has happened.
    async fn write(&self, step: Step<'_>, is_essential: bool) -> Result<Vec<Effect>, StoreError> {
        let can_wait = step.can_wait();
        let is_of_an_operation = step.commit().is_some_and(|commit| !commit.operations.is_empty());
        let stored = step.persist_async(|commit| async move {
            let mut batch = Batch::new().essential(is_essential).can_wait(can_wait);
            for event in events_of(&commit) {
                batch = batch.event(None, None, event);
            }
            self.store.commit(batch.ledger_step(commit)).await
        });
        let effects = stored.await?;
        if is_of_an_operation && self.lives.as_ref().is_some_and(|lives| lives.fetch_sub(1, Relaxed) <= 1) {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
        Ok(effects)
    }
}

/// What the ledger gives to each instance, in bytes; where something moves, whatever that has.
pub(crate) fn held_memory(coordinator: &Coordinator) -> Vec<(u32, u64)> {
    let ledger = coordinator.ledger();
    let held = |row: &InstanceRow| match coordinator.moving_at(row.id) {
        Some(_) => u64::MAX,
        None => ledger.held(Party::Instance(row.kernel()), Kind::Memory).saturating_mul(GRANULE_BYTES),
    };
    ledger.instances().map(|row| (row.id.0, held(row))).collect()
}

/// How much memory there is, and what others have of it: a granule of which they have a part is theirs.
pub(crate) fn granules_of(memory: PoolMemory) -> (u64, u64) {
    (memory.total_bytes / GRANULE_BYTES, memory.others_bytes.div_ceil(GRANULE_BYTES))
}

/// What must be recorded even when the disk is full, so that a stop frees what it should.
fn is_of_an_end(input: &Input) -> bool {
    matches!(input, Input::KernelDown(_))
}

fn events_of(commit: &Commit) -> Vec<EventKind> {
    let told = commit.events.iter().filter_map(|event| {
        let id = event.operation;
        let operation = id.map_or(0, |id| id.0);
        Some(match &event.kind {
            Told::Accepted => {
                let accepted = commit.operations.iter().find(|operation| Some(operation.id) == id)?;
                let (from, to) = (accepted.request.from.to_string(), accepted.request.to.to_string());
                EventKind::OperationAccepted { operation, from, to, what: what(&accepted.request.what) }
            }
            Told::Phase { from, to } => {
                EventKind::OperationPhase { operation, from: from.to_string(), to: to.to_string() }
            }
            Told::Settled { unit, fate } => {
                EventKind::UnitSettled { operation, unit: unit.to_string(), fate: fate_name(fate) }
            }
            Told::Resumed { phase } => EventKind::OperationResumed { operation, phase: phase.to_string() },
            // With every boot and every end: the instance's own events tell of those.
            Told::Reassigned { .. } | Told::KernelDown { .. } | Told::KernelUp { .. } => return None,
        })
    });
    told.collect()
}

fn what(what: &What) -> String {
    match what {
        What::CpuCount(1) => "1 CPU".to_owned(),
        What::CpuCount(count) => format!("{count} CPUs"),
        What::Cpus(ids) => format!("CPUs {ids:?}"),
        What::MemoryBytes(bytes) => format!("{} MiB of memory", bytes >> 20),
        What::Device(address) => format!("device {address}"),
        What::LlcWays { cache, count } => format!("{count} ways of cache {cache}"),
    }
}

fn fate_name(fate: &Fate) -> String {
    match fate {
        Fate::Moved => "moved".to_owned(),
        Fate::Stranded => "stranded".to_owned(),
        Fate::Returned => "returned".to_owned(),
        Fate::Pooled => "free".to_owned(),
        Fate::Quarantined(reason) => format!("quarantined: {reason}"),
    }
}

/// What the ledger is to know of an instance. Of what of it cannot be moved it may have nothing.
pub(crate) fn row_of(
    cid: Cid,
    name: &str,
    incarnation: Incarnation,
    spec: &InstanceSpec,
    movable: Movable,
) -> InstanceRow {
    let none = Bounds::NONE;
    let of = |can_move, bounds| if can_move { bounds } else { none };
    let memory = Bounds {
        min: granules(if movable.keeps_memory { spec.memory_mib } else { spec.memory_min_mib() }),
        desired: granules(spec.memory_mib),
        max: granules(spec.memory_max_mib().max(spec.memory_mib)),
    };
    let cpus = Bounds {
        min: spec.cpus_min().into(),
        desired: spec.cpus.into(),
        max: spec.cpus_max().max(spec.cpus).into(),
    };
    let limits = Limits {
        memory: of(movable.memory, memory),
        cpus: of(movable.cpus, cpus),
        devices: of(movable.devices, Bounds::default()),
        llc_ways: none,
    };
    let (id, name) = (instance_of(cid), name.to_owned());
    InstanceRow { id, name, incarnation, running: false, limits, boot_cpu: None }
}

/// The least an instance starts with, of what can be moved.
pub(crate) fn needs_of(spec: &InstanceSpec, movable: Movable) -> Needs {
    let of = |can_move, amount| if can_move { amount } else { 0 };
    Needs {
        memory: of(movable.memory, granules(spec.memory_mib)),
        cpus: of(movable.cpus, spec.cpus.into()),
        devices: match movable.devices {
            true => spec.devices.clone().unwrap_or_default(),
            false => Vec::new(),
        },
    }
}
