//! What this host's kernel tells of its PCI functions: whether one can be given to another kernel, and what must be known of it then.
//!
//! The kernel that gives a function away neither takes it from the host's driver nor resets it, nor looks who uses it. So that is looked at here, before
//! anything is asked of it, and again before a spawned kernel gets it. Whether sysfs goes on telling of a function once it is in the pool is not
//! known: where it does not, there is nothing here that drives it, and it counts as one without IOMMU and without reset.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use tombolo_handover::PciAddress;

use super::Settings;

/// Where the host's kernel tells of functions, and of what is mounted.
#[derive(Clone, Debug)]
pub(super) struct HostPci {
    /// Normally `/sys/bus/pci`.
    pci: PathBuf,
    mountinfo: PathBuf,
    swaps: PathBuf,
}

/// What an operator has said may be, although it is not safe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Allowed {
    /// That nothing keeps a function to the memory of the kernel that has it.
    pub(super) no_iommu: bool,
    /// That a function goes from kernel to kernel as it was left.
    pub(super) no_reset: bool,
}

/// What is known of a function besides its address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Traits {
    /// What the IOMMU cannot tell apart is in one group.
    pub(super) iommu_group: Option<u32>,
    pub(super) can_reset: bool,
}

/// Why a function cannot be given to another kernel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unfit {
    #[error("this host has no PCI function {function} (there is no {})", path.display())]
    Absent { function: PciAddress, path: PathBuf },
    #[error("{function} is a bridge: it stays with the host; name what is behind it")]
    Bridge { function: PciAddress },
    #[error(
        "{function} is a virtual function, and kernels are given whole ones only: name the one that it is part of, once that has no virtual ones (`echo 0 > sriov_numvfs`)"
    )]
    Virtual { function: PciAddress },
    #[error(
        "{function} has {count} virtual functions in use: give those up first (`echo 0 > {}`)", path.display()
    )]
    HasVirtual { function: PciAddress, count: String, path: PathBuf },
    #[error("{function} is in use here: {uses}. It stays with the host as long as that is so")]
    InUse { function: PciAddress, uses: String },
    #[error(
        "{function} is driven here, by `{driver}`, and this kernel does not take it from its driver: do that first (`echo {function} > {}`)",
        unbind.display()
    )]
    Driven { function: PciAddress, driver: String, unbind: PathBuf },
    #[error(
        "{function} has no IOMMU, so that a kernel that has it could write to all memory of this machine by it: switch it on in the firmware, and boot with intel_iommu=on or amd_iommu=on; or say that this may be (--allow-no-iommu)"
    )]
    NoIommu { function: PciAddress },
    #[error(
        "the IOMMU does not tell {function} apart from {others}, of its group {group}: they go to the pool, and back, together; name them as well"
    )]
    SharedGroup { function: PciAddress, group: u32, others: String },
    #[error(
        "{function} cannot be reset, so that the next kernel gets it as the last one left it, and it may go on writing to the memory of that: leave it here, or say that this may be (--allow-no-reset)"
    )]
    NoReset { function: PciAddress },
    #[error("{function} was not reset, which it is before another kernel gets it: {reason}")]
    NotReset { function: PciAddress, reason: String },
    #[error("{} cannot be read: {reason}", path.display())]
    Unreadable { path: PathBuf, reason: String },
}

/// The base class of bridges, as the first byte of a class.
const BRIDGE: &str = "06";
/// Deeper than folders of any function are: a disk behind a row of USB hubs or SAS expanders is at fifteen.
const DEPTH_MAX: usize = 40;
/// More folders than any function has.
const FOLDERS_MAX: usize = 16 << 10;

impl HostPci {
    pub(super) fn of(settings: &Settings) -> Self {
        Self {
            mountinfo: "/proc/self/mountinfo".into(),
            swaps: "/proc/swaps".into(),
            pci: settings.pci.clone(),
        }
    }

    #[cfg(test)]
    fn at(root: &Path) -> Self {
        Self { pci: root.join("pci"), mountinfo: root.join("mountinfo"), swaps: root.join("swaps") }
    }

    /// Whether a function can leave this host for the pool.
    pub(super) fn check(&self, function: PciAddress, allowed: Allowed) -> Result<(), Unfit> {
        let path = self.folder(function);
        if !path.is_dir() {
            return Err(Unfit::Absent { function, path });
        }
        if is_bridge(&text(&path.join("class"))?) {
            return Err(Unfit::Bridge { function });
        }
        if fs::symlink_metadata(path.join("physfn")).is_ok() {
            return Err(Unfit::Virtual { function });
        }
        let virtuals = path.join("sriov_numvfs");
        match text_or_none(&virtuals)?.trim() {
            "" | "0" => {}
            count => {
                return Err(Unfit::HasVirtual { function, count: count.to_owned(), path: virtuals });
            }
        }
        self.must_be_idle(function)?;
        let traits = self.traits(function);
        if traits.iommu_group.is_none() && !allowed.no_iommu {
            return Err(Unfit::NoIommu { function });
        }
        if !traits.can_reset && !allowed.no_reset {
            return Err(Unfit::NoReset { function });
        }
        Ok(())
    }

