//! One small buffer per thread, so that encoding a short message allocates nothing.

use std::cell::Cell;

/// What is worth keeping, in bytes.
const KEPT_BYTES: std::ops::RangeInclusive<usize> = 64..=4096;

thread_local! {
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// An empty buffer.
pub(crate) fn take() -> Vec<u8> {
    let buffer = BUFFER.take();
    if buffer.capacity() == 0 { Vec::with_capacity(*KEPT_BYTES.start()) } else { buffer }
}

/// Gives a buffer back that is no longer needed.
pub(crate) fn give(mut buffer: Vec<u8>) {
    if KEPT_BYTES.contains(&buffer.capacity()) {
        buffer.clear();
        BUFFER.set(buffer);
    }
}
