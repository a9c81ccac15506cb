//! Memory moves between running kernels.

use serde_json::Value;
use tombolo_tests::bed::{eventually, send_signal};
use tombolo_tests::prerequisites;

use super::{
    DISK, MIB, STEPS_WITHOUT_HOOKS, TOLERANCE, bed_with_two, books_add_up, emulated_bed_with_two, free, held,
    inside, is_committed, is_full_form, kernel_agrees, last_operation, move_with_a_dying_daemon,
};

/// In two pieces, as pieces have 128 MiB at most and an emulated machine's kernel gives up its memory in blocks.
const MEMORY: [&str; 2] = ["--memory", "64M"];

#[test]
fn memory_moves_between_running_kernels_and_both_notice() {
    let Some(bed) = bed_with_two(&[]) else { return };
    let before = [free(&bed, "web"), free(&bed, "db")];
    let host = held(&bed, "host");
    let plan = bed.must(&["--json", "move", "--memory", "64M", "--from", "db", "--to", "web", "--dry-run"]);
    assert_eq!(plan.json()["plan"]["takes"][0]["size"], 32);
    assert_eq!(held(&bed, "web"), 96, "a dry run changes nothing");

    let said = bed.must(&["move", "--memory", "64M", "--from", "db", "--to", "web"]);
    assert!(said.stderr.contains("moved 64.0 MiB of memory from db to web"), "{said:?}");
    assert_eq!([held(&bed, "web"), held(&bed, "db"), held(&bed, "pool")], [160, 128, 0]);
    kernel_agrees(&bed, "web", 96, before[0]);
    kernel_agrees(&bed, "db", 192, before[1]);
    assert_eq!(bed.view("web")["memory_mib"], 160);

    bed.must(&["resize", "web", "--memory", "-32M"]);
    bed.must(&["resize", "db", "--memory", "144M"]);
    assert_eq!([held(&bed, "web"), held(&bed, "db"), held(&bed, "pool")], [128, 144, 16]);
    kernel_agrees(&bed, "web", 96, before[0]);
    kernel_agrees(&bed, "db", 192, before[1]);
    bed.must(&["move", "--memory", "16M", "--from", "pool", "--to", "host"]);
    assert_eq!(held(&bed, "host"), host + 16);
    bed.must(&["drain", "db"]);
    assert_eq!([held(&bed, "db"), held(&bed, "pool")], [72, 72], "it is left with its least");
    bed.must(&["drain", "db"]);
    books_add_up(&bed);

    bed.must(&["stop", "web", "db"]);
    eventually("the memory of stopped kernels to be free", || held(&bed, "pool") == 128 + 72 + 72);
    bed.must(&["start", "web"]);
    assert_eq!(held(&bed, "web"), 96, "a kernel that was stopped starts as it is specified");
    bed.must(&["rm", "db"]);
    books_add_up(&bed);
    bed.nothing_is_left();
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let Some(bed) = bed_with_two(&[]) else { return };
    bed.must(&["up", "none", "--spawner", "process", "--restart", "never"]);
    let from_db_to_web = ["--from", "db", "--to", "web"];
    let cases: &[(&[&str], [&str; 2], i32, &str)] = &[
        (&["--memory", "1M"], ["db", "web"], 2, "nearest sizes are 0 and 2097152"),
        (&["--memory", "0"], ["db", "web"], 2, "nothing is asked for"),
        (&["--memory", "-1M"], ["db", "web"], 2, "negative"),
        (&["--memory", "much"], ["db", "web"], 2, "not a size"),
        (&["--memory", "2M"], ["db", "db"], 2, "giver and receiver are both"),
        (&["--memory", "2M"], ["DB", "web"], 2, "not an instance name"),
        (&["--memory", "2M"], ["db", "nobody"], 3, "no instance named `nobody`"),
        (&["--memory", "130M"], ["db", "web"], 4, "must keep"),
        (&["--memory", "4G"], ["pool", "web"], 4, "may have"),
        (&["--memory", "2M"], ["pool", "web"], 4, "can give 0"),
        (&["--memory", "2M"], ["db", "none"], 4, "`none` takes no part in moves of granules of memory"),
        (&["--memory", "2M"], ["none", "db"], 4, "`none` takes no part"),
        (&["--cpus", "1"], ["pool", "db"], 4, "`db` takes no part in moves of CPUs"),
        (&["--device", DISK], ["pool", "db"], 3, DISK),
        (&["--memory", "2M", "--if-version", "1"], ["db", "web"], 4, "version 1 of the ledger"),
    ];
    for (args, [from, to], code, reason) in cases {
        let said = bed.tombolo(&[&["move", "--from", from, "--to", to][..], args].concat());
        assert!(said.code == *code && said.stderr.contains(reason), "{args:?} {from} {to}: {said:?}");
    }
    for (args, code) in [(["op", "show", "99"], 3), (["op", "cancel", "99"], 3)] {
        assert_eq!(bed.tombolo(&args).code, code, "{args:?}");
    }
    let said = bed.tombolo(&["op", "repair", "memory lot 99", "pool"]);
    assert!(said.code == 3 && said.stderr.contains("memory lot 99"), "{said:?}");
    assert_eq!([held(&bed, "web"), held(&bed, "db")], [96, 192]);
    assert_eq!(last_operation(&bed), Value::Null, "nothing was accepted");

    let keyed = [&["move", "--memory", "32M", "--key", "k1"][..], &from_db_to_web].concat();
    bed.must(&keyed);
    bed.must(&keyed);
    assert_eq!([held(&bed, "web"), held(&bed, "db")], [128, 160], "the same key is the same move");
    let said = bed.tombolo(&[&["move", "--memory", "34M", "--key", "k1"][..], &from_db_to_web].concat());
    assert!(said.code == 4 && said.stderr.contains("choose a new key"), "{said:?}");
    bed.nothing_is_left();
}

