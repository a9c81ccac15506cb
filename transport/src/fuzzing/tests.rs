//! Every target on its corpus and on seeded random inputs.
//!
//! `TOMBOLO_CASES` says how many random inputs each target gets, `TOMBOLO_SEED` which ones. A failure names the seed that replays it with
//! `TOMBOLO_CASES=1`.

use std::path::Path;

use super::run;

/// Longest random input, in bytes.
const INPUT_BYTES_MAX: usize = 1024;

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn input(&mut self) -> Vec<u8> {
        let len = self.next() as usize % INPUT_BYTES_MAX;
        let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect();
        bytes.truncate(len);
        bytes
    }
}

/// Says how to come back here if the target panics.
struct Case<'a> {
    target: &'a str,
    input: String,
}

impl Drop for Case<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("target `{}` fails on {}", self.target, self.input);
        }
    }
}

fn number(variable: &str, default: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|e| panic!("{variable}={text}: {e}")),
        Err(_) => default,
    }
}

fn try_target(target: &str) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    for entry in std::fs::read_dir(corpus).into_iter().flatten() {
        let path = entry.unwrap().path();
        let _case = Case { target, input: path.display().to_string() };
        run(target, &std::fs::read(path).unwrap());
    }
    let (seed, cases) = (number("TOMBOLO_SEED", 1), number("TOMBOLO_CASES", 2000));
    for seed in (0..cases).map(|case| seed.wrapping_add(case)) {
        let _case = Case { target, input: format!("TOMBOLO_SEED={seed} TOMBOLO_CASES=1") };
        run(target, &Random(seed).input());
    }
}

#[test]
fn broker_keeps_its_books_whatever_kernels_and_processes_say() {
    try_target("broker");
}

#[test]
fn control_ring_of_any_words_gives_records_in_bounded_number() {
    try_target("control");
}

#[test]
fn messages_of_a_peer_that_writes_anything_end_in_sleep_or_error() {
    try_target("messages");
}

#[test]
fn stream_of_a_peer_that_writes_anything_ends_in_sleep_or_error() {
    try_target("stream");
}

#[test]
fn paced_link_survives_any_frames() {
    try_target("paced");
}

#[test]
fn parsers_survive_any_bytes() {
    try_target("parsers");
}

#[test]
fn pages_of_any_words_can_be_looked_at() {
    try_target("pool");
}
