//! Getting kerf, the tool that comes with Multikernel Linux, for tests of living beside it: from PyPI, by pip, into the user's cache
//! folder. No root needed, nothing is installed.
//!
//! Of Python only `python3` has to be there. pip, and the headers that one of kerf's libraries is built against, are Debian's
//! packages, unpacked and thrown away, where the host has none.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::apt::{self, Apt};
use crate::image;
use crate::pip::{self, PYTHON};

const VERSION: &str = "0.4.0";

/// What pip is given: these files, whatever else an index has. Of what kerf asks for only that is left out which one command needs:
/// `cryptography` (`kerf sign`) and `pyyaml` (`kerf init --format=yaml`).
const REQUIREMENTS: &str = "\
kerf-multikernel==0.4.0 --hash=sha256:05138520e46c01c3d1b55ce861e15423b6fe6ac7a8df7ec5bca040712cb4c050
click==8.5.1 --hash=sha256:8bb5376d2006950386f8c6427613334a2acadc5f559cb80e638d00b4df957e37
pyudev==0.24.5 --hash=sha256:a9c62d04a83472fb05ad5e014ef85933e5cf2fef193caf8b77bb7a9e8ded4812
pylibfdt==1.7.2.post2 --hash=sha256:b23d03d10ab62ad1f4e7eedde0eb8a7a8872cc08d2a5c2bba7b48bb6fd3c69f4
";

/// The folder that has kerf: what is there, or was fetched now. `bin/kerf` in it is the program, which needs the folder as `PYTHONPATH`.
///
/// # Errors
/// Says why it could not be had.
pub(crate) fn find_or_fetch() -> Result<PathBuf> {
    let folder = image::cache_folder()?.join(format!("kerf-{VERSION}"));
    if runs(&folder) {
        return Ok(folder);
    }
    let what = format!("kerf {VERSION} (once)");
    // One that another version of Python has built is replaced.
    apt::fetch_into(&folder, &what, || Ok(runs(&folder)), fill)
        .with_context(|| format!("could not fetch kerf {VERSION} from PyPI"))?;
    ensure!(runs(&folder), "what was fetched into {} does not run", folder.display());
    Ok(folder)
}

/// Whether it is there, and this Python runs it.
fn runs(folder: &Path) -> bool {
    let mut kerf = Command::new(folder.join("bin/kerf"));
    let output = kerf.arg("--version").env("PYTHONPATH", folder).output();
    output.is_ok_and(|output| {
        output.status.success() && String::from_utf8_lossy(&output.stdout).contains(VERSION)
    })
}

fn fill(apt: &Apt, folder: &Path) -> Result<()> {
    let work = tempfile::tempdir()?;
    pip::install(apt, work.path(), REQUIREMENTS, folder, |pip| {
        if let Some(flags) = header_flags(apt, work.path())? {
            pip.env("CFLAGS", flags);
        }
        Ok(())
    })
}

/// What the compiler is told where this Python came without its headers: where those of Debian's package are.
fn header_flags(apt: &Apt, work: &Path) -> Result<Option<String>> {
    let script =
        "import sys, sysconfig; print(sysconfig.get_path('include')); print('%d.%d' % sys.version_info[:2])";
    let output = Command::new(PYTHON).args(["-c", script]).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut lines = text.lines();
    let (include, version) =
        lines.next().zip(lines.next()).context("Python does not say where its headers are")?;
    if Path::new(include).join("Python.h").is_file() {
        return Ok(None);
    }
    let headers =
        pip::unpack(apt, &[&format!("libpython{version}-dev")], &work.join("headers"))?.join("usr/include");
    Ok(Some(format!("-I{0} -I{0}/python{version}", headers.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_named_by_version_and_hash() {
        assert!(REQUIREMENTS.contains(&format!("kerf-multikernel=={VERSION} ")));
        for line in REQUIREMENTS.lines() {
            let hash = line.split_once(" --hash=sha256:").map(|(_, hash)| hash).unwrap_or_default();
            assert!(line.contains("==") && hash.len() == 64, "{line}");
        }
    }
}
