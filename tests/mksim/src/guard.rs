//! Processes that see to it that others end: the binary runs itself for them.

use std::ffi::OsString;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitStatus};

use anyhow::Context as _;
use nix::sched::{CloneFlags, unshare};
use rustix::process::{Pid, Signal, set_parent_process_death_signal};

/// First argument: become the command, and die with the parent.
pub const COMMAND: &str = "guard-command";
/// First argument: run a kernel in a PID namespace, which dies with the parent.
pub const KERNEL: &str = "guard-kernel";
/// First argument: be the init of such a namespace.
const INIT: &str = "guard-init";

/// Runs one of the guards if the arguments ask for it, and gives its exit code.
///
/// # Errors
/// What could not be started.
pub fn run(mut args: impl Iterator<Item = OsString>) -> Option<anyhow::Result<u8>> {
    let kind = args.next()?;
    let kind = kind.to_str().filter(|kind| [COMMAND, KERNEL, INIT].contains(kind))?;
    let argv: Vec<OsString> = args.skip(1).collect();
    Some(guard(kind, &argv))
}

fn guard(kind: &str, argv: &[OsString]) -> anyhow::Result<u8> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("ask to die with the parent")?;
    let (program, args) = argv.split_first().context("nothing to run")?;
    match kind {
        COMMAND => {
            let error = Command::new(program).args(args).exec();
            eprintln!("tombolo-mksim (STAND-IN): cannot run {}: {error}", program.display());
            Ok(if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 })
        }
        KERNEL => {
            unshare(CloneFlags::CLONE_NEWPID).context("make a PID namespace")?;
            let status = Command::new("/proc/self/exe").args([INIT, "--"]).args(argv).status();
            Ok(code_of(status.context("start its init")?))
        }
        // All of the namespace ends with its init.
        _ => Ok(code_of(Command::new(program).args(args).status().context("start the kernel")?)),
    }
}

/// The exit code that a shell would give.
pub(crate) fn code_of(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| Some(128 + status.signal()?));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}

/// The processes whose parent this is, in the order of their numbers.
pub(crate) fn children_of(parent: Pid) -> Vec<Pid> {
    let Ok(all) = std::fs::read_dir("/proc") else { return Vec::new() };
    let mut children: Vec<i32> = all
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| parent_of(*pid) == Some(parent.as_raw_pid()))
        .collect();
    children.sort_unstable();
    children.into_iter().filter_map(Pid::from_raw).collect()
}

fn parent_of(pid: i32) -> Option<i32> {
    // The name, in parentheses, may contain anything.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}
