//! Mounting the kernel's file system, for whoever asks for it.

use std::path::Path;

use rustix::mount::{MountFlags, mount as mount_at};

use super::Settings;
use super::interface::Mounted;
use super::look::what_is_missing;
use crate::spawner::multikernel::is_file_system;

/// Mounts the kernel's file system where the settings have it, unless it is. Returns whether it was mounted now.
///
/// # Errors
/// A sentence that says why not, and what to do.
pub(crate) fn mount(settings: &Settings) -> Result<bool, String> {
    let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_by(settings, &filesystems, |root| Ok(mount_at("none", root, NAME, flags, None)?))
}

/// Its name in /proc/filesystems.
const NAME: &str = "multikernel";

fn mount_by(
    settings: &Settings,
    filesystems: &str,
    mount: impl FnOnce(&Path) -> std::io::Result<()>,
) -> Result<bool, String> {
    let (kernel, root) = (Mounted::at(&settings.root), settings.root.as_path());
    if kernel.is_mounted() {
        return Ok(false);
    }
    if !is_file_system(NAME, filesystems) {
        let (what, remedy) = what_is_missing(filesystems, root);
        return Err(format!("{what}: {remedy}"));
    }
    mount(root).map_err(|error| {
        format!(
            "could not mount the kernel's interface at {} (it takes CAP_SYS_ADMIN): {error}",
            root.display()
        )
    })?;
    match kernel.is_mounted() {
        true => Ok(true),
        false => Err(format!(
            "the kernel mounted its interface at {}, and it has no overlays/new: it is of a form that is not spoken here",
            root.display()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &str = "nodev\tsysfs\nnodev\tmultikernel\n";

    fn settings(root: &Path) -> Settings {
        Settings { root: root.into(), ..Settings::default() }
    }

    fn as_the_kernel_makes_it(root: &Path) -> std::io::Result<()> {
        std::fs::create_dir_all(root.join("overlays"))?;
        std::fs::write(root.join("overlays/new"), "")
    }

    #[test]
    fn interface_is_mounted_once() {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(dir.path());
        assert_eq!(mount_by(&settings, KNOWN, as_the_kernel_makes_it), Ok(true));
        assert_eq!(mount_by(&settings, KNOWN, |_| panic!("it is there")), Ok(false));
    }

    #[test]
    fn kernel_without_the_file_system_is_not_asked_to_mount_it() {
        let dir = tempfile::tempdir().unwrap();
        let refused = mount_by(&settings(dir.path()), "nodev\tsysfs\n", |_| panic!("it has none"));
        assert!(refused.unwrap_err().contains("CONFIG_MULTIKERNEL=y"));
    }

    #[test]
    fn mount_that_fails_or_shows_another_form_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(dir.path());
        let denied = |_: &Path| Err(std::io::Error::from_raw_os_error(libc::EPERM));
        assert!(mount_by(&settings, KNOWN, denied).unwrap_err().contains("CAP_SYS_ADMIN"));
        assert!(mount_by(&settings, KNOWN, |_| Ok(())).unwrap_err().contains("not spoken here"));
    }
}
