//! `tombolo.control.Inside`: each call goes on to the agent of the instance it names.

use std::time::Instant;

use tombolo_agent::api::agent::AgentClient;
use tombolo_agent::api::exec::{
    Attach, ExecClient, ExecError, ExecIn, ExecOut, ExecSpec, ExitStatus, JobInfo, Signal,
};
use tombolo_agent::api::files::{FileError, FileInfo, FilesClient, Get, GetDone, Put, PutDone};
use tombolo_agent::api::forward::{ForwardClient, ForwardConnect, ForwardDone, ForwardError};
use tombolo_agent::api::health::{HealthClient, HealthReport};
use tombolo_agent::api::logs::{LogCursor, LogItem, LogQuery, LogsClient};
use tombolo_rpc::{Blob, Call, Ctx, Receiver, Sender};

use super::Session;
use super::relay::{relay_both, relay_in, relay_out, told};
use crate::api::error::Refusal;
use crate::api::inside::{Inside, PingAnswer};
use crate::api::measure::LinkFigures;
use crate::api::{ControlError, Role};

impl Inside for Session {
    async fn ping(&self, cx: &Ctx, name: String) -> Result<PingAnswer, ControlError> {
        let agent = AgentClient::new(self.agent(&name).await?);
        let started = Instant::now();
        let pong = within(cx, agent.ping()).await.map_err(told(&name, |_| Refusal::Failed))?;
        Ok(PingAnswer { round_trip_ns: started.elapsed().as_nanos() as u64, pong })
    }

    async fn measure(&self, _cx: &Ctx, name: String, for_ms: u32) -> Result<LinkFigures, ControlError> {
        self.measure_link(&name, for_ms).await
    }

    async fn report(&self, cx: &Ctx, name: String) -> Result<HealthReport, ControlError> {
        within(cx, HealthClient::new(self.agent(&name).await?).status())
            .await
            .map_err(told(&name, |_| Refusal::Failed))
    }

    async fn run(
        &self,
        _cx: &Ctx,
        name: String,
        spec: ExecSpec,
        input: Receiver<ExecIn>,
        out: Sender<ExecOut>,
    ) -> Result<ExitStatus, ControlError> {
        self.require(Role::Operator, "exec")?;
        let exec = ExecClient::new(self.agent(&name).await?);
        self.audit(&format!("exec {}", spec.argv.join(" ")), Some(&name), &Ok(())).await;
        relay_both(exec.run(spec), input, out).await.map_err(told(&name, kind_of_exec))
    }

    async fn start_job(&self, cx: &Ctx, name: String, spec: ExecSpec) -> Result<JobInfo, ControlError> {
        self.require(Role::Operator, "exec")?;
        let exec = ExecClient::new(self.agent(&name).await?);
        self.audit(&format!("exec -d {}", spec.argv.join(" ")), Some(&name), &Ok(())).await;
        within(cx, exec.start(spec)).await.map_err(told(&name, kind_of_exec))
    }

    async fn jobs(&self, cx: &Ctx, name: String) -> Result<Vec<JobInfo>, ControlError> {
        within(cx, ExecClient::new(self.agent(&name).await?).list()).await.map_err(told(&name, kind_of_exec))
    }

    async fn attach(
        &self,
        _cx: &Ctx,
        name: String,
        request: Attach,
        input: Receiver<ExecIn>,
        out: Sender<ExecOut>,
    ) -> Result<ExitStatus, ControlError> {
        self.require(Role::Operator, "attach to a job")?;
        let exec = ExecClient::new(self.agent(&name).await?);
        relay_both(exec.attach(request), input, out).await.map_err(told(&name, kind_of_exec))
    }

    async fn signal_job(&self, cx: &Ctx, name: String, job: u64, signal: Signal) -> Result<(), ControlError> {
        self.require(Role::Operator, "signal a job")?;
        let call = ExecClient::new(self.agent(&name).await?).kill(job, signal);
        within(cx, call).await.map_err(told(&name, kind_of_exec))
    }

