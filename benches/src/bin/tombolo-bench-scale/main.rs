//! How cost grows with connections and kernels, for `cargo xtask bench` and `cargo xtask verify`: one task at a time, each of which prints its figures.

mod connect;
mod connects;
mod control_plane;
mod heartbeats;
mod idle;
mod pair;
mod process;

use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use tombolo_benches::duo::{self, Role};
use tombolo_benches::figure::Figure;

/// Measures how cost grows with connections and kernels.
#[derive(Debug, Parser)]
#[command(max_term_width = 110)]
struct Args {
    /// What to measure
    task: Task,
    /// For a shorter time, where it is time that makes the figure better
    #[arg(long)]
    quick: bool,
    /// How many connections `connects` makes
    #[arg(long, default_value_t = 10_000_000, value_name = "N")]
    count: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Task {
    /// Connections made, accepted and closed
    Connect,
    /// Whether anything is left of so many connections; fails if so
    Connects,
    /// What parked connections cost
    Idle,
    /// What looking at heartbeats costs
    Heartbeats,
    /// Many kernels of the `process` spawner
    ControlPlane,
}

fn main() -> ExitCode {
    let result = match duo::role() {
        Role::Follows(leader, args) => match args.first().map(String::as_str) {
            Some("connect") => connect::follow(leader, &args),
            Some("idle") => idle::follow(leader, &args),
            Some("heartbeats") => heartbeats::follow(leader, &args),
            _ => Err(anyhow::anyhow!("this process is to be started by another of its kind")),
        },
        Role::Leads => lead(&Args::parse()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn lead(args: &Args) -> anyhow::Result<()> {
    match args.task {
        Task::Connect => connect::measure(args.quick),
        Task::Connects => connects::check(args.count),
        Task::Idle => idle::measure(args.quick),
        Task::Heartbeats => heartbeats::measure(args.quick),
        Task::ControlPlane => control_plane::measure(),
    }
}

/// Prints a figure at once: what was measured before something failed is known.
fn tell(
    name: &str,
    of: impl Into<Option<u64>>,
    value: f64,
    unit: &str,
    note: impl Into<Option<String>>,
) -> anyhow::Result<()> {
    let figure = Figure { name: name.into(), of: of.into(), value, unit: unit.into(), note: note.into() };
    println!("{}", serde_json::to_string(&figure)?);
    Ok(())
}
