//! Lock-free rings between two sides that do not trust each other.
//!
//! A connection has two [halves](layout). Each side writes only its own half and maps the other's read-only, so there is
//! no read-modify-write between them, only loads and stores. A half carries what its side *sends* (a ring of
//! cache-line slots, a byte ring, loaned buffers) and how much its side has *consumed* of the other half.
//!
//! - [`message`]: whole messages. Up to [`INLINE_MAX`] bytes travel in the cache line that announces them, longer ones through
//!   the byte ring, very long ones in a [loaned buffer](loan).
//! - [`bytes`]: a byte stream.
//! - [`park`]: how a side that finds nothing to do goes to sleep without losing a wake-up.
//!
//! # Using them
//! Everything here is non-blocking and does no I/O. `try_*` either does the thing or says [`RingError::WouldBlock`]. After a
//! batch call `flush`: it tells whether the peer sleeps and must be rung ([`Wake::Ring`]). To sleep: `arm`; if it
//! says [`Arm::Sleep`], wait for one's own bell (or a slow timer: bells can get lost), then try again.
//!
//! # A hostile peer
//! Every word of the peer's half is loaded once into a private copy, checked against bounds fixed when the connection was made, and only
//! then used. Our own positions are private and never read back. A value that cannot be right ends the
//! connection with [`ResetCause::PeerMisbehaved`]; what the peer can do to us is what it could
//! do by closing the connection, or by sending different data.
//!
//! After copying a payload out, and before handing it over, the rings ask a [`Liveness`] whether the connection still is what it
//! was: memory that was reused after its owner's death is thus never delivered (in the manner of a seqlock).
//!
//! # Orderings
//! Pairs of Release and Acquire carry the same label in comments: `SYNC: slot`, `SYNC: credit`, `SYNC: bytes`, `SYNC: loan`,
//! `SYNC: state` between the sides, `SYNC: acked` and `SYNC: consumed` between the two directions of one side. Parking uses a
//! fence on each side, see [`park`].
//!
//! # Testing them
//! Everything is generic over the [memory](crate::mem). `cargo test -p tombolo-transport --lib ring` runs behaviours, properties against
//! queues, a hostile peer, two threads over real mappings, and loom's exhaustive search of interleavings (`loom_tests.rs`; a wider
//! search: `LOOM_MAX_PREEMPTIONS=4 cargo test -p tombolo-transport --release --lib loom_`). No special cfg is needed.

pub mod bytes;
pub mod half;
pub mod in_place;
pub mod layout;
pub mod loan;
pub mod message;
pub mod park;
mod side;

#[cfg(test)]
mod bytes_tests;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod in_place_tests;
#[cfg(test)]
mod loom_tests;
#[cfg(test)]
mod message_tests;
#[cfg(test)]
mod testing;

pub use self::bytes::{ByteRx, ByteTx, byte_pair};
pub use self::half::{OwnHalf, PeerHalf, State};
pub use self::in_place::{InPlace, InPlaceMut};
pub use self::layout::{HalfLayout, LayoutError};
pub use self::loan::{LoanMut, Received};
pub use self::message::{INLINE_MAX, MessageRx, MessageTx, message_pair};
pub use self::park::{Arm, Wake};

use crate::error::ResetCause;

/// Why an operation on a ring did not happen. Nothing was sent or received when it is returned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// There is nothing to read, or no room to write. Try again after `arm` and a wake-up.
    #[error("the ring has nothing to read or no room now; arm and try again when woken")]
    WouldBlock,
    /// The message can never be sent over this connection.
    #[error("a message of {len} bytes does not fit: this connection carries at most {max} bytes a message")]
    TooLong {
        /// Length of the message, in bytes.
        len: usize,
        /// The longest that fits, in bytes.
        max: usize,
    },
    /// This side has shut down this direction.
    #[error("this direction has been shut down on this side")]
    Shutdown,
    /// The connection is gone; every later call says the same.
    #[error("connection reset: {0}")]
    Reset(ResetCause),
}

/// Tells whether the other side of a connection is still the one we connected to.
///
/// Called after every copy out of the peer's memory and before the data are handed over, so it must be cheap (two loads).
pub trait Liveness: Clone + Send + Sync {
    /// An error if the peer, its kernel or its broker has died or restarted since the connection was made.
    fn check(&self) -> Result<(), ResetCause>;
}

/// For tests and for peers that cannot die apart from us.
impl Liveness for () {
    #[inline]
    fn check(&self) -> Result<(), ResetCause> {
        Ok(())
    }
}

pub(crate) fn misbehaved(what: impl Into<String>) -> ResetCause {
    ResetCause::PeerMisbehaved(what.into())
}
