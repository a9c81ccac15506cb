//! A probe boot: whether a kernel comes to its user space on an accelerator, within a deadline.
//!
//! The machine has two CPUs, a console and an archive with the agent alone. Without a configuration that one says so on the console and
//! ends, which is the mark: the kernel has started its CPUs and run a program. Nothing else is there to be disturbed, and nothing is left.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use tokio::time::timeout;

use super::accel::Acceleration;
use super::image::Image;
use super::{CONSOLE, plain};
use crate::keeper::{Job, names, write_atomically};
use crate::spawner::{FileContent, InitrdFile, SpawnerKind, cpio, initrd};

/// How the agent begins what it says without a configuration.
const MARK: &[u8] = b"tombolo-agent: ";
/// The most that is read of a console, in bytes: a kernel says some kilobytes until there.
const CONSOLE_BYTES_MAX: u64 = 1 << 20;
/// How long QEMU may take to be gone once it was killed.
const GONE_MAX: Duration = Duration::from_secs(5);
/// What QEMU itself says.
const LOG: &str = "probe.log";

/// What to boot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Machine<'a> {
    pub(super) image: &'a Image,
    /// Its first process.
    pub(super) agent: &'a Path,
    /// The program that becomes QEMU, and sees to it that QEMU does not outlive us.
    pub(super) keeper_binary: &'a Path,
    pub(super) acceleration: &'a Acceleration,
}

impl Machine<'_> {
    /// Boots it in `folder`, which is made and removed. The error says what was seen instead of the mark.
    ///
    /// # Cancel safety
    /// Dropping the future kills the machine and leaves the folder to the next call.
    pub(super) async fn boot(self, folder: &Path, deadline: Duration) -> Result<(), String> {
        let told =
            |error: io::Error| format!("the probe could not be prepared in {}: {error}", folder.display());
        self.prepare(folder).await.map_err(told)?;
        let came_up = self.run(folder, deadline).await;
        if let Err(error) = fs::remove_dir_all(folder) {
            tracing::warn!(dir = %folder.display(), %error, "the folder of a probe boot could not be removed");
        }
        came_up
    }

    async fn prepare(self, folder: &Path) -> io::Result<()> {
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => DirBuilder::new().mode(0o700).create(folder)?,
        }
        let init = InitrdFile {
            guest_path: "/init".into(),
            mode: 0o755,
            content: FileContent::Path(self.agent.to_owned()),
        };
        let archive = folder.join(initrd::NAME);
        let written = tokio::task::spawn_blocking(move || {
            cpio::write_archive(&mut io::BufWriter::new(File::create(archive)?), &[init])
        });
        written.await.map_err(io::Error::other)??;
        let job = serde_json::to_vec(&self.job().map_err(io::Error::other)?)?;
        write_atomically(&folder.join(names::JOB), &job)
    }

    fn job(self) -> Result<Job, String> {
        let mut argv = vec![plain(&self.image.program)?];
        for folder in &self.image.firmware {
            argv.extend(["-L".to_owned(), plain(folder)?]);
        }
        let options = [
            ("-name", "probe".to_owned()),
            ("-machine", "q35".into()),
            ("-smp", "2".into()),
            ("-m", "192M".into()),
            ("-display", "none".into()),
            ("-chardev", format!("stdio,id={CONSOLE},signal=off")),
            ("-serial", format!("chardev:{CONSOLE}")),
            ("-kernel", plain(&self.image.kernel)?),
            ("-initrd", initrd::NAME.into()),
            ("-append", "console=ttyS0 quiet panic=-1 rdinit=/init mitigations=off".into()),
        ];
        let options = options.into_iter().chain(self.acceleration.options());
        argv.extend(options.flat_map(|(option, value)| [option.to_owned(), value]));
        argv.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(str::to_owned));
        Ok(Job {
            name: "probe".into(),
            kind: SpawnerKind::Qemu,
            argv,
            env: self.image.environment(),
            console_bytes_max: CONSOLE_BYTES_MAX,
            memory: None,
            cpus: Vec::new(),
            backend: None,
            runs_on: None,
        })
    }

    async fn run(self, folder: &Path, deadline: Duration) -> Result<(), String> {
        let told = |error: io::Error| format!("it could not be started: {error}");
        let log = File::create(folder.join(LOG)).map_err(told)?;
        let mut machine = Command::new(self.keeper_binary)
            .args(["keeper", "--dir"])
            .arg(folder)
            .args(["--exec-for", &std::process::id().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .map_err(told)?;
        let console = machine.stdout.take().ok_or("it has no console")?;
        let seen = timeout(deadline, reaches_mark(console)).await;
        let _ = machine.start_kill();
        if timeout(GONE_MAX, machine.wait()).await.is_err() {
            tracing::warn!("QEMU of a probe boot was killed and is not gone yet");
        }
        match seen {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false)) => {
                let log = fs::read_to_string(folder.join(LOG)).unwrap_or_default();
                Err(format!(
                    "it ended before it reached user space: {}",
                    log.lines().next().unwrap_or("it does not say why")
                ))
            }
            Ok(Err(error)) => Err(format!("its console could not be read: {error}")),
            Err(_) => Err(format!("it did not reach user space within {deadline:?}")),
        }
    }
}

/// Reads a console until the mark has been seen, or until its end.
async fn reaches_mark(console: impl AsyncRead + Unpin) -> io::Result<bool> {
    let mut console = console.take(CONSOLE_BYTES_MAX);
    let (mut seen, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        let count = console.read(&mut piece).await?;
        seen.extend_from_slice(&piece[..count]);
        if seen.windows(MARK.len()).any(|window| window == MARK) {
            return Ok(true);
        }
        if count == 0 {
            return Ok(false);
        }
        // What is left may be the beginning of the mark.
        seen.drain(..seen.len().saturating_sub(MARK.len()));
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[tokio::test]
    async fn mark_is_found_wherever_it_is_cut_and_a_console_without_it_ends() {
        for piece in [1, 7, 4096] {
            let (mut to, console) = tokio::io::duplex(piece);
            let says = [b"[    0.0] Linux\r\n".as_slice(), MARK, b"could not read"].concat();
            let machine = tokio::spawn(async move { to.write_all(&says).await });
            assert!(reaches_mark(console).await.unwrap(), "in pieces of {piece}");
            let _ = machine.await;
        }
        assert!(!reaches_mark(&b"Kernel panic - not syncing"[..]).await.unwrap());
        assert!(!reaches_mark(&MARK[1..]).await.unwrap());
        assert!(!reaches_mark(tokio::io::repeat(b'x')).await.unwrap(), "however much it says");
    }
}
