//! What can only be measured with kernels of one's own: `cargo xtask bench` starts it. Prints one JSON object per line: the figures.
//!
//! As PID 1 it is the whole user space of a kernel that exists for one measurement, whose figures it prints on the console after a mark.

mod paced;
mod round_trips;

use std::process::ExitCode;

use anyhow::{Result, bail};
use serde_json::json;
use tombolo_tests::guest;

const USAGE: &str = "\
usage: tombolo-bench-kernels TASK [--quick]
  uml-56        messages of 56 B there and back between two user-mode kernels, against two processes
  paced-vsock   the paced link over AF_VSOCK within a user-mode kernel, against AF_VSOCK alone
and within those kernels, or beside them:
  echo SOCKET         answer messages of connections through the broker at SOCKET
  ask SOCKET CID N    N messages there and back with the echo in kernel CID; print how long they took";

fn main() -> ExitCode {
    let is_init = std::process::id() == 1;
    let words = if is_init { guest::words() } else { std::env::args().skip(1).collect() };
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = if is_init { guest::prepare_kernel() } else { Ok(()) };
    let result = result.and_then(|()| run(&words, is_init));
    if let Err(error) = &result {
        eprintln!("tombolo-bench-kernels: {error:#}");
    }
    if is_init {
        guest::power_off();
    }
    ExitCode::from(u8::from(result.is_err()))
}

fn run(words: &[&str], is_init: bool) -> Result<()> {
    match *words {
        ["uml-56"] => round_trips::measure(false),
        ["uml-56", "--quick"] => round_trips::measure(true),
        ["paced-vsock", "guest", mib] if is_init => paced::inside(mib.parse()?),
        ["paced-vsock"] => paced::measure(false),
        ["paced-vsock", "--quick"] => paced::measure(true),
        ["echo", socket] => round_trips::echo(socket.as_ref()),
        ["ask", socket, cid, rounds] => round_trips::ask(socket.as_ref(), cid.parse()?, rounds.parse()?),
        _ => bail!("`{}` is not understood\n{USAGE}", words.join(" ")),
    }
}

/// Prints a figure at once: what was measured before something failed is known.
fn tell(name: &str, value: f64, unit: &str, note: &str) {
    println!("{}", json!({ "name": name, "value": value, "unit": unit, "note": note }));
}

/// The middle one; 0 if there is none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
