//! The byte stream: a power-of-two ring of bytes in the writer's half, its tail beside it, its head in the reader's half.
//!
//! Positions are 64-bit counts of bytes since the connection was made, and never wrap in practice; the place of byte `p` is
//! `p` modulo the size. Both sides keep their own position and the last accepted one of the other side
//! privately; they look at the other's line only when what they know does not suffice.
//!
//! Publication is batched: the writer publishes after each [`CHUNK`] and at the end of each write, the reader gives room back
//! after a quarter of the ring, or when it finds the ring empty. Inside one large write the copies of
//! both sides thus overlap.

use std::sync::atomic::Ordering;

use super::half::{OwnHalf, PeerHalf};
use super::layout::*;
use super::park::{Arm, Wake};
use super::side::{ReceivingSide, SendingSide, Side};
use super::{Liveness, RingError};
use crate::mem::{Memory, MemoryMut};

/// A large copy is published at least this often, in bytes; in a small ring, each quarter of it (but no less than a line).
///
/// So the reader copies while the writer still writes. It is four pages, over which a copy is spread; 32 and 64 KiB carry as much (a stream of writes of
/// 64 KiB and 1 MiB between cores that share no near cache, `tombolo-bench`).
pub const CHUNK: usize = 16 * 1024;

/// Both directions of a byte stream over a pair of halves; `own` and `peer` must each have a byte ring.
///
/// `live` is asked before anything read is handed over.
///
/// # Panics
/// If a half has no byte ring: whoever made the connection has to check the peer's layout for it.
pub fn byte_pair<M, P, L>(own: OwnHalf<M>, peer: PeerHalf<P>, live: L) -> (ByteTx<M, P, L>, ByteRx<M, P, L>)
where
    M: MemoryMut,
    P: Memory,
    L: Liveness,
{
    assert!(own.layout.bytes_log2 != 0 && peer.layout.bytes_log2 != 0, "a byte stream needs byte rings");
    let tx = Side::new(own.clone(), peer.clone(), live.clone());
    (ByteTx::new(tx), ByteRx::new(Side::new(own, peer, live)))
}

/// The writing end of a byte stream. One owner; may move between threads.
#[derive(Debug)]
pub struct ByteTx<M: MemoryMut, P: Memory, L: Liveness> {
    side: SendingSide<M, P, L>,
    out: Outgoing,
}

/// The reading end of a byte stream. One owner; may move between threads.
#[derive(Debug)]
pub struct ByteRx<M: MemoryMut, P: Memory, L: Liveness> {
    side: ReceivingSide<M, P, L>,
    ring: Ring,
    /// Bytes consumed.
    head: u64,
    /// Of these, told to the peer.
    head_published: u64,
    /// Bytes the peer has published, as last accepted.
    tail: u64,
    owed: Wake,
}

impl<M: MemoryMut, P: Memory, L: Liveness> ByteTx<M, P, L> {
    fn new(side: SendingSide<M, P, L>) -> Self {
        let out = Outgoing::new(side.own.layout);
        Self { side, out }
    }

    /// Writes as much of `data` as there is room for, at least one byte (unless `data` is empty), and publishes it.
    ///
    /// The peer sees it at once if it is polling; if it sleeps, only after [`ByteTx::flush`].
    pub fn try_write(&mut self, data: &[u8]) -> Result<usize, RingError> {
        self.side.running()?;
        let mut done = 0;
        while done < data.len() {
            let wanted = (data.len() - done).min(self.out.ring.chunk());
            if self.out.room() < wanted {
                self.out.refresh(&mut self.side)?;
            }
            let n = wanted.min(self.out.room());
            if n == 0 {
                break;
            }
            self.out.write_far(&self.side.own.mem, &data[done..done + n]);
            self.side.own.mem.store(AT_BYTE_TAIL, self.out.tail, Ordering::Release); // SYNC: bytes
            done += n;
        }
        if done == 0 && !data.is_empty() {
            self.side.check_reader()?;
            return Err(RingError::WouldBlock);
        }
        self.side.disarm();
        self.side.unflushed |= done != 0;
        Ok(done)
    }

