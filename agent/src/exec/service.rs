//! The service [`Exec`]: conversations between callers and jobs.

use std::sync::Arc;

use tokio::sync::mpsc;
use tombolo_rpc::{Blob, Ctx, Failure, Receiver, Sender};

use super::job::Job;
use super::output::{Channel, Next};
use super::{ExecEngine, signal_number};
use crate::api::exec::{Attach, Exec, ExecError, ExecIn, ExecOut, ExecSpec, ExitStatus, JobInfo, Signal};

/// Pieces of stdin that may wait for the program while signals and sizes overtake them.
const STDIN_QUEUE: usize = 16;

/// Serves [`Exec`].
#[derive(Clone, Debug)]
pub struct ExecService(ExecEngine);

impl ExecService {
    /// Serves the jobs of `engine`.
    pub fn new(engine: ExecEngine) -> Self {
        Self(engine)
    }
}

impl Exec for ExecService {
    async fn run(
        &self,
        _cx: &Ctx,
        spec: ExecSpec,
        input: Receiver<ExecIn>,
        out: Sender<ExecOut>,
    ) -> Result<ExitStatus, ExecError> {
        let job = self.0.start(&spec, false)?;
        let owned = OwnedJob { engine: &self.0, job: &job };
        let conversation = Conversation { job: &job, out: &out, owns_job: true };
        let exit = conversation.hold(0, input).await;
        drop(owned);
        exit.map_err(|_| ExecError::CallerGone { fate: "killed".to_owned() })
    }

    async fn start(&self, _cx: &Ctx, spec: ExecSpec) -> Result<JobInfo, ExecError> {
        Ok(self.0.start(&spec, true)?.info())
    }

    async fn attach(
        &self,
        _cx: &Ctx,
        request: Attach,
        input: Receiver<ExecIn>,
        out: Sender<ExecOut>,
    ) -> Result<ExitStatus, ExecError> {
        let job = self.0.job(request.job)?;
        if !job.facts.detached {
            return Err(ExecError::WrongState {
                attempt: "attaching to".to_owned(),
                job: request.job,
                reason: "it belongs to the call that runs it".to_owned(),
            });
        }
        let conversation = Conversation { job: &job, out: &out, owns_job: false };
        let exit = conversation.hold(request.from_offset, input).await;
        exit.map_err(|_| ExecError::CallerGone { fate: "left running".to_owned() })
    }

    async fn list(&self, _cx: &Ctx) -> Result<Vec<JobInfo>, ExecError> {
        Ok(self.0.jobs().iter().map(|job| job.info()).collect())
    }

    async fn kill(&self, _cx: &Ctx, job: u64, signal: Signal) -> Result<(), ExecError> {
        self.0.kill(job, &signal)
    }

    async fn wait(&self, _cx: &Ctx, job: u64) -> Result<ExitStatus, ExecError> {
        Ok(self.0.job(job)?.ended().await)
    }

    async fn forget(&self, _cx: &Ctx, job: u64) -> Result<(), ExecError> {
        self.0.forget(job)
    }
}

/// An attached job: dies with its call, however that ends.
struct OwnedJob<'a> {
    engine: &'a ExecEngine,
    job: &'a Job,
}

impl Drop for OwnedJob<'_> {
    fn drop(&mut self) {
        if self.job.exit().is_none() {
            self.job.abandon();
        }
        self.engine.dismiss(self.job.facts.id);
    }
}

/// One caller and one job.
struct Conversation<'a> {
    job: &'a Arc<Job>,
    out: &'a Sender<ExecOut>,
    /// Whether the end of the caller's input is the end of the job's, and what it has read may be forgotten.
    owns_job: bool,
}

impl Conversation<'_> {
    /// Passes everything both ways until the job has ended and all its output is sent.
    async fn hold(&self, from: u64, input: Receiver<ExecIn>) -> Result<ExitStatus, Failure> {
        let facts = &self.job.facts;
        self.out.send(ExecOut::Started { job: facts.id, pid: facts.pid }).await?;
        let (stdin, pieces) = mpsc::channel(STDIN_QUEUE);
        let listen = async {
            tokio::join!(self.obey(input, stdin), self.feed(pieces));
            std::future::pending::<()>().await;
        };
        tokio::select! {
            shown = self.show(from) => shown?,
            () = listen => {}
        }
        Ok(self.job.ended().await)
    }

    /// Passes on what the job writes, until its end.
    async fn show(&self, from: u64) -> Result<(), Failure> {
        let mut offset = from;
        loop {
            match self.job.output_at(offset).await {
                Next::Chunk(chunk) => {
                    offset = chunk.end();
                    let data = Blob(chunk.data);
                    self.out
                        .send(match chunk.channel {
                            Channel::Stdout => ExecOut::Stdout { offset: chunk.offset, data },
                            Channel::Stderr => ExecOut::Stderr { offset: chunk.offset, data },
                        })
                        .await?;
                    if self.owns_job {
                        self.job.release_output(offset);
                    }
                }
                Next::Gap { bytes, resume } => {
                    offset = resume;
                    self.out.send(ExecOut::Gap { bytes }).await?;
                }
                Next::Wait | Next::End => return Ok(()),
            }
        }
    }

    /// Does what the caller says; `None` on `stdin` is its end.
    async fn obey(&self, mut input: Receiver<ExecIn>, stdin: mpsc::Sender<Option<Blob>>) {
        // A link that fails ends the call, and with it this future.
        while let Ok(Some(item)) = input.recv().await {
            match item {
                ExecIn::Stdin(piece) => drop(stdin.send(Some(piece)).await),
                ExecIn::Eof => drop(stdin.send(None).await),
                ExecIn::Resize(size) => self.job.resize(size),
                ExecIn::Signal(signal) => self.signal(&signal),
            }
        }
        if self.owns_job {
            drop(stdin.send(None).await);
        }
    }

    async fn feed(&self, mut pieces: mpsc::Receiver<Option<Blob>>) {
        while let Some(piece) = pieces.recv().await {
            match piece {
                Some(piece) => self.job.write_stdin(&piece).await,
                None => self.job.end_stdin().await,
            }
        }
    }

    /// A signal in the stream has no answer: one that cannot be sent is logged.
    fn signal(&self, signal: &Signal) {
        let sent = signal_number(signal).map_err(|e| e.to_string());
        let sent = sent.and_then(|number| self.job.signal(number).map_err(|e| e.to_string()));
        if let Err(error) = sent {
            tracing::warn!(job = self.job.facts.id, "a signal could not be sent: {error}");
        }
    }
}
