//! What a driver has made of a function: its folder in sysfs holds, however deep, the folders of all of it (disks, partitions, character
//! devices, network interfaces), each with its number in a file `dev`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::number::Number;

/// How deep below a function its devices are looked for: an NVMe partition is 4 deep.
const DEPTH_MAX: usize = 8;

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Made {
    /// Of disks, partitions and character devices.
    pub(super) numbers: BTreeSet<Number>,
    /// Whole disks, without their partitions.
    pub(super) disks: Vec<Disk>,
    /// What is made of those in turn (RAIDs, volumes, encrypted disks), by name.
    pub(super) holders: BTreeSet<String>,
    /// Network interfaces that are up.
    pub(super) interfaces_up: Vec<String>,
    /// Whether there is a network interface that is in another network namespace.
    pub(super) hides_interface: bool,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Disk {
    /// Of its node in /dev.
    pub(super) name: String,
    pub(super) number: Number,
}

impl Made {
    /// Everything below a function's folder; `blocks` holds all disks there are, by name.
    pub(super) fn of(function: &Path, blocks: &Path) -> Self {
        let mut made = Self::default();
        made.collect(function, blocks, DEPTH_MAX);
        made
    }

    fn collect(&mut self, folder: &Path, blocks: &Path, depth: usize) {
        self.take(folder);
        if depth == 0 {
            return;
        }
        if let Some(disk) = disk_of_path(&name_of(folder)) {
            self.collect(&blocks.join(disk), blocks, depth - 1);
        }
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.collect(&entry.path(), blocks, depth - 1);
            }
        }
    }

    fn take(&mut self, folder: &Path) {
        let name = name_of(folder);
        let is_block = fs::read_link(folder.join("subsystem")).is_ok_and(|it| it.ends_with("block"));
        let number = fs::read_to_string(folder.join("dev")).ok();
        if let Some(number) = number.and_then(|text| Number::parse(&text, is_block)) {
            self.numbers.insert(number);
            if is_block && !folder.join("partition").exists() {
                // A slash in the name of a node is an exclamation mark in sysfs.
                self.disks.push(Disk { name: name.replace('!', "/"), number });
            }
        }
        match name.as_str() {
            "holders" => self.holders.extend(entries(folder).iter().map(|holder| holder_name(holder))),
            // It is there as long as there is an interface, and shows those of its own network namespace.
            "net" if entries(folder).is_empty() => self.hides_interface = true,
            _ if folder.parent().is_some_and(|parent| parent.ends_with("net")) && is_up(folder) => {
                self.interfaces_up.push(name);
            }
            _ => {}
        }
    }
}

fn entries(folder: &Path) -> Vec<std::path::PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn name_of(folder: &Path) -> String {
    folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// An NVMe disk that can be reached in several ways has below each function one without a number, `nvme0c1n1`, and itself, `nvme0n1`, elsewhere.
fn disk_of_path(name: &str) -> Option<String> {
    let (subsystem, path) = name.strip_prefix("nvme")?.split_once('c')?;
    let (controller, namespace) = path.split_once('n')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    [subsystem, controller, namespace]
        .into_iter()
        .all(is_number)
        .then(|| format!("nvme{subsystem}n{namespace}"))
}

/// Its own name, and the one that people gave it.
fn holder_name(holder: &Path) -> String {
    let name = name_of(holder);
    match fs::read_to_string(holder.join("dm/name")) {
        Ok(given) => format!("{name} ({})", given.trim()),
        Err(_) => name,
    }
}

/// `IFF_UP` (linux/if.h) is the lowest bit of an interface's flags.
fn is_up(interface: &Path) -> bool {
    let flags = fs::read_to_string(interface.join("flags")).ok();
    let flags = flags.and_then(|text| u32::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok());
    flags.is_some_and(|flags| flags & 1 != 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn made_of(function: &Path) -> Made {
        Made::of(function, &function.join("../blocks"))
    }

    fn function() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("nvme/nvme0/nvme0n1");
        fs::create_dir_all(disk.join("nvme0n1p1/holders")).unwrap();
        for (node, number) in [("", "259:0\n"), ("nvme0n1p1", "259:1\n")] {
            fs::write(disk.join(node).join("dev"), number).unwrap();
            symlink("../../class/block", disk.join(node).join("subsystem")).unwrap();
        }
        fs::write(disk.join("nvme0n1p1/partition"), "1\n").unwrap();
        fs::write(dir.path().join("nvme/nvme0/dev"), "241:0\n").unwrap();
        dir
    }

    #[test]
    fn disks_are_told_from_partitions_and_from_character_devices() {
        let made = made_of(function().path());
        let number = |text, is_block| Number::parse(text, is_block).unwrap();
        let (disk, partition, other) = (number("259:0", true), number("259:1", true), number("241:0", false));
        assert_eq!(made.disks, [Disk { name: "nvme0n1".into(), number: disk }]);
        assert_eq!(made.numbers, [disk, partition, other].into());
        assert!(made.holders.is_empty() && made.interfaces_up.is_empty() && !made.hides_interface);
    }

    #[test]
    fn what_is_made_of_a_partition_is_named() {
        let dir = function();
        let volume = dir.path().join("virtual/dm-0");
        fs::create_dir_all(volume.join("dm")).unwrap();
        fs::write(volume.join("dm/name"), "vg-root\n").unwrap();
        let holders = dir.path().join("nvme/nvme0/nvme0n1/nvme0n1p1/holders");
        symlink(&volume, holders.join("dm-0")).unwrap();
        symlink("/no/such/md0", holders.join("md0")).unwrap();
        let made = made_of(dir.path());
        assert_eq!(made.holders, ["dm-0 (vg-root)".to_owned(), "md0".to_owned()].into());
    }

    #[test]
    fn interfaces_are_up_or_down_or_elsewhere() {
        let dir = function();
        let net = dir.path().join("virtio0/net");
        fs::create_dir_all(&net).unwrap();
        assert!(made_of(dir.path()).hides_interface);
        for (name, flags) in [("eth0", "0x1003\n"), ("eth1", "0x1002\n")] {
            fs::create_dir_all(net.join(name)).unwrap();
            fs::write(net.join(name).join("flags"), flags).unwrap();
        }
        let made = made_of(dir.path());
        assert_eq!((made.interfaces_up, made.hides_interface), (vec!["eth0".to_owned()], false));
    }

    #[test]
    fn a_disk_that_can_be_reached_in_several_ways_is_found_by_each() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("function/nvme/nvme3/nvme0c3n1")).unwrap();
        let disk = dir.path().join("blocks/nvme0n1");
        fs::create_dir_all(&disk).unwrap();
        fs::write(disk.join("dev"), "259:4\n").unwrap();
        symlink("../../class/block", disk.join("subsystem")).unwrap();
        let made = made_of(&dir.path().join("function"));
        assert_eq!(made.disks.iter().map(|disk| disk.name.as_str()).collect::<Vec<_>>(), ["nvme0n1"]);
        for name in ["nvme0", "nvme0n1", "nvme0n1p1", "nvme0c3", "nvmexc3n1", "nvme-subsys0", "c0n1"] {
            assert_eq!(disk_of_path(name), None, "{name}");
        }
    }
}
