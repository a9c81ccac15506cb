//! Memory of a kernel that runs: regions of one step each, given from the pool and taken back to it, one at a time.
//!
//! As with CPUs ([`super::live`]), the spawned kernel may do late what it was asked and did not answer; and the host's kernel may book another range than
//! the one that it tells the spawned kernel of. So a region is noted in the runtime folder before it is asked for, by its place, and crossed out only when
//! the instance's tree *and* /proc/iomem show it there, or gone. As long as one is noted, nothing else is asked of that kernel, and nobody else is given what
//! may be in use in it ([`withheld`]).

use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::doubts::{self, Asked, Doubts};
use super::ids::InstanceName;
use super::interface::{self, Interface};
use super::live::{Live, LiveError, unreadable};
use super::lock::Lock;
use super::overlay::{Change, Intent};
use super::provenance::{self, Mark, is_known};
use super::record::{Origin, Record};
use super::regions::{Map, Span};
use super::tree::{InstanceTree, PoolTree};
use crate::keeper::MemoryState;
use crate::spawner::MemoryWanted;

/// How long after it was begun a change goes on to the next region: what is left is left to whoever asks again.
const PATIENCE: Duration = Duration::from_secs(8);

/// A region that a running kernel was asked to take or to give back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AskedRegion {
    pub(super) span: Span,
    change: Change,
    mark: String,
    /// What the instance had before.
    had_bytes: u64,
}

impl Asked for AskedRegion {
    const NAME: &str = "multikernel-memory.json";
    const MARK: &str = "memory";

    fn mark(&self) -> &str {
        &self.mark
    }

    fn what(&self) -> String {
        self.span.to_string()
    }

    fn change(&self) -> Change {
        self.change
    }

    fn intent(&self, name: InstanceName) -> Intent {
        Intent::InstanceMemory { name, change: self.change, span: self.span }
    }

    /// There is never more than one of an instance in doubt, however often it was asked.
    fn is_about_the_same(&self, _other: &Self) -> bool {
        true
    }
}

/// What the instance has, and what there is to have, at one moment.
struct Seen {
    /// What it booted with.
    booted_bytes: u64,
    /// What came since, in order.
    added: Vec<Span>,
    pool: PoolTree,
    map: Map,
    step_bytes: u64,
}

impl Seen {
    fn bytes(&self) -> u64 {
        self.added.iter().fold(self.booted_bytes, |sum, span| sum.saturating_add(span.bytes))
    }

    /// How many bytes it is to have, if it has not what is wanted.
    fn target(&self, wanted: MemoryWanted, max_bytes: u64) -> Result<Option<u64>, String> {
        let (has, step) = (self.bytes(), self.step_bytes);
        let (bytes, is_so) = match wanted {
            MemoryWanted::Exactly(bytes) => (bytes, has == bytes),
            MemoryWanted::AtMost(bytes) => (bytes, has <= bytes),
            MemoryWanted::AtLeast(bytes) => (bytes, has >= bytes),
        };
        if is_so {
            return Ok(None);
        }
        let Some(more) = bytes.checked_sub(self.booted_bytes) else {
            return Err(format!(
                "it booted with {} MiB and keeps them: no less is to be had",
                self.booted_bytes >> 20
            ));
        };
        // Between two steps there is nothing to be had, and what comes close is not what was meant.
        if !more.is_multiple_of(step) {
            return Err(format!(
                "memory comes and goes in steps of {} MiB beyond the {} MiB that it booted with, and {} MiB are not that",
                step >> 20,
                self.booted_bytes >> 20,
                bytes >> 20
            ));
        }
        match bytes > has && bytes > max_bytes {
            true => {
                Err(format!("it is to have {} MiB at most, and would have {}", max_bytes >> 20, bytes >> 20))
            }
            false => Ok(Some(bytes)),
        }
    }
}

/// The memory of the instance of `live`, while its kernel runs.
#[derive(Debug)]
pub(super) struct LiveMemory<'a, I> {
    live: Live<'a, I>,
    max_bytes: u64,
}

impl<'a, I: Interface> LiveMemory<'a, I> {
    /// `None` for one whose memory is not the ledger's.
    pub(super) fn on(kernel: &'a I, record: &'a Record, dir: &'a Path) -> Option<Self> {
        let max_bytes = record.memory_max_bytes.filter(|_| record.origin == Origin::Made)?;
        Some(Self { live: Live { kernel, record, dir }, max_bytes })
    }

