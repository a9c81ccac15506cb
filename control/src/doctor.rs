//! What this host can run, what is missing, and how to get it. Works with or without a daemon.

mod multikernel;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;

use crate::api::host::{Diagnosis, Finding, Level};
use crate::meminfo;
use crate::paths;
use crate::spawner::{
    Availability, MultikernelSettings, MultikernelSpawner, Outlook, ProcessSpawner, Prospect, QemuSpawner,
    Spawner, SpawnerKind, UmlSpawner,
};
use crate::topology::{Resctrl, Topology};

/// Free memory under which kernels may fail to boot, in MiB: two small ones and some air.
const MEMORY_MIB_WANTED: u64 = 256;
/// Free shared memory under which a pool may fill up, in MiB.
const SHM_MIB_WANTED: u64 = 64;

/// The program that can be the vsock device of machines.
const VSOCK_DEVICE: &str = "vhost-device-vsock";
/// How to get it.
pub(crate) const VSOCK_REMEDY: &str = "cargo install vhost-device-vsock";

/// Looks at everything. `keeper_binary` and `agent_binary`: the `tombolod` and `tombolo-agent` that would be used; `machines`: the spawner
/// `qemu` as it is set up; `settings`: of the spawner `multikernel`.
pub async fn diagnose(
    keeper_binary: &Path,
    agent_binary: &Path,
    image: Option<&Path>,
    machines: &QemuSpawner,
    settings: &MultikernelSettings,
) -> Diagnosis {
    let uml = UmlSpawner::new(keeper_binary).with_image(image.map(Path::to_owned)).availability().await;
    let qemu = machines.availability().await;
    let outlook = machines.outlook().await;
    let beside = MultikernelSpawner::new(keeper_binary, settings.clone()).availability().await;
    let process = ProcessSpawner::new(keeper_binary).availability().await;
    let nothing_runs = ![&uml, &qemu, &beside, &process].iter().any(|availability| availability.is_ready());
    let mut findings = vec![
        spawner(SpawnerKind::Uml, uml, nothing_runs),
        spawner(SpawnerKind::Qemu, qemu, nothing_runs),
        spawner(SpawnerKind::Multikernel, beside, nothing_runs),
        spawner(SpawnerKind::Process, process, nothing_runs),
        accelerator(outlook.as_ref()),
        machine_cpus(outlook.as_ref()),
        vsock(machines.vsock_device()),
        agent(agent_binary),
        memory(),
        shared_memory(),
        namespaces(),
        host_topology(&Topology::of_this_host()),
    ];
    findings.extend(multikernel::items(settings));
    Diagnosis { findings }
}

fn finding(subject: &str, level: Level, detail: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { subject: subject.to_owned(), level, detail: detail.into(), remedy: remedy.into() }
}

/// One spawner that cannot run is a limit; only when none can is it a failure.
fn spawner(kind: SpawnerKind, availability: Availability, nothing_runs: bool) -> Finding {
    let subject = format!("spawner {kind}");
    match availability {
        Availability::Ready { detail } => {
            finding(&subject, Level::Ok, format!("{}: {detail}", kind.describe()), "")
        }
        Availability::Missing { what, remedy } => {
            finding(&subject, if nothing_runs { Level::Fail } else { Level::Warn }, what, remedy)
        }
    }
}

/// What machines run on. Emulation that was not asked for is a limit: it is slow.
fn accelerator(outlook: Option<&Outlook>) -> Finding {
    let subject = "accelerator";
    let Some(Outlook { prospect, record, .. }) = outlook else {
        return finding(
            subject,
            Level::Ok,
            "there is nothing to accelerate: the spawner `qemu` cannot run",
            "",
        );
    };
    match prospect {
        Prospect::Untried => {
            let detail = "not known yet: a probe boot on KVM, 5 s at most, precedes the first machine";
            finding(subject, Level::Ok, detail, "")
        }
        Prospect::Refused(reason) => finding(
            subject,
            Level::Warn,
            format!("no machine can be started: it is to run on KVM, and {reason}"),
            "load the module kvm_intel or kvm_amd; or tombolod --accel auto",
        ),
        Prospect::Known(found) if found.kvm || found.is_as_asked() => {
            finding(subject, Level::Ok, found.to_string(), "")
        }
        Prospect::Known(found) => {
            let remedy = match record.as_ref().filter(|path| path.exists()) {
                Some(path) => format!("to have it tried again: remove {}, restart tombolod", path.display()),
                None => "load the module kvm_intel or kvm_amd, and let this user open /dev/kvm".to_owned(),
            };
            finding(subject, Level::Warn, found.to_string(), remedy)
        }
    }
}

/// How CPUs leave machines. Either way they do.
fn machine_cpus(outlook: Option<&Outlook>) -> Finding {
    let detail = match outlook {
        None => "there are no machines to have any: the spawner `qemu` cannot run".to_owned(),
        Some(Outlook { parks_because: Some(reason), .. }) => {
            format!("parked by their kernel when they are not lent, and not unplugged: {reason}")
        }
        Some(Outlook { prospect: Prospect::Known(_), .. }) => "plugged and unplugged".to_owned(),
        Some(_) => "not known yet: that depends on the accelerator".to_owned(),
    };
    finding("machine CPUs", Level::Ok, detail, "")
}

