//! What needs kernels: boots apart from the host's, panics, hangs, adoption across a daemon's death.
//!
//! On user-mode kernels and, what a spawner has a hand in, on kernels in emulated machines as well (the module `qemu`).

use serde_json::Value;
use tombolo_tests::archive::{self, Newc};
use tombolo_tests::bed::{Bed, eventually, send_signal};
use tombolo_tests::prerequisites;
use tombolo_tests::wait::LONG;

/// A bed with one kernel `web` that has the demo's application, which also serves as its shell.
fn bed_with_web(restart: &str) -> Option<Bed> {
    bed_of("uml", restart)
}

fn bed_of(spawner: &'static str, restart: &str) -> Option<Bed> {
    let app = prerequisites::static_program("tombolo-demo-kv")?;
    let bed = Bed::start(spawner)?;
    let file = format!("{}:/bin/app", app.display());
    // A machine's kernel is larger than a user-mode one.
    let memory = if spawner == "qemu" { "160" } else { "128" };
    bed.must(&["up", "web", "--memory", memory, "--restart", restart, "--file", &file]);
    Some(bed)
}

fn where_am_i(bed: &Bed) -> Value {
    serde_json::from_str(&bed.must(&["exec", "web", "--", "/bin/app", "where-am-i"]).stdout).unwrap()
}

#[test]
fn kernel_boots_apart_from_the_host_and_powers_off() {
    boots_apart_from_the_host_and_powers_off("uml");
}

fn boots_apart_from_the_host_and_powers_off(spawner: &'static str) {
    let Some(bed) = bed_of(spawner, "never") else { return };
    let host = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let inside = where_am_i(&bed);
    assert_ne!(inside["boot_id"], host.trim());
    assert_eq!(inside["boot_id"], bed.view("web")["boot_id"]);
    bed.must(&["stop", "web"]);
    assert_eq!(bed.view("web")["last_end"], "powered-off");
    bed.nothing_is_left();
}

#[test]
fn kernel_has_what_is_in_an_initial_archive_of_the_user_and_boots_into_the_agent() {
    has_what_is_in_an_initial_archive_of_the_user("uml");
}

/// One as distributions make them, and one packed behind it: programs behind a link, an /init of its own that ends at once, and has two names.
fn has_what_is_in_an_initial_archive_of_the_user(spawner: &'static str) {
    let Some(app) = prerequisites::static_program("tombolo-demo-kv") else { return };
    let Some(bed) = Bed::start(spawner) else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let programs = Newc::default()
        .with("usr", archive::FOLDER, &[])
        .with("usr/bin", archive::FOLDER, &[])
        .with("bin", archive::LINK, b"usr/bin")
        .with_program_of_two_names(["usr/bin/app", "init"], &std::fs::read(app).unwrap());
    let data =
        Newc::default().with("data", archive::FOLDER, &[]).with("data/file", 0o100_644, b"of the user");
    let initrd = [programs.bytes(), archive::lz4(&data.bytes())].concat();
    std::fs::write(path("initrd"), initrd).unwrap();
    std::fs::write(path("ours"), "ours").unwrap();

    let file = format!("{}:/bin/ours", path("ours"));
    bed.must(&[
        "up",
        "web",
        "--memory",
        "192",
        "--restart",
        "never",
        "--initrd",
        &path("initrd"),
        "--file",
        &file,
    ]);
    for (inside, content) in [("/data/file", "of the user"), ("/usr/bin/ours", "ours")] {
        bed.must(&["cp", &format!("web:{inside}"), &path("copy")]);
        assert_eq!(std::fs::read_to_string(path("copy")).unwrap(), content, "{inside}");
    }
    assert_eq!(where_am_i(&bed)["boot_id"], bed.view("web")["boot_id"]);
    bed.nothing_is_left();
}

#[test]
fn panic_is_told_from_a_kill_and_restarted() {
    panic_is_told_from_a_kill("uml");
}

fn panic_is_told_from_a_kill(spawner: &'static str) {
    let Some(bed) = bed_of(spawner, "on-failure") else { return };
    let first = bed.view("web");
    // The answer may or may not get out before the end.
    bed.tombolo(&["exec", "web", "--", "/bin/app", "panic"]);
    let second = bed
        .until("web", "booted again", |view| view["state"] == "running" && view["boots"] != first["boots"]);
    assert_eq!(second["last_end"], "panicked", "{second}");
    send_signal(bed.pid("web"), "KILL");
    let third = bed
        .until("web", "booted again", |view| view["state"] == "running" && view["boots"] != second["boots"]);
    assert_eq!(third["last_end"], serde_json::json!({ "signaled": 9 }), "{third}");
    assert_ne!(first["boot_id"], third["boot_id"]);
    bed.nothing_is_left();
}

