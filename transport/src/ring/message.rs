//! Whole messages: a ring of cache-line slots, each with its sequence number in the line.
//!
//! # Slot
//! 64 bytes. The first word is the header, stored last, with Release:
//!
//! | bits | field |
//! |---|---|
//! | 0..32 | stamp: position of the message + 1, modulo 2^32. Positions count messages from 0 |
//! | 32..40 | kind: 0 to 56 = an inline message of that length; 57 = in the byte ring; 58 = in a loan; others are forbidden |
//! | 40..64 | acks: how many more messages of the other direction the sender has consumed since the slot before (piggybacked credit) |
//!
//! Payload of kind 57: the length (u64), at most the byte ring's size; the bytes follow each other in the byte ring, in the order of
//! messages. Of kind 58: index of the loan (u64), length (u64, at most the loan's size), sequence number of the lending (u64).
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

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam::utils::CachePadded;

use super::bytes::Ring;
use super::half::{OwnHalf, PeerHalf};
use super::layout::*;
use super::loan::{Lent, LoanBell, LoanMut, LoanTable, Received, SendLoanError};
use super::park::{Arm, Parker, Ringer, Wake};
use super::side::{ENDED, Side};
use super::{Liveness, RingError};
use crate::mem::{Memory, MemoryMut, Word};

/// The longest message that travels in the line that announces it, in bytes.
pub const INLINE_MAX: usize = SLOT - 8;

const KIND_BYTES: u64 = 57;
const KIND_LOAN: u64 = 58;
const ACKS_MAX: u64 = (1 << 24) - 1;
/// After that many messages a restart first renews the stamps; see the module's doc.
const STAMP_RENEWAL: u64 = 1 << 30;
/// How many slots ahead the sender asks for the line it will write.
const PREFETCH: usize = 8;

/// What the two directions of one side tell each other, in private memory.
pub(super) struct Cross<W> {
    /// Messages our receiver has consumed. Written by it, read by our sender.
    consumed: CachePadded<W>,
    /// Messages of ours that the peer's acks say are consumed. Written by our receiver, read by our sender.
    acked: CachePadded<W>,
    /// Bit i: the peer's loan i is held by a `Received` of ours.
    pub(super) held: W,
    /// The space ticket that a returned loan has rung for.
    pub(super) rung_for_loan: W,
    /// 1: a returned loan wants the peer rung, and there was no hook to do it.
    pub(super) bell_owed: W,
}

/// Both directions of messages over a pair of halves.
///
/// `live` is asked before anything received is handed over. It is cloned into every [`Received`], so it may also hold what keeps
/// our half from being given to another connection. `bell` is called when dropping a [`Received`] must ring the
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
    let zero = || CachePadded::new(M::Word::new(0));
    let cross = Arc::new(Cross {
        consumed: zero(),
        acked: zero(),
        held: M::Word::new(0),
        rung_for_loan: M::Word::new(0),
        bell_owed: M::Word::new(0),
    });
    let tx = Side { own: own.clone(), peer: peer.clone(), live: live.clone(), stopped: None };
    let rx = Side { own, peer, live, stopped: None };
    (MessageTx::new(tx, Arc::clone(&cross)), MessageRx::new(rx, cross, bell))
}

/// The sending end. One owner; may move between threads.
pub struct MessageTx<M: MemoryMut, P: Memory, L: Liveness> {
    side: Side<M, P, L>,
    cross: Arc<Cross<M::Word>>,
    mask: usize,
    /// Messages sent.
    position: u64,
    /// The slot after the last one used.
    slot: usize,
    /// `position` may not reach this: messages known to be consumed, plus the number of slots.
    limit: u64,
    /// The slots-consumed word as last accepted.
    credit: u64,
    /// Messages of the peer that we have acknowledged in headers.
    acks_sent: u64,
    stamps_renewed: u64,
    ring: Ring,
    byte_tail: u64,
    /// The bytes-consumed word as last accepted.
    byte_head: u64,
    loans: LoanTable<M::Word>,
    unflushed: bool,
    /// What the last send that would block was waiting for.
    need: Need,
    parker: Parker,
    ringer: Ringer,
}

#[derive(Clone, Copy, Debug)]
enum Need {
    Slot,
    Bytes(usize),
    Loan,
}

