//! Getting dtc, the device tree compiler, which tests hold our device trees against: Debian's package, unpacked into the user's cache folder. No
//! root needed, nothing is installed.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::apt::{self, Apt};
use crate::image::{cache_folder, named};
use crate::qemu::{self, LIBRARIES};

const PACKAGE: &str = "device-tree-compiler";
const PROGRAM: &str = "usr/bin/dtc";
/// Runs the program with the libraries that were unpacked beside it.
const STARTER: &str = "dtc";

/// One that runs: named by `TOMBOLO_DTC`, installed, or fetched now or earlier.
///
/// # Errors
/// Says why it could not be had.
pub(crate) fn find_or_fetch() -> Result<PathBuf> {
    let folder = cache_folder()?.join("dtc");
    let starter = folder.join(STARTER);
    let found = named("TOMBOLO_DTC")?.or_else(|| {
        let known = [PathBuf::from("dtc"), starter.clone()];
        known.into_iter().find(|program| runs(program))
    });
    if let Some(found) = found {
        return Ok(found);
    }
    let is_whole = || Ok(runs(&starter));
    apt::fetch_into(&folder, "dtc (1 MB, once)", is_whole, |apt, unpacked| fill(apt, unpacked, &folder))
        .with_context(|| format!("could not fetch dtc (as root: apt install {PACKAGE})"))?;
    ensure!(runs(&starter), "what was fetched into {} does not run", folder.display());
    Ok(starter)
}

fn runs(program: &Path) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// Unpacks it with the libraries that it needs. `folder`: where it will be.
fn fill(apt: &Apt, unpacked: &Path, folder: &Path) -> Result<()> {
    qemu::get_with_libraries(apt, &[PACKAGE], PROGRAM, unpacked)?;
    let libraries = LIBRARIES.map(|dir| folder.join(dir).display().to_string()).join(":");
    let program = folder.join(PROGRAM);
    let starter = unpacked.join(STARTER);
    let text = format!("#!/bin/sh\nLD_LIBRARY_PATH={libraries} exec {} \"$@\"\n", program.display());
    fs::write(&starter, text).with_context(|| format!("could not write {}", starter.display()))?;
    let permissions = fs::Permissions::from_mode(0o755);
    fs::set_permissions(&starter, permissions)
        .with_context(|| format!("could not make {} a program", starter.display()))
}
