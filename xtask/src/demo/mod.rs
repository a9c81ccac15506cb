//! `cargo xtask demo`: the whole of Tombolo on real kernels, step by step, as a user would see it.

mod bed;
mod failures;
mod freezes;
mod handover;
mod idle;
mod life;
mod progress;
mod recovery;
mod report;
pub(crate) mod stand_in;
mod traffic;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::UNIX_EPOCH;

use anyhow::{Context as _, Result, bail};
use clap::{Parser, ValueEnum};
use nix::sys::signal::{SigSet, Signal};

use self::bed::{Bed, Remains};
pub(crate) use self::freezes::freeze_at_random;
use self::progress::Progress;
pub(crate) use self::recovery::recover_many;
use self::report::Report;
use crate::{build, image, process, qemu};

/// Options of the demo.
#[derive(Clone, Debug, Parser)]
pub(crate) struct Args {
    /// End with one JSON object on the last line of stdout; progress goes to stderr
    #[arg(long)]
    pub(crate) json: bool,
    /// What makes the kernels: uml, qemu and multikernel make real ones, process does not [default: uml, or process where no kernel
    /// can be had; for hand-overs qemu, or uml where there is none]
    #[arg(long)]
    pub(crate) spawner: Option<SpawnerKind>,
    /// With `--spawner multikernel`: on a STAND-IN for Multikernel Linux, which boots User-mode Linux kernels (needs root)
    #[arg(long)]
    pub(crate) sim: bool,
    /// What to show
    #[arg(long, value_enum, default_value_t = Story::Basics)]
    pub(crate) story: Story,
    /// Leave daemon and kernels running at the end, and say how to reach and how to end them
    #[arg(long)]
    pub(crate) keep: bool,
    /// Use the programs in this folder, as `cargo xtask build` made them, instead of building them
    #[arg(long, value_name = "DIR")]
    pub(crate) programs: Option<std::path::PathBuf>,
}

/// What the demo shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Story {
    /// Boot, talk, measure, kill, freeze, restart, adopt, stop
    Basics,
    /// Move memory, CPUs and a disk between two kernels under load, with daemon and kernels killed in the middle
    Handover,
}

/// What makes the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SpawnerKind {
    Uml,
    Qemu,
    Multikernel,
    Process,
}

impl SpawnerKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Uml => "uml",
            Self::Qemu => "qemu",
            Self::Multikernel => "multikernel",
            Self::Process => "process",
        }
    }

    pub(crate) fn makes_kernels(self) -> bool {
        self != Self::Process
    }
}

/// Runs the demo. An error says which step failed, what was seen and where the logs are.
pub(crate) fn run(args: &Args) -> Result<()> {
    if args.spawner == Some(SpawnerKind::Multikernel) && !stand_in::is_here() {
        return stand_in::rerun(args);
    }
    process::adopt_orphans()?;
    let remains = Arc::new(Mutex::new(Remains::default()));
    clean_up_on_signals(&remains)?;

    let mut progress = Progress::new(args.json);
    let mut report = Report::default();
    let outcome = story(args, &remains, &mut progress, &mut report);

    let keep = args.keep && outcome.is_ok();
    let mut remains = remains.lock().map_err(|_| anyhow::anyhow!("the clean-up state is lost"))?;
    if keep {
        remains.release();
    } else {
        remains.clean_up(outcome.is_err());
    }
    report.ok = outcome.is_ok();
    report.error = outcome.as_ref().err().map(|error| format!("{error:#}"));
    progress.finish(&report);
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    }
    match (outcome, &remains.logs) {
        (Err(error), Some(logs)) => {
            Err(error.context(format!("the demo failed; logs are in {}", logs.display())))
        }
        (Err(error), None) => Err(error.context("the demo failed")),
        (Ok(()), _) => Ok(()),
    }
}

/// Works on user-mode kernels of a control plane of its own, whose daemon is started with these options, and cleans up whatever comes of it.
fn on_user_mode_kernels(
    programs: &Path,
    options: &[&str],
    work: impl FnOnce(Bed) -> Result<()>,
) -> Result<()> {
    let remains = Arc::new(Mutex::new(Remains::default()));
    clean_up_on_signals(&remains)?;
    let kernel = image::find_or_fetch()?;
    let outcome = Bed::start_with(programs, SpawnerKind::Uml, Some(kernel), options, &remains).and_then(work);
    let mut remains = remains.lock().map_err(|_| anyhow::anyhow!("the clean-up state is lost"))?;
    remains.clean_up(outcome.is_err());
    outcome
}

