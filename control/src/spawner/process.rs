//! The `process` spawner: the agent as a process in its own namespaces. It is **not** a kernel: it shares the host's.
//!
//! For machines where no kernel image can be had, and for fast tests. The namespaces (user, mount, UTS, IPC, PID) are made
//! by util-linux's `unshare`, as far as this host allows; without them the agent is a plain process, and killing it
//! still kills all it started, since its keeper inherits and reaps every orphan.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout};
use tombolo_agent::config::{Doorbell, PoolConfig};

use super::launch::Claim;
use super::{Availability, Kernel, KernelSpec, SpawnError, Spawner, SpawnerKind};
use crate::keeper::{Job, Process, descendants_of, write_atomically};

/// What this spawner adds to a runtime folder.
pub(super) const FILES: &[&str] = &[CONFIG, BROKER];
const CONFIG: &str = "agent.json";
const BROKER: &str = "broker.sock";

/// Ways to run a program in namespaces, most isolated first. The last is none at all.
const WAYS: [&[&str]; 3] = [
    &[
        "--user",
        "--map-root-user",
        "--mount",
        "--uts",
        "--ipc",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ],
    &["--user", "--map-root-user", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"],
    &[],
];

/// How long `unshare` may take to show that it works, and all processes to stop.
const PROBE_MAX: Duration = Duration::from_secs(5);
const STOP_MAX: Duration = Duration::from_secs(5);

/// Runs agents as processes in their own namespaces.
#[derive(Clone, Debug)]
pub struct ProcessSpawner {
    keeper_binary: PathBuf,
    way: std::sync::Arc<OnceCell<&'static [&'static str]>>,
}

impl ProcessSpawner {
    /// A spawner that runs `keeper_binary keeper ...` (normally `tombolod` itself) for each instance.
    pub fn new(keeper_binary: impl Into<PathBuf>) -> Self {
        Self { keeper_binary: keeper_binary.into(), way: std::sync::Arc::default() }
    }

    /// The most isolated way that works on this host: arguments of `unshare`, or none.
    async fn way(&self) -> &'static [&'static str] {
        self.way
            .get_or_init(|| async {
                for way in &WAYS[..WAYS.len() - 1] {
                    let mut probe = tokio::process::Command::new("unshare");
                    probe
                        .args(*way)
                        .arg("true")
                        .stdin(Stdio::null())
                        .stdout(Stdio::null())
                        .stderr(Stdio::null());
                    let probed = timeout(PROBE_MAX, probe.kill_on_drop(true).status()).await;
                    if matches!(probed, Ok(Ok(status)) if status.success()) {
                        return *way;
                    }
                }
                WAYS[WAYS.len() - 1]
            })
            .await
    }
}

impl Spawner for ProcessSpawner {
    fn kind(&self) -> SpawnerKind {
        SpawnerKind::Process
    }

    async fn availability(&self) -> Availability {
        let isolation = match self.way().await {
            [] => "no namespaces are allowed here, so plain processes".to_owned(),
            way => format!("in namespaces made by `unshare {}`", way.join(" ")),
        };
        Availability::Ready {
            detail: format!("processes of this kernel, not kernels of their own; {isolation}"),
        }
    }

    async fn spawn(&self, spec: &KernelSpec) -> Result<Kernel, SpawnError> {
        let name = &spec.agent_config.name;
        let bad_spec = |reason: String| SpawnError::BadSpec { name: name.clone(), reason };
        if let Some(path) = &spec.initrd {
            return Err(bad_spec(format!(
                "it is to have the initial archive {}, and no kernel boots here that would unpack it",
                path.display()
            )));
        }
        super::check_pool(spec).map_err(bad_spec)?;
        super::check_agent(spec)?;
        let text = |path: &Path| {
            path.to_str()
                .map(str::to_owned)
                .ok_or_else(|| bad_spec(format!("the path {} is not UTF-8", path.display())))
        };
        let dir = std::path::absolute(&spec.runtime_dir).map_err(|source| SpawnError::File {
            action: "resolve",
            path: spec.runtime_dir.clone(),
            source,
        })?;
        let way = self.way().await;
        let claim = Claim::take(&dir).await?;

        let mut config = spec.agent_config.clone();
        config.pool = spec.pool.as_ref().map(|pool| PoolConfig::new(&pool.path, pool.len));
        config.doorbell = Some(Doorbell::Fd(Job::DOORBELL_FD));
        config.modules = Vec::new();
        config.broker_socket = dir.join(BROKER);
        let path = dir.join(CONFIG);
        write_atomically(&path, config.to_json().as_bytes()).map_err(|source| SpawnError::File {
            action: "write",
            path: path.clone(),
            source,
        })?;

        let mut argv: Vec<String> = Vec::new();
        if !way.is_empty() {
            argv.push("unshare".into());
            argv.extend(way.iter().map(|&arg| arg.to_owned()));
        }
        argv.extend([text(&spec.agent_binary)?, "--config".into(), text(&path)?]);
        let mut env: Vec<(String, String)> = vec![("TOMBOLO_BROKER".into(), text(&dir.join(BROKER))?)];
        env.extend(
            ["PATH", "HOME", "LANG", "TMPDIR"]
                .iter()
                .filter_map(|&key| Some((key.into(), std::env::var(key).ok()?))),
        );
        let console_bytes_max = Job::CONSOLE_BYTES_MAX;
        let job = Job {
            name: name.clone(),
            kind: SpawnerKind::Process,
            argv,
            env,
            console_bytes_max,
            memory: None,
            cpus: Vec::new(),
            backend: None,
            runs_on: None,
        };
        claim.launch(&self.keeper_binary, &job).await
    }

    async fn adopt(&self, runtime_dir: &Path) -> Result<Kernel, SpawnError> {
        super::adopt(SpawnerKind::Process, runtime_dir).await
    }
}

/// Stops or continues the process `pid` and everything below it. The error is for people.
pub(super) async fn set_frozen(pid: u32, frozen: bool) -> Result<(), String> {
    let pid = i32::try_from(pid).map_err(|error| error.to_string())?;
    let signal = if frozen { Signal::STOP } else { Signal::CONT };
    let deadline = Instant::now() + STOP_MAX;
    loop {
        // A process may fork while we look: so look again until all are as wanted.
        let mut tree = descendants_of(pid);
        tree.extend(Process::find(pid));
        let pending: Vec<_> = tree.iter().filter(|p| !p.is_zombie() && p.is_stopped() != frozen).collect();
        if pending.is_empty() {
            return Ok(());
        }
        for process in &pending {
            if let Some(pid) = Pid::from_raw(process.pid) {
                // One that ended meanwhile is not missed.
                let _ = kill_process(pid, signal);
            }
        }
        if Instant::now() > deadline {
            return Err(format!("{} of its {} processes do not obey", pending.len(), tree.len()));
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
