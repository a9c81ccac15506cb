//! Very long messages without copying them through a ring: buffers in the sender's half, lent and returned.
//!
//! The sender [loans](super::MessageTx::loan) a buffer, writes it in place and sends its descriptor in a slot. The receiver gets a
//! [`Received`] guard that reads it where it is; dropping the guard returns the buffer, by changing the loan's *bit* in a word of the
//! receiver's half. Lendings and returns of a buffer take turns, so the bit says by itself whether the buffer is back: nothing has to
//! arrive in order. Which buffers are lent is known to the sender privately; a change of the bit of one that is not (a foreign
//! return) ends the connection. Changing a bit twice only keeps the buffer, as holding it does.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::half::{OwnHalf, PeerHalf};
use super::in_place::LoanHead;
use super::layout::*;
use super::message::Cross;
use super::{Liveness, RingError};
use crate::mem::{Memory, MemoryMut, Word};

/// The sender's private account of its buffers.
pub(super) struct LoanTable<M: MemoryMut> {
    /// Shared with the [`LoanMut`]s, which put themselves back. `None`: there are no loans.
    lender: Option<Arc<Lender<M>>>,
    /// Bit i: buffer i is neither lent nor being written, nor among those that were put back.
    free: u64,
    /// Bit i: buffer i is with the receiver.
    lent: u64,
    /// The receiver's word as last accepted: bit i has changed with each return of buffer i.
    returned: u64,
}

struct Lender<M: MemoryMut> {
    own: OwnHalf<M>,
    /// Bit i: buffer i was taken and has been put back unsent, by whatever thread had it.
    unsent: M::Word,
}

impl<M: MemoryMut> LoanTable<M> {
    pub(super) fn new(own: &OwnHalf<M>) -> Self {
        let count = usize::from(own.layout.loan_count);
        let free = if count == 64 { u64::MAX } else { (1 << count) - 1 };
        let lender = (count != 0).then(|| Arc::new(Lender { own: own.clone(), unsent: M::Word::new(0) }));
        Self { lender, free, lent: 0, returned: 0 }
    }

    /// Takes the buffers back that the receiver has returned. The error says what the receiver did wrong.
    pub(super) fn reclaim<P: Memory>(&mut self, peer: &P) -> Result<(), String> {
        let back = peer.load(AT_LOAN_RETURNS, Ordering::Acquire) ^ self.returned; // SYNC: loan
        let foreign = back & !self.lent;
        if foreign != 0 {
            return Err(format!("it returned loan {}, which it does not have", foreign.trailing_zeros()));
        }
        let Some(lender) = self.lender.as_ref().filter(|_| back != 0) else { return Ok(()) };
        self.lent &= !back;
        self.returned ^= back;
        let mut rest = back;
        while rest != 0 {
            // Their reader has had the first line.
            let at = lender.own.layout.loan_at(rest.trailing_zeros() as usize);
            lender.own.mem.prefetch_write(at, SLOT);
            rest &= rest - 1;
        }
        self.free |= back;
        Ok(())
    }

    #[inline]
    pub(super) fn any_free(&mut self) -> bool {
        if self.free == 0
            && let Some(lender) = &self.lender
            && lender.unsent.load(Ordering::Relaxed) != 0
        {
            self.free = lender.unsent.fetch_and(0, Ordering::Acquire);
        }
        self.free != 0
    }

    /// A free buffer, now taken, for a message of `len` bytes.
    pub(super) fn take(&mut self, len: usize) -> Option<LoanMut<M>> {
        let index = self.next()?;
        let lender = Arc::clone(self.lender.as_ref()?);
        self.free &= !(1 << index);
        let at = lender.own.layout.loan_at(index);
        Some(LoanMut { lender, at, len, index, sent: false })
    }

    /// The buffer that [`LoanTable::take`] would give.
    #[inline]
    pub(super) fn next(&self) -> Option<usize> {
        (self.free != 0).then(|| self.free.trailing_zeros() as usize)
    }