    /// Tells whether the peer must be rung for what was written since the last flush.
    pub fn flush(&mut self) -> Result<Wake, RingError> {
        self.side.flush()
    }

    /// Prepares to sleep until at least `wanted` bytes (at most the ring's size) can be written, or the connection ends.
    pub fn arm(&mut self, wanted: usize) -> Arm {
        let wanted = wanted.clamp(1, self.out.ring.len());
        self.side.own.mem.store(AT_SPACE_WANTED, wanted as u64, Ordering::Relaxed);
        self.side.arm();
        let wait = self.side.stopped.is_none()
            && self.out.refresh(&mut self.side).is_ok()
            && self.out.room() < wanted
            && self.side.check_reader().is_ok();
        self.side.armed(wait)
    }

    /// Takes the ticket back, after waking up. A successful write does it too.
    pub fn disarm(&mut self) {
        self.side.disarm();
    }

    /// Ends this direction after what was written. Flush afterwards. Doing it twice changes nothing.
    pub fn shutdown(&mut self) {
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
}

impl<M: MemoryMut, P: Memory, L: Liveness> ByteRx<M, P, L> {
    fn new(side: ReceivingSide<M, P, L>) -> Self {
        let ring = Ring::of(side.peer.layout);
        Self { side, ring, head: 0, head_published: 0, tail: 0, owed: Wake::NotNeeded }
    }

    /// Reads at least one byte into `out`; 0 means that the peer has shut down and everything was read (or `out` is empty).
    ///
    /// Call [`ByteRx::flush`] some time after it: the writer may be asleep for want of room.
    pub fn try_read(&mut self, out: &mut [u8]) -> Result<usize, RingError> {
        self.read_with(out.len(), |ring, mem, head, done, n| ring.read(mem, head, &mut out[done..done + n]))
    }

    /// Appends up to `max` bytes to `out`. Otherwise as [`ByteRx::try_read`].
    pub fn try_read_append(&mut self, out: &mut Vec<u8>, max: usize) -> Result<usize, RingError> {
        let before = out.len();
        let result = self.read_with(max, |ring, mem, head, _, n| ring.append(mem, head, n, out));
        if result.is_err() {
            out.truncate(before); // what was copied from a peer that has died is not handed over
        }
        result
    }

    fn read_with(
        &mut self,
        max: usize,
        mut copy: impl FnMut(Ring, &P, u64, usize, usize),
    ) -> Result<usize, RingError> {
        self.side.running()?;
        let mut done = 0;
        while done < max {
            if self.available() == 0 {
                self.refresh()?;
            }
            let n = self.available().min(max - done).min(self.ring.chunk());
            if n == 0 && (done != 0 || !self.found_more_at_end()?) {
                break;
            }
            copy(self.ring, &self.side.peer.mem, self.head, done, n);
            self.side.check_alive()?;
            self.head += n as u64;
            done += n;
            if self.head - self.head_published >= self.ring.quarter() {
                self.give_back();
            }
        }
        if done != 0 {
            self.side.disarm();
        }
        Ok(done)
    }

    /// The ring is empty: has the stream ended? `Ok(false)` if so, `Ok(true)` if bytes came meanwhile.
    fn found_more_at_end(&mut self) -> Result<bool, RingError> {
        if self.head != self.head_published {
            self.give_back();
        }
        let state = self.side.peer.state();
        if !state.any(super::side::ENDED) {
            self.side.check_alive()?;
            return Err(RingError::WouldBlock);
        }
        // What was published before the state was set is visible now.
        self.refresh()?;
        if self.available() != 0 {
            return Ok(true);
        }
        self.side.end_of_data(state)?;
        Ok(false)
    }

    /// Tells whether the writer must be rung because room it waits for has been given back.
    pub fn flush(&mut self) -> Wake {
        std::mem::replace(&mut self.owed, Wake::NotNeeded)
    }

    /// Prepares to sleep until there are bytes, or the connection ends.
    pub fn arm(&mut self) -> Arm {
        self.side.arm();
        let wait = self.side.stopped.is_none()
            && self.refresh().is_ok()
            && self.available() == 0
            && !self.side.peer.state().any(super::side::ENDED)
            && self.side.check_alive().is_ok();
        self.side.armed(wait)
    }

