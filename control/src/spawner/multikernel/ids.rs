//! What the kernel calls its instances, CPUs and devices: names and numbers that are valid, and never taken for one another.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What kerf accepts; the kernel's own field would hold up to 2047.
pub(super) const INSTANCE_IDS: std::ops::RangeInclusive<u16> = 1..=511;

/// An instance's number: what `reboot(2)` and `kexec_file_load(2)` go by, and its address on the kernel's vsock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u16")]
pub(crate) struct InstanceId(pub(super) u16);

/// The lowest number that we give: what is below means this kernel and its parent elsewhere.
pub(super) const FIRST: u32 = 3;

/// The first number from `least` on that is not taken; when they are used up, the first at all. `least` if there is none: it is refused when it is
/// used.
pub(super) fn free_number(least: u32, taken: &[u32]) -> u32 {
    let last = u32::from(*INSTANCE_IDS.end());
    let mut candidates = (least..=last).chain(FIRST..least.min(last + 1));
    candidates.find(|number| !taken.contains(number)).unwrap_or(least)
}

impl TryFrom<u16> for InstanceId {
    type Error = String;

    fn try_from(id: u16) -> Result<Self, String> {
        if INSTANCE_IDS.contains(&id) {
            return Ok(Self(id));
        }
        let (least, most) = (INSTANCE_IDS.start(), INSTANCE_IDS.end());
        Err(format!("{id} cannot be the number of an instance: those are {least} to {most}"))
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An instance's name in the kernel: a folder of its file system, and part of paths in overlays.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct InstanceName(String);

/// The name that kmorph keeps for the kernel it is about to switch to.
const RESERVED: &str = "successor";

impl InstanceName {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether another program has that name for itself, whoever made the instance.
    pub(super) fn is_reserved(&self) -> bool {
        self.0 == RESERVED
    }
}

impl TryFrom<String> for InstanceName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+' | ',');
        if name.is_empty() || name.len() > 63 || !name.chars().all(is_plain) || name.starts_with('.') {
            return Err(format!(
                "`{name}` cannot be the name of an instance: 1 to 63 letters, digits, or one of - _ . + ,"
            ));
        }
        Ok(Self(name))
    }
}

impl FromStr for InstanceName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::try_from(name.to_owned())
    }
}

impl fmt::Display for InstanceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A CPU by what its hardware calls it (on x86 the APIC id), which is what the kernel's file system goes by. Not the number in `/proc/cpuinfo`'s
/// field `processor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct PhysicalCpu(pub(super) u32);

impl fmt::Display for PhysicalCpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// `physical CPUs 4, 6`.
pub(super) fn listed(cpus: &[PhysicalCpu]) -> String {
    let numbers: Vec<String> = cpus.iter().map(ToString::to_string).collect();
    format!("physical CPUs {}", numbers.join(", "))
}

/// A name that a spawned kernel gives to what it finds in a function, such as a network interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Alias(String);

impl Alias {
    /// The longest that the kernel takes.
    const BYTES_MAX: usize = 31;

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Alias {
    type Err = String;

    /// It becomes the name of a property, and of an interface: what could mean something else there is refused.
    fn from_str(alias: &str) -> Result<Self, String> {
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
        let is_valid = (1..=Self::BYTES_MAX).contains(&alias.len())
            && alias.chars().all(is_plain)
            && alias.starts_with(|c: char| c.is_ascii_lowercase());
        match is_valid {
            true => Ok(Self(alias.to_owned())),
            false => Err(format!(
                "`{alias}` cannot be the name of a device: 1 to {} small letters, digits, - or _, a letter first",
                Self::BYTES_MAX
            )),
        }
    }
}

impl fmt::Display for Alias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices_are_short_and_plain() {
        for bad in ["", "A", "0a", "-a", "a/b", "a b", "a=b", "ä", &"x".repeat(32)] {
            assert!(bad.parse::<Alias>().is_err(), "{bad:?}");
        }
        for good in ["uplink", "nvme-1", "a_0", &"x".repeat(31)] {
            assert_eq!(good.parse::<Alias>().map(|alias| alias.to_string()), Ok(good.to_owned()));
        }
    }

    #[test]
    fn names_that_could_mean_another_path_are_refused() {
        for bad in ["", ".", "..", "a/b", "/", "a b", "a\0b", "ä", &"x".repeat(64)] {
            assert!(bad.parse::<InstanceName>().is_err(), "{bad:?}");
        }
        for good in ["web", "web-1", "a.b", "X_9", "a+b,c"] {
            assert_eq!(good.parse::<InstanceName>().map(|name| name.to_string()), Ok(good.to_owned()));
        }
    }

    #[test]
    fn numbers_that_were_given_back_are_given_again_when_the_others_are_used_up() {
        assert_eq!(free_number(3, &[1, 2]), 3);
        assert_eq!(free_number(3, &[3, 4]), 5);
        assert_eq!(free_number(511, &[511, 3]), 4);
        assert_eq!(free_number(4000, &[3]), 4);
        assert_eq!(free_number(512, &(3..=511).collect::<Vec<_>>()), 512, "there is none");
    }

    #[test]
    fn numbers_of_instances_stay_within_what_every_tool_accepts() {
        assert!(InstanceId::try_from(0).is_err(), "the parent");
        assert!(InstanceId::try_from(1).is_ok());
        assert!(InstanceId::try_from(511).is_ok());
        assert!(InstanceId::try_from(512).is_err());
    }
}
