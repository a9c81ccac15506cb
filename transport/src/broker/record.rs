//! What brokers say to each other: records of 56 bytes in the control rings.
//!
//! `docs/pool-format.md`, section 6, has the offsets. A record is copied out of shared memory once and then decoded; one that
//! makes no sense is dropped and counted.

/// Bytes of a record: a cache line without the stamp of its slot.
pub(crate) const RECORD_LEN: usize = 56;
/// The longest service name, in bytes: what a RESOLVE record has room for.
pub(crate) const SERVICE_NAME_BYTES_MAX: usize = 40;

/// What a connection carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) enum ConnKind {
    Stream,
    Messages,
}

/// A half as its owner's broker announces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct HalfRef {
    /// From the start of the pool, in bytes.
    pub(crate) offset: u64,
    /// [`HalfLayout::to_word`](crate::ring::HalfLayout::to_word).
    pub(crate) layout: u32,
    pub(crate) nonce: u64,
}

/// Why a CONNECT was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RefuseCode {
    NoListener,
    BacklogFull,
    Denied,
    NoMemory,
    /// The listener carries streams and messages were asked for, or the other way round.
    WrongKind,
    /// The CONNECT itself made no sense.
    BadRequest,
    /// The caller's kernel holds as much of the acceptor's heap as it may.
    Quota,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// `from` is the caller's number of the connection.
    Connect {
        from: u64,
        kind: ConnKind,
        half: HalfRef,
        src_port: u32,
        dst_port: u32,
    },
    /// `to` is the caller's number, `from` the acceptor's.
    Accept {
        from: u64,
        to: u64,
        half: HalfRef,
    },
    Refuse {
        to: u64,
        code: RefuseCode,
    },
    /// The sender has dropped its side and will not read the receiver's half again.
    Closed {
        to: u64,
    },
    /// Where does `name` listen? `from` numbers the question.
    Resolve {
        from: u64,
        name: String,
    },
    /// The answer; `None`: nowhere.
    Resolved {
        to: u64,
        port: Option<u32>,
    },
}

const CONNECT: u8 = 1;
const ACCEPT: u8 = 2;
const REFUSE: u8 = 3;
const CLOSED: u8 = 4;
const RESOLVE: u8 = 5;
const RESOLVED: u8 = 6;

const AT_DETAIL: usize = 1;
const AT_LAYOUT: usize = 4;
const AT_FROM: usize = 8;
const AT_TO: usize = 16;
const AT_OFFSET: usize = 24;
const AT_NONCE: usize = 32;
const AT_SRC_PORT: usize = 40;
const AT_DST_PORT: usize = 44;
/// In RESOLVE, in place of all that follows `from`.
const AT_NAME: usize = 16;

impl Record {
    pub(crate) fn encode(&self) -> [u8; RECORD_LEN] {
        let mut out = [0; RECORD_LEN];
        match self {
            Self::Connect { from, kind, half, src_port, dst_port } => {
                out[0] = CONNECT;
                out[AT_DETAIL] = match kind {
                    ConnKind::Stream => 1,
                    ConnKind::Messages => 2,
                };
                put(&mut out, AT_FROM, &from.to_le_bytes());
                put_half(&mut out, half);
                put(&mut out, AT_SRC_PORT, &src_port.to_le_bytes());
                put(&mut out, AT_DST_PORT, &dst_port.to_le_bytes());
            }
            Self::Accept { from, to, half } => {
                out[0] = ACCEPT;
                put(&mut out, AT_FROM, &from.to_le_bytes());
                put(&mut out, AT_TO, &to.to_le_bytes());
                put_half(&mut out, half);
            }
            Self::Refuse { to, code } => {
                out[0] = REFUSE;
                out[AT_DETAIL] = match code {
                    RefuseCode::NoListener => 1,
                    RefuseCode::BacklogFull => 2,
                    RefuseCode::Denied => 3,
                    RefuseCode::NoMemory => 4,
                    RefuseCode::WrongKind => 5,
                    RefuseCode::BadRequest => 6,
                    RefuseCode::Quota => 7,
                };
                put(&mut out, AT_TO, &to.to_le_bytes());
            }
            Self::Closed { to } => {
                out[0] = CLOSED;
                put(&mut out, AT_TO, &to.to_le_bytes());
            }
            Self::Resolve { from, name } => {
                out[0] = RESOLVE;
                let name = &name.as_bytes()[..name.len().min(SERVICE_NAME_BYTES_MAX)];
                out[AT_DETAIL] = name.len() as u8;
                put(&mut out, AT_FROM, &from.to_le_bytes());
                put(&mut out, AT_NAME, name);
            }
            Self::Resolved { to, port } => {
                out[0] = RESOLVED;
                out[AT_DETAIL] = u8::from(port.is_some());
                put(&mut out, AT_TO, &to.to_le_bytes());
                put(&mut out, AT_DST_PORT, &port.unwrap_or(0).to_le_bytes());
            }
        }
        out
    }

