//! Claiming disks: an exclusive opening (`O_EXCL` without `O_CREAT`, open(2)) fails while the disk or a partition of it is mounted, swapped to
//! or part of something, and keeps others from any of that while it lasts. Openings that are not exclusive go on as ever.
//!
//! To claim a whole disk is enough: a claim of a partition marks its disk as claimed, and the other way round (`bd_may_claim` in block/bdev.c
//! in Linux's source).

use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, open, unlink};
use rustix::io::Errno;

use super::made::Disk;
use super::number::Number;

/// Disks of which nothing can be mounted or swapped to as long as this lives, but for those that are taken.
#[derive(Debug)]
pub(super) struct Claims {
    held: Vec<OwnedFd>,
    /// The names of those that somebody else has claimed.
    pub(super) taken: Vec<String>,
}

impl Claims {
    /// Claims these; one that cannot be opened at all is left out.
    pub(super) fn of(disks: &[Disk], dev: &Path) -> Self {
        let mut claims = Self { held: Vec::new(), taken: Vec::new() };
        for disk in disks {
            match open_exclusively(disk, dev) {
                Ok(file) => claims.held.push(file),
                Err(Errno::BUSY) => claims.taken.push(disk.name.clone()),
                Err(error) => tracing::warn!(
                    disk = disk.name,
                    %error,
                    "the disk cannot be claimed: a mount in another namespace would not be noticed"
                ),
            }
        }
        claims
    }

    /// Whether a descriptor of this process is one of these.
    pub(super) fn holds(&self, fd: u32) -> bool {
        self.held.iter().any(|held| RawFd::try_from(fd) == Ok(held.as_raw_fd()))
    }
}

fn open_exclusively(disk: &Disk, dev: &Path) -> Result<OwnedFd, Errno> {
    // A drive without a medium is not waited for.
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let node = dev.join(&disk.name);
    if Number::of(&node) == Some(disk.number) {
        return open(&node, flags, Mode::empty());
    }
    // There need not be one here, or not of that name: a node of our own, for a moment.
    let Number { major, minor, .. } = disk.number;
    let node = dev.join(format!(".tombolo-{}-{major}-{minor}", std::process::id()));
    mknodat(CWD, &node, FileType::BlockDevice, Mode::RUSR, disk.number.device())?;
    let opened = open(&node, flags, Mode::empty());
    let _ = unlink(&node);
    opened
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk of this machine that nobody used, claimed: a loop device without a file. `None` if there is none here.
    fn claimed_disk() -> Option<(Disk, Claims)> {
        (0..8).find_map(|minor| {
            let number = Number { is_block: true, major: 7, minor };
            let disk = Disk { name: format!("loop{minor}"), number };
            let claims = Claims::of(std::slice::from_ref(&disk), Path::new("/dev"));
            (!claims.held.is_empty()).then_some((disk, claims))
        })
    }

    #[test]
    fn a_disk_that_is_claimed_is_taken() {
        let Some((disk, claims)) = claimed_disk() else { return };
        assert!(claims.taken.is_empty());
        let fd = u32::try_from(claims.held[0].as_raw_fd()).unwrap();
        assert!(claims.holds(fd) && !claims.holds(fd + 1));
        let others = Claims::of(std::slice::from_ref(&disk), Path::new("/dev"));
        assert_eq!((others.held.len(), others.taken), (0, vec![disk.name]));
    }

    #[test]
    fn a_disk_is_seen_to_be_claimed_without_a_node_of_its_name() {
        let Some((disk, _claims)) = claimed_disk() else { return };
        // Where nodes can be made, and then opened.
        let Ok(dir) = tempfile::tempdir_in("/dev") else { return };
        let disk = Disk { name: "another".into(), ..disk };
        assert_eq!(Claims::of(&[disk], dir.path()).taken, ["another"]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left");
    }

    #[test]
    fn a_disk_that_is_not_there_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let number = Number { is_block: true, major: 259, minor: 1_048_575 };
        let claims = Claims::of(&[Disk { name: "gone".into(), number }], dir.path());
        assert_eq!((claims.held.len(), claims.taken.len()), (0, 0));
    }
}
