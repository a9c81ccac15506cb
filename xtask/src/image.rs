//! Getting a kernel image: Debian's package `user-mode-linux`, unpacked into the user's cache folder. No root needed.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};

use crate::apt;

/// Debian's package.
const PACKAGE: &str = "user-mode-linux";
/// The kernel within it.
const KERNEL: &str = "usr/bin/linux.uml";

/// The kernel to boot: `$TOMBOLO_UML_KERNEL`, an installed one, one fetched earlier, or one fetched now.
///
/// # Errors
/// Says why none could be had.
pub(crate) fn find_or_fetch() -> Result<PathBuf> {
    if let Some(path) = named("TOMBOLO_UML_KERNEL")? {
        return Ok(path);
    }
    let folder = cache_folder()?.join("uml");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|dir| dir.join("linux.uml"));
    let known = on_path.chain(["/usr/bin/linux.uml".into(), folder.join(KERNEL)]);
    if let Some(found) = known.into_iter().find(|path| path.is_file()) {
        return Ok(found);
    }
    let what = format!("the package {PACKAGE} (once)");
    let is_whole = || Ok(folder.join(KERNEL).is_file());
    apt::fetch_into(&folder, &what, is_whole, |apt, unpacked| {
        apt.download(&[PACKAGE])?.iter().try_for_each(|package| apt::unpack(package, unpacked))?;
        ensure!(unpacked.join(KERNEL).is_file(), "it holds no {KERNEL}");
        Ok(())
    })
    .with_context(|| {
        format!("could not fetch Debian's package `{PACKAGE}` (as root: apt install {PACKAGE})")
    })?;
    Ok(folder.join(KERNEL))
}

/// The file that an environment variable names, if it is set.
pub(crate) fn named(variable: &str) -> Result<Option<PathBuf>> {
    let Some(path) = std::env::var_os(variable).map(PathBuf::from) else { return Ok(None) };
    ensure!(path.is_file(), "{variable} is {}, which is not a file", path.display());
    Ok(Some(path))
}

/// Where this project keeps what it fetches and builds once, within the user's cache folder.
pub(crate) fn cache_folder() -> Result<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
    Ok(cache.context("neither XDG_CACHE_HOME nor HOME is set: where is the cache folder?")?.join("tombolo"))
}
