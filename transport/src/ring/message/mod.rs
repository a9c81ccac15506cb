//! Whole messages: a ring of cache-line slots, each with its sequence number in the line.
//!
//! # Slot
//! 64 bytes. The first word is the header, stored last, with Release:
//!
//! | bits | field |
//! |---|---|
//! | 0..32 | stamp: position of the message + 1, modulo 2^32. Positions count messages from 0, a run as one |
//! | 32..40 | kind: 0 to 56 = an inline message of that length; 57 = in the byte ring; 58 = in a loan; 65 to 92 = a run of 1 to 28 messages in the byte ring; others are forbidden |
//! | 40..64 | acks: how many more messages of the other direction the sender has consumed since the slot before (piggybacked credit) |
//!
//! Payload of kind 57: the length (u64), at most the byte ring's size; the bytes follow each other in the byte ring, in the order of
//! messages. Of kind 58: index of the loan (u64), length (u64, at most the loan's size), the first 40 bytes of the message, which are in the loan too. Of a run: the length of
//! each message (u16 each), the sum at most the byte ring's size.
//!
//! # Where the next message is
//! In the slot after the last one, or in slot 0. The sender starts again at slot 0 whenever it knows that
//! everything it sent has been consumed (it learns that from the acks, which cost nothing): a
//! request-reply exchange then uses one line in each direction, hot in both caches, however many slots there are. The receiver looks at both
//! places for the one stamp that comes next. This is sound because
//! - a message is written to one place only, and stamps differ, so at most one of the two places shows the next stamp;
//! - slot 0 is free when the sender restarts (everything was consumed), and from there on the outstanding messages again lie in consecutive
//!   slots, fewer than there are;
//! - a stale stamp never looks like the next one: a slot is rewritten within one lap, unless restarts keep the ring from walking so far; so the
//!   sender, when it restarts and 2^30 messages have passed since it last did so, first stamps all slots as just consumed. No stamp
//!   is ever older than 2^31 + a lap, and 32 bits suffice.
//!
//! # Credit
//! The receiver tells what it consumed by the acks in its own messages, and in its half each quarter of the slots (or bytes). Less than a
//! quarter is thus ever withheld, which is less than the whole, so a sender that is blocked by a full ring always hears of room.

mod run;
mod rx;
mod tx;

use std::sync::Arc;

pub use self::rx::{APART, MessageRx};
pub use self::tx::MessageTx;
use super::Liveness;
use super::half::{OwnHalf, PeerHalf};
use super::layout::SLOT;
use super::loan::LoanBell;
use super::side::Side;
use crate::mem::{Memory, MemoryMut, Word};

/// The longest message that travels in the line that announces it, in bytes.
pub const INLINE_MAX: usize = SLOT - 8;

const KIND_BYTES: u64 = 57;
const KIND_LOAN: u64 = 58;

/// What the two directions of one side tell each other, in private memory.
///
/// Our receiver writes it for each message, so it is not to share a line with what others use. It has room around it instead of being aligned: aligned
/// memory is cut out of a larger piece, and what is cut off serves nobody.
#[repr(C)]
pub(super) struct Cross<W> {
    _before: [u64; BEFORE],
    /// Messages our receiver has consumed. Written by it, read by our sender.
    consumed: W,
    /// Messages of ours that the peer's acks say are consumed. Written by our receiver, read by our sender.
    acked: W,
    /// Bit i: the peer's loan i is held by a `Received` of ours.
    pub(super) held: W,
    /// The space ticket that a returned loan has rung for.
    pub(super) rung_for_loan: W,
    /// 1: a returned loan wants the peer rung, and there was no hook to do it.
    pub(super) bell_owed: W,
    _after: [u64; AFTER],
}

/// Words of room. What is allocated is 16-byte aligned, and the two counts of the `Arc` go before it, so that the first word is 48 bytes into it: it lies
/// in the first line only if that is all ours. The last ends at 88 bytes; a line that it reaches into ends at 144 at the latest, where the next piece begins.
const BEFORE: usize = 4;
const AFTER: usize = 6;

/// Both directions of messages over a pair of halves.
///
/// `live` is asked before anything received is handed over. It is cloned into every [`Received`](super::Received), so it may also hold what keeps
/// our half from being given to another connection. `bell` is called when dropping a [`Received`](super::Received) must ring the
/// peer; without it the next [`MessageRx::flush`] says so.
///
/// # Panics
/// If a half has no slots: whoever made the connection has to check the peer's layout for it.
pub fn message_pair<M: MemoryMut, P: Memory, L: Liveness>(
    own: OwnHalf<M>,
    peer: PeerHalf<P>,
    live: L,
    bell: Option<LoanBell>,
) -> (MessageTx<M, P, L>, MessageRx<M, P, L>) {
    assert!(own.layout.slots() != 0 && peer.layout.slots() != 0, "messages need slots");
    let cross = Arc::new(Cross {
        _before: [0; BEFORE],
        consumed: M::Word::new(0),
        acked: M::Word::new(0),
        held: M::Word::new(0),
        rung_for_loan: M::Word::new(0),
        bell_owed: M::Word::new(0),
        _after: [0; AFTER],
    });
    let tx = Side::new(own.clone(), peer.clone(), live.clone());
    let rx = Side::new(own, peer, live);
    (MessageTx::new(tx, Arc::clone(&cross)), MessageRx::new(rx, cross, bell))
}
