//! What a link to an agent does, measured.

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

/// Answer to [`Inside::measure`](super::inside::Inside::measure).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct LinkFigures {
    /// Calls to the agent and back, each right after the last.
    pub in_turn: RoundTrips,
    /// Calls with pauses between them, in which both ends fall asleep.
    pub asleep: RoundTrips,
    /// Bytes a second from the daemon to the agent, each of them received.
    pub to_instance_bytes_per_s: u64,
    /// Bytes a second from the agent to the daemon.
    pub from_instance_bytes_per_s: u64,
    /// What this host needs for the same.
    pub floor: LinkFloor,
}

/// How long round trips took, in ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct RoundTrips {
    /// How many there were.
    pub count: u64,
    /// The shortest.
    pub min_ns: u64,
    /// Half were no longer.
    pub p50_ns: u64,
    /// 90 of 100 were no longer.
    pub p90_ns: u64,
    /// 99 of 100 were no longer.
    pub p99_ns: u64,
    /// The longest.
    pub max_ns: u64,
}

/// What nothing on this host is faster than, taken in the same seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct LinkFloor {
    /// From one thread's word to another that sleeps until that one runs, in ns; the middle of many.
    pub wake_ns: u64,
    /// Bytes a second that one thread copies.
    pub copy_bytes_per_s: u64,
}
