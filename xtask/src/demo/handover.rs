//! The story of hand-overs: memory moves between two kernels under load, and daemon and kernels are killed in the middle.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::bed::{Bed, kill_group, number, text};
use super::life::NAMES;
use super::report::Handover;
use super::{Stage, must};
use crate::command;

/// What each move is about.
const MIB: u64 = 64;
/// How often memory goes there and back without trouble.
const ROUNDS: usize = 5;
/// How long the output of the load may take to come.
const OUTPUT_MAX: Duration = Duration::from_secs(30);
/// No move takes more recorded steps than that.
const STEPS_MAX: u32 = 100;
/// After so many recorded steps a move of one piece is past its point of no return: db has lost it, web has yet to get it.
const STEP_PAST_NO_RETURN: u32 = 14;

impl Stage<'_> {
    pub(super) fn hand_over(&mut self) -> Result<()> {
        self.boot_two_with_room()?;
        let mut told = Handover { memory_move_mib: MIB, ..Handover::default() };
        let job = self.put_under_load()?;
        self.move_by_hand(&mut told)?;
        self.move_there_and_back(&mut told)?;
        self.move_with_the_daemon_killed_at_each_step(&mut told)?;
        self.end_the_load(&job, &mut told)?;
        self.move_with_the_receiver_killed(&mut told)?;
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
        self.progress.step("boot web with 128 MiB, db with 256", || {
            let file = bed.app_file();
            let common = ["--restart", "never", "--file", &file];
            bed.tombolo(
                &[&["create", "web", "--memory", "128", "--memory-max", "256"][..], &common].concat(),
            )?;
            let serve = bed.app_words("db", &["serve"]);
            let serve: Vec<&str> = serve.iter().map(String::as_str).collect();
            let create = ["create", "db", "--memory", "256", "--memory-min", "96"];
            bed.tombolo(&[&create[..], &common, &["--"], &serve].concat())?;
            bed.tombolo(&["start", "web", "db"])?;
            for name in NAMES {
                bed.tombolo(&["wait", name, "--for", "running"])?;
            }
            bed.tombolo(&["policy", "allow", "web", "db:kv"])?;
            Ok((format!("made by `{}`; web has room for 256", bed.spawner.name()), ()))
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

    fn move_by_hand(&mut self, told: &mut Handover) -> Result<()> {
        let bed = &*self.bed;
        let ms = self.progress.step("the raw steps by hand: what the kernels themselves take", || {
            let console = |name: &str| bed.instance_dir(name).join("uml/k/mconsole");
            let mut times = Vec::new();
            for _ in 0..ROUNDS {
                let started = Instant::now();
                mconsole(&console("db"), &format!("config mem=-{MIB}M"))?;
                // Its own 64 MiB more are not web's to have: db gets back what it gave.
                mconsole(&console("db"), &format!("config mem=+{MIB}M"))?;
                times.push(started.elapsed());
            }
            let ms = median_ms(&mut times);
            Ok((format!("{MIB} MiB out and in: {ms:.1} ms"), ms))
        })?;
        told.raw_memory_ms_p50 = Some(ms);
        Ok(())
    }

    fn move_there_and_back(&mut self, told: &mut Handover) -> Result<()> {
        let bed = &*self.bed;
        let title = "move memory from db to web and back, five times";
        let ms = self.progress.step(title, || {
            let mut times = Vec::new();
            for (from, to) in [("db", "web"), ("web", "db")].into_iter().cycle().take(2 * ROUNDS) {
                let started = Instant::now();
                hand_over(bed, from, to)?;
                times.push(started.elapsed());
                must_add_up(bed)?;
            }
            let ms = median_ms(&mut times);
            Ok((format!("{MIB} MiB: {ms:.1} ms from command to end, proven usable inside"), ms))
        })?;
        told.moves += 2 * ROUNDS as u32;
        told.memory_move_ms_p50 = Some(ms);
        Ok(())
    }

    fn move_with_the_daemon_killed_at_each_step(&mut self, told: &mut Handover) -> Result<()> {
        let bed = &mut *self.bed;
        let (killed, ms) = self.progress.step("SIGKILL to tombolod after each step of a move", || {
            let mut times = Vec::new();
            let mut way = [("db", "web"), ("web", "db")].into_iter().cycle();
            for step in 1..STEPS_MAX {
                let (from, to) = way.next().unwrap_or(("db", "web"));
                bed.replace_daemon_by(&["--debug-die-after-steps", &step.to_string()])?;
                wait_for_both(bed)?;
                if hand_over(bed, from, to).is_ok() {
                    let ms = median_ms(&mut times);
                    let killed = step - 1;
                    ensure!(killed > 0, "the daemon died at no step");
                    let seen = format!("{killed} times; each move went on to its end, {ms:.0} ms after the new daemon's start");
                    return Ok((seen, (killed, ms)));
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
        told.moves += killed + 1;
        told.crashes_injected += killed;
        told.recovery_ms_p50 = Some(ms);
        Ok(())
    }

    fn end_the_load(&mut self, job: &str, told: &mut Handover) -> Result<()> {
        let bed = &*self.bed;
        told.calls_failed = self.progress.step("the calls went on all the while", || {
            wait_for_both(bed)?;
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

    fn move_with_the_receiver_killed(&mut self, told: &mut Handover) -> Result<()> {
        let bed = &mut *self.bed;
        self.progress.step("SIGKILL to web past the point of no return", || {
            // Whichever way the last move went.
            if held(bed, "db")? < 256 {
                bed.replace_daemon()?;
                wait_for_both(bed)?;
                hand_over(bed, "web", "db")?;
            }
            bed.replace_daemon_by(&["--debug-die-after-steps", &STEP_PAST_NO_RETURN.to_string()])?;
            wait_for_both(bed)?;
            let pid = number(&bed.view("web")?, "pid")? as i32;
            ensure!(hand_over(bed, "db", "web").is_err(), "the daemon did not die");
            bed.wait_for_daemon_end()?;
            kill_group(pid);
            bed.replace_daemon()?;
            let operation = last_operation(bed)?;
            // It ends in part, and says so by its exit code.
            let _ = bed.tombolo(&["op", "watch", &operation["id"].to_string()]);
            let phase = text(&last_operation(bed)?, "phase")?;
            must(phase == "partial", || format!("the move ended as {phase}"))?;
            must_add_up(bed)?;
            bed.tombolo(&["start", "web"])?;
            Ok(("it ended in part; what had left db is free".into(), ()))
        })?;
        told.moves += 1;
        told.crashes_injected += 2;
        Ok(())
    }

    fn add_up(&mut self, told: &mut Handover) -> Result<()> {
        let bed = &*self.bed;
        let books = self.progress.step("add up the books, and ask the keepers", || {
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

fn hand_over(bed: &Bed, from: &str, to: &str) -> Result<()> {
    bed.tombolo(&["move", "--memory", &format!("{MIB}M"), "--from", from, "--to", to]).map(drop)
}

fn wait_for_both(bed: &Bed) -> Result<()> {
    NAMES.iter().try_for_each(|name| bed.tombolo(&["wait", name, "--for", "running"]).map(drop))
}

fn last_operation(bed: &Bed) -> Result<Value> {
    let operations = bed.json(&["op", "ls"])?;
    let last = operations["operations"].as_array().and_then(|all| all.last().cloned());
    last.context("no move was recorded")
}

/// How much memory the ledger gives to an instance, in MiB.
fn held(bed: &Bed, name: &str) -> Result<u64> {
    let books = bed.json(&["pool"])?["pool"].take();
    let granule_bytes = number(&books["meta"], "granule_bytes")? as u64;
    Ok((granules_of(&books, &instance_id(&books, name)?) * granule_bytes) >> 20)
}

fn must_add_up(bed: &Bed) -> Result<()> {
    Books::read(bed)?.must_be_right()
}

/// The ledger's word against the keepers', in granules.
struct Books {
    all: u64,
    lost: u64,
    doubled: u64,
    quarantined: usize,
}

impl Books {
    fn read(bed: &Bed) -> Result<Self> {
        let books = bed.json(&["pool"])?["pool"].take();
        let granule_bytes = number(&books["meta"], "granule_bytes")? as u64;
        let units = books["units"].as_array().context("the ledger lists no units")?;
        let size = |unit: &Value| unit["unit"]["traits"]["memory"]["granules"].as_u64().unwrap_or(0);
        let all: u64 = units.iter().map(size).sum();
        let total = books["meta"]["totals"]
            .as_array()
            .and_then(|totals| totals.iter().find(|total| total[0] == "memory"));
        let discovered = total.and_then(|total| total[1].as_u64()).context("the ledger tells no total")?;
        let mut doubled = 0;
        for name in NAMES {
            let Some(present) = present_bytes(bed, name)? else { continue };
            let granted = granules_of(&books, &instance_id(&books, name)?);
            doubled += (present / granule_bytes).saturating_sub(granted);
        }
        let quarantined = units.iter().filter(|unit| !unit["owner"]["quarantined"].is_null()).count();
        Ok(Self { all, lost: discovered.saturating_sub(all), doubled, quarantined })
    }

    fn must_be_right(&self) -> Result<()> {
        let Self { lost, doubled, quarantined, .. } = self;
        must((*lost, *doubled, *quarantined) == (0, 0, 0), || {
            format!("{lost} units are lost, {doubled} doubled, {quarantined} in quarantine")
        })
    }
}

fn instance_id(books: &Value, name: &str) -> Result<Value> {
    let rows = books["instances"].as_array().context("the ledger lists no instances")?;
    let row = rows
        .iter()
        .find(|row| row["name"] == name)
        .with_context(|| format!("the ledger does not know {name}"))?;
    Ok(row["id"].clone())
}

fn granules_of(books: &Value, instance: &Value) -> u64 {
    let units = books["units"].as_array().into_iter().flatten();
    let its = units.filter(|unit| unit["owner"]["instance"]["instance"] == *instance);
    its.filter_map(|unit| unit["unit"]["traits"]["memory"]["granules"].as_u64()).sum()
}

/// How much memory a kernel has, as its keeper counts; `None` if it does not run.
fn present_bytes(bed: &Bed, name: &str) -> Result<Option<u64>> {
    let Ok(mut keeper) = UnixStream::connect(bed.instance_dir(name).join("keeper.sock")) else {
        return Ok(None);
    };
    keeper.set_read_timeout(Some(Duration::from_secs(5)))?;
    keeper.write_all(b"{\"op\":\"status\"}\n")?;
    let mut line = String::new();
    BufReader::new(keeper).read_line(&mut line)?;
    let status: Value = serde_json::from_str(&line).context("the keeper does not speak JSON")?;
    Ok(status["memory"]["present_bytes"].as_u64())
}

/// Tells a user-mode kernel something through its management console, as uml_mconsole(1) does.
fn mconsole(path: &Path, command: &str) -> Result<()> {
    // An unnamed address of the system's choosing: the kernel answers there.
    let socket = UnixDatagram::bind("")?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    socket.connect(path).with_context(|| format!("could not reach {}", path.display()))?;
    let mut request = [0xcafe_babe_u32, 2, u32::try_from(command.len())?].map(u32::to_ne_bytes).concat();
    request.extend_from_slice(command.as_bytes());
    request.resize(12 + 512, 0);
    socket.send(&request)?;
    let mut answer = [0; 12 + 512];
    let len = socket.recv(&mut answer)?;
    ensure!(len >= 12 && answer.starts_with(&[0; 4]), "the kernel refused `{command}`");
    Ok(())
}

fn median_ms(times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    (median.as_secs_f64() * 1e6).round() / 1e3
}
