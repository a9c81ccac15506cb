//! What is said of a boot: the console from its first byte on, and nothing secret anywhere.

use std::fs;

use tombolo_agent::config::{AgentConfig, DEFAULT_PATH};

use super::Beside;

/// What the kernel of `web` wrote to its console, as the stand-in noted it itself.
fn written(beside: &Beside) -> Vec<u8> {
    let number = beside.bed.view("web")["cid"].clone();
    fs::read(beside.stand_in.dir().join(format!("console.{number}"))).unwrap()
}

/// What was recorded of it.
fn recorded(beside: &Beside) -> Vec<u8> {
    fs::read(beside.bed.instance_dir("web").join("console.log")).unwrap()
}

fn has(text: &[u8], wanted: &[u8]) -> bool {
    text.windows(wanted.len()).any(|window| window == wanted)
}

pub(super) fn console_is_recorded_from_the_first_byte_that_the_kernel_writes() {
    let Some(beside) = Beside::with_pool() else { return };
    // The kernel's own first words are not shown otherwise.
    beside.boot(&["--kernel-arg", "loglevel=7"]);
    let written = written(&beside);
    let first_line = written.split_inclusive(|byte| *byte == b'\n').next().unwrap();
    assert!(has(&written, b"Linux version "), "{}", String::from_utf8_lossy(&written));
    let banner = written.windows(14).position(|window| window == b"Linux version ").unwrap();
    let end = banner + written[banner..].iter().position(|byte| *byte == b'\n').unwrap();
    let recorded = recorded(&beside);
    assert!(!first_line.trim_ascii().is_empty());
    assert!(recorded.starts_with(&written[..=end]), "{}", String::from_utf8_lossy(&recorded));
    let shown = beside.bed.must(&["logs", "--console", "web"]).stdout;
    assert!(shown.contains("Linux version "), "{shown}");
    beside.nothing_is_left_but(&[]);
}

/// What the agent of `web` was told, in the archive that was loaded with its kernel.
fn config(beside: &Beside) -> AgentConfig {
    let number = beside.bed.view("web")["cid"].clone();
    let archive = fs::read(beside.stand_in.dir().join(format!("kernels/{number}/initrd"))).unwrap();
    let name = format!("{}\0", DEFAULT_PATH.trim_start_matches('/'));
    let at = archive.windows(name.len()).rposition(|window| window == name.as_bytes()).unwrap();
    let content = &archive[at + name.len()..];
    let from = content.iter().position(|byte| *byte != 0).unwrap();
    let document = serde_json::Deserializer::from_slice(&content[from..]).into_iter().next();
    document.unwrap().unwrap()
}

pub(super) fn secret_of_a_boot_is_in_no_log_and_on_no_command_line() {
    let Some(beside) = Beside::with_pool() else { return };
    beside.boot(&[]);
    let config = config(&beside);
    assert_eq!(config.name, "web");
    let raw = config.secret.0.0;
    let digits = config.secret.0.to_string();
    let line = beside.bed.dir().join("cmdline");
    beside.bed.must(&["cp", "web:/proc/cmdline", line.to_str().unwrap()]);
    let line = fs::read(line).unwrap();
    let log = beside.stand_in.log();
    // Where it would be: the host's log has the whole command line.
    assert!(has(&line, b"tombolo.name=web") && log.contains("tombolo.name=web"), "{log}");
    let overlays = fs::read_dir("/sys/fs/multikernel/overlays").unwrap();
    let overlays = overlays.filter_map(|entry| fs::read(entry.unwrap().path().join("dtbo")).ok());
    let overlays: Vec<u8> = overlays.flatten().collect();
    for (what, text) in [
        ("the log of the host's kernel", log.as_bytes()),
        ("the command line", &line),
        ("the console", &recorded(&beside)),
        ("all that the kernel wrote", &written(&beside)),
        ("what the kernel was asked", &overlays),
        ("the log of the daemon", beside.bed.daemon_log().as_bytes()),
        ("the log of the agent", beside.bed.must(&["logs", "web"]).stdout.as_bytes()),
    ] {
        assert!(!text.is_empty(), "there is nothing of {what}");
        assert!(!has(text, digits.as_bytes()) && !has(text, &raw), "it is in {what}");
    }
    beside.nothing_is_left_but(&[]);
}
