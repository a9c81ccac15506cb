//! The service [`Agent`]: the kernel as a whole, and the orders that end it.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use tombolo_rpc::Ctx;
use tombolo_transport::broker::Policy;
use tombolo_transport::relay::RelayedBroker;
use tombolo_transport::{BrokerHandle, Port};

use crate::api::agent::{
    Agent, AgentError, AgentMode, ClockReport, Inventory, PolicyRule, Pong, Quiesce, QuiesceReport,
    ServiceEntry, Shutdown, ShutdownAccepted, SyncClock,
};
use crate::api::health::AgentPhase;
use crate::config::AgentConfig;
use crate::exec::ExecEngine;
use crate::forward::Forwards;
use crate::inventory;
use crate::state::Lifecycle;

/// Longest grace that is accepted.
const GRACE_MAX: Duration = Duration::from_secs(3600);
/// After the grace: to kill, sync, unmount and power off.
const AFTER_GRACE: Duration = Duration::from_secs(25);

/// When everything is to be over: the moment of SIGKILL, once somebody has ordered it. Clones share it.
#[derive(Clone, Debug)]
pub struct ShutdownOrder(watch::Sender<Option<Instant>>);

impl Default for ShutdownOrder {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl ShutdownOrder {
    /// Orders it. A later order may only bring the moment nearer. Returns the moment.
    pub fn give(&self, kill_at: Instant) -> Instant {
        self.0.send_modify(|order| *order = Some(order.map_or(kill_at, |earlier| earlier.min(kill_at))));
        self.0.borrow().unwrap_or(kill_at)
    }

    /// Waits for the order. Cancel safe.
    pub async fn given(&self) -> Instant {
        let mut order = self.0.subscribe();
        // The sender lives in `self`.
        order.wait_for(Option::is_some).await.ok().and_then(|order| *order).unwrap_or_else(Instant::now)
    }

    /// Waits until the moment that is in force then. Cancel safe.
    pub async fn kill_moment(&self) {
        let mut order = self.0.subscribe();
        loop {
            let at = *order.borrow_and_update();
            let Some(at) = at else { return };
            tokio::select! {
                () = tokio::time::sleep_until(at.into()) => return,
                _ = order.changed() => {}
            }
        }
    }
}

/// Serves [`Agent`].
#[derive(Clone, Debug)]
pub struct AgentService(Arc<Inner>);

/// What the service speaks for.
#[derive(Debug)]
pub struct AgentParts {
    /// What this agent was told at boot.
    pub config: AgentConfig,
    /// How it runs.
    pub mode: AgentMode,
    /// Which life of the agent this is.
    pub epoch: u64,
    /// What it is doing.
    pub lifecycle: Lifecycle,
    /// Its jobs.
    pub exec: ExecEngine,
    /// Its forwards.
    pub forwards: Forwards,
    /// Its broker, in a kernel that others can be reached from.
    pub broker: Option<KernelBroker>,
    /// Its end.
    pub shutdown: ShutdownOrder,
}

/// The broker of a kernel.
#[derive(Clone, Debug)]
pub enum KernelBroker {
    /// Of one that shares memory.
    Pool(BrokerHandle),
    /// Of one that does not: what goes to other kernels is relayed.
    Relayed(RelayedBroker),
}

impl KernelBroker {
    async fn set_policy(&self, policy: Policy) -> tombolo_transport::Result<()> {
        match self {
            Self::Pool(broker) => broker.set_policy(policy).await,
            Self::Relayed(broker) => {
                broker.set_policy(policy);
                Ok(())
            }
        }
    }

    async fn services(&self) -> tombolo_transport::Result<Vec<(String, Port)>> {
        match self {
            Self::Pool(broker) => broker.services().await,
            Self::Relayed(broker) => Ok(broker.services()),
        }
    }
}

#[derive(Debug)]
struct Inner {
    parts: AgentParts,
    /// Counts quiesce and resume, so that an overtaken auto-resume does nothing.
    quiesces: watch::Sender<u64>,
}

impl AgentService {
    /// Speaks for `parts`.
    pub fn new(parts: AgentParts) -> Self {
        Self(Arc::new(Inner { parts, quiesces: watch::Sender::new(0) }))
    }

    fn parts(&self) -> &AgentParts {
        &self.0.parts
    }

    fn next_quiesce(&self) -> u64 {
        self.0.quiesces.send_modify(|count| *count += 1);
        *self.0.quiesces.borrow()
    }

