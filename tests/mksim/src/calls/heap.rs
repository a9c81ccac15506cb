//! A buffer of the DMA heap: memory that is there as long as somebody has it open or mapped, as a dma-buf is.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{MemfdFlags, Mode, OFlags, ftruncate, memfd_create, open};

use super::sys;

/// The stand-in's own hold on a buffer, which does not count as a use.
pub(crate) struct Buffer(OwnedFd);

impl Buffer {
    /// A new buffer, and the descriptor for whoever asked for it.
    pub(super) fn allocate(len: u64) -> io::Result<(Self, OwnedFd)> {
        let memory = memfd_create("mksim-heap", MemfdFlags::CLOEXEC)?;
        ftruncate(&memory, len)?;
        let by_name = format!("/proc/self/fd/{}", memory.as_raw_fd());
        let buffer = open(&by_name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        // Only what was opened by name counts; how the memory was made does not.
        let given = open(&by_name, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        Ok((Self(buffer), given))
    }

    /// A file that is no buffer, and is never let go.
    pub(crate) fn of_file(file: File) -> Self {
        Self(file.into())
    }

    /// Where other processes find it, as long as this is there.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }

    /// Whether nobody uses it any more.
    pub(crate) fn is_unused(&self) -> bool {
        File::options()
            .read(true)
            .write(true)
            .open(self.path())
            .is_ok_and(|file| sys::is_unused(file.as_fd()))
    }
}
