//! CPUs of a kernel that runs: given from the pool and taken back to it, one at a time.
//!
//! The host's kernel asks the spawned one, waits 10 s for its answer, and then acts as if nothing had been asked. The spawned kernel may still do it,
//! and no tree shows that: a CPU that is free by the books may run in a kernel. So what is asked is noted first ([`Doubts`]), and is
//! crossed out only when the instance's tree *and* the pool's show that it is done, or when it is certain that the spawned kernel was never
//! asked. What stays noted may still happen for as long as that kernel runs. It is neither given to anybody else nor counted as gone; the same
//! may be asked of the same kernel again, and its answer settles it.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::doubts::{Asked, Doubts};
use super::hold::Hold;
use super::ids::{InstanceName, PhysicalCpu};
use super::interface::{self, InstanceStatus, Interface};
use super::lock::Lock;
use super::overlay::{Change, Intent};
use super::provenance::{Mark, is_known};
use super::record::{Origin, Record};
use super::transaction::ApplyError;
use super::tree::{InstanceTree, PoolTree};

/// How long another program's change may keep ours from being tried: whoever wants it asks again.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// A CPU that a running kernel was asked to take or to give up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AskedCpu {
    pub(super) cpu: PhysicalCpu,
    change: Change,
    mark: String,
}

impl Asked for AskedCpu {
    const NAME: &str = "multikernel-asked.json";
    const MARK: &str = "cpu";

    fn mark(&self) -> &str {
        &self.mark
    }

    fn what(&self) -> String {
        format!("CPU {}", self.cpu)
    }

    fn change(&self) -> Change {
        self.change
    }

    fn intent(&self, name: InstanceName) -> Intent {
        Intent::InstanceCpu { name, change: self.change, cpu: self.cpu }
    }

    fn is_about_the_same(&self, other: &Self) -> bool {
        self.cpu == other.cpu
    }
}

/// A CPU of a running kernel, or one that may yet become its.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LiveCpu {
    pub(crate) cpu: PhysicalCpu,
    /// Whether the kernel's books give it to the instance.
    pub(crate) is_there: bool,
    /// Whether that may still change by itself: it was asked for, and no answer was seen.
    pub(crate) may_change: bool,
}

impl LiveCpu {
    pub(crate) fn physical(self) -> u32 {
        self.cpu.0
    }
}

/// Why a change is not made, or not known to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LiveError {
    /// It was not made, and will not be.
    Refused(String),
    /// It may have been made, or may still be.
    Unknown(String),
}

impl LiveError {
    pub(super) fn into_reason(self) -> String {
        match self {
            Self::Refused(reason) | Self::Unknown(reason) => reason,
        }
    }
}

/// Both trees, at one moment.
struct Trees {
    instance: InstanceTree,
    pool: PoolTree,
}

impl Trees {
    fn has(&self, cpu: PhysicalCpu) -> bool {
        self.instance.cpus.contains(&cpu)
    }

    /// Whether both show it done.
    fn show(&self, change: Change, cpu: PhysicalCpu) -> bool {
        let is_there = change == Change::Add;
        self.has(cpu) == is_there && self.pool.cpus_available.contains(&cpu) != is_there
    }
}

/// The instance of `record`, whose runtime folder is `dir`, while its kernel runs.
#[derive(Debug)]
pub(super) struct Live<'a, I> {
    pub(super) kernel: &'a I,
    pub(super) record: &'a Record,
    pub(super) dir: &'a Path,
}

impl<'a, I: Interface> Live<'a, I> {
    /// `None` for one whose CPUs are not the ledger's: what has them nobody here decides.
    pub(super) fn on(kernel: &'a I, record: &'a Record, dir: &'a Path) -> Option<Self> {
        let is_moved = record.moves_cpus && record.origin == Origin::Made;
        is_moved.then_some(Self { kernel, record, dir })
    }

    /// Its CPUs, and those that may yet become its. What proves to be settled is crossed out, if nobody else changes anything now.
    pub(super) fn cpus(&self) -> Result<Vec<LiveCpu>, LiveError> {
        let doubts = Doubts::read(self.record, self.dir)?;
        let asked = match doubts.asked.is_empty() {
            true => Vec::new(),
            false => match Lock::take(&self.record.settings.lock, Duration::ZERO) {
                Ok(lock) => self.crossed_out(&lock)?.asked,
                Err(_) => doubts.asked,
            },
        };
        // Last: what is crossed out by now shows in them.
        let trees = self.trees()?;
        let is_open = |asked: &&AskedCpu| !trees.show(asked.change, asked.cpu);
        let open: Vec<&AskedCpu> = asked.iter().filter(is_open).collect();
        let may_change = |cpu: PhysicalCpu| open.iter().any(|asked| asked.cpu == cpu);
        let of_it = trees.instance.cpus.iter();
        let mut cpus: Vec<LiveCpu> =
            of_it.map(|&cpu| LiveCpu { cpu, is_there: true, may_change: may_change(cpu) }).collect();
        for asked in &open {
            if !cpus.iter().any(|known| known.cpu == asked.cpu) {
                cpus.push(LiveCpu { cpu: asked.cpu, is_there: false, may_change: true });
            }
        }
        Ok(cpus)
    }

