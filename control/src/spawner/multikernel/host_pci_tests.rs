use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::bench::{drive, function, idle};
use super::*;

const NIC: &str = "0000:03:00.0";

fn nic() -> PciAddress {
    NIC.parse().unwrap()
}

/// A host with one function that is fit to be given away.
fn host() -> (TempDir, HostPci) {
    let dir = tempfile::tempdir().unwrap();
    function(&dir.path().join("pci"), NIC, 7);
    fs::write(dir.path().join("mountinfo"), "").unwrap();
    let host = HostPci::at(dir.path());
    (dir, host)
}

fn folder(dir: &TempDir) -> PathBuf {
    dir.path().join("pci/devices").join(NIC)
}

/// What a driver makes of a function: a folder of this kind.
fn made(dir: &TempDir, path: &str, kind: &str) -> PathBuf {
    let made = folder(dir).join(path);
    fs::create_dir_all(&made).unwrap();
    symlink(format!("../class/{kind}"), made.join("subsystem")).unwrap();
    made
}

fn refusal(host: &HostPci) -> Unfit {
    host.check(nic(), Allowed::default()).unwrap_err()
}

#[test]
fn idle_function_with_iommu_and_reset_can_be_given_away() {
    let (_dir, host) = host();
    assert_eq!(host.check(nic(), Allowed::default()), Ok(()));
    assert_eq!(host.traits(nic()), Traits { iommu_group: Some(7), can_reset: true });
}

#[test]
fn function_that_is_not_there_is_refused() {
    let (_dir, host) = host();
    let error = host.check("0000:09:00.0".parse().unwrap(), Allowed::default()).unwrap_err();
    assert!(matches!(error, Unfit::Absent { .. }) && error.to_string().contains("0000:09:00.0"), "{error}");
}

#[test]
fn function_that_a_driver_of_the_host_has_is_refused_with_what_to_do() {
    let (dir, host) = host();
    drive(&dir.path().join("pci"), NIC, "ixgbe");
    let error = refusal(&host);
    assert!(matches!(&error, Unfit::Driven { driver, .. } if driver == "ixgbe"), "{error}");
    assert!(error.to_string().contains(&format!("echo {NIC} > ")), "{error}");
    assert!(error.to_string().contains("driver/unbind"), "{error}");
    idle(&dir.path().join("pci"), NIC);
    assert_eq!(host.must_be_idle(nic()), Ok(()));
}

