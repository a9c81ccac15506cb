//! The program this kernel exists for: started, watched, started again, stopped.

mod restart;

use std::process::Stdio;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};

pub use restart::{Decision, Ended, RestartCore};

use crate::api::exec::{ExecError, ExitStatus};
use crate::api::health::{EntrypointState, EntrypointStatus};
use crate::api::logs::{LogLevel, LogSource};
use crate::children::{Child, ExitWatch, OnEnd, Pipes, Target};
use crate::config::Entrypoint;
use crate::exec::{Launch, Launcher, Program};
use crate::logs::{LineSplitter, Log};

/// From SIGTERM to SIGKILL when a liveness probe asks for a restart.
const UNHEALTHY_GRACE: Duration = Duration::from_secs(5);
/// One read of its output.
const READ_CHUNK_BYTES: usize = 16 * 1024;

/// Speaks to the task that runs the entrypoint. Clones speak to the same one.
#[derive(Clone, Debug)]
pub struct EntrypointHandle {
    orders: mpsc::Sender<Order>,
    status: watch::Receiver<EntrypointStatus>,
}

#[derive(Debug)]
enum Order {
    /// Stop for good: SIGTERM, then SIGKILL after so long.
    Stop(Duration),
    /// A liveness probe fails: stop, then do as the policy says.
    Unhealthy,
}

impl EntrypointHandle {
    /// Starts the entrypoint and a task that looks after it.
    pub fn start(entrypoint: Entrypoint, launcher: Launcher, log: Log) -> Self {
        let (orders, inbox) = mpsc::channel(8);
        let status = EntrypointStatus {
            argv: entrypoint.argv.clone(),
            state: EntrypointState::BackOff { next_in_ms: 0 },
            restarts: 0,
            last_exit: None,
        };
        let (sender, receiver) = watch::channel(status);
        let core = RestartCore::new(entrypoint.restart);
        tokio::spawn(Supervisor { entrypoint, launcher, log, core, inbox, status: sender }.run());
        Self { orders, status: receiver }
    }

    /// What it is doing.
    pub fn status(&self) -> EntrypointStatus {
        self.status.borrow().clone()
    }

    /// Tells of every change from now on.
    pub fn subscribe(&self) -> watch::Receiver<EntrypointStatus> {
        self.status.clone()
    }

    /// A liveness probe fails: it is stopped, and started again if its policy says so.
    pub async fn report_unhealthy(&self) {
        let _ = self.orders.send(Order::Unhealthy).await;
    }

    /// Stops it for good and waits until it has ended: at most `grace`, then it is killed.
    pub async fn stop(&self, grace: Duration) {
        if self.orders.send(Order::Stop(grace)).await.is_err() {
            return;
        }
        let mut status = self.status.clone();
        // An error means that the task has ended, hence the program too.
        let _ = status.wait_for(|status| status.state == EntrypointState::Ended).await;
    }
}

struct Supervisor {
    entrypoint: Entrypoint,
    launcher: Launcher,
    log: Log,
    core: RestartCore,
    inbox: mpsc::Receiver<Order>,
    status: watch::Sender<EntrypointStatus>,
}

/// What became of a run, or of a wait.
enum Outcome {
    Ended(Ended),
    Stopped,
}

impl Supervisor {
    async fn run(mut self) {
        loop {
            let outcome = self.run_once().await;
            let Outcome::Ended(ended) = outcome else { break };
            let decision = self.core.handle_ended(Instant::now(), ended);
            let restarts = self.core.restarts();
            self.status.send_modify(|status| status.restarts = restarts);
            let Decision::StartAt(at) = decision else {
                if !matches!(self.status.borrow().state, EntrypointState::CannotStart { .. }) {
                    self.enter(EntrypointState::Ended);
                }
                // Stays to answer a stop.
                self.await_stop(None).await;
                break;
            };
            self.show_back_off(at);
            if self.await_stop(Some(at)).await {
                break;
            }
        }
        self.enter(EntrypointState::Ended);
    }

    async fn run_once(&mut self) -> Outcome {
        let started = self.start();
        let child = match started {
            Ok(child) => child,
            Err(error) => {
                tracing::error!("the entrypoint cannot be started: {error}");
                self.enter(EntrypointState::CannotStart { reason: error.to_string(), next_in_ms: None });
                return Outcome::Ended(Ended::NotStarted);
            }
        };
        tracing::info!(pid = child.pid, argv = ?self.entrypoint.argv, "entrypoint started");
        self.core.handle_started(Instant::now());
        self.enter(EntrypointState::Running { pid: child.pid, since_ms: crate::exec::wall_ms() });
        let Child { pid, pipes, mut exit } = child;
        spawn_log_pumps(pipes, &self.log);
        tokio::select! {
            status = exit.ended() => Outcome::Ended(Ended::Exited(self.note_exit(status))),
            order = self.inbox.recv() => self.obey(order, pid, exit).await,
        }
    }

