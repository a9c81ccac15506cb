//! `cargo xtask bench`: builds what measures, Tombolo's and the peers', and starts the program that runs all of it and writes the report.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

use crate::build;

/// Options of the measurement.
#[derive(Clone, Debug, Parser)]
pub(crate) struct Args {
    /// Few and short rounds, for the inner loop: under two minutes once everything is built
    #[arg(long)]
    quick: bool,
    /// Only the lines of the table whose name contains this
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Print one JSON object with all lines as the last line
    #[arg(long)]
    json: bool,
    /// Leave the peers out
    #[arg(long)]
    no_peers: bool,
}

/// The peers are a workspace of their own, so that nobody builds them who does not measure.
const PEERS: &str = "benches/peers";

/// A goal that is missed is in the report, and no error.
pub(crate) fn run(args: &Args) -> Result<()> {
    succeed(build::cargo().args(["build", "--release", "--package", "tombolo-benches", "--bins"]))?;
    succeed(build::cargo().args([
        "build",
        "--release",
        "--package",
        "tombolo-control",
        "--package",
        "tombolo-agent",
        "--bins",
    ]))?;
    let target = build::target_dir()?;
    let mut report = Command::new(target.join("release/bench-report"));
    report.arg("--out").arg(target.join("bench-report"));
    match peers(args) {
        Ok(program) => report.arg("--peers").arg(program),
        Err(error) => report.arg("--no-peers").arg(format!("{error:#}")),
    };
    if args.quick {
        report.arg("--quick");
    }
    if args.json {
        report.arg("--json");
    }
    if let Some(only) = &args.only {
        report.args(["--only", only]);
    }
    succeed(&mut report)
}

/// Builds the peers; without them the report is the poorer, and says why.
fn peers(args: &Args) -> Result<PathBuf> {
    ensure!(!args.no_peers, "left out by --no-peers");
    let folder = build::workspace().join(PEERS);
    ensure!(folder.join("Cargo.toml").exists(), "there is no {PEERS}");
    let mut cargo = build::cargo();
    // Where cargo puts what it builds is the peers' own affair too.
    cargo.current_dir(&folder).env_remove("CARGO_TARGET_DIR").args(["build", "--release"]);
    succeed(&mut cargo).context("building the peers")?;
    peers_program(&folder)
}

fn peers_program(folder: &Path) -> Result<PathBuf> {
    let program = folder.join("target/release/tombolo-peers");
    ensure!(program.exists(), "{} was not built", program.display());
    Ok(program)
}

fn succeed(command: &mut Command) -> Result<()> {
    let name = crate::command::name_of(command);
    let status = command.status().with_context(|| format!("could not run {name}"))?;
    ensure!(status.success(), "{name} ended with {status}; see above");
    Ok(())
}
