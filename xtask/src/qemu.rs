//! Getting QEMU and a kernel for it: Debian's packages, unpacked into the user's cache folder. No root needed, nothing is installed.
//!
//! An installed QEMU is preferred; then only the kernel is fetched, unless there is one as well.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::apt::{self, Apt};
use crate::image::{cache_folder, named};

const PROGRAM: &str = "qemu-system-x86_64";
/// The emulator and its firmware.
const PACKAGES: [&str; 4] = ["qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios"];
/// Depends on the current kernel for virtual machines, whose own name has its version.
const KERNEL: &str = "linux-image-cloud-amd64";
/// Where an unpacked package has its libraries.
pub(crate) const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
/// Libraries need libraries: so many rounds of looking what is missing are enough for every release of Debian so far.
const ROUNDS_MAX: usize = 8;

/// What the `qemu` spawner needs.
#[derive(Clone, Debug)]
pub(crate) struct Qemu {
    pub(crate) program: PathBuf,
    pub(crate) kernel: PathBuf,
}

/// What is there, or was fetched now.
///
/// # Errors
/// Says why it could not be had.
pub(crate) fn find_or_fetch() -> Result<Qemu> {
    let folder = cache_folder()?.join("qemu");
    if let Some(found) = find(&folder)? {
        return Ok(found);
    }
    // What is in the folder is replaced as a whole.
    let is_installed = program(&folder)?.is_some_and(|program| !program.starts_with(&folder));
    let what = "QEMU and a kernel (about 120 MB, once)";
    let is_whole = || Ok(find(&folder)?.is_some());
    let fetched =
        apt::fetch_into(&folder, what, is_whole, |apt, unpacked| fill(apt, unpacked, !is_installed));
    fetched.with_context(|| {
        format!("could not fetch QEMU and a kernel for it (as root: apt install {} {KERNEL})", PACKAGES[0])
    })?;
    find(&folder)?.with_context(|| format!("nothing usable is in {} after fetching it", folder.display()))
}

fn find(folder: &Path) -> Result<Option<Qemu>> {
    let both = program(folder)?.zip(kernel(folder)?);
    Ok(both.map(|(program, kernel)| Qemu { program, kernel }))
}

fn program(folder: &Path) -> Result<Option<PathBuf>> {
    if let Some(path) = named("TOMBOLO_QEMU")? {
        return Ok(Some(path));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|dir| dir.join(PROGRAM));
    Ok(on_path.chain([folder.join("usr/bin").join(PROGRAM)]).find(|path| path.is_file()))
}

fn kernel(folder: &Path) -> Result<Option<PathBuf>> {
    if let Some(path) = named("TOMBOLO_QEMU_KERNEL")? {
        return Ok(Some(path));
    }
    Ok([folder.join("boot"), "/boot".into()].iter().find_map(|boot| kernel_in(boot)))
}

fn kernel_in(boot: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(boot).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let is_kernel = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with("vmlinuz-") && name.ends_with("-cloud-amd64")
    };
    entries.filter(is_kernel).max_by_key(|path| numbers_in(path))
}

/// The numbers of a file's name: by them, not by letters, is one version newer than another.
fn numbers_in(path: &Path) -> Vec<u64> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

/// Unpacks a kernel into the folder and, if wanted, the program with what it needs.
fn fill(apt: &Apt, unpacked: &Path, with_program: bool) -> Result<()> {
    let depends = apt.depends(KERNEL)?;
    let kernel = depends.iter().find(|name| name.starts_with("linux-image-"));
    get(
        apt,
        &[kernel.with_context(|| format!("{KERNEL} depends on no kernel but on {depends:?}"))?],
        unpacked,
    )?;
    ensure!(kernel_in(&unpacked.join("boot")).is_some(), "the kernel's package holds no kernel");
    if with_program {
        get_with_libraries(apt, &PACKAGES, &format!("usr/bin/{PROGRAM}"), unpacked)?;
    }
    Ok(())
}

fn get(apt: &Apt, packages: &[&str], unpacked: &Path) -> Result<()> {
    apt.download(packages)?.iter().try_for_each(|package| apt::unpack(package, unpacked))
}

