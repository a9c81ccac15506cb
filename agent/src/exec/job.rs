//! One program that was started, its output and how it ended.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::watch;

use super::output::{Channel, Next, OutputBuffer, WhenFull};
use super::pty::Pty;
use crate::api::exec::{ExecSpec, ExitStatus, JobInfo, WindowSize};
use crate::children::{Child, Children, ExitWatch, Target};

/// One read from a pipe or terminal: what a pipe holds by default.
const READ_CHUNK_BYTES: usize = 64 * 1024;
/// How long output is awaited after the program ended while a descendant of it still holds its pipes.
const DRAIN_GRACE: Duration = Duration::from_millis(250);
/// Ctrl-D: what ends the input of a terminal.
const END_OF_TRANSMISSION: &[u8] = &[4];

/// A program that was started.
#[derive(Debug)]
pub struct Job {
    /// What is known of it from the start.
    pub facts: JobFacts,
    children: Children,
    pty: Option<Arc<Pty>>,
    stdin: tokio::sync::Mutex<Option<Stdin>>,
    output: Mutex<OutputBuffer>,
    /// Bumped whenever `output` got more or was closed.
    output_version: watch::Sender<u64>,
    /// Bumped whenever an attached reader released output.
    room: watch::Sender<u64>,
    exit: watch::Sender<Option<ExitStatus>>,
}

/// What is known of a job from the start.
#[derive(Clone, Debug)]
pub struct JobFacts {
    /// Its id.
    pub id: u64,
    /// Its process id.
    pub pid: u32,
    /// What was asked for.
    pub spec: ExecSpec,
    /// Whether it outlives its caller.
    pub detached: bool,
    /// Since 1970.
    pub started_at_ms: u64,
    /// Killed after this long.
    pub timeout: Option<Duration>,
}

#[derive(Debug)]
enum Stdin {
    Pipe(pipe::Sender),
    Terminal(Arc<Pty>),
}

impl Job {
    /// Takes charge of a child that was just started: a task of the runtime collects its output and its end.
    ///
    /// # Errors
    /// If its pipes cannot be watched; the child is killed then.
    pub fn adopt(
        facts: JobFacts,
        child: Child,
        pty: Option<Pty>,
        children: Children,
        output_bytes: u64,
    ) -> io::Result<Arc<Self>> {
        let Child { pid, pipes, exit } = child;
        let adopt = || -> io::Result<_> {
            let pty = pty.map(Arc::new);
            let stdin = match (&pty, pipes.stdin) {
                (Some(pty), _) => Some(Stdin::Terminal(Arc::clone(pty))),
                (None, Some(stdin)) => Some(Stdin::Pipe(pipe::Sender::from_owned_fd(stdin.into())?)),
                (None, None) => None,
            };
            let stdout = pipes.stdout.map(|out| pipe::Receiver::from_owned_fd(out.into())).transpose()?;
            let stderr = pipes.stderr.map(|err| pipe::Receiver::from_owned_fd(err.into())).transpose()?;
            Ok((pty, stdin, stdout, stderr))
        };
        let (pty, stdin, stdout, stderr) = adopt().inspect_err(|_| {
            let _ = children.signal(pid, Target::Process, nix::libc::SIGKILL);
        })?;
        let when_full = if facts.detached { WhenFull::DropOldest } else { WhenFull::Wait };
        let job = Arc::new(Self {
            facts,
            children,
            pty,
            stdin: tokio::sync::Mutex::new(stdin),
            output: Mutex::new(OutputBuffer::new(output_bytes, when_full)),
            output_version: watch::Sender::new(0),
            room: watch::Sender::new(0),
            exit: watch::Sender::new(None),
        });
        tokio::spawn(Arc::clone(&job).supervise(exit, stdout, stderr));
        Ok(job)
    }

    /// How it ended; `None` while it runs or its output is still being collected.
    pub fn exit(&self) -> Option<ExitStatus> {
        *self.exit.borrow()
    }

    /// Waits until it has ended and all its output is in the buffer. Cancel safe.
    pub async fn ended(&self) -> ExitStatus {
        let mut exit = self.exit.subscribe();
        // The sender lives in `self`, so waiting cannot fail.
        exit.wait_for(Option::is_some).await.ok().and_then(|exit| *exit).unwrap_or(ExitStatus::Code(-1))
    }

    /// What there is at `offset` of its output; waits until there is something or nothing will come. Cancel safe.
    pub async fn output_at(&self, offset: u64) -> Next {
        let mut version = self.output_version.subscribe();
        loop {
            version.mark_unchanged();
            let next = self.lock_output().next(offset);
            if next != Next::Wait || version.changed().await.is_err() {
                return next;
            }
        }
    }

    /// The only reader of an attached job has everything before `offset`.
    pub fn release_output(&self, offset: u64) {
        self.lock_output().release(offset);
        self.room.send_modify(|version| *version += 1);
    }

    /// The caller of an attached job went away: kills it and discards what it may write still.
    pub fn abandon(&self) {
        self.kill();
        self.lock_output().close();
        self.room.send_modify(|version| *version += 1);
    }

    /// Writes to its stdin, waiting while it does not read. A program that closed its stdin ignores it.
    pub async fn write_stdin(&self, bytes: &[u8]) {
        let mut stdin = self.stdin.lock().await;
        let write = async {
            match &mut *stdin {
                Some(Stdin::Pipe(pipe)) => pipe.write_all(bytes).await,
                Some(Stdin::Terminal(pty)) => pty.write_all(bytes).await,
                None => Ok(()),
            }
        };
        let written = tokio::select! {
            written = write => written,
            // Somebody else may have inherited its stdin, and may never read.
            _ = self.ended() => Err(io::ErrorKind::BrokenPipe.into()),
        };
        if written.is_err() {
            *stdin = None;
        }
    }

