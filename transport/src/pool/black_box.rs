//! The black box: a member's last words, readable by the primary after that kernel has died.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::mem::{Memory, MemoryMut, OwnSpan, PeerSpan};
use crate::pool::layout::black_box as at;

/// How grave a record is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum BlackBoxLevel {
    /// Detail for developers.
    Trace = 0,
    /// Detail.
    Debug = 1,
    /// Ordinary news.
    #[default]
    Info = 2,
    /// Something is off.
    Warn = 3,
    /// Something failed.
    Error = 4,
}

/// One record of a black box.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlackBoxRecord {
    /// Its number since that black box was first written, from 1.
    pub sequence: u64,
    /// Wall-clock time of the writing kernel, in nanoseconds since 1970.
    pub unix_ns: u64,
    /// How grave.
    pub level: BlackBoxLevel,
    /// What was said, cut to [`BlackBoxRecord::TEXT_BYTES_MAX`]; bytes that are no UTF-8 are replaced.
    pub text: String,
}

impl BlackBoxRecord {
    /// The longest text of one record, in bytes.
    pub const TEXT_BYTES_MAX: usize = at::TEXT_BYTES_MAX;
}

impl BlackBoxLevel {
    fn from_number(number: u64) -> Self {
        match number {
            0 => Self::Trace,
            1 => Self::Debug,
            3 => Self::Warn,
            4 => Self::Error,
            _ => Self::Info,
        }
    }
}

/// No honest black box has that many records; from here on stamps would soon overflow.
const SEQUENCE_MAX: u64 = 1 << 62;

/// Writes one's own black box. One per member.
#[derive(Debug)]
pub struct BlackBoxWriter {
    span: OwnSpan,
    records: u64,
    sequence: u64,
}

impl BlackBoxWriter {
    pub(crate) fn new(span: OwnSpan, records: u32, last_sequence: u64) -> Self {
        let mut sequence = last_sequence;
        if sequence > SEQUENCE_MAX {
            // An earlier boot of this kernel wrote nonsense. Beside it nothing of ours would ever count as new.
            (0..records as usize).for_each(|slot| span.store(slot * at::STRIDE + at::STAMP, 0, Relaxed));
            sequence = 0;
        }
        Self { span, records: u64::from(records), sequence }
    }

    /// Writes a record over the oldest. Text is cut to fit; a plain memory write, no system call but reading the clock.
    pub fn record(&mut self, level: BlackBoxLevel, text: &str) {
        self.sequence += 1;
        let slot = ((self.sequence - 1) % self.records) as usize * at::STRIDE;
        let text = &text.as_bytes()[..text.floor_char_boundary(at::TEXT_BYTES_MAX)];
        let unix_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
        self.span.store(slot + at::STAMP, 2 * self.sequence + 1, Relaxed);
        std::sync::atomic::fence(Release);
        self.span.store(slot + at::UNIX_NS, unix_ns, Relaxed);
        self.span.store(slot + at::LEVEL_AND_LEN, (text.len() as u64) << 32 | level as u64, Relaxed);
        self.span.write(slot + at::TEXT, text);
        self.span.store(slot + at::STAMP, 2 * self.sequence, Release);
    }
}

/// The records of the black box at `base`, oldest first. Records being written, or that make no sense, are left out.
pub(crate) fn read(pool: &PeerSpan, base: usize, records: u32) -> Vec<BlackBoxRecord> {
    let mut found: Vec<_> = (0..records).filter_map(|slot| read_slot(pool, base, slot, records)).collect();
    found.sort_by_key(|record| record.sequence);
    // A slot that lags by a whole round was being rewritten by whoever died.
    let newest = found.last().map_or(0, |record| record.sequence);
    found.retain(|record| newest - record.sequence < u64::from(records));
    found
}

fn read_slot(pool: &PeerSpan, base: usize, slot: u32, records: u32) -> Option<BlackBoxRecord> {
    let slot_base = base + slot as usize * at::STRIDE;
    let stamp = pool.load(slot_base + at::STAMP, Acquire);
    let sequence = stamp / 2;
    if stamp % 2 == 1 || sequence == 0 || (sequence - 1) % u64::from(records) != u64::from(slot) {
        return None;
    }
    let level_and_len = pool.load(slot_base + at::LEVEL_AND_LEN, Relaxed);
    let len = (level_and_len >> 32) as usize;
    if len > at::TEXT_BYTES_MAX {
        return None;
    }
    let unix_ns = pool.load(slot_base + at::UNIX_NS, Relaxed);
    let mut text = [0; at::TEXT_BYTES_MAX];
    pool.read(slot_base + at::TEXT, &mut text[..len]);
    std::sync::atomic::fence(Acquire);
    if pool.load(slot_base + at::STAMP, Relaxed) != stamp {
        return None;
    }
    Some(BlackBoxRecord {
        sequence,
        unix_ns,
        level: BlackBoxLevel::from_number(level_and_len & 0xffff_ffff),
        text: String::from_utf8_lossy(&text[..len]).into_owned(),
    })
}
