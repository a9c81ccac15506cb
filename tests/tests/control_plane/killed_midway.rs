//! SIGTERM and SIGKILL to the daemon, a keeper, a kernel or the command line, at every step.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tombolo_tests::attached::Attached;
use tombolo_tests::bed::{Bed, eventually, runs, send_signal};

#[test]
fn daemon_killed_at_any_moment_of_a_start_loses_nothing() {
    let mut bed = bed!(Bed::start("process"));
    bed.must(&["create", "web"]);
    for delay_ms in [0, 5, 10, 20, 40, 60, 80, 120, 160, 240] {
        bed.must(&["start", "web", "--no-wait"]);
        std::thread::sleep(Duration::from_millis(delay_ms));
        bed.end_daemon("KILL");
        bed.start_daemon();
        let view = bed.until("web", "running", |view| view["state"] == "running");
        let kernels = bed.processes().iter().filter(|(_, command)| command.contains("keeper --dir")).count();
        assert_eq!(kernels, 1, "after {delay_ms} ms: {view} {:?}", bed.processes());
        bed.must(&["stop", "web"]);
    }
    bed.nothing_is_left();
}

#[test]
fn daemon_killed_at_any_moment_of_a_stop_stops_all_the_same() {
    let mut bed = bed!(Bed::start("process"));
    bed.must(&["create", "web"]);
    for delay_ms in [0, 5, 10, 20, 40, 80] {
        bed.must(&["start", "web"]);
        bed.must(&["stop", "web", "--no-wait"]);
        std::thread::sleep(Duration::from_millis(delay_ms));
        bed.end_daemon("KILL");
        bed.start_daemon();
        bed.until("web", "stopped", |view| view["state"] == "stopped");
        assert!(
            bed.processes().iter().all(|(_, command)| !command.contains("keeper --dir")),
            "{:?}",
            bed.processes()
        );
    }
    bed.nothing_is_left();
}

#[test]
fn terminated_daemon_leaves_its_kernels_to_the_next() {
    let mut bed = bed!(Bed::start("process"));
    bed.must(&["up", "web"]);
    let before = bed.view("web");
    assert_eq!(bed.end_daemon("TERM"), 0);
    bed.start_daemon();
    let after = bed.until("web", "running", |view| view["state"] == "running");
    for key in ["pid", "incarnation", "boots"] {
        assert_eq!(before[key], after[key], "{key}");
    }
    assert_eq!(bed.must(&["exec", "web", "--", "echo", "hello"]).stdout, "hello\n");
    bed.nothing_is_left();
}

#[test]
fn killed_keeper_is_noticed_and_the_policy_restarts_the_instance() {
    let bed = bed!(Bed::start("process"));
    bed.must(&["up", "web", "--restart", "always"]);
    let before = bed.view("web");
    for signal in ["KILL", "TERM"] {
        let view = bed.view("web");
        let keepers = bed.processes();
        let (keeper, _) = keepers.iter().find(|(_, command)| command.contains("keeper --dir")).unwrap();
        send_signal(*keeper, signal);
        bed.until("web", "restarted", |now| {
            now["state"] == "running"
                && now["incarnation"] != view["incarnation"]
                && !now["incarnation"].is_null()
        });
    }
    assert!(bed.view("web")["boots"].as_u64() > before["boots"].as_u64());
    bed.nothing_is_left();
}

/// `tombolo exec` of a program that has begun and does not end, and what tells that program in the process table.
fn exec_without_end(bed: &Bed, mark: usize) -> (Attached, String) {
    let program = format!("sleep 36{}.{mark}", std::process::id());
    let mut exec = bed.attach(&["exec", "web", "--", "sh", "-c", &format!("echo begun; exec {program}")]);
    exec.line("output", |line| line == "begun");
    eventually("the program to run", || runs(&program));
    (exec, program)
}

#[test]
fn command_that_is_ended_takes_its_program_along_and_says_so() {
    let bed = bed!(Bed::start("process"));
    bed.must(&["up", "web"]);
    for (mark, (signal, code)) in [("INT", 130), ("TERM", 143), ("KILL", -1)].iter().enumerate() {
        let (exec, program) = exec_without_end(&bed, mark);
        exec.signal(signal);
        let said = exec.finish();
        assert_eq!(said.code, *code, "{signal}: {said:?}");
        assert!(*code < 0 || said.stderr.contains("program inside is ended"), "{said:?}");
        eventually("the end of the program", || !runs(&program));
    }
    bed.nothing_is_left();
}

#[test]
fn command_that_follows_ends_with_its_code_and_leaves_nothing() {
    let bed = bed!(Bed::start("process"));
    bed.must(&["up", "web", "--", "/bin/sh", "-c", "while :; do echo tick; sleep 0.05; done"]);
    let socket = bed.dir().join("forward.sock").display().to_string();
    for args in [
        &["logs", "-f", "web"][..],
        &["console", "web"],
        &["events", "-f"],
        &["top", "-i", "50ms"],
        &["--json", "forward", &socket, "web:tcp:1"],
    ] {
        // Killed first: the next one replaces the socket that this leaves.
        for (signal, code) in [("KILL", -1), ("INT", 130), ("TERM", 143)] {
            let mut following = bed.attach(args);
            following.line("output", |_| true);
            following.signal(signal);
            let said = following.finish();
            assert_eq!(said.code, code, "{args:?}, SIG{signal}: {said:?}");
            assert!(code < 0 || !Path::new(&socket).exists(), "its socket is left");
        }
    }
    bed.nothing_is_left();
}

