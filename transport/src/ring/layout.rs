//! Where everything lies in a half.
//!
//! A half is the part of a connection's memory that one side alone writes. All words are 64 bits, 8-byte aligned, in
//! **little-endian** order (both kernels run on one machine; big-endian machines are not supported). "Reader" is the other side. Offsets in bytes
//! from the start of the half, which is [aligned](HalfLayout::align) in its extent. What is not listed is reserved: zero.
//!
//! | offset | word | written | a reader must check |
//! |---|---|---|---|
//! | 0x000 | magic [`MAGIC`] | last of the first line, once, before the half is announced | equal |
//! | 0x008 | nonce: chosen for this connection | once | equal to what the broker said |
//! | 0x010 | layout word, see [`HalfLayout::to_word`] | once | equal to what the broker said, which must be valid |
//! | 0x018 | state bits, see [`State`](super::State) | bits are only ever set, with Release | unknown bits are ignored |
//! | 0x020 | data ticket: odd while this side sleeps until data come | on parking | any value |
//! | 0x028 | space ticket: odd while this side sleeps until there is room | on parking | any value |
//! | 0x030 | space wanted: bytes of room needed before waking is worth it | before the space ticket | clamped to the ring's size |
//! | 0x038 | bell count | +1 each time this side decides to ring the other | any value; only a change means something |
//! | 0x080 | slots consumed: messages taken out of the *other* half's slots | lazily, Release | >= the last seen, <= messages sent |
//! | 0x088 | bytes consumed: taken out of the *other* half's byte ring | lazily, Release | >= the last seen, <= bytes sent |
//! | 0x090 | loan returns: bit i changes with each return of the *other* half's loan i | on return, Release | only bits of loans that are lent have changed since it was last accepted |
//! | 0x100 | byte tail: bytes published in this half's byte ring | by the byte stream's writer, Release | >= the last seen, <= own head + size of the ring |
//! | 0x180 + 64 s | slot s: a cache line, see [`message`](super::message) | | see there |
//! | [`bytes_at`](HalfLayout::bytes_at) | byte ring | before the tail (or the slot) that publishes it | never interpreted |
//! | [`loans_at`](HalfLayout::loans_at) | loans, one after the other | before the slot that names it | never interpreted |
//!
//! Words that are written often by different tasks lie 128 bytes apart, and so do halves: some processors fetch lines in pairs. What shares a line is
//! written by one task (what has been taken and returned), or a few times in a life or only where a system call follows (state, tickets, bells): who
//! flushes looks at all of the first line.

/// The first word of a half.
pub const MAGIC: u64 = u64::from_le_bytes(*b"TmbHalf2");

pub(super) const AT_MAGIC: usize = 0x000;
pub(super) const AT_NONCE: usize = 0x008;
pub(super) const AT_LAYOUT: usize = 0x010;
pub(super) const AT_STATE: usize = 0x018;
pub(super) const AT_DATA_TICKET: usize = 0x020;
pub(super) const AT_SPACE_TICKET: usize = 0x028;
pub(super) const AT_SPACE_WANTED: usize = 0x030;
pub(super) const AT_BELL_COUNT: usize = 0x038;
pub(super) const AT_SLOTS_CONSUMED: usize = 0x080;
pub(super) const AT_BYTES_CONSUMED: usize = 0x088;
pub(super) const AT_LOAN_RETURNS: usize = 0x090;
pub(super) const AT_BYTE_TAIL: usize = 0x100;
pub(super) const AT_SLOTS: usize = 0x180;

/// Bytes of a slot: one cache line.
pub const SLOT: usize = 64;

/// Where in the slot that announces a loan its first bytes are, and how many at most.
pub(super) const LOAN_HEAD_AT: usize = 24;
pub(super) const LOAN_HEAD: usize = SLOT - LOAN_HEAD_AT;

/// Most slots in a half, as a power of two: 4 MiB of them.
pub const SLOTS_LOG2_MAX: u8 = 16;
/// Smallest byte ring, as a power of two.
pub const BYTES_LOG2_MIN: u8 = 6;
/// Largest byte ring, as a power of two: 1 GiB.
pub const BYTES_LOG2_MAX: u8 = 30;
/// Most loans in a half: a word has a bit for each.
pub const LOANS_MAX: u8 = 64;
/// Smallest loan, as a power of two: a page.
pub const LOAN_LOG2_MIN: u8 = 12;
/// Largest loan, as a power of two: 1 GiB.
pub const LOAN_LOG2_MAX: u8 = 30;