    /// Whether nothing here drives a function. One that this host does not tell of any more is idle.
    pub(super) fn must_be_idle(&self, function: PciAddress) -> Result<(), Unfit> {
        let path = self.folder(function);
        let uses = self.uses(&path)?;
        if !uses.is_empty() {
            return Err(Unfit::InUse { function, uses: uses.join(", ") });
        }
        match fs::read_link(path.join("driver")) {
            Ok(driver) => {
                let driver =
                    driver.file_name().map_or_else(String::new, |name| name.to_string_lossy().into());
                Err(Unfit::Driven { function, driver, unbind: path.join("driver/unbind") })
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(unreadable(&path.join("driver"), &error)),
        }
    }

    /// What is not as it should be of one that is in the pool. That this host does not tell of it any more is no trouble.
    pub(super) fn troubles(&self, function: PciAddress) -> Vec<Unfit> {
        if !self.folder(function).is_dir() {
            return Vec::new();
        }
        let traits = self.traits(function);
        let driven = self.must_be_idle(function).err();
        let no_iommu = traits.iommu_group.is_none().then_some(Unfit::NoIommu { function });
        let no_reset = (!traits.can_reset).then_some(Unfit::NoReset { function });
        driven.into_iter().chain(no_iommu).chain(no_reset).collect()
    }

    /// What the IOMMU does not tell apart is in the pool as a whole, or not at all. `pool`: what is to be in it.
    pub(super) fn check_group(&self, function: PciAddress, pool: &[PciAddress]) -> Result<(), Unfit> {
        let Some(group) = self.traits(function).iommu_group else { return Ok(()) };
        let others = self.companions(function)?;
        let is_in_pool = pool.contains(&function);
        let apart: Vec<String> = others
            .into_iter()
            .filter(|other| pool.contains(other) != is_in_pool)
            .map(|other| other.to_string())
            .collect();
        match apart.is_empty() {
            true => Ok(()),
            false => Err(Unfit::SharedGroup { function, group, others: apart.join(", ") }),
        }
    }

    pub(super) fn traits(&self, function: PciAddress) -> Traits {
        let path = self.folder(function);
        let group = fs::read_link(path.join("iommu_group")).ok();
        let group = group.and_then(|group| group.file_name()?.to_str()?.parse().ok());
        Traits { iommu_group: group, can_reset: path.join("reset").exists() }
    }

    /// Resets a function that nobody has, if that can be done: what the last kernel left in it is not for the next, and what it was told to write to memory
    /// must not be written any more. Whether it was.
    pub(super) fn reset(&self, function: PciAddress) -> Result<bool, Unfit> {
        let path = self.folder(function).join("reset");
        if !path.exists() {
            return Ok(false);
        }
        let written =
            fs::OpenOptions::new().write(true).open(&path).and_then(|mut file| file.write_all(b"1"));
        match written {
            Ok(()) => Ok(true),
            Err(error) => Err(Unfit::NotReset { function, reason: error.to_string() }),
        }
    }

    /// The other functions of its IOMMU group, if it has one; bridges left out: those are the host's.
    pub(super) fn companions(&self, function: PciAddress) -> Result<Vec<PciAddress>, Unfit> {
        if self.traits(function).iommu_group.is_none() {
            return Ok(Vec::new());
        }
        let path = self.folder(function).join("iommu_group/devices");
        let found = fs::read_dir(&path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let mut others = Vec::new();
        for entry in found.map_err(|error| unreadable(&path, &error))? {
            let name = entry.file_name();
            if let Some(other) = name.to_str().and_then(|name| name.parse::<PciAddress>().ok())
                && other != function
                && !text(&self.folder(other).join("class")).is_ok_and(|class| is_bridge(&class))
            {
                others.push(other);
            }
        }
        others.sort_unstable();
        Ok(others)
    }

    /// What of a function is used here, as far as that is cheaply found: what is mounted, swapped to, part of another disk, or up. Programs that have it
    /// open are its driver's business.
    fn uses(&self, folder: &Path) -> Result<Vec<String>, Unfit> {
        let made = made_of(folder)?;
        if made.is_empty() {
            return Ok(Vec::new());
        }
        // A kernel without swap has no list of it.
        let (mounts, swaps) = (text(&self.mountinfo)?, text_or_none(&self.swaps)?);
        let mut uses = Vec::new();
        for made in made {
            let name = made.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
            let kind = fs::read_link(made.join("subsystem")).unwrap_or_default();
            match kind.file_name().and_then(|kind| kind.to_str()) {
                Some("block") => {
                    let number = text_or_none(&made.join("dev"))?;
                    uses.extend(
                        mounted(&mounts, number.trim(), &name).map(|at| format!("{name} is mounted at {at}")),
                    );
                    let device = format!("/dev/{name}");
                    let is_swap = |line: &str| line.split_whitespace().next() == Some(&device);
                    if swaps.lines().any(is_swap) {
                        uses.push(format!("{name} is swapped to"));
                    }
                    for holder in entries(&made.join("holders"))? {
                        uses.push(format!("{name} is part of {}", holder.file_name().to_string_lossy()));
                    }
                }
                Some("net") => {
                    let flags = text_or_none(&made.join("flags"))?;
                    let flags = flags.trim().trim_start_matches("0x");
                    // IFF_UP; what is no number is not known to be down.
                    let is_down = u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & 1 == 0);
                    if !flags.is_empty() && !is_down {
                        uses.push(format!("{name} is up"));
                    }
                }
                _ => {}
            }
        }
        Ok(uses)
    }

    fn folder(&self, function: PciAddress) -> PathBuf {
        self.pci.join("devices").join(function.to_string())
    }
}

/// The folders below a function: of what its driver has made of it.
fn made_of(folder: &Path) -> Result<Vec<PathBuf>, Unfit> {
    let mut found = Vec::new();
    let mut waiting = vec![(folder.to_owned(), 0)];
    while let Some((path, depth)) = waiting.pop() {
        for entry in entries(&path)? {
            // Links lead elsewhere: to its driver, to what it is part of.
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if found.len() == FOLDERS_MAX || depth == DEPTH_MAX {
                    let reason = format!(
                        "there are more than {FOLDERS_MAX} folders in it, or more than {DEPTH_MAX} deep"
                    );
                    return Err(Unfit::Unreadable { path: folder.to_owned(), reason });
                }
                found.push(entry.path());
                waiting.push((entry.path(), depth + 1));
            }
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Where a disk is mounted, by its number or its name: some file systems show a number of their own.
fn mounted<'a>(mounts: &'a str, number: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    mounts.lines().filter_map(move |line| {
        let (fields, source) = line.split_once(" - ")?;
        let fields: Vec<&str> = fields.split(' ').collect();
        let source = source.split(' ').nth(1)?;
        let is_it = fields.get(2) == Some(&number) || source.strip_prefix("/dev/") == Some(name);
        fields.get(4).copied().filter(|_| is_it)
    })
}

fn is_bridge(class: &str) -> bool {
    class.trim().trim_start_matches("0x").starts_with(BRIDGE)
}

/// What is in a folder; nothing, if it is not there, or went away.
fn entries(path: &Path) -> Result<Vec<fs::DirEntry>, Unfit> {
    let found = fs::read_dir(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match found {
        Err(error) if is_absent(&error) => Ok(Vec::new()),
        found => found.map_err(|error| unreadable(path, &error)),
    }
}

/// What a file says. A byte that is no text, which anybody can put into the name of a mount point, hides nothing besides itself.
fn text(path: &Path) -> Result<String, Unfit> {
    let read = fs::read(path).map_err(|error| unreadable(path, &error))?;
    Ok(String::from_utf8_lossy(&read).into_owned())
}

/// The same; nothing, if it is not there, or went away.
fn text_or_none(path: &Path) -> Result<String, Unfit> {
    match fs::read(path) {
        Err(error) if is_absent(&error) => Ok(String::new()),
        read => Ok(String::from_utf8_lossy(&read.map_err(|error| unreadable(path, &error))?).into_owned()),
    }
}

/// Whether there is no such thing: sysfs says of what is being taken away that there is no such device.
fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ENXIO))
}

