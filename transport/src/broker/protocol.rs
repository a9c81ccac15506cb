//! What a process and its broker say to each other over the Unix socket: each message is its length (u32, little endian)
//! and then postcard. The first answer of the broker carries descriptors: the pool, the process's eventfd, the end of the
//! broker's bell pipe that is written, the file of locks where that is not the pool (the process only keeps it open), and for a privileged
//! process of a spawned kernel whose doorbell is a terminal line, that line opened for writing. Later ones carry the eventfds of other processes,
//! which are then rung without the broker, and sockets of connections that are relayed. The broker of a kernel without a pool answers
//! [`ServerMessage::Apart`]; each request then has a socket of its own, after a hello.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::addr::{Addr, Cid, Port};
use crate::broker::record::{ConnKind, HalfRef};
use crate::error::Error;
use crate::pool::Member;

/// Raised with every change of a message. Process and broker must agree: both come from one build as a rule.
pub(crate) const VERSION: u32 = 5;
/// The longest message in bytes; a longer one ends the attachment.
pub(crate) const MESSAGE_BYTES_MAX: usize = 16 * 1024;

/// From the process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ClientMessage {
    /// First, once.
    Hello {
        version: u32,
    },
    Connect {
        request: u64,
        addr: Addr,
        kind: ConnKind,
        layout: u32,
        timeout_ms: u64,
    },
    /// The one who asked has gone; whatever comes of it is to be dropped.
    Cancel {
        request: u64,
    },
    Listen {
        request: u64,
        port: Port,
        kind: ConnKind,
        backlog: u32,
        name: Option<String>,
        layout: u32,
    },
    Unlisten {
        port: Port,
    },
    /// The application has taken this connection: room in the backlog.
    Accepted {
        conn: u64,
    },
    Resolve {
        request: u64,
        name: String,
    },
    /// The process is done with both halves of this connection.
    Drop {
        conn: u64,
    },
}

/// From the broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ServerMessage {
    /// The answer to Hello, with the descriptors.
    Welcome {
        version: u32,
        cid: Cid,
        member: Member,
        pool_offset: u64,
        pool_len: u64,
        generation: u64,
        has_lock_file: bool,
    },
    /// The answer to Hello in a kernel without a pool: one request may follow.
    Apart { version: u32, cid: Cid },
    /// The answer to Hello if there is no attachment; the socket is then closed.
    Rejected { reason: String },
    /// The answer to the request of that number.
    Done { request: u64, result: Result<Reply, Failure> },
    /// A connection for the listener on `port`.
    Incoming { port: Port, grant: Grant },
    /// A connection for the listener on `port` that goes through no pool: its socket comes beside it, and begins with `conn`.
    Relayed { port: Port, conn: u64, kind: ConnKind, remote: Addr },
    /// Another process of this kernel, with which there will be connections: its bell comes beside it, as a descriptor.
    Neighbour { process: u64 },
    /// That process has gone.
    NeighbourGone { process: u64 },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Reply {
    Connected(Grant),
    Listening(Addr),
    Resolved(Addr),
    /// A connection that goes through no pool: its socket comes beside it, and begins with the number of the request.
    Relayed {
        local: Addr,
        remote: Addr,
    },
}

/// All a process needs to use a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Grant {
    /// The broker's number for it.
    pub(crate) conn: u64,
    pub(crate) kind: ConnKind,
    pub(crate) local: Addr,
    pub(crate) remote: Addr,
    pub(crate) own_half: HalfRef,
    pub(crate) peer_half: HalfRef,
    pub(crate) peer: Member,
    /// The process at the other end, if it is of this kernel too: a neighbour that was named before.
    pub(crate) peer_process: Option<u64>,
    pub(crate) own_generation: u64,
    pub(crate) peer_generation: u64,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Failure {
    Refused { reason: String },
    Denied { reason: String },
    TimedOut,
    PortInUse,
    NameInUse,
    NotFound { reason: String },
    NoMemory { cid: Cid, needed: u64 },
    Invalid { reason: String },
}

