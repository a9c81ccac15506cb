//! The story of hand-overs: memory, a CPU and a disk move between two kernels under load, and daemon and kernels are killed in the middle.
//!
//! Emulated machines give and get all three; user-mode kernels memory alone.

mod books;
mod by_hand;
mod qmp;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use self::books::Books;
use super::bed::{Bed, DISK, kill_group, number, text};
use super::life::NAMES;
use super::report::Handover;
use super::{SpawnerKind, Stage, must};
use crate::command;

/// How often each kind of thing goes there and back without trouble.
const ROUNDS: usize = 5;
/// How long the output of the load may take to come.
const OUTPUT_MAX: Duration = Duration::from_secs(30);
/// No move takes more recorded steps than that.
const STEPS_MAX: u32 = 100;
/// Memory moves in pieces of so much.
const PIECE_MIB: u64 = 128;

/// What moves, and how much of it at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Memory { mib: u64 },
    Cpu,
    Device,
}

impl Kind {
    /// Everything that kernels of a spawner can give and get.
    fn all(spawner: SpawnerKind) -> Vec<Self> {
        match spawner {
            SpawnerKind::Qemu => vec![Self::Cpu, Self::Memory { mib: 256 }, Self::Device],
            _ => vec![Self::Memory { mib: 64 }],
        }
    }

    fn arguments(self) -> [String; 2] {
        match self {
            Self::Memory { mib } => ["--memory".into(), format!("{mib}M")],
            Self::Cpu => ["--cpus".into(), "1".into()],
            Self::Device => ["--device".into(), DISK.into()],
        }
    }

    /// After so many recorded steps a move is past its point of no return: db has lost it, web has yet to get it. Each unit more is
    /// looked at, drained and detached in steps of its own.
    fn step_past_no_return(self) -> u32 {
        let units = match self {
            Self::Memory { mib } => mib.div_ceil(PIECE_MIB) as u32,
            Self::Cpu | Self::Device => 1,
        };
        7 + 3 * units
    }

    fn name(self) -> String {
        match self {
            Self::Memory { mib } => format!("{mib} MiB"),
            Self::Cpu => "a CPU".into(),
            Self::Device => "an NVMe disk".into(),
        }
    }
}

