//! `cargo xtask verify`: what takes too long for every change. Simulated misfortune without end, larger models, whoever killed at every step there is.

use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use clap::Parser;

use crate::test::{Checks, shuffled, succeed, tests_on_kernels};
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
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(0..=126), value_name = "N")]
    recover: u16,
    /// How many random inputs each fuzz target of the transport gets, from a seed that is new each time and told; 0: none
    #[arg(long, default_value_t = 200_000, value_name = "N")]
    cases: u64,
    /// How many orders of each of two kinds each scenario of tasks around a link is run in, from a seed that is new each time and told
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    schedules: u32,
    /// How many processes and kernels of the transport's tests are killed
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    kills: u64,
    /// How many connections two processes make, accept and close, of which nothing may be left; 0: none
    #[arg(long, default_value_t = 10_000_000, value_name = "N")]
    connects: u64,
    /// Only the transport
    #[arg(long, conflicts_with_all = ["steps", "seed", "only_freeze", "only_recover"])]
    only_transport: bool,
    /// Only make connections and close them
    #[arg(long, conflicts_with_all = ["steps", "seed", "only_freeze", "only_recover", "only_transport"])]
    only_connects: bool,
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
    if args.only_transport {
        transport(&mut checks, args);
        return checks.finish();
    }
    if args.only_connects {
        connects(&mut checks, args.connects);
        return checks.finish();
    }
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
    transport(&mut checks, args);
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

/// What `docs/verification.md` says of the transport and of links, at length.
fn transport(checks: &mut Checks, args: &Args) {
    // Any number will do; the one of a failure is in its message.
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_secs());
    println!("seed {seed}");
    checks.check("connections, model-checked in longer histories", || {
        succeed(&mut of_transport(&["--lib", "model_tests", "--", "--nocapture", "--include-ignored"]))
    });
    checks.check("rings, model-checked with more preemptions (loom)", || {
        succeed(of_transport(&["--lib", "loom_"]).env("LOOM_MAX_PREEMPTIONS", "3"))
    });
    checks.check("a link among tasks, in many more orders (shuttle)", || {
        let mut orders = shuffled();
        orders.env("TOMBOLO_SEED", seed.to_string()).env("TOMBOLO_SCHEDULES", args.schedules.to_string());
        succeed(&mut orders)
    });
    if args.cases > 0 {
        checks.check("hostile peers, kernels and processes", || {
            let mut fuzzing = of_transport(&["--lib", "fuzzing"]);
            fuzzing.env("TOMBOLO_SEED", seed.to_string()).env("TOMBOLO_CASES", args.cases.to_string());
            succeed(&mut fuzzing)
        });
    }
    checks.check("either side killed at every step", || {
        let mut kills = of_transport(&["--test", "shm_kills", "--", "--nocapture"]);
        kills.env("TOMBOLO_KILLS", args.kills.to_string()).env("TOMBOLO_ERROR_WITHIN_MS", "250");
        succeed(&mut kills)
    });
    if args.connects > 0 {
        connects(checks, args.connects);
    }
    checks.check("rings on the word-atomic copies", || {
        let mut rings = of_transport(&["--target-dir", "target/word-atomic", "--lib", "ring::"]);
        succeed(rings.env("RUSTFLAGS", "--cfg tombolo_word_atomic"))
    });
}

fn connects(checks: &mut Checks, count: u64) {
    checks.check("connections made and closed, and nothing left of them", || {
        let mut cargo = build::cargo();
        cargo.args([
            "run",
            "--release",
            "--package",
            "tombolo-benches",
            "--bin",
            "tombolo-bench-scale",
            "--",
        ]);
        succeed(cargo.args(["connects", "--count", &count.to_string()]))
    });
}

fn of_transport(args: &[&str]) -> Command {
    let mut cargo = build::cargo();
    cargo.args(["test", "--release", "--package", "tombolo-transport"]).args(args);
    cargo
}

fn recover(checks: &mut Checks, programs: &Path, kernels: u16) {
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
