//! Copies that break off, and go on where they stopped when the same command is given again.

use std::fs;
use std::path::{Path, PathBuf};

use tombolo_tests::attached::Attached;
use tombolo_tests::bed::{Bed, eventually, send_signal};

/// Large enough to be caught under way.
const LEN: u64 = 192 << 20;
/// What must have arrived before it is interrupted.
const BEGUN: u64 = 2 << 20;

/// A file whose every MiB differs.
fn large_file(bed: &Bed, name: &str) -> PathBuf {
    let path = bed.dir().join(name);
    let file = fs::File::create(&path).unwrap();
    file.set_len(LEN).unwrap();
    for at in (0..LEN).step_by(1 << 20) {
        std::os::unix::fs::FileExt::write_all_at(&file, &at.to_le_bytes(), at).unwrap();
    }
    path
}

/// The longest file in a folder with this in its name: what has arrived so far.
fn arrived(folder: &Path, part: &str) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let partials = entries.filter(|entry| entry.file_name().to_string_lossy().contains(part));
    partials.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).max().unwrap_or(0)
}

/// A copy out of `web` into a folder of its own.
struct Out {
    source: PathBuf,
    folder: PathBuf,
    target: PathBuf,
    args: [String; 3],
}

impl Out {
    fn of(bed: &Bed) -> Self {
        let (source, folder) = (large_file(bed, "source"), bed.dir().join("outside"));
        fs::create_dir(&folder).unwrap();
        let target = folder.join("copy");
        let args = ["cp".to_owned(), format!("web:{}", source.display()), target.display().to_string()];
        Self { source, folder, target, args }
    }

    fn args(&self) -> [&str; 3] {
        self.args.each_ref().map(String::as_str)
    }
}

fn under_way(bed: &Bed, args: &[&str], folder: &Path, already: u64) -> Attached {
    let copy = bed.attach(args);
    eventually("the copy to be under way", || arrived(folder, "partial") >= already + BEGUN);
    copy
}

fn assert_same(a: &Path, b: &Path) {
    let same = std::process::Command::new("cmp").args([a, b]).status().unwrap();
    assert!(same.success(), "{} and {} differ", a.display(), b.display());
}

/// Interrupts a copy by each signal in turn; then lets it end.
fn interrupted_and_resumed(bed: &Bed, args: &[&str], folder: &Path) {
    let mut already = 0;
    for (signal, code) in [("INT", 130), ("TERM", 143), ("KILL", -1)] {
        let copy = under_way(bed, args, folder, already);
        copy.signal(signal);
        let said = copy.finish();
        assert_eq!(said.code, code, "{said:?}");
        assert!(code < 0 || said.stderr.contains("goes on from here"), "{said:?}");
        already = arrived(folder, "partial");
    }
    let said = bed.must(&[&["--json"], args].concat()).json();
    assert!(said["copied"]["resumed_at"].as_u64() >= Some(BEGUN), "{said}");
    assert_eq!(said["copied"]["bytes"], LEN);
    assert_eq!(arrived(folder, "partial"), 0, "a partial file is left");
}

#[test]
fn copy_into_an_instance_goes_on_where_it_was_interrupted() {
    let bed = bed!(Bed::start("process"));
    bed.must(&["up", "web"]);
    let (source, folder) = (large_file(&bed, "source"), bed.dir().join("inside"));
    let target = folder.join("copy");
    let args = ["cp", &source.display().to_string(), &format!("web:{}", target.display())];
    interrupted_and_resumed(&bed, &args, &folder);
    assert_same(&source, &target);
    bed.nothing_is_left();
}

#[test]
fn copy_out_of_an_instance_goes_on_where_it_was_interrupted() {
    let bed = bed!(Bed::start("process"));
    bed.must(&["up", "web"]);
    let out = Out::of(&bed);
    interrupted_and_resumed(&bed, &out.args(), &out.folder);
    assert_same(&out.source, &out.target);
    bed.nothing_is_left();
}

#[test]
fn copy_survives_the_death_of_the_kernel_and_of_the_daemon() {
    let mut bed = bed!(Bed::start("process"));
    bed.must(&["up", "web", "--restart", "never"]);
    let out = Out::of(&bed);

    let copy = under_way(&bed, &out.args(), &out.folder, 0);
    send_signal(bed.pid("web"), "KILL");
    let said = copy.finish();
    assert!(said.code == 6 && said.stderr.contains("the same command goes on from there"), "{said:?}");
    bed.until("web", "failed", |view| view["state"] == "failed");
    bed.must(&["start", "web"]);

    let copy = under_way(&bed, &out.args(), &out.folder, arrived(&out.folder, "partial"));
    bed.end_daemon("KILL");
    let said = copy.finish();
    assert!(said.code == 6 && said.stderr.contains("the same command goes on from there"), "{said:?}");
    bed.start_daemon();
    bed.must(&["wait", "web", "--for", "running"]);

    bed.must(&out.args());
    assert_same(&out.source, &out.target);
    bed.nothing_is_left();
}

#[test]
fn source_that_changed_in_between_is_copied_anew() {
    let bed = bed!(Bed::start("process"));
    bed.must(&["up", "web"]);
    let out = Out::of(&bed);
    let copy = under_way(&bed, &out.args(), &out.folder, 0);
    copy.signal("KILL");
    copy.finish();
    let file = fs::File::options().write(true).open(&out.source).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"changed", 3).unwrap();
    bed.must(&out.args());
    assert_same(&out.source, &out.target);
    bed.nothing_is_left();
}
