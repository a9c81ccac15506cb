//! The kernel's file system is unmounted while a kernel runs: nothing is there to be read, and nothing follows from that.

use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, mount_bind, unmount};
use tombolo_tests::bed::eventually;

use super::Beside;

const ROOT: &str = "/sys/fs/multikernel";

/// Where the stand-in's own file system has it.
fn tree(beside: &Beside) -> PathBuf {
    beside.stand_in.dir().join("mnt/multikernel")
}

pub(super) fn kernel_runs_on_while_its_file_system_is_unmounted() {
    let Some(mut beside) = Beside::with_pool() else { return };
    beside.boot(&["--restart", "on-failure"]);
    let (boot_id, before) = (beside.boot_id(), beside.bed.view("web"));
    let is_as_before = |beside: &Beside| {
        beside.bed.must(&["ping", "web"]);
        let view = beside.bed.view("web");
        assert_eq!((&view["state"], &view["boots"]), (&before["state"], &before["boots"]), "{view}");
        assert_eq!(beside.boot_id(), boot_id);
    };
    // Whoever looks after it says what it sees, once.
    let tells = |beside: &Beside| {
        let console = std::fs::read(beside.bed.instance_dir("web").join("console.log")).unwrap();
        String::from_utf8_lossy(&console).matches("could not read instances").count()
    };

    // As `umount -l` does it.
    unmount(ROOT, UnmountFlags::DETACH).unwrap();
    assert!(!Path::new(ROOT).join("instances").exists());
    eventually("the keeper to have looked", || tells(&beside) > 0);
    is_as_before(&beside);
    let said = beside.bed.tombolo(&["multikernel", "show"]);
    assert!(said.code != 0 && said.stderr.contains(&format!("mounted at {ROOT}")), "{said:?}");
    let said = beside.bed.tombolo(&["doctor"]);
    assert!(said.stdout.contains(&format!("mount -t multikernel none {ROOT}")), "{said:?}");
    // It is known to be there, and so it is not made again, nor by the next daemon.
    beside.bed.end_daemon("KILL");
    beside.bed.start_daemon();
    beside.bed.must(&["wait", "web", "--for", "running"]);
    is_as_before(&beside);

    mount_bind(tree(&beside), ROOT).unwrap();
    assert_eq!(beside.stand_in.instances(), ["web"]);
    is_as_before(&beside);
    assert_eq!(tells(&beside), 1, "it is said once");
    beside.bed.must(&["multikernel", "show"]);
    beside.bed.must(&["stop", "web"]);
    assert_eq!(beside.bed.view("web")["last_end"], "powered-off");
    assert!(beside.stand_in.instances().is_empty(), "what it had is given back");
    beside.nothing_is_left_but(&[]);
}

pub(super) fn kernel_that_ends_while_its_file_system_is_unmounted_is_seen_ended_once_that_is_back() {
    let Some(beside) = Beside::with_pool() else { return };
    beside.boot(&["--restart", "never"]);
    unmount(ROOT, UnmountFlags::DETACH).unwrap();
    beside.stand_in.control(&["panic", "web"]);
    // The kernel has told of its end; only nobody can read it. It is silent, and no more is known.
    let has_ended = || beside.stand_in.control(&["show"]).contains("\"state\": \"loaded\"");
    eventually("the end of the kernel", has_ended);
    let view = beside.bed.until("web", "silent", |view| view["state"] == "hung");
    assert!(view["last_end"].is_null(), "{view}");
    mount_bind(tree(&beside), ROOT).unwrap();
    let ended = beside.bed.until("web", "ended", |view| view["last_end"] == "panicked");
    assert_eq!(ended["boots"], 1, "{ended}");
    eventually("what it had to be given back", || beside.stand_in.instances().is_empty());
    beside.nothing_is_left_but(&[]);
}
