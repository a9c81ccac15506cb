//! The machine: what everything is kept in, and what comes out of it.

use std::collections::{BTreeMap, VecDeque};

use serde::Serialize;

use super::Errno;
use super::config::MachineConfig;
use super::guest::Resource;
use super::host::Host;
use super::instance::{Instance, State};
use super::iomem;
use super::pool::{Pool, Range};
use super::quirk::{Quirk, Quirks};
use super::transaction::Transaction;
use super::work::{Halt, Request, Work};

/// Names an operation that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

/// What an operation came to so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It is over; this is what the system call returns.
    Done(u64),
    /// It waits; [`Effect::Completed`] will tell.
    Pending(Ticket),
}

/// What the shell is to do. To be carried out in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Start the loaded kernel of this instance.
    Boot {
        /// The instance.
        id: u32,
        /// Its name.
        name: String,
        /// What it was granted, in bytes.
        memory_bytes: u64,
        /// Physical ids; the first is the one it boots on.
        cpus: Vec<u64>,
        /// As loaded.
        cmdline: String,
    },
    /// End the kernel of this instance at once, if it still runs.
    Kill {
        /// The instance.
        id: u32,
    },
    /// The spawned kernel took this online.
    HotAdd {
        /// The instance.
        id: u32,
        /// What it has now.
        resource: Resource,
    },
    /// The spawned kernel took this offline.
    HotRemove {
        /// The instance.
        id: u32,
        /// What it no longer has.
        resource: Resource,
    },
    /// The image of this instance is no longer needed.
    Unloaded {
        /// The instance.
        id: u32,
    },
    /// An operation that waited is over.
    Completed {
        /// Which.
        ticket: Ticket,
        /// What the system call returns.
        result: Result<u64, Errno>,
    },
    /// A line of the kernel log.
    Log(String),
}

/// A host that runs Multikernel Linux.
#[derive(Debug)]
pub struct Machine {
    pub(super) config: MachineConfig,
    pub(super) host: Host,
    pub(super) pool: Option<Pool>,
    pub(super) instances: BTreeMap<String, Instance>,
    pub(super) transactions: BTreeMap<u64, Transaction>,
    pub(super) last_transaction: u64,
    /// Whoever holds the overlay mutex, and those who wait for it.
    pub(super) work: Option<Work>,
    pub(super) queue: VecDeque<(Ticket, Request)>,
    /// Halts that wait. Each holds the kexec lock.
    pub(super) halts: Vec<Halt>,
    tickets: u64,
    pub(super) messages: u64,
    effects: VecDeque<Effect>,
}

/// Everything, for people and for tests.
#[derive(Clone, Debug, Serialize)]
pub struct Snapshot<'a> {
    /// Always "STAND-IN": this is no kernel.
    pub stand_in: &'static str,
    /// The host.
    pub host: &'a Host,
    /// The pool, if there is one.
    pub pool: Option<&'a Pool>,
    /// All instances, with the spawned kernels' side.
    pub instances: Vec<&'a Instance>,
    /// All transactions.
    pub transactions: Vec<&'a Transaction>,
    /// What of the traps is on.
    pub quirks: &'a Quirks,
}

impl Machine {
    /// A machine that has just booted. Counts of 0 are taken for 1, a granule that is no power of two for the next one.
    pub fn new(mut config: MachineConfig) -> Self {
        config.cpus = config.cpus.clamp(1, 1 << 16);
        config.numa_nodes = config.numa_nodes.clamp(1, 64);
        config.memory_bytes = config.memory_bytes.min(1 << 46);
        config.memory_granule_bytes = config.memory_granule_bytes.clamp(1 << 12, 1 << 40).next_power_of_two();
        Self {
            host: Host::new(&config),
            last_transaction: u64::from(config.quirks.has(Quirk::FirstTransactionIsTwo)),
            config,
            pool: None,
            instances: BTreeMap::new(),
            transactions: BTreeMap::new(),
            work: None,
            queue: VecDeque::new(),
            halts: Vec::new(),
            tickets: 0,
            messages: 0,
            effects: VecDeque::new(),
        }
    }

    /// What it was made of.
    pub fn config(&self) -> &MachineConfig {
        &self.config
    }

    /// Switches a trap.
    pub fn set_quirk(&mut self, quirk: Quirk, on: bool) {
        self.config.quirks.set(quirk, on);
    }

    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// What `/proc/iomem` shows.
    pub fn iomem(&self) -> String {
        iomem::iomem(&self.host, self.pool.as_ref(), self.instances.values())
    }