#[test]
fn hang_is_reported_and_nothing_is_restarted() {
    let Some(bed) = bed_with_web("always") else { return };
    let before = where_am_i(&bed);
    bed.must(&["debug", "freeze", "web"]);
    bed.must(&["wait", "web", "--for", "hung", "--timeout", "30s"]);
    bed.must(&["debug", "thaw", "web"]);
    bed.must(&["wait", "web", "--for", "running", "--timeout", "30s"]);
    assert_eq!(where_am_i(&bed)["boot_id"], before["boot_id"]);
    bed.nothing_is_left();
}

#[test]
fn hung_dead_inside_panicked_and_powered_off_are_told_apart() {
    let Some(bed) = bed_with_web("never") else { return };
    hung_and_dead_inside_are_told_apart(&bed);

    for (command, health, state) in [("panic", "panicked", "failed"), ("power-off", "powered-off", "stopped")]
    {
        bed.must(&["start", "web"]);
        let seen = bed.last_event();
        // The answer may or may not get out before the end.
        bed.tombolo(&["exec", "web", "--", "/bin/app", command]);
        let view = bed.until("web", "ended", |view| view["state"] == state);
        assert_eq!(view["last_end"], health, "{view}");
        let events = bed.events_since(seen);
        assert!(events.iter().any(|event| event["type"] == "died" && event["end"] == health), "{events:?}");
        assert_eq!(of_silence(&bed, seen), [""; 0], "an end is no hang");
    }
    bed.nothing_is_left();
}

fn hung_and_dead_inside_are_told_apart(bed: &Bed) {
    let seen = bed.last_event();
    // The agent may be frozen before it has answered, so nothing waits for the answer until it is thawed.
    let freeze = bed.attach(&["exec", "-d", "web", "--", "/bin/app", "freeze-user-space", "10000"]);
    let view = bed.until("web", "hung", |view| view["state"] == "hung");
    assert_eq!(view["health"], "user-space-dead", "{view}");
    bed.must(&["wait", "web", "--for", "running"]);
    assert_eq!(freeze.finish().code, 0);
    assert_eq!(of_silence(bed, seen), ["user-space-dead", "recovered"], "everything inside was frozen");

    let seen = bed.last_event();
    bed.must(&["debug", "freeze", "web"]);
    let view = bed.until("web", "hung", |view| view["state"] == "hung");
    assert_eq!(view["health"], "hung", "{view}");
    bed.must(&["debug", "thaw", "web"]);
    bed.must(&["wait", "web", "--for", "running"]);
    assert_eq!(of_silence(bed, seen), ["hung", "recovered"], "the kernel itself was frozen");
}

/// A bed whose `web` is taken out of service when it hangs.
fn bed_with_a_ladder(spawner: &'static str) -> Option<Bed> {
    let app = prerequisites::static_program("tombolo-demo-kv")?;
    let bed = Bed::start(spawner)?;
    let file = format!("{}:/bin/app", app.display());
    let memory = if spawner == "qemu" { "160" } else { "128" };
    bed.must(&["up", "web", "--memory", memory, "--on-hang", "restart", "--file", &file]);
    Some(bed)
}

/// The rungs that were told, each with its attempt.
fn rungs(bed: &Bed, since: u64) -> Vec<(String, u64)> {
    let events = bed.events_since(since);
    let rungs = events.iter().filter(|event| event["type"] == "fencing");
    rungs
        .map(|event| (event["rung"].as_str().unwrap().to_owned(), event["attempt"].as_u64().unwrap()))
        .collect()
}

fn is_started_again(bed: &Bed, before: &Value) {
    let again = |view: &Value| view["state"] == "running" && view["boots"] != before["boots"];
    let after = bed.until("web", "started again", again);
    assert_ne!(after["boot_id"], before["boot_id"]);
    let events = bed.events_since(0);
    let when = |kind: &str| {
        let event = events.iter().rfind(|event| event["type"] == kind).unwrap();
        event["at_unix_ns"].as_u64().unwrap()
    };
    let silent = if events.iter().any(|event| event["type"] == "hung") { "hung" } else { "user-space-dead" };
    let ms = |kind: &str| (when(kind) - when(silent)) / 1_000_000;
    println!(
        "after {silent}: died {} ms, restart scheduled {} ms, spawned {} ms",
        ms("died"),
        ms("restart-scheduled"),
        ms("spawned")
    );
}

