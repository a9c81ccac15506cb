//! The stand-in with real kernels: `tombolo-mksim run` runs this very program, which then is the tool.
//!
//! Needs root, /dev/fuse and a User-mode Linux kernel in TOMBOLO_UML_KERNEL; skipped without it, unless
//! TOMBOLO_REQUIRE_KERNELS=1.

mod sys;
mod tool;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Runs the test `name` of this program under `tombolo-mksim run`, or says why it cannot.
fn on_the_stand_in(name: &str, options: &[&str]) {
    if !has_kernel() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let status = command(name, dir.path(), options).status().unwrap();
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap_or_default();
    assert!(status.success(), "{name}: {status}\n{}\n{}", read("dmesg"), read("console.1"));
}

/// Whether the tests can run here; if not, they are skipped and say so, or fail if they were required.
fn has_kernel() -> bool {
    let missing = if std::env::var_os("TOMBOLO_UML_KERNEL").is_none() {
        "TOMBOLO_UML_KERNEL names no kernel"
    } else if !rustix::process::geteuid().is_root() {
        "mounts and filters of system calls need root"
    } else if !Path::new("/dev/fuse").exists() {
        "there is no /dev/fuse"
    } else {
        return true;
    };
    assert!(std::env::var_os("TOMBOLO_REQUIRE_KERNELS").is_none(), "required, but {missing}");
    eprintln!("skipped: {missing}");
    false
}

fn command(name: &str, dir: &Path, options: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tombolo-mksim"));
    command
        .args(["run", "--dir"])
        .arg(dir)
        .args(options)
        .arg("--")
        .arg(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", name, "--nocapture"])
        .env("MKSIM_DIR", dir)
        .env("MKSIM", env!("CARGO_BIN_EXE_tombolo-mksim"));
    command
}

/// Processes that have the folder among their arguments.
pub(crate) fn processes_of(dir: &Path) -> usize {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = all.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| String::from_utf8_lossy(line).contains(dir.to_str().unwrap())).count()
}

#[test]
fn instance_is_created_loaded_booted_and_powered_off() {
    on_the_stand_in("tool::life", &[]);
}

#[test]
fn kernel_that_hangs_stays_active_and_is_halted_by_force() {
    on_the_stand_in("tool::hang", &["--clock-speed", "20"]);
}

#[test]
fn kernel_that_panics_is_loaded() {
    on_the_stand_in("tool::panic", &[]);
}

#[test]
fn writes_to_a_full_ring_fail_and_lose_nothing() {
    on_the_stand_in("tool::full_ring", &["--see-writes"]);
}

#[test]
fn heap_memory_is_shared_with_a_kernel() {
    on_the_stand_in("tool::heap", &[]);
}

#[test]
fn host_cannot_be_rebooted() {
    on_the_stand_in("tool::host_reboot", &[]);
}

#[test]
fn files_answer_as_the_kernels_do() {
    on_the_stand_in("tool::files", &[]);
}

#[test]
fn reader_of_a_silent_console_can_be_killed() {
    on_the_stand_in("tool::reader", &[]);
}

#[test]
fn command_gets_signals_though_the_stand_in_blocks_them() {
    if !has_kernel() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut run = Command::new(env!("CARGO_BIN_EXE_tombolo-mksim"));
    run.args(["run", "--dir"]).arg(dir.path()).args(["--", "sh", "-c", "kill -TERM $$; sleep 1"]);
    assert_eq!(run.status().unwrap().code(), Some(128 + 15));
}

#[test]
fn nothing_is_left_of_a_stand_in_that_was_killed() {
    if !has_kernel() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut run = command("tool::linger", dir.path(), &[]).spawn().unwrap();
    let wait = |what: &str, is_so: &dyn Fn() -> bool| {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !is_so() {
            assert!(Instant::now() < deadline, "waited for {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    wait("the kernel to run", &|| dir.path().join("ready").exists());
    assert!(processes_of(dir.path()) > 3);
    run.kill().unwrap();
    run.wait().unwrap();
    wait("all processes to go", &|| processes_of(dir.path()) == 0);
}