impl Failure {
    pub(crate) fn for_connect(self, addr: Addr, deadline_ms: u64) -> Error {
        match self {
            Self::Refused { reason } => Error::Refused { addr, reason },
            Self::Denied { reason } => Error::Denied { attempt: format!("connection to {addr}"), reason },
            Self::TimedOut => Error::TimedOut { addr, deadline_ms },
            other => other.generic(),
        }
    }

    pub(crate) fn for_listen(self, addr: Addr, name: Option<&str>) -> Error {
        match self {
            Self::Denied { reason } => Error::Denied { attempt: format!("listening on {addr}"), reason },
            Self::PortInUse => Error::AddrInUse(addr),
            Self::NameInUse => Error::NameInUse { name: name.unwrap_or_default().to_owned() },
            other => other.generic(),
        }
    }

    pub(crate) fn for_resolve(self, name: &str) -> Error {
        match self {
            Self::NotFound { reason } | Self::Refused { reason } => {
                Error::NotFound { name: name.to_owned(), reason }
            }
            Self::TimedOut => {
                Error::NotFound { name: name.to_owned(), reason: "its kernel did not answer in time".into() }
            }
            other => other.generic(),
        }
    }

    fn generic(self) -> Error {
        match self {
            Self::NoMemory { cid, needed } => Error::NoMemory { cid, needed: needed as usize },
            Self::Invalid { reason } => Error::Invalid(reason),
            other => Error::Invalid(format!("the broker gave an answer that does not fit: {other:?}")),
        }
    }
}

/// One message with its length before it.
pub(crate) fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, Error> {
    let body = postcard::to_stdvec(message)
        .map_err(|e| Error::Invalid(format!("a message to or from the broker cannot be encoded: {e}")))?;
    if body.len() > MESSAGE_BYTES_MAX {
        return Err(Error::TooLong { len: body.len(), max: MESSAGE_BYTES_MAX });
    }
    let mut out = (body.len() as u32).to_le_bytes().to_vec();
    out.extend_from_slice(&body);
    Ok(out)
}

/// Takes the first whole message off `buffer`; `None` if it has none yet.
pub(crate) fn take<T: DeserializeOwned>(buffer: &mut Vec<u8>) -> Result<Option<T>, Error> {
    let Some(header) = buffer.first_chunk::<4>() else { return Ok(None) };
    let len = u32::from_le_bytes(*header) as usize;
    if len > MESSAGE_BYTES_MAX {
        return Err(Error::TooLong { len, max: MESSAGE_BYTES_MAX });
    }
    let Some(body) = buffer.get(4..4 + len) else { return Ok(None) };
    let message = postcard::from_bytes(body)
        .map_err(|e| Error::Invalid(format!("a message of {len} bytes does not decode: {e}")))?;
    buffer.drain(..4 + len);
    Ok(Some(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_out_whole_however_they_are_cut() {
        let sent = vec![
            ClientMessage::Hello { version: VERSION },
            ClientMessage::Resolve { request: 1, name: "db/kv".into() },
            ClientMessage::Drop { conn: u64::MAX },
        ];
        let wire: Vec<u8> = sent.iter().flat_map(|m| encode(m).unwrap()).collect();
        let (mut buffer, mut received) = (Vec::new(), Vec::new());
        for byte in wire {
            buffer.push(byte);
            received.extend(take::<ClientMessage>(&mut buffer).unwrap());
        }
        assert_eq!(received, sent);
    }

    #[test]
    fn oversized_and_senseless_messages_are_errors() {
        assert!(take::<ClientMessage>(&mut u32::MAX.to_le_bytes().to_vec()).is_err());
        assert!(take::<ClientMessage>(&mut vec![1, 0, 0, 0, 0xff]).is_err());
    }
}
