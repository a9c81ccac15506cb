//! The control rings between two brokers: one in each one's extent, written by its owner alone.
//!
//! Two brokers talk in a *session*, named by the pair of their generations. A broker that sees a new generation of a peer
//! invalidates its block toward it, wipes it, and opens it for that generation; it believes the peer's block only
//! while that one is open for the pair as well. So neither ever reads what was meant for, or came from, an earlier life.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use crate::broker::record::{RECORD_LEN, Record};
use crate::mem::{Memory, MemoryMut};
use crate::pool::layout::control as at;

/// Records that may wait for a peer that takes none, before we ignore its further requests (each of which would add one).
const PENDING_MAX: usize = 4096;

/// Our end of the rings with one peer.
#[derive(Debug)]
pub(crate) struct ControlLink<M, P> {
    /// Our block for the peer.
    own: M,
    /// The peer's block for us.
    peer: P,
    /// Slots of a ring, a power of two.
    slots: u64,
    own_generation: u64,
    /// 0: no session.
    peer_generation: u64,
    sent: u64,
    acknowledged: u64,
    taken: u64,
    pending: VecDeque<Record>,
}

/// What [`ControlLink::take`] found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    Record(Record),
    /// A record that makes no sense; it is skipped.
    Nonsense,
    Nothing,
}

impl<M: MemoryMut, P: Memory> ControlLink<M, P> {
    /// Over two blocks with rings of so many slots.
    pub(crate) fn new(own: M, peer: P, slots: u32, own_generation: u64) -> Self {
        let mut link = Self {
            own,
            peer,
            slots: slots.into(),
            own_generation,
            peer_generation: 0,
            sent: 0,
            acknowledged: 0,
            taken: 0,
            pending: VecDeque::new(),
        };
        link.close();
        link
    }

    /// Begins the session with the peer of that generation; what was pending for an earlier one is dropped.
    pub(crate) fn open(&mut self, peer_generation: u64) {
        self.close();
        for slot in 0..self.slots {
            self.own.store(slot_at(slot) + at::STAMP, 0, Relaxed);
        }
        self.own.store(at::CONSUMED, 0, Relaxed);
        self.own.store(at::OWN_GENERATION, self.own_generation, Relaxed);
        self.own.store(at::FOR_GENERATION, peer_generation, Release); // SYNC: control session
        self.peer_generation = peer_generation;
    }

    /// Ends the session, if there is one.
    pub(crate) fn close(&mut self) {
        self.own.store(at::FOR_GENERATION, 0, Relaxed);
        // Whoever sees any later store of ours sees the block invalid.
        M::fence();
        (self.peer_generation, self.sent, self.acknowledged, self.taken) = (0, 0, 0, 0);
        self.pending.clear();
    }

    /// The generation of the peer we are in session with; 0: none.
    pub(crate) fn peer_generation(&self) -> u64 {
        self.peer_generation
    }

    /// Whether so much waits for the peer that its requests are to be ignored.
    pub(crate) fn is_clogged(&self) -> bool {
        self.pending.len() >= PENDING_MAX
    }

    /// Queues a record. Dropped if there is no session: the peer it was for is dead. A question is dropped, too, if much waits
    /// already: its asker gives up after a while, and a frozen peer must not gather them. (What must arrive is bounded by the
    /// connections there can be.)
    pub(crate) fn send(&mut self, record: Record) {
        let is_question = matches!(record, Record::Resolve { .. });
        if self.peer_generation != 0 && !(is_question && self.is_clogged()) {
            self.pending.push_back(record);
        }
    }

    /// Writes what fits. Whether the peer should be rung.
    pub(crate) fn flush(&mut self) -> bool {
        let before = self.sent;
        if !self.pending.is_empty() {
            self.read_acknowledged();
        }
        while self.sent - self.acknowledged < self.slots {
            let Some(record) = self.pending.pop_front() else { break };
            let slot = slot_at(self.sent % self.slots);
            self.own.write(slot + at::RECORD, &record.encode());
            self.sent += 1;
            self.own.store(slot + at::STAMP, self.sent, Release); // SYNC: control slot
        }
        self.sent != before
    }

