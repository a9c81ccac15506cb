//! A real agent process, and a link to it over its Unix socket.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::UnixStream;
use tombolo_agent::api::agent::AgentClient;
use tombolo_agent::api::exec::{ExecClient, ExecOut, ExecSpec};
use tombolo_agent::api::files::FilesClient;
use tombolo_agent::api::forward::ForwardClient;
use tombolo_agent::api::health::HealthClient;
use tombolo_agent::api::logs::LogsClient;
use tombolo_rpc::{Auth, Link, LinkConfig, LinkError, Receiver, Router};
use tombolo_transport::{Addr, Cid, Messages, Port};

/// What the agent binary is at.
pub const AGENT: &str = env!("CARGO_BIN_EXE_tombolo-agent");
/// Nothing in these tests takes so long unless it hangs.
pub const LIMIT: Duration = Duration::from_secs(30);
const SECRET: [u8; 32] = [7; 32];

/// An agent process of its own. Dropped, it is ended in order.
pub struct Agent {
    pub dir: TempDir,
    pub process: Child,
}

impl Agent {
    /// Starts one with the defaults and `extra` fields.
    pub fn start(extra: Value) -> Self {
        // Whoever runs the tests may ignore it (nohup(1)), and then so would the agent.
        Self::start_with(&["env", "--default-signal=HUP"], extra)
    }

    /// The same behind `launcher`, a program that becomes it or starts it.
    pub fn start_with(launcher: &[&str], extra: Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = json!({
            "name": "web", "cid": 3, "member": 1, "incarnation": "01".repeat(16),
            "secret": "07".repeat(32), "listen": dir.path().join("agent.sock"), "log_level": "debug",
        });
        let fields = config.as_object_mut().unwrap();
        fields.extend(extra.as_object().unwrap().clone());
        std::fs::write(dir.path().join("agent.json"), config.to_string()).unwrap();
        let process = spawn(launcher, dir.path());
        Self { dir, process }
    }

    /// Starts another one with the same configuration, once this one has ended.
    pub fn restart(&mut self) {
        self.process = spawn(&[], self.dir.path());
    }

    pub fn pid(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(self.process.id() as i32)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("agent.log")).unwrap()
    }

    /// Links with it as the control plane would.
    pub async fn link(&self) -> Link {
        self.try_link(SECRET).await.unwrap()
    }

    pub async fn try_link(&self, secret: [u8; 32]) -> Result<Link, LinkError> {
        let socket = self.path("agent.sock");
        let stream = loop {
            match UnixStream::connect(&socket).await {
                Ok(stream) => break stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        let messages = Messages::framed(stream, at(2), at(3), 256 * 1024);
        let config = LinkConfig::new("test").auth(Auth::Secret(secret));
        Link::connect(messages, config, Router::new()).await
    }

    pub async fn clients(&self) -> Clients {
        Clients::new(self.link().await)
    }
}

fn spawn(launcher: &[&str], dir: &Path) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(dir.join("agent.log")).unwrap();
    let words: Vec<&str> = launcher.iter().copied().chain([AGENT]).collect();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).arg("--config").arg(dir.join("agent.json"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap()
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the agent logged:\n{}", self.log());
        }
        // First in order, so that what it has started goes too.
        if matches!(self.process.try_wait(), Ok(None)) {
            let _ = nix::sys::signal::kill(self.pid(), nix::sys::signal::Signal::SIGTERM);
        }
        let start = std::time::Instant::now();
        while matches!(self.process.try_wait(), Ok(None)) && start.elapsed() < LIMIT {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A client for each service.
pub struct Clients {
    pub link: Link,
    pub agent: AgentClient,
    pub exec: ExecClient,
    pub files: FilesClient,
    pub forward: ForwardClient,
    pub health: HealthClient,
    pub logs: LogsClient,
}

impl Clients {
    pub fn new(link: Link) -> Self {
        Self {
            agent: AgentClient::new(link.clone()),
            exec: ExecClient::new(link.clone()),
            files: FilesClient::new(link.clone()),
            forward: ForwardClient::new(link.clone()),
            health: HealthClient::new(link.clone()),
            logs: LogsClient::new(link.clone()),
            link,
        }
    }
}

fn at(cid: u32) -> Addr {
    Addr::new(Cid(cid), Port::CONTROL)
}

pub fn spec(argv: &[&str]) -> ExecSpec {
    ExecSpec { argv: argv.iter().map(|argument| (*argument).to_owned()).collect(), ..ExecSpec::default() }
}

pub fn shell(script: &str) -> ExecSpec {
    spec(&["/bin/sh", "-c", script])
}

/// What a job wrote, all of it.
#[derive(Debug, Default)]
pub struct Written {
    pub job: u64,
    pub pid: u32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub gap: u64,
    pub end: u64,
}

impl Written {
    pub fn add(&mut self, item: ExecOut) {
        match item {
            ExecOut::Started { job, pid } => (self.job, self.pid) = (job, pid),
            ExecOut::Stdout { offset, data } => {
                self.end = offset + data.len() as u64;
                self.stdout.extend_from_slice(&data);
            }
            ExecOut::Stderr { offset, data } => {
                self.end = offset + data.len() as u64;
                self.stderr.extend_from_slice(&data);
            }
            ExecOut::Gap { bytes } => self.gap += bytes,
        }
    }

    pub async fn read_until(&mut self, out: &mut Receiver<ExecOut>, wanted: &str) {
        while !self.stdout_text().contains(wanted) {
            let item = within(out.recv()).await.unwrap();
            self.add(item.unwrap_or_else(|| panic!("ended before `{wanted}`: {self:?}")));
        }
    }

    pub async fn read_all(&mut self, out: &mut Receiver<ExecOut>) {
        while let Some(item) = within(out.recv()).await.unwrap() {
            self.add(item);
        }
    }

    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// Fails a test that hangs.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.expect("hangs")
}

/// Waits until `condition` holds.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..3000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

/// Whether it runs. What has ended and waits for whoever inherited it to take note does not.
pub fn process_exists(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name, which is in brackets and may hold anything: proc_pid_stat(5).
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}
