//! Where everything is in a pool. `docs/pool-format.md` says the same in words; change both together.

use crate::bells::BOARD_BYTES;
use crate::error::{Error, Result};
use crate::mem::PAGE;
use crate::pool::{Geometry, Member};

/// The static part of the superblock, in page 0.
pub(crate) mod superblock {
    /// `TOMBOLO\0`.
    pub(crate) const MAGIC: [u8; 8] = *b"TOMBOLO\0";
    /// The layout this crate reads and writes. Another is refused.
    pub(crate) const VERSION: u32 = 4;
    /// Bytes of the static part, CRC included.
    pub(crate) const LEN: usize = 128;
    /// The CRC-32 (IEEE) of the bytes before it.
    pub(crate) const CRC: usize = 124;
}

/// One row of the member table.
pub(crate) mod row {
    pub(crate) const STRIDE: usize = 128;
    /// Odd while the primary writes the row.
    pub(crate) const SEQUENCE: usize = 0;
    /// Low half: the CID. High half: 1 if the row is in use.
    pub(crate) const CID_AND_STATE: usize = 8;
    pub(crate) const INCARNATION: usize = 16;
    /// Outside sequence and CRC: one word that only grows.
    pub(crate) const FENCED_GENERATION: usize = 32;
    pub(crate) const NAME_LEN: usize = 40;
    pub(crate) const NAME: usize = 48;
    pub(crate) const NAME_BYTES_MAX: usize = 32;
    /// CRC-32 of CID_AND_STATE, INCARNATION, NAME_LEN and NAME, in this order.
    pub(crate) const CRC: usize = 80;
    pub(crate) const IN_USE: u64 = 1;
}

/// The status page, first in each extent.
pub(crate) mod status {
    pub(crate) const LEN: usize = 4096;
    /// 0: no broker is running.
    pub(crate) const GENERATION: usize = 0;
    /// The last one that was not 0, so that the next can be greater.
    pub(crate) const LAST_GENERATION: usize = 32;
    pub(crate) const PHASE: usize = 8;
    pub(crate) const INCARNATION: usize = 16;
    /// On a line of its own, so that beats do not disturb those who watch the generation.
    pub(crate) const BEAT_COUNT: usize = 128;
    pub(crate) const BEAT_MONOTONIC_NS: usize = 136;
}

/// One record of the black box.
pub(crate) mod black_box {
    pub(crate) const STRIDE: usize = 256;
    /// `2 * sequence`, or `2 * sequence + 1` while it is being written; 0: never written.
    pub(crate) const STAMP: usize = 0;
    pub(crate) const UNIX_NS: usize = 8;
    /// Low half: the level. High half: the length of the text.
    pub(crate) const LEVEL_AND_LEN: usize = 16;
    pub(crate) const TEXT: usize = 32;
    pub(crate) const TEXT_BYTES_MAX: usize = STRIDE - TEXT;
}

/// One control block: what a member has to say to one peer.
pub(crate) mod control {
    /// The peer's generation this block is valid for; 0: for none.
    pub(crate) const FOR_GENERATION: usize = 0;
    /// The generation of the writer.
    pub(crate) const OWN_GENERATION: usize = 8;
    /// How many of the *peer's* records we have taken. On a line of its own.
    pub(crate) const CONSUMED: usize = 64;
    pub(crate) const SLOTS_OFFSET: usize = 128;
    pub(crate) const SLOT_STRIDE: usize = 64;
    /// Slots of a ring, in small pools and in large ones.
    const SLOTS: (u32, u32) = (8, 64);
    /// Slots of all rings of one member together, where that leaves each of them within [`SLOTS`].
    const SLOTS_OF_MEMBER: u32 = 4096;
    /// Within a slot: the number of the record, from 1.
    pub(crate) const STAMP: usize = 0;
    pub(crate) const RECORD: usize = 8;

    /// Slots of each ring in a pool of that many members, a power of two: with many members each has little to say to any one of them, and
    /// what a member writes for all others must not grow with the square of their number.
    pub(crate) fn slots(members: u32) -> u32 {
        (SLOTS_OF_MEMBER / members.next_power_of_two()).clamp(SLOTS.0, SLOTS.1)
    }

