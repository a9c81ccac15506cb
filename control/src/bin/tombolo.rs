//! The command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    tombolo_control::cli::main()
}
