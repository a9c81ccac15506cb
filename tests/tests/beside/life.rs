//! The life of a kernel beside this one, whoever dies.

use serde_json::{Value, json};
use tombolo_tests::bed::{eventually, send_signal};

use super::Beside;

/// Who runs the process that stands for the kernel of `web`.
fn keeper_of_web(beside: &Beside) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", beside.bed.pid("web"))).unwrap();
    status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok()).unwrap()
}

fn runs_again(beside: &Beside, before: &Value) -> Value {
    let again = |view: &Value| view["state"] == "running" && view["boots"] != before["boots"];
    beside.bed.until("web", "started again", again)
}

pub(super) fn kernel_lives_and_ends_in_good_order() {
    let Some(beside) = Beside::with_pool() else { return };
    beside.boot(&["--restart", "never"]);
    let host = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let first = beside.boot_id();
    assert_ne!(first, host.trim());
    assert_eq!(beside.bed.view("web")["boot_id"], first);
    beside.bed.must(&["ping", "web"]);
    let shown = beside.bed.must(&["--json", "multikernel", "show"]).json();
    let instance = &shown["multikernel"]["instances"][0];
    assert_eq!((&instance["status"], &instance["is_ours"]), (&json!("active"), &json!(true)), "{shown}");
    assert_eq!(instance["memory_bytes"], 96 << 20, "{shown}");

    beside.bed.must(&["stop", "web"]);
    assert_eq!(beside.bed.view("web")["last_end"], "powered-off");
    assert!(beside.stand_in.instances().is_empty(), "what it had is given back");
    beside.bed.must(&["start", "web"]);
    assert_ne!(beside.boot_id(), first);
    beside.nothing_is_left_but(&[]);
}

pub(super) fn panic_is_told_apart_and_restarted() {
    let Some(beside) = Beside::with_pool() else { return };
    beside.boot(&["--restart", "on-failure"]);
    let first = beside.bed.view("web");
    // The answer may or may not get out before the end.
    beside.bed.tombolo(&["exec", "web", "--", "/bin/app", "panic"]);
    let second = runs_again(&beside, &first);
    assert_eq!(second["last_end"], "panicked", "{second}");
    beside.bed.must(&["ping", "web"]);
    beside.bed.must(&["kill", "web"]);
    assert!(beside.stand_in.instances().is_empty(), "what it had is given back");
    beside.nothing_is_left_but(&[]);
}

pub(super) fn hang_is_seen_and_ended_by_force() {
    let Some(beside) = Beside::with_pool() else { return };
    beside.boot(&["--on-hang", "restart"]);
    let first = beside.bed.view("web");
    beside.stand_in.control(&["freeze", "web"]);
    let second = runs_again(&beside, &first);
    assert_ne!(second["boot_id"], first["boot_id"]);
    let kinds = |event: &Value| event["type"].as_str().unwrap_or_default().to_owned();
    let events: Vec<String> = beside.bed.events_since(0).iter().map(kinds).collect();
    for wanted in ["hung", "fencing", "died"] {
        assert!(events.iter().any(|kind| kind == wanted), "{wanted}: {events:?}");
    }
    assert_eq!(beside.stand_in.instances(), ["web"]);
    beside.nothing_is_left_but(&[]);
}

pub(super) fn next_daemon_adopts_the_kernel_of_one_that_was_killed() {
    let Some(mut beside) = Beside::with_pool() else { return };
    beside.boot(&[]);
    let (boot_id, pid) = (beside.boot_id(), beside.bed.pid("web"));
    beside.bed.end_daemon("KILL");
    beside.bed.start_daemon();
    beside.bed.must(&["wait", "web", "--for", "running"]);
    assert_eq!((beside.boot_id(), beside.bed.pid("web")), (boot_id, pid));
    beside.bed.must(&["stop", "web"]);
    assert_eq!(beside.bed.view("web")["last_end"], "powered-off");
    beside.nothing_is_left_but(&[]);
}

pub(super) fn another_keeper_stands_for_the_kernel_of_one_that_was_killed() {
    let Some(mut beside) = Beside::with_pool() else { return };
    beside.boot(&[]);
    let (boot_id, pid) = (beside.boot_id(), beside.bed.pid("web"));
    send_signal(keeper_of_web(&beside), "KILL");
    let another = |view: &Value| view["state"] == "running" && view["pid"].as_u64() != Some(pid.into());
    beside.bed.until("web", "looked after by another", another);
    eventually("an answer", || beside.bed.tombolo(&["ping", "web"]).code == 0);
    assert_eq!(beside.boot_id(), boot_id, "the kernel ran on");

    // Both at once: nobody is there who would replace it, and nobody whom the next daemon could ask.
    let keeper = keeper_of_web(&beside);
    beside.bed.end_daemon("KILL");
    send_signal(keeper, "KILL");
    beside.bed.start_daemon();
    beside.bed.must(&["wait", "web", "--for", "running"]);
    eventually("an answer", || beside.bed.tombolo(&["ping", "web"]).code == 0);
    assert_eq!(beside.boot_id(), boot_id, "the kernel ran on");
    beside.bed.must(&["stop", "web"]);
    assert_eq!(beside.bed.view("web")["last_end"], "powered-off");
    beside.nothing_is_left_but(&[]);
}

pub(super) fn doctor_finds_nothing_wrong() {
    let Some(beside) = Beside::with_pool() else { return };
    let said = beside.bed.must(&["--json", "doctor"]).json();
    let findings = said["doctor"]["findings"].as_array().unwrap_or_else(|| panic!("{said}"));
    let level = |subject: &str| {
        let finding = findings.iter().find(|finding| finding["subject"] == subject);
        finding.map(|finding| finding["level"].as_str().unwrap_or_default().to_owned())
    };
    // The stand-in has no DAXFS and no IOMMU.
    for subject in ["multikernel kernel", "multikernel pool", "multikernel calls", "multikernel console"] {
        assert_eq!(level(subject).as_deref(), Some("ok"), "{subject}: {said}");
    }
    assert_eq!(level("multikernel lock"), None, "{said}");
    beside.nothing_is_left_but(&[]);
}