/// Halves lie at multiples of this, in bytes: two cache lines.
pub const HALF_ALIGN: usize = 128;
/// Byte rings of this size, as a power of two, and larger ones begin on a page: 64 KiB. Long messages and parts of streams, often of whole pages, then lie on
/// fewer pages. Beside smaller rings, what would lie idle is too much.
const BYTES_ON_PAGE_LOG2: u8 = 16;

const PAGE: usize = crate::mem::PAGE;

const _: () = assert!(LOANS_MAX as u32 <= u64::BITS);
const _: () = assert!(AT_SLOTS.is_multiple_of(HALF_ALIGN) && PAGE.is_multiple_of(HALF_ALIGN));

/// The sizes of one half. A size of zero means there is none of that kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HalfLayout {
    /// Number of message slots, as a power of two; 0: no slots. At most [`SLOTS_LOG2_MAX`].
    pub slots_log2: u8,
    /// Bytes in the byte ring, as a power of two; 0: none. [`BYTES_LOG2_MIN`] to [`BYTES_LOG2_MAX`].
    pub bytes_log2: u8,
    /// Number of loaned buffers, at most [`LOANS_MAX`].
    pub loan_count: u8,
    /// Bytes in each loaned buffer, as a power of two; 0 if there are none. [`LOAN_LOG2_MIN`] to [`LOAN_LOG2_MAX`].
    pub loan_log2: u8,
}

/// Why a layout is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// More slots than [`SLOTS_LOG2_MAX`] allows.
    #[error("2^{0} message slots: at most 2^{SLOTS_LOG2_MAX}")]
    Slots(u8),
    /// The byte ring is too small or too large.
    #[error("a byte ring of 2^{0} bytes: 0, or 2^{BYTES_LOG2_MIN} to 2^{BYTES_LOG2_MAX}")]
    Bytes(u8),
    /// Too many loans, or loans too small or too large.
    #[error(
        "{count} loans of 2^{log2} bytes: at most {LOANS_MAX} of 2^{LOAN_LOG2_MIN} to 2^{LOAN_LOG2_MAX}, or none of 2^0"
    )]
    Loans {
        /// How many.
        count: u8,
        /// Bytes in each, as a power of two.
        log2: u8,
    },
    /// Loans need slots to be announced in; and a half must carry something.
    #[error("a half needs message slots or a byte ring, and loans need message slots")]
    Useless,
    /// Bits of a layout word that mean nothing.
    #[error("layout word {0:#x} has reserved bits set")]
    Reserved(u64),
}

impl HalfLayout {
    /// For messages: 64 slots, a byte ring of 256 KiB, no loans. 264 KiB.
    pub const MESSAGES: Self = Self { slots_log2: 6, bytes_log2: 18, loan_count: 0, loan_log2: 0 };

    /// For a byte stream: a ring of 256 KiB, half of a small second-level cache. 260 KiB.
    pub const STREAM: Self = Self { slots_log2: 0, bytes_log2: 18, loan_count: 0, loan_log2: 0 };

    /// Checks the limits. Everything else here expects a valid layout.
    pub fn validate(self) -> Result<Self, LayoutError> {
        if self.slots_log2 > SLOTS_LOG2_MAX {
            return Err(LayoutError::Slots(self.slots_log2));
        }
        if self.bytes_log2 != 0 && !(BYTES_LOG2_MIN..=BYTES_LOG2_MAX).contains(&self.bytes_log2) {
            return Err(LayoutError::Bytes(self.bytes_log2));
        }
        let loans_fit = match self.loan_count {
            0 => self.loan_log2 == 0,
            count => count <= LOANS_MAX && (LOAN_LOG2_MIN..=LOAN_LOG2_MAX).contains(&self.loan_log2),
        };
        if !loans_fit {
            return Err(LayoutError::Loans { count: self.loan_count, log2: self.loan_log2 });
        }
        if self.slots_log2 == 0 && (self.bytes_log2 == 0 || self.loan_count != 0) {
            return Err(LayoutError::Useless);
        }
        Ok(self)
    }

