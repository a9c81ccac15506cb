//! Instances that kerf made and that Tombolo takes over when it is told to.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tombolo_tests::bed::Said;
use tombolo_tests::kerf::Kerf;

use super::with_kerf::{LOCK, as_the_kernel_has_it, shown, with_pool};
use super::{Beside, MEMORY};

/// What kerf makes: more than Tombolo would give it.
const CREATE: [&str; 5] = ["create", "db", "--cpus=4,6", "--memory=128MB", "--id=9"];
/// It waits for a disk that never comes.
const WAITS: &str = "root=/dev/ubda rootwait";

fn load_by_kerf(beside: &Beside, kerf: &Kerf) {
    kerf.must(&["load", "db", "-k", beside.stand_in.image().to_str().unwrap(), "-c", WAITS]);
}

fn refused(beside: &Beside, args: &[&str], code: i32, reason: &str) -> Said {
    let said = beside.bed.tombolo(args);
    assert!(said.code == code && said.stderr.contains(reason), "{args:?}: {said:?}");
    said
}

fn origin(beside: &Beside) -> Value {
    beside.bed.view("db")["taken_over"].clone()
}

pub(super) fn instance_that_kerf_made_lives_on_as_ours_once_it_is_adopted() {
    let Some((beside, kerf)) = with_pool() else { return };
    kerf.must(&CREATE);
    load_by_kerf(&beside, &kerf);
    let (theirs, transactions) = (as_the_kernel_has_it("db"), beside.stand_in.transactions());
    let made_it = transactions.last().unwrap().0.clone();

    refused(&beside, &["adopt", "nobody"], 3, "no instance of the kernel named `nobody`");
    refused(&beside, &["adopt", "successor"], 4, "kmorph");
    refused(&beside, &["adopt", "db", "--memory", "64"], 2, "keeps the memory");
    refused(&beside, &["adopt", "db", "--spawner", "uml"], 2, "multikernel");
    beside.bed.must(&["create", "web", "--memory", MEMORY]);
    refused(&beside, &["adopt", "web"], 4, "an instance of this name exists");
    beside.bed.must(&["rm", "web"]);
    fs::write(LOCK, "").unwrap();
    refused(&beside, &["adopt", "db"], 4, "holds the lock");
    fs::remove_file(LOCK).unwrap();
    kerf.must(&["create", "first", "--cpus=2", "--memory=64MB", "--id=1"]);
    refused(&beside, &["adopt", "first"], 4, "below 3");
    kerf.must(&["delete", "first"]);

    beside.bed.must(&["adopt", "db", "--restart", "never"]);
    assert_eq!(as_the_kernel_has_it("db"), theirs, "nothing is changed by adopting");
    assert!(beside.stand_in.transactions().starts_with(&transactions));
    let view = beside.bed.view("db");
    assert_eq!(
        (&view["cid"], &view["memory_mib"], &view["state"], &view["spawner"]),
        (&json!(9), &json!(128), &json!("defined"), &json!("multikernel")),
        "{view}"
    );
    assert_eq!(origin(&beside), json!(made_it));
    let said = beside.bed.must(&["inspect", "db"]).stdout;
    assert!(said.contains(&format!("made by another program ({made_it}), taken over")), "{said}");
    assert!(beside.bed.must(&["ps", "--wide"]).stdout.contains(&made_it));
    let db = shown(&beside, "db");
    assert_eq!((&db["is_ours"], &db["is_taken_over"]), (&json!(true), &json!(true)), "{db}");
    assert!(kerf.must(&["show", "db"]).stdout.contains("loaded"));

    beside.bed.must(&["start", "db"]);
    beside.bed.must(&["ping", "db"]);
    assert_eq!(shown(&beside, "db")["cpus"], json!([4, 6]), "those that it had");
    assert!(kerf.must(&["show", "db"]).stdout.contains("active"));
    beside.bed.must(&["stop", "db"]);
    assert_eq!(beside.bed.view("db")["last_end"], "powered-off");
    assert!(beside.stand_in.instances().is_empty(), "what it had is given back");
    beside.bed.must(&["start", "db"]);
    let db = shown(&beside, "db");
    assert_eq!((&db["id"], &db["memory_bytes"]), (&json!(9), &json!(128 << 20)), "{db}");
    assert_eq!(db["is_taken_over"], json!(false), "it was made anew");
    kerf.must(&["show"]);
    beside.bed.must(&["rm", "--force", "db"]);
    beside.nothing_is_left_but(&[]);
}

