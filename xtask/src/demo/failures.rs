//! The hard parts of the story: a kernel is killed in mid-traffic, another hangs.

use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::bed::{number, text};
use super::{SpawnerKind, Stage, must};
use crate::command::{Line, Lines};

/// Lines of the client that are read to learn by how much its clock differs from ours: it prints one every 10 ms.
const CLOCK_LINES: usize = 100;

/// How long a hang may take to be reported, and a boot to resume traffic, before the demo gives up.
const HANG_MAX: Duration = Duration::from_secs(30);
const RESUME_MAX: Duration = Duration::from_secs(60);

impl Stage<'_> {
    pub(super) fn kill_db_in_mid_traffic(&mut self) -> Result<()> {
        let bed = &*self.bed;
        let report = &mut *self.report;
        let before = bed.view("db")?;
        let (pid, incarnation) = (number(&before, "pid")? as i32, text(&before, "incarnation")?);

        let title = match bed.spawner {
            SpawnerKind::Multikernel => "a panic of db's kernel in mid-traffic: a typed error",
            _ => "SIGKILL to db's kernel in mid-traffic: a typed error",
        };
        let (mut client, killed_at) = self.progress.step(title, || {
            let mut client = bed.app_lines("web", &["watch", "db/kv"])?;
            let offset_ns = clock_offset(&mut client)?;
            let killed_at = SystemTime::now();
            // As a kernel dies, all at once: its programs may be processes of the host, too.
            bed.strike_down("db", pid)?;
            let failed = client.find("an error", HANG_MAX, |line| event(line, "failed"))?;
            let noticed_ns = number(&failed, "at_unix_ns")? + offset_ns;
            let client_ms = (noticed_ns - unix_ns(killed_at)) / 1e6;
            report.client_notice_ms = Some(round(client_ms));
            let error = text(&failed, "error")?;
            let seen = format!("after {client_ms:.1} ms: \"{error}\"");
            report.client_error = Some(error);
            Ok((seen, (client, killed_at)))
        })?;
        self.progress.note(&format!("\"{}\"", report.client_error.as_deref().unwrap_or_default()));
        report.client_notice_how = "from just before kill(2) on the host to the client's error by its own clock, which is mapped to \
                                    the host's by the fastest of 100 lines it printed before (so the delay of that line is included)";

        report.control_notice_ms = Some(self.progress.step("the control plane notices, too", || {
            let died = wait_for_event(&|| events(bed), "db's death", |event| {
                is(event, "died", "db")
                    && number(event, "at_unix_ns").is_ok_and(|at| at >= unix_ns(killed_at))
            })?;
            let ms = (number(&died, "at_unix_ns")? - unix_ns(killed_at)) / 1e6;
            Ok((format!("{ms:.1} ms: {}", died["end"]), round(ms)))
        })?);
        report.control_notice_how = "from just before kill(2) to the time stamp of the event `died`";

        self.progress.step("the restart policy boots it again; traffic resumes", || {
            let resumed = client.find("that calls succeed again", RESUME_MAX, |line| {
                event(line, "resumed").map(|_| line.read_at)
            })?;
            let ms = resumed.duration_since(killed_at).unwrap_or_default().as_secs_f64() * 1e3;
            let after = bed.view("db")?;
            let new = text(&after, "incarnation")?;
            must(new != incarnation, || format!("it still is incarnation {new}"))?;
            report.traffic_resumed_ms = Some(round(ms));
            report.restarted = true;
            Ok((
                format!(
                    "{:.2} s after the kill, incarnation {}... is {}... now",
                    ms / 1e3,
                    &incarnation[..8],
                    &new[..8]
                ),
                (),
            ))
        })
    }

    pub(super) fn read_last_words(&mut self) -> Result<()> {
        let bed = &*self.bed;
        let words = self.progress.step("the dead kernel's last words, from its black box", || {
            let words = bed.tombolo(&["logs", "--last-words", "db"])?;
            let words: Vec<String> =
                words.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect();
            ensure!(!words.is_empty(), "the black box of the dead kernel is empty");
            Ok((format!("{} records", words.len()), words))
        })?;
        for line in &words[words.len().saturating_sub(4)..] {
            self.progress.note(line);
        }
        self.report.last_words = words.last().cloned();
        Ok(())
    }

    pub(super) fn freeze_and_thaw_web(&mut self) -> Result<()> {
        let bed = &*self.bed;
        let hung_ms =
            self.progress.step("freeze web: hung, not dead; thaw: healthy, not restarted", || {
                let before = bed.view("web")?;
                let frozen_at = Instant::now();
                bed.set_frozen("web", true)?;
                bed.tombolo(&["wait", "web", "--for", "hung", "--timeout", "30s"])?;
                let hung_ms = frozen_at.elapsed().as_secs_f64() * 1e3;
                bed.set_frozen("web", false)?;
                bed.tombolo(&["wait", "web", "--for", "ready", "--timeout", "30s"])?;
                let after = bed.view("web")?;
                for key in ["boot_id", "incarnation", "pid", "boots"] {
                    let (was, is) = (&before[key], &after[key]);
                    must(!was.is_null() && was == is, || format!("its {key} was {was} and is {is}"))?;
                }
                Ok((format!("reported hung after {hung_ms:.0} ms; same boot afterwards"), round(hung_ms)))
            })?;
        self.report.hung_notice_ms = Some(hung_ms);
        Ok(())
    }
}

/// The control plane's events so far.
fn events(bed: &super::bed::Bed) -> Result<Vec<Value>> {
    let text = bed.tombolo(&["--json", "events", "--since", "0"])?;
    text.lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("not an event: {line}")))
        .collect()
}

fn is(event: &Value, kind: &str, instance: &str) -> bool {
    event["type"] == kind && event["instance"] == instance
}

fn wait_for_event(
    events: &dyn Fn() -> Result<Vec<Value>>,
    what: &str,
    wanted: impl Fn(&Value) -> bool,
) -> Result<Value> {
    let deadline = Instant::now() + HANG_MAX;
    loop {
        if let Some(found) = events()?.into_iter().find(&wanted) {
            return Ok(found);
        }
        ensure!(Instant::now() < deadline, "{what} was not recorded within {HANG_MAX:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A line of the client with this event.
fn event(line: &Line, name: &str) -> Option<Value> {
    let value: Value = serde_json::from_str(&line.text).ok()?;
    (value["event"] == name).then_some(value)
}

/// What must be added to the client's clock to get ours, in nanoseconds: the least that any of its lines took to reach
/// us is taken for the difference.
fn clock_offset(client: &mut Lines) -> Result<f64> {
    let mut least = f64::INFINITY;
    for _ in 0..CLOCK_LINES {
        let took = client.find("a sign of life", Duration::from_secs(30), |line| {
            let alive = event(line, "alive")?;
            Some(unix_ns(line.read_at) - number(&alive, "at_unix_ns").ok()?)
        })?;
        least = least.min(took);
    }
    Ok(least)
}

fn unix_ns(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as f64
}

fn round(ms: f64) -> f64 {
    (ms * 1000.0).round() / 1000.0
}
