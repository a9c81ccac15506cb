//! The model: what the kernel would answer. No I/O; time is an argument, in nanoseconds since any fixed moment.
//!
//! ```text
//!  write, rmdir, kexec_file_load, reboot ──►  Machine  ──► poll_effect: Boot, Kill, HotAdd, HotRemove, Log, Completed
//!  halted, panicked, frozen, thawed, acked ─►          ──► read, list, iomem, snapshot
//!  advance(now) at poll_timeout() ──────────►
//! ```
//!
//! An operation that waits for a spawned kernel answers [`Reply::Pending`]; its result comes as
//! [`Effect::Completed`] with the same [`Ticket`]. Two locks are modelled, as in the kernel: the overlay mutex, for which
//! overlays, `rmdir` and baselines queue, and the kexec lock, held while an item or a halt is waited for, which gives
//! others EBUSY. The spawned kernel's side of the books ([`Guest`]) is kept too: it may differ from the host's.

mod baseline;
mod config;
mod cpuinfo;
mod files;
mod guest;
mod host;
mod instance;
mod iomem;
mod kexec;
mod machine;
mod overlay;
mod pool;
#[cfg(test)]
mod proptests;
mod quirk;
#[cfg(test)]
mod quirk_tests;
mod steps;
mod time;
mod transaction;
mod tree;
mod trees;
mod work;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use rustix::io::Errno;

pub use config::{MachineConfig, PciFunction};
pub use files::{Entry, EntryKind};
pub use guest::{GUEST_LATENCY_NS, Guest, Message, MessageOp, Resource};
pub use host::Host;
pub use instance::{Instance, Loaded, Region, State};
pub(crate) use kexec::load_id;
pub use kexec::{Image, ImageFormat, KEXEC_MULTIKERNEL, KEXEC_UNLOAD, LoadRequest, RebootCommand};
pub use machine::{Effect, Machine, Reply, Snapshot, Ticket};
pub use pool::{Chunk, Pool, Range};
pub use quirk::{Quirk, Quirks};
pub use transaction::{Transaction, TxStatus};

/// What the kernel cuts writes at, in bytes.
pub const PAGE_BYTES: u64 = 4096;
/// Longest tree, in bytes.
pub const TREE_BYTES_MAX: usize = 1 << 20;
/// How long one item of an operation is waited for, in nanoseconds.
pub const ITEM_TIMEOUT_NS: u64 = 10_000_000_000;
/// How long a halt is waited for, in nanoseconds.
pub const HALT_TIMEOUT_NS: u64 = 30_000_000_000;
