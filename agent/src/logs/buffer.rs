//! The bounded buffer all logs of this kernel go to. Pure: the time is an argument.

use std::collections::VecDeque;

use crate::api::logs::{LogCursor, LogError, LogItem, LogLevel, LogQuery, LogRecord, LogSource};

/// Longest line that is kept, in bytes.
pub const LINE_BYTES_MAX: usize = 8 * 1024;
/// What a record costs beside its text, roughly.
const RECORD_OVERHEAD_BYTES: usize = 64;

/// Records, oldest first.
#[derive(Debug)]
pub struct LogBuffer {
    epoch: u64,
    records: VecDeque<LogRecord>,
    /// Sequence number of the newest record ever pushed; 0 before the first.
    last: u64,
    bytes: usize,
    capacity_bytes: usize,
}

impl LogBuffer {
    /// An empty one of this life of the agent.
    pub fn new(epoch: u64, capacity_bytes: usize) -> Self {
        Self { epoch, records: VecDeque::new(), last: 0, bytes: 0, capacity_bytes }
    }

    /// Appends one line and drops the oldest to stay within the capacity.
    pub fn push(&mut self, wall_ns: u64, source: LogSource, level: LogLevel, text: String) {
        self.last += 1;
        self.bytes += text.len() + RECORD_OVERHEAD_BYTES;
        let cursor = LogCursor { epoch: self.epoch, seq: self.last };
        self.records.push_back(LogRecord { cursor, wall_ns, source, level, text });
        while self.bytes > self.capacity_bytes && self.records.len() > 1 {
            if let Some(oldest) = self.records.pop_front() {
                self.bytes -= oldest.text.len() + RECORD_OVERHEAD_BYTES;
            }
        }
    }

    /// The cursor after the newest record.
    pub fn end(&self) -> LogCursor {
        LogCursor { epoch: self.epoch, seq: self.last }
    }

    /// Where `query` begins, and what to say first.
    ///
    /// # Errors
    /// [`LogError::CursorAhead`].
    pub fn begin(&self, query: &LogQuery) -> Result<(LogCursor, Option<LogItem>), LogError> {
        let at = |seq| LogCursor { epoch: self.epoch, seq };
        match (query.after, query.tail) {
            (Some(after), _) if after.epoch != self.epoch => {
                Ok((at(self.oldest() - 1), Some(LogItem::Gap { records: None })))
            }
            (Some(after), _) if after.seq > self.last => {
                Err(LogError::CursorAhead { asked: after.seq, last: self.last })
            }
            (Some(after), _) => Ok((after, None)),
            (None, Some(tail)) => Ok((at(self.before_last(tail, &query.sources)), None)),
            (None, None) => Ok((at(self.oldest() - 1), None)),
        }
    }

    /// Up to `max` matching items after `cursor`, which is moved past everything that was looked at.
    pub fn read(&self, cursor: &mut LogCursor, sources: &[LogSource], max: usize) -> Vec<LogItem> {
        let mut items = Vec::new();
        let oldest = self.oldest();
        if cursor.seq + 1 < oldest {
            items.push(LogItem::Gap { records: Some(oldest - cursor.seq - 1) });
            cursor.seq = oldest - 1;
        }
        let skip = (cursor.seq + 1 - oldest) as usize;
        for record in self.records.iter().skip(skip) {
            if items.len() >= max {
                break;
            }
            cursor.seq = record.cursor.seq;
            if matches(record, sources) {
                items.push(LogItem::Record(record.clone()));
            }
        }
        items
    }

    /// Sequence number of the oldest record that is kept, or of the next one if there is none.
    fn oldest(&self) -> u64 {
        self.records.front().map_or(self.last + 1, |record| record.cursor.seq)
    }

    fn before_last(&self, tail: u32, sources: &[LogSource]) -> u64 {
        let newest_first = self.records.iter().rev().filter(|record| matches(record, sources));
        match newest_first.take(tail as usize).last() {
            Some(first) => first.cursor.seq - 1,
            None => self.last,
        }
    }
}

fn matches(record: &LogRecord, sources: &[LogSource]) -> bool {
    sources.is_empty() || sources.contains(&record.source)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffer(lines: u64, capacity_bytes: usize) -> LogBuffer {
        let mut buffer = LogBuffer::new(7, capacity_bytes);
        for line in 1..=lines {
            let source = if line % 2 == 0 { LogSource::Kernel } else { LogSource::Agent };
            buffer.push(line, source, LogLevel::Info, format!("line {line}"));
        }
        buffer
    }

    fn seqs(items: &[LogItem]) -> Vec<u64> {
        let seq = |item: &LogItem| match item {
            LogItem::Record(record) => record.cursor.seq,
            LogItem::Gap { .. } => 0,
        };
        items.iter().map(seq).collect()
    }

    #[test]
    fn reading_goes_on_after_the_cursor_without_repeat() {
        let buffer = buffer(5, 10_000);
        let (mut cursor, first) = buffer.begin(&LogQuery::default()).unwrap();
        assert_eq!(first, None);
        assert_eq!(seqs(&buffer.read(&mut cursor, &[], 3)), [1, 2, 3]);
        assert_eq!(seqs(&buffer.read(&mut cursor, &[], 3)), [4, 5]);
        assert_eq!(cursor, buffer.end());
        let (again, _) = buffer.begin(&LogQuery { after: Some(cursor), ..LogQuery::default() }).unwrap();
        assert_eq!(again, cursor);
    }

    #[test]
    fn dropped_records_are_counted() {
        // Each costs 64 + 6 bytes: three fit.
        let buffer = buffer(5, 3 * 70);
        let mut cursor = LogCursor { epoch: 7, seq: 1 };
        let items = buffer.read(&mut cursor, &[], 10);
        assert_eq!(items[0], LogItem::Gap { records: Some(1) });
        assert_eq!(seqs(&items), [0, 3, 4, 5]);
    }

    #[test]
    fn a_cursor_of_an_earlier_life_begins_with_a_gap() {
        let buffer = buffer(2, 10_000);
        let query = LogQuery { after: Some(LogCursor { epoch: 6, seq: 99 }), ..LogQuery::default() };
        let (mut cursor, first) = buffer.begin(&query).unwrap();
        assert_eq!(first, Some(LogItem::Gap { records: None }));
        assert_eq!(seqs(&buffer.read(&mut cursor, &[], 10)), [1, 2]);
    }

    #[test]
    fn a_cursor_ahead_of_the_log_is_refused() {
        let query = LogQuery { after: Some(LogCursor { epoch: 7, seq: 3 }), ..LogQuery::default() };
        assert_eq!(buffer(2, 10_000).begin(&query), Err(LogError::CursorAhead { asked: 3, last: 2 }));
    }

    #[test]
    fn tail_counts_matching_records_alone() {
        let buffer = buffer(6, 10_000);
        let sources = vec![LogSource::Kernel];
        let query = LogQuery { tail: Some(2), sources: sources.clone(), ..LogQuery::default() };
        let (mut cursor, _) = buffer.begin(&query).unwrap();
        assert_eq!(seqs(&buffer.read(&mut cursor, &sources, 10)), [4, 6]);
        let none = LogQuery { tail: Some(0), ..LogQuery::default() };
        assert_eq!(buffer.begin(&none).unwrap().0, buffer.end());
    }
}
