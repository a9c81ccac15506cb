//! The memory that the pool is, as a descriptor: what processes get of it, and what their halves are locked on.

use std::fs::OpenOptions;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, FileType, fallocate, fstat, major, minor};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::pool::{Place, PoolSource, open_source};

/// The device of all memory of this kernel, by its numbers in `Documentation/admin-guide/devices.txt`.
const DEV_MEM: (u32, u32) = (1, 1);

/// The pool, opened by its broker.
#[derive(Debug)]
pub(super) struct PoolFd {
    fd: OwnedFd,
    place: Place,
    /// How a process's own description of the pool is opened, where its halves are locked on that.
    path: PathBuf,
    locks: Option<LockFile>,
    is_all_memory: bool,
}

/// What is locked instead of the pool.
#[derive(Debug)]
struct LockFile {
    fd: OwnedFd,
    path: PathBuf,
}

/// What a process gets.
pub(super) struct Passed {
    pub(super) pool: OwnedFd,
    /// A description of its own, where that is not the pool.
    pub(super) locks: Option<OwnedFd>,
}

impl PoolFd {
    pub(super) fn open(source: PoolSource, locks: Option<&Path>) -> Result<Self> {
        let given = match &source {
            PoolSource::Path { path, .. } => Some(path.clone()),
            PoolSource::Fd { .. } => None,
        };
        let (fd, place) = open_source(source)?;
        let path = given.unwrap_or_else(|| PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd())));
        let stat = fstat(&fd).map_err(|e| Error::io(format!("looking at {}", path.display()), e.into()))?;
        let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
        let locks =
            locks.map(|path| Ok::<_, Error>(LockFile { fd: open_locks(path)?, path: path.to_owned() }));
        Ok(Self {
            is_all_memory: is_device && (major(stat.st_rdev), minor(stat.st_rdev)) == DEV_MEM,
            locks: locks.transpose()?,
            fd,
            place,
            path,
        })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(super) fn place(&self) -> Place {
        self.place
    }

    /// Whether whoever gets it gets all memory of this kernel with it.
    pub(super) fn is_all_memory(&self) -> bool {
        self.is_all_memory
    }

    /// What locks are on, at offsets from the pool's beginning.
    pub(super) fn locks(&self) -> BorrowedFd<'_> {
        self.locks.as_ref().map_or(&self.fd, |locks| &locks.fd).as_fd()
    }

    /// The descriptors for a process.
    pub(super) fn for_process(&self) -> Result<Passed> {
        if let Some(locks) = &self.locks {
            let pool = self.fd.try_clone().map_err(|e| Error::io("copying the pool's descriptor", e))?;
            return Ok(Passed { pool, locks: Some(open_locks(&locks.path)?) });
        }
        // A description of its own, so that locks on it are its alone.
        let pool = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&self.path)
            .map_err(|e| Error::io(format!("opening {} for a process", self.path.display()), e))?;
        Ok(Passed { pool: pool.into(), locks: None })
    }

    /// Makes sure that pages of the pool are there.
    pub(super) fn back(&self, offset: u64, len: u64) -> std::io::Result<()> {
        back(&self.fd, self.place.offset.saturating_add(offset), len)
    }

    /// The same for somebody who outlives this.
    pub(super) fn backer(
        &self,
    ) -> std::io::Result<impl FnMut(u64, u64) -> std::io::Result<()> + Send + use<>> {
        let (fd, base) = (self.fd.try_clone()?, self.place.offset);
        Ok(move |offset: u64, len| back(&fd, base.saturating_add(offset), len))
    }
}

fn open_locks(path: &Path) -> Result<OwnedFd> {
    let opened =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    opened
        .map(OwnedFd::from)
        .map_err(|e| Error::io(format!("opening the file of locks {}", path.display()), e))
}

/// Makes sure that the pages are there, so that writing them cannot fail (a full /dev/shm would be a SIGBUS). Devices have
/// their pages already.
fn back(fd: impl AsFd, offset: u64, len: u64) -> std::io::Result<()> {
    match fallocate(fd, FallocateFlags::empty(), offset, len) {
        Ok(())
        | Err(Errno::OPNOTSUPP | Errno::NODEV | Errno::NOSYS | Errno::INVAL | Errno::SPIPE | Errno::BADF) => {
            Ok(())
        }
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::locks;

    #[test]
    fn device_of_all_memory_is_told_from_other_devices_and_files() {
        let opened = |path: &str| PoolFd::open(PoolSource::path(path), None);
        assert!(!opened("/dev/null").unwrap().is_all_memory());
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(!opened(file.path().to_str().unwrap()).unwrap().is_all_memory());
        // Not everybody may open it, and not every machine has it.
        if let Ok(memory) = opened("/dev/mem") {
            assert!(memory.is_all_memory());
        }
    }

    #[test]
    fn processes_have_locks_of_their_own_where_the_pool_cannot_be_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let pool: OwnedFd = tempfile::tempfile().unwrap().into();
        let file = dir.path().join("locks");
        let pool = PoolFd::open(PoolSource::Fd { fd: pool, offset: 0, len: 4096 }, Some(&file)).unwrap();
        let [one, other] = [pool.for_process().unwrap(), pool.for_process().unwrap()];
        let (one, other) = (one.locks.unwrap(), other.locks.unwrap());
        assert!(locks::lock(&one, 0..64).unwrap());
        assert!(!locks::lock(&other, 32..96).unwrap());
        assert_eq!(locks::first_locked(pool.locks(), 0..4096).unwrap(), Some(0..64));
        drop(one);
        assert_eq!(locks::first_locked(pool.locks(), 0..4096).unwrap(), None, "they end with the process");
    }
}
