//! The pool: a span of memory that several kernels map, each writing only its own extent.
//!
//! `docs/pool-format.md` has every offset.

mod black_box;
mod geometry;
mod heartbeat;
pub(crate) mod layout;
mod source;
mod superblock;
#[cfg(test)]
mod tests;
mod view;

pub use black_box::{BlackBoxLevel, BlackBoxRecord, BlackBoxWriter};
pub use geometry::{Geometry, Member};
pub use heartbeat::{Heartbeat, HeartbeatReader, HeartbeatScan, HeartbeatWriter, Phase};
pub(crate) use source::Place;
pub use source::PoolSource;
pub(crate) use superblock::RowContent;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use superblock::Superblock;
pub use view::{MemberRow, Pool};
pub(crate) use view::{RowWriter, open as open_source};
