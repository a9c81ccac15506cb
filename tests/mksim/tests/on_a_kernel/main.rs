//! The stand-in with real kernels: `tombolo-mksim run` runs this very program, which then is the tool.
//!
//! Needs root, /dev/fuse and a User-mode Linux kernel in TOMBOLO_UML_KERNEL; skipped without it, unless
//! TOMBOLO_REQUIRE_KERNELS=1.

mod sys;
mod tool;

use std::process::Command;

/// Runs the test `name` of this program under `tombolo-mksim run`, or says why it cannot.
fn on_the_stand_in(name: &str, options: &[&str]) {
    if std::env::var_os("TOMBOLO_UML_KERNEL").is_none() {
        assert!(
            std::env::var_os("TOMBOLO_REQUIRE_KERNELS").is_none(),
            "TOMBOLO_REQUIRE_KERNELS is set and TOMBOLO_UML_KERNEL is not"
        );
        eprintln!("skipped: TOMBOLO_UML_KERNEL names no kernel");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let status = Command::new(env!("CARGO_BIN_EXE_tombolo-mksim"))
        .args(["run", "--dir"])
        .arg(dir.path())
        .args(options)
        .arg("--")
        .arg(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", name, "--nocapture"])
        .env("MKSIM_DIR", dir.path())
        .env("MKSIM", env!("CARGO_BIN_EXE_tombolo-mksim"))
        .status()
        .unwrap();
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap_or_default();
    assert!(status.success(), "{name}: {status}\n{}\n{}", read("dmesg"), read("console.1"));
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
fn heap_memory_is_shared_with_a_kernel() {
    on_the_stand_in("tool::heap", &[]);
}

#[test]
fn host_cannot_be_rebooted() {
    on_the_stand_in("tool::host_reboot", &[]);
}
