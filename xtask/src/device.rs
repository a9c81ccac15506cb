//! Getting a vsock device that is not ours, for the hybrid backend to be tested against: vhost-device-vsock of rust-vmm.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, ensure};

use crate::{build, command, image};

/// Its crate, and the version whose faults the tests know.
const CRATE: &str = "vhost-device-vsock";
const VERSION: &str = "0.3.0";

/// The program: one on `$PATH`, one built earlier, or one built now, once, into the user's cache folder.
///
/// # Errors
/// Says why it could not be built.
pub(crate) fn find_or_build() -> Result<PathBuf> {
    let root = image::cache_folder()?.join(format!("{CRATE}-{VERSION}"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|dir| dir.join(CRATE));
    let built = root.join("bin").join(CRATE);
    if let Some(found) = on_path.chain([built.clone()]).find(|path| path.is_file()) {
        println!("{}", found.display());
        return Ok(found);
    }
    println!("building {CRATE} {VERSION} (once; it is kept in {})", root.display());
    let started = Instant::now();
    let mut cargo = build::cargo();
    cargo.args(["install", "--quiet", "--locked", "--version", VERSION, "--root"]).arg(&root).arg(CRATE);
    // It is to be built as itself, not as a part of this workspace.
    cargo.env_remove("RUSTFLAGS").env_remove("CARGO_TARGET_DIR");
    command::run(&mut cargo)?;
    ensure!(built.is_file(), "cargo install left no {}", built.display());
    println!("built in {:.0} s", started.elapsed().as_secs_f64());
    Ok(built)
}