impl Stage<'_> {
    pub(super) fn hand_over(&mut self) -> Result<()> {
        let kinds = Kind::all(self.bed.spawner);
        let mut told = Handover::default();
        self.boot_two_with_room()?;
        let job = self.put_under_load()?;
        for &kind in &kinds {
            self.move_by_hand(kind, &mut told)?;
            self.move_there_and_back(kind, &mut told)?;
        }
        let mut recoveries = Vec::new();
        for &kind in &kinds {
            self.move_with_the_daemon_killed_at_each_step(kind, &mut told, &mut recoveries)?;
        }
        told.recovery_ms_p50 = Some(median_ms(&mut recoveries));
        self.end_the_load(&job, &mut told)?;
        for &kind in &kinds {
            self.move_with_the_receiver_killed(kind, &mut told)?;
        }
        self.add_up(&mut told)?;
        self.report.handover = Some(told);
        let bed = &*self.bed;
        self.progress.step("stop in good order", || {
            bed.tombolo(&["stop", "web", "db"])?;
            Ok(("both powered off".into(), ()))
        })
    }

    fn boot_two_with_room(&mut self) -> Result<()> {
        let bed = &*self.bed;
        let is_emulated = bed.spawner == SpawnerKind::Qemu;
        let title = if is_emulated {
            "boot web and db, with room for more"
        } else {
            "boot web with 128 MiB, db with 256"
        };
        self.progress.step(title, || {
            let file = bed.app_file();
            let common = ["--restart", "never", "--file", &file];
            let (web, db): (&[&str], &[&str]) = match is_emulated {
                // What can leave is told to such a kernel at its boot: all but 128 MiB, and all CPUs but one.
                true => (
                    &["--memory", "160", "--memory-min", "128", "--memory-max", "416", "--cpus-max", "3"],
                    &["--memory", "416", "--memory-min", "128", "--cpus", "2", "--cpus-max", "3"],
                ),
                false => {
                    (&["--memory", "128", "--memory-max", "256"], &["--memory", "256", "--memory-min", "96"])
                }
            };
            bed.tombolo(&[&["create", "web"][..], web, &common].concat())?;
            let serve = bed.app_words("db", &["serve"]);
            let serve: Vec<&str> = serve.iter().map(String::as_str).collect();
            bed.tombolo(&[&["create", "db"][..], db, &common, &["--"], &serve].concat())?;
            bed.tombolo(&["start", "web", "db"])?;
            for name in NAMES {
                bed.tombolo(&["wait", name, "--for", "running"])?;
            }
            if is_emulated {
                bed.tombolo(&["move", "--device", DISK, "--from", "pool", "--to", "db"])?;
            }
            bed.tombolo(&["policy", "allow", "web", "db:kv"])?;
            Ok((format!("made by `{}`", bed.spawner.name()), ()))
        })?;
        self.report.kernels = 2;
        Ok(())
    }

    /// A client in web calls a service in db without end. Returns the number of its job, which no death of the daemon ends.
    fn put_under_load(&mut self) -> Result<String> {
        let bed = &*self.bed;
        self.progress.step("web calls db without end", || {
            let words = bed.app_words("web", &["watch", "db/kv"]);
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let job = bed.tombolo(&[&["exec", "-d", "web", "--"][..], &words].concat())?.trim().to_owned();
            Ok((format!("job {job}; every reply is checked"), job))
        })
    }

    fn move_by_hand(&mut self, kind: Kind, told: &mut Handover) -> Result<()> {
        let bed = &*self.bed;
        let title = format!("{} by hand: what the raw steps take", kind.name());
        let ms = self.progress.step(&title, || {
            let mut times = Vec::new();
            for _ in 0..ROUNDS {
                times.push(by_hand::out_and_in(bed, kind)?);
            }
            let ms = median_ms(&mut times);
            Ok((format!("out of db and in again: {ms:.1} ms"), ms))
        })?;
        match kind {
            Kind::Memory { mib } => (told.memory_move_mib, told.raw_memory_ms_p50) = (mib, Some(ms)),
            Kind::Cpu => told.raw_cpu_ms_p50 = Some(ms),
            Kind::Device => told.raw_device_ms_p50 = Some(ms),
        }
        Ok(())
    }

    fn move_there_and_back(&mut self, kind: Kind, told: &mut Handover) -> Result<()> {
        let bed = &*self.bed;
        let title = format!("move {} from db to web and back, five times", kind.name());
        let ms = self.progress.step(&title, || {
            let mut times = Vec::new();
            for (from, to) in [("db", "web"), ("web", "db")].into_iter().cycle().take(2 * ROUNDS) {
                let started = Instant::now();
                hand_over(bed, kind, from, to)?;
                times.push(started.elapsed());
                must_add_up(bed)?;
            }
            let ms = median_ms(&mut times);
            Ok((format!("{ms:.1} ms from command to end, proven usable inside"), ms))
        })?;
        told.moves += 2 * ROUNDS as u32;
        match kind {
            Kind::Memory { .. } => told.memory_move_ms_p50 = Some(ms),
            Kind::Cpu => told.cpu_move_ms_p50 = Some(ms),
            Kind::Device => told.device_move_ms_p50 = Some(ms),
        }
        Ok(())
    }

    fn move_with_the_daemon_killed_at_each_step(
        &mut self,
        kind: Kind,
        told: &mut Handover,
        recoveries: &mut Vec<Duration>,
    ) -> Result<()> {
        let bed = &mut *self.bed;
        let title = format!("SIGKILL to tombolod after each step of a move of {}", kind.name());
        let (killed, moves) = self.progress.step(&title, || {
            let mut times = Vec::new();
            let mut way = [("db", "web"), ("web", "db")].into_iter().cycle();
            for step in 1..STEPS_MAX {
                let (from, to) = way.next().unwrap_or(("db", "web"));
                bed.replace_daemon_by(&["--debug-die-after-steps", &step.to_string()])?;
                wait_for_both(bed)?;
                if hand_over(bed, kind, from, to).is_ok() {
                    let killed = step - 1;
                    ensure!(killed > 0, "the daemon died at no step");
                    bed.replace_daemon()?;
                    wait_for_both(bed)?;
                    let mut moves = step;
                    if to == "web" {
                        hand_over(bed, kind, "web", "db")?;
                        moves += 1;
                    }
                    recoveries.append(&mut times.clone());
                    let ms = median_ms(&mut times);
                    let seen = format!("{killed} times; each move went on to its end, {ms:.0} ms after the new daemon's start");
                    return Ok((seen, (killed, moves)));
                }
                bed.wait_for_daemon_end()?;
                let started = Instant::now();
                bed.replace_daemon()?;
                let id = last_operation(bed)?["id"].to_string();
                bed.tombolo(&["op", "watch", &id])?;
                times.push(started.elapsed());
                must_add_up(bed)?;
            }
            bail!("a move takes more than {STEPS_MAX} steps")
        })?;
        told.moves += moves;
        told.crashes_injected += killed;
        Ok(())
    }

    fn end_the_load(&mut self, job: &str, told: &mut Handover) -> Result<()> {
        let bed = &*self.bed;
        told.calls_failed = self.progress.step("the calls went on all the while", || {
            bed.tombolo(&["jobs", "web", "--kill", job])?;
            // It ends as its program did, which was killed.
            let output = command::run_for(&mut bed.command(&["jobs", "web", "--attach", job]), OUTPUT_MAX)?;
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            let count = |event: &str| said.lines().filter(|line| line.contains(event)).count();
            let (alive, failed) = (count("\"alive\""), count("\"failed\""));
            must(alive > 0 && failed == 0, || {
                format!(
                    "{alive} signs of life, {failed} failed calls: {}",
                    command::last_lines(&output.stdout)
                )
            })?;
            Ok((format!("{alive} signs of life, no call failed"), failed))
        })?;
        Ok(())
    }

    fn move_with_the_receiver_killed(&mut self, kind: Kind, told: &mut Handover) -> Result<()> {
        let bed = &mut *self.bed;
        let title = format!("SIGKILL to web past the point of no return of {}", kind.name());
        self.progress.step(&title, || {
            bed.replace_daemon_by(&["--debug-die-after-steps", &kind.step_past_no_return().to_string()])?;
            wait_for_both(bed)?;
            let pid = number(&bed.view("web")?, "pid")? as i32;
            ensure!(hand_over(bed, kind, "db", "web").is_err(), "the daemon did not die");
            bed.wait_for_daemon_end()?;
            kill_group(pid);
            bed.replace_daemon()?;
            let operation = last_operation(bed)?;
            // It ends in part, and says so by its exit code.
            let _ = bed.tombolo(&["op", "watch", &operation["id"].to_string()]);
            let phase = text(&last_operation(bed)?, "phase")?;
            must(phase == "partial", || format!("the move ended as {phase}"))?;
            bed.tombolo(&["wait", "web", "--for", "failed"])?;
            must_add_up(bed)?;
            bed.tombolo(&["start", "web"])?;
            wait_for_both(bed)?;
            Ok(("it ended in part; what had left db is free".into(), ()))
        })?;
        told.moves += 1;
        told.crashes_injected += 2;
        Ok(())
    }

    fn add_up(&mut self, told: &mut Handover) -> Result<()> {
        let bed = &*self.bed;
        let books = self.progress.step("add up the books, and look at the machines", || {
            let books = Books::read(bed)?;
            let seen = format!(
                "{} units: {} lost, {} doubled, {} in quarantine",
                books.all, books.lost, books.doubled, books.quarantined
            );
            books.must_be_right()?;
            Ok((seen, books))
        })?;
        told.units_lost = books.lost;
        told.units_doubly_owned = books.doubled;
        told.quarantined = books.quarantined;
        Ok(())
    }
}

fn hand_over(bed: &Bed, kind: Kind, from: &str, to: &str) -> Result<()> {
    let [option, value] = kind.arguments();
    bed.tombolo(&["move", &option, &value, "--from", from, "--to", to]).map(drop)
}

fn wait_for_both(bed: &Bed) -> Result<()> {
    NAMES.iter().try_for_each(|name| bed.tombolo(&["wait", name, "--for", "running"]).map(drop))
}

fn last_operation(bed: &Bed) -> Result<Value> {
    let operations = bed.json(&["op", "ls"])?;
    let last = operations["operations"].as_array().and_then(|all| all.last().cloned());
    last.context("no move was recorded")
}

fn must_add_up(bed: &Bed) -> Result<()> {
    Books::read(bed)?.must_be_right()
}

pub(super) fn median_ms(times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    (median.as_secs_f64() * 1e6).round() / 1e3
}
