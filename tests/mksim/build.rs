//! Compiles the library that is preloaded into User-mode Linux kernels: the one that the control plane has for its own, see
//! `control/src/keeper/xstate/mod.rs`.

use std::path::PathBuf;
use std::process::Command;
use std::{env, fs};

const SOURCES: [&str; 2] =
    ["../../control/src/keeper/xstate/preload.rs", "../../control/src/keeper/xstate/widen.rs"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for source in SOURCES {
        println!("cargo::rerun-if-changed={source}");
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
    rustc.args(["--target", &env::var("TARGET")?, SOURCES[0], "-o"]).arg(&library);
    let status = rustc.status()?;
    if !status.success() {
        return Err(format!("{rustc:?} ended with {status}").into());
    }
    Ok(())
}
