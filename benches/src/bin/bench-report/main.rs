//! Runs the measuring programs in turns, judges what they found by the goals of the project, and writes the report. `cargo xtask bench`
//! builds everything and starts this.

mod causes;
mod judge;
mod machine;
mod page;
mod plots;
mod programs;
mod reach;
mod report;
mod results;
mod run;
mod text;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;

/// Measures everything side by side and writes the report.
#[derive(Debug, Parser)]
#[command(max_term_width = 110)]
struct Args {
    /// Few and short rounds, for the inner loop
    #[arg(long)]
    quick: bool,
    /// Only the lines whose name contains this
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Print one JSON object as the last line
    #[arg(long)]
    json: bool,
    /// The program that measures the peers
    #[arg(long, value_name = "FILE")]
    peers: Option<PathBuf>,
    /// Why there is no such program, for the report
    #[arg(long, value_name = "REASON", default_value = "left out")]
    no_peers: String,
    /// A peer that is not in that program, and why
    #[arg(long, value_name = "NAME=REASON")]
    without: Vec<String>,
    /// The program that measures on kernels of its own
    #[arg(long, value_name = "FILE")]
    kernels: Option<PathBuf>,
    /// Why there is no such program, for the report
    #[arg(long, value_name = "REASON", default_value = "left out")]
    no_kernels: String,
    /// Where the other programs are [default: beside this one]
    #[arg(long, value_name = "FOLDER")]
    programs: Option<PathBuf>,
    /// Where to write the report
    #[arg(long, value_name = "FOLDER", default_value = "target/bench-report")]
    out: PathBuf,
}

fn main() -> ExitCode {
    match measure(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A goal that is missed is no error: the report says so.
fn measure(args: &Args) -> anyhow::Result<()> {
    let results = run::run(args)?;
    let (lines, others): (Vec<_>, Vec<_>) = reach::lines(&results)
        .into_iter()
        .partition(|line| reach::is_wanted(&line.name, args.only.as_deref()));
    if lines.is_empty() {
        let names: Vec<_> = others.iter().map(|line| line.name.as_str()).collect();
        let only = args.only.as_deref().unwrap_or_default();
        anyhow::bail!("no line has `{only}` in its name: there are {}", names.join(", "));
    }
    report::write(&args.out, &results, &lines)
        .with_context(|| format!("writing the report to {}", args.out.display()))?;
    println!("{}", page::text(&report::summary(&results, &lines)));
    println!("The report is in {}.", args.out.display());
    if args.json {
        println!("{}", report::json(&results, &lines)?);
    }
    Ok(())
}
