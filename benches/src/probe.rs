//! What a measuring program is asked and what it answers: one probe at a time, so that whoever runs several programs can let them take turns.
//!
//! ```text
//! PROGRAM probes                                         one JSON object per line: each probe it can take
//! PROGRAM take --test T --way W --bytes N --waiting Q    one JSON object on one line: the reading
//! ```
//! Every reading carries the floors taken by the same two processes on the same two cores just before it, so that a ratio never compares two placements
//! of the machine's cores. A program that cannot take a probe says why on standard error and exits with 1.

use serde::{Deserialize, Serialize};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Test {
    /// One message there and one back, one at a time, every byte written and read. Nanoseconds.
    RoundTrip,
    /// Messages in one direction, each published by itself, every byte written and read. Millions a second.
    OneWay,
    /// The same with as many at once as the way allows.
    OneWayBatched,
    /// Bytes in one direction, every byte written and read. GB/s, 10^9 bytes, counted once.
    Stream,
    /// A loaned message there and one back, its bytes not touched. Nanoseconds.
    LoanRoundTrip,
    /// Loaned messages in one direction, their bytes not touched. Millions a second.
    LoanOneWay,
    /// A typed call, one at a time. Nanoseconds.
    Call,
    /// Typed calls, 64 under way at any time. Millions a second.
    CallsInFlight,
    /// A typed call whose argument is that many bytes. Nanoseconds.
    CallWithBytes,
    /// From the wake of a receiver that sleeps until it runs. Nanoseconds.
    Wake,
}

/// How both ends wait for each other. Readings of two ways are compared only where this is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Waiting {
    /// A core each, looking all the time.
    Busy,
    /// Under Tokio, which goes on looking for a while before it sleeps.
    Tokio,
    /// In the kernel.
    Asleep,
}

/// One measurement that a program can make.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Probe {
    /// What.
    pub test: Test,
    /// By which means: `tombolo`, `aeron`, `unix socket`, ..
    pub way: String,
    /// Payload of a message.
    pub bytes: usize,
    /// How both ends wait.
    pub waiting: Waiting,
}

/// What the machine itself costs, taken beside a reading.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Floors {
    /// Two cache lines, 8 bytes there and back between the two processes: middle and 99th percentile.
    pub lines_ns: [f64; 2],
    /// One thread's copy of that many bytes.
    pub memcpy_ns: f64,
    /// From the write of an eventfd until the thread that sleeps on it runs; only beside [`Test::Wake`].
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub eventfd_ns: Option<f64>,
}

/// What a probe gave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reading {
    /// Of which probe.
    #[serde(flatten)]
    pub probe: Probe,
    /// The median of times, the rate of rates, in the unit of [`Probe::test`].
    pub value: f64,
    /// Of times: percentile and value in nanoseconds, rising; empty for rates.
    #[serde(default)]
    pub percentiles: Vec<(f64, f64)>,
    /// Taken beside it.
    pub floors: Floors,
    /// What a reader of the figure has to know: a copy that the way cannot avoid, another way of waiting.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub note: Option<String>,
}
