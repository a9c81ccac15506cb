//! Getting a kernel image: Debian's package `user-mode-linux`, unpacked into the user's cache folder. No root needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::command;

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

    let package = download(work.path())?;
    let unpacked = work.path().join("unpacked");
    command::run(Command::new("dpkg-deb").arg("-x").arg(&package).arg(&unpacked))
        .context("could not unpack it")?;
    ensure!(unpacked.join(KERNEL).is_file(), "{} holds no {KERNEL}", package.display());
    match fs::rename(&unpacked, folder) {
        // Another fetch was faster.
        Err(_) if folder.join(KERNEL).is_file() => Ok(()),
        other => other.with_context(|| format!("could not move it to {}", folder.display())),
    }
}

/// Downloads with the host's package lists, or with lists of our own where the host has none.
fn download(work: &Path) -> Result<PathBuf> {
    let mut errors = Vec::new();
    for options in [Vec::new(), private_lists(work)?] {
        let fresh = !options.is_empty();
        if fresh && let Err(error) = command::run(Command::new("apt-get").args(&options).arg("update")) {
            errors.push(format!("{error:#}"));
            continue;
        }
        match command::run(
            Command::new("apt-get").args(&options).args(["download", PACKAGE]).current_dir(work),
        ) {
            Ok(()) => {}
            Err(error) => {
                errors.push(format!("{error:#}"));
                continue;
            }
        }
        let deb = fs::read_dir(work)?.filter_map(|entry| Some(entry.ok()?.path()));
        if let Some(deb) =
            deb.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        {
            return Ok(deb);
        }
        errors.push("apt-get download left no package".into());
    }
    bail!("{}", errors.join("; "))
}

/// Options that make apt keep its lists in `work` and use the host's sources: works without root and on hosts whose
/// lists were removed.
fn private_lists(work: &Path) -> Result<Vec<String>> {
    for dir in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(work.join(dir))?;
    }
    let options = [
        format!("Dir::State::Lists={}", work.join("lists").display()),
        format!("Dir::Cache={}", work.join("cache").display()),
        "APT::Sandbox::User=".into(),
        "APT::Update::Post-Invoke-Success::=".into(),
        "APT::Update::Post-Invoke::=".into(),
    ];
    Ok(options.into_iter().flat_map(|option| ["-o".into(), option]).collect())
}
