//! One life of the agent, from its configuration to its end.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tombolo_rpc::Router;
use tombolo_transport::options::AttachOptions;
use tombolo_transport::paced::PacedEndpoint;
use tombolo_transport::pool::{Phase, PoolSource};
use tombolo_transport::relay::{RelayHandle, RelayedBroker, RelayedBrokerConfig};
use tombolo_transport::{Broker, BrokerConfig, BrokerHandle, Endpoint, Member, Pool};

use crate::agent::{AgentParts, AgentService, KernelBroker, ShutdownOrder};
use crate::api::agent::{AgentMode, AgentServer};
use crate::api::exec::ExecServer;
use crate::api::files::FilesServer;
use crate::api::forward::ForwardServer;
use crate::api::handover::HandoverServer;
use crate::api::health::{AgentPhase, HealthServer};
use crate::api::logs::LogsServer;
use crate::api::measure::MeasureServer;
use crate::blackbox::BlackBox;
use crate::children::{Children, Scope};
use crate::config::{AgentConfig, Doorbell, PoolConfig};
use crate::cpus::CpuWatch;
use crate::doorbell;
use crate::entrypoint::EntrypointHandle;
use crate::exec::{ExecEngine, ExecService, Launcher};
use crate::files::FilesService;
use crate::forward::{ForwardService, Forwards};
use crate::handover::{HOOKS_DIR, HandoverService};
use crate::health::{Health, HealthService, ProbeTools};
use crate::heartbeat::Heartbeat;
use crate::link::{Links, LocalSocket, keep_linked};
use crate::logs::{Log, LogsService, follow_kernel_log};
use crate::measure::MeasureService;
use crate::paced::{self, open_terminal};
use crate::state::Lifecycle;
use crate::{daxfs, pci, pid1};

/// Grace of a shutdown that SIGTERM asks for.
const SIGTERM_GRACE: Duration = Duration::from_secs(10);
/// How long links may take to end before the power goes off: what is under way then are follows.
const DRAIN_LIMIT: Duration = Duration::from_millis(200);
/// How often the agent's own connections are looked at: they carry only the link, which has a keepalive of its own.
const RECHECK_OF_LINK: Duration = Duration::from_secs(1);
/// Left for other processes once the entrypoint has used up the grace.
const GRACE_MIN: Duration = Duration::from_millis(100);

/// What a life of the agent begins with.
#[derive(Debug)]
pub struct Boot {
    /// What it was told.
    pub config: AgentConfig,
    /// How it runs.
    pub mode: AgentMode,
    /// Differs after each start.
    pub epoch: u64,
    /// Where all logs go.
    pub log: Log,
    /// Where the log's copy for the primary goes.
    pub black_box: BlackBox,
    /// The inherited doorbell, if there is one.
    pub doorbell: Option<OwnedFd>,
}

/// Runs until something orders the shutdown, shuts down, and returns when nothing is left but to power off.
///
/// # Errors
/// If the pool or a socket cannot be used: the agent would be of no use.
pub async fn run(boot: Boot) -> anyhow::Result<()> {
    let Boot { config, mode, epoch, log, black_box, doorbell } = boot;
    // Before anything is started that a sudden end would leave behind.
    let signals = EndSignals::watch()?;
    let config = Arc::new(config);
    let lifecycle = Lifecycle::booting();
    let children = Children::new(Scope::AllChildren);
    tokio::spawn(children.clone().run_reaper());
    if mode == AgentMode::Init {
        tokio::spawn(log_kernel(log.clone()));
    }

    let fabric = match &config.pool {
        Some(pool) => Some(Fabric::join(pool, &config, &black_box, doorbell).await?),
        None => None,
    };
    let link = match (&fabric, &config.paced) {
        (None, Some(line)) => Some(paced::of_primary(&config, line).context("making the paced link")?),
        _ => None,
    };
    let relayed = match &link {
        Some(link) => relayed_broker(&config, link).await,
        None => None,
    };
    // What the agent itself says to the primary does not go by its own broker: it must go on whatever that does.
    let endpoint = match (&fabric, &link) {
        (Some(fabric), _) => Some(fabric.endpoint.clone()),
        (None, link) => link.clone().map(Endpoint::paced),
    };
    let (broker, applications) = match (&fabric, relayed) {
        (Some(fabric), _) => (Some(KernelBroker::Pool(fabric.broker.clone())), endpoint.clone()),
        (None, Some((broker, endpoint))) => (Some(KernelBroker::Relayed(broker)), Some(endpoint)),
        (None, None) => (None, endpoint.clone()),
    };
    // Without a kernel or namespace of its own, what the agent has started would outlive its sudden death.
    let tied = mode == AgentMode::Service;
    let launcher = Launcher::new(children.clone(), PathBuf::from("/proc/self/exe"), tied);
    let exec = ExecEngine::new(launcher.clone(), lifecycle.clone());
    let forwards = Forwards::new(lifecycle.clone(), applications.clone());
    let entrypoint = config.entrypoint.clone().map(|it| EntrypointHandle::start(it, launcher, log.clone()));
    let tools = ProbeTools::new(exec.clone(), applications);
    let cpus = watch_cpus(config.cpu_stuck_ms.map(Duration::from_millis));
    let health = Health::start(config.probes.clone(), tools, lifecycle.clone(), entrypoint.clone(), cpus);
    let shutdown = ShutdownOrder::default();
    let parts = AgentParts {
        config: (*config).clone(),
        mode,
        epoch,
        lifecycle: lifecycle.clone(),
        exec: exec.clone(),
        forwards: forwards.clone(),
        broker,
        shutdown: shutdown.clone(),
    };
    // The first process of a kernel is never started again while that goes on.
    let record = (mode != AgentMode::Init).then(|| handover_record(&config));
    let handover = HandoverService::new(exec.clone(), HOOKS_DIR, record);
    let router = router(AgentService::new(parts), handover, exec, forwards, health, &lifecycle, log.clone());

    let links = Links::default();
    let mut serving = tokio::task::JoinSet::new();
    if let Some(path) = &config.listen {
        let socket = LocalSocket::bind(path).with_context(|| format!("listening on {}", path.display()))?;
        serving.spawn(socket.serve(Arc::clone(&config), router.clone(), links.clone()));
    }
    if let Some(endpoint) = endpoint {
        serving.spawn(keep_linked(endpoint, Arc::clone(&config), router, links.clone()));
    }
    lifecycle.enter(AgentPhase::Running);
    if let Some(fabric) = &fabric {
        fabric.heartbeat.set_phase(Phase::Running);
    }
    tracing::info!(name = config.name, cid = config.cid.0, incarnation = %config.incarnation, ?mode, "agent runs");

    let kill_at = await_order(signals, &shutdown).await;
    let ending = Ending { mode, lifecycle, children, entrypoint, shutdown, fabric: fabric.as_ref() };
    ending.stop_everything(kill_at).await;
    links.drain(DRAIN_LIMIT).await;
    serving.shutdown().await;
    if let Some(fabric) = fabric {
        fabric.leave().await;
    }
    Ok(())
}

