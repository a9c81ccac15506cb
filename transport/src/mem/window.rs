//! The one place that turns offsets into addresses.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::copy;
use super::{Mapping, OutOfBounds};

/// A checked part of a mapping. See M1 and M2.
#[derive(Clone)]
pub(super) struct Window {
    base: *mut u8,
    len: usize,
    mapping: Arc<Mapping>,
}

// SAFETY: a `Window` is an address and a length in memory that lives as long as the `Arc` it holds (M2). It is used only
// through atomics and opaque copies (M4), which any thread may do at any time.
unsafe impl Send for Window {}
// SAFETY: as for `Send`: no method needs exclusive access.
unsafe impl Sync for Window {}

impl Window {
    /// `base..base + len` must lie inside `mapping` (M1); `base` must be 8-aligned.
    pub(super) fn new(base: *mut u8, len: usize, mapping: Arc<Mapping>) -> Self {
        debug_assert!(base.addr().is_multiple_of(8));
        Self { base, len, mapping }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn base(&self) -> *mut u8 {
        self.base
    }

    pub(super) fn sub(&self, offset: usize, len: usize) -> Result<Self, OutOfBounds> {
        let fits = offset.checked_add(len).is_some_and(|end| end <= self.len);
        if !fits || !offset.is_multiple_of(8) {
            return Err(OutOfBounds { offset, len, window_len: self.len });
        }
        // `wrapping_add` stays inside the mapping: checked above.
        Ok(Self { base: self.base.wrapping_add(offset), len, mapping: Arc::clone(&self.mapping) })
    }

    /// The aligned word at `offset`. The reference is to an atomic, and does not leave this module's callers.
    #[inline]
    pub(super) fn word(&self, offset: usize) -> &AtomicU64 {
        if offset >= self.len || self.len - offset < 8 {
            outside(offset, 8, self.len);
        }
        if !offset.is_multiple_of(8) {
            misaligned(offset);
        }
        let address = self.base.wrapping_add(offset);
        // SAFETY: the 8 bytes are inside the window and aligned (M1, M3), alive while `self` is (M2). Everybody, in this
        // process or not, accesses them through atomics or copies the compiler cannot see (M4). A page that is
        // read-only is only ever loaded from (M5).
        unsafe { AtomicU64::from_ptr(address.cast()) }
    }

    /// The address of `n` bytes at `offset`, all inside the window.
    #[inline]
    fn bytes(&self, offset: usize, n: usize) -> *mut u8 {
        if offset > self.len || self.len - offset < n {
            outside(offset, n, self.len);
        }
        self.base.wrapping_add(offset)
    }

    #[inline]
    pub(super) fn read(&self, offset: usize, out: &mut [u8]) {
        let from = self.bytes(offset, out.len());
        // SAFETY: `from` has that many bytes (M1, M3), alive (M2); `out` is private (M6).
        unsafe { copy::from_shared(from, out.as_mut_ptr(), out.len()) }
    }

    pub(super) fn append(&self, offset: usize, len: usize, out: &mut Vec<u8>) {
        let from = self.bytes(offset, len);
        out.reserve(len);
        let old = out.len();
        let to = out.spare_capacity_mut().as_mut_ptr().cast();
        // SAFETY: `from` has `len` bytes (M1, M3), alive (M2); so has `to`, just reserved, private (M6).
        unsafe { copy::from_shared(from, to, len) }
        // SAFETY: the `len` bytes after `old` are inside the capacity and were just written.
        unsafe { out.set_len(old + len) }
    }

    /// Only for windows whose pages are writable (M5).
    #[inline]
    pub(super) fn write(&self, offset: usize, data: &[u8]) {
        let to = self.bytes(offset, data.len());
        // SAFETY: `to` has that many bytes (M1, M3), alive (M2), writable (M5); `data` is private (M6).
        unsafe { copy::to_shared(data.as_ptr(), to, data.len()) }
    }

    /// As [`Window::write`].
    #[inline]
    pub(super) fn write_far(&self, offset: usize, data: &[u8]) {
        let to = self.bytes(offset, data.len());
        // SAFETY: as in `write` (M1, M2, M3, M5, M6).
        unsafe { copy::to_shared_far(data.as_ptr(), to, data.len()) }
    }

    #[inline]
    pub(super) fn prefetch_read(&self, offset: usize) {
        copy::prefetch_read(self.bytes(offset, 1));
    }

    #[inline]
    pub(super) fn prefetch_write(&self, offset: usize, n: usize) {
        copy::prefetch_write(self.bytes(offset, n), n);
    }

    #[inline]
    pub(super) fn demote(&self, offset: usize, n: usize) {
        copy::demote(self.bytes(offset, n), n);
    }
}

#[cold]
#[inline(never)]
fn outside(offset: usize, n: usize, len: usize) -> ! {
    panic!("access of {n} bytes at {offset} outside a window of {len}: the caller failed to validate it");
}

#[cold]
#[inline(never)]
fn misaligned(offset: usize) -> ! {
    panic!("word access at {offset}, which is not aligned to 8 bytes");
}
