//! What runs on the stand-in. The tests here are ignored unless `main.rs` asks for one.

use std::fs::{self, File};
use std::io::{self, IoSlice, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use tombolo_mksim::dtb::{Op, baseline, overlay};

use crate::sys;

const ROOT: &str = "/sys/fs/multikernel";
/// What to wait for a kernel at most: much longer than it takes.
const PATIENCE: Duration = Duration::from_secs(60);

fn dir() -> PathBuf {
    PathBuf::from(std::env::var_os("MKSIM_DIR").unwrap())
}

fn control(words: &[&str]) -> String {
    let mut command = Command::new(std::env::var_os("MKSIM").unwrap());
    let output = command.args(["ctl", "--dir"]).arg(dir()).args(words).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(path)).unwrap().trim().to_owned()
}

/// Writes an overlay and gives what became of it.
fn apply(fragments: &[(&str, &[Op<'_>])]) -> String {
    let list = || -> Vec<String> {
        let entries = fs::read_dir(Path::new(ROOT).join("overlays")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let before = list();
    let blob = overlay(None, fragments);
    let mut file = File::options().write(true).open(Path::new(ROOT).join("overlays/new")).unwrap();
    assert_eq!(file.write(&blob).unwrap(), blob.len());
    let new = list().into_iter().find(|name| !before.contains(name)).unwrap();
    assert_eq!(fs::read(Path::new(ROOT).join("overlays").join(&new).join("dtbo")).unwrap(), blob);
    read(&format!("overlays/{new}/status"))
}

/// A pool, and an instance `web` with id 1.
fn create() {
    fs::write(Path::new(ROOT).join("device_tree"), baseline(&[2, 4, 6], &[(2 << 30, None)], &[])).unwrap();
    let create = Op::Create { name: "web", id: Some(1), memory_bytes: 64 << 20, cpus: &[2, 4] };
    assert_eq!(apply(&[("/instances", &[create])]), "applied");
    assert_eq!(read("instances/web/status"), "ready");
}

fn load() {
    let kernel = File::open(std::env::var_os("TOMBOLO_UML_KERNEL").unwrap()).unwrap();
    let initrd = initrd();
    sys::load(1, &kernel, &initrd, "console=mktty0 rdinit=/init quiet").unwrap();
    assert_eq!(read("instances/web/status"), "loaded");
}

/// An archive with the first program, and nothing else.
fn initrd() -> File {
    let init = dir().join("init");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/on_a_kernel/init.s");
    let mut cc = Command::new("cc");
    let status = cc.args(["-nostdlib", "-static", "-o"]).arg(&init).arg(source).status().unwrap();
    assert!(status.success(), "cc: {status}");
    let mut archive = Vec::new();
    for (name, mode, content) in [
        ("dev", 0o040_755, Vec::new()),
        ("init", 0o100_755, fs::read(&init).unwrap()),
        ("TRAILER!!!", 0, vec![]),
    ] {
        let header = [0, mode, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
        archive.extend_from_slice(b"070701");
        header.iter().for_each(|field| archive.extend_from_slice(format!("{field:08x}").as_bytes()));
        archive.extend_from_slice(name.as_bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend_from_slice(&content);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    let path = dir().join("initrd");
    fs::write(&path, archive).unwrap();
    File::open(path).unwrap()
}

/// The console of instance 1.
fn console() -> File {
    let mut console = File::options().read(true).write(true).open("/dev/mktty").unwrap();
    assert_eq!(console.read(&mut [0]).unwrap_err().raw_os_error(), Some(Errno::NOTCONN.raw_os_error()));
    assert_eq!(console.write(b"77").unwrap_err().raw_os_error(), Some(Errno::NODEV.raw_os_error()));
    console.write_all(b"1").unwrap();
    console
}

/// Reads until `wanted` was said.
fn expect(mut source: impl io::Read + std::os::fd::AsFd, wanted: &str) -> String {
    let deadline = Instant::now() + PATIENCE;
    let mut said = String::new();
    while !said.contains(wanted) {
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "waited for {wanted:?}, and heard {said:?}");
        let left = Timespec { tv_sec: left.as_secs().try_into().unwrap(), tv_nsec: 0 };
        let ready = poll(&mut [PollFd::new(&source, PollFlags::IN)], Some(&left)).unwrap();
        if ready > 0 {
            let mut buffer = [0; 4096];
            let count = source.read(&mut buffer).unwrap();
            said.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    }
    said
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited for: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn boot() -> File {
    let console = console();
    sys::reboot(sys::BOOT, 1).unwrap();
    assert_eq!(read("instances/web/status"), "active");
    expect(&console, "init is up");
    console
}

fn errno(result: io::Result<()>) -> Option<Errno> {
    result.err().and_then(|error| Some(Errno::from_raw_os_error(error.raw_os_error()?)))
}

/// Processes of the kernels that run: their image is in that folder.
fn processes() -> usize {
    crate::processes_of(&dir().join("kernels"))
}

#[test]
#[ignore = "run by instance_is_created_loaded_booted_and_powered_off"]
fn life() {
    create();
    assert_eq!(errno(sys::reboot(sys::BOOT, 1)), Some(Errno::INVAL));
    load();
    let link = UnixListener::bind(dir().join("link.1")).unwrap();
    let mut console = boot();
    let (mut peer, _) = link.accept().unwrap();
    expect(&peer, "link is up");
    console.write_all(b"hello\n").unwrap();
    // Its terminal says it, and then the first program.
    expect(&console, "hello\r\nhello\r\n");
    console.write_all(b"l\n").unwrap();
    peer.write_all(b"over the link\n").unwrap();
    expect(&console, "over the link\r\n");

    // A connection that is lost is dialled anew.
    drop(peer);
    let (mut peer, _) = link.accept().unwrap();
    console.write_all(b"l\n").unwrap();
    peer.write_all(b"once more\n").unwrap();
    expect(&console, "once more\r\n");

    // Whoever opened the console last gets what is said, as long as it is open.
    let mut later = self::console();
    later.write_all(b"to the later\n").unwrap();
    expect(&later, "to the later\r\nto the later\r\n");
    let mut nothing = [PollFd::new(&console, PollFlags::IN)];
    assert_eq!(poll(&mut nothing, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(0));
    drop(later);
    console.write_all(b"to the first\n").unwrap();
    assert!(!expect(&console, "to the first").contains("later"));

    assert_eq!(apply(&[("/instances/web", &[Op::CpuAdd(&[6])])]), "applied");
    assert_eq!(apply(&[("/instances/web", &[Op::CpuRemove(&[2])])]), "failed");
    assert!(fs::read_to_string("/proc/iomem").unwrap().contains(" : mk-instance-1-web-region-0\n"));

    console.write_all(b"q\n").unwrap();
    until("the halt notice", || read("instances/web/status") == "loaded");
    assert_eq!(processes(), 0);

    // The same load can be booted again, and halted without asking its user space.
    boot();
    sys::reboot(sys::HALT, 1).unwrap();
    assert_eq!(read("instances/web/status"), "loaded");
    assert_eq!(processes(), 0);
    sys::unload(1).unwrap();
    assert_eq!(read("instances/web/status"), "ready");
    assert_eq!(apply(&[("/instances", &[Op::Remove("web")])]), "applied");
}

#[test]
#[ignore = "run by kernel_that_hangs_stays_active_and_is_halted_by_force"]
fn hang() {
    create();
    load();
    let mut console = boot();
    control(&["freeze", "web"]);
    assert_eq!(read("instances/web/status"), "active");
    assert_eq!(errno(sys::reboot(sys::HALT, 1)), Some(Errno::TIMEDOUT));
    assert_eq!(read("instances/web/status"), "active");
    // While an overlay waits for the kernel, loads and boots find the lock taken.
    std::thread::scope(|scope| {
        let overlay = scope.spawn(|| apply(&[("/instances/web", &[Op::CpuAdd(&[6])])]));
        until("the lock to be taken", || errno(sys::unload(9)) == Some(Errno::BUSY));
        assert_eq!(overlay.join().unwrap(), "failed");
    });
    console.write_all(b"are you there\n").unwrap();
    // What it was asked meanwhile it does when it goes on: it halts.
    control(&["thaw", "web"]);
    until("the halt that was asked for before", || read("instances/web/status") == "loaded");
    assert_eq!(processes(), 0);
    let _console = boot();
    control(&["freeze", "web"]);
    sys::reboot(sys::FORCE_HALT, 1).unwrap();
    assert_eq!(read("instances/web/status"), "loaded");
    assert_eq!(processes(), 0);
}

#[test]
#[ignore = "run by kernel_that_panics_is_loaded"]
fn panic() {
    create();
    load();
    let console = boot();
    control(&["panic", "web"]);
    expect(&console, "Kernel panic - not syncing");
    until("the halt notice", || read("instances/web/status") == "loaded");
    assert_eq!(processes(), 0);
    assert!(control(&["show"]).contains("\"state\": \"loaded\""));
}

#[test]
#[ignore = "run by writes_to_a_full_ring_fail_and_lose_nothing"]
fn full_ring() {
    create();
    load();
    let link = UnixListener::bind(dir().join("link.1")).unwrap();
    let mut console = boot();
    let (mut peer, _) = link.accept().unwrap();
    expect(&peer, "link is up");
    peer.write_all(b"before, ").unwrap();
    control(&["full", "on", "web"]);
    let vectored = peer.write_vectored(&[IoSlice::new(b"never"), IoSlice::new(b"said")]);
    let sent = send(&peer, b"never said", SendFlags::empty()).map_err(io::Error::from);
    for result in [peer.write(b"never said"), vectored, sent] {
        assert_eq!(errno(result.map(drop)), Some(Errno::NOSPC));
    }
    // It looks as if there were room, and other files have some.
    let mut ends = [PollFd::new(&peer, PollFlags::OUT)];
    assert_eq!(poll(&mut ends, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1));
    fs::write(dir().join("other"), "written").unwrap();
    assert_eq!(control(&["refused", "web"]), "3\n");
    control(&["full", "off", "web"]);
    peer.write_all(b"and after\n").unwrap();
    console.write_all(b"l\n").unwrap();
    expect(&console, "before, and after\r\n");
    assert_eq!(control(&["refused", "web"]), "3\n");

    // The next kernel has a ring of its own.
    control(&["full", "on", "web"]);
    sys::reboot(sys::FORCE_HALT, 1).unwrap();
    let _console = self::boot();
    let (mut peer, _) = link.accept().unwrap();
    peer.write_all(b"there is room").unwrap();
}

#[test]
#[ignore = "run by heap_memory_is_shared_with_a_kernel"]
fn heap() {
    create();
    let heap = File::options().read(true).write(true).open("/dev/dma_heap/multikernel").unwrap();
    let memory = File::from(sys::allocate(&heap, 1 << 20).unwrap());
    memory.write_all_at(b"seen by both of us", 0).unwrap();
    assert!(fs::read_to_string("/proc/iomem").unwrap().contains(" : daxfs\n"));
    load();
    let mut console = boot();
    console.write_all(b"m\n").unwrap();
    expect(&console, "seen by both of");
    let mut start = [0; 8];
    until("the kernel to write", || {
        memory.read_exact_at(&mut start, 0).unwrap();
        &start == b"lkrn\0\0\0\0"
    });
    // A kernel has it still when nobody else does; after that it is the pool's again.
    drop(memory);
    std::thread::sleep(Duration::from_millis(300));
    let is_used = || fs::read_to_string("/proc/iomem").unwrap().contains(" : daxfs\n");
    assert!(is_used());
    sys::reboot(sys::FORCE_HALT, 1).unwrap();
    until("the buffer to be given back", || !is_used());
}

#[test]
#[ignore = "run by host_cannot_be_rebooted"]
fn host_reboot() {
    assert_eq!(errno(sys::reboot(libc::LINUX_REBOOT_CMD_RESTART as u32, 0)), Some(Errno::PERM));
    // Children have the filter too.
    let status = Command::new("sh").args(["-c", "exit 7"]).stdin(Stdio::null()).status().unwrap();
    assert_eq!(status.code(), Some(7));
}

#[test]
#[ignore = "run by files_answer_as_the_kernels_do"]
fn files() {
    create();
    let root = Path::new(ROOT);
    assert_eq!(errno(fs::create_dir(root.join("instances/db"))), Some(Errno::PERM));
    assert_eq!(errno(fs::remove_dir(root.join("instances/web"))), Some(Errno::PERM));
    assert_eq!(errno(File::open(root.join("overlays/new")).map(drop)), Some(Errno::ACCESS));
    let status = File::options().write(true).open(root.join("instances/web/status"));
    assert_eq!(errno(status.map(drop)), Some(Errno::ACCESS));

    // What is longer than a page is cut, and the rest is at the wrong offset.
    let long = overlay(None, &[("/instances/web", &[Op::CpuAdd(&[6; 200])])]);
    let mut new = File::options().write(true).truncate(true).open(root.join("overlays/new")).unwrap();
    assert_eq!(new.write(&long).unwrap(), 4096);
    assert_eq!(errno(new.write(&long[4096..]).map(drop)), Some(Errno::INVAL));
    assert_eq!(read("overlays/tx_3/status"), "failed");
    assert_eq!(fs::read(root.join("overlays/tx_3/dtbo")).unwrap(), long[..4096]);

    // Each read makes the file anew, also of one that is open.
    let mut open = File::open(root.join("instances/web/device_tree")).unwrap();
    let mut before = Vec::new();
    open.read_to_end(&mut before).unwrap();
    assert_eq!(apply(&[("/instances/web", &[Op::CpuAdd(&[6])])]), "applied");
    let mut after = vec![0; before.len() + 8];
    assert_eq!(open.read_at(&mut after, 0).unwrap(), after.len());

    // Nobody who polls a status is told that it changes, unless that is switched off.
    let status = File::open(root.join("instances/web/status")).unwrap();
    let is_told = |at_most: Duration| {
        let mut polled = [PollFd::new(&status, PollFlags::PRI)];
        poll(&mut polled, Timespec::try_from(at_most).ok().as_ref()).unwrap() > 0
    };
    let mut text = [0; 16];
    assert_eq!(status.read_at(&mut text, 0).unwrap(), b"ready\n".len());
    load();
    assert!(!is_told(Duration::ZERO));
    control(&["quirk", "off", "nothing-notifies"]);
    assert!(is_told(Duration::ZERO), "it was read before that");
    status.read_at(&mut text, 0).unwrap();
    assert!(!is_told(Duration::ZERO));
    std::thread::scope(|scope| {
        let told = scope.spawn(|| is_told(PATIENCE));
        sys::unload(1).unwrap();
        assert!(told.join().unwrap());
    });

    fs::remove_dir(root.join("overlays/tx_4")).unwrap();
    assert!(!root.join("overlays/tx_4").exists());
    assert!(fs::read_to_string("/proc/mounts").unwrap().contains("STAND-IN"));
}

#[test]
#[ignore = "run by reader_of_a_silent_console_can_be_killed"]
fn reader() {
    create();
    let mut reader =
        Command::new("sh").args(["-c", "exec 3<>/dev/mktty; echo 1 >&3; read x <&3"]).spawn().unwrap();
    // It waits in the file system by then; if it does not yet, the test shows less.
    std::thread::sleep(Duration::from_millis(500));
    assert!(reader.try_wait().unwrap().is_none());
    reader.kill().unwrap();
    assert!(!reader.wait().unwrap().success());
}

#[test]
#[ignore = "run by nothing_is_left_of_a_stand_in_that_was_killed"]
fn linger() {
    create();
    load();
    let _console = boot();
    let name = dir().join("orphan").display().to_string();
    let orphan = ["-c", "setsid sh -c 'while sleep 1; do :; done' $0 & sleep 0.2", &name];
    assert!(Command::new("sh").args(orphan).status().unwrap().success());
    fs::write(dir().join("ready"), "").unwrap();
    loop {
        std::thread::park();
    }
}