    /// Gives it a CPU of the pool. One that it has is no error.
    pub(super) fn give(&self, cpu: PhysicalCpu) -> Result<(), LiveError> {
        let lock = self.lock()?;
        let doubts = self.crossed_out(&lock)?;
        let trees = self.trees()?;
        let open = open(&doubts, cpu);
        if trees.has(cpu) {
            return match open {
                None => Ok(()),
                Some(_) => Err(LiveError::Unknown(format!(
                    "CPU {cpu} was to leave instance `{}`, and may yet",
                    self.record.name
                ))),
            };
        }
        if !trees.pool.cpus.contains(&cpu) {
            return Err(LiveError::Refused(format!(
                "CPU {cpu} is not in the pool; `tombolo multikernel pool` puts it there"
            )));
        }
        if !trees.pool.cpus_available.contains(&cpu) {
            return Err(LiveError::Refused(format!(
                "CPU {cpu} is not free: an instance of the kernel has it (`tombolo multikernel show` says which)"
            )));
        }
        doubts.ask(self, &lock, |mark| AskedCpu { cpu, change: Change::Add, mark })
    }

    /// Takes a CPU back to the pool. One that it has not, and will not get, is no error.
    pub(super) fn take(&self, cpu: PhysicalCpu) -> Result<(), LiveError> {
        let lock = self.lock()?;
        let doubts = self.crossed_out(&lock)?;
        let trees = self.trees()?;
        if !trees.has(cpu) {
            return match open(&doubts, cpu) {
                None => Ok(()),
                Some(_) => Err(LiveError::Unknown(format!(
                    "CPU {cpu} was to come to instance `{}`, and may yet",
                    self.record.name
                ))),
            };
        }
        if trees.instance.cpus.first() == Some(&cpu) {
            return Err(LiveError::Refused(format!(
                "instance `{}` booted on CPU {cpu} and keeps it",
                self.record.name
            )));
        }
        doubts.ask(self, &lock, |mark| AskedCpu { cpu, change: Change::Remove, mark })
    }

    /// Asks again what was asked and not seen to be done. Nothing, if nothing was.
    pub(super) fn settle(&self, cpu: PhysicalCpu) -> Result<(), LiveError> {
        let lock = self.lock()?;
        let doubts = self.crossed_out(&lock)?;
        match open(&doubts, cpu).map(|asked| asked.change) {
            None => Ok(()),
            Some(change) => doubts.ask(self, &lock, |mark| AskedCpu { cpu, change, mark }),
        }
    }

    /// What is still open, under the lock: what both trees show done is, and what no transaction carries was never asked.
    fn crossed_out(&self, _lock: &Lock) -> Result<Doubts<AskedCpu>, LiveError> {
        let mut doubts = Doubts::read(self.record, self.dir)?;
        if doubts.asked.is_empty() {
            return Ok(doubts);
        }
        let trees = self.trees()?;
        let mut open = Vec::new();
        for asked in &doubts.asked {
            let was_asked = is_known(self.kernel, Mark::Nonce(&asked.mark)).map_err(unreadable)?;
            if was_asked && !trees.show(asked.change, asked.cpu) {
                open.push(asked.clone());
            }
        }
        doubts.leave_open(self, open);
        Ok(doubts)
    }

    /// How the instance is; `None`: it is gone.
    pub(super) fn status(&self) -> Result<Option<InstanceStatus>, LiveError> {
        Hold::on(self.kernel, self.record).ours().map_err(LiveError::Unknown)
    }

    pub(super) fn must_run(&self) -> Result<(), LiveError> {
        let name = &self.record.name;
        match self.status()? {
            Some(InstanceStatus::Active) => Ok(()),
            Some(InstanceStatus::Failed) => {
                Err(LiveError::Unknown(format!("instance `{name}` failed, and may run all the same")))
            }
            _ => Err(LiveError::Refused(format!("no kernel runs in instance `{name}`"))),
        }
    }

    fn trees(&self) -> Result<Trees, LiveError> {
        self.must_run()?;
        let name = &self.record.name;
        let instance = interface::instance(self.kernel, name).map_err(unreadable)?;
        let instance = instance.ok_or_else(|| LiveError::Refused(format!("instance `{name}` is gone")))?;
        let pool = interface::pool(self.kernel).map_err(unreadable)?;
        Ok(Trees { instance, pool })
    }

    pub(super) fn lock(&self) -> Result<Lock, LiveError> {
        let path: &Path = &self.record.settings.lock;
        Lock::take(path, LOCK_WAIT).map_err(|error| {
            LiveError::Refused(format!(
                "could not take the lock {}: {error}; nothing was asked",
                path.display()
            ))
        })
    }
}

/// What is open about a CPU.
fn open(doubts: &Doubts<AskedCpu>, cpu: PhysicalCpu) -> Option<&AskedCpu> {
    doubts.asked.iter().find(|asked| asked.cpu == cpu)
}

pub(super) fn unreadable(error: interface::AskError) -> LiveError {
    LiveError::Unknown(error.to_string())
}

pub(super) fn reason(error: &ApplyError) -> String {
    match error {
        ApplyError::Failed { .. } => format!(
            "{error}; the kernel in it may have refused, or the host's kernel was busy with another instance"
        ),
        error => error.to_string(),
    }
}
