//! Whether each CPU of this kernel runs what it is given.
//!
//! To each CPU a small thread is bound that counts a few times per second, and then looks at the counts of all others and has
//! [`judge`] say which CPUs are stuck: so somebody looks as long as any CPU runs, and nobody waits for a timer of one that does not.
//! The threads have precedence over everything else where that is permitted, so that a busy CPU is none that is stuck. A CPU that
//! leaves frees its thread from its bond; the thread notices and ends. One that comes is given a thread.
//!
//! A CPU that is alone is not judged: when that is stuck nobody looks, and the heartbeat tells.

mod judge;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::getpid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use tokio::sync::watch;

pub use judge::{CpuJudge, Stuck};

use crate::api::health::StuckCpu;
use crate::cpu_list;
use crate::sys::take_precedence;

/// From one count to the next.
const COUNT: Duration = Duration::from_millis(200);
/// The same while there is one CPU.
const COUNT_ALONE: Duration = Duration::from_secs(1);
/// What such a thread needs, with room to spare, in bytes.
const STACK_BYTES: usize = 64 << 10;
/// How the names of these threads begin. The longest, with a CPU's number, is what the kernel keeps of a name.
const NAME: &str = "cpu-watch/";
/// The CPUs that the kernel may ever have.
const POSSIBLE: &str = "/sys/devices/system/cpu/possible";

/// Tells which CPUs are stuck. Clones tell the same.
#[derive(Clone, Debug)]
pub struct CpuWatch(watch::Receiver<Vec<Stuck>>);

impl CpuWatch {
    /// Watches the CPUs of this kernel until the last clone is dropped: one that runs nothing for `stuck_after` is stuck.
    ///
    /// # Errors
    /// If no thread can be made.
    pub fn start(stuck_after: Duration) -> io::Result<Self> {
        let (told, receiver) = watch::channel(Vec::new());
        if may_have_a_second_cpu() {
            // A thread, as it shows whether its like can have precedence.
            thread::Builder::new().name("cpu-watch".to_owned()).spawn(move || {
                let precedence = take_precedence();
                if let Err(error) = &precedence {
                    tracing::info!(%error, "CPUs are watched with patience: nothing has precedence here");
                }
                let judge = CpuJudge::new(COUNT, stuck_after, precedence.is_ok());
                Arc::new(Watchers { told, looker: Mutex::new(Looker { judge, counters: BTreeMap::new() }) })
                    .look();
            })?;
        }
        Ok(Self(receiver))
    }

    /// Tells of no CPU.
    pub fn idle() -> Self {
        Self(watch::channel(Vec::new()).1)
    }

    /// The CPUs that are stuck now.
    pub fn stuck(&self) -> Vec<StuckCpu> {
        let silent_ms = |stuck: &Stuck| stuck.since.elapsed().as_millis() as u64;
        self.0.borrow().iter().map(|stuck| StuckCpu { cpu: stuck.cpu, silent_ms: silent_ms(stuck) }).collect()
    }

    /// Waits until other CPUs are stuck than when this was last called; `None` once nobody watches any more.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn changed(&mut self) -> Option<()> {
        self.0.changed().await.ok()
    }
}

/// Whether a thread of this process is one that watches a CPU, by its name.
pub(crate) fn is_watching(thread_name: &str) -> bool {
    thread_name.starts_with(NAME)
}

/// What a kernel does not tell it may have.
fn may_have_a_second_cpu() -> bool {
    let possible = std::fs::read_to_string(POSSIBLE).ok().and_then(|text| cpu_list::parse(&text));
    possible.is_none_or(|cpus| cpus.len() > 1)
}

/// What all the threads have in common.
#[derive(Debug)]
struct Watchers {
    told: watch::Sender<Vec<Stuck>>,
    /// Held for some microseconds. Never waited for: whoever has it looks.
    looker: Mutex<Looker>,
}

#[derive(Debug)]
struct Looker {
    judge: CpuJudge,
    counters: BTreeMap<u32, Arc<Counter>>,
}

/// What the thread of one CPU says.
#[derive(Debug, Default)]
struct Counter {
    count: AtomicU64,
    /// It has ended, as its CPU has left or cannot be had.
    has_ended: AtomicBool,
}

impl Watchers {
    /// Sees to it that each CPU has a thread, looks at what they count, and tells of a change. When the caller is to count
    /// again.
    fn look(self: &Arc<Self>) -> Duration {
        let Ok(mut looker) = self.looker.try_lock() else { return COUNT };
        let cpus = usable_cpus();
        looker
            .counters
            .retain(|cpu, counter| cpus.contains(cpu) && !counter.has_ended.load(Ordering::Relaxed));
        for cpu in cpus {
            if !looker.counters.contains_key(&cpu)
                && let Ok(counter) = self.start_counting(cpu)
            {
                looker.counters.insert(cpu, counter);
            }
        }
        let Looker { judge, counters } = &mut *looker;
        let is_alone = counters.len() < 2;
        let counts = counters.iter().filter(|_| !is_alone);
        if judge.look(Instant::now(), counts.map(|(cpu, it)| (*cpu, it.count.load(Ordering::Relaxed)))) {
            self.told.send_replace(judge.stuck());
        }
        if is_alone { COUNT_ALONE } else { COUNT }
    }

    fn start_counting(self: &Arc<Self>, cpu: u32) -> io::Result<Arc<Counter>> {
        let counter = Arc::new(Counter::default());
        let (watchers, counting) = (self.clone(), counter.clone());
        let thread = thread::Builder::new().name(format!("{NAME}{cpu}")).stack_size(STACK_BYTES);
        thread.spawn(move || watchers.count(cpu as usize, &counting))?;
        Ok(counter)
    }

    /// Counts on one CPU, for as long as that is there and anybody wants to know.
    fn count(self: &Arc<Self>, cpu: usize, counter: &Counter) {
        let mut only = CpuSet::new();
        only.set(cpu);
        let is_bound = sched_setaffinity(None, &only).is_ok();
        let _ = take_precedence();
        while is_bound && sched_getcpu() == cpu && !self.told.is_closed() {
            counter.count.fetch_add(1, Ordering::Relaxed);
            thread::sleep(self.look());
        }
        counter.has_ended.store(true, Ordering::Relaxed);
        if is_bound && !self.told.is_closed() {
            // It may have been the only one, and another CPU have come meanwhile.
            self.look();
        }
    }
}

/// The CPUs that are online, but for any that are denied to this process: those of its first thread, which is bound to none.
fn usable_cpus() -> BTreeSet<u32> {
    let Ok(set) = sched_getaffinity(Some(getpid())) else { return BTreeSet::new() };
    (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).map(|cpu| cpu as u32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_fits_into_what_the_kernel_keeps_of_it() {
        let longest = format!("{NAME}{}", CpuSet::MAX_CPU - 1);
        assert!(longest.len() <= 15 && is_watching(&longest));
    }

    #[test]
    fn a_cpu_that_cannot_be_had_ends_its_thread() {
        let judge = CpuJudge::new(COUNT, COUNT, true);
        let looker = Mutex::new(Looker { judge, counters: BTreeMap::new() });
        let (told, _receiver) = watch::channel(Vec::new());
        let watchers = Arc::new(Watchers { told, looker });
        let counter = Counter::default();
        watchers.count(CpuSet::MAX_CPU - 1, &counter);
        assert!(counter.has_ended.load(Ordering::Relaxed));
        assert_eq!(counter.count.load(Ordering::Relaxed), 0);
    }
}