    /// Takes the ticket back, after waking up. A successful read does it too.
    pub fn disarm(&mut self) {
        self.side.disarm();
    }

    /// Says that nothing more will be read: the peer's writes fail from now on. Flush afterwards.
    pub fn shutdown(&mut self) {
        self.side.shut_reading();
        self.give_back();
    }

    /// Bytes that can be read now, as far as is known without asking the peer.
    fn available(&self) -> usize {
        (self.tail - self.head) as usize // at most the ring's size: `refresh` accepts nothing else
    }

    fn refresh(&mut self) -> Result<(), RingError> {
        let tail = self.side.peer.mem.load(AT_BYTE_TAIL, Ordering::Acquire); // SYNC: bytes
        if tail < self.tail || tail - self.head > self.ring.len() as u64 {
            let (was, head) = (self.tail, self.head);
            return Err(self.side.misbehaved(|| {
                format!("its byte ring ends at {tail}, after {was}, while we are at {head}")
            }));
        }
        self.tail = tail;
        Ok(())
    }

    fn give_back(&mut self) {
        self.head_published = self.head;
        self.side.own.mem.store(AT_BYTES_CONSUMED, self.head, Ordering::Release); // SYNC: credit
        M::fence(); // pairs with the fence in `Parker::arm`
        let Some(ticket) = self.side.ringer.sleeper(&self.side.peer.mem) else { return };
        let wanted = self.side.peer.mem.load(AT_SPACE_WANTED, Ordering::Relaxed).min(self.ring.len() as u64);
        // We may not know its newest tail, and so ring early; never late, since an empty ring satisfies any wish.
        if (self.ring.len() - self.available()) as u64 >= wanted {
            self.owed = self.side.ringer.ring(ticket, &self.side.own.mem);
        }
    }
}

/// Of the place that the next messages will be written to, at least so much is asked for ahead, in bytes: eight lines.
const PREFETCH_MIN: usize = 512;
/// While messages are put one after the other, the lines so many bytes ahead are asked for with each. From 512 to 8192 it makes no difference; asked for all at
/// once at the end, as those of few messages are, they cost half as much again as the messages do.
const PREFETCH_AHEAD: usize = 1024;
/// And at most so much: it has to stay in a second-level cache.
const PREFETCH_MAX: usize = 64 * 1024;

/// More bytes than this are not moved towards the reader: it comes upon them sooner than they get there.
pub(super) const DEMOTE_MAX: usize = 8 * 1024;

/// The writer's account of its byte ring: private, never read back.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) ring: Ring,
    /// Bytes written.
    tail: u64,
    /// Bytes the peer has consumed, as last accepted.
    head: u64,
    /// Up to here the lines were asked for.
    prefetched: u64,
}

impl Outgoing {
    pub(super) fn new(layout: HalfLayout) -> Self {
        Self { ring: Ring::of(layout), tail: 0, head: 0, prefetched: 0 }
    }

    /// Bytes that can be written now, as far as is known without asking the peer.
    #[inline]
    pub(super) fn room(&self) -> usize {
        // The difference is at most the ring's size: `refresh` accepts nothing else.
        self.ring.len() - (self.tail - self.head) as usize
    }

    /// Asks the peer how much it has consumed.
    pub(super) fn refresh<M, P, L>(&mut self, side: &mut SendingSide<M, P, L>) -> Result<(), RingError>
    where
        M: MemoryMut,
        P: Memory,
        L: Liveness,
    {
        let head = side.peer.mem.load(AT_BYTES_CONSUMED, Ordering::Acquire); // SYNC: credit
        if head < self.head || head > self.tail {
            let (was, tail) = (self.head, self.tail);
            return Err(side.misbehaved(|| format!("it consumed {head} bytes, after {was} of {tail}")));
        }
        self.head = head;
        Ok(())
    }

    /// Writes what there is room for; publishing it is the caller's.
    #[inline]
    pub(super) fn write<M: MemoryMut>(&mut self, mem: &M, data: &[u8]) {
        debug_assert!(data.len() <= self.room());
        self.ring.write(self.tail, data, |at, part| mem.write(at, part));
        self.tail += data.len() as u64;
    }

