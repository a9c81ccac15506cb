//! What can go wrong on a socket, in the words of vsock(7) and errno(3).

use std::io;

use crate::addr::{Addr, Cid};

/// Why a connection ended without both sides agreeing to end it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ResetCause {
    /// The peer process closed or died with data still in flight.
    #[error("the peer process went away")]
    PeerClosed,
    /// The peer's kernel was declared dead, or it or its broker has restarted.
    #[error("the peer's kernel died, or it or its broker restarted")]
    PeerKernelDied,
    /// The primary declared this kernel dead (while it was frozen, say); its peers have dropped the connection.
    #[error("this kernel was declared dead by the primary")]
    Fenced,
    /// The broker of this kernel, which brokered the connection, went away.
    #[error("the broker of this kernel went away")]
    BrokerDied,
    /// The peer wrote something that the protocol forbids.
    #[error("the peer broke the protocol: {0}")]
    PeerMisbehaved(String),
}

/// An error of the transport. Every variant says what was attempted and on what.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nobody listens there, its backlog is full, or its kernel is not there.
    #[error("connection to {addr} refused: {reason}")]
    Refused {
        /// Whom we called.
        addr: Addr,
        /// What the other side (or our own broker) said.
        reason: String,
    },
    /// A policy forbids this.
    #[error("{attempt} denied by policy: {reason}")]
    Denied {
        /// What was attempted.
        attempt: String,
        /// The rule, and how to change it.
        reason: String,
    },
    /// The connection is gone. What was sent before may or may not have arrived.
    #[error("connection to {peer} reset: {cause}")]
    Reset {
        /// The other side.
        peer: Addr,
        /// Why.
        cause: ResetCause,
    },
    /// No answer in time.
    #[error("no answer from {addr} within {deadline_ms} ms")]
    TimedOut {
        /// Whom we called.
        addr: Addr,
        /// How long we waited, in milliseconds.
        deadline_ms: u64,
    },
    /// The port is taken.
    #[error("port {0} is already in use in this kernel")]
    AddrInUse(Addr),
    /// Another service of this kernel has that name.
    #[error("a service named `{name}` is already there in this kernel")]
    NameInUse {
        /// The name.
        name: String,
    },
    /// No kernel or service of that name.
    #[error("no service named `{name}`: {reason}")]
    NotFound {
        /// The name that was looked up.
        name: String,
        /// Which part of it is unknown.
        reason: String,
    },
    /// The message does not fit this connection, ever.
    #[error("a message of {len} bytes does not fit: this connection carries at most {max} bytes a message")]
    TooLong {
        /// Length asked for, in bytes.
        len: usize,
        /// Longest message, in bytes.
        max: usize,
    },
    /// This side has already shut down that direction.
    #[error("this direction of the connection to {peer} has been shut down")]
    Shutdown {
        /// The other side.
        peer: Addr,
    },
    /// The pool has no room for another connection.
    #[error("no room for a connection of {needed} bytes in the extent of cid {cid}")]
    NoMemory {
        /// Whose extent is full.
        cid: Cid,
        /// Bytes asked for.
        needed: usize,
    },
    /// The pool is not one we can use.
    #[error("pool {path} cannot be used: {reason}")]
    BadPool {
        /// Which pool.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The request itself makes no sense (a port out of range, say).
    #[error("{0}")]
    Invalid(String),
    /// The operating system refused something.
    #[error("{attempt} failed")]
    Io {
        /// What was attempted, on what.
        attempt: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Wraps an [`io::Error`] with what was attempted.
    pub fn io(attempt: impl Into<String>, source: io::Error) -> Self {
        Self::Io { attempt: attempt.into(), source }
    }

    /// The [`io::ErrorKind`] nearest in meaning.
    pub fn kind(&self) -> io::ErrorKind {
        use io::ErrorKind as K;
        match self {
            Self::Refused { .. } => K::ConnectionRefused,
            Self::Denied { .. } => K::PermissionDenied,
            Self::Reset { .. } => K::ConnectionReset,
            Self::TimedOut { .. } => K::TimedOut,
            Self::AddrInUse(_) | Self::NameInUse { .. } => K::AddrInUse,
            Self::NotFound { .. } => K::NotFound,
            Self::TooLong { .. } | Self::Invalid(_) => K::InvalidInput,
            Self::Shutdown { .. } => K::BrokenPipe,
            Self::NoMemory { .. } => K::OutOfMemory,
            Self::BadPool { .. } => K::InvalidData,
            Self::Io { source, .. } => source.kind(),
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::new(error.kind(), error)
    }
}

/// Shorthand for a result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
