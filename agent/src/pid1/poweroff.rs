//! The end: everyone is asked to stop, then made to, and the kernel powers off.

use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::api::agent::AgentMode;
use crate::children::{Children, Target};

/// After SIGKILL: how long the dead are waited for. A process in the middle of a device access dies when that ends.
const KILL_WAIT: Duration = Duration::from_secs(2);
/// How often those who are left are counted.
const RECHECK: Duration = Duration::from_millis(20);

/// Asks every process to end, waits up to `grace`, and kills those who are left.
///
/// As init that is every process of the kernel or namespace; as a service, the agent's own children with their groups.
pub async fn stop_everyone(mode: AgentMode, children: &Children, grace: Duration) {
    signal_all(mode, children, Signal::SIGTERM);
    if await_none(mode, children, grace).await {
        return;
    }
    tracing::warn!("some processes did not end within their grace; killing them");
    signal_all(mode, children, Signal::SIGKILL);
    if !await_none(mode, children, KILL_WAIT).await {
        tracing::error!("some processes could not be killed");
    }
}

fn signal_all(mode: AgentMode, children: &Children, signal: Signal) {
    match mode {
        // -1: everyone this process may signal, itself excepted.
        AgentMode::Init | AgentMode::NamespaceInit => drop(kill(Pid::from_raw(-1), signal)),
        AgentMode::Service => {
            for pid in children.pids() {
                let _ = children.signal(pid, Target::Group, signal as i32);
            }
        }
    }
}

async fn await_none(mode: AgentMode, children: &Children, limit: Duration) -> bool {
    let none = async {
        loop {
            children.reap();
            if !any_left(mode, children) {
                return;
            }
            tokio::time::sleep(RECHECK).await;
        }
    };
    tokio::time::timeout(limit, none).await.is_ok()
}

fn any_left(mode: AgentMode, children: &Children) -> bool {
    match mode {
        // Signal 0 only asks whether there is anyone.
        AgentMode::Init | AgentMode::NamespaceInit => kill(Pid::from_raw(-1), None).is_ok(),
        AgentMode::Service => !children.pids().is_empty(),
    }
}

/// Writes file systems out and ends: as init, powers off; otherwise exits with code 0.
pub fn finish(mode: AgentMode) -> ! {
    rustix::fs::sync();
    if mode == AgentMode::Init {
        unmount_all();
        rustix::fs::sync();
        // Returns only if this is not permitted; then ending as init makes the kernel panic, which ends it as well.
        let _ = nix::sys::reboot::reboot(nix::sys::reboot::RebootMode::RB_POWER_OFF);
    }
    std::process::exit(0)
}

/// Unmounts what can be, latest first, and makes the rest read-only.
fn unmount_all() {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let targets: Vec<&str> = mounts.lines().filter_map(|line| line.split(' ').nth(1)).collect();
    for target in targets.iter().rev().filter(|target| !keeps(target)) {
        if umount2(*target, MntFlags::empty()).is_err() {
            let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            let _ = mount(None::<&str>, *target, None::<&str>, flags, None::<&str>);
        }
    }
}

/// Memory only: nothing there would be saved, and the last messages need /dev.
fn keeps(target: &str) -> bool {
    target == "/" || ["/proc", "/sys", "/dev"].iter().any(|kept| target.starts_with(kept))
}
