//! Together with kerf: each sees what the other made, nobody touches what is not his, and neither waits for the other for ever.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tombolo_tests::bed::eventually;
use tombolo_tests::kerf::Kerf;

use super::{Beside, MEMORY};

pub(super) const LOCK: &str = "/run/kerf.lock";

fn start() -> Option<(Beside, Kerf)> {
    Some((Beside::start()?, Kerf::find()?))
}

pub(super) fn with_pool() -> Option<(Beside, Kerf)> {
    Some((Beside::with_pool()?, Kerf::find()?))
}

/// What `tombolo multikernel show` says of an instance.
pub(super) fn shown(beside: &Beside, name: &str) -> Value {
    let said = beside.bed.must(&["--json", "multikernel", "show"]).json();
    let instances = said["multikernel"]["instances"].as_array().unwrap();
    instances.iter().find(|instance| instance["name"] == name).unwrap_or_else(|| panic!("{said}")).clone()
}

/// All that the kernel says of an instance.
pub(super) fn as_the_kernel_has_it(name: &str) -> Vec<Vec<u8>> {
    let dir = Path::new("/sys/fs/multikernel/instances").join(name);
    ["id", "status", "device_tree"].map(|file| fs::read(dir.join(file)).unwrap()).into()
}

/// Runs kerf until it does not give up on the lock, for which it waits no longer than a second.
fn patiently(kerf: &Kerf, args: &[&str]) {
    eventually("the lock", || {
        let said = kerf.run(args);
        let gave_up = said.stderr.contains("Could not acquire lock");
        assert!(said.code == 0 || gave_up, "`kerf {}` said {said:?}", args.join(" "));
        !gave_up
    });
}

pub(super) fn kerf_makes_the_pool_and_shows_what_tombolo_starts_in_it() {
    let Some((beside, kerf)) = start() else { return };
    kerf.must(&["init", "--cpus=2,4", "--memory=512MB"]);
    let said = beside.bed.must(&["multikernel", "show"]).stdout;
    assert!(said.contains("physical CPUs 2,4 ") && said.contains("512"), "{said}");
    beside.boot(&[]);
    let ours = shown(&beside, "web");
    let said = kerf.must(&["show", "web"]).stdout;
    let value = |key: &str| {
        let line =
            said.lines().find_map(|line| line.trim().strip_prefix(key)).unwrap_or_else(|| panic!("{said}"));
        line.trim_matches(|c: char| c.is_whitespace() || matches!(c, '=' | ';')).to_owned()
    };
    assert_eq!((value("ID:"), value("Status:")), (ours["id"].to_string(), "active".into()));
    assert_eq!(value("memory-bytes"), format!("<0x0 {:#x}>", 96 << 20));
    assert_eq!(value("cpus"), format!("<0x0 {:#x}>", ours["cpus"][0].as_u64().unwrap()));
    let all = kerf.must(&["show"]).stdout;
    assert!(all.contains("Instance: web") && all.contains("Available CPUs:  1 cpus"), "{all}");
    // Nobody takes what it has.
    let refused = kerf.run(&["init", "--cpus=4", "--memory=512MB"]);
    assert_ne!(refused.code, 0, "{refused:?}");
    let refused = kerf.run(&["delete", "web"]);
    assert_ne!(refused.code, 0, "{refused:?}");
    beside.bed.must(&["ping", "web"]);
    beside.bed.must(&["stop", "web"]);
    // What one has taken from the host the other gives back.
    beside.bed.must(&["multikernel", "pool", "--cpus", "none", "--memory", "0"]);
    beside.nothing_is_left_but(&[]);
}

