//! The daemon and the command line as two programs: what needs no kernel.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long anything here may take on a very busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon with folders of its own, and the command line that talks to it.
struct Bed {
    dir: tempfile::TempDir,
    daemon: Child,
}

impl Bed {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let daemon = daemon(dir.path());
        let mut bed = Self { dir, daemon };
        bed.wait_until_it_answers();
        bed
    }

    fn wait_until_it_answers(&mut self) {
        let give_up = Instant::now() + PATIENCE;
        while !self.run(&["ps"]).status.success() {
            if let Some(status) = self.daemon.try_wait().unwrap() {
                panic!("tombolod ended with {status}");
            }
            assert!(Instant::now() < give_up, "tombolod does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// SIGKILL, and a new daemon in its place.
    fn replace_daemon(&mut self) {
        self.daemon.kill().unwrap();
        self.daemon.wait().unwrap();
        self.daemon = daemon(self.dir.path());
        self.wait_until_it_answers();
    }

    fn run(&self, args: &[&str]) -> Output {
        tombolo(&self.dir.path().join("run"), args)
    }

    fn code(&self, args: &[&str]) -> i32 {
        self.run(args).status.code().unwrap()
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[&["--json"], args].concat())).unwrap()
    }

    fn events(&self, since: u64) -> Vec<Value> {
        let text = self.ok(&["--json", "events", "--since", &since.to_string()]);
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        let pool = tombolo_control::paths::pool(&self.dir.path().join("state"));
        let _ = std::fs::remove_file(pool);
    }
}

