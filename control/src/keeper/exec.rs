//! The step between the keeper and the kernel: a child of the keeper that arranges its own death and becomes the kernel.
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

/// Becomes the kernel that `job.json` describes. Returns only if that failed, having written `exec.err`.
pub(super) fn become_kernel(keeper_pid: i32) -> ExitCode {
    let reason = match prepare(keeper_pid) {
        Ok(mut command) => {
            let program = command.get_program().to_owned();
            format!("could not execute {}: {}", program.display(), command.exec())
        }
        Err(error) => format!("could not prepare the kernel's process: {error}"),
    };
    eprintln!("{reason}");
    if let Err(error) = fs::write(names::EXEC_ERROR, &reason) {
        eprintln!("could not write {}: {error}", names::EXEC_ERROR);
    }
    ExitCode::from(EXIT_NOT_EXECUTED as u8)
}

fn prepare(keeper_pid: i32) -> io::Result<Command> {
    setpgid(None, None)?;
    // The keeper blocks what it reads by signalfd; a blocked SIGCHLD, inherited, would keep the agent from reaping.
    SigSet::all().thread_unblock()?;
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // The keeper may have died before the line above; then no signal will ever come.
    if getppid().map(|pid| pid.as_raw_nonzero().get()) != Some(keeper_pid) {
        return Err(io::Error::other("the keeper died"));
    }
    let job: Job = serde_json::from_slice(&fs::read(names::JOB)?)?;
    if job.kind == SpawnerKind::Uml {
        // User-mode Linux counts everything from its program to its heap as memory of the kernel: a random start of the heap
        // costs it up to 32 MiB, which is the difference between booting and running out of memory. Some sandboxes forbid this.
        let _ = personality::get().and_then(|now| personality::set(now | Persona::ADDR_NO_RANDOMIZE));
    }
    let mut argv = job.argv.iter().map(|arg| {
        let arg = arg.replace("{doorbell}", &Job::DOORBELL_FD.to_string());
        arg.replace("{events}", &Job::EVENTS_FD.to_string())
    });
    let program = argv.next().ok_or_else(|| io::Error::other("job.json names no program"))?;
    let mut command = Command::new(program);
    command.args(argv).env_clear().envs(job.env);
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
