//! The two kinds of window: ours and the peer's.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use super::window::Window;
use super::{Memory, MemoryMut, Word};

/// A part was asked for that does not lie inside its window, or is not aligned to 8 bytes.
///
/// When the numbers came from a peer, this is the peer's misbehaviour: nothing was accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes at offset {offset} do not lie, 8-byte aligned, in a window of {window_len} bytes")]
pub struct OutOfBounds {
    /// Offset asked for, in bytes.
    pub offset: usize,
    /// Length asked for, in bytes.
    pub len: usize,
    /// Length of the window, in bytes.
    pub window_len: usize,
}

/// A window that only a peer writes. Cheap to clone; keeps the mapping alive.
#[derive(Clone)]
pub struct PeerSpan(Window);

/// A window that only we write. Cheap to clone; keeps the mapping alive.
#[derive(Clone)]
pub struct OwnSpan(Window);

impl PeerSpan {
    pub(super) fn new(window: Window) -> Self {
        Self(window)
    }

    /// The `len` bytes at `offset` (a multiple of 8) of this window.
    pub fn sub(&self, offset: usize, len: usize) -> Result<Self, OutOfBounds> {
        Ok(Self(self.0.sub(offset, len)?))
    }
}

impl OwnSpan {
    /// Called for windows on writable pages only (M5).
    pub(super) fn new(window: Window) -> Self {
        Self(window)
    }

    /// The `len` bytes at `offset` (a multiple of 8) of this window.
    pub fn sub(&self, offset: usize, len: usize) -> Result<Self, OutOfBounds> {
        Ok(Self(self.0.sub(offset, len)?))
    }

    /// The same window, to be read only: how the other side sees it.
    pub fn as_peer(&self) -> PeerSpan {
        PeerSpan(self.0.clone())
    }
}

macro_rules! impl_memory {
    ($span:ty) => {
        impl Memory for $span {
            type Word = AtomicU64;

            #[inline]
            fn len(&self) -> usize {
                self.0.len()
            }

            #[inline]
            fn load(&self, offset: usize, order: Ordering) -> u64 {
                self.0.word(offset).load(order)
            }

            #[inline]
            fn read(&self, offset: usize, out: &mut [u8]) {
                self.0.read(offset, out);
            }

            #[inline]
            fn append(&self, offset: usize, len: usize, out: &mut Vec<u8>) {
                self.0.append(offset, len, out);
            }

            #[inline]
            fn prefetch_read(&self, offset: usize) {
                self.0.prefetch_read(offset);
            }

            #[inline]
            fn fence() {
                <AtomicU64 as Word>::fence();
            }
        }

        impl fmt::Debug for $span {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:p}, {} bytes)", stringify!($span), self.0.base(), self.0.len())
            }
        }
    };
}

impl_memory!(PeerSpan);
impl_memory!(OwnSpan);

impl MemoryMut for OwnSpan {
    #[inline]
    fn store(&self, offset: usize, value: u64, order: Ordering) {
        self.0.word(offset).store(value, order);
    }

    #[inline]
    fn write(&self, offset: usize, data: &[u8]) {
        self.0.write(offset, data);
    }

    #[inline]
    fn write_far(&self, offset: usize, data: &[u8]) {
        self.0.write_far(offset, data);
    }

    #[inline]
    fn fetch_or(&self, offset: usize, bits: u64) -> u64 {
        self.0.word(offset).fetch_or(bits, Ordering::AcqRel)
    }

    #[inline]
    fn fetch_xor(&self, offset: usize, bits: u64) -> u64 {
        self.0.word(offset).fetch_xor(bits, Ordering::AcqRel)
    }

    #[inline]
    fn fetch_add(&self, offset: usize, value: u64) -> u64 {
        self.0.word(offset).fetch_add(value, Ordering::AcqRel)
    }

    #[inline]
    fn prefetch_write(&self, offset: usize, len: usize) {
        self.0.prefetch_write(offset, len);
    }

    #[inline]
    fn demote(&self, offset: usize, len: usize) {
        self.0.demote(offset, len);
    }
}
