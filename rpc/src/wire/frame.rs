//! Frames: eight bytes of header, then a body that depends on the kind.
//!
//! ```text
//! 0        1        2            4                      8
//! | kind   | flags  | aux: u16   | call: u32            | body ..
//! ```
//! All numbers are little endian. One frame is one message of the transport.

/// Bytes of the header of every frame.
pub(crate) const HEADER_BYTES: usize = 8;
/// Bytes of an OPEN before its metadata: header, method, fingerprint, deadline.
pub(crate) const OPEN_BYTES: usize = HEADER_BYTES + 8 + 8 + 4;

/// More fragments of this message follow.
pub(crate) const MORE: u8 = 1;
/// OPEN: the deadline is in milliseconds, not microseconds.
pub(crate) const MILLIS: u8 = 2;
/// RESPONSE: the payload is the application's error.
pub(crate) const APP_ERROR: u8 = 2;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Hello = 1,
    Proof = 2,
    Open = 3,
    Data = 4,
    End = 5,
    Stop = 6,
    Response = 7,
    Error = 8,
    Cancel = 9,
    Credit = 10,
    Ping = 11,
    Pong = 12,
    GoAway = 13,
    Close = 14,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Hello,
            2 => Self::Proof,
            3 => Self::Open,
            4 => Self::Data,
            5 => Self::End,
            6 => Self::Stop,
            7 => Self::Response,
            8 => Self::Error,
            9 => Self::Cancel,
            10 => Self::Credit,
            11 => Self::Ping,
            12 => Self::Pong,
            13 => Self::GoAway,
            14 => Self::Close,
            _ => return None,
        })
    }

    /// The flags that may be set on this kind.
    fn flags(self) -> u8 {
        match self {
            Self::Open => MORE | MILLIS,
            Self::Data => MORE,
            Self::Response => MORE | APP_ERROR,
            _ => 0,
        }
    }
}

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) flags: u8,
    pub(crate) aux: u16,
    pub(crate) call: u32,
}

impl Header {
    pub(crate) fn new(kind: Kind, call: u32) -> Self {
        Self { kind, flags: 0, aux: 0, call }
    }

    pub(crate) fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let aux = self.aux.to_le_bytes();
        let call = self.call.to_le_bytes();
        [self.kind as u8, self.flags, aux[0], aux[1], call[0], call[1], call[2], call[3]]
    }

    /// Splits a frame into its header and its body.
    pub(crate) fn parse(frame: &[u8]) -> Result<(Self, &[u8]), String> {
        let Some((head, body)) = frame.split_first_chunk::<HEADER_BYTES>() else {
            return Err(format!("a frame of {} bytes is shorter than its header", frame.len()));
        };
        let Some(kind) = Kind::from_byte(head[0]) else {
            return Err(format!("unknown kind of frame {}", head[0]));
        };
        let flags = head[1];
        if flags & !kind.flags() != 0 {
            return Err(format!("{kind:?} with unknown flags {flags:#04x}"));
        }
        let header = Self {
            kind,
            flags,
            aux: u16::from_le_bytes([head[2], head[3]]),
            call: u32::from_le_bytes([head[4], head[5], head[6], head[7]]),
        };
        Ok((header, body))
    }

    pub(crate) fn more(&self) -> bool {
        self.flags & MORE != 0
    }
}

/// The fixed part of an OPEN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Open {
    pub(crate) method: u64,
    pub(crate) fingerprint: u64,
    /// Time left, in nanoseconds. `None` for no deadline.
    pub(crate) remaining_ns: Option<u64>,
}

/// On the wire: no deadline.
const NO_DEADLINE: u32 = u32::MAX;

