//! What the agent does as the first process of a real kernel, and nowhere else.

use serde_json::Value;
use tombolo_tests::bed::Bed;
use tombolo_tests::prerequisites;

/// A bed with one kernel `web` that has the demo's application and is as `spec` (TOML) says.
fn bed_with_web(spec: &str, files: &[(&str, &str)]) -> Option<Bed> {
    let app = prerequisites::static_program("tombolo-demo-kv")?;
    let bed = Bed::start("uml")?;
    let spec_file = bed.dir().join("web.toml");
    std::fs::write(&spec_file, spec).unwrap();
    let mut options = vec![format!("{}:/bin/app", app.display())];
    for (guest, content) in files {
        let source = bed.dir().join(guest.replace('/', "_"));
        std::fs::write(&source, content).unwrap();
        options.push(format!("{}:{guest}", source.display()));
    }
    let spec_file = spec_file.display().to_string();
    let mut args = vec!["up", "web", "--memory", "128", "--spec", &spec_file];
    for option in &options {
        args.extend(["--file", option]);
    }
    bed.must(&args);
    Some(bed)
}

/// Runs the application in `web`, as `user` if one is named.
fn where_am_i(bed: &Bed, user: &[&str]) -> Value {
    let command = [&["exec"], user, &["web", "--", "/bin/app", "where-am-i"]].concat();
    serde_json::from_str(&bed.must(&command).stdout).unwrap()
}

/// Waits until the one probe of `web` is so.
fn probed(bed: &Bed, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let start = std::time::Instant::now();
    loop {
        let mut document = bed.must(&["--json", "inspect", "web"]).json();
        let probe = document["instance"]["report"]["probes"][0].take();
        if wanted(&probe) {
            return probe;
        }
        assert!(start.elapsed() < tombolo_tests::wait::LONG, "never {what}: {probe}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn rpc_probe_sees_a_program_come_hang_go_on_and_die() {
    let spec = r#"
        [[probes]]
        name = "kv-answers"
        kind = "readiness"
        period_ms = 100
        timeout_ms = 1000
        failure_threshold = 1
        rpc = { target = "kv", service = "tombolo.demo.Kv" }
    "#;
    let Some(bed) = bed_with_web(spec, &[]) else { return };
    let fails = |kind: &'static str| {
        move |probe: &Value| probe["verdict"] == "failing" && probe["last_failure_kind"] == kind
    };
    let passes = |probe: &Value| probe["verdict"] == "passing";
    let probe = probed(&bed, "not there", fails("not-found"));
    assert!(probe["last_failure"].as_str().unwrap().contains("kv"), "{probe}");
    // The application has no code for being probed.
    let started = bed.must(&["exec", "--detach", "web", "--", "/bin/app", "serve"]).stdout;
    let job = started.trim().to_owned();
    probed(&bed, "answering", passes);
    bed.until("web", "ready", |view| view["health"] == "ready");
    bed.must(&["jobs", "web", "--kill", &job, "--signal", "STOP"]);
    let probe = probed(&bed, "hung", fails("timed-out"));
    assert!(probe["last_failure"].as_str().unwrap().contains("still"), "it says what it waits for: {probe}");
    bed.must(&["jobs", "web", "--kill", &job, "--signal", "CONT"]);
    probed(&bed, "answering again", passes);
    bed.must(&["jobs", "web", "--kill", &job, "--signal", "KILL"]);
    probed(&bed, "gone", fails("not-found"));
    bed.nothing_is_left();
}

#[test]
fn user_of_the_kernel_has_its_groups_there() {
    let files = [
        ("/etc/passwd", "root:x:0:0::/:/bin/sh\napp:x:1000:1001::/:/bin/sh\n"),
        ("/etc/group", "app:x:1001:\nvideo:x:44:app\naudio:x:29:other,app\nother:x:7:other\n"),
    ];
    let Some(bed) = bed_with_web("", &files) else { return };
    let ids = where_am_i(&bed, &["--user", "app"])["ids"].take();
    assert_eq!(ids, serde_json::json!({ "uid": 1000, "gid": 1001, "groups": [29, 44] }));
    let ids = where_am_i(&bed, &["--user", "7:8"])["ids"].take();
    assert_eq!(ids, serde_json::json!({ "uid": 7, "gid": 8, "groups": [] }));
    bed.nothing_is_left();
}

#[test]
fn clock_that_is_off_is_set_when_the_control_plane_comes_back_if_it_may() {
    for (spec, may) in [("", true), ("sync_clock = false", false)] {
        let Some(mut bed) = bed_with_web(spec, &[]) else { return };
        let behind_ms = |bed: &Bed| {
            let host = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis() as i64;
            host - where_am_i(bed, &[])["unix_ms"].as_i64().unwrap()
        };
        bed.must(&["exec", "web", "--", "/bin/app", "set-clock-back", "3600"]);
        assert!(behind_ms(&bed) >= 3_599_000);
        bed.end_daemon("KILL");
        bed.start_daemon();
        bed.until("web", "running", |view| view["state"] == "running");
        if may {
            let start = std::time::Instant::now();
            while behind_ms(&bed).abs() > 60_000 {
                assert!(start.elapsed() < tombolo_tests::wait::LONG, "it is {} ms behind", behind_ms(&bed));
            }
        } else {
            // Long after it would have been done.
            bed.must(&["ping", "web"]);
            assert!(behind_ms(&bed) >= 3_599_000);
        }
        bed.nothing_is_left();
    }
}
