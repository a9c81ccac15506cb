//! Freezing and thawing kernels at random under full load: is every hang seen, and no healthy kernel taken for one that hangs?

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;

use super::bed::{Bed, number};
use super::life::NAMES;
use super::{on_user_mode_kernels, unix_ns};

/// How often the kernels show a sign of life, in ms: as often as they can.
const HEARTBEAT_MS: u64 = 20;
/// A freeze that lasts longer than this must be seen; a shorter one may be.
const SEEN_MIN: Duration = Duration::from_millis(1500);
/// How long freezes and the time between them last: chosen at random from so much to so much.
const FROZEN_MS: (u64, u64) = (50, 3_000);
const THAWED_MS: (u64, u64) = (200, 2_000);
/// How long after a thaw a report of the hang before it is no false alarm.
const AFTER_THAW: Duration = Duration::from_millis(500);

/// A time in which one kernel was frozen, on the daemon's clock. Beginning and end lie within a command each.
struct Freeze {
    name: &'static str,
    /// When the command that freezes began, and when it had ended.
    from_ns: f64,
    frozen_ns: f64,
    /// When the command that thaws began, and when it had ended.
    thaw_ns: f64,
    to_ns: f64,
}

impl Freeze {
    /// For how long it was frozen at least: what the commands took is not counted.
    fn least_ms(&self) -> f64 {
        (self.thaw_ns - self.frozen_ns) / 1e6
    }
}

/// Boots two kernels that are busy all the time, freezes and thaws them for so many minutes, and compares what was reported.
pub(crate) fn freeze_at_random(programs: &Path, minutes: u64) -> Result<()> {
    on_user_mode_kernels(programs, &[], |bed| freeze(&bed, Duration::from_secs(minutes * 60)))
}

fn freeze(bed: &Bed, time: Duration) -> Result<()> {
    let file = bed.app_file();
    let spec = bed.dir().join("spec.toml");
    std::fs::write(&spec, format!("memory_mib = 64\nheartbeat_ms = {HEARTBEAT_MS}\n"))?;
    let spec = spec.display().to_string();
    for name in NAMES {
        let spin = bed.app_words(name, &["spin", "1"]);
        let spin: Vec<&str> = spin.iter().map(String::as_str).collect();
        let up = ["up", name, "--spec", &spec, "--file", &file, "--"];
        bed.tombolo(&[&up[..], &spin].concat())?;
    }
    let mut random = Random::from_time();
    let (started, mut freezes) = (Instant::now(), Vec::new());
    while started.elapsed() < time {
        thread::sleep(random.ms(THAWED_MS));
        let name = NAMES[random.below(2) as usize];
        let from_ns = now_ns();
        bed.tombolo(&["debug", "freeze", name])?;
        let frozen_ns = now_ns();
        thread::sleep(random.ms(FROZEN_MS));
        let thaw_ns = now_ns();
        bed.tombolo(&["debug", "thaw", name])?;
        freezes.push(Freeze { name, from_ns, frozen_ns, thaw_ns, to_ns: now_ns() });
    }
    thread::sleep(AFTER_THAW);
    let events = bed.tombolo(&["--json", "events"])?;
    let hangs: Vec<(String, f64)> = events.lines().filter_map(hang).collect();
    let is_of = |freeze: &Freeze, (name, at_ns): &(String, f64)| {
        name == freeze.name && (freeze.from_ns..freeze.to_ns + AFTER_THAW.as_nanos() as f64).contains(at_ns)
    };
    let alarms = hangs.iter().filter(|hang| !freezes.iter().any(|freeze| is_of(freeze, hang))).count();
    let mut after_ms: Vec<f64> = Vec::new();
    let (mut long, mut missed) = (0, Vec::new());
    for freeze in &freezes {
        let lasted_ms = freeze.least_ms();
        let seen = hangs.iter().find(|hang| is_of(freeze, hang));
        after_ms.extend(seen.map(|(_, at_ns)| (at_ns - freeze.from_ns) / 1e6));
        if lasted_ms > SEEN_MIN.as_secs_f64() * 1e3 {
            long += 1;
            if seen.is_none() {
                missed.push(format!("{} for {lasted_ms:.0} ms", freeze.name));
            }
        }
    }
    after_ms.sort_by(f64::total_cmp);
    let at =
        |share: usize| after_ms.get(after_ms.len().saturating_sub(1) * share / 100).copied().unwrap_or(0.0);
    println!(
        "{} freezes of 50 to 3000 ms under full load; {long} of more than {SEEN_MIN:?}, of which {} were missed",
        freezes.len(),
        missed.len()
    );
    println!(
        "reported as hung {} times, {:.0} ms after the freeze (median), {:.0} ms (99 of 100); {alarms} false alarms",
        hangs.len(),
        at(50),
        at(99)
    );
    ensure!(long > 0, "no freeze was long enough to be seen");
    ensure!(missed.is_empty(), "not seen: {}", missed.join(", "));
    ensure!(alarms == 0, "a healthy kernel was taken for one that hangs {alarms} times");
    for name in NAMES {
        let boots = number(&bed.view(name)?, "boots")?;
        ensure!(boots == 1.0, "{name} was booted {boots} times");
    }
    bed.tombolo(&["down"]).map(drop)
}

/// Of an event that says that a kernel hangs: which, and when.
fn hang(line: &str) -> Option<(String, f64)> {
    let event: Value = serde_json::from_str(line).ok()?;
    let is_hang = matches!(event["type"].as_str()?, "hung" | "user-space-dead");
    is_hang.then(|| Some((event["instance"].as_str()?.to_owned(), event["at_unix_ns"].as_f64()?)))?
}

fn now_ns() -> f64 {
    unix_ns() as f64
}

/// Numbers that look random (Marsaglia, *Xorshift RNGs*, 2003).
struct Random(u64);

impl Random {
    fn from_time() -> Self {
        Self(unix_ns() | 1)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit.max(1)
    }

    fn ms(&mut self, (least, most): (u64, u64)) -> Duration {
        Duration::from_millis(least + self.below(most - least))
    }
}
