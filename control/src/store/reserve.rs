//! Room kept on the disk for what must still be recorded when it is full: that something was stopped, and that it ended.
//!
//! A file of known size beside the store. While it is there, ordinary commits may use all other room. When there is no
//! more, an essential commit gives the file up and takes its place; ordinary ones are then refused until the
//! file could be made again.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

/// Its size, in bytes. A commit touches some ten pages of 4 KiB and frees as many for the next: this is room for a few
/// thousand events.
pub(super) const RESERVE_BYTES: u64 = 1 << 20;

/// Room kept on the disk.
#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
    is_held: AtomicBool,
}

/// Why the reserve is not there.
#[derive(Debug)]
pub(super) enum Missing {
    /// It has just been made again.
    NoMore,
    /// It still cannot be made.
    Still(io::Error),
}

impl Reserve {
    /// The reserve at `path`, made now if that is possible.
    pub(super) fn new(path: PathBuf) -> Self {
        let reserve = Self { path, is_held: AtomicBool::new(false) };
        if let Err(error) = reserve.make() {
            tracing::warn!(path = %reserve.path.display(), %error, "no room can be set aside on the disk");
        }
        reserve
    }

    /// Whether ordinary commits may go on. Room that is not held is tried to be had now; where the system forbids us to set any aside
    /// (a file of another user's in the way, a limit on the size of files), they go on without.
    pub(super) fn check(&self) -> Result<(), Missing> {
        if self.is_held() {
            return Ok(());
        }
        match self.make() {
            Ok(()) => Err(Missing::NoMore),
            Err(error) if is_forbidden(&error) => {
                tracing::debug!(path = %self.path.display(), %error, "no room can be set aside on the disk");
                Ok(())
            }
            Err(error) => Err(Missing::Still(error)),
        }
    }

    pub(super) fn is_held(&self) -> bool {
        self.is_held.load(Ordering::Acquire)
    }

    /// Gives the room up; false if there was none to give.
    pub(super) fn release(&self) -> bool {
        self.is_held.swap(false, Ordering::AcqRel) && fs::remove_file(&self.path).is_ok()
    }

    fn make(&self) -> io::Result<()> {
        let made = self.fill();
        if made.is_err() {
            // Half a reserve is none, and its room is somebody else's.
            let _ = fs::remove_file(&self.path);
        }
        self.is_held.store(made.is_ok(), Ordering::Release);
        made
    }

    fn fill(&self) -> io::Result<()> {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&self.path)?;
        match fallocate(&file, FallocateFlags::empty(), 0, RESERVE_BYTES) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                // Not zeros: a file system that compresses would keep no room for them.
                let noise: Vec<u8> =
                    (0..RESERVE_BYTES).map(|at| (at.wrapping_mul(0x9e37_79b9) >> 13) as u8).collect();
                file.write_all(&noise)?;
            }
            other => other?,
        }
        file.sync_all()
    }
}

/// Whether an error says nothing about how much room there is.
fn is_forbidden(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, Interrupted, PermissionDenied};
    matches!(error.kind(), PermissionDenied | FileTooLarge | Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_held_given_up_once_and_had_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("reserve");
        let reserve = Reserve::new(path.clone());
        assert_eq!(fs::metadata(&path).unwrap().len(), RESERVE_BYTES);
        assert!(reserve.check().is_ok());
        assert!(reserve.release() && !path.exists());
        assert!(!reserve.release());
        assert!(matches!(reserve.check(), Err(Missing::NoMore)));
        assert!(reserve.check().is_ok() && path.exists());
    }

    #[test]
    fn where_no_room_can_be_had_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::new(dir.path().join("missing/reserve"));
        assert!(!reserve.is_held() && !reserve.release());
        assert!(matches!(reserve.check(), Err(Missing::Still(_))));
    }

    #[test]
    fn a_reserve_that_may_not_be_made_is_no_full_disk() {
        for kind in [io::ErrorKind::PermissionDenied, io::ErrorKind::FileTooLarge] {
            assert!(is_forbidden(&kind.into()));
        }
        assert!(!is_forbidden(&io::ErrorKind::StorageFull.into()));
    }
}