/// What kerf notes of what it loaded, for itself and whoever reads it.
const NOTED: &str = "/var/lib/kerf/instances/db.json";

pub(super) fn what_kerf_has_noted_of_an_instance_is_left_as_it_is() {
    let Some((beside, kerf)) = with_pool() else { return };
    kerf.must(&CREATE);
    load_by_kerf(&beside, &kerf);
    let noted = fs::read(NOTED).unwrap();
    let image = beside.stand_in.image();
    let document: Value = serde_json::from_slice(&noted).unwrap();
    assert_eq!(document["kernel"]["path"], json!(image), "{document}");
    let modified = fs::metadata(NOTED).unwrap().modified().unwrap();
    let is_as_it_was = |after: &str| {
        assert!(fs::read(NOTED).unwrap() == noted, "another text after {after}");
        assert_eq!(fs::metadata(NOTED).unwrap().modified().unwrap(), modified, "written anew by {after}");
        let names: Vec<_> = fs::read_dir("/var/lib/kerf/instances")
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["db.json"], "after {after}");
    };
    beside.bed.must(&["adopt", "db", "--restart", "never"]);
    is_as_it_was("adopt");
    assert!(kerf.must(&["show", "db"]).stdout.contains(image.to_str().unwrap()));
    beside.bed.must(&["start", "db"]);
    is_as_it_was("start");
    beside.bed.must(&["stop", "db"]);
    is_as_it_was("stop");
    beside.bed.must(&["rm", "db"]);
    is_as_it_was("rm");
    beside.nothing_is_left_but(&[]);
}

pub(super) fn kernel_that_kerf_runs_is_adopted_only_by_force_and_ended_only_by_force() {
    let Some((beside, kerf)) = with_pool() else { return };
    kerf.must(&CREATE);
    load_by_kerf(&beside, &kerf);
    kerf.must(&["start", "db"]);
    let is_active = || shown(&beside, "db")["status"] == "active";
    refused(&beside, &["adopt", "db"], 4, "tombolo kill db");
    beside.bed.must(&["adopt", "db", "--force", "--restart", "never"]);
    assert!(is_active(), "it runs on");
    refused(&beside, &["stop", "db"], 4, "has no agent");
    refused(&beside, &["rm", "db"], 4, "runs: end it first");
    let said = beside.bed.tombolo(&["start", "db"]);
    assert!(said.code != 0 && said.stderr.contains("tombolo kill db"), "{said:?}");
    assert!(is_active());
    beside.bed.must(&["kill", "db"]);
    assert_eq!(shown(&beside, "db")["status"], "loaded");
    beside.bed.must(&["start", "db"]);
    beside.bed.must(&["ping", "db"]);
    beside.bed.must(&["stop", "db"]);
    beside.bed.must(&["rm", "db"]);
    assert!(beside.stand_in.instances().is_empty());

    // One that was never started here, and is not wanted any more.
    kerf.must(&CREATE);
    beside.bed.must(&["adopt", "db"]);
    beside.bed.must(&["rm", "db"]);
    assert!(beside.stand_in.instances().is_empty(), "`rm` gives it back");
    beside.nothing_is_left_but(&[]);
}

pub(super) fn daemon_killed_at_any_moment_has_adopted_it_or_has_not() {
    let Some((mut beside, kerf)) = with_pool() else { return };
    kerf.must(&CREATE);
    let theirs = as_the_kernel_has_it("db");
    for delay_ms in [0, 2, 5, 10, 20, 40, 80] {
        let adopting = beside.bed.attach(&["adopt", "db"]);
        std::thread::sleep(Duration::from_millis(delay_ms));
        beside.bed.end_daemon("KILL");
        adopting.finish();
        beside.bed.start_daemon();
        let code = beside.bed.tombolo(&["inspect", "db"]).code;
        assert_eq!(as_the_kernel_has_it("db"), theirs, "after {delay_ms} ms");
        assert_eq!(shown(&beside, "db")["is_ours"], json!(code == 0), "after {delay_ms} ms");
        // A lock that it left is no obstacle to the next.
        match code {
            0 => assert!(origin(&beside).is_string()),
            3 => drop(beside.bed.must(&["adopt", "db"])),
            other => panic!("inspect said {other}"),
        }
        assert!(!Path::new(LOCK).exists() || code == 0);
        beside.bed.must(&["rm", "db"]);
        kerf.must(&CREATE);
    }
    kerf.must(&["delete", "db"]);
    beside.nothing_is_left_but(&[]);
}
