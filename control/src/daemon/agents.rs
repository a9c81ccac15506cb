//! The door for agents: they dial the primary's control port and prove which boot of which kernel they are.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tombolo_rpc::{Auth, Link, LinkConfig, Router};
use tombolo_transport::{Addr, Endpoint, ListenOptions, MessageListener, Messages, Port};

use super::instance::AgentArrived;
use super::shared::Shared;
use crate::core::EventKind;

/// How long an agent may take to prove itself.
const HELLO_MAX: Duration = Duration::from_secs(5);
/// Refusals of one CID are told at most this often: whoever is refused tries again and again.
const REFUSAL_EVERY: Duration = Duration::from_secs(10);

/// The door for agents.
#[derive(Debug)]
pub(crate) struct Door {
    shared: Arc<Shared>,
    refusals: Mutex<HashMap<u32, Instant>>,
}

impl Door {
    /// Closed, until it is [served](Door::serve).
    pub(crate) fn new(shared: Arc<Shared>) -> Arc<Self> {
        Arc::new(Self { shared, refusals: Mutex::default() })
    }

    /// Listens on the control port of the fabric, and on that of the links to kernels that share no memory.
    pub(crate) async fn open(
        fabric: &Endpoint,
        paced: &Endpoint,
    ) -> tombolo_transport::Result<[MessageListener; 2]> {
        let named = ListenOptions { name: Some("control".into()), ..ListenOptions::default() };
        let fabric = fabric.listen_messages(Port::CONTROL, named).await?;
        Ok([fabric, paced.listen_messages(Port::CONTROL, ListenOptions::default()).await?])
    }

    /// Lets agents in until the listener fails.
    pub(crate) async fn serve(self: Arc<Self>, mut listener: MessageListener) {
        loop {
            match listener.accept().await {
                Ok((messages, peer)) => drop(tokio::spawn(self.clone().admit(messages, peer))),
                Err(error) => {
                    tracing::error!(%error, "the control port for agents is closed");
                    return;
                }
            }
        }
    }

    async fn admit(self: Arc<Self>, messages: Messages, peer: Addr) {
        match tokio::time::timeout(HELLO_MAX, self.greet(messages, peer)).await {
            Ok(Ok(())) => {}
            Ok(Err(reason)) => self.refuse(peer, reason).await,
            Err(_) => self.refuse(peer, format!("it did not prove itself within {HELLO_MAX:?}")).await,
        }
    }

    async fn greet(&self, messages: Messages, peer: Addr) -> Result<(), String> {
        let shared = self.shared.clone();
        // The CID is stamped by the transport; what the caller claims must agree with it.
        let auth = Auth::choose(move |claim| {
            if claim.cid != peer.cid {
                return Err(format!("you claim CID {} and call from CID {}", claim.cid, peer.cid));
            }
            shared.credential(peer.cid, claim.incarnation).map(|credential| credential.secret).ok_or_else(
                || {
                    format!(
                        "incarnation {} of CID {} is not one that runs: stale, or never started",
                        claim.incarnation, peer.cid
                    )
                },
            )
        });
        let config = LinkConfig::new("tombolod").auth(auth);
        let link = Link::accept(messages, config, Router::new()).await.map_err(|error| error.to_string())?;
        let incarnation = link.peer().incarnation;
        let credential = self
            .shared
            .credential(peer.cid, incarnation)
            .ok_or_else(|| format!("incarnation {incarnation} was given up while it proved itself"))?;
        tracing::info!(instance = %credential.name, %peer, %incarnation, "an agent has reported");
        credential.mailbox.agent_arrived(AgentArrived { incarnation, link }).await;
        Ok(())
    }

    async fn refuse(&self, peer: Addr, reason: String) {
        tracing::warn!(%peer, reason, "an agent was refused");
        let now = Instant::now();
        let mut refusals = self.refusals.lock().await;
        if refusals.get(&peer.cid.0).is_some_and(|last| now.duration_since(*last) < REFUSAL_EVERY) {
            return;
        }
        refusals.insert(peer.cid.0, now);
        drop(refusals);
        let name = self.shared.name_of(peer.cid);
        self.shared.note(name.as_ref(), EventKind::AgentRefused { cid: peer.cid.0, reason }).await;
    }
}
