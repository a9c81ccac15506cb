//! What a driver of the suite and its peer program in another kernel say to each other: postcard in messages of one
//! connection, which is of the backend under test. Both are one build.

use std::io::ErrorKind;

use serde::{Deserialize, Serialize};

use crate::addr::{Addr, Port};
use crate::error::Error;
use crate::options::Sizes;

/// Where peer programs wait for drivers.
pub const PEER_PORT: Port = Port(7000);
/// The most bytes of a stream in one request or answer.
pub(super) const PIECE_BYTES_MAX: usize = 32 * 1024;

/// Of the connection that carries this: it must take the longest message of a connection of default size, and then some.
pub(super) fn sizes() -> Sizes {
    Sizes { ring_bytes: 1 << 20, message_bytes_max: 4 << 20, ..Sizes::default() }
}

/// From the driver.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// Do this with that object, after what it was told to do before. There will be one answer.
    Do { op: u64, object: u64, ask: Ask },
    /// Whoever asked has given up: drop what is being done for it. It is answered all the same.
    Cancel { op: u64 },
    /// Drop the object.
    Drop { object: u64 },
    /// Drop everything: the behaviour is over, whatever of it still runs.
    End,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Ask {
    // Of the endpoint, which is object 0.
    Connect { addr: Addr, timeout_ms: Option<u64>, messages: bool },
    Listen { port: Port, backlog: u32, messages: bool },
    // Of a listener.
    Accept,
    // Of a reader.
    Read { max: usize },
    // Of a writer.
    Write { bytes: Vec<u8> },
    // Of a sender. `Send` takes the message; it may be delayed until `Flush`.
    Send { message: Vec<u8> },
    // Of a writer or a sender.
    Flush,
    Shutdown,
    // Of a receiver.
    Recv,
}

/// From the peer program.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Reply {
    pub(super) op: u64,
    pub(super) result: Result<Got, Problem>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Got {
    Connection(Connection),
    Listening {
        object: u64,
        local: Addr,
    },
    Bytes(Vec<u8>),
    Written(usize),
    /// `None`: the end.
    Message(Option<Vec<u8>>),
    Done,
    /// Dropped before it was done; nothing has happened.
    Cancelled,
}

/// A connection of the peer program: two objects.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Connection {
    pub(super) reader: u64,
    pub(super) writer: u64,
    pub(super) local: Addr,
    pub(super) peer: Addr,
    /// Of messages: the longest, in bytes.
    pub(super) max_len: usize,
}

/// An error, as it can be told elsewhere.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Problem {
    kind: u8,
    text: String,
}

/// The kinds that [`Error::kind`] gives, and those of sockets.
const KINDS: [ErrorKind; 15] = [
    ErrorKind::Other,
    ErrorKind::ConnectionRefused,
    ErrorKind::PermissionDenied,
    ErrorKind::ConnectionReset,
    ErrorKind::ConnectionAborted,
    ErrorKind::TimedOut,
    ErrorKind::AddrInUse,
    ErrorKind::AddrNotAvailable,
    ErrorKind::NotFound,
    ErrorKind::InvalidInput,
    ErrorKind::BrokenPipe,
    ErrorKind::OutOfMemory,
    ErrorKind::InvalidData,
    ErrorKind::NotConnected,
    ErrorKind::UnexpectedEof,
];

impl Problem {
    pub(super) fn new(kind: ErrorKind, text: impl Into<String>) -> Self {
        let kind = KINDS.iter().position(|known| *known == kind).unwrap_or_default();
        Self { kind: kind as u8, text: text.into() }
    }

    pub(super) fn kind(&self) -> ErrorKind {
        KINDS.get(usize::from(self.kind)).copied().unwrap_or(ErrorKind::Other)
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
        Self::new(error.kind(), format!("{error}{}", source.unwrap_or_default()))
    }
}

impl From<std::io::Error> for Problem {
    fn from(error: std::io::Error) -> Self {
        Self::new(error.kind(), error.to_string())
    }
}

impl From<Problem> for std::io::Error {
    fn from(problem: Problem) -> Self {
        Self::new(problem.kind(), problem.text)
    }
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        Self::io("what the other kernel's side did", problem.into())
    }
}

/// As one message.
pub(super) fn encode(value: &impl Serialize) -> Result<Vec<u8>, Problem> {
    postcard::to_stdvec(value).map_err(|error| Problem::new(ErrorKind::InvalidInput, error.to_string()))
}

pub(super) fn decode<'a, T: Deserialize<'a>>(message: &'a [u8]) -> Result<T, Problem> {
    postcard::from_bytes(message).map_err(|error| Problem::new(ErrorKind::InvalidData, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_keep_their_kind_and_words() {
        for kind in KINDS {
            let told: Problem = decode(&encode(&Problem::new(kind, "why")).unwrap()).unwrap();
            assert_eq!(std::io::Error::from(told.clone()).kind(), kind);
            assert_eq!(Error::from(told).kind(), kind);
        }
    }
}
