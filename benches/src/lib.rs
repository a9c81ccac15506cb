//! Measuring Tombolo as ratios: to the floor that the machine sets and to peers, in one run, interleaved.
//!
//! Absolute times on a machine whose cores are virtual and shared say little: the same binary differs by a factor of
//! three from one placement of its cores to another. So every figure here is taken beside the raw cost of moving a
//! cache line between the same two cores, in turns, and printed as a ratio to it. `docs/benchmarks.md` has the rules; `cargo xtask bench`
//! runs everything.
//!
//! - [`probe`]: what a measuring program is asked and what it answers; [`program`]: its command line.
//! - [`turns`]: a measurement and its floor in turns, between two processes ([`duo`]).
//! - [`floor`], [`lines`]: what the machine itself costs.
//! - [`payload`], [`calls`]: what travels.
//! - [`fabric`], [`rings`]: connections through a broker, and the rings alone.

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
