//! Whether the ways of a last-level cache can be set apart: resctrl (Documentation/arch/x86/resctrl.rst in Linux's source).

use std::fmt;
use std::path::Path;

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

use super::text::{mask, number, read};

/// What the kernel offers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum Resctrl {
    /// Nothing: `/proc/filesystems` does not name it. Kernel or processor do not have it.
    #[default]
    Absent,
    /// Something, but it is not mounted on /sys/fs/resctrl, so nobody can say what.
    NotMounted,
    /// It only measures, or sets other things apart than ways of the last-level cache.
    NoCacheWays,
    /// The ways of every last-level cache can be set apart.
    CacheWays {
        /// Into how many ways.
        ways: u32,
        /// The fewest that a group can have.
        ways_min: u32,
        /// How many groups there can be, that of all others included.
        groups_max: u32,
    },
}

impl Resctrl {
    /// That which the files below `root` tell.
    pub(super) fn read(root: &Path) -> Self {
        let known = read(&root.join("proc/filesystems")).unwrap_or_default();
        if !known.lines().any(|line| line.split_ascii_whitespace().last() == Some("resctrl")) {
            return Self::Absent;
        }
        let info = root.join("sys/fs/resctrl/info");
        if !info.is_dir() {
            return Self::NotMounted;
        }
        let file = |name: &str| read(&info.join("L3").join(name));
        let of_l3 = || {
            let ways = file("cbm_mask").and_then(|text| mask(&text))?.count_ones();
            let ways_min = file("min_cbm_bits").and_then(|text| number(&text))?;
            let groups_max = file("num_closids").and_then(|text| number(&text))?;
            (ways > 0 && ways_min <= ways).then_some(Self::CacheWays { ways, ways_min, groups_max })
        };
        of_l3().unwrap_or(Self::NoCacheWays)
    }
}

/// What there is, or why there is nothing.
impl fmt::Display for Resctrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("resctrl: this kernel or processor does not have it"),
            Self::NotMounted => f.write_str("resctrl: not mounted on /sys/fs/resctrl"),
            Self::NoCacheWays => f.write_str("resctrl: it does not set ways of the L3 cache apart"),
            Self::CacheWays { ways, ways_min, groups_max } => {
                write!(
                    f,
                    "resctrl: {ways} ways of each L3 cache, {ways_min} at least, for {groups_max} groups"
                )
            }
        }
    }
}
