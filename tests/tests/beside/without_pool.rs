//! Kernels that share no memory with the host: all that goes to and from them goes over one socket, a poor one.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use tombolo_tests::attached::Attached;
use tombolo_tests::bed::eventually;
use tombolo_tests::prerequisites;

use super::Beside;

/// How long a kernel is watched that has no heartbeat: longer than a silent one would be given.
const WATCHED: Duration = Duration::from_secs(4);
/// Several times what the link has under way at any time.
const MANY_BYTES: usize = 300_000;
/// Writes that fail while a ring is full for a while.
const REFUSED: u64 = 20;

/// `web` on a machine whose settings name no pool.
fn boot(options: &[&str]) -> Option<Beside> {
    let beside = Beside::without_shared_memory()?;
    beside.boot(options);
    Some(beside)
}

/// The link as `tombolo inspect` has it: what it is, and whether it is up.
fn link(beside: &Beside) -> (Value, Value) {
    let said = beside.bed.must(&["--json", "inspect", "web"]).json();
    (said["instance"]["view"]["link"].clone(), said["instance"]["link_is_up"].clone())
}

fn kinds(beside: &Beside) -> Vec<String> {
    let kind = |event: &Value| event["type"].as_str().unwrap_or_default().to_owned();
    beside.bed.events_since(0).iter().map(kind).collect()
}

fn has(beside: &Beside, wanted: &str) -> bool {
    kinds(beside).iter().any(|kind| kind == wanted)
}

fn runs_again(beside: &Beside, before: &Value) -> Value {
    let again = |view: &Value| view["state"] == "running" && view["boots"] != before["boots"];
    beside.bed.until("web", "started again", again)
}

fn path(beside: &Beside, name: &str) -> PathBuf {
    beside.bed.dir().join(name)
}

/// Sends many bytes there and has them back.
fn many_bytes_come_whole(beside: &Beside) {
    let sending = send_many_bytes(beside);
    they_have_come_whole(beside, sending);
}

fn many_bytes() -> Vec<u8> {
    (0..MANY_BYTES).map(|n| (n * 7 % 251) as u8).collect()
}

/// Sends many bytes there.
fn send_many_bytes(beside: &Beside) -> Attached {
    let sent = path(beside, "sent");
    fs::write(&sent, many_bytes()).unwrap();
    beside.bed.attach(&["cp", sent.to_str().unwrap(), "web:/tmp/file"])
}

/// Waits until they are there, and has them back.
fn they_have_come_whole(beside: &Beside, sending: Attached) {
    let said = sending.finish();
    assert_eq!(said.code, 0, "{said:?}");
    let got = path(beside, "got");
    beside.bed.must(&["cp", "web:/tmp/file", got.to_str().unwrap()]);
    assert!(fs::read(&got).unwrap() == many_bytes(), "other bytes came back");
}

pub(super) fn kernel_without_shared_memory_is_reached_and_says_over_what() {
    let Some(beside) = boot(&["--restart", "never"]) else { return };
    assert_eq!(link(&beside), ("paced".into(), true.into()));
    let said = beside.bed.must(&["inspect", "web"]).stdout;
    let line = said.lines().find(|line| line.trim().starts_with("link")).unwrap_or_else(|| panic!("{said}"));
    assert!(line.contains("paced, up") && line.contains("no heartbeat"), "{said}");
    let listed = beside.bed.must(&["--json", "ps"]).json();
    assert_eq!(listed["instances"][0]["link"], "paced", "{listed}");

    beside.bed.must(&["ping", "web"]);
    assert_eq!(beside.bed.view("web")["boot_id"], beside.boot_id());
    many_bytes_come_whole(&beside);
    assert!(!beside.bed.must(&["logs", "web"]).stdout.is_empty());
    // What listens inside is called from there, its ports of the fabric by relay; nobody does listen.
    for target in ["web:tcp:9", "web:9"] {
        let said = beside.bed.tombolo(&["connect", target]);
        assert!(said.code != 0 && said.stderr.contains("refused"), "{said:?}");
    }

    // It has no heartbeat, and is none the worse for it.
    std::thread::sleep(WATCHED);
    let view = beside.bed.view("web");
    assert!(view["health"] == "ready" || view["health"] == "live", "{view}");
    assert!(!has(&beside, "hung"), "{:?}", kinds(&beside));

    beside.bed.must(&["stop", "web"]);
    assert_eq!(beside.bed.view("web")["last_end"], "powered-off");
    beside.nothing_is_left_but(&[]);
}

