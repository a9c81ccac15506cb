//! All measurements of a run: rounds in which ours and the peers' take turns, then what is measured once.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use tombolo_benches::probe::Probe;

use crate::Args;
use crate::machine::{Machine, Watch};
use crate::programs::{self, Program};
use crate::reach;
use crate::results::{Key, Missing, Results, Taken};
use crate::text;

/// How much is measured.
struct Effort {
    rounds: u32,
    take_ms: u64,
    /// No further round begins after this long.
    time_max: Duration,
}

const FULL: Effort = Effort { rounds: 5, take_ms: 250, time_max: Duration::from_secs(13 * 60) };
const QUICK: Effort = Effort { rounds: 2, take_ms: 40, time_max: Duration::from_secs(60) };

/// One task of the program that measures how cost grows, and the longest it may take.
const SCALE_TASKS: [(&str, Duration); 4] = [
    (reach::CONNECT, Duration::from_secs(120)),
    (reach::IDLE, Duration::from_secs(120)),
    (reach::HEARTBEATS, Duration::from_secs(60)),
    (reach::CONTROL_PLANE, Duration::from_secs(180)),
];

/// The same of the program that boots kernels.
const KERNEL_TASKS: [(&str, Duration); 2] =
    [(reach::UML, Duration::from_secs(180)), (reach::PACED, Duration::from_secs(120))];

pub(crate) fn run(args: &Args) -> anyhow::Result<Results> {
    let effort = if args.quick { QUICK } else { FULL };
    let watch = Watch::start();
    let here = match &args.programs {
        Some(folder) => folder.clone(),
        None => beside_this()?,
    };
    let mut results = Results {
        machine: Machine::this(),
        beside: Default::default(),
        rounds: 0,
        quick: args.quick,
        took_s: 0.0,
        taken: Vec::new(),
        figures: Vec::new(),
        missing: Vec::new(),
    };
    let wanted = wanted_keys(args);
    let ours = probes(&Program(here.join("tombolo-bench")), &wanted)?;
    let peers = match &args.peers {
        None => Err(anyhow::anyhow!("{}", args.no_peers)),
        Some(peers) => probes(&Program(peers.clone()), &wanted),
    };
    let peers = peers.unwrap_or_else(|error| {
        results.missing.push(Missing { what: "peers".into(), reason: format!("{error:#}") });
        Vec::new()
    });
    let without = args.without.iter().filter_map(|without| without.split_once('='));
    let without = without.map(|(name, reason)| Missing { what: name.into(), reason: reason.into() });
    results.missing.extend(without);
    let mut plan = in_turns(ours, peers);
    while results.rounds < effort.rounds && !plan.is_empty() && watch.elapsed() < effort.time_max {
        round(&mut results, &mut plan, &effort);
    }
    for (task, limit) in SCALE_TASKS {
        if reach::is_wanted(task, args.only.as_deref()) {
            task_of(&mut results, &here.join("tombolo-bench-scale"), task, args.quick, limit);
        }
    }
    let wanted = |task: &str| reach::is_wanted(task, args.only.as_deref());
    for (task, limit) in KERNEL_TASKS.into_iter().filter(|(task, _)| wanted(task)) {
        match &args.kernels {
            Some(program) => task_of(&mut results, program, task, args.quick, limit),
            None => {
                results.missing.push(Missing { what: task.into(), reason: args.no_kernels.clone() });
            }
        }
    }
    results.beside = watch.beside();
    results.took_s = watch.elapsed().as_secs_f64();
    ensure!(
        !results.taken.is_empty() || !results.figures.is_empty() || !results.missing.is_empty(),
        "there is nothing to measure: no line has such a name ({})",
        reach::NAMES.join(", ")
    );
    Ok(results)
}

fn beside_this() -> anyhow::Result<PathBuf> {
    let this = std::env::current_exe().context("finding this program")?;
    Ok(this.parent().context("this program is in no folder")?.to_owned())
}

/// What the wanted lines need; `None`: everything there is.
fn wanted_keys(args: &Args) -> Option<Vec<Key>> {
    (args.quick || args.only.is_some()).then(|| reach::keys(args.only.as_deref()))
}

/// A probe and who takes it.
type Planned = (Program, Probe);

fn probes(program: &Program, wanted: &Option<Vec<Key>>) -> anyhow::Result<Vec<Planned>> {
    let all = program.probes().with_context(|| format!("asking {} for its probes", program.0.display()))?;
    let wanted =
        all.into_iter().filter(|probe| wanted.as_ref().is_none_or(|keys| keys.contains(&Key::of(probe))));
    Ok(wanted.map(|probe| (program.clone(), probe)).collect())
}

/// Those that are compared come one after the other, so that they find the same machine.
fn in_turns(ours: Vec<Planned>, peers: Vec<Planned>) -> Vec<Planned> {
    let mut plan: Vec<_> = ours.into_iter().chain(peers).collect();
    // Stable: of each key ours comes first.
    plan.sort_by_key(|(_, probe)| Key::of(probe));
    plan
}

fn round(results: &mut Results, plan: &mut Vec<Planned>, effort: &Effort) {
    results.rounds += 1;
    let number = results.rounds;
    plan.retain(|(program, probe)| {
        progress(&format!("round {number}/{}: {}", effort.rounds, text::probe(probe)));
        let watch = Watch::start();
        match program.take(probe, effort.take_ms) {
            Ok(reading) => {
                results.taken.push(Taken { round: number, beside: watch.beside(), reading });
                true
            }
            Err(error) => {
                progress("");
                eprintln!("{}: {error:#}", text::probe(probe));
                results.missing.push(Missing { what: text::probe(probe), reason: format!("{error:#}") });
                // It has had its chance.
                false
            }
        }
    });
    progress("");
}

/// On a terminal, what is being done now, on one line.
fn progress(what: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K{what}");
    }
}

fn task_of(results: &mut Results, program: &Path, task: &str, quick: bool, limit: Duration) {
    progress(task);
    let mut command = Command::new(program);
    command.arg(task);
    if quick {
        command.arg("--quick");
    }
    let (figures, ended) = programs::figures(&mut command, limit);
    results.figures.extend(figures);
    if let Err(error) = ended {
        results.missing.push(Missing { what: task.into(), reason: format!("{error:#}") });
    }
    progress("");
}

#[cfg(test)]
mod tests {
    use tombolo_benches::probe::{Test, Waiting};

    use super::*;

    #[test]
    fn what_is_compared_is_measured_one_after_the_other_and_ours_first() {
        let planned = |test, way: &str| {
            let probe = Probe { test, way: way.to_owned(), bytes: 56, waiting: Waiting::Busy };
            (Program(way.into()), probe)
        };
        let ours = vec![planned(Test::Call, "tombolo"), planned(Test::RoundTrip, "tombolo")];
        let peers = vec![planned(Test::RoundTrip, "aeron"), planned(Test::Call, "tarpc")];
        let ways: Vec<_> = in_turns(ours, peers).into_iter().map(|(_, probe)| probe.way).collect();
        assert_eq!(ways, ["tombolo", "aeron", "tombolo", "tarpc"]);
    }
}
