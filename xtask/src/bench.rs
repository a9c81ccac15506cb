//! `cargo xtask bench`: builds what measures, Tombolo's and the peers', and starts the program that runs all of it and writes the report.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

use crate::aeron::Tools;
use crate::{build, image};

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
    /// Put what was found into README.md: the table in short and two plots
    #[arg(long, conflicts_with_all = ["quick", "only", "no_peers"])]
    readme: bool,
}

/// The line that needs the daemon's programs.
const CONTROL_PLANE: &str = "control-plane";
/// The lines that need kernels, and the program that measures them.
const ON_KERNELS: [&str; 2] = ["uml-56", "paced-vsock"];
const KERNELS_PROGRAM: &str = "tombolo-bench-kernels";
/// How everything that is measured is built: ours, the peers and the floors, with link-time optimization.
const PROFILE: &str = "lto";
/// The peers are a workspace of their own, so that nobody builds them who does not measure.
const PEERS: &str = "benches/peers";

/// A goal that is missed is in the report, and no error.
pub(crate) fn run(args: &Args) -> Result<()> {
    succeed(build::cargo().args(["build", "--profile", PROFILE, "--package", "tombolo-benches", "--bins"]))?;
    let is_wanted = |line: &str| args.only.as_deref().is_none_or(|only| line.contains(only));
    if is_wanted(CONTROL_PLANE) {
        let mut daemon = build::cargo();
        daemon.args([
            "build",
            "--profile",
            PROFILE,
            "--bins",
            "--package",
            "tombolo-control",
            "--package",
            "tombolo-agent",
        ]);
        succeed(&mut daemon)?;
    }
    let target = build::target_dir()?;
    let mut report = Command::new(target.join(PROFILE).join("bench-report"));
    report.arg("--out").arg(target.join("bench-report"));
    match peers(args) {
        Ok(Peers { program, without, libraries }) => {
            report.arg("--peers").arg(program);
            report.envs(libraries.map(|libraries| ("LD_LIBRARY_PATH", libraries)));
            report.args(without.iter().flat_map(|without| ["--without", without]));
        }
        Err(error) => {
            report.arg("--no-peers").arg(format!("{error:#}"));
        }
    }
    if ON_KERNELS.into_iter().any(is_wanted) {
        match kernels() {
            Ok((kernel, programs)) => {
                report.env("TOMBOLO_UML_KERNEL", kernel).env("TOMBOLO_STATIC_BIN", &programs);
                report.arg("--kernels").arg(programs.join(KERNELS_PROGRAM));
            }
            Err(error) => {
                report.arg("--no-kernels").arg(format!("{error:#}"));
            }
        }
    }
    if args.quick {
        report.arg("--quick");
    }
    if args.json {
        report.arg("--json");
    }
    if let Some(only) = &args.only {
        report.args(["--only", only]);
    }
    succeed(&mut report)?;
    if args.readme { publish(&target.join("bench-report")) } else { Ok(()) }
}

/// A user-mode kernel, and the folder of the programs that run in one.
fn kernels() -> Result<(PathBuf, PathBuf)> {
    Ok((image::find_or_fetch()?, build::static_programs()?))
}

/// Where README.md has the table, and what it shows beside it.
const MARKS: [&str; 2] = ["<!-- cargo xtask bench --readme: from here -->", "<!-- to here -->"];
const PLOTS: [&str; 2] = ["latency.svg", "throughput.svg"];
const PLOTS_FOLDER: &str = "docs/bench";

fn publish(report: &Path) -> Result<()> {
    let workspace = build::workspace();
    let folder = workspace.join(PLOTS_FOLDER);
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    for plot in PLOTS {
        fs::copy(report.join(plot), folder.join(plot)).with_context(|| format!("copying the plot {plot}"))?;
    }
    let path = workspace.join("README.md");
    let readme = fs::read_to_string(&path).context("reading README.md")?;
    let table = fs::read_to_string(report.join("summary.md")).context("reading the report's summary")?;
    let between = between_marks(&readme).context("README.md has no place for the table")?;
    let text = format!("{}\n{table}{}", &readme[..between.start], &readme[between.end..]);
    fs::write(&path, text).context("writing README.md")
}

/// The bytes from the end of the one mark to the start of the other.
fn between_marks(text: &str) -> Option<std::ops::Range<usize>> {
    let [from, to] = MARKS;
    let start = text.find(from)? + from.len() + "\n".len();
    let end = start + text.get(start..)?.find(to)?;
    Some(start..end)
}

/// The program that measures the peers.
struct Peers {
    program: PathBuf,
    /// Who is not in it, and why, as `NAME=REASON`.
    without: Vec<String>,
    /// Where it finds libraries that the host may not have.
    libraries: Option<PathBuf>,
}

/// Builds the peers; without them, or some of them, the report is the poorer, and says why.
fn peers(args: &Args) -> Result<Peers> {
    ensure!(!args.no_peers, "left out by --no-peers");
    let folder = build::workspace().join(PEERS);
    ensure!(folder.join("Cargo.toml").exists(), "there is no {PEERS}");
    let mut without = Vec::new();
    let all = Tools::find_or_fetch().and_then(|tools| {
        let mut cargo = cargo_build(&folder);
        tools.give_to(&mut cargo)?;
        succeed(cargo.args(["--features", AERON]))?;
        Ok(tools.libraries())
    });
    let libraries = match all {
        Ok(libraries) => Some(libraries),
        Err(error) => {
            eprintln!("The peers do not build with {AERON}: {error:#}. Without it:");
            without.push(format!("{AERON}=does not build here: {error:#}"));
            succeed(&mut cargo_build(&folder)).context("building the peers")?;
            None
        }
    };
    let program = folder.join("target").join(PROFILE).join("tombolo-peers");
    ensure!(program.exists(), "{} was not built", program.display());
    Ok(Peers { program, without, libraries })
}

/// The one peer that needs more than cargo to build; a feature of the peers' crate.
const AERON: &str = "aeron";

fn cargo_build(folder: &Path) -> Command {
    let mut cargo = build::cargo();
    // Where cargo puts what it builds is the peers' own affair too.
    cargo.current_dir(folder).env_remove("CARGO_TARGET_DIR").args(["build", "--profile", PROFILE]);
    cargo
}

fn succeed(command: &mut Command) -> Result<()> {
    let name = crate::command::name_of(command);
    let status = command.status().with_context(|| format!("could not run {name}"))?;
    ensure!(status.success(), "{name} ended with {status}; see above");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_has_a_place_for_the_table() {
        let readme = include_str!("../../README.md");
        assert!(between_marks(readme).is_some());
        assert_eq!(between_marks("no marks"), None);
        assert_eq!(
            between_marks(&format!("a\n{}\nold{}", MARKS[0], MARKS[1])).map(|range| range.len()),
            Some(3)
        );
    }
}
