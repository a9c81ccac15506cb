//! The command line as a stranger meets it.

use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::Instant;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::Value;
use tombolo_tests::bed::{Bed, Said};
use tombolo_tests::wait::LONG;

/// The JSON documents on the lines of what was printed.
fn documents(said: &Said) -> Vec<Value> {
    let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    said.stdout.lines().map(parse).collect()
}

#[test]
fn every_command_prints_json_when_asked() {
    let bed = bed!(Bed::start("process"));
    let file = bed.dir().join("file");
    std::fs::write(&file, "content").unwrap();
    let file = file.display().to_string();
    let (there, back) = (format!("web:{file}.there"), format!("{file}.back"));
    // What a document holds besides its version, or the type of the items.
    for (args, key) in [
        (&["create", "web"][..], "instance"),
        (&["start", "web"], "instance"),
        (&["restart", "web"], "instance"),
        (&["wait", "web", "--for", "running"], "instance"),
        (&["ps"], "instances"),
        (&["inspect", "web"], "instance"),
        (&["exec", "web", "--", "echo", "hi"], "type"),
        (&["exec", "-d", "web", "--", "sleep", "0.01"], "job"),
        (&["jobs", "web"], "jobs"),
        (&["cp", &file, &there], "copied"),
        (&["cp", &there, &back], "copied"),
        (&["logs", "web"], "type"),
        (&["ping", "web", "-c", "3"], "ping"),
        (&["bench", "web", "--time", "400ms"], "bench"),
        (&["events"], "type"),
        (&["top", "-n", "1"], "instances"),
        (&["policy", "allow", "web", "db:1"], "rule"),
        (&["policy", "ls"], "rules"),
        (&["policy", "rm", "web", "db:1"], "rule"),
        (&["version"], "version"),
        (&["stop", "web"], "instance"),
        (&["up", "web"], "instance"),
        (&["kill", "web"], "instance"),
        (&["rm", "web"], "removed"),
        (&["doctor"], "doctor"),
    ] {
        let said = bed.must(&[&["--json"], args].concat());
        let documents = documents(&said);
        assert!(!documents.is_empty(), "{args:?} printed nothing");
        for document in &documents {
            assert!(document.get(key).is_some(), "{args:?} has no `{key}`: {document}");
            let is_item = document.get("type").is_some() || document.get("at_unix_ns").is_some();
            assert!(is_item || document["schema_version"] == 1, "{args:?}: {document}");
        }
    }
    let error = bed.tombolo(&["--json", "inspect", "nobody"]);
    let told: Value = serde_json::from_str(&error.stderr).unwrap();
    assert_eq!((&told["exit_code"], error.stdout.as_str()), (&Value::from(3), ""));
    bed.nothing_is_left();
}

#[test]
fn wrong_arguments_are_a_usage_error_that_names_them() {
    let bed = bed!(Bed::prepare("process"));
    for args in [
        &["start"][..],
        &["dance"],
        &["create", "web", "--memory", "much"],
        &["create", "web", "--restart", "sometimes"],
        &["stop", "web", "--grace", "soon"],
        &["exec", "web"],
        &["cp", "a", "b"],
        &["cp", "web:/a", "db:/b"],
        &["cp", "web:relative", "b"],
        &["ping", "web", "-c", "0"],
        &["bench", "web", "--time", "long"],
        &["events", "--since", "yesterday"],
        &["forward", "1"],
        &["forward", "65536", "web:1"],
        &["connect", "web:99999999999"],
        &["connect", "nowhere"],
        &["wait", "web", "--for", "godot"],
        &["policy", "allow", "web"],
        &["policy", "allow", "WEB", "db:1"],
        &["logs", "web", "--cursor", "1"],
        &["completions", "tcsh"],
        &["--timeout", "never", "ps"],
    ] {
        let said = bed.tombolo(args);
        assert_eq!(said.code, 2, "{args:?}: {said:?}");
        assert!(!said.stderr.is_empty() && said.stdout.is_empty(), "{args:?}: {said:?}");
    }
}

#[test]
fn every_command_says_how_to_start_a_daemon_that_does_not_run() {
    let bed = bed!(Bed::prepare("process"));
    let file = bed.dir().join("file");
    std::fs::write(&file, "content").unwrap();
    let file = file.display().to_string();
    for args in [
        &["up", "web"][..],
        &["create", "web"],
        &["start", "web"],
        &["stop", "web"],
        &["kill", "web"],
        &["restart", "web"],
        &["rm", "web"],
        &["ps"],
        &["inspect", "web"],
        &["exec", "web", "--", "true"],
        &["jobs", "web"],
        &["cp", &file, "web:/file"],
        &["cp", "web:/file", &file],
        &["logs", "-f", "web"],
        &["console", "web"],
        &["ping", "web"],
        &["bench", "web"],
        &["events", "-f"],
        &["top"],
        &["forward", "0", "web:1"],
        &["connect", "web:1"],
        &["connect", "3:1"],
        &["connect", "web/kv"],
        &["wait", "web"],
        &["policy", "ls"],
        &["policy", "allow", "web", "db:1"],
        &["down"],
    ] {
        let said = bed.tombolo(args);
        assert_eq!(said.code, 8, "{args:?}: {said:?}");
        assert!(said.stderr.contains("start it with:  tombolod"), "{args:?}: {said:?}");
    }
    let doctor = bed.tombolo(&["doctor"]);
    assert!(doctor.stdout.contains("start it with:  tombolod"), "{doctor:?}");
    assert!(bed.must(&["version"]).stdout.contains("not running"));
}