impl<M: MemoryMut, P: Memory, L: Liveness> MessageTx<M, P, L> {
    fn new(side: Side<M, P, L>, cross: Arc<Cross<M::Word>>) -> Self {
        let layout = side.own.layout;
        Self {
            side,
            cross,
            mask: layout.slots() - 1,
            position: 0,
            slot: 0,
            limit: layout.slots() as u64,
            credit: 0,
            acks_sent: 0,
            stamps_renewed: 0,
            ring: Ring::of(layout),
            byte_tail: 0,
            byte_head: 0,
            loans: LoanTable::new(layout),
            unflushed: false,
            need: Need::Slot,
            parker: Parker::for_space(),
            ringer: Ringer::for_data(),
        }
    }

    /// The longest message that can be sent, in bytes.
    pub fn max_len(&self) -> usize {
        self.side.own.layout.max_message()
    }

    /// Sends one message whole, or nothing.
    ///
    /// The peer sees it at once if it is polling; if it sleeps, only after [`MessageTx::flush`].
    #[inline]
    pub fn try_send(&mut self, message: &[u8]) -> Result<(), RingError> {
        if message.len() > INLINE_MAX {
            return self.send_long(message);
        }
        let at = self.claim()?;
        self.side.own.mem.write(at + 8, message);
        self.publish(at, message.len() as u64);
        Ok(())
    }

    fn send_long(&mut self, message: &[u8]) -> Result<(), RingError> {
        let layout = self.side.own.layout;
        let (len, ring) = (message.len(), layout.byte_capacity());
        // A loan saves nothing to who copies into it, but leaves the ring to others when the message would fill it.
        if len > ring / 2 && len <= layout.loan_len() {
            let mut loan = self.loan(len)?;
            loan.write_at(0, message);
            return self.send_loan(loan).map_err(|refused| refused.error);
        }
        if len > ring {
            return Err(RingError::TooLong { len, max: self.max_len() });
        }
        let at = self.claim()?;
        self.reserve_bytes(len)?;
        self.ring.write(&self.side.own.mem, self.byte_tail, message);
        self.byte_tail += len as u64;
        self.side.own.mem.store(at + 8, len as u64, Ordering::Relaxed);
        self.publish(at, KIND_BYTES);
        Ok(())
    }

    /// A buffer for a message of `len` bytes, to be written in place and sent with [`MessageTx::send_loan`].
    pub fn loan(&mut self, len: usize) -> Result<LoanMut<M>, RingError> {
        self.side.running()?;
        let max = self.side.own.layout.loan_len();
        if len > max {
            return Err(RingError::TooLong { len, max });
        }
        if !self.loans.any_free() {
            self.reclaim()?;
        }
        match self.loans.take() {
            Some(index) => Ok(self.loans.guard(&self.side.own, index, len)),
            None => Err(self.blocked(Need::Loan)),
        }
    }

    /// Sends a loan: no byte of it is copied. On error the loan comes back.
    ///
    /// # Panics
    /// If the loan is of another connection.
    pub fn send_loan(&mut self, loan: LoanMut<M>) -> Result<(), SendLoanError<M>> {
        assert!(self.loans.owns(&loan), "a loan can be sent only on the connection it was taken from");
        let at = match self.claim() {
            Ok(at) => at,
            Err(error) => return Err(SendLoanError { error, loan }),
        };
        let (index, len) = (loan.index(), loan.len());
        loan.into_sent();
        let sequence = self.loans.lend(index);
        for (i, word) in [index as u64, len as u64, sequence].into_iter().enumerate() {
            self.side.own.mem.store(at + 8 + 8 * i, word, Ordering::Relaxed);
        }
        self.publish(at, KIND_LOAN);
        Ok(())
    }

    /// Tells whether the peer must be rung for what was sent since the last flush.
    ///
    /// Fails if the peer has gone: what was sent and not received yet is lost.
    #[inline]
    pub fn flush(&mut self) -> Result<Wake, RingError> {
        if !std::mem::take(&mut self.unflushed) {
            return Ok(Wake::NotNeeded);
        }
        M::fence(); // pairs with the fence in `Parker::arm`
        let wake = match self.ringer.sleeper(&self.side.peer.mem) {
            Some(ticket) => self.ringer.ring(ticket, &self.side.own.mem),
            None => Wake::NotNeeded,
        };
        self.side.check_reader()?;
        Ok(wake)
    }

    /// Prepares to sleep until what the last send waited for may be there, or the connection ends.
    pub fn arm(&mut self) -> Arm {
        self.parker.arm(&self.side.own.mem);
        let wait = self.side.stopped.is_none()
            && matches!(self.has(self.need), Ok(false))
            && self.side.check_reader().is_ok();
        if wait {
            return Arm::Sleep;
        }
        self.disarm();
        Arm::Ready
    }

