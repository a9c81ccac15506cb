//! What building Aeron, one of the peers, takes beside cargo and a C compiler: CMake and libclang from PyPI, some headers and libraries from Debian's
//! packages. All of it is kept in the user's cache folder; nothing is installed, and no root is needed.

use std::ffi::OsString;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::apt::{self, Apt};
use crate::{command, image, pip};

/// Aeron asks for CMake 3.30, which is newer than Debian 12's.
const REQUIREMENTS: &str = "\
cmake==4.4.5 --hash=sha256:85625a9b6d5e88ff99c7eb79123d85570844e77ac076366cf75c609cc0b1b579
libclang==18.1.1 --hash=sha256:c533091d8a3bbf7460a00cb6c1a71da93bffe148f172c7d03b1c31fbf8aa2a0b
";
const PACKAGES: [&str; 8] =
    ["libbsd-dev", "libbsd0", "libmd-dev", "libmd0", "libuuid1", "uuid-dev", "zlib1g", "zlib1g-dev"];
/// Of what is in the folder: another list is another folder.
const VERSION: u32 = 1;
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// What was fetched.
pub(crate) struct Tools {
    folder: PathBuf,
}

impl Tools {
    /// What is there, or was fetched now.
    ///
    /// # Errors
    /// Says why it could not be had.
    pub(crate) fn find_or_fetch() -> Result<Self> {
        let folder = image::cache_folder()?.join(format!("aeron-tools-{VERSION}"));
        let tools = Self { folder };
        if !tools.run() {
            let what = "what building Aeron takes (once)";
            apt::fetch_into(&tools.folder, what, || Ok(tools.run()), fill)
                .context("could not fetch what building Aeron takes")?;
            ensure!(tools.run(), "what was fetched into {} does not run", tools.folder.display());
        }
        Ok(tools)
    }

    fn run(&self) -> bool {
        command::run(Command::new(self.cmake().join("cmake")).arg("--version")).is_ok()
            && self.folder.join("clang/native/libclang.so").is_file()
            && self.folder.join("root/usr/include/bsd").is_dir()
    }

    fn cmake(&self) -> PathBuf {
        self.folder.join("cmake/data/bin")
    }

    /// For whoever builds with them.
    pub(crate) fn give_to(&self, build: &mut Command) -> Result<()> {
        let root = self.folder.join("root");
        let mut path = self.cmake().into_os_string();
        if let Some(before) = std::env::var_os("PATH") {
            path.push(":");
            path.push(before);
        }
        let mut clang = OsString::from("-I");
        clang.push(headers_of_the_compiler()?);
        build
            .env("PATH", path)
            .env("LIBCLANG_PATH", self.folder.join("clang/native"))
            .env("BINDGEN_EXTRA_CLANG_ARGS", clang)
            .env("C_INCLUDE_PATH", root.join("usr/include"))
            .env("LIBRARY_PATH", root.join(LIBRARIES));
        Ok(())
    }

    /// Where a program that was built with them finds its libraries, should the host have none.
    pub(crate) fn libraries(&self) -> PathBuf {
        self.folder.join("root").join(LIBRARIES)
    }
}

/// libclang from PyPI has none of its own.
fn headers_of_the_compiler() -> Result<PathBuf> {
    let output = Command::new("cc").arg("-print-file-name=include").output();
    let output = output.context("there is no C compiler (as root: apt install gcc)")?;
    let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    ensure!(path.is_absolute(), "cc does not say where its headers are");
    Ok(path)
}

fn fill(apt: &Apt, folder: &Path) -> Result<()> {
    let work = tempfile::tempdir()?;
    pip::install(apt, work.path(), REQUIREMENTS, folder, |_| Ok(()))?;
    let libraries = pip::unpack(apt, &PACKAGES, &folder.join("root"))?.join(LIBRARIES);
    // A script for the linker, which names the library where it would be if it was installed.
    let script = libraries.join("libbsd.so");
    std::fs::remove_file(&script).and_then(|()| symlink("libbsd.so.0", &script)).context("linking libbsd.so")
}
