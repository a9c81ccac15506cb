//! What keeps this process from loading kernels at all (`kexec_load_permitted` in kernel/kexec_core.c), looked at before anything is made for one.

use super::interface::Interface;

/// `CAP_SYS_BOOT`, by its number in the masks of /proc/self/status.
const CAP_SYS_BOOT: u32 = 22;

/// Why no kernel can be loaded, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Obstacle {
    pub(crate) what: &'static str,
    pub(crate) remedy: &'static str,
}

/// What is in the way by all that can be read; `None` too where nothing can be: the kernel says it then.
pub(super) fn obstacle(kernel: &impl Interface) -> Option<Obstacle> {
    obstacle_by(|path| kernel.read_of_host(path).ok())
}

/// The same, by what `read` finds in files of the host.
pub(crate) fn obstacle_by(read: impl Fn(&str) -> Option<String>) -> Option<Obstacle> {
    let is = |path: &str, value: &str| read(path).is_some_and(|text| text.trim() == value);
    if read("/proc/self/status").and_then(|status| has_capability(&status)) == Some(false) {
        return Some(Obstacle {
            what: "kernels cannot be loaded or started: CAP_SYS_BOOT is missing",
            remedy: "run tombolod as root",
        });
    }
    if is("/proc/sys/kernel/kexec_load_disabled", "1") {
        return Some(Obstacle {
            what: "kernels cannot be loaded: kernel.kexec_load_disabled is 1, which lasts until this machine is booted anew",
            remedy: "find who sets it (sysctl.d, the initial archive), and boot without that",
        });
    }
    if is("/proc/sys/kernel/kexec_load_limit_reboot", "0") {
        return Some(Obstacle {
            what: "kernels cannot be loaded: kernel.kexec_load_limit_reboot is 0, each load took one off, and it is not raised until this machine is booted anew",
            remedy: "find who sets it (sysctl.d, the initial archive), and boot without that",
        });
    }
    None
}

fn has_capability(status: &str) -> Option<bool> {
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let mask = u64::from_str_radix(mask.trim(), 16).ok()?;
    Some(mask & (1 << CAP_SYS_BOOT) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(files: &[(&str, &str)]) -> Option<&'static str> {
        let read = |path: &str| files.iter().find(|file| file.0 == path).map(|file| file.1.to_owned());
        obstacle_by(read).map(|obstacle| obstacle.what)
    }

    #[test]
    fn what_keeps_from_loading_a_kernel_is_named() {
        let root = ("/proc/self/status", "Name:\tx\nCapEff:\t000001ffffffffff\n");
        let disabled = |value| ("/proc/sys/kernel/kexec_load_disabled", value);
        let limit = |value| ("/proc/sys/kernel/kexec_load_limit_reboot", value);
        assert_eq!(told(&[root, disabled("0\n"), limit("-1\n")]), None);
        assert_eq!(told(&[root, limit("3\n")]), None);
        let nobody = ("/proc/self/status", "CapEff:\t0000000000000000\n");
        assert!(told(&[nobody]).unwrap().contains("CAP_SYS_BOOT"));
        assert!(told(&[root, disabled("1\n")]).unwrap().contains("kexec_load_disabled"));
        assert!(told(&[root, limit("0\n")]).unwrap().contains("kexec_load_limit_reboot"));
    }

    #[test]
    fn what_cannot_be_read_is_in_nobodys_way() {
        assert_eq!(told(&[]), None);
        assert_eq!(told(&[("/proc/self/status", "CapEff:\tzz\n")]), None);
    }
}
