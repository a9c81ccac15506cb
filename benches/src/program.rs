//! The command line of a measuring program, as [`probe`](crate::probe) describes it.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use serde::de::DeserializeOwned;

use crate::duo::{self, Role};
use crate::probe::{Probe, Reading, Test, Waiting};
use crate::turns::{Following, Leading};

/// What a program can measure, and how both its processes do it.
pub trait Means {
    /// All that it can take.
    fn probes(&self) -> Vec<Probe>;

    /// The leader's part.
    ///
    /// # Errors
    /// Why there is no reading.
    fn lead(&self, leading: &mut Leading) -> anyhow::Result<Reading>;

    /// The follower's part: carries out orders until there are no more.
    ///
    /// # Errors
    /// Why it could not.
    fn follow(&self, probe: &Probe, following: &mut Following) -> anyhow::Result<()>;
}

/// Takes one measurement at a time, between two processes on two cores.
#[derive(Debug, Parser)]
#[command(max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// List what can be measured, as one JSON object per line
    Probes,
    /// Measure, and print the reading as one JSON object on one line
    Take {
        /// What to measure
        #[arg(long, value_parser = named::<Test>)]
        test: Test,
        /// By which means
        #[arg(long)]
        way: String,
        /// Payload of a message
        #[arg(long)]
        bytes: usize,
        /// How both ends wait
        #[arg(long, value_parser = named::<Waiting>)]
        waiting: Waiting,
        /// How long, in milliseconds; a little more with the floors
        #[arg(long, default_value_t = 300)]
        ms: u64,
    },
}

/// A value by the name that it has in JSON.
fn named<T: DeserializeOwned>(name: &str) -> Result<T, serde_json::Error> {
    serde_json::from_value(name.into())
}

/// Does what the command line says.
pub fn main(means: &dyn Means) -> ExitCode {
    match run(means) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(means: &dyn Means) -> anyhow::Result<()> {
    match duo::role() {
        Role::Follows(leader, args) => {
            let (mut following, probe) = Following::start(leader, &args)?;
            means.follow(&probe, &mut following).context("the second process")
        }
        Role::Leads => match Cli::parse().task {
            Task::Probes => {
                for probe in means.probes() {
                    println!("{}", serde_json::to_string(&probe)?);
                }
                Ok(())
            }
            Task::Take { test, way, bytes, waiting, ms } => {
                let probe = Probe { test, way, bytes, waiting };
                println!("{}", serde_json::to_string(&take(means, &probe, Duration::from_millis(ms))?)?);
                Ok(())
            }
        },
    }
}

fn take(means: &dyn Means, probe: &Probe, time: Duration) -> anyhow::Result<Reading> {
    if !means.probes().contains(probe) {
        bail!("this program cannot measure {probe:?}; `probes` lists what it can");
    }
    means.lead(&mut Leading::start(probe, time)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_has_the_names_of_the_json() {
        let words = "x take --test calls_in_flight --way tombolo --bytes 64 --waiting tokio --ms 5";
        let cli = Cli::try_parse_from(words.split(' ')).unwrap();
        let Task::Take { test, waiting, ms, .. } = cli.task else { panic!("not a take") };
        assert_eq!((test, waiting, ms), (Test::CallsInFlight, Waiting::Tokio, 5));
        Cli::try_parse_from("x take --test nonsense --way w --bytes 1 --waiting busy".split(' '))
            .unwrap_err();
    }
}
