//! How an emulated machine ended, by its own account.
//!
//! QEMU exits with status 0 whether its kernel powered off, was reset or panicked; its events say which. It writes them into a file: its
//! second monitor is a pair of files, one with the command that makes a monitor talk, one that takes what it says. So they are there
//! in full once the machine has ended, whoever watched.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use serde_json::Value;

use super::ExitHow;

/// The name of the pair in QEMU's command line; the files have `.in` and `.out` after it.
pub(crate) const EVENTS: &str = "events";
/// What the monitor is told.
pub(crate) const EVENTS_IN: &str = "events.in";
/// What it says.
pub(crate) const EVENTS_OUT: &str = "events.out";
/// The content of [`EVENTS_IN`].
pub(crate) const EVENTS_COMMAND: &str = "{\"execute\":\"qmp_capabilities\"}\n";

/// How much of the record's end is read, in bytes: what tells the end is among the last lines.
const TAIL_BYTES: u64 = 64 * 1024;

/// How the machine of the working folder ended, given what its process and its console tell.
pub(super) fn how_it_ended(seen: ExitHow) -> ExitHow {
    match read_tail(Path::new(EVENTS_OUT)) {
        Ok(events) => classify(seen, &events),
        Err(error) => {
            eprintln!("could not read {EVENTS_OUT}: {error}; how the machine ended is told from its console");
            seen
        }
    }
}

fn read_tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A panic is believed from whoever tells of it, a signal from the system. Only then do the machine's own words say more than
/// its exit status, which is 0 for all of them.
fn classify(seen: ExitHow, events: &str) -> ExitHow {
    let events = || events.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let is = |event: &Value, name: &str| event["event"] == name;
    if events().any(|event| is(&event, "GUEST_PANICKED")) {
        return ExitHow::Panicked;
    }
    if seen != ExitHow::PoweredOff {
        return seen;
    }
    let end = events().rfind(|event| is(event, "SHUTDOWN"));
    match end.as_ref().and_then(|end| end["data"]["reason"].as_str()) {
        Some("guest-panic") => ExitHow::Panicked,
        // SIGTERM, SIGINT or SIGHUP, of which it does not tell which.
        Some("host-signal") => ExitHow::Signaled(15),
        // Reset by its own kernel, which may have wanted it or not; ended by another program's order.
        Some(reason) if reason != "guest-shutdown" => ExitHow::Code(0),
        _ => ExitHow::PoweredOff,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREETING: &str = "{\"QMP\": {}}\n{\"return\": {}}\n";

    fn shutdown(reason: &str) -> String {
        format!(
            "{GREETING}{{\"event\": \"SHUTDOWN\", \"data\": {{\"guest\": true, \"reason\": \"{reason}\"}}}}\n"
        )
    }

    #[test]
    fn the_machines_account_tells_ends_apart_that_have_one_status() {
        let clean = |events: &str| classify(ExitHow::PoweredOff, events);
        assert_eq!(clean(&shutdown("guest-shutdown")), ExitHow::PoweredOff);
        assert_eq!(clean(&shutdown("guest-reset")), ExitHow::Code(0));
        assert_eq!(clean(&shutdown("guest-panic")), ExitHow::Panicked);
        assert_eq!(clean(&shutdown("host-signal")), ExitHow::Signaled(15));
        assert_eq!(clean(&shutdown("host-qmp-quit")), ExitHow::Code(0));
    }

    #[test]
    fn a_panic_counts_before_everything_and_a_signal_before_what_was_planned() {
        let panicked = format!("{GREETING}{{\"event\": \"GUEST_PANICKED\", \"data\": {{}}}}\n");
        for seen in [ExitHow::PoweredOff, ExitHow::Signaled(9), ExitHow::Code(1)] {
            assert_eq!(classify(seen, &panicked), ExitHow::Panicked);
        }
        for seen in [ExitHow::Panicked, ExitHow::Signaled(9), ExitHow::Code(1)] {
            assert_eq!(classify(seen.clone(), &shutdown("guest-shutdown")), seen);
        }
    }

    #[test]
    fn an_account_that_says_nothing_changes_nothing() {
        for events in
            ["", GREETING, "nonsense\n[1]\n3\n", "{\"event\": 7}\n", "{\"event\": \"SHUTDOWN\"}\n", "{\"ev"]
        {
            assert_eq!(classify(ExitHow::PoweredOff, events), ExitHow::PoweredOff, "{events}");
            assert_eq!(classify(ExitHow::Code(1), events), ExitHow::Code(1), "{events}");
        }
    }

    #[test]
    fn only_the_end_of_a_long_account_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(EVENTS_OUT);
        std::fs::write(&path, format!("{}\n{}", "x".repeat(1 << 20), shutdown("guest-reset"))).unwrap();
        let tail = read_tail(&path).unwrap();
        assert!(tail.len() as u64 <= TAIL_BYTES);
        assert_eq!(classify(ExitHow::PoweredOff, &tail), ExitHow::Code(0));
    }
}
