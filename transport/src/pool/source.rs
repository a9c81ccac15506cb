//! Where a pool is found.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// A file, device or descriptor that holds a pool.
pub enum PoolSource {
    /// A path: a file in /dev/shm or hugetlbfs, `/dev/mmapper`, `/dev/mem`, ...
    Path {
        /// Which.
        path: PathBuf,
        /// Where in it the pool begins, in bytes, a multiple of [`PAGE`](crate::mem::PAGE): on `/dev/mem` its physical address. Devices may
        /// have no other place than 0 (UML's `/dev/mmapper`), or map their beginning whatever is asked for (a dma-buf).
        offset: u64,
        /// Bytes to map. 0: what the file has from there on (devices do not tell, so need it).
        len: u64,
    },
    /// An open descriptor (a memfd, a dma-buf).
    Fd {
        /// Which.
        fd: OwnedFd,
        /// As in [`PoolSource::Path`].
        offset: u64,
        /// As in [`PoolSource::Path`].
        len: u64,
    },
}

impl PoolSource {
    /// The pool that is a whole file.
    pub fn path(path: impl Into<PathBuf>) -> Self {
        Self::Path { path: path.into(), offset: 0, len: 0 }
    }
}

/// Which bytes of what was opened are the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) offset: u64,
    /// 0: all from there on.
    pub(crate) len: u64,
}

impl fmt::Display for PoolSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let offset = match self {
            Self::Path { path, offset, .. } => {
                write!(f, "{}", path.display())?;
                offset
            }
            Self::Fd { offset, .. } => {
                f.write_str("(a descriptor)")?;
                offset
            }
        };
        if *offset == 0 { Ok(()) } else { write!(f, " at {offset:#x}") }
    }
}

impl fmt::Debug for PoolSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path { len, .. } => write!(f, "{self} ({len} bytes)"),
            Self::Fd { fd, len, .. } => write!(f, "{fd:?}: {self} ({len} bytes)"),
        }
    }
}