impl Open {
    /// Appends the OPEN up to its metadata. `more`: the payload goes on in DATA frames.
    pub(crate) fn put(&self, out: &mut Vec<u8>, call: u32, metadata_len: u16, more: bool) {
        let (deadline, unit) = encode_deadline(self.remaining_ns);
        let flags = unit | if more { MORE } else { 0 };
        let mut bytes = [0; OPEN_BYTES];
        bytes[..8].copy_from_slice(&Header { kind: Kind::Open, flags, aux: metadata_len, call }.to_bytes());
        bytes[8..16].copy_from_slice(&self.method.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.fingerprint.to_le_bytes());
        bytes[24..].copy_from_slice(&deadline.to_le_bytes());
        out.extend_from_slice(&bytes);
    }

    /// Splits the body of an OPEN into its fixed part, metadata and payload.
    pub(crate) fn parse<'a>(header: &Header, body: &'a [u8]) -> Result<(Self, &'a [u8], &'a [u8]), String> {
        let short = || format!("OPEN of {} bytes is too short", HEADER_BYTES + body.len());
        let (method, rest) = body.split_first_chunk().ok_or_else(short)?;
        let (fingerprint, rest) = rest.split_first_chunk().ok_or_else(short)?;
        let (deadline, rest) = rest.split_first_chunk().ok_or_else(short)?;
        let (metadata, payload) = rest.split_at_checked(usize::from(header.aux)).ok_or_else(short)?;
        let open = Self {
            method: u64::from_le_bytes(*method),
            fingerprint: u64::from_le_bytes(*fingerprint),
            remaining_ns: decode_deadline(u32::from_le_bytes(*deadline), header.flags & MILLIS != 0),
        };
        Ok((open, metadata, payload))
    }
}

/// Microseconds while they fit (71 minutes), then milliseconds (49 days), then none. Rounded up, so that what is left
/// of a deadline is never 0 by rounding.
fn encode_deadline(remaining_ns: Option<u64>) -> (u32, u8) {
    let Some(ns) = remaining_ns else { return (NO_DEADLINE, 0) };
    let us = ns.div_ceil(1_000);
    if us < u64::from(NO_DEADLINE) {
        return (us as u32, 0);
    }
    let ms = ns.div_ceil(1_000_000);
    if ms < u64::from(NO_DEADLINE) { (ms as u32, MILLIS) } else { (NO_DEADLINE, 0) }
}

fn decode_deadline(deadline: u32, millis: bool) -> Option<u64> {
    match deadline {
        NO_DEADLINE => None,
        ms if millis => Some(u64::from(ms) * 1_000_000),
        us => Some(u64::from(us) * 1_000),
    }
}

/// A body that is exactly one number.
pub(crate) fn number<const N: usize>(kind: Kind, body: &[u8]) -> Result<[u8; N], String> {
    body.try_into().map_err(|_| format!("{kind:?} with a body of {} bytes, not {N}", body.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_survives_the_wire() {
        for remaining_ns in [None, Some(0), Some(1_000), Some(10_000_000_000), Some(7_200_000_000_000)] {
            let open = Open { method: 1, fingerprint: u64::MAX, remaining_ns };
            let mut bytes = Vec::new();
            open.put(&mut bytes, 7, 2, true);
            bytes.extend_from_slice(b"mmpayload");
            let (header, body) = Header::parse(&bytes).unwrap();
            assert_eq!(Open::parse(&header, body).unwrap(), (open, &b"mm"[..], &b"payload"[..]));
            assert!(header.more());
        }
    }

    #[test]
    fn deadline_of_months_becomes_none() {
        assert_eq!(encode_deadline(Some(u64::MAX)), (NO_DEADLINE, 0));
    }

    #[test]
    fn small_call_and_reply_fit_one_cache_line_slot() {
        const { assert!(OPEN_BYTES + 28 <= 56 && HEADER_BYTES + 48 <= 56) }
    }

    #[test]
    fn unknown_kinds_and_flags_are_refused() {
        assert!(Header::parse(&[0; 8]).is_err());
        assert!(Header::parse(&[99, 0, 0, 0, 0, 0, 0, 0]).is_err());
        assert!(Header::parse(&[Kind::Ping as u8, 1, 0, 0, 0, 0, 0, 0]).is_err());
        assert!(Header::parse(&[Kind::Ping as u8]).is_err());
    }
}
