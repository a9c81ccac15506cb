//! The keeper alone, as `tombolod keeper` runs it: what spawner tests start.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    match args.split_first() {
        Some((first, rest)) if first == "keeper" => tombolo_control::keeper::run(rest.iter().cloned()),
        _ => {
            eprintln!("usage: tombolo-test-keeper keeper --dir DIR");
            ExitCode::from(2)
        }
    }
}
