//! Memory, CPUs and devices move between running kernels, whoever dies when.

mod balance;
mod host;
mod memory;
mod mend;
mod quarantine;
mod units;

use serde_json::Value;
use tombolo_tests::bed::{Bed, eventually};
use tombolo_tests::prerequisites;

const MIB: u64 = 1 << 20;
/// The disk of emulated machines.
const DISK: &str = "0000:01:00.0";
/// One that is behind a file which is not there.
const LOST_DISK: &str = "0000:02:00.0";
/// The recorded steps of a move of one unit between kernels without hooks: it is not shorter.
const STEPS_WITHOUT_HOOKS: u32 = 11;
/// How much may be free more or less than expected: programs come and go inside.
const TOLERANCE: u64 = 4 * MIB;

/// `web` with 96 MiB and room for 224, `db` with 192 MiB of which it gives all but 72.
fn bed_with_two(files: &[&str]) -> Option<Bed> {
    let app = prerequisites::static_program("tombolo-demo-kv")?;
    let bed = Bed::start("uml")?;
    let file = format!("{}:/bin/app", app.display());
    let common = [&["--restart", "never", "--file", &file][..], files].concat();
    bed.must(&[&["up", "web", "--memory", "96", "--memory-max", "224"][..], &common].concat());
    bed.must(&[&["up", "db", "--memory", "192", "--memory-min", "72"][..], &common].concat());
    Some(bed)
}

/// The same on emulated machines, which are told at their boot what can leave: `web` with 160 MiB and room for 256, `db` with 256
/// of which it gives all but 128. Each has room for four CPUs, of which `db` has two to begin with; there are eight in all, and a disk.
fn emulated_bed_with_two() -> Option<Bed> {
    emulated_bed("8", &[])
}

/// The same with so many CPUs in all, and created with these options, too.
fn emulated_bed(cpus_in_all: &str, options: &[&str]) -> Option<Bed> {
    let app = prerequisites::static_program("tombolo-demo-kv")?;
    let mut bed = Bed::prepare("qemu")?;
    let disk = bed.dir().join("disk");
    std::fs::File::create(&disk).and_then(|file| file.set_len(8 * MIB)).ok()?;
    bed.add_daemon_args(["--cpus", cpus_in_all, "--device", &format!("{DISK}=nvme:{}", disk.display())]);
    bed.add_daemon_args(["--device", &format!("{LOST_DISK}=nvme:/no/such/disk")]);
    bed.start_daemon();
    let file = format!("{}:/bin/app", app.display());
    let common = ["--restart", "never", "--memory-min", "128", "--cpus-max", "4", "--file", &file];
    let common = [&common[..], options].concat();
    bed.must(&[&["create", "web", "--memory", "160", "--memory-max", "256"][..], &common].concat());
    bed.must(&[&["create", "db", "--memory", "256", "--cpus", "2"][..], &common].concat());
    bed.must(&["start", "web", "db"]);
    Some(bed)
}

/// What `tombolo pool` says.
struct Books(Value);

impl Books {
    fn of(bed: &Bed) -> Self {
        Self(bed.must(&["--json", "pool"]).json()["pool"].take())
    }

    /// The units of a holder: how much each is, by a key of its traits or its name.
    fn units_of(&self, holder: &str) -> Vec<&Value> {
        let row = self.0["instances"].as_array().unwrap().iter().find(|row| row["name"] == holder);
        let is_holders = |owner: &Value| match row {
            Some(row) => owner["instance"]["instance"] == row["id"],
            None => owner == holder,
        };
        self.0["units"].as_array().unwrap().iter().filter(|unit| is_holders(&unit["owner"])).collect()
    }
}

fn granules(unit: &Value) -> u64 {
    unit["unit"]["traits"]["memory"]["granules"].as_u64().unwrap_or(0)
}

/// How much memory the ledger gives to a holder, in MiB.
fn held(bed: &Bed, holder: &str) -> u64 {
    let books = Books::of(bed);
    let held: u64 = books.units_of(holder).into_iter().map(granules).sum();
    held * books.0["meta"]["granule_bytes"].as_u64().unwrap() / MIB
}

/// How many CPUs it gives to one.
fn cpus(bed: &Bed, holder: &str) -> usize {
    let is_cpu = |unit: &&Value| !unit["unit"]["id"]["cpu"].is_null();
    Books::of(bed).units_of(holder).into_iter().filter(is_cpu).count()
}

/// Whether it gives the disk to one.
fn has_disk(bed: &Bed, holder: &str) -> bool {
    Books::of(bed).units_of(holder).into_iter().any(|unit| unit["unit"]["id"]["device"] == DISK)
}

