//! The file systems every program expects.

use std::path::Path;

use nix::mount::{MsFlags, mount};

struct Mount {
    source: &'static str,
    target: &'static str,
    kind: &'static str,
    flags: MsFlags,
    options: &'static str,
}

const SAFE: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC).union(MsFlags::MS_NODEV);

/// In this order: later ones lie in earlier ones.
const MOUNTS: &[Mount] = &[
    Mount { source: "proc", target: "/proc", kind: "proc", flags: SAFE, options: "" },
    Mount { source: "sysfs", target: "/sys", kind: "sysfs", flags: SAFE, options: "" },
    Mount {
        source: "devtmpfs",
        target: "/dev",
        kind: "devtmpfs",
        flags: MsFlags::MS_NOSUID,
        options: "mode=0755",
    },
    Mount {
        source: "devpts",
        target: "/dev/pts",
        kind: "devpts",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        options: "mode=0620,gid=5,ptmxmode=0666",
    },
    Mount {
        source: "tmpfs",
        target: "/dev/shm",
        kind: "tmpfs",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV),
        options: "mode=1777",
    },
    Mount {
        source: "tmpfs",
        target: "/run",
        kind: "tmpfs",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV),
        options: "mode=0755",
    },
    Mount {
        source: "tmpfs",
        target: "/tmp",
        kind: "tmpfs",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV),
        options: "mode=1777",
    },
    Mount { source: "cgroup2", target: "/sys/fs/cgroup", kind: "cgroup2", flags: SAFE, options: "" },
];

/// Mounts what a fresh kernel lacks; what is mounted already is left. Returns what could not be mounted, and why.
///
/// Kernels may lack some of it (cgroup2, devpts): the agent goes on without.
pub fn mount_basics() -> Vec<String> {
    MOUNTS.iter().filter_map(|wanted| wanted.mount().err()).collect()
}

/// Mounts /proc alone.
pub(super) fn mount_proc() {
    // Whoever then reads /proc finds out if this failed.
    let _ = MOUNTS[0].mount();
}

impl Mount {
    fn mount(&self) -> Result<(), String> {
        let target = Path::new(self.target);
        if is_mounted(target) {
            return Ok(());
        }
        // A directory that cannot be made makes the mount fail, which says more.
        let _ = std::fs::create_dir_all(target);
        let options = (!self.options.is_empty()).then_some(self.options);
        match mount(Some(self.source), target, Some(self.kind), self.flags, options) {
            // Already mounted there.
            Ok(()) | Err(nix::errno::Errno::EBUSY) => Ok(()),
            Err(error) => Err(format!("{} on {}: {error}", self.kind, self.target)),
        }
    }
}

/// Whether something is mounted there: it is on another device than its parent.
pub(crate) fn is_mounted(target: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| std::fs::metadata(path).map(|meta| meta.dev()).ok();
    match (device(target), target.parent().and_then(device)) {
        (Some(own), Some(parent)) => own != parent,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_is_told_from_a_directory() {
        assert!(is_mounted(Path::new("/proc")));
        let dir = tempfile::tempdir().unwrap();
        let plain = dir.path().join("plain");
        std::fs::create_dir(&plain).unwrap();
        assert!(!is_mounted(&plain));
        assert!(!is_mounted(Path::new("/no/such/place")));
    }
}
