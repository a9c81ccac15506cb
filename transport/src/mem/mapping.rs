//! Mapping a pool: read-only as a whole, writable where it is ours.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use memmap2::{MmapOptions, MmapRaw};
use rustix::mm::{Advice, MprotectFlags};

use super::window::Window;
use super::{OutOfBounds, OwnSpan, PAGE, PeerSpan};

/// Why memory could not be mapped or made writable. Nothing stays mapped after an error of [`Mapping::map`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// The file ends before the range does; touching the missing pages would kill the process.
    #[error("cannot map {len} bytes at offset {offset}: the file holds only {file_len} bytes")]
    TooShort {
        /// Offset asked for, in bytes.
        offset: u64,
        /// Length asked for, in bytes.
        len: usize,
        /// Length of the file, in bytes.
        file_len: u64,
    },
    /// A length of zero, or an offset or range that is not made of whole pages.
    #[error(
        "range {start:#x}..{end:#x} is empty, outside the mapping, or not made of whole {PAGE}-byte pages"
    )]
    BadRange {
        /// Start of the range, in bytes.
        start: u64,
        /// End of the range, in bytes, exclusive.
        end: u64,
    },
    /// The operating system refused.
    #[error("{attempt} failed")]
    Io {
        /// What was attempted.
        attempt: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A shared mapping of a span of a file or device. Unmapped when the last span into it is gone.
#[derive(Debug)]
pub struct Mapping {
    raw: MmapRaw,
}

impl Mapping {
    /// Maps `len` bytes of `fd` from `offset`, shared and read-only.
    ///
    /// To make parts writable later, `fd` must have been opened for reading *and* writing. `offset` must be a multiple of
    /// [`PAGE`]; devices may ask for more (UML's `/dev/mmapper`: offset 0 and the whole length), and only they know where they end. The
    /// descriptor may be closed afterwards.
    pub fn map(fd: impl AsFd, offset: u64, len: usize) -> Result<Arc<Self>, MapError> {
        let fd = fd.as_fd();
        let end = offset.saturating_add(len as u64);
        // What is beyond an `off_t` no system can be asked for.
        if len == 0 || !offset.is_multiple_of(PAGE as u64) || i64::try_from(end).is_err() {
            return Err(MapError::BadRange { start: offset, end });
        }
        let stat = rustix::fs::fstat(fd)
            .map_err(|errno| MapError::Io { attempt: "fstat of the memory to map", source: errno.into() })?;
        let is_file = rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::RegularFile;
        let file_len = u64::try_from(stat.st_size).unwrap_or(0);
        if is_file && end > file_len {
            return Err(MapError::TooShort { offset, len, file_len });
        }
        let raw = MmapOptions::new()
            .offset(offset)
            .len(len)
            .map_raw_read_only(fd.as_raw_fd())
            .map_err(|source| MapError::Io { attempt: "mmap of shared memory", source })?;
        Ok(Arc::new(Self { raw }))
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.raw.len()
    }

    /// Whether there is nothing in it. Never true.
    pub fn is_empty(&self) -> bool {
        self.raw.len() == 0
    }

    /// A read-only window of `len` bytes at `offset` (a multiple of 8).
    pub fn peer(self: &Arc<Self>, offset: usize, len: usize) -> Result<PeerSpan, OutOfBounds> {
        Ok(PeerSpan::new(self.whole().sub(offset, len)?))
    }

    /// Makes `range` (whole pages) writable and returns the window to write it through.
    ///
    /// That we are the only kernel that writes there is the caller's promise to the *other* kernels; memory
    /// safety does not rest on it. Asking twice for one range is allowed.
    pub fn make_writable(self: &Arc<Self>, range: Range<usize>) -> Result<OwnSpan, MapError> {
        let window = self.pages(&range)?;
        // SAFETY: the pages are inside our mapping (M1), which is alive (M2), and holds no Rust object: only
        // spans access it (M4), for which more rights than before change nothing.
        unsafe {
            rustix::mm::mprotect(
                window.base().cast(),
                range.len(),
                MprotectFlags::READ | MprotectFlags::WRITE,
            )
        }
        .map_err(|errno| MapError::Io {
            attempt: "mprotect of our part of the pool",
            source: errno.into(),
        })?;
        Ok(OwnSpan::new(window))
    }

    /// Has the kernel map every page of `range` now, so that the first accesses do not fault. Only a hint: where the
    /// system cannot do it (a device, an old kernel) nothing happens.
    pub fn populate(self: &Arc<Self>, range: Range<usize>, writable: bool) {
        let Ok(window) = self.pages(&range) else { return };
        let advice = if writable { Advice::LinuxPopulateWrite } else { Advice::LinuxPopulateRead };
        // SAFETY: the pages are inside our live mapping (M1, M2); populating changes no contents and no rights.
        let _ = unsafe { rustix::mm::madvise(window.base().cast(), range.len(), advice) };
    }

    fn whole(self: &Arc<Self>) -> Window {
        // M1 holds: this is the mapping itself.
        Window::new(self.raw.as_mut_ptr(), self.raw.len(), Arc::clone(self))
    }

    fn pages(self: &Arc<Self>, range: &Range<usize>) -> Result<Window, MapError> {
        let bad = || MapError::BadRange { start: range.start as u64, end: range.end as u64 };
        if range.is_empty() || !range.start.is_multiple_of(PAGE) || !range.end.is_multiple_of(PAGE) {
            return Err(bad());
        }
        self.whole().sub(range.start, range.len()).map_err(|_| bad())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::mem::{Memory, MemoryMut};

    fn file(len: u64) -> std::fs::File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        file
    }

    #[test]
    fn a_file_too_short_is_refused() {
        let error = Mapping::map(file(4096), 0, 8192).unwrap_err();
        assert!(matches!(error, MapError::TooShort { file_len: 4096, .. }), "{error}");
    }

    #[test]
    fn part_of_a_file_is_mapped_from_its_offset_and_nothing_beyond() {
        let file = file(16384);
        let part = Mapping::map(&file, 8192, 8192).unwrap();
        part.make_writable(0..4096).unwrap().store(0, 7, Ordering::Release);
        let whole = Mapping::map(&file, 0, 16384).unwrap().peer(0, 16384).unwrap();
        assert_eq!((whole.load(0, Ordering::Acquire), whole.load(8192, Ordering::Acquire)), (0, 7));
        assert!(part.peer(8192, 8).is_err());
        let refused = |offset, len| Mapping::map(&file, offset, len).unwrap_err();
        assert!(matches!(refused(12288, 8192), MapError::TooShort { file_len: 16384, .. }));
        assert!(matches!(refused(16384, 4096), MapError::TooShort { .. }));
        for (offset, len) in [(1, 4096), (2048, 4096), (u64::MAX - 4095, 4096), (1 << 63, 4096), (4096, 0)] {
            assert!(matches!(refused(offset, len), MapError::BadRange { .. }), "{len} at {offset:#x}");
        }
    }

    #[test]
    fn device_that_cannot_be_mapped_is_told() {
        let null = std::fs::File::options().read(true).write(true).open("/dev/null").unwrap();
        assert!(matches!(Mapping::map(null, 4096, 4096).unwrap_err(), MapError::Io { .. }));
    }

    #[test]
    fn spans_outside_the_mapping_are_refused() {
        let mapping = Mapping::map(file(8192), 0, 8192).unwrap();
        assert!(mapping.peer(8192, 8).is_err());
        assert!(mapping.peer(8, usize::MAX).is_err());
        assert!(mapping.peer(4, 8).is_err(), "not aligned");
        let span = mapping.peer(4096, 4096).unwrap();
        assert!(span.sub(4096, 1).is_err());
        assert!(span.sub(4096, 0).is_ok());
    }

    #[test]
    fn writable_range_must_be_whole_pages() {
        let mapping = Mapping::map(file(8192), 0, 8192).unwrap();
        for range in [0..100, 8..4096, 4096..12288, 0..0] {
            assert!(matches!(mapping.make_writable(range), Err(MapError::BadRange { .. })));
        }
    }

    #[test]
    fn what_one_mapping_writes_another_reads() {
        let file = file(16384);
        let ours = Mapping::map(&file, 0, 16384).unwrap().make_writable(4096..8192).unwrap();
        let theirs = Mapping::map(&file, 0, 16384).unwrap();
        theirs.populate(0..16384, false);
        let theirs = theirs.peer(4096, 4096).unwrap();
        ours.store(8, 7, Ordering::Release);
        ours.write(100, b"hello");
        assert_eq!(theirs.load(8, Ordering::Acquire), 7);
        let mut out = Vec::new();
        theirs.append(100, 5, &mut out);
        assert_eq!(out, b"hello");
    }

    #[test]
    fn a_readonly_descriptor_maps_but_cannot_be_made_writable() {
        let named = tempfile::NamedTempFile::new().unwrap();
        named.as_file().set_len(4096).unwrap();
        let mapping = Mapping::map(std::fs::File::open(named.path()).unwrap(), 0, 4096).unwrap();
        assert!(matches!(mapping.make_writable(0..4096), Err(MapError::Io { .. })));
    }

    #[test]
    #[should_panic(expected = "outside a window")]
    fn access_past_the_end_panics() {
        let mapping = Mapping::map(file(4096), 0, 4096).unwrap();
        mapping.peer(0, 4096).unwrap().read(4090, &mut [0; 8]);
    }

    #[test]
    #[should_panic(expected = "not aligned")]
    fn misaligned_word_panics() {
        let mapping = Mapping::map(file(4096), 0, 4096).unwrap();
        mapping.peer(0, 4096).unwrap().load(4, Ordering::Relaxed);
    }
}
