//! What a machine lacks to run kernels beside this one, item by item.
//!
//! Each item is looked at by itself, so that one run of `tombolo doctor` names all that is to be done.

use std::fs;
use std::io::Read as _;
use std::path::Path;

use tombolo_handover::PciAddress;
use tombolo_transport::Port;

use super::finding;
use crate::api::host::{Finding, Level};
use crate::spawner::multikernel::{
    InterfaceState, MAKE_A_POOL, NEEDS_VSOCK, Obstacle, Settings, SharedPool, Unfit, can_be_called,
    how_to_mount, interface_state, is_file_system, lock_left_behind, obstacle_by, pool_functions,
    what_is_missing,
};

/// More than any kernel's configuration, in bytes.
const CONFIG_BYTES_MAX: u64 = 4 << 20;

/// The page that walks through all of it.
const GUIDE: &str = "docs/multikernel.md";

/// Looks at everything.
pub(super) fn items(settings: &Settings) -> Vec<Finding> {
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let mut items = vec![
        kernel(&filesystems),
        config(kernel_config().as_deref()),
        interface(settings.root.as_path(), &interface_state(settings)),
        calls(
            obstacle_by(|path| fs::read_to_string(path).ok()),
            &fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default(),
        ),
        console(settings.console_device()),
        shared_memory(settings, Path::new(SharedPool::HEAP), &filesystems),
        devices(fs::read_dir("/sys/kernel/iommu_groups").is_ok_and(|mut groups| groups.next().is_some())),
    ];
    match pool_functions(settings) {
        Ok(functions) => items.extend(
            functions.into_iter().flat_map(|(function, troubles)| function_items(function, &troubles)),
        ),
        Err(reason) => items.push(finding(
            "multikernel device",
            Level::Warn,
            format!("which devices are set aside is not known: {reason}"),
            "look at the kernel's log (dmesg)",
        )),
    }
    items.extend(settings.needs_vsock().then(|| link(settings.link_port(), can_be_called())));
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
        InterfaceState::Absent => {
            warn(format!("the kernel's interface is not mounted at {shown}"), how_to_mount(root))
        }
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

/// What the kernel must be built with, and for what; what may be a module is no less there.
const SYMBOLS: [(&str, &str); 8] = [
    ("MULTIKERNEL", "kernels beside this one"),
    ("KEXEC_FILE", "loading them"),
    ("CONTIG_ALLOC", "memory for them"),
    ("MEMORY_HOTPLUG", "memory that comes while one runs"),
    ("MEMORY_HOTREMOVE", "memory that goes while one runs"),
    ("MKTTY", "their consoles"),
    ("MULTIKERNEL_VSOCKETS", "their vsock"),
    ("DMABUF_HEAPS", "memory that they share"),
];

/// What this kernel was built with, if it tells.
fn kernel_config() -> Option<String> {
    let mut text = String::new();
    if let Ok(packed) = fs::File::open("/proc/config.gz") {
        flate2::read::GzDecoder::new(packed).take(CONFIG_BYTES_MAX).read_to_string(&mut text).ok()?;
        return Some(text);
    }
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let file = fs::File::open(format!("/boot/config-{release}")).ok()?;
    file.take(CONFIG_BYTES_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}

fn config(config: Option<&str>) -> Finding {
    let subject = "multikernel config";
    let Some(config) = config else {
        return finding(
            subject,
            Level::Ok,
            "this kernel does not tell what it was built with (no /proc/config.gz, no /boot/config-*)",
            "",
        );
    };
    let is_set = |symbol: &str| {
        let set = ["y", "m"].map(|value| format!("CONFIG_{symbol}={value}"));
        config.lines().any(|line| set.iter().any(|set| line == set))
    };
    let lacks: Vec<String> = SYMBOLS
        .iter()
        .filter(|(symbol, _)| !is_set(symbol))
        .map(|(symbol, of)| format!("CONFIG_{symbol} ({of})"))
        .collect();
    if lacks.is_empty() {
        return finding(subject, Level::Ok, "this kernel was built with all that it takes", "");
    }
    let detail = format!("this kernel was built without {}", lacks.join(", "));
    finding(subject, Level::Warn, detail, format!("build one with them, as {GUIDE} says"))
}

fn calls(obstacle: Option<Obstacle>, lockdown: &str) -> Finding {
    let subject = "multikernel calls";
    if let Some(Obstacle { what, remedy }) = obstacle {
        return finding(subject, Level::Warn, what, remedy);
    }
    if lockdown.contains("[integrity]") || lockdown.contains("[confidentiality]") {
        return finding(
            subject,
            Level::Warn,
            "this kernel is locked down: it loads only signed kernels",
            "sign the kernel to load (kerf sign), or boot without lockdown",
        );
    }
    finding(subject, Level::Ok, "nothing keeps this process from loading and starting kernels", "")
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
                format!("{path}: consoles are recorded, and can be lent (tombolo console --lend)"),
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

/// Where kernels share no memory all depends on the kernel's vsock; where they do, their bells may. `port`: of the one socket, in the first case.
fn link(port: Option<Port>, vsock: Result<(), String>) -> Finding {
    let subject = "multikernel link";
    match (vsock, port) {
        (Ok(()), Some(port)) => finding(
            subject,
            Level::Ok,
            format!("the settings name no pool: kernels are reached over this kernel's vsock, port {port}"),
            "",
        ),
        (Ok(()), None) => finding(subject, Level::Ok, "kernels are woken over this kernel's vsock", ""),
        (Err(reason), Some(_)) => finding(
            subject,
            Level::Warn,
            format!(
                "the settings name no pool, and kernels cannot be reached without shared memory: {reason}"
            ),
            NEEDS_VSOCK,
        ),
        (Err(reason), None) => finding(
            subject,
            Level::Warn,
            format!("kernels are to be woken over this kernel's vsock, and cannot be: {reason}"),
            NEEDS_VSOCK,
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
        assert_eq!(calls(None, "[none] integrity confidentiality").level, Level::Ok);
        assert!(calls(None, "none [integrity] confidentiality").detail.contains("signed"));
        let disabled = obstacle_by(|path| path.ends_with("kexec_load_disabled").then(|| "1".into()));
        let told = calls(disabled, "");
        assert!(told.level == Level::Warn && told.detail.contains("kexec_load_disabled"), "{told:?}");
    }

    #[test]
    fn each_symbol_that_the_kernel_was_built_without_is_named_with_what_it_is_for() {
        let all: String = SYMBOLS.iter().map(|(symbol, _)| format!("CONFIG_{symbol}=y\n")).collect();
        assert_eq!(config(Some(&all)).level, Level::Ok);
        assert_eq!(config(Some(&all.replace("MKTTY=y", "MKTTY=m"))).level, Level::Ok, "a module will do");
        let without = all.replace("CONFIG_MULTIKERNEL=y", "# CONFIG_MULTIKERNEL is not set");
        let told = config(Some(&without.replace("CONFIG_KEXEC_FILE=y\n", "")));
        let named = "CONFIG_MULTIKERNEL (kernels beside this one), CONFIG_KEXEC_FILE (loading them)";
        assert!(told.level == Level::Warn && told.detail.ends_with(named), "{told:?}");
        assert_eq!(config(None).level, Level::Ok, "not known is not missing");
    }

    #[test]
    fn kernels_without_shared_memory_need_the_vsock() {
        assert_eq!(link(Some(Port(700)), Ok(())).level, Level::Ok);
        let missing = link(Some(Port(700)), Err("no such device".into()));
        assert_eq!(missing.level, Level::Warn);
        assert!(
            missing.detail.contains("no such device") && missing.remedy.contains("VSOCKETS"),
            "{missing:?}"
        );
        let with_pool: Settings = toml::from_str("pool = { path = \"/p\" }").unwrap();
        assert!(!with_pool.needs_vsock());
        let bells = "pool = { path = \"/p\" }\ndoorbell = { vsock = { port = 30000 } }";
        assert!(toml::from_str::<Settings>(bells).unwrap().needs_vsock());
        let missing = link(None, Err("no such device".into()));
        assert!(missing.level == Level::Warn && missing.detail.contains("woken"), "{missing:?}");
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
        assert!(
            link(Some(Port(700)), Err("x".into())).remedy.contains("module of CONFIG_MULTIKERNEL_VSOCKETS")
        );
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
        assert!(look(InterfaceState::Absent).remedy.contains("mount -t multikernel"));
        assert!(look(InterfaceState::NoPool).remedy.starts_with("tombolo multikernel pool "));
        assert!(look(InterfaceState::Old("x".into())).detail.contains("earlier form"));
        let pool = InterfaceState::Pool { cpus: 4, cpus_free: 2, memory_mib: 512, instances: 1 };
        assert_eq!(look(pool).level, Level::Ok);
    }
}
