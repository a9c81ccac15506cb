//! The warden: a process that stands for a kernel which is none of this host's processes.
//!
//! Its keeper runs it as it would run a kernel (`tombolod warden`, in the runtime folder), so that everything that holds for other kernels holds
//! here: it ends when the kernel ends, and how it exits says how. It
//! - opens the kernel's console before it starts it, and carries it to the keeper, which records it, unless it is lent to another program;
//! - starts the kernel, unless it runs already (a keeper that died, and was replaced);
//! - carries the doorbell between the keeper and the kernel;
//! - looks at the kernel's status, of which nothing notifies (there is no event to wait for in the kernel's file system);
//! - ends it by force when the keeper says so (SIGTERM), and says when that does not help; one that is not started yet it does not start;
//! - gives back what the kernel had once it has ended.

use std::cell::Cell;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal as NixSignal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Signal, getpid, kill_process};
use tombolo_agent::health::uptime_ms;

use super::console::Console;
use super::ending::{Ending, Tail, ending};
use super::hold::Hold;
use super::interface::{InstanceStatus, Mounted};
use super::line::Line;
use super::record::Record;
use crate::keeper::{Job, names};

/// How often the kernel's status is read: an end is told this much later at most.
const LOOK: Duration = Duration::from_millis(50);
/// The same once its console has said what kernels say that end, and for how long.
const LOOK_AT_THE_END: Duration = Duration::from_millis(5);
const AT_THE_END: Duration = Duration::from_secs(5);
/// How long after its end a kernel's console may still have something to say: nothing tells that it has said all, but that it says
/// nothing for so long.
const LAST_WORDS: Duration = Duration::from_millis(200);
const SILENCE: Duration = Duration::from_millis(30);
/// How long another program's change may keep the end of a kernel from being told.
const RELEASE_WAIT: Duration = Duration::from_millis(300);
/// Bytes carried at once.
const CHUNK: usize = 16 * 1024;

/// How the warden exits.
const EXIT_PANICKED: u8 = 1;
/// As a shell does for a program that it could not execute.
const EXIT_NOT_STARTED: u8 = 127;

/// The subcommand's body: `tombolod warden`, in a runtime folder.
pub fn run() -> ExitCode {
    match Warden::start(Path::new(".")) {
        Ok(mut warden) => warden.stand(),
        Err(reason) => {
            println!("tombolo: {reason}");
            if let Err(error) = fs::write(names::EXEC_ERROR, &reason) {
                println!("tombolo: could not write {}: {error}", names::EXEC_ERROR);
            }
            ExitCode::from(EXIT_NOT_STARTED)
        }
    }
}

struct Warden {
    kernel: Mounted,
    record: Record,
    signals: Signals,
    /// The kernel's end of the console; the keeper's is our stdio.
    console: Console,
    /// Whether nobody can type any more.
    typing_is_over: bool,
    /// The keeper's end of the doorbell, and the kernel's.
    doorbell: Option<UnixStream>,
    line: Line,
    tail: Tail,
}

impl Warden {
    /// Opens what there is to open, and starts the kernel.
    fn start(dir: &Path) -> Result<Self, String> {
        let record = Record::read(dir)
            .map_err(|error| format!("could not read what there is to stand for: {error}"))?
            .ok_or("there is nothing to stand for here")?;
        let signals = Signals::block().map_err(|error| format!("could not watch signals: {error}"))?;
        let doorbell = tombolo_agent::inherited_fd(Job::DOORBELL_FD).map(UnixStream::from);
        let doorbell = doorbell.map_err(|error| format!("could not take over the doorbell: {error}"))?;
        doorbell.set_nonblocking(true).map_err(|error| format!("could not prepare the doorbell: {error}"))?;
        let line =
            Line::open(&record).map_err(|error| format!("could not open the kernel's line: {error}"))?;
        // Before it starts: what it says first is heard by nobody who comes later.
        let (console, said) = Console::open(record.settings.console_device(), record.id, dir, uptime_ms());
        said.iter().for_each(|text| say(text));
        let kernel = Mounted::at(&record.settings.root);
        Hold::on(&kernel, &record).boot(|| signals.are_there())?;
        let (doorbell, tail) = (Some(doorbell), Tail::default());
        Ok(Self { kernel, console, typing_is_over: false, signals, doorbell, line, tail, record })
    }

