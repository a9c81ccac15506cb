//! The life of a kernel beside this one, whoever dies.

use serde_json::{Value, json};
use tombolo_tests::bed::{Bed, eventually, send_signal};

use super::Beside;

/// Who runs the process that stands for the kernel of `web`.
pub(super) fn keeper_of_web(beside: &Beside) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", beside.bed.pid("web"))).unwrap();
    status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok()).unwrap()
}

/// How many CPUs the ledger gives to a holder.
fn cpus(bed: &Bed, holder: &str) -> usize {
    let pool = bed.must(&["--json", "pool"]).json()["pool"].take();
    let row = pool["instances"].as_array().unwrap().iter().find(|row| row["name"] == holder);
    let is_holders = |owner: &Value| match row {
        Some(row) => owner["instance"]["instance"] == row["id"],
        None => owner == holder,
    };
    let is_its = |unit: &&Value| !unit["unit"]["id"]["cpu"].is_null() && is_holders(&unit["owner"]);
    pool["units"].as_array().unwrap().iter().filter(is_its).count()
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

pub(super) fn kernel_that_hangs_when_it_is_to_stop_is_ended_by_force_and_each_step_is_told() {
    let Some(beside) = Beside::with_pool() else { return };
    beside.boot(&["--restart", "never"]);
    beside.stand_in.control(&["freeze", "web"]);
    beside.bed.must(&["stop", "web", "--grace", "500ms"]);
    assert_eq!(beside.bed.view("web")["last_end"], json!({ "signaled": 9 }));
    let said = beside.bed.must(&["logs", "--console", "web"]).stdout;
    let at = |text: &str| said.find(text).unwrap_or_else(|| panic!("{text}: {said}"));
    assert!(at("the kernel is ended by force\r") < at("the kernel is ended by force again\r"), "{said}");
    assert!(beside.stand_in.instances().is_empty(), "what it had is given back");
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

/// User-mode kernels have one CPU and tell nobody what its hardware calls it: the books of both sides are real here, the move is not.
pub(super) fn cpus_are_in_the_ledger_and_stay_with_a_kernel_that_cannot_name_them() {
    let Some(mut beside) = Beside::with_pool() else { return };
    beside.boot(&["--cpus", "2", "--cpus-max", "3"]);
    let books = |beside: &Beside| {
        let shown = beside.bed.must(&["--json", "multikernel", "show"]).json();
        shown["multikernel"]["instances"][0]["cpus"].clone()
    };
    let held = |beside: &Beside, holder: &str| cpus(&beside.bed, holder);
    assert_eq!(books(&beside), json!([2, 4]));
    assert_eq!((held(&beside, "web"), held(&beside, "pool")), (2, 1));
    let said = beside.bed.tombolo(&["resize", "web", "--cpus", "-1"]);
    assert!(said.code == 5 && said.stderr.contains("what its hardware calls its CPUs"), "{said:?}");

    beside.bed.end_daemon("KILL");
    beside.bed.start_daemon();
    beside.bed.must(&["wait", "web", "--for", "running"]);
    assert_eq!((books(&beside), held(&beside, "web")), (json!([2, 4]), 2), "the next daemon knows");
    beside.bed.must(&["multikernel", "pool", "--cpus", "2,4"]);
    let said = beside.bed.tombolo(&["up", "db", "--memory", super::MEMORY]);
    assert!(said.code == 1 && said.stderr.contains("tombolo multikernel pool"), "{said:?}");
    beside.bed.must(&["rm", "db"]);
    beside.bed.must(&["stop", "web"]);
    eventually("its CPUs to be free", || held(&beside, "pool") == 2);
    beside.nothing_is_left_but(&[]);
}

/// User-mode kernels have no PCI: the books of both sides are real here, and no kernel sees the device.
pub(super) fn device_is_set_aside_booted_with_and_given_back() {
    const NIC: &str = "0000:03:00.0";
    let Some(beside) = Beside::with_pool() else { return };
    let folder = beside.stand_in.function(NIC);
    let pool = |devices: &str| beside.bed.tombolo(&["multikernel", "pool", "--devices", devices]);
    let of_pool = || {
        let shown = beside.bed.must(&["--json", "multikernel", "show"]).json();
        shown["multikernel"]["devices"].clone()
    };
    std::os::unix::fs::symlink("../../drivers/ixgbe", folder.join("driver")).unwrap();
    let said = pool(NIC);
    assert!(said.code == 1 && said.stderr.contains("driven here, by `ixgbe`"), "{said:?}");
    assert_eq!(of_pool(), json!([]));
    std::fs::remove_file(folder.join("driver")).unwrap();
    let said = pool("0000:03:00.0=uplink");
    assert!(said.code == 0 && said.stdout.contains("take device 0000:03:00.0 as `uplink`"), "{said:?}");
    let free = json!({
        "address": NIC, "alias": "uplink", "held_by": null, "iommu_group": 7, "can_reset": true
    });
    assert_eq!(of_pool(), json!([free]));

    beside.boot(&["--device", NIC]);
    assert_eq!(of_pool()[0]["held_by"], "web");
    assert_eq!(std::fs::read_to_string(folder.join("reset")).unwrap(), "1", "it was reset before");
    let said = pool("none");
    assert!(said.code == 1 && said.stderr.contains("instance `web` has it"), "{said:?}");
    let said = beside.bed.tombolo(&["move", "--device", NIC, "--from", "web", "--to", "pool"]);
    assert!(said.code == 5 && said.stderr.contains("there is no function"), "{said:?}");
    let said = beside.bed.tombolo(&["up", "db", "--memory", super::MEMORY, "--device", NIC]);
    assert_eq!(said.code, 0, "it is not free, and so it boots without: {said:?}");
    beside.bed.must(&["stop", "db"]);
    beside.bed.must(&["stop", "web"]);
    eventually("its device to be free", || of_pool()[0]["held_by"].is_null());
    assert_eq!(pool("none").code, 0);
    assert_eq!(of_pool(), json!([]));
    beside.nothing_is_left_but(&[]);
}