    /// Takes memory of the pool for a buffer that is not an instance's. `len` is rounded up to pages.
    ///
    /// # Errors
    /// EINVAL for no bytes; ENOMEM without a pool or without room.
    pub fn heap_allocate(&mut self, len: u64) -> Result<Range, Errno> {
        let size = len.checked_next_multiple_of(super::PAGE_BYTES).filter(|size| *size > 0);
        let size = size.ok_or(Errno::INVAL)?;
        let pool = self.pool.as_mut().ok_or(Errno::NOMEM)?;
        let range = pool.take_memory(size, super::PAGE_BYTES, None)?;
        pool.heap.push(range);
        Ok(range)
    }

    /// Gives a buffer back.
    pub fn heap_free(&mut self, range: Range) {
        if let Some(pool) = &mut self.pool
            && pool.heap.contains(&range)
        {
            pool.heap.retain(|heap| *heap != range);
            pool.free_memory(range);
        }
    }

    /// Everything there is.
    pub fn snapshot(&self) -> Snapshot<'_> {
        Snapshot {
            stand_in: "STAND-IN",
            host: &self.host,
            pool: self.pool.as_ref(),
            instances: self.instances.values().collect(),
            transactions: self.transactions.values().collect(),
            quirks: &self.config.quirks,
        }
    }

    /// The instance of this name.
    pub fn instance(&self, name: &str) -> Option<&Instance> {
        self.instances.get(name)
    }

    /// The instance of this id.
    pub fn instance_by_id(&self, id: u32) -> Option<&Instance> {
        self.instances.values().find(|instance| instance.id == id)
    }

    /// The pool, if there is one.
    pub fn pool(&self) -> Option<&Pool> {
        self.pool.as_ref()
    }

    pub(super) fn instance_by_id_mut(&mut self, id: u32) -> Option<&mut Instance> {
        self.instances.values_mut().find(|instance| instance.id == id)
    }

    pub(super) fn has(&self, quirk: Quirk) -> bool {
        self.config.quirks.has(quirk)
    }

    pub(super) fn effect(&mut self, effect: Effect) {
        self.effects.push_back(effect);
    }

    pub(super) fn log(&mut self, line: impl Into<String>) {
        self.effects.push_back(Effect::Log(line.into()));
    }

    pub(super) fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets)
    }

    /// Takes the result of an operation back out of the effects if it is over already.
    pub(super) fn reply(&mut self, ticket: Ticket) -> Result<Reply, Errno> {
        let is_own =
            |effect: &Effect| matches!(effect, Effect::Completed { ticket: of, .. } if *of == ticket);
        let Some(at) = self.effects.iter().position(is_own) else { return Ok(Reply::Pending(ticket)) };
        match self.effects.remove(at) {
            Some(Effect::Completed { result, .. }) => result.map(Reply::Done),
            _ => Ok(Reply::Pending(ticket)),
        }
    }

    /// Whether somebody holds the kexec lock, for those who look.
    pub(super) fn is_kexec_locked(&self) -> bool {
        let waiting = self.work.as_ref().is_some_and(|work| work.waiting.is_some());
        self.has(Quirk::BusyWhileLocked) && (waiting || !self.halts.is_empty())
    }

    /// A pool that has nothing left is none: a baseline may be written again.
    pub(super) fn end_empty_pool(&mut self) {
        if self.pool.as_ref().is_some_and(Pool::is_empty) {
            self.pool = None;
        }
    }

    /// What the host does when it restarts: all is lost.
    pub(super) fn restart_host(&mut self) {
        let running: Vec<u32> = self.instances.values().map(|instance| instance.id).collect();
        for id in running {
            self.effect(Effect::Kill { id });
            self.effect(Effect::Unloaded { id });
        }
        let waiting = self.halts.drain(..).map(|halt| halt.ticket);
        let waiting = waiting.chain(self.work.take().map(|work| work.ticket));
        let waiting: Vec<Ticket> = waiting.chain(self.queue.drain(..).map(|(ticket, _)| ticket)).collect();
        for ticket in waiting {
            self.effect(Effect::Completed { ticket, result: Err(Errno::INTR) });
        }
        self.host = Host::new(&self.config);
        self.pool = None;
        self.instances.clear();
        self.transactions.clear();
        self.last_transaction = u64::from(self.has(Quirk::FirstTransactionIsTwo));
    }

    /// What a kernel's end makes of its instance: the books stay, it may be booted again.
    pub(super) fn stopped(&mut self, id: u32, state: State) {
        if let Some(instance) = self.instance_by_id_mut(id) {
            instance.guest = None;
            instance.state = state;
        }
        let (over, wait): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.halts).into_iter().partition(|halt| halt.id == id);
        self.halts = wait;
        for halt in over {
            self.effect(Effect::Completed { ticket: halt.ticket, result: Ok(0) });
        }
    }
}
