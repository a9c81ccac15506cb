//! Counters per method of a [`Router`](super::Router).

use std::sync::atomic::{AtomicU64, Ordering};

/// What has happened to the calls of one method, over all links that share the router.
#[derive(Debug, Default)]
pub struct MethodCounters {
    calls: AtomicU64,
    errors: AtomicU64,
    in_flight: AtomicU64,
    latency_ns_sum: AtomicU64,
}

impl MethodCounters {
    /// Calls started.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Calls that ended with an error of the application, a panic, a cancel or a deadline.
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    /// Calls under way.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Time that ended calls have taken in their handlers, in nanoseconds. One call is measured to about a millisecond, by
    /// a clock that is right in the mean: the sum over many calls is good, that over a few short ones may be 0.
    pub fn latency_ns_sum(&self) -> u64 {
        self.latency_ns_sum.load(Ordering::Relaxed)
    }

    pub(super) fn started(&self) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn ended(&self, well: bool, latency_ns: u64) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        if !well {
            self.errors.fetch_add(1, Ordering::Relaxed);
        }
        if latency_ns != 0 {
            self.latency_ns_sum.fetch_add(latency_ns, Ordering::Relaxed);
        }
    }
}
