//! Small tools of the suite: reproducible bytes, polling a future a few times, errors compared by kind.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};

use super::{Check, Failure};
use crate::error::Error;

/// Fails with a formatted message unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($why:tt)+) => {
        if !$condition {
            return Err($crate::conformance::Failure::new(format!($($why)+)));
        }
    };
}
pub(super) use ensure;

/// Long enough for whatever was going to happen; a wait of this length only proves that nothing happened.
pub(super) const SETTLE: Duration = Duration::from_millis(150);

/// Reproducible bytes and numbers (xorshift64*).
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    pub(super) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}

/// Polls `future` up to `times` with a yield between, then drops it.
pub(super) async fn poll_then_drop<T>(future: impl Future<Output = T>, times: usize) -> Option<T> {
    let mut future = pin!(future);
    for _ in 0..times {
        let polled = std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await;
        if let Poll::Ready(value) = polled {
            return Some(value);
        }
        tokio::task::yield_now().await;
    }
    None
}

/// Polls once without a task behind it.
pub(super) fn poll_now<T>(future: impl Future<Output = T>) -> Poll<T> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// Everything up to the end, which must come as an orderly end or as a reset, not as another error.
pub(super) async fn read_to_some_end(io: &mut (impl AsyncRead + Unpin)) -> Result<(Vec<u8>, End), Failure> {
    let mut bytes = Vec::new();
    let mut chunk = vec![0; 16 * 1024];
    loop {
        match io.read(&mut chunk).await {
            Ok(0) => return Ok((bytes, End::Orderly)),
            Ok(read) => bytes.extend_from_slice(&chunk[..read]),
            Err(error) if is_reset(error.kind()) => return Ok((bytes, End::Reset)),
            Err(error) => return Err(error.into()),
        }
    }
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Orderly,
    Reset,
}

pub(super) fn is_reset(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

/// That `result` is an error of one of `kinds`.
pub(super) fn expect_error<T>(what: &str, result: Result<T, Error>, kinds: &[io::ErrorKind]) -> Check {
    match result {
        Ok(_) => Err(Failure::new(format!("{what} succeeded"))),
        Err(error) if kinds.contains(&error.kind()) => Ok(()),
        Err(error) => {
            Err(Failure::new(format!("{what} failed as {:?}, not {kinds:?}: {error}", error.kind())))
        }
    }
}

pub(super) fn expect_io_error<T>(what: &str, result: io::Result<T>, kinds: &[io::ErrorKind]) -> Check {
    match result {
        Ok(_) => Err(Failure::new(format!("{what} succeeded"))),
        Err(error) if kinds.contains(&error.kind()) => Ok(()),
        Err(error) => {
            Err(Failure::new(format!("{what} failed as {:?}, not {kinds:?}: {error}", error.kind())))
        }
    }
}

/// That two byte strings are the same, without printing megabytes when they are not.
pub(super) fn expect_same(what: &str, found: &[u8], expected: &[u8]) -> Check {
    if found == expected {
        return Ok(());
    }
    let differ = found.iter().zip(expected).position(|(found, expected)| found != expected);
    Err(Failure::new(format!(
        "{what}: {} bytes came where {} were sent; first difference at {:?}; checksums {:08x} and {:08x}",
        found.len(),
        expected.len(),
        differ.unwrap_or_else(|| found.len().min(expected.len())),
        crc32fast::hash(found),
        crc32fast::hash(expected),
    )))
}
