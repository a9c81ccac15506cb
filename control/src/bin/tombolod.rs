//! The daemon.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use tombolo_control::daemon::options::Options;
use tombolo_control::{daemon, keeper};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|first| first == "keeper") {
        // A keeper is a process of its own, without a runtime.
        return keeper::run(args);
    }
    let options = Options::parse();
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("tombolod: could not start its threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(daemon::run(options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tombolod: {error}");
            error.exit_code()
        }
    }
}
