//! The static part of the superblock: written once by the primary, checked by everybody who attaches.

use crate::incarnation::Incarnation;
use crate::pool::Geometry;
use crate::pool::layout::{Layout, row, superblock as at};

/// What the static part says. Field by field as in `docs/pool-format.md`, section 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    pub(crate) pool_id: [u8; 16],
    pub(crate) layout: Layout,
}

/// Appends little-endian fields to a fixed buffer.
struct Fields<'a>(&'a mut [u8], usize);

impl Fields<'_> {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0[self.1..self.1 + bytes.len()].copy_from_slice(bytes);
        self.1 += bytes.len();
    }

    fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }
}

impl Superblock {
    pub(crate) fn encode(&self) -> [u8; at::LEN] {
        let layout = &self.layout;
        let mut out = [0; at::LEN];
        let mut fields = Fields(&mut out, 0);
        fields.bytes(&at::MAGIC);
        fields.u32(at::VERSION);
        fields.u32(at::LEN as u32);
        fields.bytes(&self.pool_id);
        fields.u64(layout.pool_len);
        fields.u32(layout.geometry.members_max);
        fields.u32(row::STRIDE as u32);
        fields.u64(layout.rows_offset as u64);
        fields.u64(layout.extents_offset as u64);
        fields.u64(layout.geometry.extent_bytes);
        fields.u32(layout.black_box_offset as u32);
        fields.u32(layout.geometry.black_box_records);
        fields.u32(layout.control_offset as u32);
        fields.u32(layout.control_stride() as u32);
        fields.u32(layout.control_slots);
        fields.u32(layout.heap_offset as u32);
        fields.u32(layout.board_offset as u32);
        let crc = crc32fast::hash(&out[..at::CRC]);
        out[at::CRC..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Checks a private copy of the static part against the length that is mapped. Says what is wrong with it.
    pub(crate) fn decode(bytes: &[u8; at::LEN], mapped_len: u64) -> Result<Self, String> {
        let u32_at = |offset: usize| u32::from_le_bytes(array(bytes, offset));
        if bytes[..8] != at::MAGIC {
            return Err("it does not begin with the mark of a pool; was it formatted?".into());
        }
        let version = u32_at(8);
        if version != at::VERSION {
            return Err(format!(
                "its layout is version {version}, this program knows version {}: both sides must run builds of one layout",
                at::VERSION
            ));
        }
        let (said, computed) = (u32_at(at::CRC), crc32fast::hash(&bytes[..at::CRC]));
        if said != computed {
            return Err(format!(
                "its superblock is corrupted: checksum {said:08x} is written, {computed:08x} computed"
            ));
        }
        let geometry = Geometry {
            members_max: u32_at(40),
            extent_bytes: u64::from_le_bytes(array(bytes, 64)),
            black_box_records: u32_at(76),
        };
        let layout = Layout::of(geometry).map_err(|e| e.to_string())?;
        let read = Self { pool_id: array(bytes, 16), layout };
        // Every other field follows from the geometry: one comparison checks them all.
        if read.encode() != *bytes {
            return Err("its superblock gives offsets that do not follow from its geometry".into());
        }
        if layout.pool_len > mapped_len {
            return Err(format!(
                "it is truncated: {} bytes by its superblock, {mapped_len} bytes there",
                layout.pool_len
            ));
        }
        Ok(read)
    }
}

fn array<const N: usize>(bytes: &[u8; at::LEN], offset: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[offset..offset + N]);
    out
}

/// A member's row, as the primary writes it; everything the row's checksum covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RowContent {
    pub(crate) in_use: bool,
    pub(crate) cid: u32,
    pub(crate) incarnation: Incarnation,
    pub(crate) name: String,
}

impl RowContent {
    pub(crate) const EMPTY: Self =
        Self { in_use: false, cid: 0, incarnation: Incarnation::NONE, name: String::new() };