fn vsock(asked: Option<&Path>) -> Finding {
    let program = asked.unwrap_or_else(|| Path::new(VSOCK_DEVICE));
    vsock_finding(program, asked.is_some(), paths::program(program))
}

/// Machines can do without it: not to have it is a limit.
fn vsock_finding(program: &Path, is_used: bool, found: Option<PathBuf>) -> Finding {
    const GIVES: &str = "AF_VSOCK between programs of this host and those in machines of `qemu`";
    let subject = "vsock device";
    match found.as_deref().map(Path::display) {
        Some(found) if is_used => finding(subject, Level::Ok, format!("{found}: gives {GIVES}"), ""),
        Some(found) => finding(
            subject,
            Level::Ok,
            format!("{found} is there but not in use: it would give {GIVES}"),
            format!("tombolod --vsock-device {found}"),
        ),
        None => finding(
            subject,
            Level::Warn,
            format!("no {}: there is no {GIVES}", program.display()),
            format!("{VSOCK_REMEDY}, then tombolod --vsock-device {VSOCK_DEVICE}"),
        ),
    }
}

fn agent(path: &Path) -> Finding {
    const REMEDY: &str = "build it with `cargo xtask build`, or point --agent-binary (TOMBOLO_AGENT) at one";
    let subject = "agent";
    let shown = path.display();
    match std::fs::metadata(path) {
        Err(error) => finding(subject, Level::Fail, format!("{shown} cannot be read: {error}"), REMEDY),
        Ok(metadata) if !metadata.is_file() || metadata.permissions().mode() & 0o111 == 0 => {
            finding(subject, Level::Fail, format!("{shown} is not an executable file"), REMEDY)
        }
        Ok(_) if is_dynamic(path) => finding(
            subject,
            Level::Warn,
            format!("{shown} needs shared libraries: it cannot be the first process of a kernel"),
            "build it static with `cargo xtask build`",
        ),
        Ok(_) => finding(subject, Level::Ok, format!("{shown}"), ""),
    }
}

