//! Building the programs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// The only target the kernels of this test bed run.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Every program that runs in a kernel or looks after one.
const PACKAGES: [&str; 4] = ["tombolo-agent", "tombolo-control", "tombolo-tests", "tombolo-mksim"];

/// Builds all programs statically linked (a kernel's initial file system has no libraries), optimized, without debug
/// information (it would be most of what a kernel has to unpack). Returns their folder.
pub(crate) fn static_programs() -> Result<PathBuf> {
    let mut build = cargo();
    build.args(["build", "--release", "--target", TARGET, "--bins"]);
    for package in PACKAGES {
        build.args(["--package", package]);
    }
    build.env("RUSTFLAGS", "-C target-feature=+crt-static -C strip=debuginfo");
    let status = build.status().context("could not run cargo")?;
    ensure!(status.success(), "the programs do not build (cargo ended with {status}); see above");
    Ok(target_dir()?.join(TARGET).join("release"))
}

/// Cargo, in the workspace's folder.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace());
    cargo
}

/// The workspace's folder.
pub(crate) fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or_else(|| Path::new("."))
}

/// Where cargo puts what it builds.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let output = cargo().args(["metadata", "--no-deps", "--format-version", "1"]).output()?;
    ensure!(output.status.success(), "cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    Ok(metadata["target_directory"].as_str().context("cargo metadata names no target folder")?.into())
}
