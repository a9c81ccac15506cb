//! Debian's packages without installing them and without root: downloaded by apt, unpacked by dpkg-deb.

use std::cell::OnceCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::command;

/// Apt, with the host's package lists or, where the host has none, with lists of our own.
#[derive(Debug)]
pub(crate) struct Apt {
    work: PathBuf,
    own_lists: OnceCell<Vec<String>>,
}

impl Apt {
    /// Works in the folder `work`, which must be there and is the caller's to remove.
    fn new(work: &Path) -> Self {
        Self { work: work.to_owned(), own_lists: OnceCell::new() }
    }

    /// Downloads packages and returns their files.
    pub(crate) fn download(&self, packages: &[&str]) -> Result<Vec<PathBuf>> {
        let dir = tempfile::Builder::new().prefix("debs-").tempdir_in(&self.work)?.keep();
        self.with_lists(|options| {
            let mut apt = Command::new("apt-get");
            command::run(apt.args(options).arg("download").args(packages).current_dir(&dir))
        })
        .with_context(|| format!("could not download {}", packages.join(", ")))?;
        let files = fs::read_dir(&dir)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        let files: Vec<PathBuf> = files
            .into_iter()
            .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .collect();
        ensure!(
            files.len() >= packages.len(),
            "apt-get download left {} packages of {}",
            files.len(),
            packages.len()
        );
        Ok(files)
    }

    /// The packages that `package` depends on directly.
    pub(crate) fn depends(&self, package: &str) -> Result<Vec<String>> {
        let output = self.with_lists(|options| {
            let mut apt = Command::new("apt-cache");
            let output = apt.args(options).args(["depends", package]).output()?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            ensure!(
                output.status.success() && text.contains("Depends:"),
                "apt-cache knows no dependencies of {package}: {}",
                command::last_lines(&output.stderr)
            );
            Ok(text)
        })?;
        Ok(dependencies(&output))
    }

    /// Tries with the host's lists, then with our own, which are fetched once.
    fn with_lists<T>(&self, run: impl Fn(&[String]) -> Result<T>) -> Result<T> {
        if let Some(options) = self.own_lists.get() {
            return run(options);
        }
        let error = match run(&[]) {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let options = self.private_lists()?;
        let mut update = Command::new("apt-get");
        if let Err(also) = command::run(update.args(&options).arg("update")) {
            bail!("{error:#}; {also:#}");
        }
        run(self.own_lists.get_or_init(|| options)).with_context(|| format!("{error:#}"))
    }

    /// Options that make apt keep its lists in `work` and use the host's sources: works without root and on hosts whose
    /// lists were removed.
    fn private_lists(&self) -> Result<Vec<String>> {
        for dir in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(self.work.join(dir))?;
        }
        let options = [
            format!("Dir::State::Lists={}", self.work.join("lists").display()),
            format!("Dir::Cache={}", self.work.join("cache").display()),
            "APT::Sandbox::User=".into(),
            "APT::Update::Post-Invoke-Success::=".into(),
            "APT::Update::Post-Invoke::=".into(),
        ];
        Ok(options.into_iter().flat_map(|option| ["-o".into(), option]).collect())
    }
}

/// Has `fill` unpack packages beside `folder`, and moves them there when that has succeeded: an interrupted fetch leaves nothing
/// half. What is in `folder` is replaced unless it `is_whole`; `what` is fetched, for people.
pub(crate) fn fetch_into(
    folder: &Path,
    what: &str,
    is_whole: impl Fn() -> Result<bool>,
    fill: impl FnOnce(&Apt, &Path) -> Result<()>,
) -> Result<()> {
    let parent = folder.parent().context("the cache folder has no parent")?;
    fs::create_dir_all(parent).with_context(|| format!("could not create {}", parent.display()))?;
    let work = tempfile::Builder::new().prefix("fetch-").tempdir_in(parent)?;
    eprintln!("fetching {what}; it is kept in {}", folder.display());
    let unpacked = work.path().join("unpacked");
    fs::create_dir(&unpacked)?;
    fill(&Apt::new(work.path()), &unpacked)?;

    if folder.exists() && !is_whole()? {
        // It goes with the working folder.
        let aside = work.path().join("replaced");
        fs::rename(folder, &aside).with_context(|| format!("could not move {} aside", folder.display()))?;
    }
    match fs::rename(&unpacked, folder) {
        // Another fetch was faster.
        Err(_) if is_whole()? => Ok(()),
        other => other.with_context(|| format!("could not move it to {}", folder.display())),
    }
}

/// Unpacks a package into a folder, beside what is there.
pub(crate) fn unpack(package: &Path, folder: &Path) -> Result<()> {
    command::run(Command::new("dpkg-deb").arg("-x").arg(package).arg(folder))
        .with_context(|| format!("could not unpack {}", package.display()))
}

/// `apt-cache depends` writes each as `  Depends: NAME`, alternatives with a `|` before.
fn dependencies(text: &str) -> Vec<String> {
    let names = text.lines().filter_map(|line| line.trim().trim_start_matches('|').strip_prefix("Depends:"));
    names.map(|name| name.trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_told_from_other_relations() {
        let text = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-9-cloud-amd64\n |Depends: a\n  Breaks: b\n";
        assert_eq!(dependencies(text), ["linux-image-6.1.0-9-cloud-amd64", "a"]);
    }
}
