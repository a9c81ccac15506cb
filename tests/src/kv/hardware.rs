//! Small programs that use, or hold on to, what can be taken from their kernel.

use std::fs::{self, File};
use std::io::{IoSlice, Read as _, Seek as _, SeekFrom, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::fs::{Mode, OFlags, open};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::thread::{CpuSet, sched_setaffinity};
use serde_json::{Value, json};

use super::inside::not_the_hosts;

/// How long a file may take to appear.
const AWAITED_MAX: Duration = Duration::from_secs(30);
/// Length of a stamp on a disk, in bytes: one of its blocks.
const STAMP_BYTES: usize = 4096;

/// Keeps a CPU busy for ever, and runs on no other.
///
/// # Errors
/// When there is no such CPU.
pub fn spin_on(cpu: usize) -> Result<()> {
    let mut only = CpuSet::new();
    only.set(cpu);
    sched_setaffinity(None, &only).with_context(|| format!("could not run on CPU {cpu}"))?;
    println!("spinning on CPU {cpu}");
    spin()
}

/// Keeps as many CPUs busy for ever, whichever they are.
pub fn spin_on_any(threads: usize) -> ! {
    for _ in 1..threads {
        thread::spawn(|| spin());
    }
    println!("spinning on {threads} CPUs");
    spin()
}

/// Holds a CPU for so long against everybody else, as a kernel that loops on it would.
///
/// # Errors
/// When no spawner has made this kernel, or it does not let us.
pub fn starve(cpu: usize, time: Duration) -> Result<()> {
    not_the_hosts()?;
    let mut only = CpuSet::new();
    only.set(cpu);
    sched_setaffinity(None, &only).with_context(|| format!("could not run on CPU {cpu}"))?;
    // By default the kernel keeps a twentieth of the time for programs that are not real-time.
    fs::write("/proc/sys/kernel/sched_rt_runtime_us", "-1").context("could not lift the limit")?;
    println!("starving CPU {cpu}");
    tombolo_agent::take_precedence().context("could not take precedence")?;
    let started = Instant::now();
    while started.elapsed() < time {
        std::hint::spin_loop();
    }
    Ok(())
}

fn spin() -> ! {
    loop {
        std::hint::spin_loop();
    }
}

/// Takes a CPU offline and online again by hand; how long that took, as JSON.
///
/// # Errors
/// When no spawner has made this kernel, or it does not let us.
pub fn switch_cpu(cpu: usize) -> Result<Value> {
    not_the_hosts()?;
    let path = format!("/sys/devices/system/cpu/cpu{cpu}/online");
    let started = Instant::now();
    for state in ["0", "1"] {
        fs::write(&path, state).with_context(|| format!("could not write {state} to {path}"))?;
    }
    Ok(json!({ "ms": started.elapsed().as_secs_f64() * 1e3 }))
}

/// Waits until there is such a file, for at most half a minute; how long that took, as JSON.
///
/// # Errors
/// When there is none in time.
pub fn await_file(path: &Path) -> Result<Value> {
    let started = Instant::now();
    while !path.exists() {
        anyhow::ensure!(started.elapsed() < AWAITED_MAX, "there is no {} yet", path.display());
        thread::sleep(Duration::from_millis(1));
    }
    Ok(json!({ "ms": started.elapsed().as_secs_f64() * 1e3 }))
}

/// Holds a file open for ever.
///
/// # Errors
/// When it cannot be opened.
pub fn hold(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| format!("could not open {}", path.display()))?;
    println!("holding {}", path.display());
    loop {
        thread::park();
        std::hint::black_box(&file);
    }
}

/// Claims a disk as a mount does, for ever: no program has it open then, but for a message on its way.
///
/// # Errors
/// When it cannot be claimed.
pub fn claim(disk: &Path) -> Result<()> {
    let file = open(disk, OFlags::RDONLY | OFlags::EXCL, Mode::empty())
        .with_context(|| format!("could not claim {}", disk.display()))?;
    let (sender, receiver) = UnixStream::pair()?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = SendAncillaryBuffer::new(&mut space);
    let files = [file.as_fd()];
    anyhow::ensure!(message.push(SendAncillaryMessage::ScmRights(&files)), "the message has no room for it");
    sendmsg(&sender, &[IoSlice::new(b"x")], &mut message, SendFlags::empty()).context("could not send it")?;
    drop(file);
    println!("claiming {}", disk.display());
    loop {
        thread::park();
        std::hint::black_box(&receiver);
    }
}

/// Writes text to the beginning of a disk, and has it stored.
///
/// # Errors
/// When no spawner has made this kernel, or the disk does not take it.
pub fn stamp(disk: &Path, text: &str) -> Result<()> {
    not_the_hosts()?;
    let mut block = [0; STAMP_BYTES];
    let bytes = text.as_bytes().get(..STAMP_BYTES).unwrap_or(text.as_bytes());
    block[..bytes.len()].copy_from_slice(bytes);
    let mut file = File::options().write(true).open(disk).context("could not open the disk")?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&block).context("could not write to the disk")?;
    file.sync_all().context("could not have it stored")
}

/// The text at the beginning of a disk.
///
/// # Errors
/// When it cannot be read.
pub fn stamped(disk: &Path) -> Result<String> {
    let mut block = [0; STAMP_BYTES];
    File::open(disk).and_then(|mut file| file.read_exact(&mut block)).context("could not read the disk")?;
    Ok(String::from_utf8_lossy(&block).trim_end_matches('\0').to_owned())
}

/// Writes text to a file of the kernel's again and again, as a user inside may.
///
/// # Errors
/// When no spawner has made this kernel, or it does not let us.
pub fn keep_setting(path: &Path, text: &str) -> Result<()> {
    not_the_hosts()?;
    for times in 0_u64.. {
        fs::write(path, text).with_context(|| format!("could not write to {}", path.display()))?;
        if times == 0 {
            println!("keeping {} at {text}", path.display());
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
