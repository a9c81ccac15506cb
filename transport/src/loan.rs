//! Very long messages without copying them: buffers that are filled in place, and messages that are read in place.

use std::fmt;
use std::ops::Range;

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::mem::{OwnSpan, PeerSpan};
use crate::ring::{InPlace, InPlaceMut};
use crate::shm::{ShmLoan, ShmReceived};

/// A message being written, in the memory it will be read from where the backend can do that. Dropping it unsent gives the memory back.
#[derive(Debug)]
pub struct Loan(LoanKind);

#[derive(Debug)]
enum LoanKind {
    Private(Vec<u8>),
    Shm(ShmLoan),
}

/// A received message, still in the sender's memory where it came as a loan. Dropping it returns the loan.
///
/// The sender could change it while it is read: copy what you check, and use the copy.
pub struct Received(ReceivedKind);

enum ReceivedKind {
    Private(Bytes),
    Shm(ShmReceived),
}

impl Loan {
    pub(crate) fn private(len: usize) -> Self {
        Self(LoanKind::Private(vec![0; len]))
    }

    pub(crate) fn shm(loan: ShmLoan) -> Self {
        Self(LoanKind::Shm(loan))
    }

    pub(crate) fn into_parts(self) -> Result<ShmLoan, Vec<u8>> {
        match self.0 {
            LoanKind::Private(message) => Err(message),
            LoanKind::Shm(loan) => Ok(loan),
        }
    }

    /// Length of the message in bytes.
    #[expect(clippy::len_without_is_empty, reason = "an empty loan is a loan too")]
    pub fn len(&self) -> usize {
        match &self.0 {
            LoanKind::Private(message) => message.len(),
            LoanKind::Shm(loan) => loan.len(),
        }
    }

    /// Shortens the message to `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        match &mut self.0 {
            LoanKind::Private(message) => message.truncate(len),
            LoanKind::Shm(loan) => loan.truncate(len),
        }
    }

    /// Copies `data` to `offset`. What is never written holds anything.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it does not fit.
    pub fn write_at(&mut self, offset: usize, data: &[u8]) -> Result<()> {
        let range = within(self.len(), offset, data.len())?;
        match &mut self.0 {
            LoanKind::Private(message) => message[range].copy_from_slice(data),
            LoanKind::Shm(loan) => loan.write_at(range.start, data),
        }
        Ok(())
    }
}

impl Received {
    pub(crate) fn private(message: Bytes) -> Self {
        Self(ReceivedKind::Private(message))
    }

    pub(crate) fn shm(received: ShmReceived) -> Self {
        Self(ReceivedKind::Shm(received))
    }

    /// Length of the message in bytes.
    pub fn len(&self) -> usize {
        match &self.0 {
            ReceivedKind::Private(message) => message.len(),
            ReceivedKind::Shm(received) => received.len(),
        }
    }

    /// Whether the message has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies `out.len()` bytes at `offset` out.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the message has no such bytes, [`Error::Reset`] if the sender has died meanwhile.
    pub fn read_at(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        let range = within(self.len(), offset, out.len())?;
        match &self.0 {
            ReceivedKind::Private(message) => {
                out.copy_from_slice(&message[range]);
                Ok(())
            }
            ReceivedKind::Shm(received) => received.read_at(range.start, out),
        }
    }

    /// The whole message, copied if it is not private yet.
    ///
    /// # Errors
    /// [`Error::Reset`] if the sender has died meanwhile.
    pub fn into_bytes(self) -> Result<Bytes> {
        match self.0 {
            ReceivedKind::Private(message) => Ok(message),
            ReceivedKind::Shm(received) => received.into_vec().map(Bytes::from),
        }
    }
}

/// A message being written for as long as one call lasts, in the memory it will be read from where the backend can do that: see
/// [`MessageSender::send_in_place`](crate::MessageSender::send_in_place).
#[derive(Debug)]
pub struct MessageMut<'a>(MutKind<'a>);

#[derive(Debug)]
enum MutKind<'a> {
    Private(&'a mut Vec<u8>),
    Shm(InPlaceMut<'a, OwnSpan>),
}

/// A received message for as long as one call lasts, still in the sender's memory where it came as a loan: see
/// [`MessageReceiver::recv_in_place`](crate::MessageReceiver::recv_in_place).
///
/// The sender could change it while it is read: copy what you check, and use the copy.
#[derive(Debug)]
pub struct MessageRef<'a>(RefKind<'a>);

#[derive(Debug)]
enum RefKind<'a> {
    Private(&'a [u8]),
    Shm(&'a InPlace<'a, PeerSpan>),
}

impl<'a> MessageMut<'a> {
    pub(crate) fn private(message: &'a mut Vec<u8>) -> Self {
        Self(MutKind::Private(message))
    }

    #[inline]
    pub(crate) fn shm(message: InPlaceMut<'a, OwnSpan>) -> Self {
        Self(MutKind::Shm(message))
    }

    /// Length of the message in bytes.
    #[inline]
    #[expect(clippy::len_without_is_empty, reason = "an empty message is one too")]
    pub fn len(&self) -> usize {
        match &self.0 {
            MutKind::Private(message) => message.len(),
            MutKind::Shm(message) => message.len(),
        }
    }

    /// Shortens the message to `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        match &mut self.0 {
            MutKind::Private(message) => message.truncate(len),
            MutKind::Shm(message) => message.truncate(len),
        }
    }

    /// Copies `data` to `offset`. What is never written holds anything.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it does not fit.
    #[inline]
    pub fn write_at(&mut self, offset: usize, data: &[u8]) -> Result<()> {
        let range = within(self.len(), offset, data.len())?;
        match &mut self.0 {
            MutKind::Private(message) => message[range].copy_from_slice(data),
            MutKind::Shm(message) => message.write_at(range.start, data),
        }
        Ok(())
    }
}

impl<'a> MessageRef<'a> {
    pub(crate) fn private(message: &'a [u8]) -> Self {
        Self(RefKind::Private(message))
    }

    #[inline]
    pub(crate) fn shm(message: &'a InPlace<'a, PeerSpan>) -> Self {
        Self(RefKind::Shm(message))
    }

    /// Length of the message in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        match &self.0 {
            RefKind::Private(message) => message.len(),
            RefKind::Shm(message) => message.len(),
        }
    }

    /// Whether the message has no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies `out.len()` bytes at `offset` out.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the message has no such bytes.
    #[inline]
    pub fn read_at(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        let range = within(self.len(), offset, out.len())?;
        match &self.0 {
            RefKind::Private(message) => out.copy_from_slice(&message[range]),
            RefKind::Shm(message) => message.read_at(range.start, out),
        }
        Ok(())
    }
}

impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Received").field("len", &self.len()).finish_non_exhaustive()
    }
}

#[inline]
fn within(whole: usize, offset: usize, len: usize) -> Result<Range<usize>> {
    match offset.checked_add(len) {
        Some(end) if end <= whole => Ok(offset..end),
        _ => Err(Error::Invalid(format!("{len} bytes at {offset} are not inside a message of {whole}"))),
    }
}
