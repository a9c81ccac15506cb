//! A machine's monitor, asked by hand: the witness that is not ours.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

/// How long QEMU may take to answer; it serves one client at a time.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// A connection to the monitor of one machine.
pub(super) struct Monitor {
    stream: BufReader<UnixStream>,
}

impl Monitor {
    /// To the machine that runs in this folder.
    pub(super) fn connect(dir: &Path) -> Result<Self> {
        let stream = UnixStream::connect(dir.join("qmp.sock")).context("could not reach the monitor")?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        let mut monitor = Self { stream: BufReader::new(stream) };
        monitor.line()?;
        monitor.run("qmp_capabilities", json!({}))?;
        Ok(monitor)
    }

    /// Has a command carried out.
    pub(super) fn run(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let order = json!({ "execute": command, "arguments": arguments });
        self.stream.get_mut().write_all(format!("{order}\n").as_bytes())?;
        loop {
            let mut answer = self.line()?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                bail!("the monitor refused `{command}`: {error}");
            }
            // An event.
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.stream.read_line(&mut line).context("the monitor does not answer")?;
        serde_json::from_str(&line).context("the monitor does not speak JSON")
    }
}
