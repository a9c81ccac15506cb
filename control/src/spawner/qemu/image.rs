//! Finding QEMU and a Linux kernel for it: named by the environment, installed, or unpacked by `cargo xtask` into the user's
//! cache folder, where QEMU has its libraries and firmware beside it.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::modules::Modules;
use crate::spawner::image::{cache_folder, version_of};
use crate::spawner::{SpawnError, SpawnerKind};

/// What to do when something is missing.
const REMEDY: &str = "install Debian's packages `qemu-system-x86` and `linux-image-cloud-amd64`, or run `cargo xtask \
     fetch-qemu` (no root needed), or set TOMBOLO_QEMU and TOMBOLO_QEMU_KERNEL";
const BOOT_MARK: &[u8] = b"HdrS";
const BOOT_MARK_AT: usize = 0x202;
const PROGRAM: &str = "qemu-system-x86_64";

/// QEMU and a kernel for it.
#[derive(Clone, Debug)]
pub(super) struct Image {
    pub(super) program: PathBuf,
    /// Where its shared libraries are, for one that was only unpacked.
    pub(super) libraries: Option<String>,
    /// Where its firmware is, for such a one.
    pub(super) firmware: Vec<PathBuf>,
    /// The kernel, a bzImage.
    pub(super) kernel: PathBuf,
}

/// Finds QEMU and a kernel; `kernel`: this one instead of what would be found.
pub(super) fn find(kernel: Option<&Path>) -> Result<Image, SpawnError> {
    let missing =
        |what: String| SpawnError::Unavailable { kind: SpawnerKind::Qemu, what, remedy: REMEDY.into() };
    let named = |variable: &str| match std::env::var_os(variable).map(PathBuf::from) {
        Some(path) if !path.is_file() => {
            Err(missing(format!("{variable} is {}, which is not a file", path.display())))
        }
        named => Ok(named),
    };
    let unpacked = cache_folder("qemu");
    let (program, is_unpacked) = find_program(named("TOMBOLO_QEMU")?, unpacked.as_deref())
        .ok_or_else(|| missing(format!("no {PROGRAM} was found")))?;
    let kernel = match kernel {
        Some(path) => path.to_owned(),
        None => named("TOMBOLO_QEMU_KERNEL")?
            .or_else(|| {
                let unpacked = unpacked.iter().map(|folder| folder.join("boot"));
                unpacked.chain([PathBuf::from("/boot")]).find_map(|boot| newest_kernel(&boot))
            })
            .ok_or_else(|| missing("no kernel for QEMU (vmlinuz-*-cloud-amd64) was found".into()))?,
    };
    check_kernel(&kernel).map_err(|reason| SpawnError::NotAKernel {
        kind: SpawnerKind::Qemu,
        path: kernel.clone(),
        reason,
    })?;
    let within = unpacked.filter(|_| is_unpacked);
    let libraries = within.as_ref().map(|root| {
        ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"]
            .map(|dir| root.join(dir).display().to_string())
            .join(":")
    });
    let firmware =
        within.iter().flat_map(|root| ["usr/share/qemu", "usr/share/seabios"].map(|dir| root.join(dir)));
    Ok(Image { program, libraries, firmware: firmware.collect(), kernel })
}

/// The program, and whether it is the unpacked one.
fn find_program(named: Option<PathBuf>, unpacked: Option<&Path>) -> Option<(PathBuf, bool)> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|dir| dir.join(PROGRAM));
    let installed = named.into_iter().chain(on_path).find(|path| path.is_file());
    let fetched = || Some(unpacked?.join("usr/bin").join(PROGRAM)).filter(|path| path.is_file());
    installed.map(|path| (path, false)).or_else(|| Some((fetched()?, true)))
}

/// Looks whether it has the mark of a kernel that boot loaders load (Documentation/x86/boot.rst in Linux's source).
fn check_kernel(path: &Path) -> Result<(), String> {
    let mut head = [0; BOOT_MARK_AT + BOOT_MARK.len()];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut head));
    match read {
        Ok(()) if head.ends_with(BOOT_MARK) => Ok(()),
        Ok(()) => Err("it is not a Linux kernel for x86 machines (bzImage)".into()),
        Err(error) => Err(error.to_string()),
    }
}

