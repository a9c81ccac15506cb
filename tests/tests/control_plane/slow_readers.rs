//! Peers that never read: they wait, nobody else does.

use std::process::Stdio;

use tombolo_tests::attached::Attached;
use tombolo_tests::bed::{Bed, eventually, runs};

/// Resident memory of a process, in KiB.
fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok())
        .unwrap()
}

#[test]
fn program_whose_output_nobody_reads_waits_and_holds_nobody_up() {
    let bed = bed!(Bed::start("process"));
    bed.must(&["up", "web"]);
    let program = format!("yes nobody-reads-this-{}", std::process::id());
    let mut command = bed.tombolo_command(&["exec", "web", "--", "sh", "-c", &format!("exec {program}")]);
    let mut unread = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    eventually("the program to run", || runs(&program));
    let daemon = bed.daemon_pid();
    bed.must(&["ping", "web", "-c", "20"]);
    let before_kib = resident_kib(daemon);
    for _ in 0..20 {
        assert_eq!(bed.must(&["exec", "web", "--", "echo", "here"]).stdout, "here\n");
    }
    let grown_kib = resident_kib(daemon).saturating_sub(before_kib);
    assert!(grown_kib < 64 << 10, "the daemon keeps what nobody reads: {grown_kib} KiB");

    // Its stdout is full, so it sits in write(2); it can be interrupted all the same.
    tombolo_tests::bed::send_signal(unread.id(), "INT");
    assert_eq!(unread.wait().unwrap().code(), Some(130));
    eventually("the end of the program", || !runs(&program));
    bed.nothing_is_left();
}

#[test]
fn follower_of_events_that_does_not_read_misses_none_and_holds_nobody_up() {
    let bed = bed!(Bed::start("process"));
    bed.must(&["create", "web"]);
    let follower = bed.attach(&["--json", "events", "-f"]);
    follower.signal("STOP");
    for port in 1..=100 {
        bed.must(&["policy", "allow", "web", &format!("db:{port}")]);
    }
    let last = bed.last_event();
    assert!(last > 100, "{last}");
    follower.signal("CONT");
    let mut follower: Attached = follower;
    for seq in 1..=last {
        let line = follower.line("event", |_| true);
        let event: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(event["seq"], seq);
    }
    bed.nothing_is_left();
}
