//! Writing a file so that a reader sees the old one or the new one, whole. Blocking: runs on a thread for that.

use std::collections::HashSet;
use std::fs::{File, Metadata, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::path::{checked_file, system};
use super::room::room_in;
use crate::api::files::{FileError, Put, PutDone};

/// What is read at a time to hash what a partial file holds already.
const HASH_CHUNK_BYTES: usize = 256 * 1024;
/// Longest key of a partial file.
const KEY_BYTES_MAX: usize = 64;
/// Permission bits a caller may set.
const MODE_MASK: u32 = 0o7777;

/// Targets being written, so that two puts do not mix. Clones share the set.
#[derive(Clone, Debug, Default)]
pub struct PutLocks(Arc<Mutex<HashSet<PathBuf>>>);

struct PutLock {
    locks: PutLocks,
    partial: PathBuf,
}

impl PutLocks {
    fn take(&self, partial: &Path, target: &str) -> Result<PutLock, FileError> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !held.insert(partial.to_owned()) {
            return Err(FileError::Busy { path: target.to_owned() });
        }
        Ok(PutLock { locks: self.clone(), partial: partial.to_owned() })
    }
}

impl Drop for PutLock {
    fn drop(&mut self) {
        self.locks.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.partial);
    }
}

/// A put under way: the partial file and the hash of what it holds.
///
/// Dropped before [`PutFile::finish`], it leaves the partial file for a later put to go on with.
pub struct PutFile {
    request: Put,
    target: PathBuf,
    partial: PathBuf,
    file: File,
    hasher: blake3::Hasher,
    received: u64,
    _lock: PutLock,
}

impl std::fmt::Debug for PutFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PutFile").field("target", &self.target).field("received", &self.received).finish()
    }
}

/// The partial file of a put of `key` to `target`.
///
/// # Errors
/// [`FileError::InvalidPath`].
pub(crate) fn partial_path(target: &Path, key: &str) -> Result<PathBuf, FileError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let name = target.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    if key.is_empty() || key.len() > KEY_BYTES_MAX || !key.chars().all(allowed) {
        let reason = format!("`resume_key` must be 1 to {KEY_BYTES_MAX} letters, digits or `-`");
        return Err(FileError::InvalidPath { path: target.display().to_string(), reason });
    }
    // Long names are cut so that the partial name stays below the 255 bytes of a file name.
    let name: String = name.chars().take(40).collect();
    Ok(target.with_file_name(format!(".{name}.{key}.partial")))
}

