//! PCI functions: who uses them, unbinding and binding their drivers, and seeing that a driver has taken one that came.
//!
//! Everything is read from sysfs: a function's folder holds, however deep, the folders of all that its driver has made of it (disks,
//! partitions, character devices, network interfaces), each with its number in a file `dev`.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tombolo_handover::PciAddress;
use tombolo_handover::observe::Inside;
use tombolo_handover::operation::Veto;

use super::programs::{named, numbered};
use super::veto::{later, never};

/// How long a function that was plugged in may take to be seen, and then to be taken by a driver.
const APPEAR_MAX: Duration = Duration::from_secs(5);
const BIND_MAX: Duration = Duration::from_secs(5);
/// Between two looks at that.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// When it may be worth asking again, in ms: programs end.
const RETRY_AFTER_MS: u64 = 5_000;
/// How deep below a function its devices are looked for: an NVMe partition is 4 deep.
const DEPTH_MAX: usize = 8;

/// Where the kernel tells of PCI functions and of programs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Files<'a> {
    pub(super) pci: &'a Path,
    pub(super) proc: &'a Path,
}

/// What a driver has made of a function.
#[derive(Debug, Default)]
struct Made {
    /// Numbers of disks, partitions and character devices, as `8:1`.
    numbers: BTreeSet<String>,
    /// Network interfaces that are up.
    interfaces_up: Vec<String>,
}

impl Files<'_> {
    /// Whether a function can leave: nothing, or who uses it.
    pub(super) fn can_spare(self, function: PciAddress) -> Option<Veto> {
        let folder = self.folder_of(function);
        if !folder.is_dir() {
            return Some(never(format!("there is no function {function}")));
        }
        let users = named(&self.users_of(&made_of(&folder)))?;
        Some(later(format!("{function} is in use: {users}"), RETRY_AFTER_MS))
    }

    /// Takes a function from its driver, unless somebody uses it.
    pub(super) fn unbind(self, function: PciAddress) -> Result<(), Veto> {
        if self.look(function) != Inside::Online {
            return Ok(());
        }
        if let Some(veto) = self.can_spare(function) {
            return Err(veto);
        }
        let unbound = fs::write(self.folder_of(function).join("driver/unbind"), function.to_string());
        unbound.map_err(|error| {
            later(format!("the driver of {function} does not let it go: {error}"), RETRY_AFTER_MS)
        })
    }

    /// Has a driver take a function, which may have been plugged in only now.
    pub(super) fn bind(self, function: PciAddress) -> Result<(), Veto> {
        if !wait_until(APPEAR_MAX, || self.look(function) != Inside::Absent) {
            let reason =
                format!("the kernel does not see {function}, {APPEAR_MAX:?} after it was to be there");
            return Err(later(reason, RETRY_AFTER_MS));
        }
        if self.look(function) == Inside::Offline {
            // A driver takes what comes by itself. This is for what one let go, or what came before it.
            if let Err(error) = fs::write(self.pci.join("drivers_probe"), function.to_string()) {
                return Err(later(format!("no driver takes {function}: {error}"), RETRY_AFTER_MS));
            }
        }
        match wait_until(BIND_MAX, || self.look(function) == Inside::Online) {
            true => Ok(()),
            false => Err(never(format!("no driver of this kernel takes {function}"))),
        }
    }

    /// What goes on with a function: whether a driver has it.
    pub(super) fn look(self, function: PciAddress) -> Inside {
        let folder = self.folder_of(function);
        if folder.join("driver").exists() {
            Inside::Online
        } else if folder.is_dir() {
            Inside::Offline
        } else {
            Inside::Absent
        }
    }

    fn folder_of(self, function: PciAddress) -> PathBuf {
        self.pci.join("devices").join(function.to_string())
    }

    fn users_of(self, made: &Made) -> Vec<String> {
        let mut users: Vec<String> =
            made.interfaces_up.iter().map(|name| format!("network interface {name} is up")).collect();
        if made.numbers.is_empty() {
            return users;
        }
        let mounts = fs::read_to_string(self.proc.join("self/mountinfo")).unwrap_or_default();
        users.extend(mounts_of(&mounts, &made.numbers).map(|place| format!("mounted at {place}")));
        let swaps = fs::read_to_string(self.proc.join("swaps")).unwrap_or_default();
        let swap = swaps.lines().filter_map(|line| line.split_ascii_whitespace().next());
        users.extend(
            swap.filter(|path| {
                number_of(Path::new(path)).is_some_and(|number| made.numbers.contains(&number))
            })
            .map(|path| format!("{path} is swapped to")),
        );
        for process in numbered(self.proc) {
            let folder = self.proc.join(process.to_string());
            let open = fs::read_dir(folder.join("fd")).into_iter().flatten().flatten();
            let mut numbers = open.filter_map(|entry| number_of(&entry.path()));
            if numbers.any(|number| made.numbers.contains(&number)) {
                let name = fs::read_to_string(folder.join("comm")).unwrap_or_default();
                users.push(format!("{} (process {process}) has it open", name.trim()));
            }
        }
        users
    }
}

