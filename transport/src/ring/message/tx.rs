//! The sending end of messages.

use std::fmt;
use std::iter::Peekable;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::run::{Pending, RUN_BYTES};
use super::{Cross, INLINE_MAX, KIND_BYTES, KIND_LOAN};
use crate::mem::{Memory, MemoryMut, Word};
use crate::ring::bytes::{DEMOTE_MAX, Outgoing};
use crate::ring::half::{OwnHalf, PeerHalf};
use crate::ring::in_place::InPlaceMut;
use crate::ring::layout::*;
use crate::ring::loan::{LoanMut, LoanTable, SendLoanError};
use crate::ring::park::{Arm, Wake};
use crate::ring::side::SendingSide;
use crate::ring::{Liveness, RingError};

/// Most messages that one header can acknowledge.
const ACKS_MAX: u64 = (1 << 24) - 1;
/// After that many messages a restart first renews the stamps; see the module's doc.
const STAMP_RENEWAL: u64 = 1 << 30;
/// The parts of something long are not longer: what a message costs by itself is little beside the copy of so many bytes.
const PART_BYTES_MAX: usize = 48 * 1024;
/// How many slots ahead the sender asks for the line it will write.
const PREFETCH: u32 = 8;

/// The sending end. One owner; may move between threads.
pub struct MessageTx<M: MemoryMut, P: Memory, L: Liveness> {
    side: SendingSide<M, P, L>,
    cross: Arc<Cross<M::Word>>,
    mask: u32,
    /// Messages sent.
    position: u64,
    /// The slot after the last one used.
    slot: u32,
    /// `position` may not reach this: messages known to be consumed, plus the number of slots.
    limit: u64,
    /// The slots-consumed word as last accepted.
    credit: u64,
    /// Messages of the peer that we have acknowledged in headers.
    acks_sent: u64,
    stamps_renewed: u64,
    out: Outgoing,
    /// Bytes written to the byte ring since the last flush.
    unflushed_bytes: usize,
    loans: LoanTable<M>,
    run: Pending,
    /// What the last send that would block was waiting for.
    need: Need,
}

#[derive(Clone, Copy, Debug)]
enum Need {
    Slot,
    Bytes(usize),
    Loan,
}

impl<M: MemoryMut, P: Memory, L: Liveness> MessageTx<M, P, L> {
    pub(super) fn new(side: SendingSide<M, P, L>, cross: Arc<Cross<M::Word>>) -> Self {
        let layout = side.own.layout;
        let loans = LoanTable::new(&side.own);
        Self {
            side,
            cross,
            mask: layout.slots() as u32 - 1,
            position: 0,
            slot: 0,
            limit: layout.slots() as u64,
            credit: 0,
            acks_sent: 0,
            stamps_renewed: 0,
            out: Outgoing::new(layout),
            unflushed_bytes: 0,
            loans,
            run: Pending::default(),
            need: Need::Slot,
        }
    }

    /// The longest message that can be sent, in bytes.
    pub fn max_len(&self) -> usize {
        self.side.own.layout.max_message()
    }

    /// How long the messages are best that something long is sent in, in bytes: four of them have room in the ring.
    pub fn part_len(&self) -> usize {
        (self.out.ring.len() / 4).min(PART_BYTES_MAX)
    }

    /// Sends one message whole, or nothing.
    ///
    /// The peer sees it at once if it is polling; if it sleeps, only after [`MessageTx::flush`].
    #[inline]
    pub fn try_send(&mut self, message: &[u8]) -> Result<(), RingError> {
        if message.len() > INLINE_MAX {
            return self.send_long(&[message], message.len());
        }
        self.publish_run();
        let at = self.claim()?;
        self.side.own.mem.write(at + 8, message);
        self.publish(at, message.len() as u64);
        Ok(())
    }

