//! Reading files and directories. Blocking: runs on a thread for that.

use std::fs::{File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::path::{checked, checked_file, system};
use crate::api::files::{FileError, FileInfo, FileKind, GetDone};

/// One piece on its way: large enough that its cost is in the bytes.
pub(crate) const CHUNK_BYTES: usize = 256 * 1024;

/// Most entries of a listing, which is sorted, hence held whole: about 10 MiB.
pub(crate) const ENTRIES_MAX: usize = 65_536;

/// Reads a file from `offset`, giving out each piece; `deliver` says `false` when nobody wants more.
///
/// Returns `None` if nobody did.
///
/// # Errors
/// [`FileError`]; a file that becomes shorter meanwhile is given out as far as it goes.
pub(crate) fn read_file(
    path: &str,
    offset: u64,
    mut deliver: impl FnMut(Vec<u8>) -> bool,
) -> Result<Option<GetDone>, FileError> {
    let target = checked_file(path)?;
    let (mut file, meta) = open_regular(&target)?;
    if offset > meta.len() {
        return Err(FileError::WrongOffset { path: path.to_owned(), asked: offset, there: meta.len() });
    }
    let fail = |e: io::Error| system("reading", &target, &e);
    let mut hasher = blake3::Hasher::new();
    let mut head = (&mut file).take(offset);
    io::copy(&mut head, &mut hasher).map_err(fail)?;
    file.seek(SeekFrom::Start(offset)).map_err(fail)?;
    let mut len = offset;
    loop {
        let mut piece = Vec::with_capacity(CHUNK_BYTES);
        let read = (&mut file).take(CHUNK_BYTES as u64).read_to_end(&mut piece).map_err(fail)?;
        if read == 0 {
            let blake3 = *hasher.finalize().as_bytes();
            return Ok(Some(GetDone { len, blake3, mode: meta.mode() & 0o7777 }));
        }
        len += read as u64;
        hasher.update(&piece);
        if !deliver(piece) {
            return Ok(None);
        }
    }
}

/// The checksum of a file.
///
/// # Errors
/// [`FileError`].
pub(crate) fn checksum(path: &str) -> Result<GetDone, FileError> {
    let target = checked_file(path)?;
    let (mut file, meta) = open_regular(&target)?;
    let mut hasher = blake3::Hasher::new();
    let len = io::copy(&mut file, &mut hasher).map_err(|e| system("reading", &target, &e))?;
    Ok(GetDone { len, blake3: *hasher.finalize().as_bytes(), mode: meta.mode() & 0o7777 })
}

/// What there is at a path.
///
/// # Errors
/// [`FileError`].
pub(crate) fn stat(path: &str) -> Result<FileInfo, FileError> {
    let target = checked(path)?;
    let meta = std::fs::symlink_metadata(&target).map_err(|e| system("looking at", &target, &e))?;
    Ok(info(path.to_owned(), &target, &meta))
}

/// What is in a directory, by name. Entries that vanish meanwhile are left out.
///
/// # Errors
/// [`FileError`]; [`FileError::System`] also for a directory of more than [`ENTRIES_MAX`] entries.
pub(crate) fn list(path: &str) -> Result<Vec<FileInfo>, FileError> {
    let target = checked(path)?;
    let fail = |e: &io::Error| system("listing", &target, e);
    let mut infos = Vec::new();
    for entry in std::fs::read_dir(&target).map_err(|e| fail(&e))? {
        let entry = entry.map_err(|e| fail(&e))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        match entry.metadata() {
            Ok(meta) => infos.push(info(name, &entry.path(), &meta)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(system("looking at", &entry.path(), &error)),
        }
        if infos.len() > ENTRIES_MAX {
            return Err(fail(&io::Error::other(format!("it holds more than {ENTRIES_MAX} entries"))));
        }
    }
    infos.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(infos)
}

/// Makes a directory, with its parents.
///
/// # Errors
/// [`FileError`].
pub(crate) fn make_directory(path: &str, mode: u32) -> Result<(), FileError> {
    use std::os::unix::fs::DirBuilderExt;
    let target = checked(path)?;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(mode & 0o7777)
        .create(&target)
        .map_err(|e| system("making the directory", &target, &e))
}

/// Removes a file, link or empty directory.
///
/// # Errors
/// [`FileError`].
pub(crate) fn remove(path: &str) -> Result<(), FileError> {
    let target = checked_file(path)?;
    let meta = std::fs::symlink_metadata(&target).map_err(|e| system("removing", &target, &e))?;
    let removed = if meta.is_dir() { std::fs::remove_dir(&target) } else { std::fs::remove_file(&target) };
    removed.map_err(|e| system("removing", &target, &e))
}

/// Opens without ever blocking on a pipe or device, and refuses what is no regular file.
fn open_regular(target: &Path) -> Result<(File, Metadata), FileError> {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = File::options()
        .read(true)
        .custom_flags(flags)
        .open(target)
        .map_err(|e| system("opening", target, &e))?;
    let meta = file.metadata().map_err(|e| system("looking at", target, &e))?;
    if !meta.is_file() {
        let found = if meta.is_dir() { "a directory" } else { "a device, pipe or socket" };
        let path = target.display().to_string();
        return Err(FileError::WrongKind { path, found: found.to_owned(), wanted: "a file".to_owned() });
    }
    Ok((file, meta))
}

fn info(name: String, path: &Path, meta: &Metadata) -> FileInfo {
    let kind = match meta.file_type() {
        kind if kind.is_file() => FileKind::File,
        kind if kind.is_dir() => FileKind::Directory,
        kind if kind.is_symlink() => FileKind::Link,
        _ => FileKind::Other,
    };
    let link_target = (kind == FileKind::Link)
        .then(|| std::fs::read_link(path).ok().map(|target| target.to_string_lossy().into_owned()))
        .flatten();
    FileInfo {
        name,
        kind,
        len: meta.len(),
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        modified_ms: meta.mtime() * 1000 + meta.mtime_nsec() / 1_000_000,
        link_target,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &[u8]) -> (tempfile::TempDir, String) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, content).unwrap();
        let path = path.display().to_string();
        (dir, path)
    }

    #[test]
    fn a_file_is_read_from_an_offset_with_the_checksum_of_the_whole() {
        let content = vec![7; CHUNK_BYTES + 10];
        let (_dir, path) = file(&content);
        for offset in [0, 5, CHUNK_BYTES as u64 + 10] {
            let mut got = Vec::new();
            let done = read_file(&path, offset, |piece| {
                got.extend(piece);
                true
            });
            let done = done.unwrap().unwrap();
            assert_eq!(got, content[offset as usize..]);
            assert_eq!((done.len, done.blake3), (content.len() as u64, *blake3::hash(&content).as_bytes()));
        }
        assert_eq!(checksum(&path).unwrap().blake3, *blake3::hash(&content).as_bytes());
    }

    #[test]
    fn reading_stops_when_nobody_wants_more() {
        let (_dir, path) = file(b"abc");
        assert_eq!(read_file(&path, 0, |_| false).unwrap(), None);
    }

    #[test]
    fn what_is_no_file_is_refused_without_blocking() {
        let (dir, path) = file(b"abc");
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
            .unwrap();
        let error = checksum(&fifo.display().to_string()).unwrap_err();
        assert!(matches!(error, FileError::WrongKind { .. }), "{error}");
        assert!(matches!(checksum("/no/such/file"), Err(FileError::NotFound { .. })));
        assert!(matches!(read_file(&path, 4, |_| true), Err(FileError::WrongOffset { there: 3, .. })));
    }

    #[test]
    fn a_listing_is_sorted_and_tells_links() {
        let (dir, _path) = file(b"abc");
        std::os::unix::fs::symlink("file", dir.path().join("a-link")).unwrap();
        let root = dir.path().display().to_string();
        make_directory(&format!("{root}/sub/deep"), 0o755).unwrap();
        let names: Vec<_> = list(&root).unwrap().into_iter().map(|info| (info.name, info.kind)).collect();
        let expected = [("a-link", FileKind::Link), ("file", FileKind::File), ("sub", FileKind::Directory)];
        assert_eq!(names, expected.map(|(name, kind)| (name.to_owned(), kind)));
        assert_eq!(stat(&format!("{root}/a-link")).unwrap().link_target.as_deref(), Some("file"));
        remove(&format!("{root}/sub/deep")).unwrap();
        assert!(matches!(remove(&format!("{root}/sub/deep")), Err(FileError::NotFound { .. })));
    }
}