#[test]
fn kernel_that_hangs_is_taken_out_of_service_and_started_again() {
    let Some(bed) = bed_with_a_ladder("uml") else { return };
    let (before, seen) = (bed.view("web"), bed.last_event());
    send_signal(bed.pid("web"), "STOP");
    is_started_again(&bed, &before);
    assert_eq!(rungs(&bed, seen), [("force".into(), 1), ("confirm".into(), 1), ("release".into(), 1)]);
    assert_eq!(of_silence(&bed, seen), ["hung"]);
    let said = bed.must(&["logs", "--last-words", "web"]).stdout;
    assert!(said.contains("the end of its console:") && said.contains("agent runs"), "{said}");
    bed.nothing_is_left();
}

#[test]
fn kernel_that_is_dead_inside_writes_back_and_says_what_it_does_before_it_is_ended() {
    writes_back_before_it_is_ended("uml");
}

fn writes_back_before_it_is_ended(spawner: &'static str) {
    let Some(bed) = bed_with_a_ladder(spawner) else { return };
    let (before, seen) = (bed.view("web"), bed.last_event());
    let freeze = bed.attach(&["exec", "-d", "web", "--", "/bin/app", "freeze-user-space", "60000"]);
    is_started_again(&bed, &before);
    freeze.finish();
    let all = ["quiesce", "force", "confirm", "release"].map(|rung| (rung.to_owned(), 1));
    assert_eq!(rungs(&bed, seen), all);
    assert_eq!(of_silence(&bed, seen), ["user-space-dead"]);
    let failed: Vec<Value> =
        bed.events_since(seen).into_iter().filter(|event| event["type"] == "step-failed").collect();
    assert!(failed.is_empty(), "{failed:?}");
    let said = bed.must(&["logs", "--last-words", "web"]).stdout;
    for words in ["Show Blocked State", "Emergency Sync complete", "Emergency Remount complete"] {
        assert!(said.contains(words), "no `{words}`: {said}");
    }
    bed.nothing_is_left();
}

#[test]
fn hang_is_found_again_by_the_next_daemon_and_so_is_its_end() {
    let Some(mut bed) = bed_with_web("never") else { return };
    bed.must(&["debug", "freeze", "web"]);
    bed.must(&["wait", "web", "--for", "hung", "--timeout", "30s"]);
    let seen = bed.last_event();
    bed.end_daemon("KILL");
    bed.start_daemon();
    eventually("the hang to be told again", || of_silence(&bed, seen) == ["hung"]);
    assert_eq!(bed.view("web")["state"], "hung");
    bed.must(&["debug", "thaw", "web"]);
    bed.must(&["wait", "web", "--for", "running", "--timeout", "30s"]);
    bed.nothing_is_left();
}

/// What was told of silences of `web` and of their ends.
fn of_silence(bed: &Bed, since: u64) -> Vec<String> {
    let events = bed.events_since(since);
    let kinds = events.iter().filter_map(|event| event["type"].as_str());
    kinds.filter(|kind| ["hung", "user-space-dead", "recovered"].contains(kind)).map(str::to_owned).collect()
}

#[test]
fn frozen_kernel_is_stopped_by_force() {
    let Some(bed) = bed_with_web("always") else { return };
    bed.must(&["debug", "freeze", "web"]);
    bed.must(&["stop", "web", "--grace", "1s"]);
    assert_eq!(bed.view("web")["state"], "stopped");
    bed.nothing_is_left();
}

#[test]
fn kernel_outlives_the_daemon_and_is_adopted() {
    outlives_the_daemon("uml");
}

fn outlives_the_daemon(spawner: &'static str) {
    let Some(mut bed) = bed_of(spawner, "never") else { return };
    let before = where_am_i(&bed);
    for signal in ["KILL", "TERM"] {
        bed.end_daemon(signal);
        bed.start_daemon();
        bed.until("web", "running", |view| view["state"] == "running");
        assert_eq!(where_am_i(&bed)["boot_id"], before["boot_id"]);
    }
    bed.nothing_is_left();
}

#[test]
fn kernel_that_ends_while_no_daemon_runs_is_found_ended() {
    let Some(mut bed) = bed_with_web("never") else { return };
    let pid = bed.pid("web");
    bed.end_daemon("KILL");
    send_signal(pid, "KILL");
    bed.start_daemon();
    let view = bed.until("web", "ended", |view| view["state"] != "running" && !view["last_end"].is_null());
    assert_eq!(view["last_end"], serde_json::json!({ "signaled": 9 }), "{view}");
    bed.nothing_is_left();
}