    fn start(&self) -> Result<Child, ExecError> {
        let Entrypoint { argv, env, cwd, user, .. } = &self.entrypoint;
        let program = Program::resolve(argv, env.iter().cloned(), cwd.to_str(), user.as_deref())?;
        let launch = Launch {
            stdio: [Stdio::null(), Stdio::piped(), Stdio::piped()],
            on_terminal: false,
            on_end: OnEnd::KillGroup,
            on_agent_death: nix::sys::signal::Signal::SIGTERM,
        };
        self.launcher.start(&program, launch)
    }

    async fn obey(&mut self, order: Option<Order>, pid: u32, mut exit: ExitWatch) -> Outcome {
        let (grace, outcome) = match order {
            Some(Order::Unhealthy) => (UNHEALTHY_GRACE, Outcome::Ended(Ended::Unhealthy)),
            Some(Order::Stop(grace)) => (grace, Outcome::Stopped),
            // Nobody can speak to us any more: the agent is going.
            None => (Duration::ZERO, Outcome::Stopped),
        };
        if matches!(outcome, Outcome::Stopped) {
            // Nothing comes after it: whoever is left of its group has the rest of the grace.
            self.launcher.children().leave_group(pid);
        }
        tracing::info!(pid, grace_ms = grace.as_millis() as u64, "stopping the entrypoint");
        self.enter(EntrypointState::Stopping);
        self.signal(pid, nix::libc::SIGTERM);
        let status = match tokio::time::timeout(grace, exit.ended()).await {
            Ok(status) => status,
            Err(_) => {
                tracing::warn!(pid, "the entrypoint did not end within its grace; killing it");
                self.signal(pid, nix::libc::SIGKILL);
                exit.ended().await
            }
        };
        self.note_exit(status);
        outcome
    }

    fn signal(&self, pid: u32, signal: i32) {
        if let Err(error) = self.launcher.children().signal(pid, Target::Group, signal) {
            tracing::warn!(pid, signal, %error, "the entrypoint could not be signalled");
        }
    }

    fn note_exit(&self, exit: ExitStatus) -> ExitStatus {
        let level_is_info = exit.success();
        if level_is_info {
            tracing::info!("entrypoint ended well");
        } else {
            tracing::warn!(?exit, "entrypoint ended");
        }
        self.status.send_modify(|status| status.last_exit = Some(exit));
        exit
    }