fn unix_ns() -> u64 {
    UNIX_EPOCH.elapsed().map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// The story, one step after the other. Each fails the whole.
fn story(args: &Args, remains: &Mutex<Remains>, progress: &mut Progress, report: &mut Report) -> Result<()> {
    let programs = progress.step("build the programs, the agent as a static binary", || {
        // Absolute: the daemon and the programs it starts have folders of their own.
        let dir = match &args.programs {
            Some(dir) => dir.canonicalize().with_context(|| format!("no folder {}", dir.display()))?,
            None => build::static_programs()?,
        };
        Ok((format!("in {}", dir.display()), dir))
    })?;
    must(args.story == Story::Basics || args.spawner != Some(SpawnerKind::Process), || {
        "memory moves between kernels, and `process` makes none: leave out --spawner process".into()
    })?;
    must(args.story == Story::Basics || args.spawner != Some(SpawnerKind::Multikernel), || {
        "on the stand-in kernels have one CPU and the memory that they booted with: leave out --story handover".into()
    })?;
    let (spawner, kernel) =
        progress.step("find or fetch a kernel", || choose_kernel(args.story, args.spawner))?;
    report.spawner = spawner.name().into();
    report.spawner_makes_kernels = spawner.makes_kernels();

    let mut bed = progress.step("start the control plane", || {
        let bed = Bed::start(&programs, spawner, kernel, remains)?;
        if spawner == SpawnerKind::Multikernel {
            bed.tombolo(&["multikernel", "pool", "--cpus", "2,4,6", "--memory", "2G"])?;
        }
        Ok((format!("tombolod, process {}", bed.daemon_pid()), bed))
    })?;
    let mut stage = Stage { bed: &mut bed, progress, report };
    if args.story == Story::Handover {
        stage.hand_over()?;
        return stage.verify_that_nothing_is_left();
    }
    stage.boot_two_kernels()?;
    stage.look_inside()?;
    stage.run_a_command_with_streamed_output()?;
    stage.refuse_without_policy()?;
    stage.measure_the_host()?;
    stage.measure_kernel_to_kernel()?;
    stage.move_a_file()?;
    stage.leave_everything_alone()?;
    stage.kill_db_in_mid_traffic()?;
    stage.read_last_words()?;
    stage.freeze_and_thaw_web()?;
    stage.kill_the_daemon_and_adopt()?;
    if args.keep {
        return stage.say_how_to_go_on();
    }
    stage.stop_gracefully()?;
    stage.verify_that_nothing_is_left()
}

/// What the steps work on.
struct Stage<'a> {
    bed: &'a mut Bed,
    progress: &'a mut Progress,
    report: &'a mut Report,
}

type Kernel = (SpawnerKind, Option<std::path::PathBuf>);

fn choose_kernel(story: Story, wanted: Option<SpawnerKind>) -> Result<(String, Kernel)> {
    let usual = if story == Story::Handover { SpawnerKind::Qemu } else { SpawnerKind::Uml };
    let (seen, kernel) = match wanted.unwrap_or(usual) {
        SpawnerKind::Process => {
            return Ok((
                "none wanted: processes of this kernel stand in".into(),
                (SpawnerKind::Process, None),
            ));
        }
        SpawnerKind::Multikernel => {
            let image = stand_in::image()?;
            let seen = format!("{}, on the STAND-IN for Multikernel Linux", image.display());
            return Ok((seen, (SpawnerKind::Multikernel, None)));
        }
        SpawnerKind::Uml => (String::new(), image::find_or_fetch().map(|path| (SpawnerKind::Uml, path))),
        SpawnerKind::Qemu => match qemu::find_or_fetch() {
            Ok(found) => return Ok((found.kernel.display().to_string(), (SpawnerKind::Qemu, None))),
            Err(error) if wanted.is_some() => return Err(error),
            Err(error) => (
                format!("NO QEMU COULD BE HAD ({error:#}): user-mode kernels, which move memory alone: "),
                image::find_or_fetch().map(|path| (SpawnerKind::Uml, path)),
            ),
        },
    };
    match kernel {
        Ok((spawner, path)) => Ok((format!("{seen}{}", path.display()), (spawner, Some(path)))),
        Err(error) if wanted.is_some() || story == Story::Handover => Err(error),
        Err(error) => {
            let seen = format!("NO KERNEL COULD BE HAD ({error:#}): processes of this kernel stand in");
            Ok((seen, (SpawnerKind::Process, None)))
        }
    }
}

/// On Ctrl-C and the like: clean up, then end as interrupted.
fn clean_up_on_signals(remains: &Arc<Mutex<Remains>>) -> Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    // Before any other thread exists, so that none of them takes the signal.
    signals.thread_block().context("could not block signals")?;
    let remains = Arc::clone(remains);
    std::thread::spawn(move || {
        if let Ok(signal) = signals.wait() {
            eprintln!("\n{signal}: cleaning up");
            if let Ok(mut remains) = remains.lock() {
                remains.clean_up(false);
            }
            std::process::exit(130);
        }
    });
    Ok(())
}

/// Fails with a message unless the condition holds.
fn must(condition: bool, message: impl FnOnce() -> String) -> Result<()> {
    if condition { Ok(()) } else { bail!("{}", message()) }
}
