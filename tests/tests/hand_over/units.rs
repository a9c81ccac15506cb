//! CPUs and devices move between the running kernels of emulated machines.

use tombolo_tests::bed::{Bed, eventually, send_signal};

use super::{
    DISK, LOST_DISK, STEPS_WITHOUT_HOOKS, books_add_up, cpus, emulated_bed_with_two, has_disk, inside,
    is_committed, is_full_form, move_with_a_dying_daemon,
};

const CPU: [&str; 2] = ["--cpus", "1"];
const DEVICE: [&str; 2] = ["--device", DISK];
const THERE: [&str; 2] = ["db", "web"];
const BACK: [&str; 2] = ["web", "db"];

fn hand_over(bed: &Bed, what: [&str; 2], [from, to]: [&str; 2]) {
    bed.must(&[&["move", "--from", from, "--to", to][..], &what].concat());
}

/// The CPUs that both have by the ledger, which are those that they use.
fn cpus_of_both(bed: &Bed) -> [usize; 2] {
    ["web", "db"].map(|name| {
        let held = cpus(bed, name);
        assert_eq!(inside(bed, name, "cpus_online"), held as u64, "{name}");
        held
    })
}

#[test]
fn cpus_move_between_running_kernels_and_are_used_there() {
    let Some(bed) = emulated_bed_with_two() else { return };
    assert_eq!((cpus_of_both(&bed), cpus(&bed, "pool")), ([1, 2], 5));
    hand_over(&bed, CPU, THERE);
    assert_eq!(cpus_of_both(&bed), [2, 1]);
    bed.must(&["resize", "web", "--cpus", "+2", "--memory", "+32M"]);
    assert_eq!((cpus_of_both(&bed), cpus(&bed, "pool")), ([4, 1], 3));
    let cases: &[(&[&str], [&str; 2], i32, &str)] = &[
        (&["--cpus", "1"], THERE, 4, "a running kernel keeps one"),
        (&["--cpus", "1"], ["pool", "web"], 4, "may have 4"),
        (&["--cpus", "4"], BACK, 4, "must keep 1"),
        (&["--cpus", "0"], BACK, 2, "nothing is asked for"),
        (&["--cpus", "-1"], BACK, 2, "invalid value"),
        (&["--cpus", "1"], ["web", "host"], 4, "`host` takes no part in moves of CPUs"),
        (&["--device", DISK], THERE, 4, "belongs to `pool`, not to `db`"),
        (&["--device", "0000:09:00.0"], THERE, 3, "0000:09:00.0"),
        (&["--device", "disk"], THERE, 2, "not a PCI address"),
        (&["--cpus", "1", "--memory", "2M"], BACK, 2, "cannot be used with"),
        (&[], BACK, 2, "required"),
    ];
    for (args, [from, to], code, reason) in cases {
        let said = bed.tombolo(&[&["move", "--from", from, "--to", to][..], args].concat());
        assert!(said.code == *code && said.stderr.contains(reason), "{args:?} {from} {to}: {said:?}");
    }
    bed.must(&["drain", "web"]);
    assert_eq!((cpus_of_both(&bed), cpus(&bed, "pool")), ([1, 1], 6));
    books_add_up(&bed);

    bed.must(&["stop", "db"]);
    eventually("its CPUs to be free", || cpus(&bed, "pool") == 7);
    bed.must(&["start", "db"]);
    assert_eq!(cpus_of_both(&bed), [1, 2], "a kernel that was stopped starts as it is specified");
    let said = bed.tombolo(&["up", "more", "--memory", "160", "--cpus", "6"]);
    assert!(said.code == 1 && said.stderr.contains("6 CPUs, 1 more than there are left"), "{said:?}");
    bed.must(&["rm", "more"]);
    books_add_up(&bed);
    bed.nothing_is_left();
}

#[test]
fn busy_cpu_moves_and_one_that_a_program_is_bound_to_does_not() {
    let Some(bed) = emulated_bed_with_two() else { return };
    let mut busy = bed.attach(&["exec", "db", "--", "/bin/app", "spin", "2"]);
    busy.line("the busy program", |line| line.contains("spinning"));
    hand_over(&bed, CPU, THERE);
    hand_over(&bed, CPU, BACK);
    assert_eq!(cpus_of_both(&bed), [1, 2]);
    busy.signal("INT");
    busy.finish();
    let is_stuck = |event: &serde_json::Value| event["type"] == "cpu-stuck";
    assert!(!bed.events_since(0).iter().any(is_stuck), "one that is busy, leaves or comes is not stuck");

    let mut bound = bed.attach(&["exec", "db", "--", "/bin/app", "spin-on", "1"]);
    bound.line("the bound program", |line| line.contains("spinning"));
    let said = bed.tombolo(&["move", "--cpus", "1", "--from", "db", "--to", "web"]);
    assert!(said.code == 5, "{said:?}");
    assert!(said.stderr.contains("bound to CPU 1 alone: app (process"), "{said:?}");
    assert_eq!(cpus_of_both(&bed), [1, 2]);
    bound.signal("INT");
    bound.finish();
    hand_over(&bed, CPU, THERE);
    books_add_up(&bed);
    bed.nothing_is_left();
}

