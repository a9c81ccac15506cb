//! The `rpc` probe: does a program answer calls?
//!
//! It takes no code in the program: whoever serves tombolo-rpc answers HELLO and lists its services by reflection, and the
//! latter goes through the same queue and dispatch as any call. A program that serves [`tombolo_rpc::health::Health`] too is
//! asked for its own opinion. Each try is a connection of its own, so that accepting is probed as well.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tombolo_rpc::health::HealthClient;
use tombolo_rpc::reflection::{ReflectionClient, ServiceListing};
use tombolo_rpc::{CallError, Failure, Link, LinkConfig, LinkError, Router};
use tombolo_transport::{Addr, ConnectOptions, Endpoint, Messages, Port};

use super::failure::ProbeFailure;
use crate::api::health::ProbeFailureKind as Kind;

/// Longest answer that is taken from a program, in bytes: a list of some thousand methods.
const ANSWER_BYTES_MAX: u32 = 1 << 20;
/// The service of [`tombolo_rpc::health`].
const HEALTH: &str = "tombolo.Health";

/// One try.
pub(super) struct RpcTry<'a> {
    pub(super) endpoint: &'a Endpoint,
    /// See [`crate::config::ProbeAction::Rpc`].
    pub(super) target: &'a str,
    pub(super) service: Option<&'a str>,
    pub(super) timeout: Duration,
    /// What it is doing, to be told if the time runs out.
    pub(super) stage: &'a Stage,
}

/// What a try is doing.
#[derive(Debug)]
pub(super) struct Stage(Mutex<&'static str>);

impl Default for Stage {
    fn default() -> Self {
        Self(Mutex::new("trying"))
    }
}

impl Stage {
    fn enter(&self, stage: &'static str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = stage;
    }

    pub(super) fn name(&self) -> &'static str {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RpcTry<'_> {
    pub(super) async fn run(&self) -> Result<(), ProbeFailure> {
        self.stage.enter("connecting");
        let messages = self.connect().await?;
        self.stage.enter("waiting for HELLO");
        let link = Link::connect(messages, self.link_config(), Router::new()).await;
        let link = link.map_err(|error| self.not_linked(&error))?;
        let result = self.ask(&link).await;
        link.close("probed");
        result
    }

    async fn connect(&self) -> Result<Messages, ProbeFailure> {
        let fabric = |error: &_| ProbeFailure::fabric(error);
        let addr = match parse_addr(self.target, self.endpoint) {
            Some(addr) => addr,
            None => self.endpoint.resolve(self.target).await.map_err(|e| fabric(&e))?,
        };
        let options = ConnectOptions { timeout: self.timeout, ..ConnectOptions::default() };
        self.endpoint.connect_messages_with(addr, &options).await.map_err(|e| fabric(&e))
    }

    fn link_config(&self) -> LinkConfig {
        let mut config = LinkConfig::new("probe");
        config.cid = self.endpoint.local_cid();
        config.handshake_timeout = self.timeout;
        config.default_deadline = self.timeout;
        config.message_bytes_max = ANSWER_BYTES_MAX;
        config
    }

    async fn ask(&self, link: &Link) -> Result<(), ProbeFailure> {
        self.stage.enter("waiting for the list of services");
        let services = ReflectionClient::new(link.clone()).list().await.map_err(|error| match error {
            CallError::App(never) => match never {},
            CallError::Failed(failure) => self.not_answered(&failure),
        })?;
        self.check_offer(&services)?;
        if !services.iter().any(|offered| offered.name == HEALTH) {
            return Ok(());
        }
        self.stage.enter("waiting for its own opinion");
        let service = self.service.unwrap_or_default().to_owned();
        HealthClient::new(link.clone()).serving(service).await.map_err(|error| match error {
            CallError::App(not_serving) => ProbeFailure::new(Kind::NotServing, not_serving),
            CallError::Failed(failure) => self.not_answered(&failure),
        })
    }

    fn check_offer(&self, services: &[ServiceListing]) -> Result<(), ProbeFailure> {
        let Some(wanted) = self.service else { return Ok(()) };
        if services.iter().any(|offered| offered.name == wanted) {
            return Ok(());
        }
        let offered: Vec<&str> = services.iter().map(|offered| offered.name.as_str()).collect();
        let text = format!("{} does not serve `{wanted}`, only {}", self.target, offered.join(", "));
        Err(ProbeFailure::new(Kind::ServiceMissing, text))
    }

    fn not_linked(&self, error: &LinkError) -> ProbeFailure {
        let kind = match error {
            LinkError::NotAuthenticated(_) => Kind::NotAuthenticated,
            LinkError::Incompatible(_) | LinkError::Violation(_) => Kind::NotRpc,
            LinkError::Silent { .. } => Kind::TimedOut,
            _ => Kind::Lost,
        };
        ProbeFailure::new(kind, format_args!("{} gave no HELLO: {error}", self.target))
    }

    fn not_answered(&self, failure: &Failure) -> ProbeFailure {
        let kind = match failure {
            Failure::DeadlineExceeded { .. } => Kind::TimedOut,
            Failure::Refused(_) => Kind::Denied,
            Failure::LinkLost { .. } | Failure::Cancelled { .. } => Kind::Lost,
            Failure::Overloaded { .. } | Failure::Draining(_) | Failure::HandlerPanicked(_) => {
                Kind::NotServing
            }
            _ => Kind::NotRpc,
        };
        ProbeFailure::new(kind, format_args!("{} did not answer: {failure}", self.target))
    }
}

/// `CID:PORT`, or `PORT` of this kernel.
fn parse_addr(target: &str, endpoint: &Endpoint) -> Option<Addr> {
    match target.parse() {
        Ok(port) => Some(Addr::new(endpoint.local_cid(), Port(port))),
        Err(_) => target.parse().ok(),
    }
}