    /// From one block to the next, in bytes.
    pub(crate) fn stride(slots: u32) -> usize {
        SLOTS_OFFSET + slots as usize * SLOT_STRIDE
    }
}

/// How far above the fenced generation a member's own may be. Whoever says more is not believed, so that no member can
/// use up the 64 bits.
pub(crate) const GENERATION_LEAD_MAX: u64 = 1 << 32;

/// The least heap with which an extent makes sense.
const HEAP_BYTES_MIN: u64 = 64 * 1024;

/// All offsets of a pool of a given geometry, in bytes. Checked: every sum below fits, every part is inside the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) geometry: Geometry,
    pub(crate) pool_len: u64,
    pub(crate) rows_offset: usize,
    pub(crate) extents_offset: usize,
    /// Within an extent.
    pub(crate) black_box_offset: usize,
    pub(crate) control_offset: usize,
    pub(crate) board_offset: usize,
    pub(crate) heap_offset: usize,
    pub(crate) control_slots: u32,
}

impl Layout {
    pub(crate) fn of(geometry: Geometry) -> Result<Self> {
        let Geometry { members_max, extent_bytes, black_box_records } = geometry;
        if !(2..=Geometry::MEMBERS_MAX).contains(&members_max) {
            return Err(Error::Invalid(format!(
                "a pool of {members_max} members: 2 to {} are possible",
                Geometry::MEMBERS_MAX
            )));
        }
        if !(1..=Geometry::BLACK_BOX_RECORDS_MAX).contains(&black_box_records) {
            return Err(Error::Invalid(format!(
                "black boxes of {black_box_records} records: 1 to {} are possible",
                Geometry::BLACK_BOX_RECORDS_MAX
            )));
        }
        let members = members_max as usize;
        let rows_offset = PAGE;
        let extents_offset = rows_offset + (members * row::STRIDE).next_multiple_of(PAGE);
        let black_box_offset = status::LEN;
        let control_slots = control::slots(members_max);
        let control_offset =
            black_box_offset + (black_box_records as usize * black_box::STRIDE).next_multiple_of(PAGE);
        let board_offset = control_offset + (members * control::stride(control_slots)).next_multiple_of(PAGE);
        let heap_offset = board_offset + BOARD_BYTES;
        let extent_min = heap_offset as u64 + HEAP_BYTES_MIN;
        if extent_bytes < extent_min
            || extent_bytes > Geometry::EXTENT_BYTES_MAX
            || !extent_bytes.is_multiple_of(PAGE as u64)
        {
            return Err(Error::Invalid(format!(
                "extents of {extent_bytes} bytes: a multiple of {PAGE} from {extent_min} to {} is possible",
                Geometry::EXTENT_BYTES_MAX
            )));
        }
        let pool_len = extents_offset as u64 + u64::from(members_max) * extent_bytes;
        Ok(Self {
            geometry,
            pool_len,
            rows_offset,
            extents_offset,
            black_box_offset,
            control_offset,
            board_offset,
            heap_offset,
            control_slots,
        })
    }

    pub(crate) fn members(&self) -> impl Iterator<Item = Member> + use<> {
        (0..self.geometry.members_max as u16).map(Member)
    }

    pub(crate) fn has(&self, member: Member) -> bool {
        u32::from(member.0) < self.geometry.members_max
    }

    pub(crate) fn extent_len(&self) -> usize {
        self.geometry.extent_bytes as usize
    }

    /// Of a member there is (see [`Layout::has`]).
    pub(crate) fn extent(&self, member: Member) -> usize {
        debug_assert!(self.has(member));
        self.extents_offset + member.index() * self.extent_len()
    }

    pub(crate) fn row(&self, member: Member) -> usize {
        debug_assert!(self.has(member));
        self.rows_offset + member.index() * row::STRIDE
    }

    pub(crate) fn black_box(&self, member: Member) -> usize {
        self.extent(member) + self.black_box_offset
    }

