//! Where a pool is found.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// A file, device or descriptor that holds a pool, mapped from offset 0.
pub enum PoolSource {
    /// A path: a file in /dev/shm or hugetlbfs, `/dev/mmapper`, ...
    Path {
        /// Which.
        path: PathBuf,
        /// Bytes to map. 0: the length of the file (devices have none, so need it).
        len: u64,
    },
    /// An open descriptor (a memfd).
    Fd {
        /// Which.
        fd: OwnedFd,
        /// Bytes to map. 0: the length of the file.
        len: u64,
    },
}

impl PoolSource {
    /// The pool in a file, its length that of the file.
    pub fn path(path: impl Into<PathBuf>) -> Self {
        Self::Path { path: path.into(), len: 0 }
    }
}

impl fmt::Display for PoolSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path { path, .. } => write!(f, "{}", path.display()),
            Self::Fd { .. } => f.write_str("(a descriptor)"),
        }
    }
}

impl fmt::Debug for PoolSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path { path, len } => write!(f, "{} ({len} bytes)", path.display()),
            Self::Fd { fd, len } => write!(f, "{fd:?} ({len} bytes)"),
        }
    }
}