/// The broker of a kernel that shares no memory, and the agent's own way through it. Without it the kernel is managed all the same.
async fn relayed_broker(config: &AgentConfig, link: &PacedEndpoint) -> Option<(RelayedBroker, Endpoint)> {
    let socket = &config.broker_socket;
    let mut broker_config =
        RelayedBrokerConfig::new(config.cid, config.name.as_str(), config.primary_cid, socket.clone());
    broker_config.policy = config.policy.clone();
    let started = async {
        let broker = RelayedBroker::start(broker_config, link.clone()).await?;
        let endpoint = Endpoint::attach(socket).await?;
        Ok::<_, tombolo_transport::Error>((broker, endpoint))
    };
    match started.await {
        Ok(started) => Some(started),
        Err(error) => {
            let error = anyhow::Error::from(error);
            tracing::error!(error = format!("{error:#}"), "applications of this kernel reach no other");
            None
        }
    }
}

/// Where an agent keeps what it must know of hand-overs when it is started again: with its broker's socket, and of its own name.
fn handover_record(config: &AgentConfig) -> PathBuf {
    config.broker_socket.with_file_name(format!("handover-{}.book", config.name))
}

/// All services of an agent.
pub fn router(
    agent: AgentService,
    handover: HandoverService,
    exec: ExecEngine,
    forwards: Forwards,
    health: Health,
    lifecycle: &Lifecycle,
    log: Log,
) -> Router {
    Router::new()
        .service(AgentServer::new(agent))
        .service(HandoverServer::new(handover))
        .service(HealthServer::new(HealthService::new(health)))
        .service(ExecServer::new(ExecService::new(exec)))
        .service(FilesServer::new(FilesService::new(lifecycle.clone())))
        .service(LogsServer::new(LogsService::new(log)))
        .service(ForwardServer::new(ForwardService::new(forwards)))
        .service(MeasureServer::new(MeasureService))
}

/// The signals that ask for the end: of a service manager, of Ctrl-C, of a terminal that was closed.
struct EndSignals {
    terminate: Signal,
    interrupt: Signal,
    /// `None` if whoever started the agent had it ignored (nohup(1)).
    hangup: Option<Signal>,
}

impl EndSignals {
    /// From now on they are noted instead of ending the process.
    fn watch() -> anyhow::Result<Self> {
        let watch = |kind, name| signal(kind).with_context(|| format!("watching for {name}"));
        Ok(Self {
            terminate: watch(SignalKind::terminate(), "SIGTERM")?,
            interrupt: watch(SignalKind::interrupt(), "SIGINT")?,
            hangup: (!ignores_hangup()).then(|| watch(SignalKind::hangup(), "SIGHUP")).transpose()?,
        })
    }

    /// The name of the next one.
    async fn next(&mut self) -> &'static str {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = hangup => "SIGHUP",
        }
    }
}

/// proc(5): `SigIgn` is a bit mask in hexadecimal, of which SIGHUP is the first bit.
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 != 0)
}