    /// What it has. What proves to be settled is crossed out, if nobody else changes anything now.
    pub(super) fn state(&self) -> Result<MemoryState, LiveError> {
        let noted = Doubts::<AskedRegion>::read(self.live.record, self.live.dir)?;
        let asked = match noted.asked.is_empty() {
            true => Vec::new(),
            false => match Lock::take(&self.live.record.settings.lock, Duration::ZERO) {
                Ok(lock) => self.crossed_out(&lock)?.asked,
                Err(_) => noted.asked,
            },
        };
        let has_bytes = self.look()?.bytes();
        let open = asked.first();
        let present_bytes = open.map_or(has_bytes, |asked| asked.had_bytes);
        let max_bytes = self.max_bytes.max(present_bytes);
        Ok(MemoryState { present_bytes, max_bytes, pending: open.is_some(), certain: open.is_none() })
    }

    /// Makes it what is wanted, as far as that is to be had: what it has then may lie between. An error: nothing was changed, or it is not known what was.
    pub(super) fn set(&self, wanted: MemoryWanted) -> Result<MemoryState, LiveError> {
        self.settle()?;
        let seen = self.look()?;
        let Some(target) = seen.target(wanted, self.max_bytes).map_err(LiveError::Refused)? else {
            return self.state();
        };
        let before = seen.bytes();
        let until = self.live.kernel.now() + PATIENCE;
        let outcome = if target > before { self.grow(target, until) } else { self.shrink(target, until) };
        match outcome {
            Err(LiveError::Refused(reason)) => {
                let state = self.state()?;
                if state.present_bytes == before {
                    return Err(LiveError::Refused(reason));
                }
                let (instance, has) = (&self.live.record.name, state.present_bytes >> 20);
                tracing::warn!(%instance, has, wanted = target >> 20, reason, "its memory changed in part");
                Ok(state)
            }
            Err(error) => Err(error),
            Ok(()) => self.state(),
        }
    }

    fn grow(&self, target: u64, until: Instant) -> Result<(), LiveError> {
        while self.look()?.bytes() < target {
            self.give()?;
            if self.live.kernel.now() >= until && self.look()?.bytes() < target {
                return Err(LiveError::Refused(format!("not all of it came within {PATIENCE:?}")));
            }
        }
        Ok(())
    }

