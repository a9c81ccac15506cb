//! A state folder without room: what needs room is refused, what ends something is not.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tombolo_tests::bed::{Bed, eventually};

#[test]
fn full_state_folder_refuses_changes_and_still_answers() {
    let bed = bed!(Bed::prepare("process"));
    let Some(mut daemon) = daemon_on_mount(&bed, "size=16k") else { return };
    eventually("a daemon that answers", || bed.tombolo(&["ps"]).code == 0);
    let said = bed.tombolo(&["create", "web"]);
    assert!(said.code != 0 && said.stderr.contains("free the disk"), "{said:?}");
    assert!(!bed.must(&["ps"]).stdout.contains("web"), "what was refused is not there");
    daemon.kill().unwrap();
    daemon.wait().unwrap();
}

#[test]
fn full_disk_keeps_nobody_from_stopping_a_kernel() {
    let bed = bed!(Bed::prepare("process"));
    let Some(mut daemon) = daemon_on_mount(&bed, "size=8m") else { return };
    eventually("a daemon that answers", || bed.tombolo(&["ps"]).code == 0);
    bed.must(&["up", "web", "--restart", "always"]);
    bed.must(&["up", "db"]);
    let disk = Disk::of(&bed);
    disk.fill();
    use_up_the_store(&bed);
    let refused = bed.tombolo(&["create", "mail"]);
    assert!(refused.code == 1 && refused.stderr.contains("free the disk"), "{refused:?}");

    bed.must(&["stop", "web"]);
    bed.must(&["kill", "db"]);
    assert_eq!((&bed.view("web")["state"], &bed.view("db")["state"]), (&"stopped".into(), &"stopped".into()));
    let kinds = kinds_of_events(&bed);
    assert!(kinds.contains(&"disk-reserve-used".into()), "{kinds:?}");
    disk.fill();
    let refused = bed.tombolo(&["start", "web"]);
    assert!(refused.code == 1 && refused.stderr.contains("kept for stopping"), "{refused:?}");
    let doctor = bed.tombolo(&["--json", "doctor"]);
    assert!(doctor.code == 1 && doctor.stdout.contains("kept for stopping"), "{doctor:?}");

    disk.empty();
    bed.must(&["start", "web"]);
    let kinds = kinds_of_events(&bed);
    assert!(kinds.contains(&"disk-reserve-restored".into()), "{kinds:?}");
    disk.fill();
    bed.must(&["down"]);
    daemon.wait().unwrap();
}

#[test]
fn where_nothing_can_be_recorded_a_stop_is_obeyed_and_that_is_said() {
    let bed = bed!(Bed::prepare("process"));
    let Some(mut daemon) = daemon_on_mount(&bed, "size=8m") else { return };
    eventually("a daemon that answers", || bed.tombolo(&["ps"]).code == 0);
    bed.must(&["up", "web"]);
    let disk = Disk::of(&bed);
    fs::remove_file(disk.folder.join("reserve")).unwrap();
    disk.fill();
    use_up_the_store(&bed);
    let said = bed.must(&["stop", "web"]);
    assert!(said.stderr.contains("a later daemon may not know"), "{said:?}");
    assert_eq!(bed.view("web")["state"], "stopped");
    assert_eq!(bed.tombolo(&["start", "web"]).code, 1);

    disk.empty();
    bed.must(&["start", "web"]);
    bed.must(&["down"]);
    daemon.wait().unwrap();
}

/// The store's file has pages to spare: uses them up, until nothing more can be recorded.
fn use_up_the_store(bed: &Bed) {
    let (mut port, mut refused) = (1, 0);
    while refused < 3 {
        refused = match bed.tombolo(&["policy", "allow", "web", &format!("db:{port}")]).code {
            0 => 0,
            _ => refused + 1,
        };
        port += 1;
    }
}

fn kinds_of_events(bed: &Bed) -> Vec<String> {
    bed.events_since(0).iter().filter_map(|event| event["type"].as_str().map(str::to_owned)).collect()
}

/// The disk of a daemon that has one of its own, seen through its process.
struct Disk {
    folder: PathBuf,
}

impl Disk {
    fn of(bed: &Bed) -> Self {
        let is_daemon =
            |command: &str| command.contains("tombolod --state-dir") && !command.contains("unshare");
        let processes = bed.processes();
        let (pid, _) = processes.iter().find(|(_, command)| is_daemon(command)).expect("no daemon runs");
        let state_dir = bed.state_dir();
        let inside = state_dir.strip_prefix("/").expect("an absolute path");
        Self { folder: PathBuf::from(format!("/proc/{pid}/root")).join(inside) }
    }

    /// Leaves no room for a single block; again, if some has become free.
    fn fill(&self) {
        let mut file =
            fs::File::options().create(true).append(true).open(self.folder.join("filler")).unwrap();
        while file.write_all(&[0x5a; 4096]).is_ok() {}
    }

    fn empty(&self) {
        fs::remove_file(self.folder.join("filler")).unwrap();
    }
}

/// A daemon whose state folder is a mount of its own, in a user namespace: that works without root, and binds root, too.
/// `None` where such mounts are not allowed.
pub(super) fn daemon_on_mount(bed: &Bed, options: &str) -> Option<Child> {
    let namespace = ["--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child"];
    fs::create_dir(bed.state_dir()).unwrap();
    let mount = format!("mount -t tmpfs -o {options} none {}", bed.state_dir().display());
    let probe = Command::new("unshare").args(namespace).args(["sh", "-c", &mount]).output();
    if !probe.is_ok_and(|probe| probe.status.success()) {
        eprintln!("SKIPPED: no mounts in a user namespace here");
        return None;
    }
    let log = fs::File::create(bed.dir().join("tombolod.log")).unwrap();
    let daemon = bed.daemon_command();
    let script = format!("{mount} && exec \"$@\"");
    let mut wrapped = Command::new("unshare");
    wrapped
        .args(namespace)
        .args(["sh", "-c", &script, "sh"])
        .arg(daemon.get_program())
        .args(daemon.get_args());
    Some(wrapped.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap())
}
