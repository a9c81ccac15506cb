//! A command that is running, its output read line by line.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::bed::{Said, send_signal};
use crate::wait::LONG;

/// A command that is running. Dropping it kills it.
#[derive(Debug)]
pub struct Attached {
    child: Child,
    lines: Receiver<String>,
    seen: String,
    stderr: Option<JoinHandle<String>>,
}

impl Attached {
    /// Runs `command`.
    ///
    /// # Panics
    /// When it cannot be run.
    pub fn run(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let stderr = std::thread::spawn(move || {
            let mut said = Vec::new();
            let _ = stderr.read_to_end(&mut said);
            String::from_utf8_lossy(&said).into_owned()
        });
        Self { child, lines, seen: String::new(), stderr: Some(stderr) }
    }

    /// The next line of its output that is as wanted.
    ///
    /// # Panics
    /// When none comes.
    pub fn line(&mut self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let start = Instant::now();
        loop {
            match self.lines.recv_timeout(LONG.saturating_sub(start.elapsed())) {
                Ok(line) => {
                    self.seen.push_str(&line);
                    self.seen.push('\n');
                    if wanted(&line) {
                        return line;
                    }
                }
                Err(error) => {
                    let _ = self.child.kill();
                    let said = self.stderr.take().map(JoinHandle::join);
                    panic!("no {what} ({error}); it said {:?} and {said:?}", self.seen);
                }
            }
        }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal by name.
    pub fn signal(&self, name: &str) {
        send_signal(self.child.id(), name);
    }

    /// Waits for its end, and gives all it said.
    ///
    /// # Panics
    /// When it does not end.
    pub fn finish(mut self) -> Said {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < LONG, "it does not end; it said {:?}", self.seen);
            std::thread::sleep(std::time::Duration::from_millis(5));
        };
        loop {
            match self.lines.recv_timeout(LONG) {
                Ok(line) => {
                    self.seen.push_str(&line);
                    self.seen.push('\n');
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("its stdout stays open"),
            }
        }
        let stderr = self.stderr.take().and_then(|reading| reading.join().ok()).unwrap_or_default();
        Said { code: status.code().unwrap_or(-1), stdout: std::mem::take(&mut self.seen), stderr }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
