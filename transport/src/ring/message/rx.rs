//! The receiving end of messages.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::run::{Arrived, RUN_BYTES};
use super::{Cross, INLINE_MAX, KIND_BYTES, KIND_LOAN};
use crate::mem::{Memory, MemoryMut, Word};
use crate::ring::bytes::Ring;
use crate::ring::in_place::{InPlace, LoanHead};
use crate::ring::layout::*;
use crate::ring::loan::{Borrower, Lent, LoanBell, Received};
use crate::ring::park::{Arm, Wake};
use crate::ring::side::{ENDED, ReceivingSide};
use crate::ring::{Liveness, RingError};

/// The bytes of a long message by which it is decided where the rest goes.
pub const APART: usize = 8;
/// Messages shorter than this, in bytes, are not worth deciding about. The rings of tests have no long ones.
const APART_MIN: usize = if cfg!(any(test, feature = "fuzzing")) { 64 } else { 1024 };

/// After so many messages in a row, with none of them waited for, the next lines are asked for ahead. Earlier the sender might be at them.
const STREAM_MIN: u32 = 32;
/// How many messages ahead.
const READ_AHEAD: u32 = 4;
/// Longer ones are not asked for, in bytes.
const READ_AHEAD_MAX: usize = 128;

/// The receiving end. One owner; may move between threads.
pub struct MessageRx<M: MemoryMut, P: Memory, L: Liveness> {
    side: ReceivingSide<M, P, L>,
    cross: Arc<Cross<M::Word>>,
    mask: u32,
    /// Messages consumed.
    position: u64,
    /// The slot after the last one consumed.
    slot: u32,
    /// Of the messages consumed, those told to the peer in our half.
    published: u64,
    /// Messages of ours that the peer's headers acknowledged.
    acked: u64,
    ring: Ring,
    byte_head: u64,
    byte_head_published: u64,
    /// Messages received one by one since the last look that found none.
    streak: u32,
    /// The run whose messages are being received, if it has any left.
    run: Arrived,
    /// Bit i: we are done with the peer's loan i, which it has not been told yet.
    due: u64,
    owed: Wake,
    scratch: Vec<u8>,
    /// Somebody rings the peer for loans that are returned.
    has_bell: bool,
    /// For the loans that we hold; `None` if the peer has no loans.
    borrower: Option<Arc<Borrower<M, P, L>>>,
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
    Run { len: usize },
    Loan { index: usize, len: usize },
}

impl<M: MemoryMut, P: Memory, L: Liveness> MessageRx<M, P, L> {
    pub(super) fn new(
        side: ReceivingSide<M, P, L>,
        cross: Arc<Cross<M::Word>>,
        bell: Option<LoanBell>,
    ) -> Self {
        let layout = side.peer.layout;
        let has_bell = bell.is_some();
        let borrower = (layout.loan_count != 0).then(|| {
            let ReceivingSide { own, peer, live, .. } = &side;
            let (own, peer, live) = (own.clone(), peer.clone(), live.clone());
            Arc::new(Borrower { own, peer, live, cross: Arc::clone(&cross), bell })
        });
        Self {
            side,
            cross,
            mask: layout.slots() as u32 - 1,
            position: 0,
            slot: 0,
            published: 0,
            acked: 0,
            ring: Ring::of(layout),
            byte_head: 0,
            byte_head_published: 0,
            streak: 0,
            run: Arrived::default(),
            due: 0,
            owed: Wake::NotNeeded,
            scratch: Vec::new(),
            has_bell,
            borrower,
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
        self.receive(&found, out)?;
        Ok(Some(out.len()))
    }

    /// As [`MessageRx::try_recv`], but of a long message only the first [`APART`] bytes go to `out` if `place`, told these and how many follow, says where
    /// the rest is to be appended. Returns how many bytes were.
    ///
    /// On an error nothing has been appended.
    #[inline]
    pub fn try_recv_apart<'a>(
        &mut self,
        out: &mut Vec<u8>,
        place: impl FnOnce(&[u8], usize) -> Option<&'a mut Vec<u8>>,
    ) -> Result<Option<usize>, RingError> {
        out.clear();
        let Some(found) = self.find()? else { return Ok(None) };
        if let Place::Bytes { len } = found.place
            && len >= APART_MIN
        {
            let rest = self.copy_apart(len, out, place)?;
            self.consume(&found);
            return Ok(Some(rest));
        }
        self.receive(&found, out)?;
        Ok(Some(0))
    }

