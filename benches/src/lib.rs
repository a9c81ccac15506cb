//! Measuring Tombolo as ratios: to the floor that the machine sets and to peers, in one run, interleaved.
//!
//! Absolute times on a machine whose cores are virtual and shared say little: the same binary differs by a factor of
//! three from one placement of its cores to another. So every figure here is taken beside the raw cost of moving a
//! cache line between the same two cores, in turns, and printed as a ratio to it.
//!
//! ```text
//! cargo build --release -p tombolo-benches
//! target/release/message_round_trip      [--json] [--bare]
//! target/release/stream_throughput       [--json] [--bare]
//! target/release/rpc_round_trip          [--json] [--bare]
//! cargo bench -p tombolo-benches         (pieces within one thread)
//! ```
//! On a machine that does other things as well, `chrt -f 20` before them (as root) keeps the two cores to the
//! measurement for the two seconds that each takes.
//!
//! - [`floor`]: what the machine itself costs (a cache line there and back, a copy, a wake-up, a Unix socket).
//! - [`duo`]: two processes pinned to two cores, the second being this binary again.
//! - [`report`]: series of measurements as a table and as JSON.

pub mod calls;
pub mod duo;
pub mod fabric;
pub mod figure;
pub mod floor;
pub mod lines;
pub mod payload;
pub mod pin;
pub mod probe;
pub mod program;
pub mod rings;
pub mod rounds;
pub mod series;
pub mod turns;
