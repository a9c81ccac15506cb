//! The legacy frames of the lz4 program, which the kernel's build writes (`lz4 -l`) and no library reads in this form.
//!
//! A magic number, then blocks: the length of the packed block in four bytes, and the block, 8 MiB when unpacked but for the last.
//! There is no end mark and no checksum. Where a length is due, the magic number may stand again (two files one after the other).

use std::io::{self, Read};

use super::bytes::{range, u32_at};

pub(super) const LEGACY_MAGIC: [u8; 4] = 0x184c_2102_u32.to_le_bytes();
const BLOCK_BYTES_MAX: usize = 8 << 20;

pub(super) struct Lz4Reader<'a> {
    /// What is not unpacked yet.
    packed: &'a [u8],
    /// The current block.
    block: Vec<u8>,
    /// How much of `block` is there, and how much of that was read.
    filled: usize,
    read: usize,
}

impl<'a> Lz4Reader<'a> {
    /// A reader that gives up on a block of more than 8 MiB or of more than `unpacked_bytes`.
    pub(super) fn new(packed: &'a [u8], unpacked_bytes: usize) -> io::Result<Self> {
        let packed = packed.strip_prefix(&LEGACY_MAGIC).ok_or_else(|| invalid("there is no magic number"))?;
        let block = vec![0; unpacked_bytes.min(BLOCK_BYTES_MAX)];
        Ok(Self { packed, block, filled: 0, read: 0 })
    }

    /// Unpacks the next block; without one, `filled` stays 0.
    fn next_block(&mut self) -> io::Result<()> {
        (self.filled, self.read) = (0, 0);
        while let Some(rest) = self.packed.strip_prefix(&LEGACY_MAGIC) {
            self.packed = rest;
        }
        if self.packed.is_empty() {
            return Ok(());
        }
        let length = u32_at(self.packed, 0).ok_or_else(|| invalid("the length of a block is cut short"))?;
        let packed = range(self.packed, 4, length.into()).ok_or_else(|| {
            let have = self.packed.len() - 4;
            invalid(&format!("a block of {length} bytes is cut short: {have} are there"))
        })?;
        self.packed = &self.packed[4 + packed.len()..];
        let unpacked = lz4_flex::block::decompress_into(packed, &mut self.block);
        self.filled = unpacked.map_err(|error| invalid(&error.to_string()))?;
        Ok(())
    }
}

impl Read for Lz4Reader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.read == self.filled && !self.packed.is_empty() {
            self.next_block()?;
        }
        let ready = &self.block[self.read..self.filled];
        let len = ready.len().min(buf.len());
        buf[..len].copy_from_slice(&ready[..len]);
        self.read += len;
        Ok(len)
    }
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}