    /// The receiver gets it.
    #[inline]
    pub(super) fn lend(&mut self, index: usize) {
        self.free &= !(1 << index);
        self.lent |= 1 << index;
    }

    pub(super) fn owns(&self, loan: &LoanMut<M>) -> bool {
        self.lender.as_ref().is_some_and(|lender| Arc::ptr_eq(lender, &loan.lender))
    }
}

impl<M: MemoryMut> fmt::Debug for LoanTable<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoanTable").field("lent", &self.lent).finish_non_exhaustive()
    }
}

/// A buffer in our half, to be filled and sent. Dropping it unsent gives it back.
pub struct LoanMut<M: MemoryMut> {
    lender: Arc<Lender<M>>,
    at: usize,
    len: usize,
    index: usize,
    sent: bool,
}

impl<M: MemoryMut> LoanMut<M> {
    /// Length of the message, in bytes.
    #[expect(clippy::len_without_is_empty, reason = "an empty loan is a loan too")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Shortens the message to `len` bytes; longer than it is has no effect.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Copies `data` to `offset` in the message. What is not written holds whatever an earlier message left there.
    ///
    /// # Panics
    /// If it does not fit.
    pub fn write_at(&mut self, offset: usize, data: &[u8]) {
        let fits = offset.checked_add(data.len()).is_some_and(|end| end <= self.len);
        assert!(fits, "{} bytes at {offset} of a loan of {}", data.len(), self.len);
        self.lender.own.mem.write(self.at + offset, data);
    }

    pub(super) fn index(&self) -> usize {
        self.index
    }

    /// The buffer belongs to the receiver now.
    pub(super) fn into_sent(mut self) {
        self.sent = true;
    }
}

impl<M: MemoryMut> Drop for LoanMut<M> {
    fn drop(&mut self) {
        if !self.sent {
            self.lender.unsent.fetch_or(1 << self.index, Ordering::Release);
        }
    }
}

impl<M: MemoryMut> fmt::Debug for LoanMut<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoanMut").field("index", &self.index).field("len", &self.len).finish_non_exhaustive()
    }
}

/// A loan was not sent; here it is again.
#[derive(Debug, thiserror::Error)]
#[error("loan not sent: {error}")]
pub struct SendLoanError<M: MemoryMut> {
    /// Why.
    #[source]
    pub error: RingError,
    /// The loan, as it was.
    pub loan: LoanMut<M>,
}

/// Called when dropping a [`Received`] must ring the peer: from any thread, so it must not block.
pub type LoanBell = Arc<dyn Fn() + Send + Sync>;

/// A message as it was received: copied already, or still lying in the sender's half.
///
/// The sender may misbehave and change a lent message while it is read: copy it, then parse the copy. Dropping it returns the loan.
pub struct Received<M: MemoryMut, P: Memory, L: Liveness>(Body<M, P, L>);

enum Body<M: MemoryMut, P: Memory, L: Liveness> {
    Copied(Vec<u8>),
    Lent(Lent<M, P, L>),
}

/// A loan of the peer's that we hold.
pub(super) struct Lent<M: MemoryMut, P: Memory, L: Liveness> {
    pub(super) borrower: Arc<Borrower<M, P, L>>,
    pub(super) index: usize,
    pub(super) len: usize,
    pub(super) head: LoanHead,
}

/// What every message that was lent to us needs to be read and returned. They share it, and the receiver keeps it: each handle that a message
/// had of its own would cost two locked instructions.
pub(super) struct Borrower<M: MemoryMut, P: Memory, L: Liveness> {
    pub(super) own: OwnHalf<M>,
    pub(super) peer: PeerHalf<P>,
    pub(super) live: L,
    pub(super) cross: Arc<Cross<M::Word>>,
    pub(super) bell: Option<LoanBell>,
}