    /// The layout as one word: slots_log2 in bits 0..8, bytes_log2 in 8..16, loan_count in 16..24, loan_log2 in 24..32.
    pub fn to_word(self) -> u64 {
        u64::from(u32::from_le_bytes([self.slots_log2, self.bytes_log2, self.loan_count, self.loan_log2]))
    }

    /// Reads and validates a layout word; it may come from a peer.
    pub fn from_word(word: u64) -> Result<Self, LayoutError> {
        let low = u32::try_from(word).map_err(|_| LayoutError::Reserved(word))?;
        let [slots_log2, bytes_log2, loan_count, loan_log2] = low.to_le_bytes();
        Self { slots_log2, bytes_log2, loan_count, loan_log2 }.validate()
    }

    /// Number of message slots.
    pub fn slots(self) -> usize {
        if self.slots_log2 == 0 { 0 } else { 1 << self.slots_log2 }
    }

    /// Size of the byte ring, in bytes.
    pub fn byte_capacity(self) -> usize {
        if self.bytes_log2 == 0 { 0 } else { 1 << self.bytes_log2 }
    }

    /// Size of one loan, in bytes; 0 if there are none.
    pub fn loan_len(self) -> usize {
        if self.loan_count == 0 { 0 } else { 1 << self.loan_log2 }
    }

    /// The longest message that a half of this layout can send, in bytes.
    pub fn max_message(self) -> usize {
        super::message::INLINE_MAX.max(self.byte_capacity()).max(self.loan_len())
    }

    /// Offset of slot `index`.
    #[inline]
    pub(super) fn slot_at(index: usize) -> usize {
        AT_SLOTS + index * SLOT
    }

    /// What a half lies at a multiple of, in bytes: a page if something in it begins on one, else [`HALF_ALIGN`].
    pub fn align(self) -> usize {
        if self.loan_count == 0 { self.bytes_align() } else { PAGE }
    }

    fn bytes_align(self) -> usize {
        if self.bytes_log2 < BYTES_ON_PAGE_LOG2 { HALF_ALIGN } else { PAGE }
    }

    /// Offset of the byte ring: the first pair of lines after the slots, or the first page if it is large.
    pub fn bytes_at(self) -> usize {
        (AT_SLOTS + self.slots() * SLOT).next_multiple_of(self.bytes_align())
    }

    /// Offset of the first loan: the first page after the byte ring. Without loans the end of the half.
    pub fn loans_at(self) -> usize {
        (self.bytes_at() + self.byte_capacity()).next_multiple_of(self.align())
    }

    /// Offset of loan `index`.
    pub(super) fn loan_at(self, index: usize) -> usize {
        self.loans_at() + (index << self.loan_log2)
    }

    /// Length of the half in bytes: a multiple of [`HalfLayout::align`].
    pub fn total_len(self) -> usize {
        self.loans_at() + usize::from(self.loan_count) * self.loan_len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_defaults_are_valid_and_as_long_as_documented() {
        assert_eq!(HalfLayout::MESSAGES.validate().unwrap().total_len(), 264 << 10);
        assert_eq!(HalfLayout::STREAM.validate().unwrap().total_len(), 260 << 10);
    }

    proptest! {
        #[test]
        fn any_word_is_refused_or_a_layout_whose_parts_do_not_overlap(word: u64, low: u32) {
            for word in [word, u64::from(low), u64::from(low & 0x1f3f_1f1f)] {
                let Ok(layout) = HalfLayout::from_word(word) else { continue };
                prop_assert_eq!(layout.to_word(), word);
                prop_assert!(HalfLayout::slot_at(layout.slots()) <= layout.bytes_at());
                prop_assert!(layout.bytes_at() + layout.byte_capacity() <= layout.loans_at());
                prop_assert!(layout.loan_at(layout.loan_count.into()) <= layout.total_len());
                prop_assert!(layout.total_len().is_multiple_of(layout.align()));
                let is_large = layout.byte_capacity() >= 64 << 10;
                let bytes_align = if is_large { PAGE } else { HALF_ALIGN };
                prop_assert!(layout.bytes_at().is_multiple_of(bytes_align));
                prop_assert!(layout.loan_count == 0 || layout.loans_at().is_multiple_of(PAGE));
                let slots_and_ring = layout.slots() * SLOT + layout.byte_capacity();
                let is_close = layout.total_len() < AT_SLOTS + slots_and_ring + HALF_ALIGN;
                prop_assert!(is_close || is_large || layout.loan_count != 0);
            }
        }
    }
}