    /// Takes the ticket back, after waking up. A successful send does it too.
    pub fn disarm(&mut self) {
        self.parker.disarm(&self.side.own.mem);
    }

    /// Ends this direction after what was sent. Flush afterwards. Doing it twice changes nothing.
    pub fn shutdown(&mut self) {
        self.unflushed |= self.side.shut_writing();
    }

    /// Our half, for its state bits.
    pub fn own(&self) -> &OwnHalf<M> {
        &self.side.own
    }

    /// The peer's half, for its state bits.
    pub fn peer(&self) -> &PeerHalf<P> {
        &self.side.peer
    }

    /// The offset of the slot for the next message.
    #[inline]
    fn claim(&mut self) -> Result<usize, RingError> {
        self.side.running()?;
        let acked = self.cross.acked.load(Ordering::Acquire); // SYNC: acked
        if acked >= self.position {
            self.restart(acked)?;
        } else if self.position >= self.limit {
            self.wait_for_slot()?;
        }
        Ok(HalfLayout::slot_at(self.slot))
    }

    /// Everything sent has been consumed: back to slot 0.
    #[inline]
    fn restart(&mut self, acked: u64) -> Result<(), RingError> {
        if acked > self.position {
            let sent = self.position;
            return Err(self.side.misbehaved(|| format!("it acknowledged {acked} messages of {sent}")));
        }
        if self.position - self.stamps_renewed >= STAMP_RENEWAL {
            self.renew_stamps();
        }
        self.limit = self.position + self.mask as u64 + 1;
        self.slot = 0;
        Ok(())
    }

    #[cold]
    fn renew_stamps(&mut self) {
        self.stamps_renewed = self.position;
        let stamp = u64::from(self.position as u32); // that of the message consumed last
        for slot in 0..=self.mask {
            self.side.own.mem.store(HalfLayout::slot_at(slot), stamp, Ordering::Relaxed);
        }
    }

    #[cold]
    fn wait_for_slot(&mut self) -> Result<(), RingError> {
        if self.has(Need::Slot)? {
            return Ok(());
        }
        Err(self.blocked(Need::Slot))
    }

    #[inline]
    fn reserve_bytes(&mut self, len: usize) -> Result<(), RingError> {
        if self.byte_room() >= len || self.has(Need::Bytes(len))? {
            return Ok(());
        }
        Err(self.blocked(Need::Bytes(len)))
    }

    #[inline]
    fn publish(&mut self, at: usize, kind: u64) {
        let consumed = self.cross.consumed.load(Ordering::Acquire); // SYNC: consumed
        let acks = (consumed - self.acks_sent).min(ACKS_MAX);
        self.acks_sent += acks;
        self.position += 1;
        let header = u64::from(self.position as u32) | kind << 32 | acks << 40;
        self.side.own.mem.store(at, header, Ordering::Release); // SYNC: slot
        self.slot = (self.slot + 1) & self.mask;
        self.unflushed = true;
        self.parker.disarm(&self.side.own.mem);
        self.side.own.mem.prefetch_write(HalfLayout::slot_at((self.slot + PREFETCH) & self.mask));
    }

    /// Nothing was sent: says why, and remembers it for [`MessageTx::arm`].
    #[cold]
    fn blocked(&mut self, need: Need) -> RingError {
        self.need = need;
        match self.side.check_reader() {
            Ok(()) => RingError::WouldBlock,
            Err(error) => error,
        }
    }

    /// Looks at the peer's half for what is needed.
    fn has(&mut self, need: Need) -> Result<bool, RingError> {
        match need {
            Need::Slot => {
                self.refresh_slots()?;
                Ok(self.position < self.limit)
            }
            Need::Bytes(len) => {
                self.refresh_bytes()?;
                Ok(self.byte_room() >= len)
            }
            Need::Loan => {
                self.reclaim()?;
                Ok(self.loans.any_free())
            }
        }
    }

    fn refresh_slots(&mut self) -> Result<(), RingError> {
        let credit = self.side.peer.mem.load(AT_SLOTS_CONSUMED, Ordering::Acquire); // SYNC: credit
        let acked = self.cross.acked.load(Ordering::Acquire); // SYNC: acked
        if credit < self.credit || credit.max(acked) > self.position {
            let (was, sent) = (self.credit, self.position);
            return Err(self.side.misbehaved(|| {
                format!("it consumed {credit} messages (and acknowledged {acked}), after {was} of {sent}")
            }));
        }
        self.credit = credit;
        self.limit = self.limit.max(credit.max(acked) + self.mask as u64 + 1);
        Ok(())
    }