#[test]
fn kernel_whose_programs_need_their_memory_says_no_and_who_has_it() {
    let Some(bed) = bed_with_two(&[]) else { return };
    let mut hog = bed.attach(&["exec", "db", "--", "/bin/app", "hog", "130"]);
    hog.line("the hog", |line| line.contains("holding"));
    let said = bed.tombolo(&["move", "--memory", "64M", "--from", "db", "--to", "web"]);
    assert!(said.code == 5, "{said:?}");
    assert!(said.stderr.contains("too little") && said.stderr.contains("app (process"), "{said:?}");
    assert_eq!([held(&bed, "web"), held(&bed, "db")], [96, 192]);
    assert_eq!(bed.view("db")["state"], "running");
    hog.signal("INT");
    hog.finish();
    eventually("the memory to be free again", || {
        bed.tombolo(&["move", "--memory", "64M", "--from", "db", "--to", "web"]).code == 0
    });
    books_add_up(&bed);
    bed.nothing_is_left();
}

#[test]
fn applications_are_asked_and_may_say_no() {
    let Some(app) = prerequisites::static_program("tombolo-demo-kv") else { return };
    // Asked `check donor`, it does not know that command, and says so.
    let hook = format!("{}:/etc/tombolo/hooks.d/10-app", app.display());
    let Some(bed) = bed_with_two(&["--file", &hook]) else { return };
    let said = bed.tombolo(&["move", "--memory", "64M", "--from", "db", "--to", "web"]);
    assert!(said.code == 5 && said.stderr.contains("hook `10-app` (check)"), "{said:?}");
    assert_eq!(last_operation(&bed)["phase"], "aborted");
    bed.must(&["move", "--memory", "64M", "--from", "db", "--to", "web", "--no-hooks"]);
    assert_eq!([held(&bed, "web"), held(&bed, "db")], [160, 128]);
    bed.nothing_is_left();
}