    /// The bytes from `CID_AND_STATE` up to the checksum's end; the fenced generation in the midst is left 0.
    pub(crate) fn encode(&self) -> [u8; row::STRIDE] {
        let mut out = [0; row::STRIDE];
        let state = (u64::from(self.in_use) * row::IN_USE) << 32 | u64::from(self.cid);
        out[row::CID_AND_STATE..][..8].copy_from_slice(&state.to_le_bytes());
        out[row::INCARNATION..][..16].copy_from_slice(self.incarnation.as_bytes());
        let name = &self.name.as_bytes()[..self.name.len().min(row::NAME_BYTES_MAX)];
        out[row::NAME_LEN..][..8].copy_from_slice(&(name.len() as u64).to_le_bytes());
        out[row::NAME..][..name.len()].copy_from_slice(name);
        let crc = Self::crc(&out);
        out[row::CRC..][..8].copy_from_slice(&u64::from(crc).to_le_bytes());
        out
    }

    /// `None` if a private copy of a row makes no sense.
    pub(crate) fn decode(bytes: &[u8; row::STRIDE]) -> Option<Self> {
        let word = |offset: usize| bytes[offset..].first_chunk::<8>().map(|b| u64::from_le_bytes(*b));
        let (state, name_len, crc) = (word(row::CID_AND_STATE)?, word(row::NAME_LEN)?, word(row::CRC)?);
        if crc != u64::from(Self::crc(bytes)) || name_len > row::NAME_BYTES_MAX as u64 {
            return None;
        }
        let name = std::str::from_utf8(&bytes[row::NAME..][..name_len as usize]).ok()?;
        let incarnation = Incarnation(*bytes[row::INCARNATION..].first_chunk()?);
        Some(Self {
            in_use: state >> 32 == row::IN_USE,
            cid: state as u32,
            incarnation,
            name: name.to_owned(),
        })
    }

    fn crc(bytes: &[u8; row::STRIDE]) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&bytes[row::CID_AND_STATE..row::FENCED_GENERATION]);
        hasher.update(&bytes[row::NAME_LEN..row::CRC]);
        hasher.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Superblock {
        Superblock { pool_id: [9; 16], layout: Layout::of(Geometry::default()).unwrap() }
    }

    #[test]
    fn superblock_survives_encoding() {
        let sample = sample();
        assert_eq!(Superblock::decode(&sample.encode(), sample.layout.pool_len), Ok(sample));
    }

    #[test]
    fn every_corrupted_byte_is_noticed() {
        let good = sample().encode();
        for index in 0..good.len() {
            for flip in [1, 0x80, 0xff] {
                let mut bad = good;
                bad[index] ^= flip;
                assert!(
                    Superblock::decode(&bad, u64::MAX).is_err(),
                    "byte {index} ^ {flip:#x} went unnoticed"
                );
            }
        }
    }

    #[test]
    fn wrong_offsets_under_a_right_checksum_are_refused() {
        for index in 12..at::CRC {
            let mut bad = sample().encode();
            if (16..32).contains(&index) {
                continue; // the pool id may be anything
            }
            bad[index] ^= 0x41;
            let crc = crc32fast::hash(&bad[..at::CRC]);
            bad[at::CRC..].copy_from_slice(&crc.to_le_bytes());
            if let Ok(read) = Superblock::decode(&bad, u64::MAX) {
                assert_eq!(read.encode(), bad, "byte {index}");
            }
        }
    }

    #[test]
    fn truncated_and_foreign_versions_are_named_as_such() {
        let sample = sample();
        let error = Superblock::decode(&sample.encode(), sample.layout.pool_len - 1).unwrap_err();
        assert!(error.contains("truncated"), "{error}");
        for version in [1, 2, 3, 5] {
            let mut other = sample.encode();
            other[8] = version;
            let error = Superblock::decode(&other, u64::MAX).unwrap_err();
            assert!(
                error.contains(&format!("is version {version}, this program knows version 4")),
                "{error}"
            );
        }
        assert!(Superblock::decode(&[0; at::LEN], u64::MAX).is_err());
    }

    #[test]
    fn row_survives_encoding_and_corruption_is_noticed() {
        let row = RowContent {
            in_use: true,
            cid: 3,
            incarnation: Incarnation([5; 16]),
            name: "a name of thirty-two bytes......".into(),
        };
        let good = row.encode();
        assert_eq!(RowContent::decode(&good), Some(row));
        for index in (row::CID_AND_STATE..row::FENCED_GENERATION).chain(row::NAME_LEN..row::CRC + 8) {
            let mut bad = good;
            bad[index] ^= 0x10;
            assert_eq!(RowContent::decode(&bad), None, "byte {index}");
        }
    }
}
