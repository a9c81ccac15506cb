//! What is asked of the host for memory to share: a seam, so that tests have other hosts.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use super::holder;
use super::made::Holder;
use crate::spawner::multikernel::calls;

/// A host.
pub(crate) trait Host {
    /// Which boot of it this is.
    fn boot_id(&self) -> io::Result<String>;
    /// /proc/iomem.
    fn iomem(&self) -> io::Result<String>;
    /// /proc/self/mountinfo.
    fn mounts(&self) -> io::Result<String>;
    /// A buffer of a DMA heap.
    fn allocate(&self, heap: &Path, bytes: u64) -> io::Result<OwnedFd>;
    /// Has a process hold it, which ends unless `note` is done.
    fn hold(&self, memory: OwnedFd, note: &mut dyn FnMut(Holder) -> io::Result<()>) -> io::Result<()>;
    /// What that process holds.
    fn held(&self, holder: Holder) -> io::Result<OwnedFd>;
    /// Ends it.
    fn let_go(&self, holder: Holder) -> io::Result<()>;
}

/// This host.
#[derive(Debug)]
pub(crate) struct ThisHost {
    /// What is run to hold a buffer: `tombolod`.
    pub(crate) program: PathBuf,
    /// Where the socket of that process is.
    pub(crate) state_dir: PathBuf,
}

impl Host for ThisHost {
    fn boot_id(&self) -> io::Result<String> {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        Ok(id.trim().to_owned())
    }

    fn iomem(&self) -> io::Result<String> {
        std::fs::read_to_string("/proc/iomem")
    }

    fn mounts(&self) -> io::Result<String> {
        std::fs::read_to_string("/proc/self/mountinfo")
    }

    fn allocate(&self, heap: &Path, bytes: u64) -> io::Result<OwnedFd> {
        let heap = File::options().read(true).write(true).open(heap)?;
        calls::heap_allocate(heap.as_fd(), bytes)
    }

    fn hold(&self, memory: OwnedFd, note: &mut dyn FnMut(Holder) -> io::Result<()>) -> io::Result<()> {
        holder::start(&self.program, &self.state_dir, memory, note)
    }

    fn held(&self, holder: Holder) -> io::Result<OwnedFd> {
        holder::ask(&self.state_dir, holder)
    }

    fn let_go(&self, holder: Holder) -> io::Result<()> {
        holder::end(&self.state_dir, holder)
    }
}
