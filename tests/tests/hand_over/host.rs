//! What machines have of the host: its CPUs, and what runs those of a machine.

use serde_json::Value;
use tombolo_control::topology::Topology;
use tombolo_tests::bed::Bed;

use super::{Books, books_add_up};

/// What the doctor says of a subject.
fn diagnosis(bed: &Bed, subject: &str) -> String {
    let document = bed.tombolo(&["--json", "doctor"]).json();
    let findings = document["doctor"]["findings"].as_array().unwrap().clone();
    let found = findings.iter().find(|finding| finding["subject"] == subject).unwrap();
    found["detail"].as_str().unwrap().to_owned()
}

#[test]
fn machine_runs_on_what_a_probe_finds_and_the_next_daemon_does_not_probe_again() {
    let Some(mut bed) = Bed::prepare("qemu") else { return };
    bed.add_daemon_args(["--accel", "auto"]);
    bed.start_daemon();
    bed.must(&["up", "web", "--memory", "160"]);
    let runs_on = |bed: &Bed| -> String {
        let document = bed.must(&["--json", "inspect", "web"]).json();
        document["instance"]["runs_on"].as_str().unwrap().to_owned()
    };
    let found = runs_on(&bed);
    println!("{found}");
    let record = bed.state_dir().join("qemu-accel.json");
    let was_probed = record.exists();
    // Where the device does not open there is nothing to probe.
    assert_eq!(was_probed, found.contains("a probe boot"), "{found}");
    assert_eq!(found.starts_with("KVM"), found.contains("reached user space"), "{found}");
    assert!(!bed.state_dir().join("qemu-probe").exists());
    assert_eq!(diagnosis(&bed, "accelerator"), found);
    let method = diagnosis(&bed, "machine CPUs");
    assert!(found.starts_with("KVM") || method.contains("tcg_register_thread"), "{method}");

    bed.must(&["stop", "web"]);
    assert_eq!(bed.end_daemon("TERM"), 0);
    bed.start_daemon();
    assert_eq!(diagnosis(&bed, "accelerator"), found, "it is known before anything is started");
    bed.must(&["start", "web"]);
    assert_eq!(runs_on(&bed), found);
    assert_eq!(bed.daemon_log().matches("probed whether").count(), usize::from(was_probed));
    bed.nothing_is_left();
}

#[test]
fn cpus_of_the_host_are_lent_as_the_host_has_them() {
    let host = Topology::of_this_host();
    let Some(cpu) = host.cpus.iter().rfind(|cpu| !cpu.boot) else {
        return eprintln!("skipped: this host has one CPU");
    };
    let Some(mut bed) = Bed::prepare("qemu") else { return };
    bed.add_daemon_args(["--host-cpus", &cpu.id.to_string()]);
    bed.start_daemon();
    bed.must(&["up", "web", "--memory", "160", "--cpus-max", "2"]);
    let books = Books::of(&bed);
    let units: Vec<&Value> =
        books.units_of("web").into_iter().filter(|unit| unit["unit"]["id"]["cpu"] == cpu.id).collect();
    let [unit] = units[..] else { panic!("{}", books.0) };
    assert_eq!(unit["unit"]["node"], serde_json::json!(cpu.node));
    assert_eq!(unit["unit"]["traits"]["cpu"]["core"], cpu.core);
    assert_eq!(books.0["host"]["cpus"].as_array().unwrap().len(), host.cpus.len());
    let tasks = std::fs::read_dir(format!("/proc/{}/task", bed.pid("web"))).unwrap();
    let status = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("status")).ok());
    let bound = format!("Cpus_allowed_list:\t{}\n", cpu.id);
    assert_eq!(status.filter(|status| status.contains(&bound)).count(), 1, "the thread of its one CPU");

    let said = bed.tombolo(&["up", "more", "--memory", "160"]);
    assert!(said.code == 1 && said.stderr.contains("than there are left"), "{said:?}");
    bed.must(&["rm", "more"]);
    assert!(diagnosis(&bed, "host topology").contains("resctrl"));
    books_add_up(&bed);
    bed.nothing_is_left();
}
