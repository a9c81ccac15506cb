//! The link to the daemon.

use std::path::PathBuf;
use std::time::Duration;

use tokio::net::UnixStream;
use tombolo_rpc::{Call, CallError, Link, LinkConfig, Router};
use tombolo_transport::{Addr, Cid, Endpoint, Messages, Port};

use super::args::Global;
use super::error::CliError;
use crate::api::balance::BalanceClient;
use crate::api::beside::BesideClient;
use crate::api::fleet::FleetClient;
use crate::api::handover::HandoverClient;
use crate::api::host::HostClient;
use crate::api::inside::InsideClient;
use crate::api::journal::JournalClient;
use crate::api::rules::RulesClient;
use crate::api::{ControlError, ExitKind};
use crate::daemon::socket::MESSAGE_BYTES_MAX;
use crate::paths;

/// How long to wait when the command line does not say.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The daemon's services.
#[derive(Clone, Debug)]
pub(super) struct Client {
    pub(super) balance: BalanceClient,
    pub(super) beside: BesideClient,
    pub(super) fleet: FleetClient,
    pub(super) handover: HandoverClient,
    pub(super) host: HostClient,
    pub(super) journal: JournalClient,
    pub(super) rules: RulesClient,
    pub(super) inside: InsideClient,
    timeout: Duration,
}

impl Client {
    /// Connects to the daemon that the command line, the environment or the user's default names.
    pub(super) async fn connect(global: &Global) -> Result<Self, CliError> {
        let path = socket_of(global);
        let unreachable =
            |reason: String| CliError::new(ExitKind::Unreachable, unreachable(global, &path, &reason));
        let timeout = global.timeout.unwrap_or(TIMEOUT);
        let stream = match tokio::time::timeout(timeout, UnixStream::connect(&path)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(unreachable(error.to_string())),
            Err(_) => return Err(unreachable("it does not accept".to_owned())),
        };
        let (local, peer) = (Addr::new(Cid::HOST, Port::ANY), Addr::new(Cid::HOST, Port::CONTROL));
        let messages = Messages::framed(stream, local, peer, MESSAGE_BYTES_MAX);
        let link = Link::connect(messages, LinkConfig::new("tombolo"), Router::new())
            .await
            .map_err(|error| unreachable(error.to_string()))?;
        Ok(Self {
            balance: BalanceClient::new(link.clone()),
            beside: BesideClient::new(link.clone()),
            fleet: FleetClient::new(link.clone()),
            handover: HandoverClient::new(link.clone()),
            host: HostClient::new(link.clone()),
            journal: JournalClient::new(link.clone()),
            rules: RulesClient::new(link.clone()),
            inside: InsideClient::new(link),
            timeout,
        })
    }

    /// How long to wait for an answer or a state.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Makes a call that answers at once.
    pub(super) async fn ask<T>(&self, call: Call<T, ControlError>) -> Result<T, CliError>
    where
        Call<T, ControlError>: Future<Output = Result<T, CallError<ControlError>>>,
    {
        Ok(call.deadline(self.timeout).await?)
    }
}

/// Attaches to the fabric of this host as an application.
pub(super) async fn attach(global: &Global) -> Result<Endpoint, CliError> {
    let path = runtime_dir_of(global).join(paths::BROKER_SOCKET);
    Endpoint::attach(&path).await.map_err(|error| {
        if error.kind() == std::io::ErrorKind::PermissionDenied {
            let message = format!(
                "you may not attach to the fabric at {}: only root, the daemon's user and operators may",
                path.display()
            );
            return CliError::new(ExitKind::Denied, message);
        }
        CliError::new(ExitKind::Unreachable, unreachable(global, &path, &crate::daemon::chain(&error)))
    })
}

fn runtime_dir_of(global: &Global) -> PathBuf {
    match (&global.runtime_dir, &global.socket) {
        (Some(folder), _) => folder.clone(),
        (None, Some(socket)) => socket.parent().map(PathBuf::from).unwrap_or_default(),
        (None, None) => paths::runtime_dir(),
    }
}

fn socket_of(global: &Global) -> PathBuf {
    global.socket.clone().unwrap_or_else(|| runtime_dir_of(global).join(paths::CONTROL_SOCKET))
}

fn unreachable(global: &Global, path: &std::path::Path, reason: &str) -> String {
    let start = match &global.runtime_dir {
        Some(folder) => format!("tombolod --runtime-dir {} &", folder.display()),
        None => "tombolod &".to_owned(),
    };
    format!("the daemon cannot be reached at {}: {reason}\nstart it with:  {start}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_daemon_that_is_not_there_is_told_with_the_command_that_starts_it() {
        let dir = tempfile::tempdir().unwrap();
        let global = Global {
            runtime_dir: Some(dir.path().to_owned()),
            socket: None,
            json: false,
            timeout: None,
            quiet: false,
        };
        let error = Client::connect(&global).await.unwrap_err();
        assert_eq!(error.kind(), ExitKind::Unreachable);
        assert!(error.message().contains("start it with:  tombolod --runtime-dir"), "{}", error.message());
    }
}
