//! HELLO and PROOF: who is there, what it speaks, what it takes, and that it knows the per-boot secret.
//!
//! Each side sends HELLO at once. Where a secret is used, each then sends PROOF, the keyed BLAKE3 hash, under the
//! secret, of a label that names the prover's side and of both HELLOs whole (connector's first). Both HELLOs carry a
//! fresh nonce, the incarnation and the side, so a proof is good for one link, one direction and one pair of boots: it can
//! be neither replayed nor reflected.

use tombolo_transport::{Cid, Incarnation};

/// "TMBL" first in the body of every HELLO, of every version.
const MAGIC: [u8; 4] = *b"TMBL";
/// The versions of the protocol that this side speaks.
pub(crate) const VERSIONS: std::ops::RangeInclusive<u16> = 1..=1;
/// Optional features (low 32 bits) that this side has: none yet.
pub(crate) const FEATURES: u64 = 0;
/// Features (high 32 bits) that a side sets if it cannot do without.
const REQUIRED_MASK: u64 = 0xffff_ffff_0000_0000;

/// Smallest frame, in bytes, that every side must take.
pub(crate) const FRAME_BYTES_MIN: u32 = 512;
/// Smallest window of a stream, in bytes: two frames of the usual size.
pub(crate) const WINDOW_BYTES_MIN: u32 = 32 * 1024;

/// Which end of the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Side {
    /// The end that connected. Its calls have odd ids.
    Connector = 1,
    /// The end that accepted. Its calls have even ids.
    Acceptor = 2,
}

impl Side {
    /// The other end.
    pub fn other(self) -> Self {
        match self {
            Self::Connector => Self::Acceptor,
            Self::Acceptor => Self::Connector,
        }
    }

    fn label(self) -> &'static [u8] {
        match self {
            Self::Connector => b"tombolo-rpc 1 proof of the connector",
            Self::Acceptor => b"tombolo-rpc 1 proof of the acceptor",
        }
    }
}

/// What one side takes, and it enforces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Longest frame, in bytes, header included.
    pub(crate) frame_bytes: u32,
    /// Longest request, answer or item, in bytes.
    pub(crate) message_bytes: u32,
    /// Longest metadata, in bytes.
    pub(crate) metadata_bytes: u16,
    /// Most calls from the other side under way at once.
    pub(crate) calls: u32,
    /// Credit a stream towards this side starts with, in bytes of frames.
    pub(crate) window_bytes: u32,
}

/// One side's HELLO.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) versions: (u16, u16),
    pub(crate) side: Side,
    pub(crate) proves: bool,
    pub(crate) features: u64,
    pub(crate) cid: Cid,
    pub(crate) incarnation: Incarnation,
    pub(crate) nonce: [u8; 32],
    pub(crate) limits: Limits,
    pub(crate) role: String,
    pub(crate) build: String,
}

impl Hello {
    /// The body of the HELLO frame.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&self.versions.0.to_le_bytes());
        out.extend_from_slice(&self.versions.1.to_le_bytes());
        out.push(self.side as u8);
        out.push(u8::from(self.proves));
        out.extend_from_slice(&self.limits.metadata_bytes.to_le_bytes());
        out.extend_from_slice(&self.cid.0.to_le_bytes());
        out.extend_from_slice(&self.features.to_le_bytes());
        out.extend_from_slice(&self.incarnation.0);
        out.extend_from_slice(&self.nonce);
        out.extend_from_slice(&self.limits.frame_bytes.to_le_bytes());
        out.extend_from_slice(&self.limits.message_bytes.to_le_bytes());
        out.extend_from_slice(&self.limits.calls.to_le_bytes());
        out.extend_from_slice(&self.limits.window_bytes.to_le_bytes());
        for text in [&self.role, &self.build] {
            let text = &text[..text.floor_char_boundary(MAX_TEXT)];
            out.push(text.len() as u8);
            out.extend_from_slice(text.as_bytes());
        }
        out
    }

    /// Reads the body of a HELLO. `Err((incompatible, why))`: `incompatible` if the peer merely speaks other versions.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, HelloError> {
        let mut at = Reader(body);
        if at.array::<4>()? != MAGIC {
            return Err(HelloError::Malformed(
                "it does not start with TMBL: not a tombolo-rpc peer".to_owned(),
            ));
        }
        // Magic and versions come first and stay where they are in every version.
        let versions = (at.u16()?, at.u16()?);
        if versions.1 < *VERSIONS.start() || versions.0 > *VERSIONS.end() {
            return Err(HelloError::Incompatible(format!(
                "the peer speaks versions {} to {}, we speak {} to {}",
                versions.0,
                versions.1,
                VERSIONS.start(),
                VERSIONS.end()
            )));
        }
        let side = match at.array::<1>()? {
            [1] => Side::Connector,
            [2] => Side::Acceptor,
            [other] => return Err(HelloError::Malformed(format!("unknown side {other}"))),
        };
        let proves = match at.array::<1>()? {
            [0] => false,
            [1] => true,
            [other] => return Err(HelloError::Malformed(format!("unknown kind of proof {other}"))),
        };
        let metadata_bytes = at.u16()?;
        let cid = Cid(at.u32()?);
        let features = u64::from_le_bytes(at.array()?);
        let unknown = features & REQUIRED_MASK & !FEATURES;
        if unknown != 0 {
            return Err(HelloError::Incompatible(format!("the peer requires unknown features {unknown:#x}")));
        }
        let incarnation = Incarnation(at.array()?);
        let nonce = at.array()?;
        let limits = Limits {
            metadata_bytes,
            frame_bytes: at.u32()?,
            message_bytes: at.u32()?,
            calls: at.u32()?,
            window_bytes: at.u32()?,
        };
        if limits.frame_bytes < FRAME_BYTES_MIN || limits.window_bytes < WINDOW_BYTES_MIN {
            return Err(HelloError::Malformed(format!(
                "frames of {} bytes and windows of {} bytes are below the least of {FRAME_BYTES_MIN} and {WINDOW_BYTES_MIN}",
                limits.frame_bytes, limits.window_bytes
            )));
        }
        let (role, build) = (at.text()?, at.text()?);
        // What follows belongs to later minor additions and is ignored here, but is covered by the proof.
        Ok(Self { versions, side, proves, features, cid, incarnation, nonce, limits, role, build })
    }
}

