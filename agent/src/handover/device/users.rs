//! Who uses what a driver has made of a function, as far as it can be named.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::claim::Claims;
use super::made::Made;
use super::number::Number;
use crate::handover::programs::numbered;

/// All of them, by name; those who hold these claims are not meant.
pub(super) fn of(made: &Made, claims: &Claims, proc: &Path) -> Vec<String> {
    let mut users: Vec<String> =
        made.interfaces_up.iter().map(|name| format!("network interface {name} is up")).collect();
    if made.hides_interface {
        users.push("its network interface is in another network namespace, where it may be up".into());
    }
    if made.numbers.is_empty() {
        return users;
    }
    let mut claimed_by = mounts(&made.numbers, proc);
    claimed_by.extend(swaps(&made.numbers, proc));
    claimed_by.extend(made.holders.iter().map(|holder| format!("{holder} is made of it")));
    if claimed_by.is_empty() {
        let unseen = "is claimed (by a mount in another namespace, a RAID, a volume or a program)";
        claimed_by.extend(claims.taken.iter().map(|disk| format!("{disk} {unseen}")));
    }
    users.extend(claimed_by);
    users.extend(openers(&made.numbers, claims, proc));
    users
}

/// Where something of it is mounted, in every mount namespace that a process is in.
fn mounts(numbers: &BTreeSet<Number>, proc: &Path) -> Vec<String> {
    let own = fs::read_to_string(proc.join("self/mountinfo")).unwrap_or_default();
    let mut mounts: Vec<String> =
        mounted_at(&own, numbers).map(|place| format!("mounted at {place}")).collect();
    let mut seen: BTreeSet<PathBuf> = fs::read_link(proc.join("self/ns/mnt")).into_iter().collect();
    for process in numbered(proc) {
        let folder = proc.join(process.to_string());
        if !fs::read_link(folder.join("ns/mnt")).is_ok_and(|namespace| seen.insert(namespace)) {
            continue;
        }
        let others = fs::read_to_string(folder.join("mountinfo")).unwrap_or_default();
        let program = program_of(&folder, process);
        mounts.extend(
            mounted_at(&others, numbers)
                .map(|place| format!("mounted at {place} in the mount namespace of {program}")),
        );
    }
    mounts
}

/// Where devices with these numbers are mounted (proc_pid_mountinfo(5): the third field is the number, the fifth the place; behind a
/// hyphen are the kind and the source). A file system that may be on several devices (btrfs) has a number of its own, with 0 before the colon.
fn mounted_at<'a>(mounts: &'a str, numbers: &'a BTreeSet<Number>) -> impl Iterator<Item = &'a str> {
    mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(2);
        let (number, place) = (Number::parse(fields.next()?, true)?, fields.nth(1)?);
        let source = line.split_once(" - ").and_then(|(_, rest)| rest.split(' ').nth(1));
        let is_of_it = match (number.major, source) {
            (0, Some(source)) if source.starts_with("/dev/") => is_among(numbers, Path::new(source)),
            _ => numbers.contains(&number),
        };
        is_of_it.then_some(place)
    })
}

/// What of it is swapped to.
fn swaps(numbers: &BTreeSet<Number>, proc: &Path) -> Vec<String> {
    let swaps = fs::read_to_string(proc.join("swaps")).unwrap_or_default();
    let paths = swaps.lines().filter_map(|line| line.split_ascii_whitespace().next());
    paths
        .filter(|path| path.starts_with('/') && is_among(numbers, Path::new(path)))
        .map(|path| format!("{path} is swapped to"))
        .collect()
}

/// Which programs have something of it open.
fn openers(numbers: &BTreeSet<Number>, claims: &Claims, proc: &Path) -> Vec<String> {
    let mut openers = Vec::new();
    for process in numbered(proc) {
        let folder = proc.join(process.to_string());
        let is_us = process == std::process::id();
        let fds = folder.join("fd");
        let mut open = numbered(&fds).filter(|fd| !(is_us && claims.holds(*fd)));
        if open.any(|fd| is_among(numbers, &fds.join(fd.to_string()))) {
            openers.push(format!("{} has it open", program_of(&folder, process)));
        }
    }
    openers
}

fn is_among(numbers: &BTreeSet<Number>, path: &Path) -> bool {
    Number::of(path).is_some_and(|number| numbers.contains(&number))
}

fn program_of(folder: &Path, process: u32) -> String {
    let name = fs::read_to_string(folder.join("comm")).unwrap_or_default();
    format!("{} (process {process})", name.trim())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn numbers() -> BTreeSet<Number> {
        [Number::parse("259:0", true).unwrap(), Number::parse("1:3", false).unwrap()].into()
    }

    #[test]
    fn mounts_are_known_by_number_or_by_source() {
        let mounts = "25 1 259:0 / /srv rw shared:1 - ext4 /dev/nvme0n1 rw\n\
                      26 1 1:3 / /not rw - ext4 /dev/ram3 rw\n\
                      27 1 0:40 / /anonymous rw - btrfs /dev/null rw\n\
                      28 1 0:41 / /tmp rw - tmpfs tmpfs rw\n\
                      29 1 259 / /torn\n\
                      30 1 259:0 / /without-source\n";
        let numbers = numbers();
        let places: Vec<&str> = mounted_at(mounts, &numbers).collect();
        assert_eq!(places, ["/srv", "/anonymous", "/without-source"]);
    }

    #[test]
    fn mounts_in_every_namespace_are_named_once() {
        let dir = tempfile::tempdir().unwrap();
        let mount = "25 1 259:0 / /srv rw - ext4 /dev/nvme0n1 rw\n";
        for (process, namespace) in
            [("self", "mnt:[1]"), ("7", "mnt:[1]"), ("8", "mnt:[2]"), ("9", "mnt:[2]")]
        {
            let folder = dir.path().join(process);
            fs::create_dir_all(folder.join("ns")).unwrap();
            symlink(namespace, folder.join("ns/mnt")).unwrap();
            fs::write(folder.join("mountinfo"), mount).unwrap();
            fs::write(folder.join("comm"), "shell\n").unwrap();
        }
        let mounts = mounts(&numbers(), dir.path());
        assert_eq!((mounts.len(), mounts[0].as_str()), (2, "mounted at /srv"));
        assert!(
            mounts[1].starts_with("mounted at /srv in the mount namespace of shell (process "),
            "{mounts:?}"
        );
    }

    #[test]
    fn what_is_swapped_to_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("swaps"), "Filename Type\n/dev/null partition\n/dev/zero file\n").unwrap();
        assert_eq!(swaps(&numbers(), dir.path()), ["/dev/null is swapped to"]);
    }
}
