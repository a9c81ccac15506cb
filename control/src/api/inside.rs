//! `tombolo.control.Inside`: what goes on inside an instance. The daemon passes each call on to the agent there, with
//! its streams and their credit: who does not read makes the program inside wait, and nobody else.

use tombolo_agent::api::agent::Pong;
use tombolo_agent::api::exec::{Attach, ExecIn, ExecOut, ExecSpec, ExitStatus, JobInfo, Signal};
use tombolo_agent::api::files::{FileInfo, Get, GetDone, Put, PutDone};
use tombolo_agent::api::forward::{ForwardConnect, ForwardDone};
use tombolo_agent::api::health::HealthReport;
use tombolo_agent::api::logs::{LogCursor, LogItem, LogQuery};
use tombolo_rpc::{Blob, Ctx};

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

use super::ControlError;
use super::measure::LinkFigures;

/// What goes on inside the instance `name`. Each method is that of the agent's service of the same meaning.
#[tombolo_rpc::service(name = "tombolo.control.Inside")]
pub trait Inside {
    /// A round trip to the agent.
    async fn ping(&self, cx: &Ctx, name: String) -> Result<PingAnswer, ControlError>;
    /// Measures the link to the agent for so long in all, in ms (200 to 30 000), beside what this host needs for a wake-up and a copy.
    async fn measure(&self, cx: &Ctx, name: String, for_ms: u32) -> Result<LinkFigures, ControlError>;
    /// Health and load as the agent sees them now.
    async fn report(&self, cx: &Ctx, name: String) -> Result<HealthReport, ControlError>;
    /// Runs a program until it ends or the caller goes away.
    async fn run(
        &self,
        cx: &Ctx,
        name: String,
        spec: ExecSpec,
        input: Receiver<ExecIn>,
        out: Sender<ExecOut>,
    ) -> Result<ExitStatus, ControlError>;
    /// Starts a program and leaves it running.
    async fn start_job(&self, cx: &Ctx, name: String, spec: ExecSpec) -> Result<JobInfo, ControlError>;
    /// The programs that were started so, and those that callers wait for.
    async fn jobs(&self, cx: &Ctx, name: String) -> Result<Vec<JobInfo>, ControlError>;
    /// Follows a job.
    async fn attach(
        &self,
        cx: &Ctx,
        name: String,
        request: Attach,
        input: Receiver<ExecIn>,
        out: Sender<ExecOut>,
    ) -> Result<ExitStatus, ControlError>;
    /// Sends a signal to a job.
    async fn signal_job(&self, cx: &Ctx, name: String, job: u64, signal: Signal) -> Result<(), ControlError>;
    /// Forgets a job that has ended.
    async fn forget_job(&self, cx: &Ctx, name: String, job: u64) -> Result<(), ControlError>;
    /// Writes a file.
    async fn put(
        &self,
        cx: &Ctx,
        name: String,
        request: Put,
        input: Receiver<Blob>,
    ) -> Result<PutDone, ControlError>;
    /// How much of an interrupted put is there.
    async fn partial(
        &self,
        cx: &Ctx,
        name: String,
        path: String,
        resume_key: String,
    ) -> Result<u64, ControlError>;
    /// Reads a file.
    async fn get(
        &self,
        cx: &Ctx,
        name: String,
        request: Get,
        out: Sender<Blob>,
    ) -> Result<GetDone, ControlError>;
    /// What there is at a path.
    async fn stat(&self, cx: &Ctx, name: String, path: String) -> Result<FileInfo, ControlError>;
    /// What kernel, agent and programs wrote.
    async fn logs(
        &self,
        cx: &Ctx,
        name: String,
        query: LogQuery,
        out: Sender<LogItem>,
    ) -> Result<LogCursor, ControlError>;
    /// Connects to something inside and carries bytes both ways. An empty first item says that the connection is there.
    async fn connect(
        &self,
        cx: &Ctx,
        name: String,
        request: ForwardConnect,
        input: Receiver<Blob>,
        out: Sender<Blob>,
    ) -> Result<ForwardDone, ControlError>;
}

/// Answer to [`Inside::ping`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct PingAnswer {
    /// From the daemon to the agent and back, in ns: the way to the daemon is not in it.
    pub round_trip_ns: u64,
    /// The clocks inside.
    pub pong: Pong,
}