#[test]
fn move_goes_on_after_the_daemon_was_killed_at_any_step_of_it() {
    let Some(app) = prerequisites::static_program("tombolo-demo-kv") else { return };
    // With a hook that agrees, so that there are all steps a move can have.
    let hook = format!("{}:/etc/tombolo/hooks.d/agrees", app.display());
    let Some(mut bed) = bed_with_two(&["--file", &hook]) else { return };
    let before = [free(&bed, "web"), free(&bed, "db")];
    let boots = [bed.view("web")["boot_id"].clone(), bed.view("db")["boot_id"].clone()];
    for step in 1.. {
        let way = if step % 2 == 1 { ["db", "web"] } else { ["web", "db"] };
        let Some(ended) = move_with_a_dying_daemon(&mut bed, step, MEMORY, way, || ()) else {
            assert!(step > 16, "it died at no step at all: {step}");
            break;
        };
        is_committed(&bed, &ended, step);
        let moved = if step % 2 == 1 { [160, 128] } else { [96, 192] };
        assert_eq!([held(&bed, "web"), held(&bed, "db")], moved, "killed at step {step}");
        kernel_agrees(&bed, "web", 96, before[0]);
        kernel_agrees(&bed, "db", 192, before[1]);
        books_add_up(&bed);
    }
    assert_eq!([bed.view("web")["boot_id"].clone(), bed.view("db")["boot_id"].clone()], boots);
    bed.nothing_is_left();
}

#[test]
fn move_ends_whoever_of_the_two_kernels_dies_at_any_step_of_it() {
    let Some(mut bed) = bed_with_two(&[]) else { return };
    let some = [("db", 2), ("db", 4), ("db", 6), ("web", 3), ("web", 5), ("web", 7), ("web", 8)];
    let all = (1..=STEPS_WITHOUT_HOOKS).flat_map(|step| [("db", step), ("web", step)]);
    for (victim, step) in if is_full_form() { all.collect() } else { some.to_vec() } {
        for name in ["web", "db"] {
            bed.must(&["start", name]);
        }
        let pid = bed.pid(victim);
        let kill = || send_signal(pid, "KILL");
        let ended = move_with_a_dying_daemon(&mut bed, step, MEMORY, ["db", "web"], kill).unwrap();
        assert!(
            ["aborted", "partial", "committed"].contains(&ended["phase"].as_str().unwrap()),
            "{victim} {step}: {ended}"
        );
        bed.until(victim, "failed", |view| view["state"] == "failed");
        // What the dead kernel held is free, and nothing is in doubt.
        eventually("the books to settle", || held(&bed, victim) == 0);
        books_add_up(&bed);
        bed.must(&["stop", "web", "db"]);
        eventually("all memory to be free", || held(&bed, "web") + held(&bed, "db") == 0);
        books_add_up(&bed);
    }
    bed.nothing_is_left();
}

#[test]
fn move_is_called_off_while_it_can_be() {
    let Some(bed) = bed_with_two(&[]) else { return };
    // Frozen, it does not answer the first question.
    bed.must(&["debug", "freeze", "web"]);
    let said = bed.must(&["--json", "move", "--memory", "64M", "--from", "db", "--to", "web", "--no-wait"]);
    let id = said.json()["operation"]["id"].as_u64().unwrap().to_string();
    let said = bed.must(&["op", "cancel", &id]);
    assert!(said.stderr.contains("called off"), "{said:?}");
    assert_eq!([held(&bed, "web"), held(&bed, "db")], [96, 192]);
    bed.must(&["debug", "thaw", "web"]);
    bed.must(&["move", "--memory", "64M", "--from", "db", "--to", "web"]);
    let said = bed.tombolo(&["op", "cancel", &last_operation(&bed)["id"].to_string()]);
    assert!(said.code == 4 && said.stderr.contains("point of no return"), "{said:?}");
    bed.nothing_is_left();
}

