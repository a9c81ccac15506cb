//! Small file habits shared by the keeper and the spawners.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// The longest path a Unix socket address can hold, without its terminating zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Writes a file (mode 0600) so that a reader sees either nothing, the old content or all of the new, even after a crash.
pub(crate) fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

/// Room for a small file that is written later: it then cannot fail for want of room.
#[derive(Debug)]
pub(crate) struct Room {
    path: PathBuf,
    file: Option<File>,
}

impl Room {
    /// What fits, in bytes: one block of most disks.
    const BYTES: usize = 4096;

    /// Takes room at `path`. Where there is none, the file is written later like any other.
    pub(crate) fn take(path: &Path) -> Self {
        let take = || {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
            file.write_all(&[b' '; Self::BYTES])?;
            file.sync_all()?;
            Ok::<_, io::Error>(file)
        };
        Self { path: path.to_owned(), file: take().ok() }
    }

    /// Makes it the file `target` with this content and blanks behind, as [`write_atomically`] would.
    pub(crate) fn use_for(self, target: &Path, content: &[u8]) -> io::Result<()> {
        let Self { path, file } = self;
        let Some(file) = file.filter(|_| content.len() <= Self::BYTES) else {
            return write_atomically(target, content);
        };
        std::os::unix::fs::FileExt::write_all_at(&file, content, 0)?;
        file.sync_all()?;
        fs::rename(path, target)
    }
}

/// Removes files and folders; those that are not there are no error.
pub(crate) fn remove_all(paths: &[PathBuf]) -> io::Result<()> {
    for path in paths {
        let result = match fs::symlink_metadata(path) {
            Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
            Ok(_) => fs::remove_file(path),
            Err(error) => Err(error),
        };
        match result {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// A path for the socket `name` in `dir` that fits a socket address, however deep `dir` is.
///
/// The returned folder, if any, must stay open while the path is used.
pub(crate) fn unix_address(dir: &Path, name: &str) -> io::Result<(PathBuf, Option<File>)> {
    let path = dir.join(name);
    if path.as_os_str().len() <= SOCKET_PATH_BYTES_MAX {
        return Ok((path, None));
    }
    let dir = File::open(dir)?;
    Ok((PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name), Some(dir)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn socket_in_a_deep_folder_can_be_reached() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("d".repeat(90)).join("e".repeat(90));
        fs::create_dir_all(&deep).unwrap();
        let (path, _dir) = unix_address(&deep, "s").unwrap();
        let _listener = UnixListener::bind(&path).unwrap();
        let (path, _dir) = unix_address(&deep, "s").unwrap();
        UnixStream::connect(path).unwrap();
    }

    #[test]
    fn room_taken_early_becomes_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let (path, target) = (dir.path().join("room"), dir.path().join("target"));
        let room = Room::take(&path);
        assert_eq!(fs::metadata(&path).unwrap().len(), Room::BYTES as u64);
        room.use_for(&target, b"[1]\n").unwrap();
        assert_eq!(serde_json::from_slice::<Vec<u8>>(&fs::read(&target).unwrap()).unwrap(), [1]);
        assert!(!path.exists());
        Room::take(&dir.path().join("no/such/folder")).use_for(&target, b"[2]").unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"[2]");
    }

    #[test]
    fn removing_what_is_not_there_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        remove_all(&[dir.path().join("a"), dir.path().join("nothing")]).unwrap();
        assert!(!dir.path().join("a").exists());
    }
}
