//! The link to an instance's agent.

use std::time::Duration;

use tombolo_agent::api::agent::{AgentClient, PolicyRule, Shutdown};
use tombolo_agent::api::health::HealthClient;
use tombolo_rpc::Link;

use super::Instance;
use super::message::{AgentArrived, Message};
use crate::core::health::Wellness;
use crate::core::lifecycle::Input;
use crate::core::policy::to_broker_policy;
use crate::core::{EventKind, State};

/// How long an agent may take to say what it is, or to take an order.
pub(super) const ORDER_MAX: Duration = Duration::from_secs(3);

/// The link to an instance's agent. Numbered, so that what a former link brings is told from what this one does.
#[derive(Debug)]
pub(super) struct AgentLink {
    pub(super) number: u64,
    pub(super) link: Link,
}

impl Instance {
    pub(super) async fn agent_arrived(&mut self, arrived: AgentArrived) {
        let AgentArrived { incarnation, link } = arrived;
        if Some(incarnation) != self.record.incarnation {
            // It was let in just before its kernel was given up.
            return;
        }
        self.links_seen += 1;
        let number = self.links_seen;
        let (mailbox, watched) = (self.mailbox.clone(), link.clone());
        tokio::spawn(async move {
            let reason = watched.closed().await.to_string();
            mailbox.send(Message::LinkClosed { link: number, reason }).await;
        });
        let (mailbox, agent) = (self.mailbox.clone(), AgentClient::new(link.clone()));
        tokio::spawn(async move {
            let inventory = agent.hello().deadline(ORDER_MAX).await.map_err(|error| error.to_string());
            mailbox.send(Message::AgentIntroduced { link: number, inventory }).await;
        });
        self.follow_health(number, link.clone());
        self.link = Some(AgentLink { number, link });
        self.probe.reset();
        self.push_rules();
        self.sync_clock();
        self.publish();
        if self.record.life.state() == State::Draining {
            self.drain(self.record.spec.grace());
        }
    }

    pub(super) async fn agent_introduced(
        &mut self,
        number: u64,
        inventory: Result<tombolo_agent::api::agent::Inventory, String>,
    ) {
        if !self.is_current(number) {
            return;
        }
        let inventory = match inventory {
            Ok(inventory) => inventory,
            Err(reason) => {
                tracing::warn!(instance = %self.record.name, reason, "the agent did not introduce itself");
                return;
            }
        };
        let uname = &inventory.uname;
        let kernel = format!("{} {} {}", uname.sysname, uname.release, uname.machine);
        let first = self.record.boot_id.is_none();
        self.record.boot_id = Some(inventory.boot_id.clone());
        self.record.kernel = Some(kernel.clone());
        self.record.last_error = None;
        let boot_ms =
            self.record.spawned_unix_ns.map_or(0, |at| crate::time::unix_ns().saturating_sub(at) / 1_000_000);
        let mut events = match first {
            true => vec![EventKind::AgentUp { boot_id: inventory.boot_id.clone(), kernel, boot_ms }],
            false => vec![],
        };
        self.inventory = Some(inventory);
        let now_ns = self.now_ns();
        if self.report.is_none() {
            // Having answered is a first sign of life; the next probe tells how its programs are.
            self.monitor.probe_answered(now_ns, Wellness::NotReady);
        }
        // Both at once, so that nobody sees an instance that runs and whose health is still `booting`.
        events.extend(self.change_of_verdict(now_ns));
        if !self.may_come_back() {
            return;
        }
        if self.record.life.state() == State::Hung {
            events.push(self.recovered(now_ns));
        }
        let _ = self.step(Input::AgentUp, events).await;
    }

    pub(super) async fn link_closed(&mut self, number: u64, reason: String) {
        if !self.is_current(number) {
            return;
        }
        self.link = None;
        // An answer under way counts no more, and nobody is to wait for it.
        self.probe.abandon();
        self.publish();
        if matches!(self.record.life.state(), State::Running | State::Hung | State::Adopted) {
            let name = self.record.name.clone();
            let incarnation = self.record.incarnation.map(|incarnation| incarnation.to_string());
            let event = EventKind::LinkLost { reason };
            let batch = crate::store::Batch::new().event(Some(&name), incarnation, event);
            let _ = self.shared.store.commit(batch).await;
        }
    }

    /// Asks the agent to end everything in good order; without a link that is done as soon as there is one.
    pub(super) fn drain(&self, grace: Duration) {
        let Some(agent) = self.link.as_ref().map(|link| AgentClient::new(link.link.clone())) else { return };
        let name = self.record.name.clone();
        // The agent's own time to stop programs must end before ours does, or we would kill what is being synced.
        let grace_ms = grace.mul_f32(AGENT_SHARE).as_millis() as u64;
        tokio::spawn(async move {
            if let Err(error) = agent.shutdown(Shutdown { grace_ms }).deadline(ORDER_MAX).await {
                tracing::warn!(instance = %name, %error, "the agent did not take the order to shut down");
            }
        });
    }

    /// Tells the agent the policy as it stands.
    pub(super) fn push_rules(&self) {
        let Some(agent) = self.link.as_ref().map(|link| AgentClient::new(link.link.clone())) else { return };
        let rules: Vec<PolicyRule> =
            to_broker_policy(&self.shared.rules()).rules.iter().map(Into::into).collect();
        let name = self.record.name.clone();
        tokio::spawn(async move {
            if let Err(error) = agent.set_policy(rules).deadline(ORDER_MAX).await {
                tracing::warn!(instance = %name, %error, "the agent did not take the policy");
            }
        });
    }

    /// Asks for a sign of life, once. Cheap inside; how everything is comes by itself when it changes.
    pub(super) fn send_probe(&mut self) {
        let Some(link) = &self.link else { return };
        let (agent, number, mailbox) =
            (AgentClient::new(link.link.clone()), link.number, self.mailbox.clone());
        tokio::spawn(async move {
            let outcome = agent.ping().deadline(super::watch::PROBE_MAX).await;
            let outcome = outcome.map(drop).map_err(|error| error.to_string());
            mailbox.send(Message::Probed { link: number, outcome }).await;
        });
    }

    /// Has the agent report each change of how its programs are, for as long as the link lives.
    fn follow_health(&self, number: u64, link: Link) {
        let mailbox = self.mailbox.clone();
        tokio::spawn(async move {
            let (call, mut reports) = HealthClient::new(link).watch(0);
            // Held: dropping it would end the reports.
            let _call = call.no_deadline();
            while let Ok(Some(report)) = reports.recv().await {
                mailbox.send(Message::Reported { link: number, report }).await;
            }
        });
    }

    pub(super) fn is_current(&self, number: u64) -> bool {
        self.link.as_ref().is_some_and(|link| link.number == number)
    }
}

/// How much of the grace the agent may spend on stopping programs.
const AGENT_SHARE: f32 = 0.7;