#[test]
fn fleet_file_says_who_has_how_much_and_apply_makes_it_so() {
    let Some(bed) = bed_with_two(&[]) else { return };
    let fleet = bed.dir().join("fleet.toml");
    let write = |web: u64, db: u64| {
        let of = |name: &str, mib: u64| format!("[instance.{name}]\nspawner = 'uml'\nmemory_mib = {mib}\n");
        let text = [of("web", web), of("db", db), of("new", 64)].join("memory_max_mib = 256\n");
        std::fs::write(&fleet, text).unwrap();
    };
    let file = fleet.display().to_string();
    write(128, 192);
    let said = bed.tombolo(&["diff", "-f", &file]);
    assert_eq!((said.code, said.stdout.lines().count()), (1, 2), "{said:?}");
    assert!(said.stdout.contains("web: memory 96.0 MiB -> 128.0 MiB"), "{said:?}");
    assert!(said.stdout.contains("new: is not there"), "{said:?}");
    for command in ["diff", "apply"] {
        let said = bed.tombolo(&[command]);
        assert!(said.code == 2 && said.stderr.contains("tombolo: name a fleet file with -f"), "{said:?}");
    }
    let stale = bed.tombolo(&["apply", "-f", &file, "--if-version", "1"]);
    assert!(stale.code == 4 && stale.stderr.contains("not 1"), "{stale:?}");
    bed.must(&["apply", "-f", &file, "--dry-run"]);
    assert_eq!(held(&bed, "web"), 96, "a dry run changes nothing");

    bed.must(&["apply", "-f", &file]);
    assert_eq!([held(&bed, "web"), held(&bed, "db"), held(&bed, "new")], [128, 192, 64]);
    bed.must(&["diff", "-f", &file]);
    // What db gives, web gets; the file puts web first.
    let host = held(&bed, "host");
    write(160, 160);
    bed.must(&["apply", "-f", &file]);
    assert_eq!([held(&bed, "web"), held(&bed, "db"), held(&bed, "host")], [160, 160, host]);
    books_add_up(&bed);
    bed.nothing_is_left();
}

#[test]
fn kernel_that_is_started_again_by_policy_keeps_what_it_was_given() {
    let Some(bed) = bed_with_two(&[]) else { return };
    bed.must(&["up", "app", "--memory", "64", "--memory-max", "96", "--restart", "always"]);
    let first = bed.view("app");
    bed.must(&["move", "--memory", "32M", "--from", "db", "--to", "app"]);
    send_signal(bed.pid("app"), "KILL");
    bed.until("app", "booted again", |view| view["state"] == "running" && view["boots"] != first["boots"]);
    assert_eq!(held(&bed, "app"), 96);
    assert_eq!(bed.view("app")["memory_mib"], 96);
    books_add_up(&bed);
    bed.nothing_is_left();
}

#[test]
fn memory_moves_between_kernels_under_qemu_and_goes_on_after_a_killed_daemon() {
    let Some(mut bed) = emulated_bed_with_two() else { return };
    let before = ["web", "db"].map(|name| inside(&bed, name, "memory_bytes"));
    let moved = bed.must(&["move", "--memory", "64M", "--from", "db", "--to", "web"]);
    assert!(moved.stderr.contains("moved 64.0 MiB"), "{moved:?}");
    assert_eq!([held(&bed, "web"), held(&bed, "db")], [224, 192]);
    // A machine's kernel counts what it was given, but for what it needs to manage it.
    let after = ["web", "db"].map(|name| inside(&bed, name, "memory_bytes"));
    assert!(after[0].abs_diff(before[0] + 64 * MIB) < TOLERANCE, "{before:?} {after:?}");
    assert!(before[1].abs_diff(after[1] + 64 * MIB) < TOLERANCE, "{before:?} {after:?}");
    bed.must(&["move", "--memory", "64M", "--from", "web", "--to", "db"]);
    let said = bed.tombolo(&["move", "--memory", "130M", "--from", "db", "--to", "web"]);
    assert!(said.code == 4 && said.stderr.contains("must keep"), "{said:?}");

    for (turn, step) in [2, 4, 7, 8, 9, 10, 11].into_iter().enumerate() {
        let way = if turn % 2 == 0 { ["db", "web"] } else { ["web", "db"] };
        let ended = move_with_a_dying_daemon(&mut bed, step, MEMORY, way, || ()).unwrap();
        is_committed(&bed, &ended, step);
        let moved = if turn % 2 == 0 { [224, 192] } else { [160, 256] };
        assert_eq!([held(&bed, "web"), held(&bed, "db")], moved, "killed at step {step}");
        books_add_up(&bed);
    }
    bed.nothing_is_left();
}
