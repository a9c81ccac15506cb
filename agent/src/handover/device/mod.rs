//! PCI functions: who uses them, unbinding and binding their drivers, and seeing that a driver has taken one that came.
//!
//! [`made`] is what a driver has made of a function, [`users`] who has something of that open, mounted or up, and [`claim`] keeps everybody from
//! beginning to while the driver lets go: what is claimed (mounted, swapped to, part of a RAID or of a volume) is claimed by the
//! kernel itself, wherever it is mounted and whatever is between.

mod claim;
mod made;
mod number;
mod users;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tombolo_handover::PciAddress;
use tombolo_handover::observe::Inside;
use tombolo_handover::operation::Veto;

use self::claim::Claims;
use self::made::Made;
use super::programs::named;
use super::veto::{later, never};

/// How long a function that was plugged in may take to be seen, and then to be taken by a driver.
const APPEAR_MAX: Duration = Duration::from_secs(5);
const BIND_MAX: Duration = Duration::from_secs(5);
/// Between two looks at that.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// When it may be worth asking again, in ms: programs end.
const RETRY_AFTER_MS: u64 = 5_000;

/// Where the kernel tells of PCI functions and of programs, and where its devices are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Files<'a> {
    pub(super) pci: &'a Path,
    pub(super) blocks: &'a Path,
    pub(super) proc: &'a Path,
    pub(super) dev: &'a Path,
}

impl Files<'_> {
    /// Whether a function can leave: nothing, or who uses it.
    pub(super) fn can_spare(self, function: PciAddress) -> Option<Veto> {
        self.claim(function).err()
    }

    /// Waits for a function that may have been plugged in only now; whether it is there.
    pub(super) fn appears(self, function: PciAddress) -> bool {
        wait_until(APPEAR_MAX, || self.look(function) != Inside::Absent)
    }

    /// Takes a function from its driver, unless somebody uses it.
    pub(super) fn unbind(self, function: PciAddress) -> Result<(), Veto> {
        if self.look(function) != Inside::Online {
            return Ok(());
        }
        // Held until the driver has let go, so that nothing of it can be mounted meanwhile.
        let _claims = self.claim(function)?;
        let unbound = fs::write(self.folder_of(function).join("driver/unbind"), function.to_string());
        unbound.map_err(|error| {
            later(format!("the driver of {function} does not let it go: {error}"), RETRY_AFTER_MS)
        })
    }

    /// Has a driver take a function, which may have been plugged in only now.
    pub(super) fn bind(self, function: PciAddress) -> Result<(), Veto> {
        if !self.appears(function) {
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

    /// Claims all of a function that can be claimed, unless somebody uses it.
    fn claim(self, function: PciAddress) -> Result<Claims, Veto> {
        let folder = self.folder_of(function);
        if !folder.is_dir() {
            return Err(never(format!("there is no function {function}")));
        }
        let made = Made::of(&folder, self.blocks);
        let claims = Claims::of(&made.disks, self.dev);
        match named(&users::of(&made, &claims, self.proc)) {
            None => Ok(claims),
            Some(users) => Err(later(format!("{function} is in use: {users}"), RETRY_AFTER_MS)),
        }
    }
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
        let (blocks, dev) = (dir.path().join("blocks"), dir.path().join("dev"));
        look(Files { pci: &pci, blocks: &blocks, proc: &proc, dev: &dev })
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
        let mount = "25 1 0:31 / /srv rw - btrfs /dev/null rw\n26 1 1:4 / /tmp rw - ext4 /dev/x rw\n";
        fs::write(dir.path().join("proc/self/mountinfo"), mount).unwrap();
        let program = dir.path().join("proc/77");
        fs::create_dir_all(program.join("fd")).unwrap();
        fs::write(program.join("comm"), "mkfs\n").unwrap();
        std::os::unix::fs::symlink("/dev/null", program.join("fd/3")).unwrap();
        let net = dir.path().join("pci/devices/0000:01:00.0/net/eth0");
        fs::create_dir_all(&net).unwrap();
        fs::write(net.join("flags"), "0x1003\n").unwrap();
        let reason = with(&dir, |files| files.unbind(function)).unwrap_err().reason;
        for part in ["eth0 is up", "mounted at /srv", "mkfs (process 77) has it open"] {
            assert!(reason.contains(part), "{part}: {reason}");
        }
        assert!(!dir.path().join("pci/devices/0000:01:00.0/driver/unbind").exists(), "it was not touched");
    }

    #[test]
    fn a_function_that_comes_only_now_is_awaited() {
        let (dir, _) = kernel();
        let coming = "0000:02:00.0".parse().unwrap();
        let folder = dir.path().join("pci/devices/0000:02:00.0");
        std::thread::scope(|scope| {
            scope.spawn(|| fs::create_dir_all(&folder).unwrap());
            assert!(with(&dir, |files| files.appears(coming)));
        });
        assert_eq!(with(&dir, |files| files.can_spare(coming)), None);
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