    /// `None` for a record that makes no sense.
    pub(crate) fn decode(bytes: &[u8; RECORD_LEN]) -> Option<Self> {
        let detail = bytes[AT_DETAIL];
        let (from, to) = (u64_at(bytes, AT_FROM), u64_at(bytes, AT_TO));
        let half = HalfRef {
            offset: u64_at(bytes, AT_OFFSET),
            layout: u32_at(bytes, AT_LAYOUT),
            nonce: u64_at(bytes, AT_NONCE),
        };
        Some(match bytes[0] {
            CONNECT => Self::Connect {
                from,
                kind: match detail {
                    1 => ConnKind::Stream,
                    2 => ConnKind::Messages,
                    _ => return None,
                },
                half,
                src_port: u32_at(bytes, AT_SRC_PORT),
                dst_port: u32_at(bytes, AT_DST_PORT),
            },
            ACCEPT => Self::Accept { from, to, half },
            REFUSE => Self::Refuse {
                to,
                code: match detail {
                    1 => RefuseCode::NoListener,
                    2 => RefuseCode::BacklogFull,
                    3 => RefuseCode::Denied,
                    4 => RefuseCode::NoMemory,
                    5 => RefuseCode::WrongKind,
                    6 => RefuseCode::BadRequest,
                    7 => RefuseCode::Quota,
                    _ => return None,
                },
            },
            CLOSED => Self::Closed { to },
            RESOLVE => {
                let name = bytes[AT_NAME..].get(..usize::from(detail))?;
                Self::Resolve { from, name: std::str::from_utf8(name).ok()?.to_owned() }
            }
            RESOLVED => Self::Resolved {
                to,
                port: match detail {
                    0 => None,
                    1 => Some(u32_at(bytes, AT_DST_PORT)),
                    _ => return None,
                },
            },
            _ => return None,
        })
    }

    /// Whether it asks for an answer (the others are answers, or announcements that must arrive).
    pub(crate) fn is_request(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::Resolve { .. })
    }
}

impl std::fmt::Display for RefuseCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NoListener => "nobody listens there",
            Self::BacklogFull => "its backlog is full",
            Self::Denied => "denied",
            Self::NoMemory => "no room for a connection in its kernel's extent",
            Self::WrongKind => {
                "a byte stream was asked for where messages are served, or the other way round"
            }
            Self::BadRequest => "its broker found the request malformed",
            Self::Quota => {
                "connections from this kernel hold as much of its memory as one kernel may; close some of them"
            }
        })
    }
}

fn put(out: &mut [u8; RECORD_LEN], at: usize, bytes: &[u8]) {
    out[at..at + bytes.len()].copy_from_slice(bytes);
}

fn put_half(out: &mut [u8; RECORD_LEN], half: &HalfRef) {
    put(out, AT_LAYOUT, &half.layout.to_le_bytes());
    put(out, AT_OFFSET, &half.offset.to_le_bytes());
    put(out, AT_NONCE, &half.nonce.to_le_bytes());
}

fn u32_at(bytes: &[u8; RECORD_LEN], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at(bytes: &[u8; RECORD_LEN], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_record_survives_encoding() {
        let half = HalfRef { offset: 1 << 40, layout: 0x1206, nonce: u64::MAX };
        for record in [
            Record::Connect { from: 7, kind: ConnKind::Messages, half, src_port: 1, dst_port: u32::MAX },
            Record::Accept { from: 8, to: 7, half },
            Record::Refuse { to: 7, code: RefuseCode::Denied },
            Record::Refuse { to: 7, code: RefuseCode::Quota },
            Record::Closed { to: 9 },
            Record::Resolve { from: 3, name: "x".repeat(SERVICE_NAME_BYTES_MAX) },
            Record::Resolved { to: 3, port: Some(6379) },
            Record::Resolved { to: 3, port: None },
        ] {
            assert_eq!(Record::decode(&record.encode()), Some(record));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_dropped(mut bytes: [u8; 32], more: [u8; 24], kind in 0u8..8, detail in 0u8..64) {
            bytes[0] = kind;
            bytes[1] = detail;
            let mut record = [0; RECORD_LEN];
            record[..32].copy_from_slice(&bytes);
            record[32..].copy_from_slice(&more);
            let _ = Record::decode(&record);
        }
    }
}
