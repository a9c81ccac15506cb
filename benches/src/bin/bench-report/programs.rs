//! Running a measuring program, to an end: with a deadline, and with what it said when it failed.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tombolo_benches::figure::Figure;
use tombolo_benches::probe::{Probe, Reading};

/// A program with probes.
#[derive(Clone, Debug)]
pub(crate) struct Program(pub(crate) PathBuf);

const PROBES_MAX: Duration = Duration::from_secs(20);
const TAKE_MAX: Duration = Duration::from_secs(40);

impl Program {
    /// What it can take.
    pub(crate) fn probes(&self) -> anyhow::Result<Vec<Probe>> {
        let output = output(Command::new(&self.0).arg("probes"), PROBES_MAX)?;
        output.lines().map(|line| serde_json::from_str(line).context("reading a probe")).collect()
    }

    /// Takes one for about `ms`.
    pub(crate) fn take(&self, probe: &Probe, ms: u64) -> anyhow::Result<Reading> {
        let mut command = Command::new(&self.0);
        command.args([
            "take",
            "--way",
            &probe.way,
            "--bytes",
            &probe.bytes.to_string(),
            "--ms",
            &ms.to_string(),
        ]);
        command.args(["--test", &name(probe.test)?, "--waiting", &name(probe.waiting)?]);
        let output = output(&mut command, TAKE_MAX)?;
        let reading: Reading = serde_json::from_str(output.trim()).context("reading what was measured")?;
        ensure!(reading.probe == *probe, "what was measured is another probe: {:?}", reading.probe);
        ensure!(
            reading.value.is_finite() && reading.value > 0.0 && reading.floors.lines_ns[0] > 0.0,
            "what was measured is no figure: {}",
            output.trim()
        );
        Ok(reading)
    }
}

/// The figures of a task of the program that measures how cost grows, and why there are no more of them if it failed.
pub(crate) fn figures(command: &mut Command, limit: Duration) -> (Vec<Figure>, anyhow::Result<()>) {
    let (text, ended) = match run(command, limit) {
        Ok((text, ended)) => (text, ended),
        Err(error) => return (Vec::new(), Err(error)),
    };
    let mut figures = Vec::new();
    for line in text.lines() {
        match serde_json::from_str(line).context("reading a figure") {
            Ok(figure) => figures.push(figure),
            Err(error) => return (figures, Err(error)),
        }
    }
    (figures, ended)
}

/// As it is called in JSON.
fn name(value: impl serde::Serialize) -> anyhow::Result<String> {
    Ok(serde_json::to_value(value)?.as_str().context("a name")?.to_owned())
}

/// What a program prints, if it ends well and in time.
fn output(command: &mut Command, limit: Duration) -> anyhow::Result<String> {
    let (text, ended) = run(command, limit)?;
    ended.map(|()| text)
}

/// What a program prints, and whether it ended well and in time.
fn run(command: &mut Command, limit: Duration) -> anyhow::Result<(String, anyhow::Result<()>)> {
    let program = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("starting {program}"))?;
    let (out, err) = (child.stdout.take().map(reader), child.stderr.take().map(reader));
    let status = if ends_within(&child, limit)? {
        Some(child.wait()?)
    } else {
        child.kill()?;
        child.wait()?;
        None
    };
    let text =
        |reader: Option<JoinHandle<String>>| reader.and_then(|reader| reader.join().ok()).unwrap_or_default();
    let (out, err) = (text(out), text(err));
    let ended = match status {
        None => Err(anyhow!("{program} did not end within {limit:?}")),
        Some(status) if status.success() => Ok(()),
        Some(status) => {
            let last: Vec<_> = err.lines().filter(|line| !line.trim().is_empty()).collect();
            let last = last[last.len().saturating_sub(3)..].join(" | ");
            Err(anyhow!("{}", if last.is_empty() { status.to_string() } else { last }))
        }
    };
    Ok((out, ended))
}

/// Whether it ends in that time. Sleeps meanwhile: whoever looks every now and then takes a core from what is measured.
fn ends_within(child: &Child, limit: Duration) -> anyhow::Result<bool> {
    let pid = Pid::from_child(child);
    let end = pidfd_open(pid, PidfdFlags::empty()).context("watching for its end")?;
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs().try_into()?, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&end, PollFlags::IN)], Some(&left)) {
            Ok(ready) => return Ok(ready != 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting for its end"),
        }
    }
}

fn reader(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // An error ends the output early; the exit status tells the rest.
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_program_that_fails_is_quoted() {
        let error = output(&mut shell("echo first >&2; echo why >&2; exit 1"), PROBES_MAX).unwrap_err();
        assert_eq!(error.to_string(), "first | why");
    }

    #[test]
    fn a_program_that_hangs_is_ended() {
        let error = output(&mut shell("exec sleep 60"), Duration::from_millis(20)).unwrap_err();
        assert!(error.to_string().contains("did not end within 20ms"), "{error}");
    }

    #[test]
    fn what_was_told_before_a_task_failed_is_kept() {
        let figure = r#"{"name":"idle/cpu","value":1,"unit":"%"}"#;
        let (found, ended) =
            figures(&mut shell(&format!("echo '{figure}'; echo why >&2; exit 1")), PROBES_MAX);
        assert_eq!((found.len(), ended.unwrap_err().to_string().as_str()), (1, "why"));
    }

    #[test]
    fn a_figure_that_is_none_is_refused() {
        let (_, ended) = figures(&mut shell("echo nonsense"), PROBES_MAX);
        assert!(ended.unwrap_err().to_string().contains("reading a figure"));
    }
}