impl<M: MemoryMut, P: Memory, L: Liveness> Received<M, P, L> {
    pub(super) fn copied(message: Vec<u8>) -> Self {
        Self(Body::Copied(message))
    }

    pub(super) fn lent(lent: Lent<M, P, L>) -> Self {
        Self(Body::Lent(lent))
    }

    /// Length of the message, in bytes.
    pub fn len(&self) -> usize {
        match &self.0 {
            Body::Copied(message) => message.len(),
            Body::Lent(lent) => lent.len,
        }
    }

    /// Whether the message is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The liveness that this asks; `None` for a message that was copied.
    pub fn live(&self) -> Option<&L> {
        match &self.0 {
            Body::Copied(_) => None,
            Body::Lent(lent) => Some(&lent.borrower.live),
        }
    }

    /// Whether it lies in the sender's half, and keeps a buffer of the sender from being used again.
    pub fn is_loan(&self) -> bool {
        matches!(self.0, Body::Lent(_))
    }

    /// Copies `out.len()` bytes at `offset` of the message. Fails if the sender has died: the copy may then be of anything.
    ///
    /// # Panics
    /// If the message does not have that many bytes there.
    pub fn read_at(&self, offset: usize, out: &mut [u8]) -> Result<(), RingError> {
        let fits = offset.checked_add(out.len()).is_some_and(|end| end <= self.len());
        assert!(fits, "{} bytes at {offset} of a message of {}", out.len(), self.len());
        match &self.0 {
            Body::Copied(message) => {
                out.copy_from_slice(&message[offset..offset + out.len()]);
                Ok(())
            }
            Body::Lent(lent) => {
                let known = lent.head.copy(offset, out);
                if known == out.len() {
                    return Ok(());
                }
                let Borrower { peer, live, .. } = &*lent.borrower;
                peer.mem.read(lent.at() + offset + known, &mut out[known..]);
                live.check().map_err(RingError::Reset)
            }
        }
    }

    /// The whole message, copied if it is not yet. Returns the loan. Fails as [`Received::read_at`].
    pub fn into_vec(self) -> Result<Vec<u8>, RingError> {
        match self.0 {
            Body::Copied(message) => Ok(message),
            Body::Lent(lent) => {
                let Borrower { peer, live, .. } = &*lent.borrower;
                let mut message = Vec::new();
                peer.mem.append(lent.at(), lent.len, &mut message);
                live.check().map_err(RingError::Reset)?;
                Ok(message)
            }
        }
    }
}

impl<M: MemoryMut, P: Memory, L: Liveness> Lent<M, P, L> {
    pub(super) fn at(&self) -> usize {
        self.borrower.peer.layout.loan_at(self.index)
    }
}

impl<M: MemoryMut, P: Memory, L: Liveness> Drop for Lent<M, P, L> {
    fn drop(&mut self) {
        let Borrower { own, peer, cross, bell, .. } = &*self.borrower;
        // Before the return is visible: the sender may lend the buffer again at once.
        cross.held.fetch_and(!(1 << self.index), Ordering::AcqRel);
        own.mem.fetch_xor(AT_LOAN_RETURNS, 1 << self.index); // Release, SYNC: loan
        M::fence(); // pairs with the fence in `Parker::arm`
        let ticket = peer.mem.load(AT_SPACE_TICKET, Ordering::Acquire);
        if ticket.is_multiple_of(2) || ticket == cross.rung_for_loan.load(Ordering::Relaxed) {
            return;
        }
        cross.rung_for_loan.store(ticket, Ordering::Relaxed);
        own.count_bell();
        match bell {
            Some(bell) => bell(),
            None => cross.bell_owed.store(1, Ordering::Release),
        }
    }
}

impl<M: MemoryMut, P: Memory, L: Liveness> fmt::Debug for Received<M, P, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Received")
            .field("len", &self.len())
            .field("is_loan", &self.is_loan())
            .finish_non_exhaustive()
    }
}
