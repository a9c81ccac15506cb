//! The quiet parts of the story: boot, look inside, adopt, stop, leave nothing.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::bed::{number, text};
use super::report::Instance;
use super::{Stage, must};
use crate::command::Lines;

/// The two kernels of the story.
pub(super) const NAMES: [&str; 2] = ["web", "db"];

/// How many lines the streamed command prints, and how far apart.
const STREAMED_LINES: usize = 5;
const STREAMED_GAP_MS: u64 = 100;

impl Stage<'_> {
    pub(super) fn boot_two_kernels(&mut self) -> Result<()> {
        let bed = &*self.bed;
        self.progress.step("boot two kernels, web and db", || {
            let file = bed.app_file();
            let serve = bed.app_words("db", &["serve"]);
            // web takes the 64 MiB file into its memory, packed nowhere else. Of an emulated machine's, less is left for files.
            let memory = if bed.spawner == super::SpawnerKind::Qemu { "384" } else { "256" };
            bed.tombolo(&["create", "web", "--memory", memory, "--file", &file])?;
            let mut create =
                vec!["create", "db", "--memory", "128", "--restart", "on-failure", "--file", &file, "--"];
            create.extend(serve.iter().map(String::as_str));
            bed.tombolo(&create)?;
            bed.tombolo(&["start", "web", "db"])?;
            for name in NAMES {
                bed.tombolo(&["wait", name, "--for", "running"])?;
            }
            Ok((format!("made by `{}`", bed.spawner.name()), ()))
        })?;
        self.report.kernels = 2;
        Ok(())
    }

    pub(super) fn look_inside(&mut self) -> Result<()> {
        let bed = &*self.bed;
        let title = match bed.spawner.makes_kernels() {
            true => "look inside: three kernels, three boots",
            false => "look inside: all on the host's kernel",
        };
        let (instances, distinct) = self.progress.step(title, || {
            let instances = NAMES.map(|name| look_into(name, &bed.app(name, &["where-am-i"])?));
            let instances = instances.into_iter().collect::<Result<Vec<_>>>()?;
            let mut boot_ids: Vec<String> =
                instances.iter().map(|instance| instance.boot_id.clone()).collect();
            boot_ids.push(host_boot_id()?);
            boot_ids.sort_unstable();
            boot_ids.dedup();
            let expected = if bed.spawner.makes_kernels() { 3 } else { 1 };
            must(boot_ids.len() == expected, || {
                format!("{} different boot ids, expected {expected}", boot_ids.len())
            })?;
            Ok((format!("{} different boot ids", boot_ids.len()), (instances, boot_ids.len())))
        })?;
        let host = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        self.progress.note(&format!("host  Linux {}  boot {}", host.trim(), host_boot_id()?));
        for instance in &instances {
            let Instance { name, uname, boot_id, memory_kib } = instance;
            self.progress.note(&format!("{name:<5} {uname}  boot {boot_id}  {} MiB", memory_kib / 1024));
        }
        self.report.instances = instances;
        self.report.distinct_boot_ids = distinct;
        Ok(())
    }

    pub(super) fn run_a_command_with_streamed_output(&mut self) -> Result<()> {
        let bed = &*self.bed;
        self.progress.step("run a command in each, its output streamed", || {
            let mut spread_ms = Vec::new();
            for name in NAMES {
                let (count, gap) = (STREAMED_LINES.to_string(), STREAMED_GAP_MS.to_string());
                let mut lines = bed.app_lines(name, &["count", &count, &gap])?;
                spread_ms.push(streamed(&mut lines)?);
            }
            let whole = STREAMED_GAP_MS * (STREAMED_LINES as u64 - 1);
            // Half of it: a busy machine may delay the first line, never all of them to the end.
            must(spread_ms.iter().all(|&spread| spread >= whole / 2), || {
                format!(
                    "the lines came within {spread_ms:?} ms, they were written over {whole} ms: not streamed"
                )
            })?;
            Ok((format!("{STREAMED_LINES} lines each, over {} and {} ms", spread_ms[0], spread_ms[1]), ()))
        })
    }

    pub(super) fn kill_the_daemon_and_adopt(&mut self) -> Result<()> {
        let bed = &mut *self.bed;
        let before = self.report.instances.clone();
        self.report.adopted =
            self.progress.step("SIGKILL to tombolod; a new one adopts the kernels", || {
                let boots =
                    NAMES.map(|name| boot_of(&bed.view(name)?)).into_iter().collect::<Result<Vec<_>>>()?;
                bed.replace_daemon()?;
                for (name, before) in NAMES.into_iter().zip(&boots) {
                    bed.tombolo(&["wait", name, "--for", "running"])?;
                    let after = boot_of(&bed.view(name)?)?;
                    must(after == *before, || format!("{name} was {before:?} before and is {after:?} now"))?;
                }
                let web = look_into("web", &bed.app("web", &["where-am-i"])?)?;
                let known = before
                    .iter()
                    .find(|instance| instance.name == "web")
                    .context("web was never looked into")?;
                must(web.boot_id == known.boot_id, || {
                    format!("web says boot {}, was {}", web.boot_id, known.boot_id)
                })?;
                Ok((format!("process {} now; boot ids unchanged", bed.daemon_pid()), true))
            })?;
        Ok(())
    }

    pub(super) fn stop_gracefully(&mut self) -> Result<()> {
        let bed = &mut *self.bed;
        self.progress.step("stop in good order: db's program sees SIGTERM", || {
            let mut log = Lines::start(&mut bed.command(&["logs", "db", "--follow", "--source", "stdout"]))?;
            log.find("that the service is up", Duration::from_secs(20), |line| {
                line.text.contains("serving").then_some(())
            })?;
            bed.tombolo(&["stop", "web", "db"])?;
            log.find("its SIGTERM", Duration::from_secs(5), |line| {
                line.text.contains("SIGTERM").then_some(())
            })?;
            for name in NAMES {
                let view = bed.view(name)?;
                let state = text(&view, "state")?;
                must(state == "stopped", || format!("{name} is {state}: {view}"))?;
                let end = view["last_end"].to_string();
                must(end == "\"powered-off\"", || format!("{name} ended by {end}, not by powering off"))?;
            }
            Ok(("both powered off".into(), ()))
        })
    }

    pub(super) fn verify_that_nothing_is_left(&mut self) -> Result<()> {
        let bed = &mut *self.bed;
        let left = self.progress.step("end the daemon; look for what is left", || {
            for name in NAMES {
                bed.tombolo(&["rm", name])?;
            }
            bed.tombolo(&["down"])?;
            let status = bed.wait_for_daemon_end()?;
            ensure!(status.success(), "tombolod ended with {status}");
            let deadline = std::time::Instant::now() + Duration::from_secs(5);
            let mut left = bed.leftovers();
            // A keeper that has just recorded the end of its kernel may still be on its way out.
            while !left.is_empty() && std::time::Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
                left = bed.leftovers();
            }
            let seen =
                if left.is_empty() { "no process, socket or /dev/shm file".into() } else { left.join("; ") };
            Ok((seen, left))
        })?;
        self.report.leftovers = Some(left.len());
        self.report.steps = self.progress.steps();
        must(left.is_empty(), || format!("left behind: {}", left.join("; ")))
    }

    pub(super) fn say_how_to_go_on(&mut self) -> Result<()> {
        let run = self.bed.dir().join("run");
        self.progress.note(&format!("kept. Reach it with:  tombolo --runtime-dir {} ps", run.display()));
        self.progress.note(&format!("end it with:          tombolo --runtime-dir {} down", run.display()));
        self.progress.note(&format!("then remove           {}", self.bed.dir().display()));
        self.report.steps = self.progress.steps();
        Ok(())
    }
}

/// Which boot the control plane takes an instance for.
fn boot_of(detail: &Value) -> Result<(String, String, u64)> {
    Ok((text(detail, "boot_id")?, text(detail, "incarnation")?, number(detail, "pid")? as u64))
}

fn look_into(name: &str, said: &Value) -> Result<Instance> {
    Ok(Instance {
        name: name.into(),
        uname: text(said, "uname")?,
        boot_id: text(said, "boot_id")?,
        memory_kib: number(said, "memory_kib")? as u64,
    })
}

fn host_boot_id() -> Result<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("the host tells no boot id")?;
    Ok(id.trim().to_owned())
}

/// Reads all lines of the counting command; returns the time between the first and the last, in milliseconds.
fn streamed(lines: &mut Lines) -> Result<u64> {
    let mut times = Vec::new();
    while let Some(line) = lines.next(Duration::from_secs(20))? {
        times.push(line.read_at);
    }
    must(times.len() == STREAMED_LINES, || format!("{} lines came, expected {STREAMED_LINES}", times.len()))?;
    let spread = times[times.len() - 1].duration_since(times[0]).unwrap_or_default();
    Ok(u64::try_from(spread.as_millis())?)
}
