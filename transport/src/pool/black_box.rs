//! The black box: a member's last words, readable by the primary after that kernel has died.

use crate::pool::Pool;

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
    pub const TEXT_BYTES_MAX: usize = 224;
}

/// Writes one's own black box. One per member.
#[derive(Debug)]
pub struct BlackBoxWriter {
    pool: Pool,
    sequence: u64,
}

impl BlackBoxWriter {
    pub(crate) fn new(pool: Pool) -> Self {
        let sequence = pool.black_box_last_sequence();
        Self { pool, sequence }
    }

    /// Writes a record over the oldest. Text is cut to fit; a plain memory write, no system call but reading the clock.
    pub fn record(&mut self, level: BlackBoxLevel, text: &str) {
        self.sequence += 1;
        self.pool.store_black_box_record(self.sequence, level, text);
    }
}