impl PutFile {
    /// Opens the partial file and goes to `request.offset`.
    ///
    /// # Errors
    /// [`FileError`]; the target is unchanged.
    pub fn begin(request: Put, locks: &PutLocks) -> Result<Self, FileError> {
        let target = checked_file(&request.path)?;
        let partial = partial_path(&target, &request.resume_key)?;
        let lock = locks.take(&partial, &request.path)?;
        check_target(&target, request.replace)?;
        check_room(&target, &request)?;
        if let Some(parent) = target.parent().filter(|_| request.parents) {
            std::fs::create_dir_all(parent).map_err(|e| system("making the directory", parent, &e))?;
        }
        let mut file = open_partial(&partial).map_err(|e| system("writing", &partial, &e))?;
        // The set of locks knows paths: the same file may be meant by two, or by another agent. File systems without
        // such locks have to do without.
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
            return Err(FileError::Busy { path: request.path });
        }
        let there = file.metadata().map_err(|e| system("looking at", &partial, &e))?.len();
        if request.offset > there || request.offset > request.len {
            return Err(FileError::WrongOffset { path: request.path, asked: request.offset, there });
        }
        let hasher = rewind(&mut file, request.offset).map_err(|e| system("reading", &partial, &e))?;
        let received = request.offset;
        Ok(Self { request, target, partial, file, hasher, received, _lock: lock })
    }

    /// Appends a piece.
    ///
    /// # Errors
    /// [`FileError::TooLong`], or what the system said (a full device, say).
    pub fn write(&mut self, piece: &[u8]) -> Result<(), FileError> {
        if self.received + piece.len() as u64 > self.request.len {
            self.remove_partial();
            return Err(FileError::TooLong { path: self.request.path.clone(), announced: self.request.len });
        }
        self.file.write_all(piece).map_err(|e| {
            if e.kind() == io::ErrorKind::StorageFull {
                // What was written is what fills the device.
                self.remove_partial();
            }
            system("writing", &self.target, &e)
        })?;
        self.hasher.update(piece);
        self.received += piece.len() as u64;
        Ok(())
    }

    /// Checks the whole and puts it in place; once it returns, the file is on its device under its name.
    ///
    /// # Errors
    /// [`FileError::Incomplete`] (the partial file stays), [`FileError::ChecksumMismatch`] (it is removed),
    /// [`FileError::Exists`], or what the system said; the target is unchanged unless the error says otherwise.
    pub fn finish(self) -> Result<PutDone, FileError> {
        let (received, announced) = (self.received, self.request.len);
        if received < announced {
            return Err(FileError::Incomplete { path: self.request.path, received, announced });
        }
        if *self.hasher.finalize().as_bytes() != self.request.blake3 {
            self.remove_partial();
            return Err(FileError::ChecksumMismatch { path: self.request.path });
        }
        self.place().map_err(|e| system("replacing", &self.target, &e))?;
        // The new name is on the device once its directory is.
        let written = self.target.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all());
        written.map_err(|e| FileError::System {
            attempt: "the file is in place, but writing its directory to the device, of".to_owned(),
            path: self.request.path.clone(),
            reason: e.to_string(),
        })?;
        Ok(PutDone { len: received })
    }

    fn place(&self) -> io::Result<()> {
        self.file.set_permissions(Permissions::from_mode(self.request.mode & MODE_MASK))?;
        self.file.sync_all()?;
        // Whoever may write to the directory may have put another file there meanwhile.
        let (ours, there) = (self.file.metadata()?, std::fs::symlink_metadata(&self.partial)?);
        if (ours.dev(), ours.ino()) != (there.dev(), there.ino()) {
            return Err(io::Error::other("somebody else has replaced the partial file"));
        }
        if self.request.replace {
            return std::fs::rename(&self.partial, &self.target);
        }
        let flags = rustix::fs::RenameFlags::NOREPLACE;
        Ok(rustix::fs::renameat_with(rustix::fs::CWD, &self.partial, rustix::fs::CWD, &self.target, flags)?)
    }

    fn remove_partial(&self) {
        let _ = std::fs::remove_file(&self.partial);
    }
}

fn check_target(target: &Path, replace: bool) -> Result<(), FileError> {
    let path = target.display().to_string();
    match std::fs::symlink_metadata(target) {
        Ok(meta) if meta.is_dir() => {
            Err(FileError::WrongKind { path, found: "a directory".to_owned(), wanted: "a file".to_owned() })
        }
        Ok(_) if !replace => Err(FileError::Exists { path }),
        _ => Ok(()),
    }
}

