//! What a job wrote, kept in a bounded buffer. Pure: no I/O, no time.
//!
//! Offsets count every byte the job ever wrote, stdout and stderr together, in the order in which the agent read them.
//! A detached job drops its oldest output when the buffer is full; an attached one drops nothing: it is made to wait,
//! and what its caller has read is released.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// Pieces are joined up to this length: a job that writes a few bytes at a time would otherwise cost many times that in
/// bookkeeping.
const JOINED_BYTES_MAX: usize = 4096;
/// What a chunk costs beside its bytes, roughly.
const CHUNK_OVERHEAD_BYTES: u64 = 128;

/// Which of the two a job wrote to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// stdout, or the terminal.
    Stdout,
    /// stderr.
    Stderr,
}

/// A piece of output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Offset of its first byte.
    pub offset: u64,
    /// Where it was written to.
    pub channel: Channel,
    /// What was written.
    pub data: Bytes,
}

/// What there is to read at an offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// This; go on at its end.
    Chunk(Chunk),
    /// So many bytes are gone; go on at `resume`.
    Gap {
        /// How many.
        bytes: u64,
        /// The oldest offset that is kept.
        resume: u64,
    },
    /// Nothing yet.
    Wait,
    /// Nothing, ever again.
    End,
}

/// What happens to output that nobody has read when the buffer is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// The oldest is dropped.
    DropOldest,
    /// Nothing is dropped: whoever pushes waits for [`OutputBuffer::has_room`] before, so that the buffer holds at most
    /// one chunk of each of its sources too many.
    Wait,
}

/// The output of one job.
#[derive(Debug)]
pub struct OutputBuffer {
    when_full: WhenFull,
    chunks: VecDeque<Chunk>,
    from: u64,
    to: u64,
    /// Memory in use: chunks and what they cost.
    held_bytes: u64,
    capacity_bytes: u64,
    closed: bool,
}

impl OutputBuffer {
    /// An empty one that takes `capacity_bytes` of memory, bookkeeping included.
    pub fn new(capacity_bytes: u64, when_full: WhenFull) -> Self {
        let (chunks, closed) = (VecDeque::new(), false);
        Self { when_full, chunks, from: 0, to: 0, held_bytes: 0, capacity_bytes, closed }
    }

    /// Offset of the oldest byte that is kept.
    pub fn from(&self) -> u64 {
        self.from
    }

    /// Offset after the newest byte.
    pub fn to(&self) -> u64 {
        self.to
    }

    /// Whether another chunk may come without dropping one. A closed buffer takes anything, and discards it.
    pub fn has_room(&self) -> bool {
        self.closed || self.held_bytes < self.capacity_bytes
    }

    /// Appends; with [`WhenFull::DropOldest`], drops the oldest chunks to stay within the capacity.
    pub fn push(&mut self, channel: Channel, data: Bytes) {
        if data.is_empty() || self.closed {
            return;
        }
        self.to += data.len() as u64;
        self.held_bytes += data.len() as u64;
        match self.chunks.back_mut() {
            Some(last) if last.channel == channel && last.data.len() + data.len() <= JOINED_BYTES_MAX => {
                last.append(&data);
            }
            _ => {
                let offset = self.to - data.len() as u64;
                self.held_bytes += CHUNK_OVERHEAD_BYTES;
                self.chunks.push_back(Chunk { offset, channel, data });
            }
        }
        if self.when_full == WhenFull::Wait {
            return;
        }
        // Whole chunks go, except that the newest stays even if it is longer than the capacity.
        while self.chunks.len() > 1 && self.held_bytes > self.capacity_bytes {
            self.drop_oldest();
        }
    }

    /// Forgets what lies wholly before `offset`: the only reader has it.
    pub fn release(&mut self, offset: u64) {
        while self.chunks.front().is_some_and(|chunk| chunk.end() <= offset) {
            self.drop_oldest();
        }
    }

    /// Nothing will be appended any more; what is pushed is discarded.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// What there is at `offset`.
    pub fn next(&self, offset: u64) -> Next {
        if offset < self.from {
            return Next::Gap { bytes: self.from - offset, resume: self.from };
        }
        // Chunks are contiguous and sorted: the first that ends after `offset` holds it.
        let index = self.chunks.partition_point(|chunk| chunk.end() <= offset);
        match self.chunks.get(index) {
            Some(chunk) => {
                let skip = (offset - chunk.offset) as usize;
                let data = chunk.data.slice(skip..);
                Next::Chunk(Chunk { offset, channel: chunk.channel, data })
            }
            None if self.closed => Next::End,
            None => Next::Wait,
        }
    }

    fn drop_oldest(&mut self) {
        if let Some(chunk) = self.chunks.pop_front() {
            self.from = chunk.end();
            self.held_bytes -= chunk.data.len() as u64 + CHUNK_OVERHEAD_BYTES;
        }
    }
}

impl Chunk {
    /// Offset after its last byte.
    pub fn end(&self) -> u64 {
        self.offset + self.data.len() as u64
    }