    async fn forget_job(&self, cx: &Ctx, name: String, job: u64) -> Result<(), ControlError> {
        self.require(Role::Operator, "forget a job")?;
        within(cx, ExecClient::new(self.agent(&name).await?).forget(job))
            .await
            .map_err(told(&name, kind_of_exec))
    }

    async fn put(
        &self,
        _cx: &Ctx,
        name: String,
        request: Put,
        input: Receiver<Blob>,
    ) -> Result<PutDone, ControlError> {
        self.require(Role::Operator, "cp")?;
        let files = FilesClient::new(self.agent(&name).await?);
        self.audit(&format!("cp into {}", request.path), Some(&name), &Ok(())).await;
        relay_in(files.put(request), input).await.map_err(told(&name, kind_of_file))
    }

    async fn partial(
        &self,
        cx: &Ctx,
        name: String,
        path: String,
        resume_key: String,
    ) -> Result<u64, ControlError> {
        self.require(Role::Operator, "cp")?;
        let call = FilesClient::new(self.agent(&name).await?).partial(path, resume_key);
        within(cx, call).await.map_err(told(&name, kind_of_file))
    }

    async fn get(
        &self,
        _cx: &Ctx,
        name: String,
        request: Get,
        out: Sender<Blob>,
    ) -> Result<GetDone, ControlError> {
        self.require(Role::Operator, "cp")?;
        let files = FilesClient::new(self.agent(&name).await?);
        relay_out(files.get(request), out).await.map_err(told(&name, kind_of_file))
    }

    async fn stat(&self, cx: &Ctx, name: String, path: String) -> Result<FileInfo, ControlError> {
        self.require(Role::Operator, "cp")?;
        within(cx, FilesClient::new(self.agent(&name).await?).stat(path))
            .await
            .map_err(told(&name, kind_of_file))
    }

    async fn logs(
        &self,
        _cx: &Ctx,
        name: String,
        query: LogQuery,
        out: Sender<LogItem>,
    ) -> Result<LogCursor, ControlError> {
        let logs = LogsClient::new(self.agent(&name).await?);
        relay_out(logs.read(query), out).await.map_err(told(&name, |_| Refusal::Invalid))
    }

    async fn connect(
        &self,
        _cx: &Ctx,
        name: String,
        request: ForwardConnect,
        input: Receiver<Blob>,
        out: Sender<Blob>,
    ) -> Result<ForwardDone, ControlError> {
        self.require(Role::Operator, "connect")?;
        let forward = ForwardClient::new(self.agent(&name).await?);
        relay_both(forward.connect(request), input, out).await.map_err(told(&name, kind_of_forward))
    }
}

/// Gives a call no more time than the caller's own.
fn within<T, E>(cx: &Ctx, call: Call<T, E>) -> Call<T, E> {
    match cx.remaining() {
        Some(remaining) => call.deadline(remaining),
        None => call,
    }
}

fn kind_of_exec(error: &ExecError) -> Refusal {
    match error {
        ExecError::NotFound { .. } | ExecError::NoSuchJob { .. } => Refusal::NotFound,
        ExecError::NotExecutable { .. } => Refusal::NotExecutable,
        ExecError::Invalid { .. } => Refusal::Invalid,
        ExecError::WrongState { .. } => Refusal::Conflict,
        _ => Refusal::Failed,
    }
}

fn kind_of_file(error: &FileError) -> Refusal {
    match error {
        FileError::NotFound { .. } => Refusal::NotFound,
        FileError::InvalidPath { .. } => Refusal::Invalid,
        FileError::Exists { .. } | FileError::WrongKind { .. } | FileError::Busy { .. } => Refusal::Conflict,
        _ => Refusal::Failed,
    }
}

fn kind_of_forward(error: &ForwardError) -> Refusal {
    match error {
        ForwardError::NoSuchForward { .. } => Refusal::NotFound,
        _ => Refusal::Failed,
    }
}