/// The newest of Debian's kernels for virtual machines in a folder, by the numbers in its name.
fn newest_kernel(boot: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(boot).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let version = |path: &PathBuf| -> Option<Vec<u64>> {
        let name = path.file_name()?.to_str()?.strip_prefix("vmlinuz-")?.strip_suffix("-cloud-amd64")?;
        Some(name.split(['.', '-']).map(|part| part.parse().unwrap_or(0)).collect())
    };
    entries.filter_map(|path| Some((version(&path)?, path))).max().map(|(_, path)| path)
}

impl Image {
    /// The files of these modules and of what they need, in load order; of `useful` only what can be had.
    pub(super) fn modules(&self, names: &[String], useful: &[&str]) -> Result<Vec<PathBuf>, SpawnError> {
        let missing =
            |what: String| SpawnError::Unavailable { kind: SpawnerKind::Qemu, what, remedy: REMEDY.into() };
        let folder = match self.modules_folder() {
            Some(folder) => folder,
            None if names.is_empty() => return Ok(Vec::new()),
            None => {
                return Err(missing(format!(
                    "no modules of the kernel {} were found",
                    self.kernel.display()
                )));
            }
        };
        let modules = Modules::in_folder(&folder).map_err(|source| SpawnError::File {
            action: "search",
            path: folder.clone(),
            source,
        })?;
        let mut wanted = names.to_vec();
        let can_be_had = |name: &&&str| modules.in_load_order(&[(**name).to_owned()]).is_ok();
        wanted.extend(useful.iter().filter(can_be_had).map(|name| (*name).to_owned()));
        modules.in_load_order(&wanted).map_err(missing)
    }

    /// Beside the folder of the kernel or, for one that lies elsewhere, where the host has its own.
    fn modules_folder(&self) -> Option<PathBuf> {
        let version = self.kernel.file_name()?.to_str()?.strip_prefix("vmlinuz-")?;
        let beside = self.kernel.parent().and_then(Path::parent).map(|root| root.join("lib/modules"));
        let folders = beside.into_iter().chain([PathBuf::from("/lib/modules")]);
        folders.map(|dir| dir.join(version)).find(|dir| dir.join("kernel").is_dir())
    }

    /// The whole environment of the program.
    pub(super) fn environment(&self) -> Vec<(String, String)> {
        self.libraries.iter().map(|libraries| ("LD_LIBRARY_PATH".to_owned(), libraries.clone())).collect()
    }

    /// What the program says of its version.
    pub(super) async fn version(&self) -> String {
        let mut program = tokio::process::Command::new(&self.program);
        let version = version_of(program.envs(self.environment())).await;
        version.unwrap_or_else(|| "a QEMU that does not say its version".to_owned())
    }

    /// What it is, in one line: the program's version and the kernel's.
    pub(super) async fn describe(&self) -> String {
        format!("{} ({}), {}", self.program.display(), self.version().await, self.kernel.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_kernel_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vmlinuz");
        assert!(check_kernel(&path).unwrap_err().contains("No such file"));
        std::fs::write(&path, "short").unwrap();
        assert!(check_kernel(&path).is_err());
        let mut content = vec![0; 4096];
        std::fs::write(&path, &content).unwrap();
        assert!(check_kernel(&path).unwrap_err().contains("not a Linux kernel"));
        content[BOOT_MARK_AT..][..4].copy_from_slice(BOOT_MARK);
        std::fs::write(&path, &content).unwrap();
        assert_eq!(check_kernel(&path), Ok(()));
        assert!(matches!(
            find(Some(dir.path())),
            Err(SpawnError::NotAKernel { .. } | SpawnError::Unavailable { .. })
        ));
    }

    #[test]
    fn the_newest_kernel_is_found_by_number_not_by_letter() {
        let dir = tempfile::tempdir().unwrap();
        let names = [
            "vmlinuz-6.1.0-9-cloud-amd64",
            "vmlinuz-6.1.0-48-cloud-amd64",
            "vmlinuz-7.0.0-1-amd64",
            "config-9",
        ];
        for name in names {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(newest_kernel(dir.path()), Some(dir.path().join(names[1])));
        assert_eq!(newest_kernel(&dir.path().join("nothing")), None);
    }
}