#[test]
fn disk_moves_with_what_is_on_it_and_one_that_is_in_use_does_not() {
    let Some(bed) = emulated_bed_with_two() else { return };
    hand_over(&bed, DEVICE, ["pool", "db"]);
    let app = |name: &str, words: &[&str]| bed.must(&[&["exec", name, "--", "/bin/app"][..], words].concat());
    eventually("the disk in db", || {
        bed.tombolo(&["exec", "db", "--", "/bin/app", "stamped", "/dev/nvme0n1"]).code == 0
    });
    app("db", &["stamp", "/dev/nvme0n1", "from db"]);
    let said = bed.tombolo(&["move", "--device", LOST_DISK, "--from", "pool", "--to", "db"]);
    assert!(said.code == 7 && said.stderr.contains("nothing of device 0000:02:00.0"), "{said:?}");
    assert!(said.stderr.contains("is free now (") && said.stderr.contains("/no/such/disk"), "{said:?}");
    let mut holder = bed.attach(&["exec", "db", "--", "/bin/app", "hold", "/dev/nvme0n1"]);
    holder.line("who holds the disk", |line| line.contains("holding"));
    let said = bed.tombolo(&["move", "--device", DISK, "--from", "db", "--to", "web"]);
    assert!(said.code == 5 && said.stderr.contains("app (process"), "{said:?}");
    assert!(has_disk(&bed, "db"));
    holder.signal("INT");
    holder.finish();
    let mut claimer = bed.attach(&["exec", "db", "--", "/bin/app", "claim", "/dev/nvme0n1"]);
    claimer.line("who claims the disk", |line| line.contains("claiming"));
    let said = bed.tombolo(&["move", "--device", DISK, "--from", "db", "--to", "web"]);
    assert!(said.code == 5 && said.stderr.contains("nvme0n1 is claimed"), "{said:?}");
    assert!(has_disk(&bed, "db"));
    claimer.signal("INT");
    claimer.finish();

    // A kernel may close what was on its way a little after the program has ended.
    eventually("the disk to leave", || {
        bed.tombolo(&["move", "--device", DISK, "--from", "db", "--to", "web"]).code == 0
    });
    assert!(has_disk(&bed, "web"));
    eventually("the disk in web", || {
        bed.tombolo(&["exec", "web", "--", "/bin/app", "stamped", "/dev/nvme0n1"]).code == 0
    });
    assert_eq!(app("web", &["stamped", "/dev/nvme0n1"]).stdout.trim(), "from db");
    let said = bed.tombolo(&["exec", "db", "--", "/bin/app", "stamped", "/dev/nvme0n1"]);
    assert!(said.code != 0, "db has it still: {said:?}");

    // A kernel that ends lets go of what it has; a stopped one is not started with it.
    bed.must(&["stop", "web"]);
    eventually("the disk to be free", || has_disk(&bed, "pool"));
    books_add_up(&bed);
    bed.nothing_is_left();
}

#[test]
fn fleet_file_says_who_has_which_device_and_apply_makes_it_so() {
    let Some(bed) = emulated_bed_with_two() else { return };
    let fleet = bed.dir().join("fleet.toml").display().to_string();
    let write = |web: &str, db: Option<&str>| {
        let of = |name: &str, sizes: &str, devices: &str| {
            format!("[instance.{name}]\nspawner = 'qemu'\n{sizes}\ndevices = [{devices}]\n")
        };
        let web = of("web", "memory_mib = 160\ncpus = 1", web);
        let db = db.map(|devices| of("db", "memory_mib = 256\ncpus = 2", devices));
        std::fs::write(&fleet, web + &db.unwrap_or_default()).unwrap();
    };
    let disk = format!("'{DISK}'");
    write(&disk, Some(""));
    let said = bed.tombolo(&["diff", "-f", &fleet]);
    assert!(said.code == 1 && said.stdout == format!("device {DISK}: pool -> web\n"), "{said:?}");
    bed.must(&["apply", "-f", &fleet]);
    assert!(has_disk(&bed, "web"));
    write("", Some(&disk));
    bed.must(&["apply", "-f", &fleet]);
    assert!(has_disk(&bed, "db"));
    bed.must(&["diff", "-f", &fleet]);

    write(&disk, Some(&disk));
    let said = bed.tombolo(&["apply", "-f", &fleet]);
    assert!(said.code == 2 && said.stderr.contains("wanted by both db and web"), "{said:?}");
    write(&disk, None);
    let said = bed.tombolo(&["apply", "-f", &fleet]);
    assert!(said.code == 4 && said.stderr.contains("with db, which the file does not name"), "{said:?}");
    assert!(has_disk(&bed, "db"), "it was left alone");
    write("", Some(""));
    bed.must(&["apply", "-f", &fleet]);
    assert!(has_disk(&bed, "pool"));

    // What is free, a kernel that is to have it boots with.
    bed.must(&["rm", "--force", "web"]);
    bed.must(&["create", "web", "--memory", "160", "--device", DISK]);
    bed.must(&["start", "web"]);
    assert!(has_disk(&bed, "web"));
    books_add_up(&bed);
    bed.nothing_is_left();
}