/// `tombolo events -f`, run by a shell after `first`.
fn following_after(bed: &Bed, first: &str) -> Attached {
    let plain = bed.tombolo_command(&["events", "-f"]);
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{first} \"$@\""), "sh"]).arg(plain.get_program()).args(plain.get_args());
    let mut following = Attached::run(command);
    following.line("an event", |_| true);
    following
}

#[test]
fn command_ends_with_its_terminal_unless_under_nohup() {
    let bed = bed!(Bed::start("process"));
    let plain = following_after(&bed, "exec env --default-signal=HUP");
    plain.signal("HUP");
    assert_eq!(plain.finish().code, 129);

    let mut under_nohup = following_after(&bed, "trap '' HUP; exec");
    under_nohup.signal("HUP");
    bed.must(&["create", "web"]);
    under_nohup.line("the creation", |line| line.contains("created"));
    under_nohup.signal("TERM");
    assert_eq!(under_nohup.finish().code, 143);
    bed.nothing_is_left();
}

#[test]
fn kernel_that_is_killed_ends_what_was_carried_out_in_it() {
    let bed = bed!(Bed::start("process"));
    bed.must(&["up", "web", "--restart", "never"]);
    let (exec, program) = exec_without_end(&bed, 10);
    let mut logs = bed.attach(&["logs", "-f", "web"]);
    logs.line("a log", |_| true);
    send_signal(bed.pid("web"), "KILL");
    let said = exec.finish();
    assert_eq!(said.code, 6, "the outcome is not known: {said:?}");
    assert!(said.stderr.contains("web") && said.stderr.contains("may have run"), "{said:?}");
    let said = logs.finish();
    assert!(said.code != 0 && said.stderr.contains("web"), "{said:?}");
    bed.until("web", "ended", |view| view["state"] == "failed");
    eventually("the end of the program", || !runs(&program));
    assert_eq!(bed.tombolo(&["exec", "web", "--", "true"]).code, 1, "nobody is there to run it");
    bed.must(&["start", "web"]);
    bed.must(&["exec", "web", "--", "true"]);
    bed.nothing_is_left();
}

#[test]
fn daemon_that_is_killed_ends_every_command_with_a_clear_error() {
    let mut bed = bed!(Bed::start("process"));
    bed.must(&["up", "web", "--", "/bin/sh", "-c", "while :; do echo tick; sleep 0.05; done"]);
    for (mark, signal) in ["KILL", "TERM"].into_iter().enumerate() {
        let (exec, program) = exec_without_end(&bed, 20 + mark);
        let mut others: Vec<(&str, Attached)> = [
            ("logs", &["logs", "-f", "web"][..]),
            ("console", &["console", "web"]),
            ("events", &["events", "-f"]),
            ("top", &["top", "-i", "50ms"]),
        ]
        .into_iter()
        .map(|(name, args)| (name, bed.attach(args)))
        .collect();
        for (name, command) in &mut others {
            command.line(name, |_| true);
        }
        let wait = bed.attach(&["wait", "web", "--for", "stopped"]);
        let before = bed.view("web");
        bed.end_daemon(signal);
        for (name, command) in [("exec", exec), ("wait", wait)].into_iter().chain(others) {
            let said = command.finish();
            assert!([6, 8].contains(&said.code), "{name}, SIG{signal}: {said:?}");
            let names_it = ["daemon", "broker of this kernel"].iter().any(|it| said.stderr.contains(it));
            assert!(names_it, "{name}: {said:?}");
        }
        eventually("the end of the program", || !runs(&program));
        bed.start_daemon();
        let after = bed.until("web", "adopted", |view| view["state"] == "running");
        assert_eq!(before["incarnation"], after["incarnation"]);
        bed.must(&["exec", "web", "--", "true"]);
    }
    bed.nothing_is_left();
}

/// The keeper of the one instance there is, once it runs.
fn keeper(bed: &Bed) -> Option<u32> {
    let processes = bed.processes();
    processes.iter().find(|(_, command)| command.contains("keeper --dir")).map(|(pid, _)| *pid)
}

#[test]
fn keeper_or_kernel_killed_at_any_moment_of_a_start_or_stop_leaves_nothing() {
    let bed = bed!(Bed::start("process"));
    bed.must(&["create", "web", "--restart", "never"]);
    for (round, delay_ms) in [0, 10, 30, 60, 120].into_iter().enumerate() {
        let signal = if round % 2 == 0 { "KILL" } else { "TERM" };
        bed.must(&["start", "web", "--no-wait"]);
        eventually("a keeper", || keeper(&bed).is_some());
        std::thread::sleep(Duration::from_millis(delay_ms));
        send_signal(keeper(&bed).unwrap_or_default(), signal);
        bed.until("web", "ended", |view| {
            ["failed", "lost", "stopped"].contains(&view["state"].as_str().unwrap())
        });
        eventually("the end of all its processes", || keeper(&bed).is_none());

        bed.must(&["start", "web"]);
        let (pid, keeper_pid) = (bed.pid("web"), keeper(&bed).unwrap());
        bed.must(&["stop", "web", "--no-wait"]);
        std::thread::sleep(Duration::from_millis(delay_ms / 4));
        send_signal(if round % 2 == 0 { pid } else { keeper_pid }, signal);
        bed.until("web", "stopped", |view| view["state"] == "stopped");
        eventually("the end of all its processes", || keeper(&bed).is_none());
    }
    bed.nothing_is_left();
}