/// Nothing is lost or doubled: all that was discovered has an owner, and none is in transit or in quarantine.
fn books_add_up(bed: &Bed) {
    let books = Books::of(bed).0;
    let units = books["units"].as_array().unwrap();
    let count = |kind: &str| units.iter().filter(|unit| !unit["unit"]["id"][kind].is_null()).count() as u64;
    let memory: u64 = units.iter().map(granules).sum();
    for (kind, found) in [("memory", memory), ("cpu", count("cpu")), ("device", count("device"))] {
        let total = books["meta"]["totals"].as_array().unwrap().iter().find(|total| total[0] == kind);
        assert_eq!(total.unwrap()[1], found, "{kind}: {books}");
    }
    let unsettled: Vec<&Value> = units
        .iter()
        .filter(|unit| !unit["owner"]["in-transit"].is_null() || !unit["owner"]["quarantined"].is_null())
        .collect();
    assert!(unsettled.is_empty(), "{unsettled:?}");
}

/// What the kernel itself says is free, in bytes.
fn free(bed: &Bed, name: &str) -> u64 {
    let mut free = None;
    // After a start of the daemon its agent has yet to dial in.
    eventually("a report from inside", || {
        let inside = bed.must(&["--json", "inspect", name]).json();
        free = inside["instance"]["report"]["load"]["memory"]["free"].as_u64();
        free.is_some()
    });
    free.unwrap_or_default()
}

/// The kernel has as much as the ledger says: what is free inside has changed by as much as what it holds.
fn kernel_agrees(bed: &Bed, name: &str, held_before_mib: u64, free_before: u64) {
    let expected = free_before + held(bed, name) * MIB;
    let found = free(bed, name) + held_before_mib * MIB;
    assert!(found.abs_diff(expected) < TOLERANCE, "{name}: {found} and {expected} bytes differ");
}

/// What a kernel says of itself: `memory_bytes`, `cpus_online`.
fn inside(bed: &Bed, name: &str, what: &str) -> u64 {
    // After a start of the daemon its agent has yet to dial in.
    bed.must(&["wait", name, "--for", "running"]);
    let inside = bed.must(&["exec", name, "--", "/init", "info", "--json"]).stdout;
    let info: Value = serde_json::from_str(inside.lines().last().unwrap_or_default()).unwrap_or_default();
    info[what].as_u64().unwrap_or_default()
}

fn operation(bed: &Bed, id: u64) -> Value {
    bed.must(&["--json", "op", "show", &id.to_string()]).json()["operation"].take()
}

fn last_operation(bed: &Bed) -> Value {
    let operations = bed.must(&["--json", "op", "ls"]).json()["operations"].take();
    operations.as_array().unwrap().last().cloned().unwrap_or_default()
}

/// Asks for a move of a daemon that dies after so many recorded steps; `meanwhile` happens before there is a new one. The operation as
/// it ended, or `None` if the daemon did not come that far.
fn move_with_a_dying_daemon(
    bed: &mut Bed,
    step: u32,
    what: [&str; 2],
    [from, to]: [&str; 2],
    meanwhile: impl FnOnce(),
) -> Option<Value> {
    bed.end_daemon("TERM");
    let lasting = bed.daemon_args();
    bed.add_daemon_args(["--debug-die-after-steps", &step.to_string()]);
    bed.start_daemon();
    bed.replace_daemon_args(lasting);
    for name in ["web", "db"] {
        bed.must(&["wait", name, "--for", "running"]);
    }
    let said = bed.tombolo(&[&["move", "--from", from, "--to", to][..], &what].concat());
    if said.code == 0 {
        bed.end_daemon("TERM");
        bed.start_daemon();
        return None;
    }
    assert!([6, 8].contains(&said.code), "{said:?}");
    bed.daemon_dies();
    meanwhile();
    bed.start_daemon();
    let id = last_operation(bed)["id"].as_u64().unwrap();
    bed.tombolo(&["op", "watch", &id.to_string()]);
    Some(operation(bed, id))
}

/// Whether to kill whoever at every step there is, as `cargo xtask verify` does, rather than at some.
fn is_full_form() -> bool {
    std::env::var_os("TOMBOLO_FULL_CRASH_MATRIX").is_some()
}

/// It went to its end, and says so.
fn is_committed(bed: &Bed, ended: &Value, step: u32) {
    assert_eq!(ended["phase"], "committed", "killed at step {step}");
    bed.must(&["op", "watch", &ended["id"].to_string()]);
}