    fn append(&mut self, more: &[u8]) {
        // Kept at its own length: what is held is what is counted.
        let mut joined = BytesMut::with_capacity(self.data.len() + more.len());
        joined.extend_from_slice(&self.data);
        joined.extend_from_slice(more);
        self.data = joined.freeze();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STDOUT: Channel = Channel::Stdout;
    const STDERR: Channel = Channel::Stderr;

    fn bytes(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    fn chunk(offset: u64, channel: Channel, text: &'static str) -> Next {
        Next::Chunk(Chunk { offset, channel, data: bytes(text) })
    }

    /// Room for so many chunks of 4 bytes.
    fn buffer(chunks: u64, when_full: WhenFull) -> OutputBuffer {
        OutputBuffer::new(chunks * (CHUNK_OVERHEAD_BYTES + 4), when_full)
    }

    /// Chunks that are not joined, since each is for the other channel.
    fn push_in_turns(output: &mut OutputBuffer, texts: &[&'static str]) {
        for (text, channel) in texts.iter().zip([STDOUT, STDERR].into_iter().cycle()) {
            output.push(channel, bytes(text));
        }
    }

    #[test]
    fn reading_goes_on_where_it_stopped_even_inside_a_chunk() {
        let mut output = buffer(9, WhenFull::DropOldest);
        push_in_turns(&mut output, &["hello ", "world"]);
        assert_eq!(output.next(0), chunk(0, STDOUT, "hello "));
        assert_eq!(output.next(2), chunk(2, STDOUT, "llo "));
        assert_eq!(output.next(6), chunk(6, STDERR, "world"));
        assert_eq!(output.next(11), Next::Wait);
        output.close();
        assert_eq!(output.next(11), Next::End);
    }

    #[test]
    fn small_pieces_are_joined_and_read_on_from_within() {
        let mut output = buffer(9, WhenFull::Wait);
        output.push(STDOUT, bytes("one "));
        assert_eq!(output.next(0), chunk(0, STDOUT, "one "));
        output.push(STDOUT, bytes("two "));
        assert_eq!(output.next(4), chunk(4, STDOUT, "two "));
        output.push(STDERR, bytes("three"));
        assert_eq!(output.next(0), chunk(0, STDOUT, "one two "));
        output.release(4);
        assert_eq!(output.next(4), chunk(4, STDOUT, "two "), "not read whole");
        output.release(8);
        assert_eq!((output.from(), output.next(8)), (8, chunk(8, STDERR, "three")));
    }

    #[test]
    fn a_job_that_writes_single_bytes_costs_no_more_than_the_capacity() {
        let capacity = 64 * 1024;
        for channels in [[STDOUT, STDOUT], [STDOUT, STDERR]] {
            let mut output = OutputBuffer::new(capacity, WhenFull::DropOldest);
            for index in 0..200_000 {
                output.push(channels[index % 2], bytes("x"));
            }
            let held: u64 = output.chunks.iter().map(|c| c.data.len() as u64 + CHUNK_OVERHEAD_BYTES).sum();
            assert!(held <= capacity && held == output.held_bytes, "{held}");
            assert_eq!(output.to(), 200_000);
        }
        let mut output = OutputBuffer::new(capacity, WhenFull::DropOldest);
        (0..200_000).for_each(|_| output.push(STDOUT, bytes("x")));
        assert!(output.to() - output.from() > capacity / 2, "most of it is output");
    }

    #[test]
    fn oldest_output_is_dropped_and_the_gap_counted() {
        let mut output = buffer(2, WhenFull::DropOldest);
        push_in_turns(&mut output, &["aaaa", "bbbb", "cccc"]);
        assert_eq!((output.from(), output.to()), (4, 12));
        assert_eq!(output.next(1), Next::Gap { bytes: 3, resume: 4 });
        assert_eq!(output.next(4), chunk(4, STDERR, "bbbb"));
    }

    #[test]
    fn what_must_not_be_dropped_is_kept_beyond_the_capacity() {
        let mut output = buffer(2, WhenFull::Wait);
        push_in_turns(&mut output, &["aaaaaaa", "bbbb", "cccc"]);
        assert_eq!(output.next(0), chunk(0, STDOUT, "aaaaaaa"));
        assert!(!output.has_room());
    }

    #[test]
    fn a_chunk_longer_than_the_buffer_is_kept_whole() {
        let mut output = OutputBuffer::new(2, WhenFull::DropOldest);
        output.push(STDOUT, bytes("aaaa"));
        assert_eq!(output.next(0), chunk(0, STDOUT, "aaaa"));
        assert!(!output.has_room());
    }

    #[test]
    fn what_was_released_makes_room() {
        let mut output = buffer(1, WhenFull::Wait);
        output.push(STDOUT, bytes("aaaa"));
        assert!(!output.has_room());
        output.release(3);
        assert!(!output.has_room(), "the chunk is not read whole");
        output.release(4);
        assert!(output.has_room());
        assert_eq!(output.next(4), Next::Wait);
    }

    #[test]
    fn an_offset_ahead_of_everything_waits() {
        let mut output = buffer(1, WhenFull::DropOldest);
        output.push(STDOUT, bytes("aa"));
        assert_eq!(output.next(9), Next::Wait);
    }
}
