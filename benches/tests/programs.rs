//! The programs, run as the report runs them, for as short a time as there is.

use std::process::{Command, Output};

use tombolo_benches::figure::Figure;
use tombolo_benches::probe::{Probe, Reading, Test, Waiting};

fn bench(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tombolo-bench")).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn take(test: &str, way: &str, bytes: &str, waiting: &str) -> Reading {
    let output =
        bench(&["take", "--test", test, "--way", way, "--bytes", bytes, "--waiting", waiting, "--ms", "1"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn probe_has_its_floor_and_its_percentiles_beside_it() {
    let reading = take("round_trip", "tombolo", "56", "busy");
    let probe = Probe { test: Test::RoundTrip, way: "tombolo".into(), bytes: 56, waiting: Waiting::Busy };
    assert_eq!(reading.probe, probe);
    assert!(reading.value > 0.0 && reading.floors.lines_ns[0] > 0.0 && reading.floors.memcpy_ns > 0.0);
    assert_eq!(reading.percentiles[0], (50.0, reading.value));
    assert!(reading.percentiles.is_sorted_by(|a, b| a.1 <= b.1));
}

#[test]
fn rate_has_no_percentiles() {
    let reading = take("stream", "bare ring", "65536", "busy");
    assert!(reading.value > 0.0 && reading.percentiles.is_empty());
}

#[test]
fn every_listed_probe_is_one_of_its_kind() {
    let output = bench(&["probes"]);
    let mut probes: Vec<Probe> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let count = probes.len();
    probes.sort();
    probes.dedup();
    assert!(count > 10 && probes.len() == count);
}

#[test]
fn probe_that_there_is_not_is_refused() {
    let output = bench(&[
        "take",
        "--test",
        "wake",
        "--way",
        "pigeon",
        "--bytes",
        "1",
        "--waiting",
        "busy",
        "--ms",
        "1",
    ]);
    assert!(!output.status.success() && output.stdout.is_empty());
    assert!(text(&output.stderr).contains("cannot measure"), "{}", text(&output.stderr));
}

#[test]
fn cost_of_heartbeats_is_told() {
    let output = Command::new(env!("CARGO_BIN_EXE_tombolo-bench-scale"))
        .args(["heartbeats", "--quick"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let figures: Vec<Figure> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(figures.iter().any(|figure| figure.name == "heartbeats/cpu" && figure.value > 0.0));
}

#[test]
fn report_of_no_line_is_a_mistake_and_leaves_the_last_one() {
    let out = std::env::temp_dir().join(format!("tombolo-report-{}", std::process::id()));
    let mut report = Command::new(env!("CARGO_BIN_EXE_bench-report"));
    let output = report.args(["--only", "nosuch", "--out"]).arg(&out).output().unwrap();
    let said = text(&output.stderr);
    assert!(!output.status.success() && said.contains("`nosuch`") && said.contains("call-busy"), "{said}");
    assert!(!out.exists());
}
