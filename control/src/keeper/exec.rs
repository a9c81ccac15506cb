//! The step between the keeper and the kernel, or the back end of its device: a child of the keeper that arranges its own death and
//! becomes that. A daemon takes the same step to a machine that is only to show that it boots (`spawner/qemu/probe.rs`).
//!
//! It exists because what must happen between fork and exec (own process group, parent-death signal) cannot be done from
//! the parent, and doing it in a forked child would need `unsafe`. Here it is an ordinary program that ends in exec.

use std::fs;
use std::io;
use std::os::fd::IntoRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use nix::sys::personality::{self, Persona};
use nix::sys::signal::SigSet;
use rustix::process::{Signal, getppid, set_parent_process_death_signal, setpgid};

use super::{Job, names, xstate};
use crate::spawner::SpawnerKind;

/// What a shell returns for a program it could not execute.
pub(super) const EXIT_NOT_EXECUTED: i32 = 127;

/// What of a job to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The kernel.
    Kernel,
    /// The back end of its device.
    Backend,
}

/// Becomes that part of what `job.json` describes. Returns only if that failed, having written `exec.err`.
pub(super) fn become_part(part: Part, keeper_pid: i32) -> ExitCode {
    let reason = match prepare(part, keeper_pid) {
        Ok(mut command) => {
            let program = command.get_program().to_owned();
            format!("could not execute {}: {}", program.display(), command.exec())
        }
        Err(error) => format!("could not prepare the process: {error}"),
    };
    eprintln!("{reason}");
    if let Err(error) = fs::write(names::EXEC_ERROR, &reason) {
        eprintln!("could not write {}: {error}", names::EXEC_ERROR);
    }
    ExitCode::from(EXIT_NOT_EXECUTED as u8)
}

fn prepare(part: Part, keeper_pid: i32) -> io::Result<Command> {
    setpgid(None, None)?;
    // The keeper blocks what it reads by signalfd; a blocked SIGCHLD, inherited, would keep the agent from reaping.
    SigSet::all().thread_unblock()?;
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // The keeper may have died before the line above; then no signal will ever come.
    if getppid().map(|pid| pid.as_raw_nonzero().get()) != Some(keeper_pid) {
        return Err(io::Error::other("the keeper died"));
    }
    let job: Job = serde_json::from_slice(&fs::read(names::JOB)?)?;
    match part {
        Part::Kernel => kernel(job),
        Part::Backend => {
            let backend = job.backend.ok_or_else(|| io::Error::other("job.json names no back end"))?;
            let (program, arguments) = split(backend.argv)?;
            let mut command = Command::new(program);
            command.args(arguments).env_clear();
            Ok(command)
        }
    }
}

fn kernel(job: Job) -> io::Result<Command> {
    if job.kind == SpawnerKind::Uml {
        // User-mode Linux counts everything from its program to its heap as memory of the kernel: a random start of the heap
        // costs it up to 32 MiB, which is the difference between booting and running out of memory. Some sandboxes forbid this.
        let _ = personality::get().and_then(|now| personality::set(now | Persona::ADDR_NO_RANDOMIZE));
    }
    let (program, arguments) = split(job.argv)?;
    let arguments = arguments.map(|arg| {
        let arg = arg.replace("{doorbell}", &Job::DOORBELL_FD.to_string());
        let arg = arg.replace("{events}", &Job::EVENTS_FD.to_string());
        arg.replace("{backend}", &Job::BACKEND_FD.to_string())
    });
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(job.env);
    if job.kind == SpawnerKind::Uml {
        match xstate::preload() {
            Ok((library, fd)) => {
                command.env("LD_PRELOAD", library);
                // The linker opens it by its number, after exec.
                let _open_for_ever = fd.into_raw_fd();
            }
            Err(error) => {
                eprintln!("no library is preloaded: on processors with AMX the kernel will panic: {error}");
            }
        }
    }
    Ok(command)
}

/// The program, and its arguments.
fn split(argv: Vec<String>) -> io::Result<(String, impl Iterator<Item = String>)> {
    let mut argv = argv.into_iter();
    let program = argv.next().ok_or_else(|| io::Error::other("job.json names no program"))?;
    Ok((program, argv))
}
