//! Getting a kernel image: Debian's package `user-mode-linux`, unpacked into the user's cache folder. No root needed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::apt::{self, Apt};

/// Debian's package.
const PACKAGE: &str = "user-mode-linux";
/// The kernel within it.
const KERNEL: &str = "usr/bin/linux.uml";

/// The kernel to boot: `$TOMBOLO_UML_KERNEL`, an installed one, one fetched earlier, or one fetched now.
///
/// # Errors
/// Says why none could be had.
pub(crate) fn find_or_fetch() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("TOMBOLO_UML_KERNEL").map(PathBuf::from) {
        ensure!(path.is_file(), "TOMBOLO_UML_KERNEL is {}, which is not a file", path.display());
        return Ok(path);
    }
    let folder = cache_folder()?.join("uml");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|dir| dir.join("linux.uml"));
    let known = on_path.chain(["/usr/bin/linux.uml".into(), folder.join(KERNEL)]);
    if let Some(found) = known.into_iter().find(|path| path.is_file()) {
        return Ok(found);
    }
    fetch(&folder).with_context(|| {
        format!("could not fetch Debian's package `{PACKAGE}` (as root: apt install {PACKAGE})")
    })?;
    Ok(folder.join(KERNEL))
}

/// Where this project keeps what it fetches and builds once, within the user's cache folder.
pub(crate) fn cache_folder() -> Result<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
    Ok(cache.context("neither XDG_CACHE_HOME nor HOME is set: where is the cache folder?")?.join("tombolo"))
}

/// Downloads and unpacks beside `folder`, and moves it there when it is whole: an interrupted fetch leaves no half kernel.
fn fetch(folder: &Path) -> Result<()> {
    let parent = folder.parent().context("the cache folder has no parent")?;
    fs::create_dir_all(parent).with_context(|| format!("could not create {}", parent.display()))?;
    let work = tempfile::Builder::new().prefix("fetch-").tempdir_in(parent)?;
    eprintln!("fetching the package {PACKAGE} (once; it is kept in {})", folder.display());

    let packages = Apt::new(work.path()).download(&[PACKAGE])?;
    let unpacked = work.path().join("unpacked");
    packages.iter().try_for_each(|package| apt::unpack(package, &unpacked))?;
    ensure!(unpacked.join(KERNEL).is_file(), "it holds no {KERNEL}");
    match fs::rename(&unpacked, folder) {
        // Another fetch was faster.
        Err(_) if folder.join(KERNEL).is_file() => Ok(()),
        other => other.with_context(|| format!("could not move it to {}", folder.display())),
    }
}
