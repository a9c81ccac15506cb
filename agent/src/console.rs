//! Lines to the console, without ever waiting for it.
//!
//! The console of a spawned kernel is a pipe or terminal whose reader may be slow, frozen or dead. The agent must go on
//! then, so a thread writes, and what it cannot keep up with is dropped and counted.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::time::{Duration, Instant};

/// Lines that may wait: a burst of a boot.
const LINES_MAX: usize = 1024;
/// Pause until a full queue is tried again.
const FLUSH_RETRY: Duration = Duration::from_millis(1);

/// The console. Clones share it.
#[derive(Clone, Debug)]
pub struct Console {
    lines: SyncSender<Item>,
    dropped: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Item {
    Line(Vec<u8>),
    /// Everything before it is written: say so.
    Flushed(SyncSender<()>),
}

impl Console {
    /// Starts the thread that writes to `to`.
    ///
    /// # Errors
    /// If no thread can be made.
    pub fn start(to: impl Write + Send + 'static) -> io::Result<Self> {
        let (lines, inbox) = mpsc::sync_channel(LINES_MAX);
        let dropped = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&dropped);
        let write = move || write_all(to, &inbox, &counter);
        std::thread::Builder::new().name("console".to_owned()).spawn(write)?;
        Ok(Self { lines, dropped })
    }

    /// Writes a line, soon, or drops it.
    pub fn line(&self, mut line: Vec<u8>) {
        if !line.ends_with(b"\n") {
            line.push(b'\n');
        }
        if let Err(TrySendError::Full(_)) = self.lines.try_send(Item::Line(line)) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until what was written so far is out, at most so long.
    pub fn flush(&self, limit: Duration) {
        let until = Instant::now() + limit;
        let (done, waiting) = mpsc::sync_channel(1);
        let mut marker = Item::Flushed(done);
        while let Err(TrySendError::Full(again)) = self.lines.try_send(marker) {
            if Instant::now() >= until {
                return;
            }
            std::thread::sleep(FLUSH_RETRY);
            marker = again;
        }
        // An error means that the time is over, or the thread.
        let _ = waiting.recv_timeout(until.saturating_duration_since(Instant::now()));
    }
}

fn write_all(mut to: impl Write, inbox: &Receiver<Item>, dropped: &AtomicU64) {
    while let Ok(item) = inbox.recv() {
        // A console that is gone takes nothing, and there is nobody to tell.
        let _ = match item {
            Item::Line(line) => to.write_all(&line),
            Item::Flushed(done) => done.send(()).map_err(io::Error::other),
        };
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let _ = writeln!(to, "({lost} lines were dropped here)");
        }
    }
}

/// What `tracing` writes one event to.
#[derive(Debug)]
pub struct ConsoleEvent {
    console: Console,
    line: Vec<u8>,
}

impl Write for ConsoleEvent {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for ConsoleEvent {
    fn drop(&mut self) {
        self.console.line(std::mem::take(&mut self.line));
    }
}

impl<'a> tracing_subscriber::fmt::MakeWriter<'a> for Console {
    type Writer = ConsoleEvent;

    fn make_writer(&'a self) -> ConsoleEvent {
        ConsoleEvent { console: self.clone(), line: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Condvar, Mutex};

    use super::*;

    /// Takes nothing until it is opened.
    #[derive(Clone, Default)]
    struct Gate(Arc<(Mutex<(bool, String)>, Condvar)>);

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut state = self.0.1.wait_while(self.0.0.lock().unwrap(), |(open, _)| !*open).unwrap();
            state.1 += &String::from_utf8_lossy(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_console_that_takes_nothing_holds_nobody_up_and_the_loss_is_told() {
        let gate = Gate::default();
        let console = Console::start(gate.clone()).unwrap();
        for line in 0..2 * LINES_MAX {
            console.line(line.to_string().into_bytes());
        }
        gate.0.0.lock().unwrap().0 = true;
        gate.0.1.notify_all();
        console.flush(Duration::from_secs(30));
        let text = gate.0.0.lock().unwrap().1.clone();
        assert!(text.starts_with("0\n") && text.contains("lines were dropped here"), "{text}");
    }
}