    fn byte_room(&self) -> usize {
        self.ring.len() - (self.byte_tail - self.byte_head) as usize
    }

    fn refresh_bytes(&mut self) -> Result<(), RingError> {
        let head = self.side.peer.mem.load(AT_BYTES_CONSUMED, Ordering::Acquire); // SYNC: credit
        if head < self.byte_head || head > self.byte_tail {
            let (was, tail) = (self.byte_head, self.byte_tail);
            return Err(self.side.misbehaved(|| format!("it consumed {head} bytes, after {was} of {tail}")));
        }
        self.byte_head = head;
        Ok(())
    }

    fn reclaim(&mut self) -> Result<(), RingError> {
        self.loans.reclaim(&self.side.peer.mem).map_err(|what| self.side.misbehaved(|| what))
    }
}

/// The receiving end. One owner; may move between threads.
pub struct MessageRx<M: MemoryMut, P: Memory, L: Liveness> {
    side: Side<M, P, L>,
    cross: Arc<Cross<M::Word>>,
    mask: usize,
    /// Messages consumed.
    position: u64,
    /// The slot after the last one consumed.
    slot: usize,
    /// Of the messages consumed, those told to the peer in our half.
    published: u64,
    /// Messages of ours that the peer's headers acknowledged.
    acked: u64,
    ring: Ring,
    byte_head: u64,
    byte_head_published: u64,
    owed: Wake,
    scratch: Vec<u8>,
    bell: Option<LoanBell>,
    parker: Parker,
    ringer: Ringer,
}

/// A message found and validated, not consumed yet.
#[derive(Clone, Copy, Debug)]
struct Found {
    at: usize,
    acks: u64,
    place: Place,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    Inline { len: usize },
    Bytes { len: usize },
    Loan { index: usize, len: usize, sequence: u64 },
}

impl<M: MemoryMut, P: Memory, L: Liveness> MessageRx<M, P, L> {
    fn new(side: Side<M, P, L>, cross: Arc<Cross<M::Word>>, bell: Option<LoanBell>) -> Self {
        let layout = side.peer.layout;
        Self {
            side,
            cross,
            mask: layout.slots() - 1,
            position: 0,
            slot: 0,
            published: 0,
            acked: 0,
            ring: Ring::of(layout),
            byte_head: 0,
            byte_head_published: 0,
            owed: Wake::NotNeeded,
            scratch: Vec::new(),
            bell,
            parker: Parker::for_data(),
            ringer: Ringer::for_space(),
        }
    }

    /// The longest message the peer can send, in bytes.
    pub fn max_len(&self) -> usize {
        self.side.peer.layout.max_message()
    }

    /// Replaces the contents of `out` by the next message and returns its length; `None` after the peer has shut down.
    ///
    /// On an error `out` is empty. Call [`MessageRx::flush`] some time after it: the sender may be asleep for want of room.
    #[inline]
    pub fn try_recv(&mut self, out: &mut Vec<u8>) -> Result<Option<usize>, RingError> {
        out.clear();
        let Some(found) = self.find()? else { return Ok(None) };
        if let Place::Inline { len } = found.place {
            self.side.peer.mem.append(found.at + 8, len, out);
        } else {
            self.copy(&found, out);
        }
        if let Err(error) = self.side.check_alive() {
            out.clear(); // it may be of anything
            return Err(error);
        }
        self.consume(&found);
        Ok(Some(out.len()))
    }

