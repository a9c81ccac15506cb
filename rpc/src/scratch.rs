//! Small buffers, a few per thread, so that short messages allocate nothing.

use std::cell::RefCell;
use std::ops::Deref;

use bytes::Bytes;

use crate::connection::Payload;

/// What is worth keeping, in bytes.
const KEPT_BYTES: std::ops::RangeInclusive<usize> = 64..=4096;
/// Buffers kept per thread.
const KEPT: usize = 16;

thread_local! {
    static BUFFERS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer.
#[inline]
pub(crate) fn take() -> Vec<u8> {
    let kept = BUFFERS.with_borrow_mut(Vec::pop);
    kept.unwrap_or_else(|| Vec::with_capacity(*KEPT_BYTES.start()))
}

/// Gives a buffer back that is no longer needed.
#[inline]
pub(crate) fn give(mut buffer: Vec<u8>) {
    if !KEPT_BYTES.contains(&buffer.capacity()) {
        return;
    }
    buffer.clear();
    // While a thread ends there may be nowhere to keep it.
    let _ = BUFFERS.try_with(|buffers| {
        let mut buffers = buffers.borrow_mut();
        if buffers.len() < KEPT {
            buffers.push(buffer);
        }
    });
}

/// A message on its own, outside of the frame it came in: a short one in a buffer that is used again, a long one shared.
#[derive(Debug)]
pub(crate) enum Body {
    Short(Vec<u8>),
    Shared(Bytes),
}

/// Messages shorter than this are copied: sharing costs more, and would keep memory alive to save a few cache lines.
pub(crate) const SHARE_AT_LEAST_BYTES: usize = 1024;

impl From<Payload<'_>> for Body {
    #[inline]
    fn from(payload: Payload<'_>) -> Self {
        match payload {
            Payload::Owned(bytes) => Self::Shared(bytes),
            Payload::Borrowed([]) => Self::Short(Vec::new()),
            Payload::Borrowed(bytes) if bytes.len() < SHARE_AT_LEAST_BYTES => {
                let mut short = take();
                short.extend_from_slice(bytes);
                Self::Short(short)
            }
            Payload::Borrowed(bytes) => Self::Shared(Bytes::copy_from_slice(bytes)),
        }
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        if bytes.len() < SHARE_AT_LEAST_BYTES { Self::Short(bytes) } else { Self::Shared(bytes.into()) }
    }
}

impl Body {
    /// To be sent: a short message is copied, a long one shared.
    pub(crate) fn as_payload(&self) -> Payload<'_> {
        match self {
            Self::Short(bytes) => Payload::Borrowed(bytes),
            Self::Shared(bytes) => Payload::Owned(bytes.clone()),
        }
    }
}

impl Deref for Body {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match self {
            Self::Short(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }
}

impl Drop for Body {
    #[inline]
    fn drop(&mut self) {
        if let Self::Short(bytes) = self {
            give(std::mem::take(bytes));
        }
    }
}