/// Unpacks packages, and those of all libraries that `program`, a path in them, needs and the host has not.
pub(crate) fn get_with_libraries(apt: &Apt, packages: &[&str], program: &str, unpacked: &Path) -> Result<()> {
    get(apt, packages, unpacked)?;
    get_libraries(&unpacked.join(program), unpacked, |packages| get(apt, packages, unpacked))
}

/// Gets the packages of the shared libraries that neither the host nor the unpacked packages have.
fn get_libraries(program: &Path, unpacked: &Path, get: impl Fn(&[&str]) -> Result<()>) -> Result<()> {
    let mut before = Vec::new();
    for _ in 0..ROUNDS_MAX {
        let missing = missing_libraries(program, unpacked)?;
        if missing.is_empty() {
            return Ok(());
        }
        ensure!(missing != before, "{} still lacks {}", program.display(), missing.join(", "));
        for library in &missing {
            let names = packages_of(library);
            let mut errors = Vec::new();
            for name in &names {
                match get(&[name]) {
                    Ok(()) => {
                        errors.clear();
                        break;
                    }
                    Err(error) => errors.push(format!("{error:#}")),
                }
            }
            ensure!(errors.is_empty(), "the package of {library} was not found: {}", errors.join("; "));
        }
        before = missing;
    }
    bail!("{} needs libraries without end", program.display())
}

fn missing_libraries(program: &Path, unpacked: &Path) -> Result<Vec<String>> {
    let folders = LIBRARIES.map(|dir| unpacked.join(dir).display().to_string()).join(":");
    let output = Command::new("ldd").arg(program).env("LD_LIBRARY_PATH", folders).output();
    let output = output.context("could not run ldd")?;
    ensure!(output.status.success(), "ldd does not understand {}", program.display());
    Ok(not_found(&String::from_utf8_lossy(&output.stdout)))
}

/// ldd(1) writes what it cannot find as `libx.so.1 => not found`.
fn not_found(text: &str) -> Vec<String> {
    let lines = text.lines().filter_map(|line| line.split_once(" => not found"));
    let mut names: Vec<String> = lines.map(|(name, _)| name.trim().to_owned()).collect();
    names.sort();
    names.dedup();
    names
}

/// How Debian may name the package of a library: after its name and version, in lower case, with a hyphen between two digits (Debian
/// Policy 8.1); some have `t64` after it since 64-bit times came to 32-bit machines, and GLib's have no hyphen before the first number.
fn packages_of(library: &str) -> Vec<String> {
    let (name, version) = library.split_once(".so.").unwrap_or((library, ""));
    let hyphen = if name.ends_with(|last: char| last.is_ascii_digit()) { "-" } else { "" };
    let usual = format!("{name}{hyphen}{version}").to_lowercase().replace('_', "-");
    let mut names = vec![usual.clone(), format!("{usual}t64")];
    if let Some((before, after)) =
        usual.split_once('-').filter(|(_, after)| after.starts_with(char::is_numeric))
    {
        names.extend([format!("{before}{after}"), format!("{before}{after}t64")]);
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_libraries_are_told_from_those_that_are_there() {
        let text = "\tlinux-vdso.so.1 (0x7)\n\tlibfdt.so.1 => not found\n\tlibc.so.6 => /lib/libc.so.6 (0x7)\n\tlibfdt.so.1 => not found\n";
        assert_eq!(not_found(text), ["libfdt.so.1"]);
    }

    #[test]
    fn the_newest_kernel_is_told_by_number() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["vmlinuz-6.1.0-9-cloud-amd64", "vmlinuz-6.1.0-48-cloud-amd64", "vmlinuz-9-amd64"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(kernel_in(dir.path()), Some(dir.path().join("vmlinuz-6.1.0-48-cloud-amd64")));
    }

    #[test]
    fn packages_are_named_after_their_libraries() {
        for (library, package) in [
            ("libfdt.so.1", "libfdt1"),
            ("libslirp.so.0", "libslirp0"),
            ("libnl-3.so.200", "libnl-3-200"),
            ("libnl-route-3.so.200", "libnl-route-3-200"),
            ("libSDL2_image-2.0.so.0", "libsdl2-image-2.0-0"),
        ] {
            assert_eq!(packages_of(library)[0], package);
        }
        for (library, package) in [("libaio.so.1", "libaio1t64"), ("libglib-2.0.so.0", "libglib2.0-0t64")] {
            assert!(packages_of(library).contains(&package.to_owned()), "{library}");
        }
    }
}
