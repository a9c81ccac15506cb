//! The keeper: one small process per kernel, which outlives the daemon.
//!
//! A kernel's doorbell and console are file descriptors, and they die with whoever holds them. If the daemon held them, its
//! death would cut every kernel off. So each kernel has a keeper (`tombolod keeper`, what containerd calls a shim), in
//! a session of its own, that
//! - owns the host's ends of the doorbell and the console and hands out duplicates;
//! - records the console from its first byte, bounded in size, and serves it live to one client;
//! - is the parent of the kernel and reaper of all its helper processes: it sees the death at once, kills what is left of
//!   the kernel's processes, and records how it ended in `exit.json`;
//! - starts the program that is the back end of a device of the machine, where there is one, and ends it with the kernel;
//! - answers a few one-line requests on `keeper.sock` ([`Request`], [`Status`]).
//!
//! It leaves when its kernel has ended and that is recorded. If the keeper itself is killed, the kernel dies with it (a
//! parent-death signal); whoever adopts the folder next sweeps the helpers and reports [`ExitHow::Lost`].
//!
//! Single-threaded and without a runtime: one `poll(2)` loop, no timers, so an idle keeper costs no CPU.

mod backend;
mod client;
mod complaints;
mod console;
mod cpus;
mod exec;
mod files;
mod job;
mod machine;
mod memory;
mod process_table;
mod serve;
mod wire;
mod xstate;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

pub use cpus::CpuLease;
pub(crate) use files::{remove_all, unix_address, write_atomically};
pub use job::{BackendJob, Exit, ExitHow, Job, KernelRecord, MemoryJob};
pub(crate) use process_table::{Process, descendants_of, kill_group_of};
pub(crate) use wire::LINE_BYTES_MAX;
pub use wire::{BackendState, MemoryState, Request, Status};

/// Names of the files in a kernel's runtime folder. All but the console logs are removed when the kernel is forgotten.
pub mod names {
    /// What the keeper is to do: a [`super::Job`].
    pub const JOB: &str = "job.json";
    /// Where the keeper answers.
    pub const SOCKET: &str = "keeper.sock";
    /// What the keeper itself had to complain about.
    pub const LOG: &str = "keeper.log";
    /// Which process is the kernel: a [`super::KernelRecord`].
    pub const KERNEL: &str = "kernel.json";
    /// How it ended: a [`super::Exit`].
    pub const EXIT: &str = "exit.json";
    /// Room for [`EXIT`], taken at the start: how a kernel ended is known to who comes later even if the disk is full then.
    pub const EXIT_ROOM: &str = "exit.room";
    /// Why the kernel's program, or that of its device, could not be executed, when it could not.
    pub const EXEC_ERROR: &str = "exec.err";
    /// The console's latest output.
    pub const CONSOLE: &str = "console.log";
    /// The console's output before that.
    pub const CONSOLE_OLD: &str = "console.log.1";
}

/// The subcommand's body: `keeper --dir DIR`, called before any thread is started.
///
/// Prints `ready` on stdout once `keeper.sock` answers, or one line that says why not. Stdin should be DIR,
/// opened and locked (flock): so the lock lives as long as the keeper.
///
/// Returns 0 when the kernel has ended and that was recorded, 1 otherwise, 2 for bad arguments.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut args = args.into_iter();
    let mut dir = None;
    let (mut exec_for, mut part) = (None, exec::Part::Kernel);
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("--dir") => dir = args.next().map(PathBuf::from),
            Some("--exec-for") => exec_for = args.next().and_then(|pid| pid.to_str()?.parse::<i32>().ok()),
            Some("--backend") => part = exec::Part::Backend,
            _ => dir = None,
        }
    }
    let Some(dir) = dir else {
        eprintln!("usage: tombolod keeper --dir DIR   (internal: started by tombolod, one per kernel)");
        return ExitCode::from(2);
    };
    if let Err(error) = std::env::set_current_dir(&dir) {
        println!("could not enter {}: {error}", dir.display());
        return ExitCode::FAILURE;
    }
    match exec_for {
        Some(keeper_pid) => exec::become_part(part, keeper_pid),
        None => serve::keep(&dir),
    }
}
