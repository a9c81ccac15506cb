//! The pool: a span of memory that several kernels map, each writing only its own extent.
//!
//! `docs/pool-format.md` has every offset.

mod black_box;
mod geometry;
mod heartbeat;
mod source;
mod view;

pub use black_box::{BlackBoxLevel, BlackBoxRecord, BlackBoxWriter};
pub use geometry::{Geometry, Member};
pub use heartbeat::{Heartbeat, HeartbeatReader, HeartbeatWriter, Phase};
pub use source::PoolSource;
pub use view::{MemberRow, Pool};
