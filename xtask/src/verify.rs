//! `cargo xtask verify`: what takes too long for every change. Simulated misfortune without end, larger models, whoever killed at every step there is.

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use clap::Parser;

use crate::test::{Checks, succeed, tests_on_kernels};
use crate::{build, demo, image, process, qemu};

/// Options of the verification.
#[derive(Clone, Debug, Parser)]
pub(crate) struct Args {
    /// How many events of hand-overs to simulate, each with misfortunes
    #[arg(long, default_value_t = 10_000_000, value_name = "N")]
    steps: u64,
    /// Replay the simulation of this seed, and nothing else
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
    /// How long to freeze and thaw kernels at random under full load, in minutes; 0: not at all
    #[arg(long, default_value_t = 10, value_name = "MINUTES")]
    freeze: u64,
    /// Only freeze and thaw kernels
    #[arg(long, conflicts_with_all = ["steps", "seed"])]
    only_freeze: bool,
    /// How many kernels to have running when the daemon is killed, to see how soon the next one has them again; 0: none
    #[arg(long, default_value_t = 62, value_parser = clap::value_parser!(u8).range(0..=63), value_name = "N")]
    recover: u8,
    /// Only kill daemons
    #[arg(long, conflicts_with_all = ["steps", "seed", "only_freeze"])]
    only_recover: bool,
}

/// Goes on after a failure, so that one run shows all of them.
pub(crate) fn run(args: &Args) -> Result<()> {
    process::adopt_orphans()?;
    let result = verify(args);
    for process in process::kill_descendants() {
        println!("could not end process {}: {}", process.pid, process.command);
    }
    result
}

fn verify(args: &Args) -> Result<()> {
    let mut checks = Checks::default();
    if args.only_freeze || args.only_recover {
        if let Some(programs) = checks.check("build the programs statically", build::static_programs) {
            match args.only_freeze {
                true => freeze(&mut checks, &programs, args.freeze),
                false => recover(&mut checks, &programs, args.recover),
            }
        }
        return checks.finish();
    }
    checks.check("hand-overs, simulated", || {
        let mut simulator = of_handovers(&["--test", "simulator", "--", "--nocapture"]);
        simulator.env("TOMBOLO_SIM_STEPS", args.steps.to_string());
        if let Some(seed) = args.seed {
            simulator.env("TOMBOLO_SIM_SEED", seed.to_string());
        }
        succeed(&mut simulator)
    });
    if args.seed.is_some() {
        return checks.finish();
    }
    checks.check("hand-overs, model-checked in larger spaces", || {
        succeed(&mut of_handovers(&["--test", "model", "--", "--nocapture", "--include-ignored"]))
    });
    let kernel = checks.check("find or fetch a kernel", image::find_or_fetch);
    let programs = checks.check("build the programs statically", build::static_programs);
    let (Some(kernel), Some(programs)) = (kernel, programs) else {
        return checks.finish();
    };
    let has_qemu = checks.find("find or fetch QEMU", qemu::find_or_fetch).is_some();
    checks.check("whoever killed at every step of a hand-over", || {
        let mut tests = tests_on_kernels(&kernel, &programs, has_qemu);
        tests.args(["--test", "hand_over"]).env("TOMBOLO_FULL_CRASH_MATRIX", "1");
        succeed(&mut tests)
    });
    if args.recover > 0 {
        recover(&mut checks, &programs, args.recover);
    }
    if args.freeze > 0 {
        freeze(&mut checks, &programs, args.freeze);
    }
    checks.finish()
}

fn recover(checks: &mut Checks, programs: &Path, kernels: u8) {
    checks.check("many kernels and a daemon that dies", || demo::recover_many(programs, kernels.into()));
}

fn freeze(checks: &mut Checks, programs: &Path, minutes: u64) {
    checks.check("kernels frozen and thawed at random", || demo::freeze_at_random(programs, minutes));
}

fn of_handovers(args: &[&str]) -> Command {
    let mut cargo = build::cargo();
    cargo.args(["test", "--release", "--package", "tombolo-handover"]).args(args);
    cargo
}