    /// Copies the message to the empty `out` and counts it as received.
    #[inline]
    fn receive(&mut self, found: &Found, out: &mut Vec<u8>) -> Result<(), RingError> {
        self.read_ahead(found.place);
        if let Place::Inline { len } = found.place {
            self.side.peer.mem.append(found.at + 8, len, out);
        } else {
            self.copy(found, out);
        }
        if let Err(error) = self.side.check_alive() {
            out.clear(); // it may be of anything
            return Err(error);
        }
        self.consume(found);
        Ok(())
    }

    /// Asks for the lines of a later message that is like this one: else few loads of other messages are under way while the lines of this one come.
    #[inline]
    fn read_ahead(&mut self, place: Place) {
        self.streak = self.streak.saturating_add(1);
        if self.streak <= STREAM_MIN {
            return;
        }
        let mem = &self.side.peer.mem;
        let slot = || mem.prefetch_read(HalfLayout::slot_at(((self.slot + READ_AHEAD) & self.mask) as usize));
        match place {
            Place::Inline { .. } => slot(),
            Place::Bytes { len } if len <= READ_AHEAD_MAX => {
                slot();
                self.ring.prefetch_read(mem, self.byte_head + u64::from(READ_AHEAD) * len as u64, len);
            }
            // A run is asked for as a whole. Of loans few are under way, so the sender is near.
            Place::Bytes { .. } | Place::Run { .. } | Place::Loan { .. } => {}
        }
    }

