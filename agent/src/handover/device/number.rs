//! Numbers of devices: by them a node is told to be of a device, whatever its name and wherever it is.

use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dev, FileType, StatxFlags, makedev, statx};

/// The number of a device. Disks and character devices are numbered apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Number {
    pub(super) is_block: bool,
    pub(super) major: u32,
    pub(super) minor: u32,
}

impl Number {
    /// From what sysfs and mountinfo print, such as `8:1`.
    pub(super) fn parse(text: &str, is_block: bool) -> Option<Self> {
        let (major, minor) = text.trim().split_once(':')?;
        Some(Self { is_block, major: major.parse().ok()?, minor: minor.parse().ok()? })
    }

    /// Of the device that a path leads to, if it is one.
    pub(super) fn of(path: &Path) -> Option<Self> {
        // The path may lead to a file whose server does not answer. What is asked for here the kernel knows by itself: statx(2) fills in
        // mode and device without being asked to, and asks nobody for anything else.
        let stat = statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::empty()).ok()?;
        let is_block = match FileType::from_raw_mode(stat.stx_mode.into()) {
            FileType::BlockDevice => true,
            FileType::CharacterDevice => false,
            _ => return None,
        };
        Some(Self { is_block, major: stat.stx_rdev_major, minor: stat.stx_rdev_minor })
    }

    pub(super) fn device(self) -> Dev {
        makedev(self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_known_by_its_number_and_a_file_is_none() {
        let null = Number::parse("1:3\n", false).unwrap();
        assert_eq!(Number::of(Path::new("/dev/null")), Some(null));
        assert_ne!(Number::parse("1:3", true), Some(null));
        assert_eq!(Number::of(Path::new("/proc/self/status")), None);
        assert_eq!(Number::of(Path::new("/no/such/file")), None);
        for text in ["", "1", "1:", "a:b", "1:3:5"] {
            assert_eq!(Number::parse(text, true), None, "{text}");
        }
    }
}
