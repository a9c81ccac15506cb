//! Memory shared with a peer that is not trusted: the only `unsafe` of this crate.
//!
//! A [`Mapping`] maps a whole pool read-only and makes chosen ranges of it writable. Windows into it,
//! [`OwnSpan`] (ours, read and write) and [`PeerSpan`] (read only), give bounds-checked atomic words and bulk
//! copies. Code above this module never sees a pointer, and no Rust reference or slice to shared memory is made
//! anywhere: another kernel may change any byte at any time, which no reference permits.
//!
//! [`Memory`] and [`MemoryMut`] are what the [rings](crate::ring) are written against, so that the same code runs on
//! mapped memory, on [`ModelMemory`] in property tests, and on model-checked atomics.
//!
//! # Invariants
//!
//! SAFETY comments in this module cite these by their number.
//!
//! | id | invariant | kept by | tested by |
//! |---|---|---|---|
//! | M1 | `base..base + len` of a span lies inside its mapping | spans are made only by `Mapping` and `sub`, both check | `spans_outside_the_mapping_are_refused` |
//! | M2 | the mapping outlives every span in it | each span holds an `Arc` of it; nothing else unmaps | type system |
//! | M3 | an access at `offset` of `n` bytes satisfies `offset + n <= len`, without overflow; a word access is 8-byte aligned | `Window::word` and `Window::bytes` are the only makers of addresses and assert it; mappings are page-aligned and spans 8-aligned | `access_past_the_end_panics`, `misaligned_word_panics` |
//! | M4 | no reference or slice to shared memory is made: words go through atomics, bulk through inline assembly that the compiler cannot see into (or atomics, byte by byte and word by word, where there is none) | only `window.rs`, `copy.rs` and `spread.rs` use addresses | review |
//! | M5 | writes go only to pages that `make_writable` has made writable | only `Mapping::make_writable` makes an `OwnSpan`; `OwnSpan::sub` stays inside | `writable_range_must_be_whole_pages` |
//! | M6 | private buffers are ordinary Rust slices, so they never overlap shared memory | M4: nobody can have a slice of it | type system |
//!
//! What can still go wrong: a file that shrinks while mapped raises SIGBUS on access. `Mapping` checks the length when it
//! maps; who makes a pool that untrusted processes may open should seal it (`F_SEAL_SHRINK`).
#![allow(unsafe_code)] // this module is where the unsafe lives; see the table above

mod copy;
mod mapping;
mod model;
mod span;
#[cfg(all(target_arch = "x86_64", not(any(miri, tombolo_word_atomic))))]
mod spread;
mod ticks;
mod window;

use std::sync::atomic::{AtomicU64, Ordering};

pub use mapping::{MapError, Mapping};
pub use model::ModelMemory;
pub use span::{OutOfBounds, OwnSpan, PeerSpan};
pub use ticks::{ticks, ticks_in};

/// The size of a cache line, in bytes. What one core writes often never shares one with what another writes.
pub const CACHE_LINE: usize = 64;

/// The size of a page, in bytes: the grain of write protection.
pub const PAGE: usize = 4096;

/// Memory that somebody else may be writing.
///
/// Offsets are in bytes from the start of the window. An access outside the window is a bug of the caller and panics:
/// validate what a peer says *before* using it as an offset.
pub trait Memory: Clone + Send + Sync {
    /// The private shared counters that go with this kind of memory.
    type Word: Word;

    /// Length of the window in bytes.
    fn len(&self) -> usize;

    /// Whether the window is empty.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Loads the 8-byte aligned word at `offset`, in native byte order.
    fn load(&self, offset: usize, order: Ordering) -> u64;

    /// Copies `out.len()` bytes at `offset` into `out`. Not atomic as a whole.
    fn read(&self, offset: usize, out: &mut [u8]);

    /// Appends `len` bytes at `offset` to `out`, without clearing the new room first.
    fn append(&self, offset: usize, len: usize, out: &mut Vec<u8>) {
        let old = out.len();
        out.resize(old + len, 0);
        self.read(offset, &mut out[old..]);
    }

    /// Hints that the line at `offset` will be read soon. Changes nothing else.
    #[inline]
    fn prefetch_read(&self, offset: usize) {
        let _ = offset;
    }

