//! Processes that see to it that others end: the binary runs itself for them.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write as _;
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitStatus};

use anyhow::Context as _;
use nix::sched::{CloneFlags, unshare};
use nix::sys::personality::{self, Persona};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, Signal, set_parent_process_death_signal};

/// First argument: become the command, and die with the parent.
pub const COMMAND: &str = "guard-command";
/// First argument: run a kernel in a PID namespace, which dies with the parent.
pub const KERNEL: &str = "guard-kernel";
/// First argument: be the init of such a namespace.
const INIT: &str = "guard-init";

/// Keeps kernels running on processors with more registers than they know; see `build.rs`.
const PRELOAD: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/preload.so"));

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
        _ => Ok(code_of(kernel(program, args)?.status().context("start the kernel")?)),
    }
}

/// What runs a User-mode Linux kernel, as the control plane does it too (`control/src/keeper/exec.rs`).
fn kernel(program: &OsStr, args: &[OsString]) -> anyhow::Result<Command> {
    // Such a kernel counts all from its program to its heap as its memory: a random heap costs it up to 32 MiB.
    let _ = personality::get().and_then(|now| personality::set(now | Persona::ADDR_NO_RANDOMIZE));
    // Without close-on-exec: the linker opens the library by its number, after exec.
    let library = memfd_create("mksim-xstate", MemfdFlags::empty()).context("make the library's file")?;
    let library = ManuallyDrop::new(File::from(library));
    (&*library).write_all(PRELOAD).context("write the library")?;
    let folder = std::env::var_os("TMPDIR").unwrap_or_default();
    let mut command = Command::new(program);
    command.args(args).env_clear().env("TMPDIR", folder);
    command.env("LD_PRELOAD", format!("/proc/self/fd/{}", library.as_raw_fd()));
    Ok(command)
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