#[test]
fn ports_that_are_taken_or_refused_are_told() {
    let bed = bed!(Bed::start("process"));
    bed.must(&["up", "web"]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let said = bed.tombolo(&["forward", &port, "web:tcp:1"]);
    assert!(said.code == 4 && said.stderr.contains("in use"), "{said:?}");
    let said = bed.tombolo(&["connect", "web:9"]);
    assert!(said.code == 1 && said.stderr.contains("nobody listens"), "{said:?}");
    let said = bed.tombolo(&["connect", "web/nothing"]);
    assert!(said.code == 3 && said.stderr.contains("nothing"), "{said:?}");
    bed.nothing_is_left();
}

#[test]
fn events_are_resumed_by_their_number() {
    let bed = bed!(Bed::start("process"));
    bed.must(&["create", "web"]);
    bed.must(&["policy", "allow", "web", "db:1"]);
    let mut first = bed.attach(&["--json", "events", "-f"]);
    let seq = |line: &str| serde_json::from_str::<Value>(line).unwrap()["seq"].as_u64().unwrap();
    let third = seq(&first.line("third event", |line| seq(line) == 3));
    first.signal("KILL");
    first.finish();
    bed.must(&["policy", "rm", "web", "db:1"]);
    let mut second = bed.attach(&["--json", "events", "-f", "--since", &third.to_string()]);
    for expected in third + 1..=bed.last_event() {
        assert_eq!(seq(&second.line("event", |_| true)), expected);
    }
    // And it goes on with what comes.
    bed.must(&["create", "db"]);
    second.line("creation", |line| line.contains("\"created\"") && line.contains("\"db\""));
    second.signal("INT");
    assert_eq!(second.finish().code, 130);
    bed.nothing_is_left();
}

#[test]
fn completions_are_accepted_by_their_shells() {
    let bed = bed!(Bed::prepare("process"));
    for (shell, load) in [
        ("bash", "source \"$1\" && complete -p tombolo"),
        ("zsh", "autoload -U compinit && compinit -D && source \"$1\" && [[ -n ${_comps[tombolo]} ]]"),
        ("fish", "source \"$argv[2]\" && complete -C'tombolo ' | string match -q 'exec*'"),
    ] {
        let path = bed.dir().join(shell);
        std::fs::write(&path, bed.must(&["completions", shell]).stdout).unwrap();
        let mut command = Command::new(shell);
        match command.args(["-c", load, shell]).arg(&path).stdin(Stdio::null()).output() {
            Ok(output) => assert!(output.status.success(), "{shell}: {output:?}"),
            Err(_) => eprintln!("SKIPPED {shell}: it is not installed"),
        }
    }
}

/// A terminal, and a command that has it as its own.
struct Terminal {
    master: std::fs::File,
    child: std::process::Child,
    seen: String,
}

impl Terminal {
    fn run(command: &Command, rows: u16, cols: u16) -> Self {
        let master: OwnedFd = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        resize(&master, rows, cols);
        let slave = std::fs::File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        // `setsid --ctty` makes stdin the terminal that signals come from.
        let mut wrapped = Command::new("setsid");
        wrapped.args(["--ctty", "--wait"]).arg(command.get_program()).args(command.get_args());
        wrapped.stdin(slave.try_clone().unwrap()).stdout(slave.try_clone().unwrap()).stderr(slave);
        let child = wrapped.spawn().unwrap();
        Self { master: master.into(), child, seen: String::new() }
    }

    fn type_in(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    fn shows(&mut self, text: &str) {
        let start = Instant::now();
        let mut chunk = [0; 4096];
        while !self.seen.contains(text) {
            assert!(start.elapsed() < LONG, "no {text:?} in {:?}", self.seen);
            let read =
                self.master.read(&mut chunk).unwrap_or_else(|error| panic!("{error}: {:?}", self.seen));
            self.seen.push_str(&String::from_utf8_lossy(&chunk[..read]));
        }
        self.seen = self.seen.split_off(self.seen.find(text).unwrap_or(0) + text.len());
    }
}

fn resize(terminal: &impl std::os::fd::AsFd, rows: u16, cols: u16) {
    tcsetwinsize(terminal, Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
}

#[test]
fn terminal_inside_is_as_large_as_ours_and_ctrl_c_goes_inside() {
    let bed = bed!(Bed::start("process"));
    bed.must(&["up", "web"]);
    let mut terminal = Terminal::run(&bed.tombolo_command(&["exec", "-it", "web", "--", "sh", "-i"]), 31, 97);
    terminal.type_in("stty size; tty >/dev/null && echo is-a-$((1+1))-tty\n");
    terminal.shows("31 97");
    terminal.shows("is-a-2-tty");
    resize(&terminal.master, 40, 120);
    terminal.type_in("while [ \"$(stty size)\" != '40 120' ]; do sleep 0.05; done; echo resi''zed\n");
    terminal.shows("resized");
    terminal.type_in("echo go''ing; sleep 3600\n");
    terminal.shows("going");
    terminal.type_in("\x03");
    terminal.type_in("echo code-$?; exit 7\n");
    terminal.shows("code-130");
    let status = terminal.child.wait().unwrap();
    assert_eq!(status.code(), Some(7), "the program's exit code: {}", terminal.seen);
    bed.nothing_is_left();
}