    /// As [`Outgoing::write`], where nobody has asked for the lines since the reader had them.
    #[inline]
    fn write_far<M: MemoryMut>(&mut self, mem: &M, data: &[u8]) {
        debug_assert!(data.len() <= self.room());
        self.ring.write(self.tail, data, |at, part| mem.write_far(at, part));
        self.tail += data.len() as u64;
    }

    /// Moves the lines of the last `len` bytes towards the reader. It takes lines from the shared cache in a third of the time that it takes them from this
    /// core's; but moving them takes longer than either, so this pays only for a message that nothing follows.
    #[inline]
    pub(super) fn demote<M: MemoryMut>(&self, mem: &M, len: usize) {
        let (at, first) = self.ring.split(self.tail - len as u64, len);
        mem.demote(at, first);
        mem.demote(self.ring.at, len - first);
    }

    /// Asks for the lines that `len` bytes will be written to, [`PREFETCH_AHEAD`] after those that were just written.
    #[inline]
    pub(super) fn prefetch_ahead<M: MemoryMut>(&self, mem: &M, len: usize) {
        let (at, first) = self.ring.split(self.tail + PREFETCH_AHEAD as u64, len);
        mem.prefetch_write(at, first);
    }

    /// Asks for the lines that `len` more bytes will be written to. The reader has had them, and taking them back costs as much as
    /// writing them; so it is done once everything is published, while the reader is at that.
    #[inline]
    pub(super) fn prefetch<M: MemoryMut>(&mut self, mem: &M, len: usize) {
        let ahead = len.clamp(PREFETCH_MIN, PREFETCH_MAX).min(self.room());
        let end = self.tail + ahead as u64;
        let from = self.prefetched.max(self.tail).next_multiple_of(SLOT as u64);
        if from < end {
            let len = (end - from) as usize;
            let (at, first) = self.ring.split(from, len);
            mem.prefetch_write(at, first);
            mem.prefetch_write(self.ring.at, len - first);
            self.prefetched = end.next_multiple_of(SLOT as u64);
        }
    }
}

/// Place and size of a byte ring in its half.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ring {
    at: usize,
    mask: usize,
}

impl Ring {
    pub(super) fn of(layout: HalfLayout) -> Self {
        Self { at: layout.bytes_at(), mask: layout.byte_capacity().saturating_sub(1) }
    }

    pub(super) fn len(self) -> usize {
        self.mask + 1
    }

    pub(super) fn quarter(self) -> u64 {
        (self.len() / 4) as u64
    }

    fn chunk(self) -> usize {
        CHUNK.min((self.len() / 4).max(64))
    }

    /// Where `n` bytes at `position` lie: (offset, length) up to the end of the ring; the rest starts at `self.at`.
    #[inline]
    fn split(self, position: u64, n: usize) -> (usize, usize) {
        let start = position as usize & self.mask;
        (self.at + start, n.min(self.len() - start))
    }

    /// Has `write` copy `data` to `position`: all of it, or in two parts.
    #[inline]
    fn write(self, position: u64, data: &[u8], write: impl Fn(usize, &[u8])) {
        let (at, first) = self.split(position, data.len());
        write(at, &data[..first]);
        if first < data.len() {
            write(self.at, &data[first..]);
        }
    }

    /// Asks for the lines of `n` bytes at `position`, to be read.
    pub(super) fn prefetch_read<P: Memory>(self, mem: &P, position: u64, n: usize) {
        for at in (0..n).step_by(SLOT) {
            mem.prefetch_read(self.split(position + at as u64, 0).0);
        }
    }

    #[inline]
    pub(super) fn read<P: Memory>(self, mem: &P, position: u64, out: &mut [u8]) {
        let (at, first) = self.split(position, out.len());
        mem.read(at, &mut out[..first]);
        if first < out.len() {
            mem.read(self.at, &mut out[first..]);
        }
    }

    #[inline]
    pub(super) fn append<P: Memory>(self, mem: &P, position: u64, n: usize, out: &mut Vec<u8>) {
        let (at, first) = self.split(position, n);
        mem.append(at, first, out);
        if first < n {
            mem.append(self.at, n - first, out);
        }
    }
}