#[test]
fn function_with_a_disk_that_is_used_here_is_refused_and_not_told_to_be_taken_from_its_driver() {
    let (dir, host) = host();
    drive(&dir.path().join("pci"), NIC, "nvme");
    let disk = made(&dir, "nvme/nvme0/nvme0n1", "block");
    fs::write(disk.join("dev"), "259:0\n").unwrap();
    let part = made(&dir, "nvme/nvme0/nvme0n1/nvme0n1p2", "block");
    fs::write(part.join("dev"), "259:2\n").unwrap();
    let other = made(&dir, "nvme/nvme0/nvme0n1/nvme0n1p3", "block");
    fs::write(other.join("dev"), "259:3\n").unwrap();
    fs::create_dir_all(other.join("holders/dm-0")).unwrap();
    let mounts = "22 1 259:2 / / rw - ext4 /dev/nvme0n1p2 rw\n23 1 0:5 / /srv rw - btrfs /dev/nvme0n1p3 rw\n\
                  24 1 8:1 / /x rw - ext4 /dev/sda1 rw\nnonsense\n";
    fs::write(dir.path().join("mountinfo"), mounts).unwrap();
    fs::write(dir.path().join("swaps"), "Filename Type\n/dev/nvme0n1 partition 1 0 -2\n").unwrap();
    let error = refusal(&host);
    let told = error.to_string();
    assert!(matches!(error, Unfit::InUse { .. }), "{told}");
    for part in [
        "nvme0n1p2 is mounted at /,",
        "nvme0n1p3 is mounted at /srv",
        "nvme0n1p3 is part of dm-0",
        "nvme0n1 is swapped to",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert!(!told.contains("unbind") && !told.contains("sda1"), "{told}");
}

#[test]
fn interface_that_is_up_is_in_use_and_one_that_is_down_is_only_driven() {
    let (dir, host) = host();
    drive(&dir.path().join("pci"), NIC, "ixgbe");
    let net = made(&dir, "net/eth0", "net");
    fs::write(net.join("flags"), "0x1003\n").unwrap();
    assert!(refusal(&host).to_string().contains("eth0 is up"));
    fs::write(net.join("flags"), "0x1002\n").unwrap();
    assert!(matches!(refusal(&host), Unfit::Driven { .. }));
}

#[test]
fn function_without_iommu_is_refused_unless_that_may_be() {
    let (dir, host) = host();
    fs::remove_file(folder(&dir).join("iommu_group")).unwrap();
    let error = refusal(&host);
    assert_eq!(error, Unfit::NoIommu { function: nic() });
    assert!(error.to_string().contains("iommu=on") && error.to_string().contains("--allow-no-iommu"));
    assert_eq!(host.check(nic(), Allowed { no_iommu: true, no_reset: false }), Ok(()));
}

#[test]
fn function_without_reset_is_refused_unless_that_may_be() {
    let (dir, host) = host();
    fs::remove_file(folder(&dir).join("reset")).unwrap();
    let error = refusal(&host);
    assert_eq!(error, Unfit::NoReset { function: nic() });
    assert!(error.to_string().contains("--allow-no-reset"), "{error}");
    assert_eq!(host.check(nic(), Allowed { no_iommu: false, no_reset: true }), Ok(()));
    assert_eq!(host.reset(nic()), Ok(false), "there is nothing to reset it by");
}

#[test]
fn function_is_reset_where_that_can_be_done() {
    let (dir, host) = host();
    assert_eq!(host.reset(nic()), Ok(true));
    assert_eq!(fs::read_to_string(folder(&dir).join("reset")).unwrap(), "1");
    fs::remove_file(folder(&dir).join("reset")).unwrap();
    fs::create_dir(folder(&dir).join("reset")).unwrap();
    assert!(host.reset(nic()).unwrap_err().to_string().contains("was not reset"));
}

#[test]
fn what_the_iommu_does_not_tell_apart_goes_together_but_for_bridges() {
    let (dir, host) = host();
    let pci = dir.path().join("pci");
    function(&pci, "0000:03:00.1", 7);
    function(&pci, "0000:02:01.0", 7);
    fs::write(pci.join("devices/0000:02:01.0/class"), "0x060400\n").unwrap();
    let other: PciAddress = "0000:03:00.1".parse().unwrap();
    let error = host.check_group(nic(), &[nic()]).unwrap_err();
    assert!(
        matches!(&error, Unfit::SharedGroup { group: 7, others, .. } if others == "0000:03:00.1"),
        "{error}"
    );
    assert_eq!(host.check_group(nic(), &[nic(), other]), Ok(()));
    assert_eq!(host.check_group(nic(), &[]), Ok(()));
    assert!(host.check_group(nic(), &[other]).is_err(), "one that goes back leaves none behind");
}

#[test]
fn bridges_and_virtual_functions_stay() {
    let (dir, host) = host();
    fs::write(folder(&dir).join("class"), "0x060400\n").unwrap();
    assert_eq!(refusal(&host), Unfit::Bridge { function: nic() });
    fs::write(folder(&dir).join("class"), "0x010802\n").unwrap();
    fs::write(folder(&dir).join("sriov_numvfs"), "2\n").unwrap();
    assert!(matches!(refusal(&host), Unfit::HasVirtual { .. }));
    fs::write(folder(&dir).join("sriov_numvfs"), "0\n").unwrap();
    assert_eq!(host.check(nic(), Allowed::default()), Ok(()));
    symlink("../0000:02:01.0", folder(&dir).join("physfn")).unwrap();
    function(&dir.path().join("pci"), "0000:02:01.0", 6);
    assert_eq!(refusal(&host), Unfit::Virtual { function: nic() });
}

#[test]
fn what_is_not_as_it_should_be_of_a_function_in_the_pool_is_all_told() {
    let (dir, host) = host();
    assert_eq!(host.troubles(nic()), []);
    assert_eq!(host.troubles("0000:09:00.0".parse().unwrap()), [], "this host tells of it no more");
    drive(&dir.path().join("pci"), NIC, "ixgbe");
    fs::remove_file(folder(&dir).join("iommu_group")).unwrap();
    fs::remove_file(folder(&dir).join("reset")).unwrap();
    let told = host.troubles(nic());
    assert!(
        matches!(told[..], [Unfit::Driven { .. }, Unfit::NoIommu { .. }, Unfit::NoReset { .. }]),
        "{told:?}"
    );
}

#[test]
fn name_of_a_mount_point_that_is_no_text_hides_no_other() {
    let (dir, host) = host();
    let disk = made(&dir, "nvme/nvme0/nvme0n1", "block");
    fs::write(disk.join("dev"), "259:0\n").unwrap();
    // Anybody who may mount a file system of his own can choose such a name.
    let mounts = b"40 1 0:52 / /home/mallory/\xff rw - fuse x rw\n22 1 259:0 / / rw - ext4 /dev/nvme0n1 rw\n";
    fs::write(dir.path().join("mountinfo"), mounts).unwrap();
    assert!(refusal(&host).to_string().contains("nvme0n1 is mounted at /"));
}

#[test]
fn what_cannot_be_read_is_not_taken_for_unused() {
    let (dir, host) = host();
    let disk = made(&dir, "nvme/nvme0/nvme0n1", "block");
    fs::remove_file(dir.path().join("mountinfo")).unwrap();
    assert!(matches!(refusal(&host), Unfit::Unreadable { path, .. } if path.ends_with("mountinfo")));
    fs::write(dir.path().join("mountinfo"), "").unwrap();
    fs::write(disk.join("holders"), "no folder").unwrap();
    assert!(matches!(refusal(&host), Unfit::Unreadable { path, .. } if path.ends_with("holders")));
    fs::remove_file(disk.join("holders")).unwrap();
    let net = made(&dir, "net/eth0", "net");
    fs::write(net.join("flags"), "odd\n").unwrap();
    assert!(refusal(&host).to_string().contains("eth0 is up"));
    fs::remove_file(net.join("flags")).unwrap();
    fs::write(folder(&dir).join("sriov_numvfs"), "odd\n").unwrap();
    assert!(matches!(refusal(&host), Unfit::HasVirtual { .. }));
    fs::remove_file(folder(&dir).join("sriov_numvfs")).unwrap();
    fs::remove_file(folder(&dir).join("class")).unwrap();
    assert!(matches!(refusal(&host), Unfit::Unreadable { path, .. } if path.ends_with("class")));
}

#[test]
fn disk_is_found_however_deep_it_is_and_what_is_too_deep_is_not_taken_for_unused() {
    let (dir, host) = host();
    let disk = made(&dir, "usb1/1-1/1-1.1/1-1.1.1/1-1.1.1.1/1-1.1.1.1.1/a/b/c/d/e/block/sdb/sdb1", "block");
    fs::write(disk.join("dev"), "8:17\n").unwrap();
    fs::write(dir.path().join("mountinfo"), "22 1 8:17 / /usb rw - ext4 /dev/sdb1 rw\n").unwrap();
    assert!(refusal(&host).to_string().contains("sdb1 is mounted at /usb"));
    fs::remove_dir_all(folder(&dir).join("usb1")).unwrap();
    fs::create_dir_all(folder(&dir).join("x/".repeat(42))).unwrap();
    assert!(matches!(refusal(&host), Unfit::Unreadable { .. }));
}
