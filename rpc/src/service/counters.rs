//! Counters per method of a [`Router`](super::Router).

use std::sync::atomic::{AtomicU64, Ordering};

/// Of so many calls that end in their first step one is measured: reading a clock takes as long as answering some.
const SAMPLE: u64 = 8;

/// What has happened to the calls of one method, over all links that share the router.
#[derive(Debug, Default)]
pub struct MethodCounters {
    started: AtomicU64,
    ended: AtomicU64,
    errors: AtomicU64,
    latency_ns_sum: AtomicU64,
}

impl MethodCounters {
    /// Calls started.
    pub fn calls(&self) -> u64 {
        self.started.load(Ordering::Relaxed)
    }

    /// Calls that ended with an error of the application, a panic, a cancel or a deadline.
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    /// Calls under way.
    pub fn in_flight(&self) -> u64 {
        let ended = self.ended.load(Ordering::Acquire);
        self.started.load(Ordering::Relaxed).saturating_sub(ended)
    }

    /// Time that ended calls have taken in their handlers, in nanoseconds. Of those that answer in their first step, one in
    /// eight is measured, for all eight; and each only to about a millisecond, by a clock that is right in the mean. So the
    /// sum over many calls is good, that over a few short ones may be 0.
    pub fn latency_ns_sum(&self) -> u64 {
        self.latency_ns_sum.load(Ordering::Relaxed)
    }

    /// Counts a start; returns for how many calls like it its time is to count, should it end in its first step.
    #[inline]
    pub(super) fn started(&self) -> u64 {
        let before = self.started.fetch_add(1, Ordering::Relaxed);
        if before.is_multiple_of(SAMPLE) { SAMPLE } else { 0 }
    }

    #[inline]
    pub(super) fn ended(&self, well: bool, latency_ns: u64) {
        if !well {
            self.errors.fetch_add(1, Ordering::Relaxed);
        }
        if latency_ns != 0 {
            self.latency_ns_sum.fetch_add(latency_ns, Ordering::Relaxed);
        }
        // Release: whoever sees a call as ended sees its start too.
        self.ended.fetch_add(1, Ordering::Release);
    }
}
