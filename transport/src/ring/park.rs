//! Going to sleep without losing a wake-up, and ringing no more often than needed.
//!
//! Whoever wants to sleep publishes an odd *ticket* in its own half, fences, and looks once more: only if there still is nothing to do
//! does it sleep. Whoever has published something fences, and then loads the other's ticket: if it is odd, and not one it has rung
//! for already, it rings. Of the two looks at least one comes after the other side's store (both
//! fences are in one total order), so either the sleeper sees the data or the writer sees the ticket.
//!
//! A ticket is used for one sleep: the next one is greater by two, and even in between. A bell is thus rung at
//! most once per sleep, however much is written meanwhile. A lying ticket costs the liar its own wake-ups, or us one bell per flush.

use std::sync::atomic::Ordering;

use super::layout::AT_BELL_COUNT;
use crate::mem::{Memory, MemoryMut};

/// Whether the peer has to be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a peer that sleeps stays asleep unless its doorbell is rung"]
pub enum Wake {
    /// It is awake, or has been rung already.
    NotNeeded,
    /// Ring its doorbell now.
    Ring,
}

/// Whether one may go to sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "only `Sleep` allows to wait for the doorbell"]
pub enum Arm {
    /// The ticket is out and there is nothing to do: wait for the bell, with a timer behind it.
    Sleep,
    /// There is something to do after all; no ticket is out.
    Ready,
}

/// The sleeper's side: the ticket word `AT` in our own half.
#[derive(Debug, Default)]
pub(super) struct Parker<const AT: usize> {
    ticket: u64,
}

impl<const AT: usize> Parker<AT> {
    #[inline]
    pub(super) fn is_armed(&self) -> bool {
        self.ticket % 2 == 1
    }

    /// Publishes a new odd ticket. The caller must look for work again after this, before it sleeps.
    pub(super) fn arm<M: MemoryMut>(&mut self, own: &M) {
        self.ticket = self.ticket.wrapping_add(1) | 1;
        own.store(AT, self.ticket, Ordering::Release);
        M::fence(); // pairs with the fence in `Ringer::due`'s callers
    }

    #[inline]
    pub(super) fn disarm<M: MemoryMut>(&mut self, own: &M) {
        if self.is_armed() {
            self.ticket = self.ticket.wrapping_add(1);
            own.store(AT, self.ticket, Ordering::Release);
        }
    }
}

/// The writer's side: the ticket word `AT` in the peer's half, and what we rang for.
#[derive(Debug, Default)]
pub(super) struct Ringer<const AT: usize> {
    rung: u64,
}

impl<const AT: usize> Ringer<AT> {
    /// The ticket of a sleeper that we have not rung for yet. Call it after publishing and a fence.
    #[inline]
    pub(super) fn sleeper<P: Memory>(&self, peer: &P) -> Option<u64> {
        let ticket = peer.load(AT, Ordering::Acquire);
        (ticket % 2 == 1 && ticket != self.rung).then_some(ticket)
    }

    /// Remembers that the sleeper with that ticket gets a bell, and counts it in our half.
    #[cold]
    pub(super) fn ring<M: MemoryMut>(&mut self, ticket: u64, own: &M) -> Wake {
        self.rung = ticket;
        own.fetch_add(AT_BELL_COUNT, 1);
        Wake::Ring
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::ModelMemory;
    use crate::ring::layout::{AT_DATA_TICKET, AT_SPACE_TICKET};

    #[test]
    fn a_sleeper_is_rung_once_per_ticket() {
        let memory: ModelMemory = ModelMemory::new(4096);
        let own: ModelMemory = ModelMemory::new(4096);
        let mut parker = Parker::<AT_DATA_TICKET>::default();
        let mut ringer = Ringer::<AT_DATA_TICKET>::default();
        for sleep in 1..4 {
            assert_eq!(ringer.sleeper(&memory), None);
            parker.arm(&memory);
            let ticket = ringer.sleeper(&memory).unwrap();
            assert_eq!(ringer.ring(ticket, &own), Wake::Ring);
            assert_eq!(ringer.sleeper(&memory), None, "rung already");
            assert_eq!(own.load(AT_BELL_COUNT, Ordering::Relaxed), sleep);
            parker.disarm(&memory);
        }
    }

    #[test]
    fn arming_again_takes_a_new_ticket() {
        let memory: ModelMemory = ModelMemory::new(4096);
        let mut parker = Parker::<AT_SPACE_TICKET>::default();
        let mut ringer = Ringer::<AT_SPACE_TICKET>::default();
        parker.arm(&memory);
        let first = ringer.sleeper(&memory).unwrap();
        let _ = ringer.ring(first, &memory);
        parker.arm(&memory);
        assert!(ringer.sleeper(&memory).is_some_and(|ticket| ticket != first));
    }
}
