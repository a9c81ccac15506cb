//! The daemon's services, one set for each connection: who calls is known from the start and cannot be claimed.

mod balance;
mod beside;
mod fleet;
mod handover;
mod host;
mod inside;
mod journal;
mod measure;
mod relay;
mod rules;

use std::sync::Arc;

use tokio::sync::mpsc;
use tombolo_rpc::Router;

use super::instance::Handle;
use super::registry::Registry;
use super::shared::Shared;
use crate::api::balance::BalanceServer;
use crate::api::beside::BesideServer;
use crate::api::fleet::FleetServer;
use crate::api::handover::HandoverServer;
use crate::api::host::HostServer;
use crate::api::inside::InsideServer;
use crate::api::journal::JournalServer;
use crate::api::rules::RulesServer;
use crate::api::{ControlError, Role};
use crate::core::EventKind;

/// Who is at the other end of a connection, as the kernel says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller {
    pub(crate) uid: u32,
    pub(crate) pid: i32,
    pub(crate) role: Role,
}

/// Asks the daemon to end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ShutdownRequest {
    pub(crate) stop_kernels: bool,
}

/// What one connection may use.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) shared: Arc<Shared>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) caller: Caller,
    pub(crate) shutdown: mpsc::Sender<ShutdownRequest>,
}

impl Session {
    /// The services of this connection.
    pub(crate) fn router(self) -> Router {
        let session = Arc::new(self);
        Router::new()
            .service(BalanceServer::shared(session.clone()))
            .service(BesideServer::shared(session.clone()))
            .service(FleetServer::shared(session.clone()))
            .service(HandoverServer::shared(session.clone()))
            .service(HostServer::shared(session.clone()))
            .service(JournalServer::shared(session.clone()))
            .service(RulesServer::shared(session.clone()))
            .service(InsideServer::shared(session))
    }

    /// Refuses a caller whose role is too small.
    fn require(&self, needed: Role, verb: &str) -> Result<(), ControlError> {
        if self.caller.role >= needed {
            return Ok(());
        }
        Err(ControlError::Denied {
            verb: verb.to_owned(),
            uid: self.caller.uid,
            role: self.caller.role.to_string(),
            needed: needed.to_string(),
        })
    }

    fn find(&self, name: &str) -> Result<Handle, ControlError> {
        self.registry.find(name)
    }

    /// Writes down who asked for a change and what came of it.
    async fn audit<T>(&self, verb: &str, name: Option<&str>, outcome: &Result<T, ControlError>) {
        let kind = EventKind::Audit {
            verb: verb.to_owned(),
            uid: self.caller.uid,
            pid: self.caller.pid,
            role: self.caller.role.to_string(),
            outcome: match outcome {
                Ok(_) => "accepted".to_owned(),
                Err(error) => error.to_string(),
            },
        };
        let name = name.and_then(|name| name.parse().ok());
        self.shared.note(name.as_ref(), kind).await;
    }
}