/// Opens a partial file, or makes it.
///
/// In a directory that others may write to, anything may lie in wait under its name: a link, a pipe, another name of a
/// precious file. What is there is gone on with only if it is a plain file of ours without other names, and replaced
/// otherwise.
fn open_partial(partial: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let mut options = File::options();
    options.read(true).write(true).custom_flags(flags.bits() as i32);
    match options.open(partial) {
        Ok(file) if is_ours(&file.metadata()?) => return Ok(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Ok(_) | Err(_) => std::fs::remove_file(partial)?,
    }
    options.create_new(true).mode(0o600).open(partial)
}

fn is_ours(meta: &Metadata) -> bool {
    meta.is_file() && meta.nlink() == 1 && meta.uid() == rustix::process::geteuid().as_raw()
}

/// How much of a put is there.
///
/// # Errors
/// What the system said.
pub(crate) fn partial_len(partial: &Path) -> Result<u64, FileError> {
    match std::fs::symlink_metadata(partial) {
        Ok(meta) => Ok(if is_ours(&meta) { meta.len() } else { 0 }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(system("looking at", partial, &error)),
    }
}

fn check_room(target: &Path, request: &Put) -> Result<(), FileError> {
    // Directories that are still to be made will be where their nearest ancestor is.
    let mut ancestors = target.ancestors().skip(1);
    let parent = if request.parents { ancestors.find(|dir| dir.is_dir()) } else { ancestors.next() };
    let parent = parent.unwrap_or_else(|| Path::new("/"));
    let room = room_in(parent).map_err(|e| system("looking at the file system of", parent, &e))?;
    let needed = request.len.saturating_sub(request.offset);
    if needed > room.available {
        let (path, place) = (request.path.clone(), room.place.to_owned());
        return Err(FileError::NoSpace { path, needed, available: room.available, place });
    }
    Ok(())
}

/// Cuts `file` to `len`, hashes it, and leaves the position at its end.
fn rewind(file: &mut File, len: u64) -> io::Result<blake3::Hasher> {
    file.set_len(len)?;
    file.seek(SeekFrom::Start(0))?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; HASH_CHUNK_BYTES.min(len as usize)];
    let mut rest = len as usize;
    while rest > 0 {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        hasher.update(&buffer[..read]);
        rest -= read;
    }
    Ok(hasher)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bed {
        dir: tempfile::TempDir,
        locks: PutLocks,
    }

    impl Bed {
        fn new() -> Self {
            Self { dir: tempfile::tempdir().unwrap(), locks: PutLocks::default() }
        }

        fn request(&self, content: &[u8], offset: u64) -> Put {
            Put {
                path: self.target().display().to_string(),
                mode: 0o640,
                len: content.len() as u64,
                blake3: *blake3::hash(content).as_bytes(),
                resume_key: "key".into(),
                offset,
                replace: true,
                parents: false,
            }
        }

        fn target(&self) -> PathBuf {
            self.dir.path().join("file")
        }

        fn put(&self, request: Put, piece: &[u8]) -> Result<PutDone, FileError> {
            let mut put = PutFile::begin(request, &self.locks)?;
            put.write(piece)?;
            put.finish()
        }

        fn files(&self) -> usize {
            std::fs::read_dir(self.dir.path()).unwrap().count()
        }
    }

    #[test]
    fn a_whole_file_takes_its_place_with_its_mode() {
        let bed = Bed::new();
        std::fs::write(bed.target(), "old").unwrap();
        bed.put(bed.request(b"new content", 0), b"new content").unwrap();
        assert_eq!(std::fs::read(bed.target()).unwrap(), b"new content");
        assert_eq!(std::fs::metadata(bed.target()).unwrap().permissions().mode() & 0o7777, 0o640);
        assert_eq!(bed.files(), 1);
    }

    #[test]
    fn a_wrong_checksum_replaces_nothing_and_leaves_nothing() {
        let bed = Bed::new();
        std::fs::write(bed.target(), "old").unwrap();
        let error = bed.put(bed.request(b"good", 0), b"evil").unwrap_err();
        assert!(matches!(error, FileError::ChecksumMismatch { .. }));
        assert_eq!(std::fs::read(bed.target()).unwrap(), b"old");
        assert_eq!(bed.files(), 1);
    }

    #[test]
    fn an_interrupted_put_goes_on_where_it_stopped() {
        let bed = Bed::new();
        let error = bed.put(bed.request(b"hello world", 0), b"hello ").unwrap_err();
        assert!(matches!(error, FileError::Incomplete { received: 6, announced: 11, .. }));
        let partial = partial_path(&bed.target(), "key").unwrap();
        assert_eq!(std::fs::metadata(partial).unwrap().len(), 6);
        bed.put(bed.request(b"hello world", 6), b"world").unwrap();
        assert_eq!(std::fs::read(bed.target()).unwrap(), b"hello world");
        assert_eq!(bed.files(), 1);
    }

    #[test]
    fn an_offset_beyond_what_is_there_is_refused_with_what_is_there() {
        let bed = Bed::new();
        let _ = bed.put(bed.request(b"hello world", 0), b"hello ");
        let error = bed.put(bed.request(b"hello world", 7), b"orld").unwrap_err();
        assert!(matches!(error, FileError::WrongOffset { asked: 7, there: 6, .. }));
    }

    #[test]
    fn more_than_announced_is_refused() {
        let bed = Bed::new();
        let error = bed.put(bed.request(b"four", 0), b"fives").unwrap_err();
        assert!(matches!(error, FileError::TooLong { .. }));
        assert_eq!(bed.files(), 0);
    }

    #[test]
    fn a_file_that_cannot_fit_is_refused_before_its_first_byte() {
        let bed = Bed::new();
        let request = Put { len: u64::MAX / 2, ..bed.request(b"", 0) };
        let error = PutFile::begin(request, &bed.locks).unwrap_err();
        assert!(matches!(error, FileError::NoSpace { .. }), "{error}");
        assert_eq!(bed.files(), 0);
    }

    #[test]
    fn two_puts_of_one_file_do_not_mix() {
        let bed = Bed::new();
        let first = PutFile::begin(bed.request(b"x", 0), &bed.locks).unwrap();
        let second = PutFile::begin(bed.request(b"x", 0), &bed.locks);
        assert!(matches!(second, Err(FileError::Busy { .. })));
        drop(first);
        assert!(PutFile::begin(bed.request(b"x", 0), &bed.locks).is_ok());
    }

    #[test]
    fn what_may_not_be_replaced_is_left_alone() {
        let bed = Bed::new();
        std::fs::write(bed.target(), "old").unwrap();
        let request = Put { replace: false, ..bed.request(b"new", 0) };
        assert!(matches!(bed.put(request, b"new"), Err(FileError::Exists { .. })));
    }

    #[test]
    fn what_lies_in_wait_under_the_partial_name_is_neither_followed_nor_written_to() {
        let bed = Bed::new();
        let precious = bed.dir.path().join("precious");
        let partial = partial_path(&bed.target(), "key").unwrap();
        let traps: [&dyn Fn() -> io::Result<()>; 3] = [
            &|| std::os::unix::fs::symlink(&precious, &partial),
            &|| std::fs::hard_link(&precious, &partial),
            &|| {
                let fifo = rustix::fs::FileType::Fifo;
                Ok(rustix::fs::mknodat(rustix::fs::CWD, &partial, fifo, rustix::fs::Mode::RWXU, 0)?)
            },
        ];
        for trap in traps {
            std::fs::write(&precious, "precious").unwrap();
            trap().unwrap();
            assert_eq!(partial_len(&partial).unwrap(), 0);
            bed.put(bed.request(b"new", 0), b"new").unwrap();
            assert_eq!(std::fs::read(bed.target()).unwrap(), b"new");
            assert_eq!(std::fs::read(&precious).unwrap(), b"precious");
            assert!(std::fs::symlink_metadata(&partial).is_err());
        }
    }

    #[test]
    fn a_directory_under_the_partial_name_is_an_error() {
        let bed = Bed::new();
        std::fs::create_dir(partial_path(&bed.target(), "key").unwrap()).unwrap();
        assert!(bed.put(bed.request(b"new", 0), b"new").is_err());
        assert!(!bed.target().exists());
    }

    #[test]
    fn one_file_by_two_paths_is_one_file() {
        let bed = Bed::new();
        std::fs::create_dir(bed.dir.path().join("real")).unwrap();
        std::os::unix::fs::symlink("real", bed.dir.path().join("link")).unwrap();
        let path = |dir: &str| bed.dir.path().join(dir).join("file").display().to_string();
        let first = Put { path: path("real"), ..bed.request(b"first", 0) };
        let first = PutFile::begin(first, &bed.locks).unwrap();
        let second = Put { path: path("link"), ..bed.request(b"second", 0) };
        assert!(matches!(PutFile::begin(second.clone(), &bed.locks), Err(FileError::Busy { .. })));
        drop(first);
        bed.put(second, b"second").unwrap();
    }

    #[test]
    fn a_partial_file_that_was_exchanged_is_not_put_in_place() {
        let bed = Bed::new();
        let mut put = PutFile::begin(bed.request(b"good", 0), &bed.locks).unwrap();
        put.write(b"good").unwrap();
        let partial = partial_path(&bed.target(), "key").unwrap();
        std::fs::remove_file(&partial).unwrap();
        std::fs::write(&partial, "evil").unwrap();
        assert!(put.finish().unwrap_err().to_string().contains("somebody else"));
        assert!(!bed.target().exists());
    }

    #[test]
    fn a_put_that_is_refused_for_want_of_room_makes_no_directories() {
        let bed = Bed::new();
        let path = bed.dir.path().join("a/b/file").display().to_string();
        let request = Put { path, len: u64::MAX / 2, parents: true, ..bed.request(b"", 0) };
        let error = PutFile::begin(request.clone(), &bed.locks).unwrap_err();
        assert!(matches!(error, FileError::NoSpace { .. }), "{error}");
        assert_eq!(bed.files(), 0);
        bed.put(Put { len: 0, ..request }, b"").unwrap();
    }

    #[test]
    fn a_link_is_replaced_not_followed() {
        let bed = Bed::new();
        let pointed = bed.dir.path().join("pointed");
        std::fs::write(&pointed, "old").unwrap();
        std::os::unix::fs::symlink(&pointed, bed.target()).unwrap();
        bed.put(bed.request(b"new", 0), b"new").unwrap();
        assert!(std::fs::symlink_metadata(bed.target()).unwrap().is_file());
        assert_eq!(std::fs::read(&pointed).unwrap(), b"old");
    }
}