pub(super) fn kernels_of_all_are_called_when_that_is_asked_for() {
    let Some(beside) = Beside::without_shared_memory() else { return };
    beside.boot(&[]);
    let answer = || {
        let said = beside.bed.must(&["--json", "multikernel", "show", "--probe"]).json();
        said["multikernel"]["instances"][0]["answers"].as_str().map(str::to_owned)
    };
    assert_eq!(answer().as_deref(), Some("kernel"));
    let silent = beside.bed.must(&["--json", "multikernel", "show"]).json();
    assert!(silent["multikernel"]["instances"][0]["answers"].is_null(), "nobody is called unasked");
    beside.stand_in.control(&["freeze", "web"]);
    assert_eq!(answer().as_deref(), Some("silent"));
    beside.stand_in.control(&["thaw", "web"]);
    beside.bed.must(&["kill", "web"]);
    beside.nothing_is_left_but(&[]);
}

pub(super) fn next_daemon_reaches_a_kernel_without_shared_memory() {
    let Some(mut beside) = boot(&[]) else { return };
    let (boot_id, pid) = (beside.boot_id(), beside.bed.pid("web"));
    beside.bed.must(&["exec", "-d", "web", "--", "/bin/app", "serve"]);
    let is_served = |beside: &Beside| on_the_host(beside, &["try", "web/kv"]).finish().code == 0;
    eventually("the service is found", || is_served(&beside));
    beside.bed.end_daemon("KILL");
    beside.bed.start_daemon();
    beside.bed.must(&["wait", "web", "--for", "running"]);
    assert_eq!((beside.boot_id(), beside.bed.pid("web")), (boot_id, pid));
    assert_eq!(link(&beside), ("paced".into(), true.into()));
    assert!(is_served(&beside), "what listens there listens still");
    beside.bed.must(&["stop", "web"]);
    assert_eq!(beside.bed.view("web")["last_end"], "powered-off");
    beside.nothing_is_left_but(&[]);
}

pub(super) fn link_that_breaks_or_loses_bytes_is_taken_up_again() {
    let Some(beside) = boot(&[]) else { return };
    let boot_id = beside.boot_id();
    for _ in 0..5 {
        beside.stand_in.control(&["cut", "web"]);
        // Nobody waits for the end that has gone to be missed.
        beside.bed.must(&["--timeout", "5s", "ping", "web", "--count", "1"]);
    }
    many_bytes_come_whole(&beside);
    beside.stand_in.control(&["lossy", "on", "web"]);
    many_bytes_come_whole(&beside);
    beside.stand_in.control(&["lossy", "off", "web"]);
    beside.bed.must(&["ping", "web"]);
    assert_eq!(beside.boot_id(), boot_id);
    assert!(!has(&beside, "hung"), "{:?}", kinds(&beside));
    beside.bed.must(&["stop", "web"]);
    assert_eq!(beside.bed.view("web")["last_end"], "powered-off");
    beside.nothing_is_left_but(&[]);
}

pub(super) fn full_ring_is_waited_for_and_nothing_is_lost_or_repeated() {
    let Some(beside) = boot(&[]) else { return };
    let boot_id = beside.boot_id();
    let mut serving = beside.bed.attach(&["exec", "web", "--", "/bin/app", "serve"]);
    serving.line("service", serves);
    let is_up = || link(&beside).1 == true;
    // For a while, and for as long as it takes until the socket counts as dead.
    for is_given_up in [false, true] {
        // Both ways at once.
        let mut streaming = Streaming::of(&beside, "web/kv-bytes");
        let sending = send_many_bytes(&beside);
        streaming.read(MANY_BYTES / 10);
        let before = beside.stand_in.refused("web");
        beside.stand_in.control(&["full", "on", "web"]);
        eventually("writes that find no room", || beside.stand_in.refused("web") >= before + REFUSED);
        if is_given_up {
            eventually("the link to be down", || !is_up());
        }
        beside.stand_in.control(&["full", "off", "web"]);
        streaming.read(MANY_BYTES / 5);
        drop(streaming);
        they_have_come_whole(&beside, sending);
        eventually("the link to be up", is_up);
    }
    drop(serving);
    assert_eq!(beside.boot_id(), boot_id);
    assert!(!has(&beside, "hung"), "{:?}", kinds(&beside));
    beside.bed.must(&["stop", "web"]);
    assert_eq!(beside.bed.view("web")["last_end"], "powered-off");
    beside.nothing_is_left_but(&[]);
}

/// A stream of the demo's application that never ends, read here.
struct Streaming {
    child: Child,
    read: u32,
}

