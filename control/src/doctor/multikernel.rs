//! What a machine lacks to run kernels beside this one, item by item.
//!
//! Each item is looked at by itself, so that one run of `tombolo doctor` names all that is to be done.

use std::fs;
use std::path::Path;

use tombolo_handover::PciAddress;
use tombolo_transport::Port;

use super::finding;
use crate::api::host::{Finding, Level};
use crate::spawner::multikernel::{
    InterfaceState, MAKE_A_POOL, Settings, SharedPool, Unfit, interface_state, is_file_system,
    lock_left_behind, pool_functions, vsock, what_is_missing,
};

/// The page that walks through all of it.
const GUIDE: &str = "docs/multikernel.md";

/// `CAP_SYS_BOOT`, by its number in the masks of /proc/self/status.
const CAP_SYS_BOOT: u32 = 22;

/// Looks at everything.
pub(super) fn items(settings: &Settings) -> Vec<Finding> {
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let mut items = vec![
        kernel(&filesystems),
        interface(settings.root.as_path(), &interface_state(settings)),
        calls(
            &fs::read_to_string("/proc/self/status").unwrap_or_default(),
            &fs::read_to_string("/proc/sys/kernel/kexec_load_disabled").unwrap_or_default(),
            &fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default(),
        ),
        console(settings.console_device()),
        shared_memory(settings, Path::new(SharedPool::HEAP), &filesystems),
        devices(fs::read_dir("/sys/kernel/iommu_groups").is_ok_and(|mut groups| groups.next().is_some())),
    ];
    items.extend(
        pool_functions(settings)
            .into_iter()
            .flat_map(|(function, troubles)| function_items(function, &troubles)),
    );
    items.extend(settings.link_port().map(|port| {
        // Any port: the daemon may have that one.
        let vsock = vsock().and_then(|vsock| vsock.bind(Port::ANY, 1));
        link(port, vsock.map(drop).map_err(|error| crate::daemon::chain(&error)))
    }));
    items.extend(lock_left_behind(settings).map(|reason| {
        finding(
            "multikernel lock",
            Level::Warn,
            format!("{} was left behind: {reason}", settings.lock.display()),
            "nothing: the next change removes it",
        )
    }));
    items
}

fn kernel(filesystems: &str) -> Finding {
    let subject = "multikernel kernel";
    if is_file_system("multikernel", filesystems) {
        return finding(subject, Level::Ok, "this kernel can have others beside it", "");
    }
    let (what, remedy) = what_is_missing(filesystems, Path::new(""));
    finding(subject, Level::Warn, what, remedy)
}

fn interface(root: &Path, state: &InterfaceState) -> Finding {
    let subject = "multikernel pool";
    let warn = |detail: String, remedy: String| finding(subject, Level::Warn, detail, remedy);
    let shown = root.display();
    match state {
        InterfaceState::Absent => warn(
            format!("the kernel's interface is not mounted at {shown}"),
            format!("mount -t multikernel none {shown}"),
        ),
        InterfaceState::Old(why) => warn(
            format!(
                "the kernel's interface at {shown} is of an earlier form, which is not spoken here: {why}"
            ),
            "boot a newer kernel, as kerf 0.4 needs as well".into(),
        ),
        InterfaceState::Unreadable(why) => {
            warn(format!("the kernel's interface at {shown}: {why}"), String::new())
        }
        InterfaceState::NoPool => warn(
            "there is no pool: no CPU and no memory is set aside for other kernels".into(),
            format!("{MAKE_A_POOL} (CPUs by their physical numbers: `apicid` in /proc/cpuinfo)"),
        ),
        InterfaceState::Pool { cpus, cpus_free, memory_mib, instances } => finding(
            subject,
            Level::Ok,
            format!("{cpus} CPUs ({cpus_free} free), {memory_mib} MiB, {instances} instances"),
            "",
        ),
    }
}

fn calls(status: &str, load_disabled: &str, lockdown: &str) -> Finding {
    let subject = "multikernel calls";
    let warn = |detail: &str, remedy: &str| finding(subject, Level::Warn, detail, remedy);
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    if effective & (1 << CAP_SYS_BOOT) == 0 {
        return warn("kernels cannot be loaded or started: CAP_SYS_BOOT is missing", "run tombolod as root");
    }
    if load_disabled.trim() == "1" {
        return warn(
            "kernels cannot be loaded: kernel.kexec_load_disabled is 1, which lasts until this machine is booted anew",
            "find who sets it (sysctl.d, the initial archive), and boot without that",
        );
    }
    if lockdown.contains("[integrity]") || lockdown.contains("[confidentiality]") {
        return warn(
            "this kernel is locked down: it loads only signed kernels",
            "sign the kernel to load (kerf sign), or boot without lockdown",
        );
    }
    finding(subject, Level::Ok, "kernels can be loaded and started", "")
}