    /// The block in the extent of `writer` for `reader`.
    pub(crate) fn control_block(&self, writer: Member, reader: Member) -> usize {
        debug_assert!(self.has(reader));
        self.extent(writer) + self.control_offset + reader.index() * self.control_stride()
    }

    pub(crate) fn control_stride(&self) -> usize {
        control::stride(self.control_slots)
    }

    /// Where bells of a member are counted.
    pub(crate) fn board(&self, member: Member) -> usize {
        self.extent(member) + self.board_offset
    }

    pub(crate) fn heap_len(&self) -> usize {
        self.extent_len() - self.heap_offset
    }

    /// Whether `offset..offset + len` of the pool is inside the heap of `member`.
    pub(crate) fn heap_contains(&self, member: Member, offset: u64, len: u64) -> bool {
        let extent = self.extent(member) as u64;
        let start = extent + self.heap_offset as u64;
        let end = extent + self.geometry.extent_bytes;
        offset >= start && offset.checked_add(len).is_some_and(|e| e <= end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_and_largest_geometries_are_possible() {
        Layout::of(Geometry::default()).unwrap();
        let layout = Layout::of(Geometry { members_max: 1024, ..Geometry::default() }).unwrap();
        assert_eq!(layout.extent(Member(1023)) as u64 + layout.geometry.extent_bytes, layout.pool_len);
    }

    #[test]
    fn what_a_member_writes_for_all_others_does_not_grow_with_their_square() {
        let slots = |members| {
            Layout::of(Geometry { members_max: members, ..Geometry::default() }).unwrap().control_slots
        };
        assert_eq!([2, 16, 64, 65, 200, 256, 257, 512, 1024].map(slots), [64, 64, 64, 32, 16, 16, 8, 8, 8]);
        for members in 2..=Geometry::MEMBERS_MAX {
            let layout = Layout::of(Geometry { members_max: members, ..Geometry::default() }).unwrap();
            let bytes = layout.board_offset - layout.control_offset;
            assert!(bytes <= 640 * 1024 + PAGE, "{bytes} bytes of control blocks with {members} members");
        }
    }

    /// What `docs/pool-format.md` says in numbers.
    #[test]
    fn the_default_geometry_lies_where_the_document_says() {
        let layout = Layout::of(Geometry::default()).unwrap();
        assert_eq!((layout.rows_offset, layout.extents_offset), (4096, 8192));
        assert_eq!(
            (layout.black_box_offset, layout.control_offset, layout.board_offset, layout.heap_offset),
            (4096, 266_240, 335_872, 339_968)
        );
        assert_eq!((layout.control_stride(), row::STRIDE, black_box::TEXT_BYTES_MAX), (4224, 128, 224));
    }

    #[test]
    fn impossible_geometries_are_refused() {
        let good = Geometry::default();
        for bad in [
            Geometry { members_max: 1, ..good },
            Geometry { members_max: 1025, ..good },
            Geometry { members_max: u32::MAX, ..good },
            Geometry { black_box_records: 0, ..good },
            Geometry { black_box_records: u32::MAX, ..good },
            Geometry { extent_bytes: 4096, ..good },
            Geometry { extent_bytes: good.extent_bytes + 1, ..good },
            Geometry { extent_bytes: !4095, ..good },
        ] {
            assert!(Layout::of(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn parts_of_an_extent_follow_each_other() {
        let layout = Layout::of(Geometry::default()).unwrap();
        assert!(layout.black_box_offset < layout.control_offset);
        assert!(layout.control_offset < layout.board_offset && layout.board_offset < layout.heap_offset);
        assert_eq!(layout.board_offset % PAGE, 0);
        assert_eq!(layout.heap_offset % PAGE, 0);
        let heap = (layout.extent(Member(3)) + layout.heap_offset) as u64;
        assert!(layout.heap_contains(Member(3), heap, layout.heap_len() as u64));
        assert!(!layout.heap_contains(Member(3), heap, layout.heap_len() as u64 + 1));
        assert!(!layout.heap_contains(Member(3), heap - 1, 1));
        assert!(!layout.heap_contains(Member(3), u64::MAX, 2));
    }
}