    fn hold(&self) -> Hold<'_, Mounted> {
        Hold::on(&self.kernel, &self.record)
    }

    fn stand(&mut self) -> ExitCode {
        let mut was_forced = false;
        let mut unseen = None;
        let mut next_look = Instant::now();
        let mut seen_to_end = None;
        loop {
            self.carry(next_look.saturating_duration_since(Instant::now()));
            if self.signals.take() {
                was_forced = true;
                if let Err(reason) = self.hold().end(|step| say(&format!("the kernel is ended by {step}"))) {
                    say(&reason);
                }
            }
            if seen_to_end.is_none() && self.tail.ends() {
                (seen_to_end, next_look) = (Some(Instant::now()), Instant::now());
            }
            if Instant::now() >= next_look {
                let ends = seen_to_end.is_some_and(|seen: Instant| seen.elapsed() < AT_THE_END);
                next_look = Instant::now() + if ends { LOOK_AT_THE_END } else { LOOK };
                self.console.look(uptime_ms()).iter().for_each(|text| say(text));
                match self.hold().status() {
                    Ok(Some(InstanceStatus::Active)) => unseen = None,
                    Ok(_) => return self.bury(was_forced),
                    // It may run: as long as nobody knows, it does. Said once, not at every look.
                    Err(reason) if unseen.as_ref() == Some(&reason) => {}
                    Err(reason) => {
                        say(&reason);
                        unseen = Some(reason);
                    }
                }
            }
        }
    }

    /// The kernel has ended: hears its last words, gives back what it had, and tells how it ended by ending likewise.
    fn bury(&mut self, was_forced: bool) -> ExitCode {
        let until = Instant::now() + LAST_WORDS;
        let mut heard = (Instant::now(), self.tail.total);
        while Instant::now() < until.min(heard.0 + SILENCE) {
            self.carry(SILENCE);
            if self.tail.total != heard.1 {
                heard = (Instant::now(), self.tail.total);
            }
        }
        // The others' folders are beside it.
        let released = std::env::current_dir()
            .map_err(|error| format!("could not find the runtime folder: {error}"))
            .and_then(|dir| self.hold().release(&dir, RELEASE_WAIT, || self.signals.are_there()));
        match released {
            Ok(()) => {
                if let Err(error) = Record::remove(Path::new(".")) {
                    say(&format!("what was made is given back, but noted still: {error}"));
                }
            }
            // Whoever forgets the kernel, or starts the next in its place, does it then, and waits longer.
            Err(reason) => say(&format!("what the kernel had is not given back yet: {reason}")),
        }
        match ending(&self.tail, was_forced) {
            Ending::Panicked => return ExitCode::from(EXIT_PANICKED),
            Ending::InOrder => return ExitCode::SUCCESS,
            Ending::Forced => {
                let _ = kill_process(getpid(), Signal::KILL);
            }
            Ending::Unexplained => {}
        }
        ExitCode::from(Job::EXIT_UNEXPLAINED)
    }

    /// Carries bytes until something is to be looked at, for so long at most.
    fn carry(&mut self, at_most: Duration) {
        let stdin = io::stdin();
        let mut fds = vec![PollFd::new(&self.signals.fd, PollFlags::IN)];
        fds.extend(self.console.recorded().map(|console| PollFd::new(console, PollFlags::IN)));
        if !self.typing_is_over {
            fds.push(PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN));
        }
        fds.extend(self.doorbell.as_ref().map(|doorbell| PollFd::new(doorbell, PollFlags::IN)));
        fds.extend(self.line.sockets().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        let wait = Timespec::try_from(at_most).ok();
        let _ = poll(&mut fds, wait.as_ref()); // a timeout or a signal: either way, look at everything
        drop(fds);
        self.carry_console();
        self.line.accept();
        self.carry_doorbell();
    }

    fn carry_console(&mut self) {
        let mut buffer = [0; CHUNK];
        loop {
            match self.console.read(&mut buffer) {
                Ok(Some(n)) => {
                    self.tail.push(&buffer[..n]);
                    let mut out = io::stdout().lock();
                    if out.write_all(&buffer[..n]).and_then(|()| out.flush()).is_err() {
                        break;
                    }
                }
                Ok(None) => break,
                Err(reason) => {
                    say(&reason);
                    break;
                }
            }
        }
        if self.typing_is_over || !is_readable(io::stdin().as_fd()) {
            return;
        }
        match rustix::io::read(io::stdin().as_fd(), &mut buffer) {
            Ok(0) => self.typing_is_over = true,
            Ok(n) => self.console.write(&buffer[..n]).into_iter().for_each(say),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => self.typing_is_over = true,
        }
    }

    fn carry_doorbell(&mut self) {
        let mut buffer = [0; CHUNK];
        let Some(doorbell) = &mut self.doorbell else { return };
        loop {
            match doorbell.read(&mut buffer) {
                Ok(0) => {
                    self.doorbell = None;
                    return;
                }
                // A bell that finds no room is one of many that wait there already.
                Ok(n) => self.line.write(&buffer[..n]),
                Err(_) => break,
            }
        }
        while let Some(n) = self.line.read(&mut buffer) {
            let _ = doorbell.write(&buffer[..n]);
        }
    }
}

/// What tells the warden to end.
struct Signals {
    fd: SignalFd,
    /// One was read, and nothing has been done about it yet.
    was_told: Cell<bool>,
}

impl Signals {
    /// Has them wait to be read, in this thread.
    fn block() -> io::Result<Self> {
        let mut mask = SigSet::empty();
        for signal in [NixSignal::SIGTERM, NixSignal::SIGINT, NixSignal::SIGHUP] {
            mask.add(signal);
        }
        mask.thread_block()?;
        let fd = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self { fd, was_told: Cell::new(false) })
    }

    /// Whether one has come about which nothing has been done.
    fn are_there(&self) -> bool {
        while let Ok(Some(_)) = self.fd.read_signal() {
            self.was_told.set(true);
        }
        self.was_told.get()
    }

    /// The same, for whoever does something about it.
    fn take(&self) -> bool {
        let are_there = self.are_there();
        self.was_told.set(false);
        are_there
    }
}

fn is_readable(fd: std::os::fd::BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
}

/// A line of ours in the kernel's console log.
fn say(text: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "\r\ntombolo: {text}\r").and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::raise;

    use super::*;

    #[test]
    fn signal_is_seen_until_something_is_done_about_it() {
        let signals = Signals::block().unwrap();
        assert!(!signals.are_there());
        raise(NixSignal::SIGTERM).unwrap(); // to this thread
        assert!(signals.are_there() && signals.are_there(), "whoever looks does not take it from the next");
        assert!(signals.take());
        assert!(!signals.are_there() && !signals.take());
    }
}
