//! Small programs that show where they run.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::mount::{MountFlags, mount};
use rustix::system::RebootCommand;
use serde_json::{Value, json};

/// The kernel this process runs on, its boot and its memory.
///
/// # Errors
/// When /proc is not mounted.
pub fn where_am_i() -> Result<Value> {
    let uname = rustix::system::uname();
    let boot_id =
        fs::read_to_string("/proc/sys/kernel/random/boot_id").context("could not read the boot id")?;
    let memory = fs::read_to_string("/proc/meminfo").context("could not read /proc/meminfo")?;
    let total = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse::<u64>().ok());
    let text = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
    Ok(json!({
        "uname": format!("{} {} {} {}", text(uname.sysname()), text(uname.nodename()), text(uname.release()), text(uname.machine())),
        "boot_id": boot_id.trim(),
        "memory_kib": total.context("/proc/meminfo tells no MemTotal")?,
        "pid": std::process::id(),
        "unix_ms": unix_ms(),
        "ids": ids()?,
    }))
}

fn unix_ms() -> u64 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis() as u64)
}

/// Who this process is: user, group, and further groups.
fn ids() -> Result<Value> {
    let status = fs::read_to_string("/proc/self/status").context("could not read /proc/self/status")?;
    let numbers = |name: &str| -> Vec<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_default().split_whitespace().filter_map(|word| word.parse().ok()).collect()
    };
    let effective = |name: &str| numbers(name).get(1).copied();
    Ok(json!({ "uid": effective("Uid:"), "gid": effective("Gid:"), "groups": numbers("Groups:") }))
}

/// Prints `count` lines, `gap` apart.
pub fn count(count: u32, gap: Duration) {
    for line in 1..=count {
        println!("line {line} of {count}");
        if line < count {
            thread::sleep(gap);
        }
    }
}

/// The checksum of a file.
///
/// # Errors
/// When it cannot be read.
pub fn checksum(path: &Path) -> Result<Value> {
    let file = File::open(path).with_context(|| format!("could not open {}", path.display()))?;
    let bytes = file.metadata()?.len();
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file).with_context(|| format!("could not read {}", path.display()))?;
    Ok(json!({ "blake3": hasher.finalize().to_hex().as_str(), "bytes": bytes }))
}

/// Sets the kernel's clock back by so much.
///
/// # Errors
/// When no spawner has made it, or it does not let us.
pub fn set_clock_back(by: Duration) -> Result<()> {
    not_the_hosts()?;
    let then = (Duration::from_millis(unix_ms())).saturating_sub(by);
    let time = rustix::time::Timespec { tv_sec: then.as_secs() as i64, tv_nsec: then.subsec_nanos().into() };
    rustix::time::clock_settime(rustix::time::ClockId::Realtime, time).context("could not set the clock")
}

/// Holds so much memory for ever, and says when it has it.
pub fn hog(mib: usize) -> ! {
    let mut memory = vec![0_u8; mib << 20];
    memory.chunks_mut(4096).for_each(|page| page.fill(1));
    println!("holding {mib} MiB");
    loop {
        thread::park();
        std::hint::black_box(&memory);
    }
}

/// Says a line on the kernel's console.
///
/// # Errors
/// When no spawner has made it, or it has none.
pub fn say_on_console(text: &str) -> Result<()> {
    not_the_hosts()?;
    let console = File::options().write(true).open("/dev/console");
    let mut console = console.context("could not open /dev/console")?;
    writeln!(console, "{text}").context("could not write to /dev/console")
}

/// Panics the kernel.
///
/// # Errors
/// When no spawner has made it, or it does not let us.
pub fn panic_kernel() -> Result<()> {
    not_the_hosts()?;
    fs::write("/proc/sysrq-trigger", "c").context("could not panic this kernel")
}

/// Switches the kernel off without asking anybody, as a user inside may.
///
/// # Errors
/// When no spawner has made it, or it does not let us.
pub fn power_off() -> Result<()> {
    not_the_hosts()?;
    rustix::system::reboot(RebootCommand::PowerOff).context("could not power this kernel off")
}

/// Freezes every other program of the kernel, its first process included, for as long as `time`. The kernel itself goes on.
///
/// # Errors
/// When no spawner has made it, or it does not let us.
pub fn freeze_user_space(time: Duration) -> Result<()> {
    not_the_hosts()?;
    let root = Path::new("/cgroup");
    fs::create_dir_all(root).context("could not make a folder for control groups")?;
    mount("cgroup2", root, "cgroup2", MountFlags::empty(), c"").context("could not mount control groups")?;
    let group = root.join("frozen");
    fs::create_dir(&group).context("could not make a control group")?;
    let own = std::process::id().to_string();
    let all = fs::read_to_string(root.join("cgroup.procs")).context("could not list the processes")?;
    for pid in all.lines().filter(|pid| *pid != own) {
        // Threads of the kernel cannot be moved, and need not be.
        let _ = fs::write(group.join("cgroup.procs"), pid);
    }
    fs::write(group.join("cgroup.freeze"), "1").context("could not freeze the others")?;
    thread::sleep(time);
    fs::write(group.join("cgroup.freeze"), "0").context("could not thaw the others")
}

/// What these programs do must never befall the host.
pub(super) fn not_the_hosts() -> Result<()> {
    let cpu = fs::read_to_string("/proc/cpuinfo").context("could not read /proc/cpuinfo")?;
    let arguments = fs::read_to_string("/proc/cmdline")?;
    // What the `qemu` spawner writes there.
    let emulated = arguments.split_ascii_whitespace().any(|argument| argument.starts_with("tombolo.name="));
    anyhow::ensure!(
        cpu.contains("User Mode Linux") || emulated,
        "this kernel was made by no spawner: left alone"
    );
    Ok(())
}