    /// Calls `f` with a private copy of the next message; otherwise as [`MessageRx::try_recv`]. The fastest way for short ones.
    #[inline]
    pub fn try_recv_with<R>(&mut self, f: impl FnOnce(&[u8]) -> R) -> Result<Option<R>, RingError> {
        let Some(found) = self.find()? else { return Ok(None) };
        if let Place::Inline { len } = found.place {
            let mut message = [0; INLINE_MAX];
            self.side.peer.mem.read(found.at + 8, &mut message[..len]);
            self.side.check_alive()?;
            self.consume(&found);
            return Ok(Some(f(&message[..len])));
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        self.copy(&found, &mut scratch);
        self.side.check_alive()?;
        self.consume(&found);
        let result = f(&scratch);
        self.scratch = scratch;
        Ok(Some(result))
    }

    /// The next message, left where it is if it came as a loan; otherwise as [`MessageRx::try_recv`].
    pub fn try_recv_loan(&mut self) -> Result<Option<Received<M, P, L>>, RingError> {
        let Some(found) = self.find()? else { return Ok(None) };
        if !matches!(found.place, Place::Loan { .. }) {
            let mut message = Vec::new();
            self.copy(&found, &mut message);
            self.side.check_alive()?;
            self.consume(&found);
            return Ok(Some(Received::copied(message)));
        }
        self.side.check_alive()?;
        Ok(self.consume(&found).map(Received::lent))
    }

    /// Tells whether the sender must be rung because room it waits for has been given back.
    #[inline]
    pub fn flush(&mut self) -> Wake {
        if self.bell.is_none() && self.cross.bell_owed.load(Ordering::Relaxed) != 0 {
            self.cross.bell_owed.store(0, Ordering::Relaxed);
            self.owed = Wake::Ring;
        }
        std::mem::replace(&mut self.owed, Wake::NotNeeded)
    }

    /// Whether a message (or the end) is there to be received now. A cheap look, for those who poll many.
    #[inline]
    pub fn is_ready(&mut self) -> bool {
        self.look().is_some() || self.side.stopped.is_some() || self.side.peer.state().any(ENDED)
    }

    /// Prepares to sleep until there is a message, or the connection ends.
    pub fn arm(&mut self) -> Arm {
        self.parker.arm(&self.side.own.mem);
        if !self.is_ready() && self.side.check_alive().is_ok() {
            return Arm::Sleep;
        }
        self.disarm();
        Arm::Ready
    }

    /// Takes the ticket back, after waking up. A successful receive does it too.
    pub fn disarm(&mut self) {
        self.parker.disarm(&self.side.own.mem);
    }

    /// Says that nothing more will be received: the peer's sends fail from now on. Flush afterwards.
    pub fn shutdown(&mut self) {
        self.side.shut_reading();
        self.give_back();
    }

    /// The slot in which the next message is, and its header.
    #[inline]
    fn look(&mut self) -> Option<(usize, u64)> {
        let stamp = (self.position as u32).wrapping_add(1);
        let at = HalfLayout::slot_at(self.slot);
        let header = self.side.peer.mem.load(at, Ordering::Acquire); // SYNC: slot
        if header as u32 == stamp {
            return Some((at, header));
        }
        let header = self.side.peer.mem.load(AT_SLOTS, Ordering::Acquire); // SYNC: slot
        if header as u32 == stamp {
            self.slot = 0;
            return Some((AT_SLOTS, header));
        }
        None
    }

    /// The next message, validated; `None` at the end.
    #[inline]
    fn find(&mut self) -> Result<Option<Found>, RingError> {
        self.side.running()?;
        match self.look() {
            Some((at, header)) => self.validate(at, header).map(Some),
            None => self.nothing_yet(),
        }
    }

    #[inline]
    fn validate(&mut self, at: usize, header: u64) -> Result<Found, RingError> {
        let (kind, acks) = ((header >> 32) & 0xff, header >> 40);
        if kind <= INLINE_MAX as u64 {
            return Ok(Found { at, acks, place: Place::Inline { len: kind as usize } });
        }
        Ok(Found { at, acks, place: self.validate_long(at, kind)? })
    }

    fn validate_long(&mut self, at: usize, kind: u64) -> Result<Place, RingError> {
        let layout = self.side.peer.layout;
        let [first, second, sequence] =
            [8, 16, 24].map(|word| self.side.peer.mem.load(at + word, Ordering::Relaxed));
        match kind {
            KIND_BYTES if first <= layout.byte_capacity() as u64 => Ok(Place::Bytes { len: first as usize }),
            KIND_BYTES => {
                Err(self.side.misbehaved(|| format!("a message of {first} bytes in its byte ring")))
            }
            KIND_LOAN => {
                let held = self.cross.held.load(Ordering::Acquire);
                let known = first < u64::from(layout.loan_count);
                if !known || second > layout.loan_len() as u64 || held >> first & 1 != 0 {
                    return Err(self.side.misbehaved(|| {
                        format!("{second} bytes in loan {first}, which does not exist, is shorter, or is lent already")
                    }));
                }
                Ok(Place::Loan { index: first as usize, len: second as usize, sequence })
            }
            _ => Err(self.side.misbehaved(|| format!("a message of kind {kind}"))),
        }
    }

    /// There is no message: gives room back, and looks whether there will be none any more.
    fn nothing_yet(&mut self) -> Result<Option<Found>, RingError> {
        if self.byte_head != self.byte_head_published {
            self.give_back();
        }
        let state = self.side.peer.state();
        if !state.any(ENDED) {
            self.side.check_alive()?;
            return Err(RingError::WouldBlock);
        }
        // What was sent before the state was set is visible now.
        if let Some((at, header)) = self.look() {
            return self.validate(at, header).map(Some);
        }
        self.side.end_of_data(state)?;
        Ok(None)
    }

    fn copy(&mut self, found: &Found, out: &mut Vec<u8>) {
        let peer = &self.side.peer;
        match found.place {
            Place::Inline { len } => peer.mem.append(found.at + 8, len, out),
            Place::Bytes { len } => self.ring.append(&peer.mem, self.byte_head, len, out),
            Place::Loan { index, len, .. } => peer.mem.append(peer.layout.loan_at(index), len, out),
        }
    }

    /// Counts the message as received. For a loan the guard, whose drop returns it.
    #[inline]
    fn consume(&mut self, found: &Found) -> Option<Lent<M, P, L>> {
        self.position += 1;
        self.slot = (self.slot + 1) & self.mask;
        self.cross.consumed.store(self.position, Ordering::Release); // SYNC: consumed
        if found.acks != 0 {
            // A lying sum is found by our sender, which knows how many there can be.
            self.acked = self.acked.saturating_add(found.acks);
            self.cross.acked.store(self.acked, Ordering::Release); // SYNC: acked
        }
        self.parker.disarm(&self.side.own.mem);
        if let Place::Bytes { len } = found.place {
            self.byte_head += len as u64;
        }
        let lent = match found.place {
            Place::Loan { index, len, sequence } => Some(self.hold(index, len, sequence)),
            _ => None,
        };
        let slots = self.position - self.published > self.mask as u64 / 4;
        if slots || self.byte_head - self.byte_head_published > self.ring.quarter() {
            self.give_back();
        }
        lent
    }

    fn hold(&mut self, index: usize, len: usize, sequence: u64) -> Lent<M, P, L> {
        self.cross.held.fetch_or(1 << index, Ordering::AcqRel);
        let Side { own, peer, live, .. } = &self.side;
        Lent {
            own: own.clone(),
            peer: peer.clone(),
            live: live.clone(),
            cross: Arc::clone(&self.cross),
            bell: self.bell.clone(),
            index,
            len,
            sequence,
        }
    }

    fn give_back(&mut self) {
        self.published = self.position;
        self.byte_head_published = self.byte_head;
        let own = &self.side.own.mem;
        own.store(AT_SLOTS_CONSUMED, self.position, Ordering::Release); // SYNC: credit
        own.store(AT_BYTES_CONSUMED, self.byte_head, Ordering::Release); // SYNC: credit
        M::fence(); // pairs with the fence in `Parker::arm`
        if let Some(ticket) = self.ringer.sleeper(&self.side.peer.mem) {
            self.owed = self.ringer.ring(ticket, own);
        }
    }
}

impl<M: MemoryMut, P: Memory, L: Liveness> fmt::Debug for MessageTx<M, P, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MessageTx")
            .field("sent", &self.position)
            .field("limit", &self.limit)
            .field("need", &self.need)
            .field("stopped", &self.side.stopped)
            .finish_non_exhaustive()
    }
}

impl<M: MemoryMut, P: Memory, L: Liveness> fmt::Debug for MessageRx<M, P, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MessageRx")
            .field("received", &self.position)
            .field("acked", &self.acked)
            .field("stopped", &self.side.stopped)
            .finish_non_exhaustive()
    }
}

/// Pretends that `count` more messages went from `tx` to `rx` in slot 0, each acknowledged to `acks` on `tx`'s side.
#[cfg(test)]
pub(super) fn skip<M: MemoryMut, P: Memory, L: Liveness>(
    tx: &mut MessageTx<M, P, L>,
    rx: &mut MessageRx<M, P, L>,
    acks: &mut MessageRx<M, P, L>,
    count: u64,
) {
    let position = tx.position + count;
    (tx.position, tx.limit) = (position, position);
    (rx.position, rx.published, acks.acked) = (position, position, position);
    rx.cross.consumed.store(position, Ordering::Relaxed);
    tx.cross.acked.store(position, Ordering::Relaxed);
}
