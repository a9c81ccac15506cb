//! The service [`Health`](crate::api::health::Health).

use std::time::Duration;

use tombolo_rpc::{Ctx, Sender};

use super::Health;
use crate::api::health::{HealthError, HealthReport};

/// Shortest interval of a watch: a report reads files of /proc, which costs.
const INTERVAL_MS_MIN: u64 = 50;

/// Serves [`Health`](crate::api::health::Health).
#[derive(Clone, Debug)]
pub struct HealthService(Health);

impl HealthService {
    /// Serves `health`.
    pub fn new(health: Health) -> Self {
        Self(health)
    }
}

impl crate::api::health::Health for HealthService {
    async fn status(&self, _cx: &Ctx) -> Result<HealthReport, HealthError> {
        Ok(self.0.report())
    }

    async fn watch(&self, _cx: &Ctx, interval_ms: u64, out: Sender<HealthReport>) -> Result<(), HealthError> {
        if (1..INTERVAL_MS_MIN).contains(&interval_ms) {
            return Err(HealthError::IntervalTooShort { interval_ms });
        }
        let interval = Duration::from_millis(interval_ms);
        let mut changes = self.0.subscribe();
        loop {
            changes.mark_unchanged();
            if out.send(self.0.report()).await.is_err() {
                return Ok(());
            }
            let tick = async {
                match interval_ms {
                    0 => std::future::pending().await,
                    _ => tokio::time::sleep(interval).await,
                }
            };
            tokio::select! {
                _ = changes.changed() => {}
                () = tick => {}
            }
        }
    }
}