    /// Waits until `until` (for ever without one); `true` if a stop came meanwhile.
    async fn await_stop(&mut self, until: Option<Instant>) -> bool {
        let deadline = async {
            match until {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(deadline);
        loop {
            tokio::select! {
                () = &mut deadline => return false,
                order = self.inbox.recv() => match order {
                    Some(Order::Unhealthy) => {}
                    Some(Order::Stop(_)) | None => return true,
                },
            }
        }
    }

    fn show_back_off(&self, at: Instant) {
        let next_in_ms = at.saturating_duration_since(Instant::now()).as_millis() as u64;
        self.status.send_modify(|status| match &mut status.state {
            EntrypointState::CannotStart { next_in_ms: next, .. } => *next = Some(next_in_ms),
            state => *state = EntrypointState::BackOff { next_in_ms },
        });
    }

    fn enter(&self, state: EntrypointState) {
        self.status.send_modify(|status| status.state = state);
    }
}

/// Its output into the log, line by line, for as long as anyone holds the other ends.
fn spawn_log_pumps(pipes: Pipes, log: &Log) {
    let stdout = pipes.stdout.map(|out| pipe::Receiver::from_owned_fd(out.into()));
    let stderr = pipes.stderr.map(|err| pipe::Receiver::from_owned_fd(err.into()));
    for (receiver, source) in [(stdout, LogSource::Stdout), (stderr, LogSource::Stderr)] {
        match receiver {
            Some(Ok(receiver)) => drop(tokio::spawn(pump_lines(receiver, source, log.clone()))),
            Some(Err(error)) => tracing::error!(%error, ?source, "output of the entrypoint cannot be read"),
            None => {}
        }
    }
}

async fn pump_lines(mut from: pipe::Receiver, source: LogSource, log: Log) {
    let level = if source == LogSource::Stderr { LogLevel::Warn } else { LogLevel::Info };
    let mut splitter = LineSplitter::default();
    let mut buffer = BytesMut::with_capacity(READ_CHUNK_BYTES);
    while let Ok(1..) = from.read_buf(&mut buffer).await {
        splitter.push(&buffer, |line| log.push(source, level, line));
        buffer.clear();
    }
    splitter.finish(|line| log.push(source, level, line));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blackbox::BlackBox;
    use crate::children::{Children, Scope};
    use crate::config::RestartPolicy;

    struct Bed {
        handle: EntrypointHandle,
        log: Log,
    }

    fn start(script: &str, restart: RestartPolicy) -> Bed {
        let children = Children::new(Scope::OwnChildren);
        tokio::spawn(children.clone().run_reaper());
        let log = Log::new(1, BlackBox::default(), None);
        let argv = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let entrypoint = Entrypoint { argv, env: vec![], cwd: "/".into(), user: None, restart };
        let launcher = Launcher::new(children, "/proc/self/exe".into(), false);
        Bed { handle: EntrypointHandle::start(entrypoint, launcher, log.clone()), log }
    }

    async fn until(bed: &Bed, wanted: impl FnMut(&EntrypointStatus) -> bool) -> EntrypointStatus {
        let mut status = bed.handle.subscribe();
        let waited = tokio::time::timeout(Duration::from_secs(20), status.wait_for(wanted)).await;
        waited.expect("in time").unwrap().clone()
    }

    #[tokio::test]
    async fn what_it_writes_is_logged_and_its_end_is_known() {
        let bed = start("echo out; echo err >&2; exit 3", RestartPolicy::Never);
        let status = until(&bed, |status| status.state == EntrypointState::Ended).await;
        assert_eq!(status.last_exit, Some(ExitStatus::Code(3)));
        let (mut reader, _) = bed.log.begin(&Default::default()).unwrap();
        let mut lines = reader.read_batch();
        while lines.len() < 2 {
            tokio::time::timeout(Duration::from_secs(20), reader.changed()).await.unwrap();
            lines.extend(reader.read_batch());
        }
        let text = format!("{lines:?}");
        assert!(text.contains("\"out\"") && text.contains("\"err\""), "{text}");
    }

    #[tokio::test]
    async fn a_failed_one_is_started_again() {
        let bed = start("exit 1", RestartPolicy::OnFailure);
        let status = until(&bed, |status| status.restarts >= 2).await;
        assert_eq!(status.last_exit, Some(ExitStatus::Code(1)));
        bed.handle.stop(Duration::ZERO).await;
        assert_eq!(bed.handle.status().state, EntrypointState::Ended);
    }

    #[tokio::test]
    async fn one_that_ignores_sigterm_is_killed_after_its_grace() {
        let bed = start("trap '' TERM; echo ready; while :; do sleep 0.05; done", RestartPolicy::Always);
        until(&bed, |status| matches!(status.state, EntrypointState::Running { .. })).await;
        let (mut reader, _) = bed.log.begin(&Default::default()).unwrap();
        while reader.read_batch().is_empty() {
            reader.changed().await;
        }
        bed.handle.stop(Duration::from_millis(100)).await;
        let status = bed.handle.status();
        assert_eq!(status.state, EntrypointState::Ended);
        assert_eq!(status.last_exit, Some(ExitStatus::Signal { signal: 9, core_dumped: false }));
    }

    #[tokio::test]
    async fn an_unhealthy_one_is_stopped_and_started_again() {
        let bed = start("sleep 1000", RestartPolicy::OnFailure);
        until(&bed, |status| matches!(status.state, EntrypointState::Running { .. })).await;
        bed.handle.report_unhealthy().await;
        until(&bed, |status| status.restarts == 1 && matches!(status.state, EntrypointState::Running { .. }))
            .await;
        bed.handle.stop(Duration::from_secs(5)).await;
    }

    #[tokio::test]
    async fn a_missing_program_is_reported_by_name() {
        let children = Children::new(Scope::OwnChildren);
        let log = Log::new(1, BlackBox::default(), None);
        let argv = vec!["/no/such/program".to_owned()];
        let restart = RestartPolicy::Never;
        let entrypoint = Entrypoint { argv, env: vec![], cwd: "/".into(), user: None, restart };
        let launcher = Launcher::new(children, "/proc/self/exe".into(), false);
        let bed = Bed { handle: EntrypointHandle::start(entrypoint, launcher, log.clone()), log };
        let status = until(&bed, |status| matches!(status.state, EntrypointState::CannotStart { .. })).await;
        assert!(format!("{status:?}").contains("/no/such/program"));
    }
}