pub(super) fn instances_of_kerf_are_shown_and_never_touched() {
    let Some((beside, kerf)) = with_pool() else { return };
    // The number that a first instance of ours would have, so that it is not by the number that it is spared.
    beside.bed.must(&["create", "db", "--memory", MEMORY, "--restart", "never"]);
    let number = beside.bed.view("db")["cid"].as_u64().unwrap().to_string();
    kerf.must(&["create", "db", "--cpus=4", "--memory=128MB", &format!("--id={number}")]);
    let theirs = as_the_kernel_has_it("db");
    let transactions = beside.stand_in.transactions();

    let said = beside.bed.must(&["multikernel", "show"]).stdout;
    let line = said.lines().find(|line| line.contains("db")).unwrap_or_else(|| panic!("{said}"));
    assert!(line.contains("another program") && line.contains("ready") && line.contains("128"), "{line}");
    let db = shown(&beside, "db");
    assert_eq!((&db["is_ours"], &db["cpus"]), (&json!(false), &json!([4])), "{db}");

    let refused = beside.bed.tombolo(&["start", "db"]);
    assert_ne!(refused.code, 0, "{refused:?}");
    let error = beside.bed.view("db")["last_error"].as_str().unwrap_or_default().to_owned();
    assert!(error.contains("made by another program"), "{error} {refused:?}");
    assert_eq!(shown(&beside, "db")["is_ours"], json!(false));
    beside.bed.tombolo(&["kill", "db"]);
    beside.bed.tombolo(&["stop", "db"]);
    beside.bed.must(&["rm", "db"]);
    assert_eq!(as_the_kernel_has_it("db"), theirs);
    assert_eq!(
        beside.stand_in.transactions(),
        transactions,
        "nothing of it was undone, and nothing asked for"
    );

    beside.boot(&["--restart", "never"]);
    assert_eq!(shown(&beside, "web")["is_ours"], json!(true));
    beside.bed.must(&["kill", "web"]);
    assert_eq!(as_the_kernel_has_it("db"), theirs);
    assert_eq!(beside.stand_in.transactions()[..transactions.len()], transactions);
    beside.nothing_is_left_but(&["db"]);
    assert_eq!(as_the_kernel_has_it("db"), theirs);
    kerf.must(&["delete", "db"]);
}

pub(super) fn kernel_that_kerf_runs_is_left_running() {
    let Some((beside, kerf)) = with_pool() else { return };
    kerf.must(&["create", "db", "--cpus=4", "--memory=128MB"]);
    let image = beside.stand_in.image();
    // It waits for a disk that never comes.
    kerf.must(&["load", "db", "-k", image.to_str().unwrap(), "-c", "root=/dev/ubda rootwait"]);
    kerf.must(&["start", "db"]);
    let is_active = || shown(&beside, "db")["status"] == "active";
    assert!(is_active());
    beside.bed.must(&["create", "db", "--memory", MEMORY, "--restart", "never"]);
    assert_ne!(beside.bed.tombolo(&["start", "db"]).code, 0);
    beside.bed.tombolo(&["kill", "db"]);
    beside.bed.must(&["rm", "db"]);
    assert!(is_active());
    beside.boot(&[]);
    beside.bed.must(&["ping", "web"]);
    beside.bed.must(&["stop", "web"]);
    assert!(is_active());
    beside.nothing_is_left_but(&["db"]);
    let status = fs::read_to_string("/sys/fs/multikernel/instances/db/status").unwrap();
    assert_eq!(status.trim(), "active");
    kerf.must(&["kill", "db", "-f"]);
    kerf.must(&["unload", "db"]);
    kerf.must(&["delete", "db"]);
}

pub(super) fn number_that_kerf_has_given_to_another_instance_is_left_to_it() {
    let Some((beside, kerf)) = with_pool() else { return };
    beside.bed.must(&["create", "web", "--memory", MEMORY, "--restart", "never"]);
    let number = beside.bed.view("web")["cid"].as_u64().unwrap();
    kerf.must(&["create", "db", "--cpus=4", "--memory=128MB", &format!("--id={number}")]);
    let theirs = as_the_kernel_has_it("db");
    let refused = beside.bed.tombolo(&["start", "web"]);
    assert_ne!(refused.code, 0, "{refused:?}");
    let error = beside.bed.view("web")["last_error"].as_str().unwrap_or_default().to_owned();
    assert!(error.contains(&format!("number {number}")) && error.contains("`db`"), "{error}");
    assert_eq!(as_the_kernel_has_it("db"), theirs);
    // One that is created afterwards keeps clear of it, and of the next.
    kerf.must(&["create", "db2", "--cpus=6", "--memory=128MB", &format!("--id={}", number + 1)]);
    beside.bed.must(&["rm", "web"]);
    beside.bed.must(&["up", "web", "--memory", MEMORY]);
    assert_eq!(beside.bed.view("web")["cid"], number + 2);
    beside.bed.must(&["ping", "web"]);
    assert_eq!(as_the_kernel_has_it("db"), theirs);
    kerf.must(&["delete", "db"]);
    beside.nothing_is_left_but(&["db2"]);
}