fn unreadable(path: &Path, error: &std::io::Error) -> Unfit {
    Unfit::Unreadable { path: path.to_owned(), reason: error.to_string() }
}

#[cfg(test)]
#[path = "host_pci_tests.rs"]
mod tests;

/// A host in a folder, for the tests of whoever gives functions away.
#[cfg(test)]
pub(super) mod bench {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    /// Makes a function that is fit to be given away: idle, with an IOMMU group of its own, and with a reset.
    pub(in crate::spawner::multikernel) fn function(pci: &Path, address: &str, group: u32) {
        let folder = pci.join("devices").join(address);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("class"), "0x020000\n").unwrap();
        fs::write(folder.join("reset"), "").unwrap();
        let of_group = pci.join(format!("groups/{group}"));
        fs::create_dir_all(of_group.join("devices")).unwrap();
        symlink(&of_group, folder.join("iommu_group")).unwrap();
        symlink(&folder, of_group.join("devices").join(address)).unwrap();
    }

    /// Puts a function into the group of another, whose number that is.
    pub(in crate::spawner::multikernel) fn regroup(pci: &Path, address: &str, group: u32) {
        let folder = pci.join("devices").join(address);
        fs::remove_file(folder.join("iommu_group")).unwrap();
        let of_group = pci.join(format!("groups/{group}"));
        symlink(&of_group, folder.join("iommu_group")).unwrap();
        symlink(&folder, of_group.join("devices").join(address)).unwrap();
    }

    /// Has a driver of the host take a function.
    pub(in crate::spawner::multikernel) fn drive(pci: &Path, address: &str, driver: &str) {
        let of_driver = pci.join("drivers").join(driver);
        fs::create_dir_all(&of_driver).unwrap();
        symlink(&of_driver, pci.join("devices").join(address).join("driver")).unwrap();
    }

    /// Takes it from that again.
    pub(in crate::spawner::multikernel) fn idle(pci: &Path, address: &str) {
        fs::remove_file(pci.join("devices").join(address).join("driver")).unwrap();
    }
}
