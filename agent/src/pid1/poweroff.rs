//! The end: everyone is asked to stop, then made to, and the kernel powers off.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use crate::api::agent::AgentMode;
use crate::children::{Children, Target};
use crate::mount_table::unescaped;

/// After SIGKILL: how long the dead are waited for. A process in the middle of a device access dies when that ends.
const KILL_WAIT: Duration = Duration::from_secs(2);
/// How long writing file systems out may take, unmounting included: with the above, what
/// [`crate::api::agent::ShutdownAccepted::within_ms`] allows for.
const WRITE_OUT_MAX: Duration = Duration::from_secs(20);
/// How often those who are left are counted.
const RECHECK: Duration = Duration::from_millis(20);

/// Asks every process to end, waits up to `grace`, and kills those who are left.
///
/// As init that is every process of the kernel or namespace; as a service, the agent's descendants. Every one of them is
/// a child of the agent sooner or later, since orphans become its children: none is left when it has no child.
pub async fn stop_everyone(mode: AgentMode, children: &Children, grace: Duration) {
    signal_all(mode, children, Signal::SIGTERM);
    let ended = async {
        while any_left(children) {
            tokio::time::sleep(RECHECK).await;
        }
    };
    if tokio::time::timeout(grace, ended).await.is_ok() {
        return;
    }
    tracing::warn!("some processes did not end within their grace; killing them");
    let killed = async {
        // Again each time: the death of a parent makes new children of ours.
        while any_left(children) {
            signal_all(mode, children, Signal::SIGKILL);
            tokio::time::sleep(RECHECK).await;
        }
    };
    if tokio::time::timeout(KILL_WAIT, killed).await.is_err() {
        tracing::error!("some processes could not be killed");
    }
}

fn signal_all(mode: AgentMode, children: &Children, signal: Signal) {
    match mode {
        // -1: everyone this process may signal, itself excepted.
        AgentMode::Init | AgentMode::NamespaceInit => drop(kill(Pid::from_raw(-1), signal)),
        AgentMode::Service => {
            let own = children.pids();
            for pid in &own {
                let _ = children.signal(*pid, Target::Group, signal as i32);
            }
            // A child that is in no table was orphaned; only this task collects it, so its number is not reused here.
            for orphan in own_children().filter(|pid| !own.contains(&(*pid as u32))) {
                let _ = kill(Pid::from_raw(orphan), signal);
            }
        }
    }
}

/// Whether this process has a child that has not been collected.
fn any_left(children: &Children) -> bool {
    children.reap();
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    waitid(Id::All, flags) != Err(Errno::ECHILD)
}

/// The processes whose parent is this one.
fn own_children() -> impl Iterator<Item = i32> {
    let parent = std::process::id().to_string();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(move |pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // `PID (COMMAND) STATE PARENT ...`, where the command may hold anything.
        let after_command = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        after_command.split(' ').nth(1) == Some(parent.as_str())
    })
}

/// Writes file systems out and ends: as init, powers off; otherwise exits with code 0.
pub fn finish(mode: AgentMode) -> ! {
    // On a thread: a device that hangs must not keep the kernel from powering off.
    let (done, finished) = std::sync::mpsc::sync_channel(1);
    let write_out = move || {
        rustix::fs::sync();
        if mode == AgentMode::Init {
            unmount_all();
            rustix::fs::sync();
        }
        let _ = done.send(());
    };
    if std::thread::Builder::new().spawn(write_out).is_ok() && finished.recv_timeout(WRITE_OUT_MAX).is_err() {
        eprintln!("tombolo-agent: file systems could not be written out in time");
    }
    if mode == AgentMode::Init {
        // Returns only if this is not permitted; then ending as init makes the kernel panic, which ends it as well.
        let _ = nix::sys::reboot::reboot(nix::sys::reboot::RebootMode::RB_POWER_OFF);
    }
    std::process::exit(0)
}

/// Unmounts what can be, latest first, and makes the rest read-only, the root last.
fn unmount_all() {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for target in mount_points(&mounts).iter().rev().filter(|target| !keeps(target)) {
        if target == Path::new("/") || umount2(target, MntFlags::empty()).is_err() {
            make_read_only(target);
        }
    }
}

fn make_read_only(target: &Path) {
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    let _ = mount(None::<&str>, target, None::<&str>, flags, None::<&str>);
}

/// proc_pid_mounts(5): `SOURCE TARGET TYPE OPTIONS 0 0`.
fn mount_points(mounts: &str) -> Vec<PathBuf> {
    mounts.lines().filter_map(|line| Some(unescaped(line.split(' ').nth(1)?))).collect()
}

/// Nothing there would be saved, and the last messages need /dev.
fn keeps(target: &Path) -> bool {
    ["/proc", "/sys", "/dev"].iter().any(|kept| target.starts_with(kept))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_with_their_odd_characters() {
        let mounts =
            "rootfs / rootfs rw 0 0\n/dev/a /mnt/a\\040b\\134c ext4 rw 0 0\nbroken\nx /y\\09 tmpfs\n";
        assert_eq!(mount_points(mounts), ["/", "/mnt/a b\\c", "/y\\09"].map(PathBuf::from));
    }

    #[test]
    fn only_what_lies_below_proc_sys_and_dev_stays_mounted() {
        for (target, kept) in
            [("/dev", true), ("/dev/shm", true), ("/devel", false), ("/system", false), ("/", false)]
        {
            assert_eq!(keeps(Path::new(target)), kept, "{target}");
        }
    }
}