/// Longest role and build, in bytes of UTF-8.
const MAX_TEXT: usize = 200;

/// What is wrong with a HELLO.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HelloError {
    Malformed(String),
    Incompatible(String),
}

/// The proof by `prover` that it knows `secret`, on the link of these two HELLO bodies.
pub(crate) fn proof(secret: &[u8; 32], prover: Side, connector: &[u8], acceptor: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_keyed(secret);
    for part in [prover.label(), connector, acceptor] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize()
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], HelloError> {
        let (head, rest) = self.0.split_first_chunk().ok_or_else(Self::short)?;
        self.0 = rest;
        Ok(*head)
    }

    fn u16(&mut self) -> Result<u16, HelloError> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, HelloError> {
        self.array().map(u32::from_le_bytes)
    }

    fn text(&mut self) -> Result<String, HelloError> {
        let [len] = self.array::<1>()?;
        let (text, rest) = self.0.split_at_checked(usize::from(len)).ok_or_else(Self::short)?;
        self.0 = rest;
        // Control characters would let a peer write into our logs and terminals.
        Ok(String::from_utf8_lossy(text).chars().filter(|c| !c.is_control()).collect())
    }

    fn short() -> HelloError {
        HelloError::Malformed("it is cut short".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::wire::frame::HEADER_BYTES;

    fn hello() -> Hello {
        Hello {
            versions: (1, 1),
            side: Side::Connector,
            proves: true,
            features: 0,
            cid: Cid(3),
            incarnation: Incarnation([9; 16]),
            nonce: [1; 32],
            limits: Limits {
                frame_bytes: 16384,
                message_bytes: 1 << 20,
                metadata_bytes: 4096,
                calls: 7,
                window_bytes: 65536,
            },
            role: "agent".into(),
            build: "0.1.0".into(),
        }
    }

    #[test]
    fn hello_survives_the_wire_and_fits_the_least_frame() {
        let bytes = hello().encode();
        assert_eq!(Hello::parse(&bytes), Ok(hello()));
        let longest = Hello { role: "r".repeat(999), build: "ü".repeat(999), ..hello() }.encode();
        assert!(HEADER_BYTES + longest.len() <= FRAME_BYTES_MIN as usize);
    }

    #[test]
    fn cut_hello_is_refused_at_every_length() {
        let bytes = hello().encode();
        for len in 0..bytes.len() {
            assert!(Hello::parse(&bytes[..len]).is_err());
        }
    }

    #[test]
    fn later_additions_are_ignored() {
        let mut bytes = hello().encode();
        bytes.extend_from_slice(b"more");
        assert_eq!(Hello::parse(&bytes), Ok(hello()));
    }

    #[test]
    fn proof_names_its_side_and_both_hellos() {
        let a = proof(&[1; 32], Side::Connector, b"c", b"a");
        assert_ne!(a, proof(&[1; 32], Side::Acceptor, b"c", b"a"));
        assert_ne!(a, proof(&[2; 32], Side::Connector, b"c", b"a"));
        assert_ne!(a, proof(&[1; 32], Side::Connector, b"a", b"c"));
        assert_ne!(a, proof(&[1; 32], Side::Connector, b"", b"ca"));
    }
}