#[test]
fn kernel_ended_by_a_signal_at_any_step_is_noticed_and_started_again() {
    let Some(bed) = bed_with_web("never") else { return };
    for (round, signal) in ["KILL", "TERM"].into_iter().enumerate() {
        let mut exec = bed.attach(&["exec", "web", "--", "/bin/app", "count", "100000", "50"]);
        exec.line("output", |line| line.starts_with("line 2 "));
        send_signal(bed.pid("web"), signal);
        let said = exec.finish();
        assert!(said.code == 6 && said.stderr.contains("may have run"), "SIG{signal}: {said:?}");
        bed.until("web", "failed", |view| view["state"] == "failed");

        bed.must(&["start", "web", "--no-wait"]);
        let booting = bed.until("web", "booting", |view| !view["pid"].is_null());
        std::thread::sleep(std::time::Duration::from_millis(400 * round as u64));
        send_signal(booting["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).unwrap(), signal);
        bed.until("web", "failed", |view| view["state"] == "failed");

        bed.must(&["start", "web"]);
        let pid = bed.pid("web");
        bed.must(&["stop", "web", "--no-wait"]);
        send_signal(pid, signal);
        bed.until("web", "stopped", |view| view["state"] == "stopped");
        bed.must(&["start", "web"]);
    }
    where_am_i(&bed);
    bed.nothing_is_left();
}

#[test]
fn two_kernels_may_talk_only_when_policy_allows() {
    let Some(bed) = bed_with_web("never") else { return };
    let app = prerequisites::static_program("tombolo-demo-kv").unwrap();
    let file = format!("{}:/bin/app", app.display());
    bed.must(&["up", "db", "--memory", "128", "--file", &file, "--", "/bin/app", "serve"]);
    let attempt = ["exec", "web", "--", "/bin/app", "try", "db/kv"];
    // That db is up says that its agent is: its program registers its services when it gets to it.
    let start = std::time::Instant::now();
    let refused = loop {
        let said = bed.tombolo(&attempt);
        if !said.stderr.contains("no service named `kv`") {
            break said;
        }
        assert!(start.elapsed() < LONG, "db never serves kv");
    };
    assert!(refused.code != 0 && refused.stderr.contains("polic"), "{refused:?}");
    bed.must(&["policy", "allow", "web", "db:kv"]);
    bed.must(&attempt);
    let unknown = bed.tombolo(&["exec", "web", "--", "/bin/app", "try", "db/nothing"]);
    assert!(unknown.code != 0 && unknown.stderr.contains("nothing"), "{unknown:?}");
    bed.nothing_is_left();
}

#[test]
fn peer_that_never_reads_holds_the_sender_back_and_loses_nothing() {
    let Some(program) = prerequisites::static_program("tombolo-conformance") else { return };
    let Some(bed) = Bed::start("uml") else { return };
    let file = format!("{}:/bin/app", program.display());
    let broker = "/run/tombolo/broker.sock";
    bed.must(&["up", "web", "--memory", "128", "--file", &file]);
    bed.must(&["up", "db", "--memory", "128", "--file", &file, "--", "/bin/app", "deaf", broker]);
    bed.must(&["policy", "allow", "web", "db"]);
    let cid = bed.view("db")["cid"].to_string();
    let flood = ["exec", "web", "--", "/bin/app", "flood", broker, &cid];
    // It may come before the other listens.
    let start = std::time::Instant::now();
    let seen = loop {
        let said = bed.tombolo(&flood);
        if said.code == 0 {
            break said.json();
        }
        assert!(said.stderr.contains("refused") && start.elapsed() < LONG, "{said:?}");
    };
    let number = |key: &str| seen[key].as_u64().unwrap_or_else(|| panic!("no {key}: {seen}"));
    // A ring, and no more: 256 KiB by default.
    assert!((1..=256 << 10).contains(&number("stalled_at_bytes")), "{seen}");
    assert!(number("grown_kib") < 1024, "{seen}");
    assert_eq!(number("received_bytes"), number("sent_bytes"), "{seen}");
    bed.nothing_is_left();
}

/// Kernels in emulated machines.
mod qemu {
    use super::*;

    #[test]
    fn kernel_has_what_is_in_an_initial_archive_of_the_user_and_boots_into_the_agent() {
        has_what_is_in_an_initial_archive_of_the_user("qemu");
    }

    #[test]
    fn kernel_boots_apart_from_the_host_and_powers_off() {
        boots_apart_from_the_host_and_powers_off("qemu");
    }

    #[test]
    fn panic_is_told_from_a_kill_and_restarted() {
        panic_is_told_from_a_kill("qemu");
    }

    #[test]
    fn kernel_outlives_the_daemon_and_is_adopted() {
        outlives_the_daemon("qemu");
    }

    #[test]
    fn kernel_that_is_dead_inside_writes_back_and_says_what_it_does_before_it_is_ended() {
        writes_back_before_it_is_ended("qemu");
    }

    #[test]
    fn kernel_that_hangs_is_ended_and_where_its_cpus_stood_is_kept() {
        let Some(bed) = bed_with_a_ladder("qemu") else { return };
        let before = bed.view("web");
        bed.must(&["debug", "freeze", "web"]);
        is_started_again(&bed, &before);
        let said = bed.must(&["logs", "--last-words", "web"]).stdout;
        assert!(said.contains("CPU#0") && said.contains("IP="), "{said}");
        bed.nothing_is_left();
    }

    #[test]
    fn hung_is_told_from_dead_inside() {
        let Some(bed) = bed_of("qemu", "never") else { return };
        hung_and_dead_inside_are_told_apart(&bed);
        bed.nothing_is_left();
    }

    #[test]
    fn cpu_that_runs_nothing_is_told_and_only_it_and_its_recovery() {
        let Some(app) = prerequisites::static_program("tombolo-demo-kv") else { return };
        let Some(bed) = Bed::start("qemu") else { return };
        let file = format!("{}:/bin/app", app.display());
        bed.must(&["up", "web", "--memory", "160", "--cpus", "2", "--restart", "never", "--file", &file]);
        bed.must(&["wait", "web", "--for", "ready"]);

        // As busy as ordinary programs can make it.
        let seen = bed.last_event();
        let mut busy = bed.attach(&["exec", "web", "--", "/bin/app", "spin", "8"]);
        busy.line("the busy program", |line| line.contains("spinning"));
        std::thread::sleep(std::time::Duration::from_secs(3));
        busy.signal("INT");
        busy.finish();
        assert_eq!(of_cpus(&bed, seen), [] as [(String, u64); 0]);

        let starving = bed.attach(&["exec", "-d", "web", "--", "/bin/app", "starve", "1", "5000"]);
        assert_eq!(starving.finish().code, 0);
        let view = bed.until("web", "degraded", |view| {
            view["health_reason"]
                .as_str()
                .is_some_and(|reason| reason.starts_with("CPU 1 has run nothing for"))
        });
        assert_eq!((&view["health"], &view["state"]), (&"degraded".into(), &"running".into()), "{view}");
        let said = bed.must(&["inspect", "web"]).stdout;
        assert!(said.contains("degraded (cpu): CPU 1 has run nothing"), "{said}");
        assert_eq!(view["layer"], "cpu");
        eventually("its recovery", || of_cpus(&bed, seen).len() == 2);
        bed.must(&["wait", "web", "--for", "ready"]);
        assert_eq!(of_cpus(&bed, seen), [("cpu-stuck".into(), 1), ("cpu-recovered".into(), 1)]);
        bed.nothing_is_left();
    }

    /// What was told of CPUs of `web`.
    fn of_cpus(bed: &Bed, since: u64) -> Vec<(String, u64)> {
        let events = bed.events_since(since);
        let of_cpus = events.iter().filter_map(|event| {
            let kind = event["type"].as_str().filter(|kind| kind.starts_with("cpu-"))?;
            Some((kind.to_owned(), event["cpu"].as_u64()?))
        });
        of_cpus.collect()
    }

    #[test]
    fn machine_and_user_mode_kernel_share_one_pool() {
        let Some(bed) = bed_of("qemu", "never") else { return };
        let app = prerequisites::static_program("tombolo-demo-kv").unwrap();
        let file = format!("{}:/bin/app", app.display());
        bed.must(&[
            "up",
            "db",
            "--spawner",
            "uml",
            "--memory",
            "128",
            "--file",
            &file,
            "--",
            "/bin/app",
            "serve",
        ]);
        bed.must(&["policy", "allow", "web", "db"]);
        eventually("a call from one kernel to the other", || {
            bed.tombolo(&["exec", "web", "--", "/bin/app", "try", "db/kv"]).code == 0
        });
        let measured = bed.must(&["exec", "web", "--", "/bin/app", "measure", "db/kv"]);
        let measured: Value = serde_json::from_str(&measured.stdout).unwrap();
        assert!(measured.is_object(), "{measured}");
        bed.nothing_is_left();
    }
}
