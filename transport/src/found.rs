//! What a look for a message finds.

#[cfg(doc)]
use crate::MessageReceiver;

/// What [`MessageReceiver::try_recv`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TryRecv {
    /// A message; it is in the buffer.
    Message,
    /// Nothing yet.
    Empty,
    /// The peer has shut down; nothing will come.
    End,
}

/// What [`MessageReceiver::try_recv_apart`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TryRecvApart {
    /// A message; it is in the buffer.
    Whole,
    /// A message of which the first bytes are in the buffer, and so many more at the end of where they were to go.
    Apart(usize),
    /// Nothing yet.
    Empty,
    /// The peer has shut down; nothing will come.
    End,
}

/// What [`MessageReceiver::try_recv_in_place`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TryRead<R> {
    /// A message, and what was made of it.
    Read(R),
    /// Nothing yet.
    Empty,
    /// The peer has shut down; nothing will come.
    End,
}

impl<R> TryRead<R> {
    pub(crate) fn received(read: Option<R>) -> Self {
        read.map_or(Self::End, Self::Read)
    }
}

impl TryRecvApart {
    /// `rest`: of a message, the bytes that are not in the buffer.
    pub(crate) fn received(rest: Option<usize>) -> Self {
        match rest {
            None => Self::End,
            Some(0) => Self::Whole,
            Some(rest) => Self::Apart(rest),
        }
    }
}

impl From<TryRecv> for TryRecvApart {
    fn from(found: TryRecv) -> Self {
        match found {
            TryRecv::Message => Self::Whole,
            TryRecv::Empty => Self::Empty,
            TryRecv::End => Self::End,
        }
    }
}