fn daemon(dir: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_tombolod"))
        .args(["--spawner", "process", "--pool-members", "4", "--pool-extent", "1"])
        .arg("--state-dir")
        .arg(dir.join("state"))
        .arg("--runtime-dir")
        .arg(dir.join("run"))
        .args(["--agent-binary", "/nowhere/tombolo-agent"])
        .env("RUST_LOG", "warn")
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn tombolo(runtime_dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tombolo"));
    command.arg("--runtime-dir").arg(runtime_dir).args(args);
    command.env_remove("TOMBOLO_SOCKET").env("TZ", "UTC").output().unwrap()
}

#[test]
fn a_daemon_that_does_not_run_is_told_with_the_command_that_starts_it() {
    let dir = tempfile::tempdir().unwrap();
    for args in [&["ps"][..], &["events"], &["exec", "web", "--", "true"], &["connect", "3:1"]] {
        let output = tombolo(dir.path(), args);
        assert_eq!(output.status.code(), Some(8), "{args:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("start it with:  tombolod --runtime-dir"), "{args:?}: {said}");
    }
}

#[test]
fn records_events_and_policy_survive_a_sigkill_of_the_daemon() {
    let mut bed = Bed::start();
    bed.ok(&["create", "web", "--memory", "96"]);
    bed.ok(&["policy", "allow", "web", "db:6379"]);
    let before = bed.events(0);
    bed.replace_daemon();
    let views = bed.json(&["ps"]);
    assert_eq!(views["instances"][0]["name"], "web");
    assert_eq!(views["instances"][0]["memory_mib"], 96);
    assert_eq!(bed.json(&["policy", "ls"])["rules"][0]["port"], "6379");
    let after = bed.events(0);
    assert_eq!(after[..before.len()], before, "what was recorded has changed");
    let numbers: Vec<u64> = after.iter().map(|event| event["seq"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=after.len() as u64).collect::<Vec<_>>());
    assert_eq!(bed.events(numbers.len() as u64 - 1).len(), 1, "reading resumes after a number");
}

#[test]
fn each_kind_of_failure_has_its_exit_code() {
    let bed = Bed::start();
    bed.ok(&["create", "web"]);
    for (code, args) in [
        (2, &["create", "UPPER"][..]),
        (2, &["create", "odd", "--memory", "1"]),
        (2, &["create", "odd", "--spawner", "multikernel", "--device", "0000:01:00.0"]),
        (2, &["create", "odd", "--spawner", "uml", "--cpus", "2"]),
        (3, &["inspect", "nobody"]),
        (3, &["start", "nobody"]),
        (3, &["policy", "rm", "a", "b:1"]),
        (4, &["create", "web"]),
        (6, &["wait", "web", "--for", "running", "--timeout", "50ms"]),
        (1, &["exec", "web", "--", "true"]),
        (1, &["start", "web"]),
        (7, &["rm", "web", "nobody"]),
        (0, &["wait", "web", "--for", "gone"]),
    ] {
        assert_eq!(bed.code(args), code, "{args:?}");
    }
}

#[test]
fn a_start_that_cannot_work_says_why_and_is_not_tried_again() {
    let bed = Bed::start();
    bed.ok(&["create", "web"]);
    let output = bed.run(&["start", "web"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("/nowhere/tombolo-agent") || said.contains("unshare"), "{said}");
    let view = &bed.json(&["inspect", "web"])["instance"]["view"];
    assert_eq!((&view["state"], &view["desired"]), (&Value::from("failed"), &Value::from("stopped")));
    assert!(bed.events(0).iter().any(|event| event["type"] == "step-failed"));
}

#[test]
fn kernel_without_support_for_others_is_told_with_what_to_boot() {
    let bed = Bed::start();
    let output = bed.run(&["up", "web", "--spawner", "multikernel", "--image", "/boot/vmlinux"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    let is_told = ["CONFIG_MULTIKERNEL=y", "mount -t multikernel", "tombolo multikernel pool"];
    assert!(is_told.iter().any(|remedy| said.contains(remedy)), "{said}");
}

#[test]
fn a_request_that_is_repeated_with_its_key_is_done_once() {
    let bed = Bed::start();
    let create = ["create", "web", "--idempotency-key", "k1"];
    bed.ok(&create);
    bed.ok(&create);
    assert_eq!(bed.json(&["ps"])["instances"].as_array().unwrap().len(), 1);
    assert_eq!(bed.code(&["create", "db", "--idempotency-key", "k1"]), 4);
}

#[test]
fn the_pool_holds_no_more_instances_than_it_has_members() {
    let bed = Bed::start();
    for name in ["a", "b", "c"] {
        bed.ok(&["create", name]);
    }
    assert_eq!(bed.code(&["create", "d"]), 4);
    bed.ok(&["rm", "b"]);
    bed.ok(&["create", "d"]);
    let cids: Vec<u64> = bed.json(&["ps"])["instances"]
        .as_array()
        .unwrap()
        .iter()
        .map(|view| view["cid"].as_u64().unwrap())
        .collect();
    assert_eq!(cids, [3, 5, 6], "a CID is never given to another");
}

#[test]
fn a_second_daemon_on_the_same_folders_is_refused_and_harms_nothing() {
    let bed = Bed::start();
    let mut second = daemon(bed.dir.path());
    assert_eq!(second.wait().unwrap().code(), Some(4));
    bed.ok(&["ps"]);
}

#[test]
fn down_leaves_no_process_socket_or_shared_memory() {
    let mut bed = Bed::start();
    bed.ok(&["create", "web"]);
    let pool = tombolo_control::paths::pool(&bed.dir.path().join("state"));
    assert!(pool.exists());
    bed.ok(&["down"]);
    assert!(bed.daemon.wait().unwrap().success());
    assert!(!pool.exists());
    let left: Vec<_> = std::fs::read_dir(bed.dir.path().join("run"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["lock"]);
}

#[test]
fn sigterm_ends_the_daemon_in_good_order() {
    let mut bed = Bed::start();
    let pid = rustix::process::Pid::from_child(&bed.daemon);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(bed.daemon.wait().unwrap().success());
    assert!(!bed.dir.path().join("run/tombolod.sock").exists());
}

#[test]
fn caller_that_says_nothing_is_let_go() {
    use std::io::Read as _;
    let bed = Bed::start();
    let mut silent =
        std::os::unix::net::UnixStream::connect(bed.dir.path().join("run/tombolod.sock")).unwrap();
    silent.set_read_timeout(Some(PATIENCE)).unwrap();
    // Whatever the daemon says first is not answered.
    let mut heard = Vec::new();
    silent.read_to_end(&mut heard).expect("the daemon lets go of who does not introduce itself");
    bed.ok(&["ps"]);
}

#[test]
fn caller_that_speaks_nonsense_is_let_go_and_harms_nobody() {
    use std::io::{Read as _, Write as _};
    let bed = Bed::start();
    for nonsense in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], &[0; 64]] {
        let path = bed.dir.path().join("run/tombolod.sock");
        let mut stranger = std::os::unix::net::UnixStream::connect(path).unwrap();
        stranger.set_read_timeout(Some(PATIENCE)).unwrap();
        let _ = stranger.write_all(nonsense);
        // The end, or a reset: anything but silence.
        if let Err(error) = stranger.read_to_end(&mut Vec::new()) {
            assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "{nonsense:?}");
        }
        bed.ok(&["ps"]);
    }
}

#[test]
fn of_changes_of_the_policy_at_once_none_is_lost() {
    let bed = Bed::start();
    let ports: Vec<String> = (1..=12).map(|port| format!("db:{port}")).collect();
    std::thread::scope(|scope| {
        for target in &ports {
            scope.spawn(|| bed.ok(&["policy", "allow", "web", target]));
        }
    });
    assert_eq!(bed.json(&["policy", "ls"])["rules"].as_array().unwrap().len(), ports.len());
}
