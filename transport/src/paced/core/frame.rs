//! Frames: what travels on the socket. See `docs/paced-link.md` for the table.

use super::arrived::Place;
use super::limits::Limits;
use crate::incarnation::Incarnation;

pub(crate) const HEADER_BYTES: usize = 48;
/// The longest payload that the field for the length has room for.
const PAYLOAD_BYTES_MAX: usize = u16::MAX as usize - HEADER_BYTES;

/// The one version there is.
pub(crate) const VERSION: u16 = 1;
const MAGIC: [u8; 4] = *b"TBPL";
/// What every HELLO has; ours has the number of its opening and our limits besides.
const HELLO_BYTES_MIN: usize = 28;
const HELLO_LIMITS_AT: usize = HELLO_BYTES_MIN + 8;
const HELLO_BYTES: usize = HELLO_LIMITS_AT + 16;
/// The longest HELLO that is looked for among other bytes, its header included: room for what later versions may add.
pub(crate) const HELLO_FRAME_BYTES_MAX: usize = 256;

/// In an ACK: answer with an ACK at once.
pub(crate) const FLAG_ASK: u8 = 1;

/// What a frame says. All but HELLO and ACK are numbered, kept until acknowledged, and sent again on the next socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// First on every socket, from both sides.
    Hello = 1,
    /// Nothing but the header: acknowledges, and shows that we are alive.
    Ack = 2,
    /// A call: caller's port, port called.
    Open = 3,
    /// The call has a place in the backlog.
    Accept = 4,
    /// It has not: a [`Refusal`].
    Refuse = 5,
    /// Bytes of a stream.
    Data = 6,
    /// How far the peer may send on a stream, counted from its first byte.
    Credit = 7,
    /// No more bytes from me on this stream.
    End = 8,
    /// Nor do I read it any more: how far I have read.
    Close = 9,
    /// The stream is gone, what was under way is thrown away.
    Reset = 10,
}

/// Why a call is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    NobodyListens = 1,
    BacklogFull = 2,
    TooManyStreams = 3,
}

/// Which end of the socket a side is. The dialler's streams have odd numbers, the acceptor's even ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Dialler = 1,
    Acceptor = 2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) flags: u8,
    /// The life of the sender.
    pub(crate) incarnation: Incarnation,
    /// The number of this frame; of an ACK, that of the last numbered frame before it on this socket.
    pub(crate) seq: u64,
    /// The last numbered frame that the sender has, with all before it.
    pub(crate) ack: u64,
    /// 0 for HELLO and ACK.
    pub(crate) stream: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame<'a> {
    pub(crate) header: Header,
    pub(crate) payload: &'a [u8],
    /// Where the payload lies, if that may be kept.
    pub(crate) place: Option<Place<'a>>,
}

/// What HELLO says beyond its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) role: Role,
    /// The life of the receiver that the sender knows and that its `ack` is about; [`Incarnation::NONE`] if none.
    pub(crate) knows: Incarnation,
    /// The number of this opening of the sender's: one more for each time that it begins anew, in one life. 0 where it does not tell.
    pub(crate) opening: u64,
    /// What the sender takes: [`Limits::PACKETS`] where it does not tell.
    pub(crate) limits: Limits,
}

/// Why bytes are no frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NoFrame {
    /// More bytes are needed.
    Incomplete,
    /// The channel has lost or changed something: resume on a new socket.
    Damaged(&'static str),
    /// Whole, and not of this protocol.
    Foreign(String),
}

impl Header {
    /// Appends the frame to `out`.
    ///
    /// # Panics
    /// If `payload` is longer than [`PAYLOAD_BYTES_MAX`].
    pub(crate) fn encode(&self, payload: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        out.resize(start + HEADER_BYTES, 0);
        out.extend_from_slice(payload);
        self.seal(&mut out[start..]);
    }

    /// Writes the header into the first [`HEADER_BYTES`] of `frame`, whose payload is there already.
    ///
    /// # Panics
    /// If `frame` is shorter than a header, or its payload longer than [`PAYLOAD_BYTES_MAX`].
    pub(crate) fn seal(&self, frame: &mut [u8]) {
        assert!(frame.len() <= HEADER_BYTES + PAYLOAD_BYTES_MAX, "a frame of {} bytes", frame.len());
        let len = frame.len() as u16;
        frame[..2].copy_from_slice(&len.to_le_bytes());
        frame[2..4].copy_from_slice(&[self.kind as u8, self.flags]);
        frame[8..24].copy_from_slice(self.incarnation.as_bytes());
        frame[24..32].copy_from_slice(&self.seq.to_le_bytes());
        frame[32..40].copy_from_slice(&self.ack.to_le_bytes());
        frame[40..48].copy_from_slice(&self.stream.to_le_bytes());
        let checksum = checksum(frame);
        frame[4..8].copy_from_slice(&checksum.to_le_bytes());
    }
}

