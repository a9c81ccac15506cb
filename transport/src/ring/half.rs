//! A half as a whole: its identity, its state, its bell count.

use std::sync::atomic::Ordering;

use super::layout::*;
use super::misbehaved;
use crate::error::ResetCause;
use crate::mem::{CACHE_LINE, Memory, MemoryMut};

/// The state bits of a half. They are only ever set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State(u64);

impl State {
    /// The half has been initialised.
    pub const OPEN: Self = Self(1);
    /// Its side will send nothing more; what it sent before is there to be read.
    pub const SHUT_WR: Self = Self(2);
    /// Its side will read nothing more.
    pub const SHUT_RD: Self = Self(4);
    /// Its side is done with the connection and will not touch the other half again.
    pub const CLOSED: Self = Self(8);
    /// Its side gave up: the peer broke the protocol, or the process died and its broker says so.
    pub const RESET: Self = Self(16);

    /// Whether any bit of `other` is set.
    #[inline]
    pub fn any(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// The bits of both.
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The raw bits.
    pub fn bits(self) -> u64 {
        self.0
    }
}

/// Our half of a connection.
#[derive(Clone, Debug)]
pub struct OwnHalf<M> {
    pub(super) mem: M,
    pub(super) layout: HalfLayout,
}

/// The other side's half of a connection.
#[derive(Clone, Debug)]
pub struct PeerHalf<P> {
    pub(super) mem: P,
    pub(super) layout: HalfLayout,
}

impl<M: MemoryMut> OwnHalf<M> {
    /// Makes `mem` (at least [`HalfLayout::total_len`] bytes, of any content) a fresh half. Do this before the peer hears of it.
    ///
    /// # Panics
    /// If the layout is not valid or `mem` too short: both are ours to choose.
    pub fn init(mem: M, layout: HalfLayout, nonce: u64) -> Self {
        let half = Self::existing(mem, layout);
        let mem = &half.mem;
        mem.zero(AT_MAGIC, AT_SLOTS);
        for slot in 0..layout.slots() {
            // Only the header: no payload is ever read without one.
            mem.store(HalfLayout::slot_at(slot), 0, Ordering::Relaxed);
        }
        mem.store(AT_NONCE, nonce, Ordering::Relaxed);
        mem.store(AT_LAYOUT, layout.to_word(), Ordering::Relaxed);
        mem.store(AT_STATE, State::OPEN.0, Ordering::Relaxed);
        mem.store(AT_MAGIC, MAGIC, Ordering::Release);
        half
    }

    /// A half that [`OwnHalf::init`] has made before, perhaps in another process of this kernel (the broker).
    ///
    /// # Panics
    /// As [`OwnHalf::init`].
    pub fn existing(mem: M, layout: HalfLayout) -> Self {
        let layout = layout.validate().expect("a half of ours has a valid layout");
        assert!(mem.len() >= layout.total_len(), "half of {} bytes in {}", layout.total_len(), mem.len());
        Self { mem, layout }
    }

    /// Sizes of this half.
    pub fn layout(&self) -> HalfLayout {
        self.layout
    }

    /// Sets state bits, for the peer to see. Ring the peer afterwards: it may sleep.
    pub fn set_state(&self, bits: State) {
        // Release, SYNC: state. What was published before is seen by whoever sees the bits.
        self.mem.fetch_or(AT_STATE, bits.0);
    }

    /// Our own state bits.
    pub fn state(&self) -> State {
        State(self.mem.load(AT_STATE, Ordering::Acquire))
    }

    /// Counts a bell, as `flush` does when it says [`Wake::Ring`](super::Wake::Ring): for rings decided by the caller.
    pub fn count_bell(&self) {
        self.mem.fetch_add(AT_BELL_COUNT, 1);
    }

    /// How many bells this side has counted.
    pub fn bell_count(&self) -> u64 {
        self.mem.load(AT_BELL_COUNT, Ordering::Acquire)
    }
}

impl<P: Memory> PeerHalf<P> {
    /// Checks that `mem` is the half that the peer's broker told us about.
    pub fn open(mem: P, layout: HalfLayout, nonce: u64) -> Result<Self, ResetCause> {
        layout
            .validate()
            .map_err(|error| misbehaved(format!("its half has an impossible layout: {error}")))?;
        if mem.len() < layout.total_len() {
            let (need, have) = (layout.total_len(), mem.len());
            return Err(misbehaved(format!("its half needs {need} bytes and has {have}")));
        }
        for (at, name, expected) in [
            (AT_MAGIC, "magic", MAGIC), // Acquire: the others were written before
            (AT_NONCE, "nonce", nonce),
            (AT_LAYOUT, "layout", layout.to_word()),
        ] {
            let found = mem.load(at, Ordering::Acquire);
            if found != expected {
                return Err(misbehaved(format!("the {name} of its half is {found:#x}, not {expected:#x}")));
            }
        }
        Ok(Self { mem, layout })
    }

    /// Sizes of this half.
    pub fn layout(&self) -> HalfLayout {
        self.layout
    }

    /// The peer's state bits.
    #[inline]
    pub fn state(&self) -> State {
        State(self.mem.load(AT_STATE, Ordering::Acquire)) // Acquire, SYNC: state
    }

    /// How many bells the peer has counted for this connection. A broker compares it with the last it saw to find
    /// out which connection a bell was for. Any value is possible.
    pub fn bell_count(&self) -> u64 {
        self.mem.load(AT_BELL_COUNT, Ordering::Acquire)
    }
}

const _: () = assert!(CACHE_LINE == SLOT);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::ModelMemory;

    const LAYOUT: HalfLayout = HalfLayout { slots_log2: 2, bytes_log2: 6, loan_count: 1, loan_log2: 12 };

    #[test]
    fn a_half_is_recognised_only_with_its_nonce_and_layout() {
        let memory: ModelMemory = ModelMemory::new(LAYOUT.total_len());
        assert!(PeerHalf::open(memory.clone(), LAYOUT, 7).is_err(), "not initialised");
        let own = OwnHalf::init(memory.clone(), LAYOUT, 7);
        let peer = PeerHalf::open(memory.clone(), LAYOUT, 7).unwrap();
        assert!(PeerHalf::open(memory.clone(), LAYOUT, 8).is_err());
        assert!(PeerHalf::open(memory, HalfLayout { slots_log2: 3, ..LAYOUT }, 7).is_err());
        assert!(PeerHalf::open(ModelMemory::<std::sync::atomic::AtomicU64>::new(4096), LAYOUT, 7).is_err());
        own.set_state(State::SHUT_WR);
        assert!(peer.state().any(State::SHUT_WR) && peer.state().any(State::OPEN));
        assert!(!peer.state().any(State::CLOSED));
    }

    #[test]
    fn init_clears_what_an_earlier_connection_left() {
        let memory: ModelMemory = ModelMemory::new(LAYOUT.total_len());
        for at in (0..LAYOUT.total_len()).step_by(8) {
            memory.store(at, u64::MAX, Ordering::Relaxed);
        }
        let _ = OwnHalf::init(memory.clone(), LAYOUT, 1);
        for at in [AT_BYTE_TAIL, AT_SLOTS_CONSUMED, AT_DATA_TICKET, AT_LOAN_RETURNS, AT_SLOTS + 3 * SLOT] {
            assert_eq!(memory.load(at, Ordering::Relaxed), 0, "{at:#x}");
        }
    }
}