/// Waits for an order over RPC or a signal. The moment when whoever is left is killed.
async fn await_order(mut signals: EndSignals, shutdown: &ShutdownOrder) -> Instant {
    tokio::select! {
        kill_at = shutdown.given() => kill_at,
        name = signals.next() => {
            tracing::info!("{name}: shutting down");
            shutdown.give(Instant::now() + SIGTERM_GRACE)
        }
    }
}

/// Without the watch nobody learns of a stuck CPU; that is no reason not to run.
fn watch_cpus(stuck_after: Option<Duration>) -> CpuWatch {
    let Some(stuck_after) = stuck_after else { return CpuWatch::idle() };
    CpuWatch::start(stuck_after).unwrap_or_else(|error| {
        tracing::warn!(%error, "the CPUs of this kernel are not watched");
        CpuWatch::idle()
    })
}

async fn log_kernel(log: Log) {
    if let Err(error) = follow_kernel_log(log).await {
        tracing::warn!(%error, "the kernel's log cannot be read");
    }
}

/// This kernel's part in the fabric.
struct Fabric {
    broker: BrokerHandle,
    /// To and from kernels that share no memory.
    _relay: RelayHandle,
    endpoint: Endpoint,
    heartbeat: Heartbeat,
}

impl Fabric {
    async fn join(
        pool: &PoolConfig,
        config: &AgentConfig,
        black_box: &BlackBox,
        doorbell: Option<OwnedFd>,
    ) -> anyhow::Result<Self> {
        if let Some(daxfs) = &pool.daxfs {
            daxfs::mount(daxfs).context("mounting the file system of the pool")?;
        }
        let path = pci::file_to_map(&pool.path, pool.len).context("looking for the pool")?;
        let source = || PoolSource::Path { path: path.clone(), offset: pool.offset, len: pool.len };
        let mapped = Pool::attach(source(), config.member).with_context(|| match pool.offset {
            0 => "mapping the pool",
            _ => "mapping the pool (by its physical address: this kernel needs CONFIG_DEVMEM, no lockdown, and perhaps iomem=relaxed)",
        })?;
        black_box.open(mapped.black_box_writer().context("opening the black box")?);
        let writer = mapped.heartbeat_writer().context("opening the status line")?;
        let interval = Duration::from_millis(config.heartbeat_ms);
        let heartbeat =
            Heartbeat::start(writer, config.incarnation, interval).context("starting the heartbeat")?;

        if let Some(parent) = config.broker_socket.parent() {
            std::fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
        }
        let mut broker_config = BrokerConfig::new(source(), config.member);
        broker_config.socket = Some(config.broker_socket.clone());
        // What is part of a device is not locked by itself.
        broker_config.locks = (pool.offset != 0).then(|| config.broker_socket.with_extension("locks"));
        broker_config.policy = config.policy.clone();
        let broker = Broker::start(broker_config).await.context("starting the broker")?;
        let line = match (&config.doorbell, doorbell) {
            (Some(Doorbell::Path(path)), _) => Some(
                open_terminal(path).with_context(|| format!("opening the doorbell {}", path.display()))?,
            ),
            (Some(Doorbell::Fd(_)), fd) => fd,
            (Some(Doorbell::Vsock(port)), _) => {
                Some(doorbell::of_parent(config.cid, *port).context("making the doorbell")?)
            }
            (None, _) => None,
        };
        match line {
            Some(fd) => broker.add_line(Member::PRIMARY, fd).context("adding the doorbell")?,
            None => tracing::warn!("no doorbell: peers are noticed by the timer alone"),
        }
        let options = AttachOptions { recheck: RECHECK_OF_LINK, ..AttachOptions::default() };
        let endpoint = Endpoint::attach_with(&config.broker_socket, options);
        let endpoint = endpoint.await.context("attaching to the broker")?;
        let relay =
            RelayHandle::of_member(&broker, config.primary_cid).await.context("starting the relay")?;
        Ok(Self { broker, _relay: relay, endpoint, heartbeat })
    }

    async fn leave(self) {
        drop(self.endpoint);
        self.heartbeat.set_phase(Phase::Stopped);
        self.broker.stop().await;
    }
}

/// What has to end, in order.
struct Ending<'a> {
    mode: AgentMode,
    lifecycle: Lifecycle,
    children: Children,
    entrypoint: Option<EntrypointHandle>,
    shutdown: ShutdownOrder,
    fabric: Option<&'a Fabric>,
}

impl Ending<'_> {
    async fn stop_everything(&self, kill_at: Instant) {
        self.lifecycle.enter(AgentPhase::ShuttingDown);
        if let Some(fabric) = self.fabric {
            fabric.heartbeat.set_phase(Phase::Draining);
        }
        if let Some(entrypoint) = &self.entrypoint {
            let grace = kill_at.saturating_duration_since(Instant::now());
            tokio::select! {
                () = entrypoint.stop(grace) => {}
                // A later order may have brought the moment nearer: what is left is killed below.
                () = self.shutdown.kill_moment() => {}
            }
        }
        let grace = kill_at.saturating_duration_since(Instant::now()).max(GRACE_MIN);
        pid1::stop_everyone(self.mode, &self.children, grace).await;
        tracing::info!("everything has stopped");
    }
}