    /// Sends the parts, which are one message, whole or not at all. Otherwise as [`MessageTx::try_send`].
    #[inline]
    pub fn try_send_parts(&mut self, parts: &[&[u8]]) -> Result<(), RingError> {
        if let [message] | [message, []] = parts {
            return self.try_send(message);
        }
        let len = parts.iter().map(|part| part.len()).sum();
        if len > INLINE_MAX {
            return self.send_long(parts, len);
        }
        let mut message = [0; INLINE_MAX];
        let mut at = 0;
        for part in parts {
            message[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        self.try_send(&message[..len])
    }

    /// Takes one message whole, or nothing: as [`MessageTx::try_send`], but the peer may see it only after [`MessageTx::flush`]. Those after the first since
    /// a flush are announced together.
    #[inline]
    pub fn try_put(&mut self, message: &[u8]) -> Result<(), RingError> {
        self.try_put_parts(&[message])
    }

    /// As [`MessageTx::try_put`], of the parts, which are one message.
    #[inline]
    pub fn try_put_parts(&mut self, parts: &[&[u8]]) -> Result<(), RingError> {
        let len = parts.iter().map(|part| part.len()).sum();
        if !self.side.unflushed {
            return self.try_send_parts(parts);
        }
        self.put(parts, len)
    }

    /// Takes a message of `len` bytes, to be announced with those that follow if it is not too long.
    #[inline]
    fn put(&mut self, parts: &[&[u8]], len: usize) -> Result<(), RingError> {
        if len > RUN_BYTES.min(self.out.ring.len() / 2) {
            return self.try_send_parts(parts);
        }
        if self.run.count == 0 {
            self.run.at = self.claim()?;
        }
        if self.out.room() < len {
            // What waits may be what the peer has to read before there is room.
            self.publish_run();
            return self.try_send_parts(parts);
        }
        for part in parts {
            self.out.write(&self.side.own.mem, part);
        }
        self.out.prefetch_ahead(&self.side.own.mem, len);
        self.side.disarm();
        if self.run.push(len) {
            self.publish_run();
        }
        Ok(())
    }

    /// Takes messages until there is no room for the next, and returns how many; as [`MessageTx::try_put`] of each, but the first ones are announced together, too.
    #[inline]
    pub fn try_put_many<'m>(
        &mut self,
        messages: impl IntoIterator<Item = &'m [u8]>,
    ) -> Result<usize, RingError> {
        let mut messages = messages.into_iter().peekable();
        let mut taken = 0;
        while let Some(message) = messages.next() {
            let is_alone = self.run.count == 0 && messages.peek().is_none();
            let put = if is_alone { self.try_put(message) } else { self.put(&[message], message.len()) };
            match put {
                Ok(()) => taken += 1,
                // What was taken was taken; the next call says what is wrong.
                Err(_) if taken != 0 => break,
                Err(error) => return Err(error),
            }
            if self.run.count != 0 {
                taken += self.fill_run(&mut messages);
            }
        }
        Ok(taken)
    }

    /// Adds messages to the run that has been begun, as long as there is room. Returns how many.
    #[inline]
    fn fill_run<'m>(&mut self, messages: &mut Peekable<impl Iterator<Item = &'m [u8]>>) -> usize {
        let Self { out, side, run, .. } = self;
        let mem = &side.own.mem;
        let longest = RUN_BYTES.min(out.ring.len() / 2);
        let mut count = 0;
        let is_full = run.fill(|| {
            let room = out.room();
            let message = messages.next_if(|message| message.len() <= longest && message.len() <= room)?;
            out.write(mem, message);
            out.prefetch_ahead(mem, message.len());
            count += 1;
            Some(message.len())
        });
        if is_full {
            self.publish_run();
        }
        count
    }

    /// Announces what was put and is not yet.
    #[inline]
    fn publish_run(&mut self) {
        if self.run.count != 0 {
            let at = self.run.at;
            let kind = self.run.take(&self.side.own.mem);
            self.publish(at, kind);
        }
    }

    fn send_long(&mut self, parts: &[&[u8]], len: usize) -> Result<(), RingError> {
        self.publish_run();
        let layout = self.side.own.layout;
        let ring = layout.byte_capacity();
        // A loan saves nothing to who copies into it, but leaves the ring to others when the message would fill it.
        if len > ring / 2 && len <= layout.loan_len() {
            let mut loan = self.loan(len)?;
            let mut at = 0;
            for part in parts {
                loan.write_at(at, part);
                at += part.len();
            }
            return self.send_loan(loan).map_err(|refused| refused.error);
        }
        if len > ring {
            return Err(RingError::TooLong { len, max: self.max_len() });
        }
        let at = self.claim()?;
        self.reserve_bytes(len)?;
        for part in parts {
            self.out.write(&self.side.own.mem, part);
        }
        self.side.own.mem.store(at + 8, len as u64, Ordering::Relaxed);
        // All that was sent before is consumed: most likely somebody waits for this.
        let alone = self.limit - self.position > self.mask as u64;
        self.publish(at, KIND_BYTES);
        if alone && len <= DEMOTE_MAX {
            self.out.demote(&self.side.own.mem, len);
        }
        self.unflushed_bytes += len;
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
        match self.loans.take(len) {
            Some(loan) => Ok(loan),
            None => Err(self.blocked(Need::Loan)),
        }
    }

    /// Sends a loan: no byte of it is copied. On error the loan comes back.
    ///
    /// # Panics
    /// If the loan is of another connection.
    pub fn send_loan(&mut self, loan: LoanMut<M>) -> Result<(), SendLoanError<M>> {
        assert!(self.loans.owns(&loan), "a loan can be sent only on the connection it was taken from");
        self.publish_run();
        let at = match self.claim() {
            Ok(at) => at,
            Err(error) => return Err(SendLoanError { error, loan }),
        };
        self.lend(at, loan.index(), loan.len());
        // Only now: letting go of it waits until all that was written is visible.
        loan.into_sent();
        Ok(())
    }