fn console(path: Option<&Path>) -> Finding {
    let subject = "multikernel console";
    match path {
        None => finding(subject, Level::Ok, "consoles are not recorded, as the settings say", ""),
        Some(path) if path.exists() => {
            let path = path.display();
            finding(
                subject,
                Level::Ok,
                format!("{path}: consoles are recorded, which leaves none to `kerf console`"),
                "",
            )
        }
        Some(path) => finding(
            subject,
            Level::Warn,
            format!("{} is missing: what kernels say on their consoles is lost", path.display()),
            "modprobe mktty, or boot a kernel with CONFIG_MKTTY",
        ),
    }
}

fn shared_memory(settings: &Settings, heap: &Path, filesystems: &str) -> Finding {
    let subject = "multikernel shared memory";
    if let Some(why) = &settings.why_no_pool {
        return finding(
            subject,
            Level::Warn,
            format!("kernels have no memory in common, and are reached over one socket each: {why}"),
            format!("see \"With and without shared memory\" in {GUIDE}; tombolod looks again when it starts"),
        );
    }
    let ok = |detail: String| finding(subject, Level::Ok, detail, "");
    let warn = |detail: String, remedy: &str| finding(subject, Level::Warn, detail, remedy);
    match &settings.pool {
        Some(SharedPool::Heap { device, .. }) if !device.exists() => {
            return warn(
                format!("{} is missing: kernels have no memory in common", device.display()),
                "boot a kernel with CONFIG_DMABUF_HEAPS; one that makes its heap only at boot needs a pool by then",
            );
        }
        Some(SharedPool::Heap { device, .. }) => {
            return ok(format!("{}: tombolod takes a buffer of it", device.display()));
        }
        Some(SharedPool::Mem { phys, size, device }) if !device.exists() => {
            return warn(
                format!("{} is missing: the {size} bytes at {phys:#x} cannot be mapped", device.display()),
                "boot a kernel with CONFIG_DEVMEM, not locked down, and with iomem=relaxed if it has CONFIG_IO_STRICT_DEVMEM",
            );
        }
        Some(SharedPool::Mem { phys, size, device }) => {
            return ok(format!("{size} bytes at {phys:#x}, by {}", device.display()));
        }
        Some(SharedPool::Auto | SharedPool::Daxfs { .. } | SharedPool::Path(_)) | None => {}
    }
    let lacks = match (heap.exists(), is_file_system("daxfs", filesystems)) {
        (true, true) => {
            return finding(
                subject,
                Level::Ok,
                format!("{} and daxfs: kernels can share a pool", heap.display()),
                "",
            );
        }
        (false, true) => format!("{} is missing", heap.display()),
        (true, false) => "the file system daxfs is missing".to_owned(),
        (false, false) => format!("{} and the file system daxfs are missing", heap.display()),
    };
    finding(
        subject,
        Level::Warn,
        format!("{lacks}: kernels have no memory in common"),
        "boot a kernel with CONFIG_DMABUF_HEAPS, and modprobe daxfs",
    )
}

/// Where kernels share no memory, all depends on the kernel's vsock.
fn link(port: Port, vsock: Result<(), String>) -> Finding {
    let subject = "multikernel link";
    match vsock {
        Ok(()) => finding(
            subject,
            Level::Ok,
            format!("the settings name no pool: kernels are reached over this kernel's vsock, port {port}"),
            "",
        ),
        Err(reason) => finding(
            subject,
            Level::Warn,
            format!(
                "the settings name no pool, and kernels cannot be reached without shared memory: {reason}"
            ),
            format!("load the module of CONFIG_MULTIKERNEL_VSOCKETS, or set `pool`, as {GUIDE} says"),
        ),
    }
}

fn devices(has_iommu: bool) -> Finding {
    let subject = "multikernel devices";
    match has_iommu {
        true => {
            finding(subject, Level::Ok, "an IOMMU keeps devices of a kernel to the memory of that kernel", "")
        }
        false => finding(
            subject,
            Level::Warn,
            "there is no IOMMU in use: a device that a kernel has can write to all memory of this machine",
            "switch it on in the firmware, and boot with intel_iommu=on or amd_iommu=on",
        ),
    }
}

