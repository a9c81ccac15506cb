//! Versions of QEMU, by which it is told what one can do.

use std::fmt;

use serde_json::Value;

/// Major, minor, micro.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(pub(super) u32, pub(super) u32, pub(super) u32);

impl Version {
    /// Reads what `--version` says: `QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)`.
    pub(super) fn said(text: &str) -> Option<Self> {
        let words = text.strip_prefix("QEMU emulator version ")?;
        let mut numbers = words.split([' ', '(']).next()?.split('.').map(str::parse);
        let mut next = || numbers.next()?.ok();
        Some(Self(next()?, next()?, next()?))
    }

    /// Reads what a monitor answers to `query-version`.
    pub(super) fn of(answer: &Value) -> Option<Self> {
        let number = |name: &str| u32::try_from(answer["qemu"][name].as_u64()?).ok();
        Some(Self(number("major")?, number("minor")?, number("micro")?))
    }

    /// Whether it has a mending that came with these versions, of which the last is that of the main line and the others are of older ones:
    /// it is newer than the last, or of the line of an earlier one and not older.
    pub(super) fn has_fix(self, since: [Self; 3]) -> bool {
        let is_of_line = |fixed: &Self| (self.0, self.1) == (fixed.0, fixed.1) && self >= *fixed;
        self >= since[2] || since.iter().any(is_of_line)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(major, minor, micro) = self;
        write!(f, "{major}.{minor}.{micro}")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn versions_are_read_from_program_and_monitor() {
        assert_eq!(
            Version::said("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)"),
            Some(Version(7, 2, 22))
        );
        assert_eq!(Version::said("QEMU emulator version 10.1.0"), Some(Version(10, 1, 0)));
        for none in [
            "",
            "QEMU 7.2.1",
            "QEMU emulator version",
            "QEMU emulator version 7.2",
            "QEMU emulator version a.b.c",
        ] {
            assert_eq!(Version::said(none), None, "{none}");
        }
        let answer = json!({ "qemu": { "micro": 22, "minor": 2, "major": 7 }, "package": "" });
        assert_eq!(Version::of(&answer), Some(Version(7, 2, 22)));
        assert_eq!(Version::of(&json!({ "qemu": { "major": -1 } })), None);
    }

    #[test]
    fn mending_is_in_its_own_lines_and_in_all_later_ones() {
        let since = [Version(10, 0, 5), Version(10, 1, 1), Version(10, 2, 0)];
        for (version, has) in [
            (Version(10, 0, 5), true),
            (Version(10, 0, 9), true),
            (Version(10, 0, 4), false),
            (Version(10, 1, 0), false),
            (Version(10, 1, 3), true),
            (Version(10, 2, 0), true),
            (Version(9, 9, 9), false),
            (Version(11, 0, 0), true),
        ] {
            assert_eq!(version.has_fix(since), has, "{version}");
        }
    }
}
