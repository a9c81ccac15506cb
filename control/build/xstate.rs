//! Compiles the library that is preloaded into User-mode Linux kernels: see `src/keeper/xstate/mod.rs`. For the build scripts of this package and
//! of the stand-in for Multikernel Linux, which boots such kernels as well.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Compiles it into `preload.so` of the build's folder, from its sources in `folder`.
pub(crate) fn compile(folder: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let [preload, widen] = ["preload.rs", "widen.rs"].map(|name| folder.join(name));
    for source in [&preload, &widen] {
        println!("cargo::rerun-if-changed={}", source.display());
    }
    let library = PathBuf::from(env::var("OUT_DIR")?).join("preload.so");
    if env::var("CARGO_CFG_TARGET_ARCH")? != "x86_64" {
        // Only x86-64 has User-mode Linux.
        fs::write(library, [])?;
        return Ok(());
    }
    // By the compiler itself: as a crate of the workspace it would be linked like the programs, which are static.
    let mut rustc = Command::new(env::var("RUSTC")?);
    rustc.args(["--edition=2024", "--crate-type=cdylib", "--crate-name=tombolo_xstate"]);
    rustc.args(["-Copt-level=s", "-Cpanic=abort", "-Clto=fat", "-Cstrip=symbols"]);
    rustc.args(["--target", &env::var("TARGET")?]).arg(&preload).arg("-o").arg(&library);
    let status = rustc.status()?;
    if !status.success() {
        return Err(format!("{rustc:?} ended with {status}").into());
    }
    Ok(())
}