/// A kernel shrinks, another grows, and one gives to the other; then all is as it was.
const WAYS: [[&str; 2]; 3] = [["db", "pool"], ["pool", "web"], ["web", "db"]];

/// In the short form each step has one of the ways; in the full form, in three rounds, all of them.
fn goes_on_after_the_daemon_was_killed_at_any_step(what: [&str; 2]) {
    let Some(mut bed) = emulated_bed_with_two() else { return };
    hand_over(&bed, DEVICE, ["pool", "db"]);
    let boots = ["web", "db"].map(|name| bed.view(name)["boot_id"].clone());
    let mut turn = 0;
    for round in 0..if is_full_form() { WAYS.len() } else { 1 } {
        // So that each way meets the steps that another had in the last round.
        while turn % WAYS.len() != round {
            hand_over(&bed, what, WAYS[turn % WAYS.len()]);
            turn += 1;
        }
        let (mut step, mut unharmed_in_a_row) = (1, 0);
        while unharmed_in_a_row < WAYS.len() {
            let [from, to] = WAYS[turn % WAYS.len()];
            match move_with_a_dying_daemon(&mut bed, step, what, [from, to], || ()) {
                Some(ended) => {
                    is_committed(&bed, &ended, step);
                    unharmed_in_a_row = 0;
                }
                None => unharmed_in_a_row += 1,
            }
            let expected = [1 + usize::from(to == "web"), 1 + usize::from(to == "db")];
            match what {
                CPU => assert_eq!(cpus_of_both(&bed), expected, "{from} to {to}, killed at step {step}"),
                _ => assert!(has_disk(&bed, to), "{from} to {to}, killed at step {step}"),
            }
            books_add_up(&bed);
            (step, turn) = (step + 1, turn + 1);
        }
        assert!(step > 10, "it died at no step at all");
    }
    assert_eq!(["web", "db"].map(|name| bed.view(name)["boot_id"].clone()), boots);
    bed.nothing_is_left();
}

#[test]
fn moves_of_cpus_go_on_after_the_daemon_was_killed_at_any_step() {
    goes_on_after_the_daemon_was_killed_at_any_step(CPU);
}

#[test]
fn moves_of_devices_go_on_after_the_daemon_was_killed_at_any_step() {
    goes_on_after_the_daemon_was_killed_at_any_step(DEVICE);
}

#[test]
fn moves_of_cpus_and_devices_end_whoever_of_the_two_kernels_dies() {
    let Some(mut bed) = emulated_bed_with_two() else { return };
    let some = [("db", 4, CPU), ("web", 7, CPU), ("web", 10, CPU), ("db", 7, DEVICE), ("web", 10, DEVICE)];
    let all = (1..=STEPS_WITHOUT_HOOKS).flat_map(|step| {
        [CPU, DEVICE].into_iter().flat_map(move |what| ["db", "web"].map(|victim| (victim, step, what)))
    });
    let deaths = if is_full_form() { all.collect() } else { some.to_vec() };
    for (victim, step, what) in deaths {
        for name in ["web", "db"] {
            bed.must(&["start", name]);
        }
        if what == DEVICE {
            hand_over(&bed, DEVICE, ["pool", "db"]);
        }
        let pid = bed.pid(victim);
        let kill = || send_signal(pid, "KILL");
        let ended = move_with_a_dying_daemon(&mut bed, step, what, THERE, kill).unwrap();
        let phase = ended["phase"].as_str().unwrap();
        assert!(["aborted", "partial", "committed"].contains(&phase), "{victim} {step}: {ended}");
        bed.until(victim, "failed", |view| view["state"] == "failed");
        eventually("the books to settle", || cpus(&bed, victim) == 0 && !has_disk(&bed, victim));
        books_add_up(&bed);
        bed.must(&["stop", "web", "db"]);
        eventually("all to be free", || cpus(&bed, "pool") == 8 && has_disk(&bed, "pool"));
        books_add_up(&bed);
    }
    bed.nothing_is_left();
}

#[test]
fn cpu_that_somebody_inside_starts_again_and_again_stays_where_it_is() {
    let Some(bed) = emulated_bed_with_two() else { return };
    let online = "/sys/devices/system/cpu/cpu1/online";
    let mut stubborn = bed.attach(&["exec", "db", "--", "/bin/app", "keep-setting", online, "1"]);
    stubborn.line("the stubborn program", |line| line.contains("keeping"));
    let said = bed.tombolo(&["move", "--cpus", "1", "--from", "db", "--to", "web"]);
    assert!([5, 7].contains(&said.code), "{said:?}");
    assert_eq!(cpus_of_both(&bed), [1, 2]);
    books_add_up(&bed);
    stubborn.signal("INT");
    stubborn.finish();
    hand_over(&bed, CPU, THERE);
    assert_eq!(cpus_of_both(&bed), [2, 1]);
    bed.nothing_is_left();
}
