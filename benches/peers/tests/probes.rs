//! Every probe is taken for a moment, as a runner would: both ends check what arrives, and nothing is left behind.

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tombolo_benches::probe::{Probe, Reading, Test};

const PROGRAM: &str = env!("CARGO_BIN_EXE_tombolo-peers");
/// A process that takes longer hangs.
const HANGS: Duration = Duration::from_secs(60);

fn probes() -> Vec<Probe> {
    let output = Command::new(PROGRAM).arg("probes").output().unwrap();
    let lines = String::from_utf8(output.stdout).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn take(probe: &Probe, ms: &str) -> Child {
    let word = |value: serde_json::Value| value.as_str().unwrap().to_owned();
    let test = word(serde_json::to_value(probe.test).unwrap());
    let waiting = word(serde_json::to_value(probe.waiting).unwrap());
    Command::new(PROGRAM)
        .args(["take", "--test", &test, "--way", &probe.way, "--bytes", &probe.bytes.to_string()])
        .args(["--waiting", &waiting, "--ms", ms])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// What the measurement of a process keeps in the folder for it and in shared memory.
fn files_of(pid: u32) -> Vec<PathBuf> {
    let name = format!("tombolo-peers-{pid}");
    let folders = [std::env::temp_dir(), PathBuf::from("/dev/shm")];
    let entries = folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap()).flatten();
    let ours = |path: &PathBuf| {
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        file.strip_prefix(&name).is_some_and(|rest| !rest.starts_with(|next: char| next.is_ascii_digit()))
    };
    entries.map(|entry| entry.path()).filter(ours).collect()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn every_probe_gives_a_reading_and_leaves_nothing() {
    let mut failures = Vec::new();
    for probe in probes() {
        let child = take(&probe, "5");
        let pid = child.id();
        let output = child.wait_with_output().unwrap();
        let Ok(reading) = serde_json::from_slice::<Reading>(&output.stdout) else {
            failures.push(format!("{probe:?}: no reading: {}", said(&output)));
            continue;
        };
        assert_eq!(reading.probe, probe);
        let mut values = vec![reading.value, reading.floors.lines_ns[0], reading.floors.memcpy_ns];
        values.extend(reading.percentiles.iter().map(|(_, value)| *value));
        if !values.iter().all(|value| value.is_finite() && *value > 0.0) {
            failures.push(format!("{reading:?}"));
        }
        if !files_of(pid).is_empty() {
            failures.push(format!("{probe:?}: left {:?}", files_of(pid)));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn a_probe_that_is_not_there_is_refused() {
    let probe = Probe {
        test: Test::Call,
        way: "carrier pigeon".into(),
        bytes: 1,
        waiting: tombolo_benches::probe::Waiting::Busy,
    };
    let output = take(&probe, "5").wait_with_output().unwrap();
    assert!(!output.status.success());
    assert!(said(&output).contains("carrier pigeon"), "{}", said(&output));
}

#[test]
fn a_leader_that_is_killed_leaves_nothing() {
    for probe in probes().iter().filter(|probe| probe.test == Test::RoundTrip && probe.bytes == 56) {
        let mut child = take(probe, "60000");
        let pid = child.id();
        until("it has begun", || !files_of(pid).is_empty());
        // Some have made no more than the folder yet, some are under way: either has to go.
        child.kill().unwrap();
        child.wait().unwrap();
        until(&format!("what {probe:?} had is gone"), || files_of(pid).is_empty());
    }
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < HANGS, "waited {HANGS:?} until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
