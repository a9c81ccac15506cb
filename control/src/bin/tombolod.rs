//! The daemon.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use tombolo_control::daemon::options::Options;
use tombolo_control::{daemon, keeper};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match args.next() {
        // These are processes of their own, without a runtime.
        Some(first) if first == "keeper" => return keeper::run(args),
        Some(first) if first == "warden" => return tombolo_control::warden(),
        Some(first) if first == "pool-holder" => return tombolo_control::pool_holder(args),
        _ => {}
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