pub(super) fn kerf_changes_its_own_while_ours_runs() {
    let Some((beside, kerf)) = with_pool() else { return };
    beside.boot(&[]);
    let boot_id = beside.boot_id();
    let answers = || beside.bed.must(&["ping", "web"]);
    kerf.must(&["create", "db", "--cpus=4", "--memory=128MB"]);
    answers();
    kerf.must(&["update", "db", "--cpus=4,6", "--memory=256MB"]);
    answers();
    let db = shown(&beside, "db");
    assert_eq!((&db["cpus"], &db["memory_bytes"]), (&json!([4, 6]), &json!(256 << 20)), "{db}");
    let ours = kerf.must(&["dump", "web", "--dts"]).stdout;
    assert!(ours.contains("web"), "{ours}");
    answers();
    let dump = beside.bed.dir().join("db.dtb");
    kerf.must(&["dump", "db", "-o", dump.to_str().unwrap()]);
    kerf.must(&["delete", "db"]);
    answers();
    kerf.must(&["create", "--input", dump.to_str().unwrap()]);
    assert_eq!(shown(&beside, "db")["cpus"], json!([4, 6]));
    kerf.must(&["delete", "db"]);
    answers();
    assert_eq!(beside.boot_id(), boot_id);
    beside.nothing_is_left_but(&[]);
}

pub(super) fn what_kerf_gives_to_ours_is_given_back_with_it() {
    let Some((beside, kerf)) = with_pool() else { return };
    beside.boot(&["--restart", "never"]);
    assert_eq!(shown(&beside, "web")["cpus"], json!([2]));
    kerf.must(&["update", "web", "--cpus=2,4", "--memory=224MB"]);
    let web = shown(&beside, "web");
    assert_eq!((&web["cpus"], &web["memory_bytes"]), (&json!([2, 4]), &json!(224 << 20)), "{web}");
    assert_eq!(web["is_ours"], json!(true), "{web}");
    beside.bed.must(&["ping", "web"]);
    beside.bed.must(&["stop", "web"]);
    // Had anything of it stayed with the instance, the pool could not go.
    beside.bed.must(&["multikernel", "pool", "--cpus", "none", "--memory", "0"]);
    beside.nothing_is_left_but(&[]);
}

pub(super) fn kernel_that_kerf_ends_is_seen_ended() {
    let Some((beside, kerf)) = with_pool() else { return };
    beside.boot(&["--restart", "on-failure"]);
    let before = beside.bed.view("web");
    kerf.must(&["kill", "web", "-f"]);
    let again = |view: &Value| view["state"] == "running" && view["boots"] != before["boots"];
    let after = beside.bed.until("web", "started again", again);
    assert_ne!(after["last_end"], "powered-off", "{after}");
    assert_ne!(after["last_end"], "panicked", "{after}");
    beside.bed.must(&["ping", "web"]);
    beside.nothing_is_left_but(&[]);
}

pub(super) fn both_write_at_once_and_no_transaction_is_confused() {
    const ROUNDS: usize = 3;
    let Some((beside, kerf)) = with_pool() else { return };
    beside.boot(&["--restart", "never"]);
    let of_the_pool = beside.stand_in.transactions().len();
    let theirs = std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let mut made = 0;
            while beside.bed.view("web")["boots"].as_u64().unwrap() <= ROUNDS as u64 {
                patiently(&kerf, &["create", "db", "--cpus=6", "--memory=64MB"]);
                patiently(&kerf, &["delete", "db"]);
                made += 1;
            }
            made
        });
        for _ in 0..ROUNDS {
            beside.bed.must(&["stop", "web"]);
            beside.bed.must(&["start", "web"]);
        }
        writing.join().unwrap()
    });
    assert!(theirs > 0);
    beside.bed.must(&["ping", "web"]);
    let all = beside.stand_in.transactions().split_off(of_the_pool);
    assert!(all.iter().all(|(_, status, _)| status == "applied"), "{all:?}");
    let ours = all.iter().filter(|(_, _, mark)| mark.starts_with("tombolo:")).count();
    assert_eq!((ours, all.len() - ours), (2 * ROUNDS, 2 * theirs), "{all:?}");
    beside.nothing_is_left_but(&[]);
}

pub(super) fn lock_that_a_killed_kerf_left_is_waited_for_and_removed_when_it_is_old() {
    let Some((beside, kerf)) = with_pool() else { return };
    kerf.die_with_the_lock();
    assert!(Path::new(LOCK).exists());
    let up = beside.bed.attach(&["up", "web", "--memory", MEMORY]);
    // kerf itself waits for a second, and gives up.
    let refused = kerf.run(&["create", "db", "--cpus=4", "--memory=64MB"]);
    assert!(refused.code != 0 && refused.stderr.contains("lock"), "{refused:?}");
    assert!(beside.stand_in.instances().is_empty(), "somebody may be at work under it");
    // As old as nobody works under it.
    let an_hour_ago = SystemTime::now() - Duration::from_secs(3600);
    File::options().write(true).open(LOCK).unwrap().set_modified(an_hour_ago).unwrap();
    assert_eq!(up.finish().code, 0);
    kerf.must(&["create", "db", "--cpus=4", "--memory=64MB"]);
    kerf.must(&["delete", "db"]);
    beside.nothing_is_left_but(&[]);
}
