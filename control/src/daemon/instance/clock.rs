//! The clocks of the kernels.

use std::time::Instant;

use tombolo_agent::api::agent::{AgentClient, ClockAction, SyncClock};

use super::Instance;
use super::link::ORDER_MAX;

/// A clock that is off by less is left: steps disturb programs more than half a second does.
const STEP_BEYOND_MS: u64 = 500;

impl Instance {
    /// Tells the agent what time it is. Done when it arrives and when its kernel answers again after a silence, which are the
    /// moments at which a clock may have stood still.
    pub(super) fn sync_clock(&self) {
        let Some(agent) = self.link.as_ref().map(|link| AgentClient::new(link.link.clone())) else { return };
        let name = self.record.name.clone();
        let step_beyond_ms = self.record.spec.sync_clock.then_some(STEP_BEYOND_MS);
        tokio::spawn(async move {
            match sync(&agent, step_beyond_ms).await {
                Ok(()) => {}
                Err(reason) => tracing::warn!(instance = %name, reason, "the clock could not be compared"),
            }
        });
    }
}

async fn sync(agent: &AgentClient, step_beyond_ms: Option<u64>) -> Result<(), String> {
    let sent = Instant::now();
    agent.ping().deadline(ORDER_MAX).await.map_err(|error| error.to_string())?;
    let half_way_ns = u64::try_from(sent.elapsed().as_nanos() / 2).unwrap_or(u64::MAX);
    let wall_ns = crate::time::unix_ns().saturating_add(half_way_ns);
    let request = SyncClock { wall_ns, uncertainty_ns: half_way_ns, step_beyond_ms };
    let report = agent.sync_clock(request).deadline(ORDER_MAX).await.map_err(|error| error.to_string())?;
    match report.action {
        ClockAction::Left | ClockAction::Stepped => Ok(()),
        ClockAction::NotStepped { reason } => {
            Err(format!("it is off by {} ms and stays so: {reason}", report.offset_ns / 1_000_000))
        }
    }
}