    /// A sequentially consistent fence, as `std::sync::atomic::fence(SeqCst)`.
    fn fence();
}

/// Memory of which we are the only writer.
pub trait MemoryMut: Memory {
    /// Stores the 8-byte aligned word at `offset`, in native byte order.
    fn store(&self, offset: usize, value: u64, order: Ordering);

    /// Copies `data` to `offset`. Not atomic as a whole.
    fn write(&self, offset: usize, data: &[u8]);

    /// As [`MemoryMut::write`], where another core most likely has the lines at `offset`, and nobody has asked for them.
    #[inline]
    fn write_far(&self, offset: usize, data: &[u8]) {
        self.write(offset, data);
    }

    /// Sets bits of the aligned word at `offset`; returns what was there.
    ///
    /// Several threads and processes of *our own* kernel may do so at once; no other kernel ever writes here.
    fn fetch_or(&self, offset: usize, bits: u64) -> u64;

    /// Changes bits of the aligned word at `offset`; returns what was there. As [`MemoryMut::fetch_or`].
    fn fetch_xor(&self, offset: usize, bits: u64) -> u64;

    /// Adds to the aligned word at `offset`, wrapping; returns what was there. As [`MemoryMut::fetch_or`].
    fn fetch_add(&self, offset: usize, value: u64) -> u64;

    /// Hints that the `len` bytes at `offset` will be written soon. Changes nothing else.
    #[inline]
    fn prefetch_write(&self, offset: usize, len: usize) {
        let _ = (offset, len);
    }

    /// Hints that another core will read the `len` bytes at `offset` next. Changes nothing else.
    #[inline]
    fn demote(&self, offset: usize, len: usize) {
        let _ = (offset, len);
    }

    /// Stores zeroes into the `len` bytes at `offset`, both multiples of 8.
    fn zero(&self, offset: usize, len: usize) {
        for at in (offset..offset + len).step_by(8) {
            self.store(at, 0, Ordering::Relaxed);
        }
    }
}

/// An atomic word of private memory, shared between the two directions of one connection in this process.
pub trait Word: Send + Sync + 'static {
    /// A word that holds `value`.
    fn new(value: u64) -> Self;
    /// As [`AtomicU64::load`].
    fn load(&self, order: Ordering) -> u64;
    /// As [`AtomicU64::store`].
    fn store(&self, value: u64, order: Ordering);
    /// As [`AtomicU64::fetch_or`].
    fn fetch_or(&self, bits: u64, order: Ordering) -> u64;
    /// As [`AtomicU64::fetch_xor`].
    fn fetch_xor(&self, bits: u64, order: Ordering) -> u64;
    /// As [`AtomicU64::fetch_and`].
    fn fetch_and(&self, bits: u64, order: Ordering) -> u64;
    /// As [`AtomicU64::fetch_add`].
    fn fetch_add(&self, value: u64, order: Ordering) -> u64;
    /// As `std::sync::atomic::fence(SeqCst)`, in the same model of memory.
    fn fence();
}

macro_rules! impl_word {
    ($word:ty, $fence:path) => {
        impl Word for $word {
            #[inline]
            fn new(value: u64) -> Self {
                <$word>::new(value)
            }
            #[inline]
            fn load(&self, order: Ordering) -> u64 {
                <$word>::load(self, order)
            }
            #[inline]
            fn store(&self, value: u64, order: Ordering) {
                <$word>::store(self, value, order);
            }
            #[inline]
            fn fetch_or(&self, bits: u64, order: Ordering) -> u64 {
                <$word>::fetch_or(self, bits, order)
            }
            #[inline]
            fn fetch_xor(&self, bits: u64, order: Ordering) -> u64 {
                <$word>::fetch_xor(self, bits, order)
            }
            #[inline]
            fn fetch_and(&self, bits: u64, order: Ordering) -> u64 {
                <$word>::fetch_and(self, bits, order)
            }
            #[inline]
            fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
                <$word>::fetch_add(self, value, order)
            }
            #[inline]
            fn fence() {
                $fence();
            }
        }
    };
}

impl_word!(AtomicU64, copy::fence);
#[cfg(test)]
impl_word!(loom::sync::atomic::AtomicU64, loom_fence);

#[cfg(test)]
fn loom_fence() {
    loom::sync::atomic::fence(Ordering::SeqCst);
}