    /// Last come, first gone; if that cannot leave, one of the others.
    fn shrink(&self, target: u64, until: Instant) -> Result<(), LiveError> {
        let mut stuck: Vec<Span> = Vec::new();
        let mut why = LiveError::Refused("no region of it that could leave did so in time".into());
        loop {
            let seen = self.look()?;
            let surplus = seen.bytes().saturating_sub(target);
            if surplus == 0 {
                return Ok(());
            }
            let can_leave = |span: &&Span| span.bytes <= surplus && !stuck.contains(span);
            let next = seen.added.iter().rev().find(can_leave).copied();
            let Some(span) = next else { return Err(why) };
            if self.live.kernel.now() >= until {
                return Err(why);
            }
            match self.take(span) {
                Ok(()) => {}
                Err(error @ LiveError::Refused(_)) => {
                    stuck.push(span);
                    why = error;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Gives it a region of one step.
    fn give(&self) -> Result<(), LiveError> {
        let lock = self.live.lock()?;
        let doubts = self.settled(&lock)?;
        let seen = self.look()?;
        let withheld = self.withheld()?;
        let place = seen.map.place(&seen.pool.chunks, seen.step_bytes, &withheld);
        let span = place.map_err(|why| {
            let (name, step) = (&self.live.record.name, seen.step_bytes >> 20);
            LiveError::Refused(format!("no {step} MiB can be given to instance `{name}`: {why}"))
        })?;
        doubts.ask(&self.live, &lock, |mark| AskedRegion {
            span,
            change: Change::Add,
            mark,
            had_bytes: seen.bytes(),
        })
    }

    /// Takes a region back.
    fn take(&self, span: Span) -> Result<(), LiveError> {
        let lock = self.live.lock()?;
        let doubts = self.settled(&lock)?;
        let seen = self.look()?;
        match seen.added.contains(&span) {
            true => doubts.ask(&self.live, &lock, |mark| AskedRegion {
                span,
                change: Change::Remove,
                mark,
                had_bytes: seen.bytes(),
            }),
            false => Ok(()),
        }
    }

    /// Asks again what was asked and not seen to be done. Nothing, if nothing was.
    pub(super) fn settle(&self) -> Result<(), LiveError> {
        if Doubts::<AskedRegion>::read(self.live.record, self.live.dir)?.asked.is_empty() {
            return Ok(());
        }
        let lock = self.live.lock()?;
        let doubts = self.crossed_out(&lock)?;
        let Some(AskedRegion { span, change, had_bytes, .. }) = doubts.asked.first().cloned() else {
            return Ok(());
        };
        let seen = self.look()?;
        let is_as_then = match change {
            // Where it would come by now, or that somebody has it, is as bad an answer as none.
            Change::Add => {
                let withheld = self.withheld()?;
                seen.bytes() == had_bytes
                    && seen.map.place(&seen.pool.chunks, span.bytes, &withheld) == Ok(span)
            }
            Change::Remove => seen.added.contains(&span),
        };
        match is_as_then {
            true => doubts.ask(&self.live, &lock, |mark| AskedRegion { span, change, mark, had_bytes }),
            false => Err(self.in_doubt(span, change)),
        }
    }

    /// Nothing is open about it.
    fn settled(&self, lock: &Lock) -> Result<Doubts<AskedRegion>, LiveError> {
        let doubts = self.crossed_out(lock)?;
        match doubts.asked.first() {
            None => Ok(doubts),
            Some(asked) => Err(self.in_doubt(asked.span, asked.change)),
        }
    }

    fn in_doubt(&self, span: Span, change: Change) -> LiveError {
        let name = &self.live.record.name;
        let what = if change == Change::Add { "come to" } else { "leave" };
        LiveError::Unknown(format!(
            "{span} were to {what} instance `{name}`, and it is not known whether they are in use in its kernel: that ends with the kernel"
        ))
    }

    /// What is still open, under the lock: what tree and map show done is not, nor what no transaction carries.
    fn crossed_out(&self, _lock: &Lock) -> Result<Doubts<AskedRegion>, LiveError> {
        let Live { kernel, record, dir } = self.live;
        let mut doubts = Doubts::<AskedRegion>::read(record, dir)?;
        if doubts.asked.is_empty() {
            return Ok(doubts);
        }
        let seen = self.look()?;
        let mut open = Vec::new();
        for asked in &doubts.asked {
            let mark = Mark::Nonce(&asked.mark);
            // The host's kernel books what comes before the spawned one has answered.
            let is_pending = provenance::pending(kernel, mark).map_err(unreadable)?.is_some();
            let is_done = seen.added.contains(&asked.span) == (asked.change == Change::Add) && !is_pending;
            if !is_done && is_known(kernel, mark).map_err(unreadable)? {
                open.push(asked.clone());
            }
        }
        doubts.leave_open(&self.live, open);
        Ok(doubts)
    }

    fn look(&self) -> Result<Seen, LiveError> {
        let Live { kernel, record, .. } = self.live;
        self.live.must_run()?;
        let name = &record.name;
        let tree = interface::instance(kernel, name).map_err(unreadable)?;
        let tree: InstanceTree =
            tree.ok_or_else(|| LiveError::Refused(format!("instance `{name}` is gone")))?;
        let pool = interface::pool(kernel).map_err(unreadable)?;
        let map = interface::map(kernel).map_err(unreadable)?;
        let regions = map.of_instance(tree.id, name);
        let shown = regions.iter().fold(0_u64, |sum, span| sum.saturating_add(span.bytes));
        if shown != tree.memory_bytes {
            return Err(LiveError::Unknown(format!(
                "instance `{name}` has {} MiB by its tree, and {} MiB by /proc/iomem (only root sees all of that)",
                tree.memory_bytes >> 20,
                shown >> 20
            )));
        }
        let mut booted_bytes = 0_u64;
        let mut regions = regions.into_iter();
        while booted_bytes < record.memory_bytes {
            booted_bytes = booted_bytes.saturating_add(regions.next().map_or(u64::MAX, |span| span.bytes));
        }
        if booted_bytes != record.memory_bytes {
            return Err(LiveError::Unknown(format!(
                "instance `{name}` has other memory than the {} MiB that it was made with",
                record.memory_bytes >> 20
            )));
        }
        let step_bytes = interface::step_bytes(kernel, &pool);
        Ok(Seen { booted_bytes, added: regions.collect(), pool, map, step_bytes })
    }

    fn withheld(&self) -> Result<Vec<Span>, LiveError> {
        withheld(self.live.kernel, self.live.dir).map_err(LiveError::Refused)
    }
}

/// What may be in use in kernels of ours that run, other than the one of `dir`, although nobody has it by the host's books.
pub(super) fn withheld(kernel: &impl Interface, dir: &Path) -> Result<Vec<Span>, String> {
    let withheld = doubts::withheld::<AskedRegion>(kernel, dir)?;
    Ok(withheld.into_iter().map(|(_, asked)| asked.span).collect())
}