impl<'a> Frame<'a> {
    /// The frame at the start of `bytes`, and its length: `frame_bytes_max` at most.
    pub(crate) fn decode(bytes: &'a [u8], frame_bytes_max: usize) -> Result<(Self, usize), NoFrame> {
        let len = frame_len(bytes, frame_bytes_max)?;
        let Some(frame) = bytes.get(..len) else { return Err(NoFrame::Incomplete) };
        if u32_at(frame, 4) != checksum(frame) {
            return Err(NoFrame::Damaged("a frame arrived with a wrong checksum"));
        }
        let kind = Kind::of(frame[2])?;
        let flags = frame[3];
        if flags != 0 && (kind, flags) != (Kind::Ack, FLAG_ASK) {
            return Err(NoFrame::Foreign(format!("flags {flags:#04x} in a frame of kind {kind:?}")));
        }
        let mut incarnation = [0; 16];
        incarnation.copy_from_slice(&frame[8..24]);
        let header = Header {
            kind,
            flags,
            incarnation: Incarnation(incarnation),
            seq: u64_at(frame, 24),
            ack: u64_at(frame, 32),
            stream: u64_at(frame, 40),
        };
        if (header.stream == 0) != matches!(kind, Kind::Hello | Kind::Ack) {
            return Err(NoFrame::Foreign(format!("a frame of kind {kind:?} about stream {}", header.stream)));
        }
        Ok((Self { header, payload: &frame[HEADER_BYTES..], place: None }, len))
    }

    /// The payload, which must be `N` bytes.
    pub(crate) fn fields<const N: usize>(&self) -> Result<[u8; N], String> {
        self.payload.try_into().map_err(|_| {
            let (kind, len) = (self.header.kind, self.payload.len());
            format!("a frame of kind {kind:?} with {len} bytes of payload in place of {N}")
        })
    }
}

/// How long the frame at the start of `bytes` says it is.
pub(crate) fn frame_len(bytes: &[u8], frame_bytes_max: usize) -> Result<usize, NoFrame> {
    let Some(len) = bytes.first_chunk() else { return Err(NoFrame::Incomplete) };
    let len = usize::from(u16::from_le_bytes(*len));
    if !(HEADER_BYTES..=frame_bytes_max).contains(&len) {
        return Err(NoFrame::Damaged("a frame arrived with an impossible length"));
    }
    Ok(len)
}

impl Kind {
    /// All there are.
    pub(super) const ALL: [Self; 10] = [
        Self::Hello,
        Self::Ack,
        Self::Open,
        Self::Accept,
        Self::Refuse,
        Self::Data,
        Self::Credit,
        Self::End,
        Self::Close,
        Self::Reset,
    ];

    fn of(byte: u8) -> Result<Self, NoFrame> {
        let kind = Self::ALL.into_iter().find(|kind| *kind as u8 == byte);
        kind.ok_or_else(|| NoFrame::Foreign(format!("a frame of unknown kind {byte}")))
    }
}

impl Refusal {
    pub(crate) fn of(byte: u8) -> Result<Self, String> {
        let all = [Self::NobodyListens, Self::BacklogFull, Self::TooManyStreams];
        let found = all.into_iter().find(|refusal| *refusal as u8 == byte);
        found.ok_or_else(|| format!("a refusal of unknown reason {byte}"))
    }
}

impl Hello {
    pub(crate) fn encode(&self) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
        bytes[6..8].copy_from_slice(&VERSION.to_le_bytes());
        bytes[8] = self.role as u8;
        bytes[12..HELLO_BYTES_MIN].copy_from_slice(self.knows.as_bytes());
        bytes[HELLO_BYTES_MIN..HELLO_LIMITS_AT].copy_from_slice(&self.opening.to_le_bytes());
        let Limits { frame_bytes, window_bytes, window_frames, stream_bytes } = self.limits;
        let limits = [frame_bytes, window_bytes, window_frames, stream_bytes];
        for (field, limit) in bytes[HELLO_LIMITS_AT..].chunks_exact_mut(4).zip(limits) {
            field.copy_from_slice(&u32::try_from(limit).unwrap_or(u32::MAX).to_le_bytes());
        }
        bytes
    }

    /// What follows the known fields is of a later version and ignored.
    pub(crate) fn decode(payload: &[u8]) -> Result<Self, String> {
        let bytes: &[u8; HELLO_BYTES_MIN] =
            payload.first_chunk().ok_or_else(|| format!("a HELLO of {} bytes", payload.len()))?;
        if bytes[..4] != MAGIC {
            return Err("a HELLO of something else than a paced link".into());
        }
        let (lowest, highest) = (u16_at(bytes, 4), u16_at(bytes, 6));
        if !(lowest..=highest).contains(&VERSION) {
            return Err(format!("it speaks versions {lowest} to {highest}, we speak {VERSION} only"));
        }
        let role = match bytes[8] {
            1 => Role::Dialler,
            2 => Role::Acceptor,
            other => return Err(format!("a HELLO of unknown role {other}")),
        };
        let mut knows = [0; 16];
        knows.copy_from_slice(&bytes[12..]);
        let opening = payload.get(HELLO_BYTES_MIN..HELLO_LIMITS_AT).map_or(0, |field| u64_at(field, 0));
        let limits = payload.get(HELLO_LIMITS_AT..HELLO_BYTES).map_or(Limits::PACKETS, |fields| {
            let field = |nth: usize| u32_at(fields, 4 * nth) as usize;
            Limits {
                frame_bytes: field(0),
                window_bytes: field(1),
                window_frames: field(2),
                stream_bytes: field(3),
            }
        });
        if !limits.suffice() {
            return Err(format!("it takes less than a link needs: {limits:?}"));
        }
        Ok(Self { role, knows: Incarnation(knows), opening, limits })
    }
}