/// A function that is set aside, and is not as it should be.
fn function_items(function: PciAddress, troubles: &[Unfit]) -> Vec<Finding> {
    let item = |trouble: &Unfit| {
        finding(
            "multikernel device",
            Level::Warn,
            format!("{function} is set aside for kernels: {trouble}"),
            "see \"Devices\" in docs/multikernel.md".to_owned(),
        )
    };
    troubles.iter().map(item).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_that_is_set_aside_and_not_fit_for_it_is_named_with_each_reason() {
        let function: PciAddress = "0000:03:00.0".parse().unwrap();
        let driven = Unfit::Driven { function, driver: "ixgbe".into(), unbind: "/x/driver/unbind".into() };
        let items =
            function_items(function, &[driven, Unfit::NoIommu { function }, Unfit::NoReset { function }]);
        assert!(items.iter().all(|item| item.level == Level::Warn && item.detail.contains("0000:03:00.0")));
        for (item, part) in items.iter().zip(["`ixgbe`", "no IOMMU", "cannot be reset"]) {
            assert!(item.detail.contains(part), "{item:?}");
        }
        assert!(function_items(function, &[]).is_empty());
    }

    #[test]
    fn ordinary_machine_is_told_everything_that_it_lacks_at_once() {
        let settings =
            Settings { root: "/nowhere".into(), console: "/nowhere/tty".into(), ..Settings::default() };
        let items = items(&settings);
        let of = |subject: &str| items.iter().find(|item| item.subject == subject).unwrap();
        for subject in ["multikernel pool", "multikernel console"] {
            assert_eq!(of(subject).level, Level::Warn, "{subject}");
            assert!(!of(subject).remedy.is_empty(), "{subject}");
        }
        assert!(items.len() >= 6);
    }

    #[test]
    fn kernel_that_has_the_file_system_is_told_from_one_with_a_similar_name() {
        assert_eq!(kernel("nodev\tsysfs\nnodev\tmultikernel\n").level, Level::Ok);
        assert_eq!(kernel("nodev\tsysfs\nnodev\tmultikernelfs\n").level, Level::Warn);
    }

    #[test]
    fn what_keeps_from_loading_a_kernel_is_named() {
        let root = "Name:\tx\nCapEff:\t000001ffffffffff\n";
        assert_eq!(calls(root, "0\n", "[none] integrity confidentiality").level, Level::Ok);
        assert!(calls("CapEff:\t0000000000000000", "0", "").detail.contains("CAP_SYS_BOOT"));
        assert!(calls(root, "1\n", "").detail.contains("kexec_load_disabled"));
        assert!(calls(root, "0", "none [integrity] confidentiality").detail.contains("signed"));
    }

    #[test]
    fn kernels_without_shared_memory_need_the_vsock() {
        assert_eq!(link(Port(700), Ok(())).level, Level::Ok);
        let missing = link(Port(700), Err("no such device".into()));
        assert_eq!(missing.level, Level::Warn);
        assert!(
            missing.detail.contains("no such device") && missing.remedy.contains("VSOCKETS"),
            "{missing:?}"
        );
        let with_pool: Settings = toml::from_str("pool = { path = \"/p\" }").unwrap();
        assert_eq!(with_pool.link_port(), None);
    }

    #[test]
    fn module_that_is_missing_is_named() {
        let nowhere = Path::new("/nowhere");
        assert!(console(Some(nowhere)).remedy.contains("modprobe mktty"));
        let none = Settings::default();
        let memory = shared_memory(&none, nowhere, "nodev\tsysfs\n");
        assert!(memory.detail.contains("daxfs") && memory.remedy.contains("modprobe daxfs"), "{memory:?}");
        assert!(!shared_memory(&none, Path::new("/"), "nodev\tdaxfs\n").detail.contains("missing"));
        let with =
            |pool: &str| Settings { pool: toml::from_str::<Settings>(pool).unwrap().pool, ..none.clone() };
        let heap = with("pool = { heap = { device = \"/nowhere\" } }");
        assert!(shared_memory(&heap, nowhere, "").remedy.contains("CONFIG_DMABUF_HEAPS"));
        let mem = with("pool = { mem = { phys = 4096, size = 4096, device = \"/nowhere\" } }");
        assert!(shared_memory(&mem, nowhere, "").remedy.contains("CONFIG_DEVMEM"));
        let refused = Settings { why_no_pool: Some("no room".into()), ..none.clone() };
        let told = shared_memory(&refused, nowhere, "");
        assert!(told.level == Level::Warn && told.detail.contains("no room"), "{told:?}");
        assert!(link(Port(700), Err("x".into())).remedy.contains("module of CONFIG_MULTIKERNEL_VSOCKETS"));
    }

    #[test]
    fn devices_without_an_iommu_are_warned_of() {
        let without = devices(false);
        assert_eq!(without.level, Level::Warn);
        assert!(without.detail.contains("all memory of this machine") && without.remedy.contains("iommu=on"));
        assert_eq!(devices(true).level, Level::Ok);
    }

    #[test]
    fn each_state_of_the_interface_says_what_to_do() {
        let root = Path::new("/sys/fs/multikernel");
        let look = |state| interface(root, &state);
        assert!(look(InterfaceState::Absent).remedy.starts_with("mount -t multikernel"));
        assert!(look(InterfaceState::NoPool).remedy.starts_with("tombolo multikernel pool "));
        assert!(look(InterfaceState::Old("x".into())).detail.contains("earlier form"));
        let pool = InterfaceState::Pool { cpus: 4, cpus_free: 2, memory_mib: 512, instances: 1 };
        assert_eq!(look(pool).level, Level::Ok);
    }
}
