//! The door for agents: they dial the primary's control port and prove which boot of which kernel they are.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tombolo_rpc::{Auth, Link, LinkConfig, Router};
use tombolo_transport::pool::Geometry;
use tombolo_transport::{Addr, Endpoint, ListenOptions, MessageListener, Messages, Port, Sizes};

use super::instance::AgentArrived;
use super::shared::Shared;
use crate::core::EventKind;

/// How long an agent may take to prove itself.
const HELLO_MAX: Duration = Duration::from_secs(5);
/// Refusals of one CID are told at most this often: whoever is refused tries again and again.
const REFUSAL_EVERY: Duration = Duration::from_secs(10);

/// Bytes of the ring in which an agent is told things. All rings together take half of our extent at most, as far as that leaves
/// each of them enough.
fn ring_bytes(geometry: Geometry) -> u32 {
    const ENOUGH: u32 = 16 << 10;
    let share = geometry.extent_bytes / u64::from(2 * geometry.members_max);
    let share = u32::try_from(share).unwrap_or(u32::MAX).clamp(ENOUGH, Sizes::default().ring_bytes);
    // A power of two, as all rings.
    1 << share.ilog2()
}

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
        geometry: Geometry,
        paced: &Endpoint,
    ) -> tombolo_transport::Result<[MessageListener; 2]> {
        let named = ListenOptions {
            name: Some("control".into()),
            // All of them dial the next daemon at once.
            backlog: geometry.members_max.max(ListenOptions::default().backlog),
            sizes: Sizes { ring_bytes: ring_bytes(geometry), ..Sizes::default() },
        };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_agents_of_a_pool_have_room_for_their_links_and_those_of_a_small_one_as_much_as_ever() {
        assert_eq!(ring_bytes(Geometry::default()), Sizes::default().ring_bytes);
        for members_max in [2, 64, 201, 512, Geometry::MEMBERS_MAX] {
            let geometry = Geometry { members_max, ..Geometry::default() };
            let all = u64::from(ring_bytes(geometry)) * u64::from(members_max);
            assert!(all <= geometry.extent_bytes / 2, "{members_max} members");
        }
    }
}
