//! Opening the store's file: for writing if that is possible, else for reading.

use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use redb::backends::FileBackend;
use redb::{Builder, Database, DatabaseError, ReadOnlyDatabase, StorageError};

use super::StoreError;

/// An open store.
pub(super) enum Db {
    /// Reads and writes.
    Writable(Database),
    /// Reads only.
    ReadOnly {
        /// The file.
        db: ReadOnlyDatabase,
        /// Why it is not writable.
        reason: String,
    },
    /// Neither.
    Closed {
        /// Why.
        reason: String,
    },
}

/// How to open the store, again if need be.
pub(super) struct Opener(Box<dyn Fn() -> Result<Db, StoreError> + Send + Sync>);

impl Opener {
    /// One that tests provide.
    #[cfg(test)]
    pub(super) fn new(open: impl Fn() -> Result<Db, StoreError> + Send + Sync + 'static) -> Self {
        Self(Box::new(open))
    }

    pub(super) fn open(&self) -> Result<Db, StoreError> {
        (self.0)()
    }
}

/// Opens the file at `path`, making it if it is missing.
pub(super) fn opener(path: PathBuf) -> Opener {
    Opener(Box::new(move || open(&path)))
}

fn open(path: &Path) -> Result<Db, StoreError> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    let refused = match file.map(FileBackend::new) {
        Ok(Err(error)) => {
            return Err(StoreError::Unusable { path: path.to_owned(), reason: error.to_string() });
        }
        // redb writes to a file when it opens it, so a full disk may show here first.
        Ok(Ok(backend)) => match Builder::new().set_cache_size(CACHE_BYTES).create_with_backend(backend) {
            Ok(db) => return Ok(Db::Writable(db)),
            Err(DatabaseError::Storage(StorageError::Io(source)))
                if source.kind() != io::ErrorKind::InvalidData =>
            {
                source
            }
            Err(DatabaseError::DatabaseAlreadyOpen) => {
                return Err(StoreError::InUse { folder: path.to_owned(), pid: 0 });
            }
            Err(error) => {
                return Err(StoreError::Unusable { path: path.to_owned(), reason: error.to_string() });
            }
        },
        Err(source) => source,
    };
    match ReadOnlyDatabase::open(path) {
        Ok(db) => Ok(Db::ReadOnly { db, reason: format!("{} cannot be written: {refused}", path.display()) }),
        Err(_) => {
            Err(StoreError::File { action: "open for writing", path: path.to_owned(), source: refused })
        }
    }
}

/// Cache of the store, in bytes. Its default of 1 GiB is for databases; this is a few hundred records.
const CACHE_BYTES: usize = 4 << 20;

impl fmt::Debug for Db {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Writable(_) => "Writable",
            Self::ReadOnly { .. } => "ReadOnly",
            Self::Closed { .. } => "Closed",
        })
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Opener")
    }
}
