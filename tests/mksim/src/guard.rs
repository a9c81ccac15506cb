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
use nix::sys::signal::{self, SigSet};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, set_child_subreaper, set_parent_process_death_signal, wait};

/// First argument: run the command, and end all it started when it ends or the parent does.
pub const COMMAND: &str = "guard-command";
/// First argument: become the command, and die with the parent.
const EXEC: &str = "guard-exec";
/// First argument: run a kernel in a PID namespace, which dies with the parent.
pub const KERNEL: &str = "guard-kernel";
/// First argument: be the init of such a namespace.
const INIT: &str = "guard-init";

const PARENT_DIED: signal::Signal = signal::SIGUSR1;
const SIGKILL: u8 = 9;

/// Keeps kernels running on processors with more registers than they know; see `build.rs`.
const PRELOAD: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/preload.so"));

/// Runs one of the guards if the arguments ask for it, and gives its exit code.
///
/// # Errors
/// What could not be started.
pub fn run(mut args: impl Iterator<Item = OsString>) -> Option<anyhow::Result<u8>> {
    let kind = args.next()?;
    let kind = kind.to_str().filter(|kind| [COMMAND, EXEC, KERNEL, INIT].contains(kind))?;
    let argv: Vec<OsString> = args.skip(1).collect();
    Some(guard(kind, &argv))
}

fn guard(kind: &str, argv: &[OsString]) -> anyhow::Result<u8> {
    let (program, args) = argv.split_first().context("nothing to run")?;
    if kind == COMMAND {
        return command(argv);
    }
    set_parent_process_death_signal(Some(Signal::KILL)).context("ask to die with the parent")?;
    match kind {
        EXEC => {
            // What we block is no affair of the command's.
            SigSet::empty().thread_set_mask().context("let signals pass")?;
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

/// Runs the command. All its orphans come to this process, so that none is left when it is over.
fn command(argv: &[OsString]) -> anyhow::Result<u8> {
    let signals = SigSet::from_iter([PARENT_DIED, signal::SIGTERM, signal::SIGHUP]);
    signals.thread_block().context("block signals")?;
    set_child_subreaper(Some(rustix::process::getpid())).context("adopt orphans")?;
    set_parent_process_death_signal(Some(Signal::USR1)).context("ask to hear of the parent's death")?;
    let mut command = Command::new("/proc/self/exe");
    let child = Pid::from_child(&command.args([EXEC, "--"]).args(argv).spawn().context("start the command")?);
    std::thread::spawn(move || {
        while let Ok(signal) = signals.wait() {
            match signal {
                PARENT_DIED => {
                    end_children();
                    std::process::exit(128 + i32::from(SIGKILL));
                }
                // It may have ended.
                signal => {
                    let _ = signal::kill(nix::unistd::Pid::from_raw(child.as_raw_pid()), signal);
                }
            }
        }
    });
    let status = loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == child => break status,
            // An orphan of the command.
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for the command"),
        }
    };
    end_children();
    let code = status.exit_status().or_else(|| Some(128 + status.terminating_signal()?));
    Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX))
}

/// Ends all children, and theirs, which become ours.
fn end_children() {
    let own = rustix::process::getpid();
    // Each round ends a generation. Whoever forks faster than that is left to whoever looks.
    for _ in 0..100 {
        let children = children_of(own);
        if children.is_empty() {
            return;
        }
        for child in &children {
            // It may have ended.
            let _ = rustix::process::kill_process(*child, Signal::KILL);
        }
        for child in children {
            let _ = rustix::process::waitpid(Some(child), WaitOptions::empty());
        }
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
