//! Unpacking what the kernel's build packed, within limits.
//!
//! The last four bytes of a payload say how long it is unpacked: gzip writes them itself, for the others the build appends them
//! (`size_append` in Linux's scripts/Makefile.lib). They are believed only up to the limit, and the result must have that length.

use std::fmt;
use std::io::{self, Read};

use flate2::bufread::GzDecoder;
use lzma_rust2::{LzmaReader, XzReader};
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

use super::Limits;
use super::bytes::{first_bytes, u32_at};
use super::error::ImageError;
use super::lz4::Lz4Reader;

/// What a decompressor of xz or lzma needs besides its dictionary, rounded up.
const TABLES_KIB: usize = 1024;
const SIZE_BYTES: usize = 4;

/// How something is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    /// RFC 1952.
    Gzip,
    /// xz, with the filter for x86 programs that the kernel's build adds.
    Xz,
    /// The format of the lzma program, older than xz.
    Lzma,
    /// bzip2.
    Bzip2,
    /// RFC 8878.
    Zstd,
    /// The legacy frames of the lz4 program.
    Lz4,
    /// lzop; recognised, not unpacked.
    Lzo,
}

impl Compression {
    /// By the first bytes, as the kernel tells them apart (lib/decompress.c).
    pub(crate) fn of(bytes: &[u8]) -> Option<Self> {
        let marks: [(&[u8], Self); 7] = [
            (b"\x1f\x8b", Self::Gzip),
            (b"\xfd7zXZ\0", Self::Xz),
            (b"\x5d\0", Self::Lzma),
            (b"BZh", Self::Bzip2),
            (b"\x28\xb5\x2f\xfd", Self::Zstd),
            (&super::lz4::LEGACY_MAGIC, Self::Lz4),
            (b"\x89LZO", Self::Lzo),
        ];
        marks.iter().find(|(mark, _)| bytes.starts_with(mark)).map(|(_, compression)| *compression)
    }

    /// Whether the stream itself ends with the length, rather than the build appending it.
    fn ends_with_length(self) -> bool {
        self == Self::Gzip
    }

    /// Reads what is packed in `packed`, of which no more than `unpacked_bytes` are wanted. A stream that needs more than
    /// `window_bytes_max` to refer back to is refused.
    fn reader(
        self,
        packed: &[u8],
        unpacked_bytes: usize,
        window_bytes_max: usize,
    ) -> io::Result<Box<dyn Read + '_>> {
        let memory_kib = u32::try_from(window_bytes_max / 1024 + TABLES_KIB).unwrap_or(u32::MAX);
        let reader: Box<dyn Read> = match self {
            Self::Gzip => Box::new(GzDecoder::new(packed)),
            Self::Bzip2 => Box::new(bzip2::bufread::BzDecoder::new(packed)),
            Self::Xz => Box::new(XzReader::new_mem_limit(packed, false, memory_kib)),
            Self::Lzma => Box::new(LzmaReader::new_mem_limit(packed, memory_kib, None)?),
            Self::Zstd => Box::new(ZstdReader::new(packed, window_bytes_max as u64)?),
            Self::Lz4 => Box::new(Lz4Reader::new(packed, unpacked_bytes)?),
            Self::Lzo => return Err(io::ErrorKind::Unsupported.into()),
        };
        Ok(reader)
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Lzma => "lzma",
            Self::Bzip2 => "bzip2",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
            Self::Lzo => "lzo",
        })
    }
}

/// Unpacks the payload of a kernel, which ends with its unpacked length.
pub(super) fn unpack(payload: &[u8], limits: &Limits) -> Result<(Compression, Vec<u8>), ImageError> {
    let corrupt = |expected: &str, found: &str| ImageError::corrupt("its payload", expected, found);
    let compression = Compression::of(payload).ok_or_else(|| {
        corrupt("the first bytes of gzip, xz, lzma, bzip2, zstd or lz4", &first_bytes(payload))
    })?;
    if compression == Compression::Lzo {
        return Err(ImageError::Unsupported { compression });
    }
    let end = payload.len().saturating_sub(SIZE_BYTES);
    let promised = u32_at(payload, end).ok_or_else(|| corrupt("its length", "nothing"))?;
    if u64::from(promised) > limits.unpacked_bytes_max as u64 {
        return Err(ImageError::TooBig {
            part: "its payload, unpacked,",
            bytes: promised.into(),
            bytes_max: limits.unpacked_bytes_max as u64,
            remedy: "a kernel of this size is not expected: look whether the image is damaged, or give a smaller build",
        });
    }
    let promised = promised as usize;
    let packed = if compression.ends_with_length() { payload } else { &payload[..end] };
    let mut unpacked = Vec::new();
    let read = read_exactly(compression, packed, promised, limits, &mut unpacked);
    let is_longer = read.map_err(|error| ImageError::Unpack {
        compression,
        unpacked_bytes: unpacked.len(),
        reason: error.to_string(),
    })?;
    if is_longer || unpacked.len() < promised {
        let found = if is_longer { "more".to_owned() } else { unpacked.len().to_string() };
        return Err(corrupt(&format!("{promised} bytes when unpacked with {compression}"), &found));
    }
    Ok((compression, unpacked))
}

/// Reads up to `bytes_max` bytes, and whether there would have been more. Where there are no more, the decompressor has checked
/// its checksums.
fn read_exactly(
    compression: Compression,
    packed: &[u8],
    bytes_max: usize,
    limits: &Limits,
    unpacked: &mut Vec<u8>,
) -> io::Result<bool> {
    unpacked
        .try_reserve_exact(bytes_max)
        .map_err(|error| io::Error::new(io::ErrorKind::OutOfMemory, error))?;
    let mut reader = compression.reader(packed, bytes_max, limits.window_bytes_max)?;
    reader.by_ref().take(bytes_max as u64).read_to_end(unpacked)?;
    Ok(reader.read(&mut [0])? != 0)
}

/// What a packed file begins with, as far as it can be unpacked.
pub(super) fn peek(compression: Compression, packed: &[u8], limits: &Limits) -> Vec<u8> {
    const PEEK_BYTES: usize = 4096;
    let mut unpacked = Vec::new();
    // An error leaves what came before it, and nothing more is known of such a file.
    let _ = compression
        .reader(packed, limits.unpacked_bytes_max.min(limits.window_bytes_max), limits.window_bytes_max)
        .and_then(|reader| reader.take(PEEK_BYTES as u64).read_to_end(&mut unpacked));
    unpacked
}

/// Reads one zstd frame, and compares its checksum at the end.
struct ZstdReader<'a> {
    stream: StreamingDecoder<&'a [u8], FrameDecoder>,
}

impl<'a> ZstdReader<'a> {
    fn new(packed: &'a [u8], window_bytes_max: u64) -> io::Result<Self> {
        let stream = StreamingDecoder::new_with_max_window_size(packed, window_bytes_max);
        Ok(Self { stream: stream.map_err(io::Error::other)? })
    }
}

impl Read for ZstdReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.stream.read(buf)?;
        if read > 0 || buf.is_empty() {
            return Ok(read);
        }
        let decoder = &self.stream.decoder;
        match decoder.get_checksum_from_data() {
            Some(said) if decoder.get_calculated_checksum() != Some(said) => {
                Err(io::Error::new(io::ErrorKind::InvalidData, "the checksum does not match"))
            }
            _ => Ok(0),
        }
    }
}
