//! How an emulated machine ended, by its own account.
//!
//! QEMU exits with status 0 whether its kernel powered off, was reset or panicked; its events say which. They go to its keeper, over a
//! monitor of their own: what it said is there in full once the machine has ended, whoever else watched. A kernel can cause
//! events as fast as it likes, so only the last of them are kept.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;

use serde_json::Value;

use super::ExitHow;

/// What a monitor is told to make it talk.
const HELLO: &[u8] = b"{\"execute\":\"qmp_capabilities\"}\n";
/// How much is kept, in bytes: what tells the end is among the last lines.
const TAIL_BYTES: usize = 64 * 1024;

/// The keeper's end of that monitor.
#[derive(Debug)]
pub(super) struct Account {
    /// None once the machine has closed its end.
    socket: Option<UnixStream>,
    tail: Vec<u8>,
}

impl Account {
    /// Takes the keeper's end of a new monitor.
    pub(super) fn new(mut socket: UnixStream) -> io::Result<Self> {
        socket.write_all(HELLO)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket: Some(socket), tail: Vec::new() })
    }

    /// What to wait for.
    pub(super) fn socket(&self) -> Option<&UnixStream> {
        self.socket.as_ref()
    }

    /// Reads what has come.
    pub(super) fn read(&mut self) {
        let mut chunk = [0; 16 * 1024];
        while let Some(socket) = &mut self.socket {
            match socket.read(&mut chunk) {
                Ok(0) => self.socket = None,
                Ok(count) => {
                    self.tail.extend(chunk.iter().take(count));
                    if self.tail.len() > 2 * TAIL_BYTES {
                        self.tail.drain(..self.tail.len() - TAIL_BYTES);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    eprintln!("could not read the machine's events: {error}");
                    self.socket = None;
                }
            }
        }
    }

    /// How the machine ended, given what its process and its console tell.
    pub(super) fn how_it_ended(&mut self, seen: ExitHow) -> ExitHow {
        self.read();
        classify(seen, &String::from_utf8_lossy(&self.tail))
    }
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
    fn a_monitor_is_made_to_talk_and_only_the_end_of_what_it_says_is_kept() {
        let (keepers, mut machines) = UnixStream::pair().unwrap();
        let mut account = Account::new(keepers).unwrap();
        let mut told = [0; HELLO.len()];
        machines.read_exact(&mut told).unwrap();
        assert_eq!(told, HELLO);
        for _ in 0..100 {
            machines.write_all(&[b'x'; 10_000]).unwrap();
            account.read();
            assert!(account.tail.len() <= 2 * TAIL_BYTES);
        }
        machines.write_all(format!("\n{}", shutdown("guest-reset")).as_bytes()).unwrap();
        drop(machines);
        assert_eq!(account.how_it_ended(ExitHow::PoweredOff), ExitHow::Code(0));
        assert!(account.socket().is_none(), "there is nothing more to wait for");
    }
}
