//! Running other programs, always to an end: with a deadline, and with what they said when they failed.

use std::io::{BufRead as _, BufReader, Read};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};

/// Runs a program that should succeed; its output is shown only if it does not.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("could not run {}", name_of(command)))?;
    ensure!(
        output.status.success(),
        "{} ended with {}: {}",
        name_of(command),
        output.status,
        last_lines(&output.stderr)
    );
    Ok(())
}

/// Runs a program for at most `limit` and returns whatever came of it.
pub(crate) fn run_for(command: &mut Command, limit: Duration) -> Result<Output> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("could not run {}", name_of(command)))?;
    let (stdout, stderr) = (reader(child.stdout.take()), reader(child.stderr.take()));
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if Instant::now() > deadline {
            break None;
        }
        thread::sleep(Duration::from_millis(2));
    };
    if status.is_none() {
        child.kill()?;
        child.wait()?;
    }
    let collect = |reader: JoinHandle<Vec<u8>>| reader.join().unwrap_or_default();
    let (stdout, stderr) = (collect(stdout), collect(stderr));
    match status {
        Some(status) => Ok(Output { status, stdout, stderr }),
        None => bail!("{} did not end within {limit:?}; it said: {}", name_of(command), last_lines(&stderr)),
    }
}

fn reader(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // An error ends the output early; the exit status tells the rest.
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}

/// The program and its arguments, for messages.
pub(crate) fn name_of(command: &Command) -> String {
    let words = [command.get_program()].into_iter().chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    format!("`{}`", words.join(" "))
}

/// The end of what a program said.
pub(crate) fn last_lines(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(6)..].join(" | ")
}

/// A program whose lines are read as they come. It is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Lines {
    name: String,
    child: Child,
    lines: Receiver<Line>,
    errors: Option<JoinHandle<Vec<u8>>>,
}

/// A line, and when it was read.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) text: String,
    pub(crate) read_at: SystemTime,
}

impl Lines {
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let name = name_of(command);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("could not run {name}"))?;
        let stdout = child.stdout.take().context("stdout is not piped")?;
        let errors = Some(reader(child.stderr.take()));
        let (sender, lines) = channel();
        thread::spawn(move || {
            for text in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(Line { text, read_at: SystemTime::now() }).is_err() {
                    return;
                }
            }
        });
        Ok(Self { name, child, lines, errors })
    }

    /// The next line, or `None` when there will be no more.
    pub(crate) fn next(&mut self, limit: Duration) -> Result<Option<Line>> {
        match self.lines.recv_timeout(limit) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => bail!("{} said nothing for {limit:?}", self.name),
        }
    }

    /// Waits for the first line that `pick` takes.
    pub(crate) fn find<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut pick: impl FnMut(&Line) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + limit;
        let mut last = String::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(
                !left.is_zero(),
                "{} did not report {what} within {limit:?}; its last line was: {last}",
                self.name
            );
            let Some(line) =
                self.next(left).with_context(|| format!("waiting for {what}; the last line was: {last}"))?
            else {
                let status = self.child.wait()?;
                let errors = self.errors.take().and_then(|errors| errors.join().ok()).unwrap_or_default();
                bail!("{} ended ({status}) before {what}: {} {last}", self.name, last_lines(&errors));
            };
            if let Some(found) = pick(&line) {
                return Ok(found);
            }
            last = line.text;
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
