//! Memory of the kernel's heap, which the daemon takes for itself and the kernels that it starts.

use std::fs;

use serde_json::Value;
use tombolo_tests::bed::Bed;
use tombolo_tests::standin;

use super::Beside;

/// What `tombolo multikernel show` says of it.
fn shown(beside: &Beside) -> Value {
    beside.bed.must(&["--json", "multikernel", "show"]).json()["multikernel"]["shared_memory"].clone()
}

fn link(beside: &Beside) -> Value {
    beside.bed.must(&["--json", "inspect", "web"]).json()["instance"].clone()
}

/// The buffers of the heap, as the kernel lists them.
fn buffers() -> Vec<String> {
    let iomem = fs::read_to_string("/proc/iomem").unwrap();
    let lines = iomem.lines().filter_map(|line| line.trim().strip_suffix(" : daxfs"));
    lines.map(str::to_owned).collect()
}

pub(super) fn buffer_of_the_heap_is_shared_and_outlives_its_daemon() {
    let Some(stand_in) = standin::here() else { return };
    let stand_in = stand_in.with_heap();
    let Some(mut bed) = Bed::prepare_beside(&stand_in) else { return };
    bed.add_daemon_args(["--pool-members", "4", "--pool-extent", "2"]);
    bed.start_daemon();
    let mut beside = Beside { bed, stand_in };

    // Nothing is set aside yet, so there is nothing to take: kernels are reached over their sockets, and why is said.
    let none = shown(&beside);
    assert!(none["kind"].is_null(), "{none}");
    assert!(none["reason"].as_str().unwrap().contains("tombolo multikernel pool --memory"), "{none}");
    let said = beside.bed.must(&["--json", "doctor"]).json()["doctor"]["findings"].to_string();
    assert!(said.contains("no memory in common") && said.contains("/dev/dma_heap/multikernel"), "{said}");
    beside.bed.must(&["multikernel", "pool", "--cpus", "2,4,6", "--memory", "1G"]);
    beside.boot(&[]);
    let detail = link(&beside);
    assert_eq!(detail["view"]["link"], "paced", "{detail}");
    assert!(detail["why_paced"].as_str().unwrap().contains("/dev/dma_heap/multikernel"), "{detail}");
    beside.bed.end_daemon("TERM");
    beside.bed.start_daemon();
    beside.bed.must(&["wait", "web", "--for", "running"]);
    assert!(shown(&beside)["kind"].is_null(), "what kernels use does not change while one runs");
    beside.bed.must(&["rm", "--force", "web"]);
    beside.bed.end_daemon("TERM");
    beside.bed.start_daemon();

    let memory = shown(&beside);
    assert_eq!(memory["kind"], "heap", "{memory}");
    let (phys, holder) = (memory["phys"].as_u64().unwrap(), memory["held_by"].as_u64().unwrap());
    let listed = buffers();
    assert!(listed.len() == 1 && listed[0].starts_with(&format!("{phys:x}-")), "{phys:#x}: {listed:?}");
    beside.boot(&[]);
    let boot_id = beside.boot_id();
    let detail = link(&beside);
    assert_eq!(detail["view"]["link"], "shm", "{detail}");
    assert!(detail["why_paced"].is_null(), "{detail}");
    beside.bed.until("web", "its heartbeat", |view| view["health"] == "ready" || view["health"] == "live");
    beside.bed.must(&["ping", "web"]);

    // Whoever dies, the memory is the same, and there is no other.
    beside.bed.end_daemon("KILL");
    assert_eq!(buffers(), listed);
    beside.bed.start_daemon();
    beside.bed.must(&["wait", "web", "--for", "running"]);
    assert_eq!((shown(&beside), buffers()), (memory, listed));
    assert_eq!(beside.boot_id(), boot_id);
    beside.bed.must(&["ping", "web"]);

    let stand_in = beside.stand_in.clone();
    beside.nothing_is_left_but(&[]);
    assert!(!fs::exists(format!("/proc/{holder}")).unwrap(), "who held it has ended");
    tombolo_tests::bed::eventually("it is free again", || buffers().is_empty());
    assert!(stand_in.log().contains("are free again"));
}