    /// Whether records wait for room.
    pub(crate) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// The peer's next record.
    pub(crate) fn take(&mut self) -> Taken {
        if !self.in_session() {
            return Taken::Nothing;
        }
        let slot = slot_at(self.taken % self.slots);
        // SYNC: control slot
        if self.peer.load(slot + at::STAMP, Acquire) != self.taken + 1 {
            return Taken::Nothing;
        }
        let mut bytes = [0; RECORD_LEN];
        self.peer.read(slot + at::RECORD, &mut bytes);
        P::fence();
        // A restart in between would have invalidated the block before it touched the slot.
        if !self.in_session() {
            return Taken::Nothing;
        }
        self.taken += 1;
        self.own.store(at::CONSUMED, self.taken, Release); // SYNC: control credit
        Record::decode(&bytes).map_or(Taken::Nonsense, Taken::Record)
    }

    /// What only we know of the rings.
    #[cfg(test)]
    pub(crate) fn digest(&self) -> String {
        format!("{:?}", (self.peer_generation, self.sent, self.acknowledged, self.taken, &self.pending))
    }

    fn in_session(&self) -> bool {
        // SYNC: control session
        self.peer_generation != 0
            && self.peer.load(at::FOR_GENERATION, Acquire) == self.own_generation
            && self.peer.load(at::OWN_GENERATION, Acquire) == self.peer_generation
    }

    /// A count that runs backwards or ahead is not believed: the peer then only clogs its own ring.
    fn read_acknowledged(&mut self) {
        if self.in_session() {
            let count = self.peer.load(at::CONSUMED, Acquire); // SYNC: control credit
            if (self.acknowledged..=self.sent).contains(&count) {
                self.acknowledged = count;
            }
        }
    }
}

fn slot_at(index: u64) -> usize {
    at::SLOTS_OFFSET + index as usize * at::SLOT_STRIDE
}

