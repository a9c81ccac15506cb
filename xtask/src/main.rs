//! Project tasks: `cargo xtask demo` shows the whole of Tombolo on real kernels, `cargo xtask test` checks it,
//! `cargo xtask bench` measures it.
//!
//! This crate uses nothing of the workspace: it builds the programs and runs them as a user would.

mod aeron;
mod apt;
mod bench;
mod build;
mod command;
mod demo;
mod device;
mod dtc;
mod image;
mod kerf;
mod pip;
mod process;
mod qemu;
mod rerun;
mod test;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Project tasks of Tombolo.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Boot two kernels beside this one, connect, kill, freeze and restart them, and leave nothing behind
    Demo(demo::Args),
    /// Check everything: format, lints, unit, conformance, doc and end-to-end tests, the demo
    Test(test::Args),
    /// Check what takes too long for every change: long simulations, large models, whoever killed at every step, freezes at random
    Verify(verify::Args),
    /// Measure Tombolo and its peers side by side, and write the report to target/bench-report
    Bench(bench::Args),
    /// Get the kernel that the `uml` spawner boots, into the user's cache folder, without root
    FetchKernel,
    /// Get QEMU and the kernel that the `qemu` spawner boots, into the user's cache folder, without root
    FetchQemu,
    /// Get kerf, the tool of Multikernel Linux that tests run beside, into the user's cache folder, without root
    FetchKerf,
    /// Get dtc, the device tree compiler that tests hold our device trees against, into the user's cache folder, without root
    FetchDtc,
    /// Build every program as a static binary, and say where they are
    Build,
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Demo(args) => demo::run(&args),
        Task::Test(args) => test::run(&args),
        Task::Verify(args) => verify::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::FetchKernel => image::find_or_fetch().map(|path| println!("{}", path.display())),
        Task::FetchQemu => qemu::find_or_fetch()
            .map(|found| println!("{}\n{}", found.program.display(), found.kernel.display())),
        Task::FetchKerf => kerf::find_or_fetch().map(|folder| println!("{}", folder.display())),
        Task::FetchDtc => dtc::find_or_fetch().map(|path| println!("{}", path.display())),
        Task::Build => build::static_programs().map(|dir| println!("{}", dir.display())),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