/// Whether an ELF file asks for a dynamic loader (has a PT_INTERP header).
fn is_dynamic(path: &Path) -> bool {
    const PT_INTERP: u32 = 3;
    let Ok(mut file) = std::fs::File::open(path) else { return false };
    let mut bytes = Vec::new();
    // Program headers stand right behind the ELF header in everything linkers make.
    if std::io::Read::read_to_end(&mut std::io::Read::take(&mut file, 4096), &mut bytes).is_err() {
        return false;
    }
    let u16_at = |at: usize| bytes.get(at..at + 2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    let u32_at = |at: usize| bytes.get(at..at + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let (Some(size), Some(count)) = (u16_at(54), u16_at(56)) else { return false };
    bytes.starts_with(b"\x7fELF")
        && (0..usize::from(count)).any(|index| u32_at(64 + index * usize::from(size)) == Some(PT_INTERP))
}

fn memory() -> Finding {
    let subject = "memory";
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    match meminfo::bytes_of("MemAvailable", &text).map(|bytes| bytes >> 20) {
        None => finding(subject, Level::Warn, "/proc/meminfo does not tell how much is free", ""),
        Some(mib) if mib < MEMORY_MIB_WANTED => finding(
            subject,
            Level::Warn,
            format!("only {mib} MiB are free"),
            format!("free some: two small kernels and the pool want about {MEMORY_MIB_WANTED} MiB"),
        ),
        Some(mib) => finding(subject, Level::Ok, format!("{mib} MiB free"), ""),
    }
}

fn shared_memory() -> Finding {
    let subject = "shared memory";
    match statvfs("/dev/shm") {
        Err(error) => finding(
            subject,
            Level::Fail,
            format!("/dev/shm cannot be used: {error}"),
            "mount a tmpfs there: mount -t tmpfs tmpfs /dev/shm",
        ),
        Ok(stat) => {
            let mib = stat.blocks_available() * stat.fragment_size() / (1 << 20);
            let remedy = format!("free some or remount it larger: a busy pool wants {SHM_MIB_WANTED} MiB");
            match mib < SHM_MIB_WANTED {
                true => finding(subject, Level::Warn, format!("only {mib} MiB free in /dev/shm"), remedy),
                false => finding(subject, Level::Ok, format!("{mib} MiB free in /dev/shm"), ""),
            }
        }
    }
}

fn namespaces() -> Finding {
    let subject = "namespaces";
    if rustix::process::geteuid().is_root() {
        return finding(subject, Level::Ok, "we are root", "");
    }
    let max = std::fs::read_to_string("/proc/sys/user/max_user_namespaces");
    let max: u64 = max.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    let clone = std::fs::read_to_string("/proc/sys/kernel/unprivileged_userns_clone");
    let forbidden = max == 0 || clone.is_ok_and(|text| text.trim() == "0");
    match forbidden {
        true => finding(
            subject,
            Level::Warn,
            "unprivileged user namespaces are switched off: `process` instances share more with this host",
            "sysctl -w kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000",
        ),
        false => finding(subject, Level::Ok, "unprivileged user namespaces are allowed", ""),
    }
}

/// What there is to choose from where CPUs of this host are lent, and why ways of its caches are not.
fn host_topology(host: &Topology) -> Finding {
    let subject = "host topology";
    if host.cpus.is_empty() {
        let remedy = "mount sysfs: mount -t sysfs sysfs /sys";
        return finding(
            subject,
            Level::Warn,
            "/sys/devices/system/cpu does not tell which CPUs there are",
            remedy,
        );
    }
    let ways = match host.resctrl {
        Resctrl::CacheWays { .. } => "; no spawner moves cache ways yet, so the ledger has none",
        _ => "; so the ledger has no cache ways",
    };
    finding(subject, Level::Ok, format!("{}; {}{ways}", host.describe(), host.resctrl), "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spawner::Acceleration;
    use crate::topology::HostCpu;

    #[test]
    fn what_the_host_has_is_told_and_that_no_cache_ways_are_moved() {
        let cpu = HostCpu { id: 0, core: 0, package: Some(0), node: None, boot: true };
        let mut host = Topology { cpus: vec![cpu], ..Topology::default() };
        let plain = host_topology(&host);
        assert!(
            plain.level == Level::Ok && plain.detail.contains("1 package, 1 core, 1 thread"),
            "{plain:?}"
        );
        assert!(plain.detail.contains("does not have it; so the ledger has no cache ways"), "{plain:?}");
        host.resctrl = Resctrl::CacheWays { ways: 11, ways_min: 1, groups_max: 16 };
        let able = host_topology(&host);
        assert!(able.detail.contains("11 ways") && able.detail.contains("no spawner moves"), "{able:?}");
        assert_eq!(host_topology(&Topology::default()).level, Level::Warn);
    }

    #[test]
    fn a_missing_agent_is_a_failure_that_says_how_to_get_one() {
        let found = agent(Path::new("/nowhere/tombolo-agent"));
        assert_eq!(found.level, Level::Fail);
        assert!(found.remedy.contains("cargo xtask"), "{found:?}");
    }

    #[test]
    fn a_program_that_needs_a_loader_is_told_from_one_that_does_not() {
        // This test itself is linked dynamically, as every ordinary build is.
        assert!(is_dynamic(&std::env::current_exe().unwrap()));
        assert!(!is_dynamic(Path::new("/proc/self/status")));
    }

    #[test]
    fn a_vsock_device_is_told_to_be_used_unused_or_missing() {
        let program = Path::new("/opt/vhost-device-vsock");
        let look = |is_used, found: bool| vsock_finding(program, is_used, found.then(|| program.to_owned()));
        let used = look(true, true);
        assert_eq!((used.level, used.remedy.as_str()), (Level::Ok, ""));
        let unused = look(false, true);
        assert!(unused.level == Level::Ok && unused.remedy.contains("--vsock-device /opt"), "{unused:?}");
        for missing in [look(true, false), look(false, false)] {
            assert!(missing.level == Level::Warn && missing.remedy.contains("cargo install"), "{missing:?}");
        }
    }

    #[test]
    fn emulation_is_a_limit_unless_it_was_asked_for() {
        let outlook = |prospect, parks_because| Outlook { prospect, parks_because, record: None };
        let look = |found: Acceleration| accelerator(Some(&outlook(Prospect::Known(found), None)));
        let found = |kvm, reason: &str| Acceleration { kvm, reason: reason.to_owned() };
        let slow = look(found(false, "/dev/kvm cannot be opened"));
        assert!(slow.level == Level::Warn && slow.detail.contains("cannot be opened"), "{slow:?}");
        assert!(slow.remedy.contains("kvm_intel"), "{slow:?}");
        assert_eq!(look(found(false, Acceleration::AS_ASKED)).level, Level::Ok);
        assert_eq!(look(found(true, "a probe boot reached user space")).level, Level::Ok);
        let refused = accelerator(Some(&outlook(Prospect::Refused("it is not there".into()), None)));
        assert!(refused.level == Level::Warn && refused.detail.contains("it is not there"), "{refused:?}");
        assert_eq!(accelerator(Some(&outlook(Prospect::Untried, None))).level, Level::Ok);
        assert_eq!(accelerator(None).level, Level::Ok);
        let parked = outlook(Prospect::Known(found(false, "")), Some("a bug by name"));
        assert!(machine_cpus(Some(&parked)).detail.contains("not unplugged: a bug by name"));
        assert_eq!(
            machine_cpus(Some(&outlook(Prospect::Known(found(true, "")), None))).detail,
            "plugged and unplugged"
        );
    }

    #[test]
    fn one_spawner_is_enough() {
        let missing = || Availability::Missing { what: "x".into(), remedy: "y".into() };
        assert_eq!(spawner(SpawnerKind::Uml, missing(), false).level, Level::Warn);
        assert_eq!(spawner(SpawnerKind::Uml, missing(), true).level, Level::Fail);
    }
}