/// Everything below a function's folder.
fn made_of(function: &Path) -> Made {
    let mut made = Made::default();
    collect(function, DEPTH_MAX, &mut made);
    made
}

fn collect(folder: &Path, depth: usize, made: &mut Made) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        let path = entry.path();
        if kind.is_dir() && depth > 0 {
            // IFF_UP (linux/if.h) is the lowest bit of an interface's flags.
            let flags = fs::read_to_string(path.join("flags")).ok();
            let flags = flags.and_then(|text| u32::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok());
            if folder.ends_with("net") && flags.is_some_and(|flags| flags & 1 != 0) {
                made.interfaces_up.push(entry.file_name().to_string_lossy().into_owned());
            }
            collect(&path, depth - 1, made);
        } else if kind.is_file() && entry.file_name() == "dev" {
            made.numbers.extend(fs::read_to_string(&path).ok().map(|number| number.trim().to_owned()));
        }
    }
}

/// Where devices with these numbers are mounted (proc_pid_mountinfo(5): the third field is the number, the fifth the place).
fn mounts_of<'a>(mounts: &'a str, numbers: &'a BTreeSet<String>) -> impl Iterator<Item = &'a str> {
    mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(2);
        let (number, place) = (fields.next()?, fields.nth(1)?);
        numbers.contains(number).then_some(place)
    })
}

/// The number of the device that a path leads to.
fn number_of(path: &Path) -> Option<String> {
    let meta = fs::metadata(path).ok()?;
    let is_device = meta.file_type().is_block_device() || meta.file_type().is_char_device();
    let device = meta.rdev();
    is_device.then(|| format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device)))
}

fn wait_until(limit: Duration, is_so: impl Fn() -> bool) -> bool {
    let until = Instant::now() + limit;
    while !is_so() {
        if Instant::now() >= until {
            return false;
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel with a function whose driver has made a disk of it, which has the number of /dev/null.
    fn kernel() -> (tempfile::TempDir, PciAddress) {
        let dir = tempfile::tempdir().unwrap();
        let function: PciAddress = "0000:01:00.0".parse().unwrap();
        let folder = dir.path().join("pci/devices/0000:01:00.0");
        fs::create_dir_all(folder.join("nvme/nvme0/nvme0n1")).unwrap();
        fs::create_dir_all(folder.join("driver")).unwrap();
        fs::write(folder.join("nvme/nvme0/nvme0n1/dev"), "1:3\n").unwrap();
        fs::create_dir_all(dir.path().join("proc/self")).unwrap();
        (dir, function)
    }

    fn with<T>(dir: &tempfile::TempDir, look: impl FnOnce(Files<'_>) -> T) -> T {
        let (pci, proc) = (dir.path().join("pci"), dir.path().join("proc"));
        look(Files { pci: &pci, proc: &proc })
    }

    #[test]
    fn a_function_that_nobody_uses_can_leave() {
        let (dir, function) = kernel();
        assert_eq!(with(&dir, |files| files.can_spare(function)), None);
        with(&dir, |files| files.unbind(function)).unwrap();
        let told = fs::read_to_string(dir.path().join("pci/devices/0000:01:00.0/driver/unbind")).unwrap();
        assert_eq!(told, "0000:01:00.0");
    }

    #[test]
    fn whoever_uses_a_function_is_named() {
        let (dir, function) = kernel();
        let mount = "25 1 1:3 / /srv rw - ext4 /dev/nvme0n1 rw\n26 1 1:4 / /tmp rw - ext4 /dev/x rw\n";
        fs::write(dir.path().join("proc/self/mountinfo"), mount).unwrap();
        let program = dir.path().join("proc/77");
        fs::create_dir_all(program.join("fd")).unwrap();
        fs::write(program.join("comm"), "mkfs\n").unwrap();
        std::os::unix::fs::symlink("/dev/null", program.join("fd/3")).unwrap();
        let net = dir.path().join("pci/devices/0000:01:00.0/net/eth0");
        fs::create_dir_all(&net).unwrap();
        fs::write(net.join("flags"), "0x1003\n").unwrap();
        let reason = with(&dir, |files| files.unbind(function)).unwrap_err().reason;
        for part in ["eth0 is up", "mounted at /srv", "mkfs (process 77)"] {
            assert!(reason.contains(part), "{part}: {reason}");
        }
        assert!(!dir.path().join("pci/devices/0000:01:00.0/driver/unbind").exists(), "it was not touched");
    }

    #[test]
    fn what_goes_on_with_a_function_is_told_by_its_driver() {
        let (dir, function) = kernel();
        assert_eq!(with(&dir, |files| files.look(function)), Inside::Online);
        fs::remove_dir_all(dir.path().join("pci/devices/0000:01:00.0/driver")).unwrap();
        assert_eq!(with(&dir, |files| files.look(function)), Inside::Offline);
        let other = "0000:02:00.0".parse().unwrap();
        assert_eq!(with(&dir, |files| files.look(other)), Inside::Absent);
        assert!(with(&dir, |files| files.can_spare(other)).is_some());
    }
}