    fn resume_later(&self, after: Duration, quiesce: u64) {
        let service = self.clone();
        let mut quiesces = self.0.quiesces.subscribe();
        tokio::spawn(async move {
            let overtaken = quiesces.wait_for(|count| *count != quiesce);
            if tokio::time::timeout(after, overtaken).await.is_err() {
                tracing::warn!("nobody ended the quiesce in time: resuming");
                service.parts().lifecycle.enter(AgentPhase::Running);
            }
        });
    }

    fn broker(&self, attempt: &str) -> Result<&KernelBroker, AgentError> {
        self.parts().broker.as_ref().ok_or_else(|| AgentError::NoFabric { attempt: attempt.to_owned() })
    }
}

impl Agent for AgentService {
    async fn hello(&self, _cx: &Ctx) -> Result<Inventory, AgentError> {
        let AgentParts { config, mode, epoch, .. } = self.parts();
        Ok(inventory::take(Some(config), *mode, *epoch))
    }

    async fn ping(&self, _cx: &Ctx) -> Result<Pong, AgentError> {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Pong {
            monotonic_ns: now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64,
            wall_ns: wall.as_nanos() as u64,
        })
    }

    async fn sync_clock(&self, _cx: &Ctx, request: SyncClock) -> Result<ClockReport, AgentError> {
        let AgentParts { config, mode, .. } = self.parts();
        Ok(crate::clock::sync(&request, *mode, config.may_set_clock))
    }

    async fn quiesce(&self, _cx: &Ctx, request: Quiesce) -> Result<QuiesceReport, AgentError> {
        let AgentParts { lifecycle, exec, forwards, .. } = self.parts();
        let quiesce = self.next_quiesce();
        if lifecycle.enter(AgentPhase::Quiesced) && request.auto_resume_ms > 0 {
            self.resume_later(Duration::from_millis(request.auto_resume_ms), quiesce);
        }
        let synced = tokio::task::spawn_blocking(rustix::fs::sync).await.is_ok();
        tracing::info!(jobs = exec.running(), "quiesced");
        Ok(QuiesceReport { jobs_running: exec.running(), forwards_open: forwards.open(), synced })
    }

    async fn resume(&self, _cx: &Ctx) -> Result<(), AgentError> {
        self.next_quiesce();
        if self.parts().lifecycle.phase() == AgentPhase::Quiesced {
            self.parts().lifecycle.enter(AgentPhase::Running);
            tracing::info!("resumed");
        }
        Ok(())
    }

    async fn shutdown(&self, cx: &Ctx, request: Shutdown) -> Result<ShutdownAccepted, AgentError> {
        let grace = Duration::from_millis(request.grace_ms).min(GRACE_MAX);
        let kill_at = self.parts().shutdown.give(Instant::now() + grace);
        tracing::info!(by = %cx.peer().role, grace_ms = grace.as_millis() as u64, "shutdown ordered");
        let within = kill_at.saturating_duration_since(Instant::now()) + AFTER_GRACE;
        Ok(ShutdownAccepted { within_ms: within.as_millis() as u64 })
    }

    async fn set_policy(&self, _cx: &Ctx, rules: Vec<PolicyRule>) -> Result<(), AgentError> {
        let parse = |(index, rule): (usize, &PolicyRule)| {
            rule.try_into().map_err(|error: tombolo_transport::broker::ParsePolicyError| {
                AgentError::InvalidPolicy { index: index as u32, reason: error.to_string() }
            })
        };
        let rules = rules.iter().enumerate().map(parse).collect::<Result<_, _>>()?;
        let attempt = "setting the policy";
        let set = self.broker(attempt)?.set_policy(Policy { rules }).await;
        set.map_err(|error| AgentError::System { attempt: attempt.to_owned(), reason: error.to_string() })
    }

    async fn services(&self, _cx: &Ctx) -> Result<Vec<ServiceEntry>, AgentError> {
        let attempt = "listing services";
        let services = self.broker(attempt)?.services().await;
        let services = services
            .map_err(|error| AgentError::System { attempt: attempt.to_owned(), reason: error.to_string() })?;
        Ok(services.into_iter().map(|(name, port)| ServiceEntry { name, port: port.0 }).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_later_order_may_only_shorten_the_grace() {
        let order = ShutdownOrder::default();
        let now = Instant::now();
        assert_eq!(order.give(now + Duration::from_secs(10)), now + Duration::from_secs(10));
        assert_eq!(order.give(now + Duration::from_secs(60)), now + Duration::from_secs(10));
        assert_eq!(order.give(now), now);
        assert_eq!(order.given().await, now);
    }
}