/// Our end against a block of any words: it takes no more than a ring holds, and never waits for what cannot come.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz_control(data: &[u8]) {
    use crate::mem::ModelMemory;
    let mut input = crate::fuzzing::Input::new(data);
    let slots = input.pick(&[8, 16, 64]);
    let block = || ModelMemory::new(at::stride(slots));
    let (own, theirs): (ModelMemory, ModelMemory) = (block(), block());
    let mut link = ControlLink::new(own, theirs.clone(), slots, 1);
    let slots = u64::from(slots);
    let words = [at::FOR_GENERATION, at::OWN_GENERATION, at::CONSUMED];
    while let Some(choice) = input.next() {
        match choice % 8 {
            0 => theirs.store(input.pick(&words), input.lie(), Relaxed),
            1 => {
                // Mostly in session, so that there is something to believe.
                theirs.store(at::FOR_GENERATION, 1, Relaxed);
                theirs.store(at::OWN_GENERATION, link.peer_generation, Release);
            }
            2 | 3 => {
                let slot = slot_at(input.lie() % slots);
                theirs.write(slot + at::RECORD, &input.array::<RECORD_LEN>());
                theirs.store(slot + at::STAMP, input.lie(), Release);
            }
            4 => {
                let mut taken = 0;
                while link.take() != Taken::Nothing {
                    taken += 1;
                    assert!(taken <= slots, "more records than slots");
                }
            }
            5 => {
                (0..input.byte()).for_each(|to| link.send(Record::Closed { to: to.into() }));
                link.flush();
                assert!(link.sent - link.acknowledged <= slots);
            }
            6 => link.open(u64::from(choice / 8 % 3)),
            _ => link.close(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::ModelMemory;

    type Link = ControlLink<ModelMemory, ModelMemory>;

    fn pair() -> (Link, Link, ModelMemory, ModelMemory) {
        pair_with(64)
    }

    fn pair_with(slots: u32) -> (Link, Link, ModelMemory, ModelMemory) {
        let block = || ModelMemory::new(at::stride(slots));
        let (a, b) = (block(), block());
        (Link::new(a.clone(), b.clone(), slots, 1), Link::new(b.clone(), a.clone(), slots, 5), a, b)
    }

    fn closed(to: u64) -> Record {
        Record::Closed { to }
    }

    #[test]
    fn records_arrive_in_order_however_many() {
        [8, 16, 64].into_iter().for_each(records_arrive_in_order_over);
    }

    fn records_arrive_in_order_over(slots: u32) {
        let (mut a, mut b, ..) = pair_with(slots);
        a.open(5);
        (0..1000).for_each(|to| a.send(closed(to)));
        assert!(a.flush());
        b.open(1);
        let mut next = 0;
        while next < 1000 {
            match b.take() {
                Taken::Record(record) => {
                    assert_eq!(record, closed(next));
                    next += 1;
                }
                found => {
                    assert_eq!(found, Taken::Nothing);
                    assert!(a.flush(), "stuck at {next}");
                }
            }
        }
        assert!(!a.has_pending());
    }

    #[test]
    fn nothing_is_read_before_both_have_opened_for_each_other() {
        let (mut a, mut b, ..) = pair();
        a.open(4); // an earlier life of b
        a.send(closed(1));
        a.flush();
        b.open(1);
        assert_eq!(b.take(), Taken::Nothing);
        a.open(5);
        assert_eq!(b.take(), Taken::Nothing, "the record was for the earlier life");
        a.send(closed(2));
        a.flush();
        assert_eq!(b.take(), Taken::Record(closed(2)));
    }

    #[test]
    fn a_restarted_peer_starts_afresh() {
        let (mut a, mut b, memory_a, memory_b) = pair();
        a.open(5);
        b.open(1);
        a.send(closed(1));
        a.flush();
        assert_eq!(b.take(), Taken::Record(closed(1)));
        a.send(closed(2));
        a.flush();
        let mut b = Link::new(memory_b, memory_a, 64, 6);
        b.open(1);
        assert_eq!(b.take(), Taken::Nothing);
        a.open(6);
        a.send(closed(3));
        a.flush();
        assert_eq!(b.take(), Taken::Record(closed(3)));
    }

    #[test]
    fn a_lying_count_frees_no_slot() {
        let (mut a, _, _, memory_b) = pair();
        a.open(5);
        memory_b.store(at::FOR_GENERATION, 1, Relaxed);
        memory_b.store(at::OWN_GENERATION, 5, Relaxed);
        memory_b.store(at::CONSUMED, u64::MAX, Relaxed);
        (0..100).for_each(|to| a.send(closed(to)));
        a.flush();
        assert!(a.has_pending());
        assert!(!a.flush());
    }

    #[test]
    fn a_frozen_peer_gathers_no_questions_without_end() {
        let (mut a, ..) = pair();
        a.open(5);
        for from in 0..3 * PENDING_MAX as u64 {
            a.send(Record::Resolve { from, name: "kv".into() });
            a.flush();
        }
        assert_eq!(a.pending.len(), PENDING_MAX);
        a.send(closed(1));
        assert_eq!(a.pending.len(), PENDING_MAX + 1, "what must arrive is kept");
    }

    #[test]
    fn nonsense_is_skipped_and_counted_by_the_caller() {
        let (mut a, mut b, memory_a, _) = pair();
        a.open(5);
        b.open(1);
        a.send(closed(1));
        a.send(closed(2));
        a.flush();
        memory_a.write(slot_at(0) + at::RECORD, &[0xff; RECORD_LEN]);
        assert_eq!(b.take(), Taken::Nonsense);
        assert_eq!(b.take(), Taken::Record(closed(2)));
    }
}