impl Streaming {
    fn of(beside: &Beside, target: &str) -> Self {
        let mut connect = beside.bed.tombolo_command(&["connect", target]);
        let child = connect.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        Self { child, read: 0 }
    }

    /// Reads so many bytes, which are those that follow.
    fn read(&mut self, count: usize) {
        let mut bytes = vec![0; count];
        self.child.stdout.as_mut().unwrap().read_exact(&mut bytes).unwrap();
        let next = self.read + count as u32;
        let pattern = (self.read..next).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8);
        assert!(pattern.eq(bytes), "other bytes came after {}", self.read);
        self.read = next;
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The demo's application, running on the host.
fn on_the_host(beside: &Beside, words: &[&str]) -> Attached {
    attached_to(beside, &beside.bed.dir().join("run/broker.sock"), words)
}

/// The same, at the broker of an instance that is no kernel of its own, but shares memory.
fn near(beside: &Beside, words: &[&str]) -> Attached {
    attached_to(beside, &beside.bed.instance_dir("near").join("broker.sock"), words)
}

fn attached_to(beside: &Beside, broker: &Path, words: &[&str]) -> Attached {
    let mut app = Command::new(beside.bed.program("tombolo-demo-kv"));
    app.args(words).arg("--broker").arg(broker).stdin(Stdio::null());
    Attached::run(app)
}

fn serves(line: &str) -> bool {
    line.starts_with("serving kv")
}

pub(super) fn applications_in_kernels_without_shared_memory_talk_to_each_other_and_to_the_host() {
    let Some(beside) = boot(&[]) else { return };
    beside.boot_as("db", &["--restart", "never"]);
    let mut serving = beside.bed.attach(&["exec", "db", "--", "/bin/app", "serve"]);
    serving.line("service", serves);
    let mut on_host = on_the_host(&beside, &["serve"]);
    on_host.line("service", serves);

    // From the host to a kernel, and back.
    let said = on_the_host(&beside, &["try", "db/kv"]).finish();
    assert_eq!(said.code, 0, "{said:?}");
    beside.bed.must(&["exec", "web", "--", "/bin/app", "try", "host/kv"]);
    Streaming::of(&beside, "db/kv-bytes").read(MANY_BYTES);

    // From one kernel to the other, once a rule lets it.
    let attempt = ["exec", "web", "--", "/bin/app", "try", "db/kv"];
    let said = beside.bed.tombolo(&attempt);
    assert!(said.code != 0 && said.stderr.contains("denied by policy"), "{said:?}");
    beside.bed.must(&["policy", "allow", "web", "db:kv"]);
    eventually("the rule is in force", || beside.bed.tombolo(&attempt).code == 0);

    // Between one that shares memory and one that does not.
    beside.bed.must(&["up", "near", "--spawner", "process"]);
    let mut serving_near = near(&beside, &["serve"]);
    serving_near.line("service", serves);
    beside.bed.must(&["policy", "allow", "near", "db:kv"]);
    beside.bed.must(&["policy", "allow", "web", "near:kv"]);
    eventually("the rule is in force", || near(&beside, &["try", "db/kv"]).finish().code == 0);
    let attempt = ["exec", "web", "--", "/bin/app", "try", "near/kv"];
    eventually("the rule is in force", || beside.bed.tombolo(&attempt).code == 0);

    // A kernel that dies is a reset in the other.
    let mut watching = beside.bed.attach(&["exec", "web", "--", "/bin/app", "watch", "db/kv"]);
    watching.line("call", |line| line.contains("\"alive\""));
    beside.bed.must(&["kill", "db"]);
    let failed = watching.line("failure", |line| line.contains("\"failed\""));
    assert!(failed.contains("reset"), "{failed}");
    drop((watching, serving, on_host, serving_near));
    beside.nothing_is_left_but(&[]);
}

/// Behaviours of the conformance suite that are over soon at the speed of a terminal line: ends in order, a full window, long messages, reads that are given up.
const BEHAVIOURS: [&str; 4] = ["half_close", "never_re", "longest_message", "dropped_read"];

pub(super) fn behaviours_of_connections_hold_over_a_link_that_is_cut_while_they_are_put_to_the_test() {
    let Some(beside) = Beside::without_shared_memory() else { return };
    let program = prerequisites::static_program("tombolo-conformance").expect("the programs are built");
    let file = format!("{}:/bin/conformance", program.display());
    let peer = ["--", "/bin/conformance", "peer", "shm", "/run/tombolo/broker.sock"];
    let up = ["up", "web", "--memory", "160", "--restart", "never", "--file", &file];
    beside.bed.must(&[&up[..], &peer].concat());
    let view = beside.bed.view("web");
    let (cid, boots) = (view["cid"].to_string(), view["boots"].clone());
    let broker = beside.bed.dir().join("run/broker.sock");
    for behaviour in BEHAVIOURS {
        let mut suite = Command::new(&program);
        suite.args(["between", "shm"]).arg(&broker).args([&cid, "--filter", behaviour]).stdin(Stdio::null());
        let mut suite = Attached::run(suite);
        suite.line("verdict on the first direction", |line| line.starts_with("ok"));
        // In the middle of the other one.
        beside.stand_in.control(&["cut", "web"]);
        let said = suite.finish();
        assert!(said.code == 0 && said.stdout.contains(" 0 failed, 0 skipped"), "{behaviour}: {said:?}");
    }
    let view = beside.bed.view("web");
    assert_eq!((&view["state"], &view["boots"]), (&"running".into(), &boots));
    beside.nothing_is_left_but(&[]);
}

pub(super) fn panic_without_shared_memory_is_told_apart_and_restarted() {
    let Some(beside) = boot(&["--restart", "on-failure"]) else { return };
    let first = beside.bed.view("web");
    beside.bed.tombolo(&["exec", "web", "--", "/bin/app", "panic"]);
    let second = runs_again(&beside, &first);
    assert_eq!(second["last_end"], "panicked", "{second}");
    beside.bed.must(&["ping", "web"]);
    beside.nothing_is_left_but(&[]);
}

pub(super) fn hang_without_heartbeat_is_seen_by_two_witnesses_and_ended_by_force() {
    let Some(beside) = boot(&["--on-hang", "restart"]) else { return };
    let first = beside.bed.view("web");
    beside.stand_in.control(&["freeze", "web"]);
    let second = runs_again(&beside, &first);
    assert_ne!(second["boot_id"], first["boot_id"]);
    for wanted in ["hung", "fencing", "died"] {
        assert!(has(&beside, wanted), "{wanted}: {:?}", kinds(&beside));
    }
    let hung = |event: &Value| event["type"] == "health" && event["to"] == "hung";
    let events = beside.bed.events_since(0);
    let why = events.iter().find(|event| hung(event)).unwrap_or_else(|| panic!("{events:?}"));
    let why = why["why"].as_str().unwrap_or_default();
    assert!(why.contains("the kernel itself does not answer") && why.contains("shares no memory"), "{why}");
    beside.nothing_is_left_but(&[]);
}

pub(super) fn kernel_that_is_frozen_for_a_while_is_taken_up_again() {
    let Some(beside) = boot(&[]) else { return };
    let boot_id = beside.boot_id();
    beside.stand_in.control(&["freeze", "web"]);
    beside.bed.until("web", "hung", |view| view["state"] == "hung");
    beside.stand_in.control(&["thaw", "web"]);
    beside.bed.until("web", "running", |view| view["state"] == "running");
    assert_eq!(beside.boot_id(), boot_id);
    beside.nothing_is_left_but(&[]);
}

pub(super) fn user_space_that_stood_still_for_long_is_reached_again() {
    let Some(beside) = boot(&[]) else { return };
    let boot_id = beside.boot_id();
    // Long enough for what is said to it meanwhile to fill the terminal that nobody reads, unless that ends in time.
    let freeze = beside.bed.attach(&["exec", "-d", "web", "--", "/bin/app", "freeze-user-space", "20000"]);
    beside.bed.until("web", "known to be without user space", |view| view["health"] == "user-space-dead");
    freeze.finish();
    beside.bed.until("web", "running", |view| view["state"] == "running" && view["health"] == "ready");
    beside.bed.must(&["ping", "web"]);
    assert_eq!(beside.boot_id(), boot_id);
    beside.nothing_is_left_but(&[]);
}

pub(super) fn dead_user_space_without_heartbeat_is_told_from_a_hang() {
    let Some(beside) = boot(&[]) else { return };
    let boot_id = beside.boot_id();
    let freeze = beside.bed.attach(&["exec", "-d", "web", "--", "/bin/app", "freeze-user-space", "6000"]);
    beside.bed.until("web", "known to be without user space", |view| view["health"] == "user-space-dead");
    assert_eq!(freeze.finish().code, 0, "the call outlives the silence");
    beside.bed.until("web", "running", |view| view["state"] == "running" && view["health"] == "ready");
    assert_eq!(beside.boot_id(), boot_id);
    assert!(!has(&beside, "hung"), "{:?}", kinds(&beside));
    beside.nothing_is_left_but(&[]);
}
