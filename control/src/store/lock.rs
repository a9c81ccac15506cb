//! One daemon per folder: an advisory lock that the system releases when its holder dies, however it dies.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::StoreError;

/// Holds a folder until it is dropped.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
}

impl StateLock {
    /// Makes `folder` (with these permission bits if new) and locks it. A folder that cannot be written is locked all the same if it
    /// was used before.
    ///
    /// # Errors
    /// [`StoreError::InUse`] if another process holds it, [`StoreError::File`] if it cannot be made or opened.
    pub fn acquire(folder: &Path, mode: u32) -> Result<Self, StoreError> {
        let failed = |action, path: &Path, source| StoreError::File { action, path: path.to_owned(), source };
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(folder)
            .map_err(|source| failed("create the folder", folder, source))?;
        let path = folder.join("lock");
        let writable =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let (mut file, is_writable) = match writable {
            Ok(file) => (file, true),
            Err(refused) => (File::open(&path).map_err(|_| failed("create", &path, refused))?, false),
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut text = String::new();
                let _ = file.read_to_string(&mut text);
                return Err(StoreError::InUse {
                    folder: folder.to_owned(),
                    pid: text.trim().parse().unwrap_or(0),
                });
            }
            Err(errno) => return Err(failed("lock", &path, errno.into())),
        }
        if is_writable {
            // Only a courtesy to whoever is refused: failing to write it is no reason to fail.
            let _ = file.set_len(0);
            let _ = file.rewind();
            let _ = writeln!(file, "{}", std::process::id());
        }
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_told_who_the_first_is() {
        let dir = tempfile::tempdir().unwrap();
        let _first = StateLock::acquire(dir.path(), 0o700).unwrap();
        match StateLock::acquire(dir.path(), 0o700) {
            Err(StoreError::InUse { pid, .. }) => assert_eq!(pid, std::process::id()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_released_folder_can_be_taken_again() {
        let dir = tempfile::tempdir().unwrap();
        drop(StateLock::acquire(&dir.path().join("a/b"), 0o700).unwrap());
        StateLock::acquire(&dir.path().join("a/b"), 0o700).unwrap();
    }
}