    /// Copies a message of the byte ring. Returns how many bytes went elsewhere.
    fn copy_apart<'a>(
        &mut self,
        len: usize,
        out: &mut Vec<u8>,
        place: impl FnOnce(&[u8], usize) -> Option<&'a mut Vec<u8>>,
    ) -> Result<usize, RingError> {
        let mut head = [0; APART];
        self.ring.read(&self.side.peer.mem, self.byte_head, &mut head);
        self.side.check_alive()?;
        out.extend_from_slice(&head);
        let (at, rest) = (self.byte_head + APART as u64, len - APART);
        let place = place(&head, rest);
        let (elsewhere, body) = match place {
            Some(body) => (rest, body),
            None => (0, &mut *out),
        };
        let before = body.len();
        self.ring.append(&self.side.peer.mem, at, rest, body);
        if let Err(error) = self.side.check_alive() {
            body.truncate(before); // it may be of anything
            out.clear();
            return Err(error);
        }
        Ok(elsewhere)
    }

    /// Calls `f` with a private copy of the next message; otherwise as [`MessageRx::try_recv`]. The fastest way for short ones.
    #[inline]
    pub fn try_recv_with<R>(&mut self, f: impl FnOnce(&[u8]) -> R) -> Result<Option<R>, RingError> {
        let Some(found) = self.find()? else { return Ok(None) };
        self.receive_with(&found, f)
    }

    #[inline]
    fn receive_with<R>(&mut self, found: &Found, f: impl FnOnce(&[u8]) -> R) -> Result<Option<R>, RingError> {
        self.read_ahead(found.place);
        if let Place::Inline { len } = found.place {
            let mut message = [0; INLINE_MAX];
            self.side.peer.mem.read(found.at + 8, &mut message[..len]);
            self.side.check_alive()?;
            self.consume(found);
            return Ok(Some(f(&message[..len])));
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        self.copy(found, &mut scratch);
        self.side.check_alive()?;
        self.consume(found);
        let result = f(&scratch);
        self.scratch = scratch;
        Ok(Some(result))
    }

    /// Calls `f` with a private copy of each of the next messages, in order: of those that were sent together, or of one. Returns how many; `None` after the peer
    /// has shut down. Otherwise as [`MessageRx::try_recv`].
    ///
    /// The messages count as received before `f` is called.
    #[inline]
    pub fn try_recv_many(&mut self, mut f: impl FnMut(&[u8])) -> Result<Option<usize>, RingError> {
        let Some(found) = self.find()? else { return Ok(None) };
        if !matches!(found.place, Place::Run { .. }) {
            return Ok(self.receive_with(&found, f)?.map(|()| 1));
        }
        let bytes = self.run.rest().iter().map(|len| usize::from(*len)).sum();
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        self.ring.append(&self.side.peer.mem, self.byte_head, bytes, &mut scratch);
        self.side.check_alive()?;
        self.byte_head += bytes as u64;
        let mut rest = scratch.as_slice();
        for len in self.run.rest() {
            let (message, next) = rest.split_at(usize::from(*len));
            f(message);
            rest = next;
        }
        let count = self.run.rest().len();
        self.run.pop_all();
        self.advance_slot(found.acks);
        self.scratch = scratch;
        Ok(Some(count))
    }

    /// Calls `f` with the next message where it is: in the sender's half, if it came as a loan. Otherwise as [`MessageRx::try_recv`].
    ///
    /// What `f` has made of it is dropped if the sender has died meanwhile: it may be of anything. If `f` panics, the message is received again.
    #[inline]
    pub fn try_recv_in_place<R>(
        &mut self,
        f: impl FnOnce(&InPlace<'_, P>) -> R,
    ) -> Result<Option<R>, RingError> {
        let Some(found) = self.find()? else { return Ok(None) };
        let Place::Loan { index, len } = found.place else {
            return self.receive_with(&found, |message| f(&InPlace::copied(message)));
        };
        let peer = &self.side.peer;
        let head = LoanHead::read(&peer.mem, found.at, len);
        let result = f(&InPlace::lent(&peer.mem, peer.layout.loan_at(index), len, head));
        self.side.check_alive()?;
        self.consume(&found);
        Ok(Some(result))
    }

    /// The next message, left where it is if it came as a loan; otherwise as [`MessageRx::try_recv`].
    pub fn try_recv_loan(&mut self) -> Result<Option<Received<M, P, L>>, RingError> {
        let Some(found) = self.find()? else { return Ok(None) };
        let Place::Loan { index, len } = found.place else {
            let mut message = Vec::new();
            self.copy(&found, &mut message);
            self.side.check_alive()?;
            self.consume(&found);
            return Ok(Some(Received::copied(message)));
        };
        // As long as the slot is ours.
        let head = LoanHead::read(&self.side.peer.mem, found.at, len);
        self.side.check_alive()?;
        let lent = self.hold(index, len, head);
        self.advance(&found);
        Ok(lent.map(Received::lent))
    }

    /// Tells whether the sender must be rung because room it waits for has been given back.
    #[inline]
    pub fn flush(&mut self) -> Wake {
        if !self.has_bell && self.cross.bell_owed.load(Ordering::Relaxed) != 0 {
            self.cross.bell_owed.store(0, Ordering::Relaxed);
            self.owed = Wake::Ring;
        }
        std::mem::replace(&mut self.owed, Wake::NotNeeded)
    }

    /// Whether a message (or the end) is there to be received now. A cheap look, for those who poll many.
    #[inline]
    pub fn is_ready(&mut self) -> bool {
        self.run.is_open()
            || self.look().is_some()
            || self.side.stopped.is_some()
            || self.side.peer.state().any(ENDED)
    }

    /// Prepares to sleep until there is a message, or the connection ends.
    pub fn arm(&mut self) -> Arm {
        self.side.arm();
        let wait = !self.is_ready() && self.side.check_alive().is_ok();
        self.side.armed(wait)
    }

    /// Takes the ticket back, after waking up. A successful receive does it too.
    pub fn disarm(&mut self) {
        self.side.disarm();
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
        let at = HalfLayout::slot_at(self.slot as usize);
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
        if self.run.is_open() {
            return Ok(Some(self.found_in_run()));
        }
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
        Ok(Found { at, acks, place: self.validate_long(at, kind, acks)? })
    }

    #[inline]
    fn found_in_run(&self) -> Found {
        Found { at: 0, acks: self.run.acks, place: Place::Run { len: self.run.front() } }
    }

    fn validate_long(&mut self, at: usize, kind: u64, acks: u64) -> Result<Place, RingError> {
        let layout = self.side.peer.layout;
        let [first, second] = [8, 16].map(|word| self.side.peer.mem.load(at + word, Ordering::Relaxed));
        match kind {
            KIND_BYTES if first <= layout.byte_capacity() as u64 => Ok(Place::Bytes { len: first as usize }),
            KIND_BYTES => {
                Err(self.side.misbehaved(|| format!("a message of {first} bytes in its byte ring")))
            }
            KIND_LOAN => {
                let held = self.cross.held.load(Ordering::Acquire) | self.due;
                let known = first < u64::from(layout.loan_count);
                if !known || second > layout.loan_len() as u64 || held >> first & 1 != 0 {
                    return Err(self.side.misbehaved(|| {
                        format!("{second} bytes in loan {first}, which does not exist, is shorter, or is lent already")
                    }));
                }
                Ok(Place::Loan { index: first as usize, len: second as usize })
            }
            _ => self.validate_run(at, kind, acks),
        }
    }

    #[inline(never)]
    fn validate_run(&mut self, at: usize, kind: u64, acks: u64) -> Result<Place, RingError> {
        let (mem, capacity) = (&self.side.peer.mem, self.side.peer.layout.byte_capacity());
        match self.run.begin(mem, at, kind, acks, capacity) {
            Some(bytes) if bytes <= capacity => {
                self.ring.prefetch_read(mem, self.byte_head, bytes.min(RUN_BYTES));
                Ok(Place::Run { len: self.run.front() })
            }
            Some(bytes) => {
                Err(self.side.misbehaved(|| format!("messages of {bytes} bytes in its byte ring at once")))
            }
            None => Err(self.side.misbehaved(|| format!("a message of kind {kind}"))),
        }
    }

    /// There is no message: gives room back, and looks whether there will be none any more.
    fn nothing_yet(&mut self) -> Result<Option<Found>, RingError> {
        self.streak = 0;
        if self.byte_head != self.byte_head_published || self.due != 0 {
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

    #[inline]
    fn copy(&mut self, found: &Found, out: &mut Vec<u8>) {
        let peer = &self.side.peer;
        match found.place {
            Place::Inline { len } => peer.mem.append(found.at + 8, len, out),
            Place::Bytes { len } | Place::Run { len } => {
                self.ring.append(&peer.mem, self.byte_head, len, out);
            }
            Place::Loan { index, len } => peer.mem.append(peer.layout.loan_at(index), len, out),
        }
    }

    /// Counts the message as received. Its loan, if it came as one, is to be returned.
    #[inline]
    fn consume(&mut self, found: &Found) {
        if let Place::Loan { index, .. } = found.place {
            self.due |= 1 << index;
            // The sender may have looked at that line; the fence after the return would wait for it.
            self.side.own.mem.prefetch_write(AT_LOAN_RETURNS, 8);
        }
        self.advance(found);
    }

    /// Counts the message as received. What becomes of its loan is another matter.
    #[inline]
    fn advance(&mut self, found: &Found) {
        if let Place::Run { len } = found.place {
            self.byte_head += len as u64;
            if !self.run.pop() {
                if self.byte_head - self.byte_head_published > self.ring.quarter() {
                    self.give_back();
                }
                return;
            }
        }
        if let Place::Bytes { len } = found.place {
            self.byte_head += len as u64;
        }
        self.advance_slot(found.acks);
    }

    /// All that a slot announced is received.
    #[inline]
    fn advance_slot(&mut self, acks: u64) {
        self.position += 1;
        self.slot = (self.slot + 1) & self.mask;
        self.cross.consumed.store(self.position, Ordering::Release); // SYNC: consumed
        if acks != 0 {
            // A lying sum is found by our sender, which knows how many there can be.
            self.acked = self.acked.saturating_add(acks);
            self.cross.acked.store(self.acked, Ordering::Release); // SYNC: acked
        }
        self.side.disarm();
        let slots = self.position - self.published > u64::from(self.mask) / 4;
        // Later than of short ones: the fence waits for the copy, and whoever is done with a long one looks again anyway.
        let bytes = self.byte_head - self.byte_head_published > self.ring.len() as u64 / 2;
        if slots || bytes || self.due != 0 && self.half_of_loans_are_here() {
            self.give_back();
        }
    }

    /// Whether returns must not be put off: of those who wait for each other's loans, one would wait for ever.
    fn half_of_loans_are_here(&self) -> bool {
        let here = self.due | self.cross.held.load(Ordering::Relaxed);
        2 * here.count_ones() >= u32::from(self.side.peer.layout.loan_count)
    }

    fn hold(&mut self, index: usize, len: usize, head: LoanHead) -> Option<Lent<M, P, L>> {
        let borrower = Arc::clone(self.borrower.as_ref()?);
        self.cross.held.fetch_or(1 << index, Ordering::AcqRel);
        // The sender has looked at that line; the fence of the return would wait for it.
        self.side.own.mem.prefetch_write(AT_LOAN_RETURNS, 8);
        Some(Lent { borrower, index, len, head })
    }

    fn give_back(&mut self) {
        self.published = self.position;
        self.byte_head_published = self.byte_head;
        let own = &self.side.own.mem;
        own.store(AT_SLOTS_CONSUMED, self.position, Ordering::Release); // SYNC: credit
        own.store(AT_BYTES_CONSUMED, self.byte_head, Ordering::Release); // SYNC: credit
        let due = std::mem::take(&mut self.due);
        if due != 0 {
            own.fetch_xor(AT_LOAN_RETURNS, due); // Release, SYNC: loan
        }
        M::fence(); // pairs with the fence in `Parker::arm`
        if let Some(ticket) = self.side.ringer.sleeper(&self.side.peer.mem) {
            self.owed = self.side.ringer.ring(ticket, own);
        }
    }
}

#[cfg(test)]
impl<M: MemoryMut, P: Memory, L: Liveness> MessageRx<M, P, L> {
    /// Pretends that more messages were received, up to `position`.
    pub(in crate::ring) fn skip_to(&mut self, position: u64) {
        (self.position, self.published) = (position, position);
        self.cross.consumed.store(position, Ordering::Relaxed);
    }

    /// Pretends that the peer has acknowledged messages up to `position`.
    pub(in crate::ring) fn skip_acks_to(&mut self, position: u64) {
        self.acked = position;
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