    /// Sends one message, which `write` writes where it will be read, or nothing: as a [loan](MessageTx::loan), which here is no object that could be sent
    /// later or put back, and costs no locked instruction. `write` is called only if there is room for `len` bytes; if it panics, nothing is sent.
    #[inline]
    pub fn try_send_in_place(
        &mut self,
        mut len: usize,
        write: impl FnOnce(InPlaceMut<'_, M>),
    ) -> Result<(), RingError> {
        let max = self.side.own.layout.loan_len();
        if len > max {
            return Err(RingError::TooLong { len, max });
        }
        self.publish_run();
        let at = self.claim()?;
        if !self.loans.any_free() {
            self.reclaim()?;
        }
        let Some(index) = self.loans.next() else { return Err(self.blocked(Need::Loan)) };
        let own = &self.side.own;
        write(InPlaceMut::new(&own.mem, own.layout.loan_at(index), &mut len));
        self.lend(at, index, len);
        Ok(())
    }

    /// Announces what was written to loan `index` in the slot at `at`.
    #[inline]
    fn lend(&mut self, at: usize, index: usize, len: usize) {
        let own = &self.side.own;
        let mut head = [0; LOAN_HEAD];
        let head = &mut head[..len.min(LOAN_HEAD)];
        own.mem.read(own.layout.loan_at(index), head);
        own.mem.write(at + LOAN_HEAD_AT, head);
        own.mem.store(at + 8, index as u64, Ordering::Relaxed);
        own.mem.store(at + 16, len as u64, Ordering::Relaxed);
        self.loans.lend(index);
        self.publish(at, KIND_LOAN);
        if let Some(next) = self.loans.next() {
            // Its last reader has had the first line.
            self.side.own.mem.prefetch_write(self.side.own.layout.loan_at(next), SLOT);
        }
    }

    /// Tells whether the peer must be rung for what was sent since the last flush.
    ///
    /// Fails if the peer has gone: what was sent and not received yet is lost.
    #[inline]
    pub fn flush(&mut self) -> Result<Wake, RingError> {
        self.publish_run();
        let wake = self.side.flush();
        if self.unflushed_bytes != 0 {
            let len = std::mem::take(&mut self.unflushed_bytes);
            self.out.prefetch(&self.side.own.mem, len);
        }
        wake
    }

    /// Prepares to sleep until what the last send waited for may be there, or the connection ends.
    ///
    /// Flush before it: what was put may be what the peer waits for.
    pub fn arm(&mut self) -> Arm {
        self.publish_run();
        self.side.arm();
        let wait = self.side.stopped.is_none()
            && matches!(self.has(self.need), Ok(false))
            && self.side.check_reader().is_ok();
        self.side.armed(wait)
    }

    /// Takes the ticket back, after waking up. A successful send does it too.
    pub fn disarm(&mut self) {
        self.side.disarm();
    }

    /// Ends this direction after what was sent. Flush afterwards. Doing it twice changes nothing.
    pub fn shutdown(&mut self) {
        self.publish_run();
        self.side.shut_writing();
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
        Ok(HalfLayout::slot_at(self.slot as usize))
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
        self.limit = self.position + u64::from(self.mask) + 1;
        self.slot = 0;
        Ok(())
    }

    #[cold]
    fn renew_stamps(&mut self) {
        self.stamps_renewed = self.position;
        let stamp = u64::from(self.position as u32); // that of the message consumed last
        for slot in 0..=self.mask as usize {
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
        if self.out.room() >= len || self.has(Need::Bytes(len))? {
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
        self.side.unflushed = true;
        self.side.disarm();
        self.side
            .own
            .mem
            .prefetch_write(HalfLayout::slot_at(((self.slot + PREFETCH) & self.mask) as usize), SLOT);
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
                self.out.refresh(&mut self.side)?;
                Ok(self.out.room() >= len)
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
        self.limit = self.limit.max(credit.max(acked) + u64::from(self.mask) + 1);
        Ok(())
    }

    fn reclaim(&mut self) -> Result<(), RingError> {
        self.loans.reclaim(&self.side.peer.mem).map_err(|what| self.side.misbehaved(|| what))
    }
}

#[cfg(test)]
impl<M: MemoryMut, P: Memory, L: Liveness> MessageTx<M, P, L> {
    /// Pretends that more messages were sent, and acknowledged, up to `position`.
    pub(in crate::ring) fn skip_to(&mut self, position: u64) {
        (self.position, self.limit) = (position, position);
        self.cross.acked.store(position, Ordering::Relaxed);
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
