//! The link to the control plane: dialled, served, dialled again.
//!
//! Nothing that runs in this kernel depends on it. When it is lost, or the control plane restarts, jobs, the entrypoint
//! and probes go on, and the agent dials until it is answered.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tombolo_rpc::{Auth, Link, LinkConfig, Router};
use tombolo_transport::unix_socket::{self, BACKLOG_MAX, SocketFile};
use tombolo_transport::{Addr, ConnectOptions, Endpoint, Messages, Port};

use crate::config::AgentConfig;

/// First pause between two attempts.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// Longest pause: a control plane that restarts is found within this.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Deadline of one attempt to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest message on a Unix socket, in bytes.
const UNIX_MESSAGE_BYTES_MAX: usize = 256 * 1024;
/// Longest request or item, in bytes: a program's arguments and environment may be as long as Linux takes them (`ARG_MAX`).
const MESSAGE_BYTES_MAX: u32 = 2 * 1024 * 1024;
/// Requests that have arrived in part, in bytes: the smallest kernel has 64 MiB in all.
const ASSEMBLY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Calls of one caller at a time: no more than there are threads for blocking work.
const CALLS_MAX: u32 = 512;
/// After this many failures in a row one is worth a warning: the control plane may just be restarting.
const FAILURES_BEFORE_WARNING: u32 = 20;

/// The links there are, so that they can be ended in order. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Links(Arc<Mutex<Vec<Link>>>);

impl Links {
    fn add(&self, link: Link) {
        let mut links = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        links.retain(|link| !link.is_closed());
        links.push(link);
    }

    /// Ends all links once their calls are over, and waits for that, at most so long.
    pub async fn drain(&self, limit: Duration) {
        let links = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        links.iter().for_each(|link| link.goaway("the kernel is powering off"));
        let closed = async {
            for link in &links {
                link.closed().await;
            }
        };
        // Those who follow logs never end by themselves.
        let _ = tokio::time::timeout(limit, closed).await;
    }
}

/// How this agent introduces itself, and what the other side must prove.
pub fn link_config(config: &AgentConfig) -> LinkConfig {
    let mut link = LinkConfig::new("agent")
        .identity(config.cid, config.incarnation)
        .auth(Auth::Secret(config.secret.0.0));
    link.build = format!("tombolo-agent {}", crate::inventory::VERSION);
    link.message_bytes_max = MESSAGE_BYTES_MAX;
    link.assembly_bytes_max = ASSEMBLY_BYTES_MAX;
    link.calls_max = CALLS_MAX;
    link
}

/// Keeps a link to the control plane, for ever.
pub async fn keep_linked(endpoint: Endpoint, config: Arc<AgentConfig>, router: Router, links: Links) {
    let addr = Addr::new(config.primary_cid, Port::CONTROL);
    let mut pause = PAUSE_MIN;
    let mut failures = 0u32;
    loop {
        match dial(&endpoint, addr, &config, router.clone()).await {
            Ok(link) => {
                tracing::info!(peer = ?link.peer().build, "linked with the control plane");
                (pause, failures) = (PAUSE_MIN, 0);
                links.add(link.clone());
                let why = link.closed().await;
                tracing::info!("the link to the control plane is over: {why}");
            }
            Err(reason) => {
                failures += 1;
                if failures == FAILURES_BEFORE_WARNING {
                    tracing::warn!(attempts = failures, "no link to the control plane at {addr}: {reason}");
                } else {
                    tracing::debug!("no link to the control plane at {addr}: {reason}");
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

async fn dial(endpoint: &Endpoint, addr: Addr, config: &AgentConfig, router: Router) -> Result<Link, String> {
    let options = ConnectOptions { timeout: CONNECT_TIMEOUT, ..ConnectOptions::default() };
    let messages = endpoint.connect_messages_with(addr, &options).await.map_err(|e| e.to_string())?;
    Link::connect(messages, link_config(config), router).await.map_err(|e| e.to_string())
}

/// A Unix socket on which the agent serves. Dropped, its file goes.
#[derive(Debug)]
pub struct LocalSocket {
    listener: UnixListener,
    path: PathBuf,
    _file: SocketFile,
}

impl LocalSocket {
    /// Listens on `path`; a socket left there by a dead agent is replaced.
    ///
    /// # Errors
    /// What the system said; [`std::io::ErrorKind::AddrInUse`] if a living process listens there.
    pub fn bind(path: &Path) -> std::io::Result<Self> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let (listener, file) = unix_socket::listen(path, BACKLOG_MAX)?;
        Ok(Self { listener, path: path.to_owned(), _file: file })
    }

    /// Serves every caller that proves the secret, for ever.
    pub async fn serve(self, config: Arc<AgentConfig>, router: Router, links: Links) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let (config, router, links) = (config.clone(), router.clone(), links.clone());
                    tokio::spawn(async move { accept(stream, &config, router, &links).await });
                }
                Err(error) => {
                    tracing::warn!(%error, path = %self.path.display(), "a caller could not be accepted");
                    tokio::time::sleep(PAUSE_MIN).await;
                }
            }
        }
    }
}

async fn accept(stream: UnixStream, config: &AgentConfig, router: Router, links: &Links) {
    let local = Addr::new(config.cid, Port::CONTROL);
    let peer = Addr::new(config.primary_cid, Port::ANY);
    let messages = Messages::framed(stream, local, peer, UNIX_MESSAGE_BYTES_MAX);
    match Link::accept(messages, link_config(config), router).await {
        Ok(link) => {
            links.add(link.clone());
            link.closed().await;
        }
        Err(error) => tracing::warn!("a caller was not linked: {error}"),
    }
}
