//! Python's packages for what is built or tested here: from PyPI, by pip, into a folder of their own. Nothing is installed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::apt::{self, Apt};
use crate::command;

pub(crate) const PYTHON: &str = "python3";

/// Has pip put what `requirements` lists, with hashes, and nothing else, into `folder`. `prepare` may add to pip's environment. Works in `work`.
pub(crate) fn install(
    apt: &Apt,
    work: &Path,
    requirements: &str,
    folder: &Path,
    prepare: impl FnOnce(&mut Command) -> Result<()>,
) -> Result<()> {
    let python = command::run(Command::new(PYTHON).arg("--version"));
    python.context("there is no Python (as root: apt install python3)")?;
    let list = work.join("requirements.txt");
    std::fs::write(&list, requirements)?;
    let mut pip = pip(apt, work)?;
    pip.args(["install", "--quiet", "--no-deps", "--require-hashes", "--target"]).arg(folder);
    prepare(&mut pip)?;
    command::run(pip.arg("--requirement").arg(&list).env_remove("PYTHONPATH"))
}

/// The host's pip; else that of Debian's package, which runs as it is packed.
fn pip(apt: &Apt, work: &Path) -> Result<Command> {
    let mut pip = Command::new(PYTHON);
    if command::run(Command::new(PYTHON).args(["-m", "pip", "--version"])).is_ok() {
        pip.args(["-m", "pip"]);
        return Ok(pip);
    }
    let unpacked = unpack(apt, &["python3-pip-whl"], &work.join("pip"))?;
    let wheels = unpacked.join("usr/share/python-wheels");
    let mut files = std::fs::read_dir(&wheels)?.flatten().map(|entry| entry.path());
    let is_pip =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"pip-"));
    let wheel = files.find(is_pip).with_context(|| format!("no pip is in {}", wheels.display()))?;
    pip.arg(wheel.join("pip"));
    Ok(pip)
}

/// Downloads Debian's packages and unpacks them into `folder`, which is returned.
pub(crate) fn unpack(apt: &Apt, packages: &[&str], folder: &Path) -> Result<PathBuf> {
    for file in apt.download(packages)? {
        apt::unpack(&file, folder)?;
    }
    Ok(folder.to_owned())
}
