//! Random misfortune: no unit is lost or doubled, ledger and world agree after every event, every operation ends.

use tombolo_handover::sim::{Config, Report, run};

/// Events in an ordinary test run. `TOMBOLO_SIM_STEPS` asks for more, `TOMBOLO_SIM_SEED` replays one seed.
const STEPS: u64 = 100_000;
/// Events per seed: each is another machine, another spawner, other misfortunes.
const STEPS_PER_SEED: u64 = 5_000;

#[test]
fn no_misfortune_loses_or_doubles_a_unit_or_keeps_an_operation_from_ending() {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let seeds = match number("TOMBOLO_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("TOMBOLO_SIM_STEPS").unwrap_or(STEPS) / STEPS_PER_SEED,
    };
    let mut all = Vec::new();
    for seed in seeds {
        match run(Config { seed, steps: STEPS_PER_SEED }) {
            Ok(report) => all.push(report),
            Err(failure) => panic!("{failure}\nreplay it with TOMBOLO_SIM_SEED={}", failure.seed),
        }
    }
    let sum = |of: fn(&Report) -> u64| all.iter().map(of).sum::<u64>();
    println!(
        "{} steps: {} committed, {} aborted, {} partial, {} quarantined, {} for an operator, {} refused; \
         {} daemon crashes, {} kernel deaths, {} messages lost, {} stale answers dropped, {} late effects, {} repairs",
        sum(|r| r.steps),
        sum(|r| r.committed),
        sum(|r| r.aborted),
        sum(|r| r.partial),
        sum(|r| r.quarantined),
        sum(|r| r.needs_operator),
        sum(|r| r.requests_refused),
        sum(|r| r.daemon_crashes),
        sum(|r| r.kernel_deaths),
        sum(|r| r.messages_lost),
        sum(|r| r.stale_answers_dropped),
        sum(|r| r.finished_late),
        sum(|r| r.repairs),
    );
    // A run in which nothing went wrong proves nothing.
    for (what, of) in [
        ("committed", (|r| r.committed) as fn(&Report) -> u64),
        ("aborted", |r| r.aborted),
        ("partial", |r| r.partial),
        ("crashes", |r| r.daemon_crashes),
        ("deaths", |r| r.kernel_deaths),
        ("late effects", |r| r.finished_late),
    ] {
        assert!(all.len() < 10 || sum(of) > 0, "there was no {what} in all of it");
    }
}

#[test]
fn a_seed_replays_the_same_run() {
    let config = Config { seed: 7, steps: 2_000 };
    assert_eq!(run(config), run(config));
}