    /// Ends its stdin.
    pub async fn end_stdin(&self) {
        let mut stdin = self.stdin.lock().await;
        match stdin.take() {
            Some(Stdin::Terminal(pty)) => {
                let _ = pty.write_all(END_OF_TRANSMISSION).await;
                *stdin = Some(Stdin::Terminal(pty));
            }
            Some(Stdin::Pipe(_)) | None => {}
        }
    }

    /// Resizes its terminal; without one, nothing.
    pub fn resize(&self, size: WindowSize) {
        if let Some(pty) = &self.pty
            && let Err(error) = pty.resize(size)
        {
            tracing::debug!(job = self.facts.id, %error, "the terminal could not be resized");
        }
    }

    /// Sends a signal to its process group; `false` if it has ended.
    pub fn signal(&self, signal: i32) -> io::Result<bool> {
        self.children.signal(self.facts.pid, Target::Group, signal)
    }

    /// Kills its process group, if it runs still.
    pub fn kill(&self) {
        if let Err(error) = self.signal(nix::libc::SIGKILL) {
            tracing::warn!(job = self.facts.id, %error, "a job could not be killed");
        }
    }

    /// How it looks from outside.
    pub fn info(&self) -> JobInfo {
        let (output_from, output_to) = {
            let output = self.lock_output();
            (output.from(), output.to())
        };
        JobInfo {
            job: self.facts.id,
            pid: self.facts.pid,
            argv: self.facts.spec.argv.clone(),
            key: self.facts.spec.key.clone(),
            detached: self.facts.detached,
            tty: self.pty.is_some(),
            started_at_ms: self.facts.started_at_ms,
            output_from,
            output_to,
            exit: self.exit(),
        }
    }

    async fn supervise(
        self: Arc<Self>,
        exit: ExitWatch,
        stdout: Option<pipe::Receiver>,
        stderr: Option<pipe::Receiver>,
    ) {
        let pumps = async {
            tokio::join!(
                self.pump_pipe(stdout, Channel::Stdout),
                self.pump_pipe(stderr, Channel::Stderr),
                self.pump_terminal(),
            )
        };
        tokio::pin!(pumps);
        let mut drained = false;
        let ended = self.await_exit(exit);
        tokio::pin!(ended);
        let status = loop {
            tokio::select! {
                status = &mut ended => break status,
                _ = &mut pumps, if !drained => drained = true,
            }
        };
        if !drained {
            self.drain(pumps).await;
        }
        self.lock_output().close();
        self.bump_output();
        self.exit.send_replace(Some(status));
        *self.stdin.lock().await = None;
    }

    /// After the end: goes on while output flows, and for [`DRAIN_GRACE`] after it stopped.
    async fn drain(&self, mut pumps: std::pin::Pin<&mut impl Future>) {
        loop {
            let before = self.lock_output().to();
            if tokio::time::timeout(DRAIN_GRACE, pumps.as_mut()).await.is_ok() {
                return;
            }
            let output = self.lock_output();
            // A reader that is slow is not a descendant that is silent: with the buffer full we wait for the reader.
            let waits_for_reader = !self.facts.detached && !output.has_room();
            if output.to() == before && !waits_for_reader {
                return;
            }
        }
    }

    async fn await_exit(&self, mut exit: ExitWatch) -> ExitStatus {
        let Some(timeout) = self.facts.timeout else { return exit.ended().await };
        match tokio::time::timeout(timeout, exit.ended()).await {
            Ok(status) => status,
            Err(_) => {
                self.kill();
                exit.ended().await;
                ExitStatus::TimedOut
            }
        }
    }

    async fn pump_pipe(&self, source: Option<pipe::Receiver>, channel: Channel) {
        let Some(mut source) = source else { return };
        let mut buffer = BytesMut::new();
        loop {
            self.await_room().await;
            buffer.reserve(READ_CHUNK_BYTES);
            match source.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return,
                // What is taken out of the buffer keeps all of its memory: worth it only if it fills most of it.
                Ok(len) if len >= READ_CHUNK_BYTES / 2 => self.push(channel, buffer.split().freeze()),
                Ok(_) => {
                    self.push(channel, Bytes::copy_from_slice(&buffer));
                    buffer.clear();
                }
            }
        }
    }

    async fn pump_terminal(&self) {
        let Some(pty) = &self.pty else { return };
        let mut buffer = vec![0; 4096];
        loop {
            self.await_room().await;
            match pty.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(len) => self.push(Channel::Stdout, Bytes::copy_from_slice(&buffer[..len])),
            }
        }
    }

    /// An attached job waits for its reader; a detached one never.
    async fn await_room(&self) {
        if self.facts.detached {
            return;
        }
        let mut room = self.room.subscribe();
        loop {
            room.mark_unchanged();
            if self.lock_output().has_room() || room.changed().await.is_err() {
                return;
            }
        }
    }

    fn push(&self, channel: Channel, data: Bytes) {
        self.lock_output().push(channel, data);
        self.bump_output();
    }

    fn bump_output(&self) {
        self.output_version.send_modify(|version| *version += 1);
    }

    fn lock_output(&self) -> MutexGuard<'_, OutputBuffer> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