fn checksum(frame: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&frame[..4]);
    hasher.update(&frame[8..]);
    hasher.finalize()
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(field)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(field)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = Limits::PACKETS.frame_bytes;

    fn header(kind: Kind, stream: u64) -> Header {
        Header { kind, flags: 0, incarnation: Incarnation([9; 16]), seq: 5, ack: 7, stream }
    }

    #[test]
    fn frame_survives_encoding_and_decoding() {
        let mut bytes = Vec::new();
        let header = header(Kind::Data, 3);
        header.encode(b"hello", &mut bytes);
        let (frame, len) = Frame::decode(&bytes, MAX).unwrap();
        assert_eq!((frame.header, frame.payload, len), (header, &b"hello"[..], bytes.len()));
        for short in 0..bytes.len() {
            assert_eq!(Frame::decode(&bytes[..short], MAX).unwrap_err(), NoFrame::Incomplete);
        }
    }

    #[test]
    fn any_changed_bit_is_noticed() {
        let mut bytes = Vec::new();
        header(Kind::Data, 3).encode(b"hello", &mut bytes);
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(Frame::decode(&changed, MAX).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn kinds_flags_and_streams_that_do_not_exist_are_foreign() {
        let mut bytes = Vec::new();
        header(Kind::Data, 0).encode(b"x", &mut bytes);
        assert!(matches!(Frame::decode(&bytes, MAX), Err(NoFrame::Foreign(_))));
        bytes.clear();
        Header { flags: FLAG_ASK, ..header(Kind::Data, 1) }.encode(b"x", &mut bytes);
        assert!(matches!(Frame::decode(&bytes, MAX), Err(NoFrame::Foreign(_))));
        assert!(matches!(Kind::of(11), Err(NoFrame::Foreign(_))));
    }

    #[test]
    fn hello_of_no_common_version_is_refused() {
        let mut bytes = hello().encode();
        assert_eq!(Hello::decode(&bytes), Ok(hello()));
        bytes[4..6].copy_from_slice(&2u16.to_le_bytes());
        bytes[6..8].copy_from_slice(&3u16.to_le_bytes());
        assert!(Hello::decode(&bytes).unwrap_err().contains("versions 2 to 3"));
    }
    fn hello() -> Hello {
        Hello { role: Role::Dialler, knows: Incarnation([1; 16]), opening: 3, limits: Limits::SOUND }
    }

    #[test]
    fn hello_that_tells_no_limits_means_those_of_packets() {
        let bytes = hello().encode();
        let earlier = Hello { opening: 0, limits: Limits::PACKETS, ..hello() };
        assert_eq!(Hello::decode(&bytes[..HELLO_BYTES_MIN]), Ok(earlier));
        assert_eq!(Hello::decode(&bytes[..HELLO_BYTES - 1]), Ok(Hello { opening: 3, ..earlier }));
    }

    #[test]
    fn hello_with_limits_that_no_link_works_with_is_refused() {
        for at in 0..4 {
            let mut bytes = hello().encode();
            bytes[HELLO_LIMITS_AT + 4 * at..][..4].copy_from_slice(&1u32.to_le_bytes());
            assert!(Hello::decode(&bytes).unwrap_err().contains("less than a link needs"));
        }
    }

    #[test]
    fn frame_longer_than_agreed_is_damage() {
        let mut bytes = Vec::new();
        header(Kind::Data, 3).encode(&[1; 5000], &mut bytes);
        assert!(matches!(Frame::decode(&bytes, MAX), Err(NoFrame::Damaged(_))));
        assert!(Frame::decode(&bytes, Limits::SOUND.frame_bytes).is_ok());
    }
}
