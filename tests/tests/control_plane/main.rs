//! The control plane as its users meet it: what goes wrong is said, nothing is lost, nothing is left behind.
//!
//! On processes where a kernel makes no difference; `on_real_kernels.rs` has what needs kernels.

use std::fs;

use tombolo_tests::bed::Bed;

/// `return` if the bed cannot be had (which was said).
macro_rules! bed {
    ($start:expr) => {
        match $start {
            Some(bed) => bed,
            None => return,
        }
    };
}

mod command_line;
mod copies;
mod full_disk;
mod impostors;
mod killed_midway;
mod layers;
mod slow_readers;

#[test]
fn without_a_daemon_one_is_told_how_to_start_it() {
    let bed = bed!(Bed::prepare("process"));
    let said = bed.tombolo(&["ps"]);
    assert_eq!(said.code, 8, "{said:?}");
    assert!(said.stderr.contains("tombolod"), "{said:?}");
}

#[test]
fn second_daemon_on_one_state_folder_is_refused() {
    let bed = bed!(Bed::start("process"));
    let second = bed.daemon_command().output().unwrap();
    assert_eq!(second.status.code(), Some(4), "{second:?}");
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(said.contains(&bed.state_dir().display().to_string()), "{said}");
    bed.must(&["ps"]);
    bed.nothing_is_left();
}

#[test]
fn unknown_instance_and_bad_usage_have_their_exit_codes() {
    let bed = bed!(Bed::start("process"));
    for args in [["inspect", "nobody"], ["start", "nobody"], ["stop", "nobody"], ["rm", "nobody"]] {
        let said = bed.tombolo(&args);
        assert_eq!(said.code, 3, "{args:?}: {said:?}");
        assert!(said.stderr.contains("nobody"), "{said:?}");
    }
    assert_eq!(bed.tombolo(&["inspect"]).code, 2);
    assert_eq!(bed.tombolo(&["inspect", "NOT A NAME"]).code, 2);
    bed.must(&["create", "web"]);
    assert_eq!(bed.tombolo(&["create", "web", "--memory", "128"]).code, 4, "another instance of that name");
    bed.nothing_is_left();
}

#[test]
fn exec_of_a_missing_program_says_so() {
    let bed = bed!(Bed::start("process"));
    bed.must(&["up", "web"]);
    let said = bed.tombolo(&["exec", "web", "--", "/no/such/program"]);
    assert!(said.code != 0, "{said:?}");
    assert!(said.stderr.contains("/no/such/program"), "{said:?}");
    let said = bed.tombolo(&["exec", "web", "--", "sh", "-c", "exit 7"]);
    assert_eq!(said.code, 7, "the program's own exit code: {said:?}");
    bed.nothing_is_left();
}

#[test]
fn image_that_is_no_kernel_is_refused_and_nothing_is_left() {
    let bed = bed!(Bed::start("process"));
    bed.must(&["create", "web", "--spawner", "uml", "--image", "/bin/true", "--restart", "never"]);
    let said = bed.tombolo(&["start", "web"]);
    assert!(said.code != 0, "{said:?}");
    let view = bed.until("web", "failed", |view| view["state"] == "failed");
    let error = view["last_error"].as_str().unwrap_or_default();
    assert!(error.contains("/bin/true"), "{view}");
    bed.must(&["rm", "web"]);
    bed.nothing_is_left();
}

#[test]
fn read_only_state_folder_is_refused_with_the_reason() {
    let bed = bed!(Bed::prepare("process"));
    let Some(mut daemon) = full_disk::daemon_on_mount(&bed, "ro") else { return };
    let ended = daemon.wait().unwrap();
    assert!(!ended.success(), "{ended}");
    let said = bed.daemon_log();
    assert!(said.contains("ead-only"), "{said}");
    assert!(said.contains(&bed.state_dir().display().to_string()), "{said}");
}

#[test]
fn damaged_pool_is_replaced_when_no_kernel_uses_it() {
    let mut bed = bed!(Bed::start("process"));
    bed.must(&["up", "web"]);
    bed.must(&["stop", "web"]);
    let pool = tombolo_control::paths::pool(&bed.state_dir());
    for (what, damage) in [("truncated", 4096_usize), ("overwritten", 0)] {
        bed.end_daemon("KILL");
        let file = fs::File::options().read(true).write(true).open(&pool).unwrap();
        if damage > 0 {
            file.set_len(damage as u64).unwrap();
        } else {
            std::os::unix::fs::FileExt::write_all_at(&file, &[0x5a; 4096], 0).unwrap();
        }
        bed.start_daemon();
        bed.must(&["start", "web"]);
        assert_eq!(bed.must(&["exec", "web", "--", "echo", what]).stdout.trim(), what);
        bed.must(&["stop", "web"]);
    }
    bed.nothing_is_left();
}

#[test]
fn program_that_ignores_sigterm_is_stopped_by_force_after_its_grace() {
    let bed = bed!(Bed::start("process"));
    bed.must(&["up", "web", "--", "/bin/sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"]);
    bed.must(&["stop", "web", "--grace", "1s"]);
    assert_eq!(bed.view("web")["state"], "stopped");
    bed.nothing_is_left();
}
