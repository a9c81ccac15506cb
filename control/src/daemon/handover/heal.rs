//! Units in quarantine of which it may show by itself who has them: a machine answers again, or has ended.

use std::sync::Arc;
use std::time::Duration;

use tombolo_handover::{Coordinator, Owner, UnitId};

use super::Books;
use crate::daemon::shared::Shared;

/// From one look to the next.
const LOOK_EVERY: Duration = Duration::from_secs(15);

/// Looks for them again and again.
pub(super) async fn run(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Books::Kept(coordinator) = shared.ledger.books() else { return };
        for unit in curable(&coordinator) {
            match shared.ledger.search(unit).await {
                Ok(owner) => tracing::info!(%unit, %owner, "it was found, and is in quarantine no more"),
                Err(error) => tracing::debug!(%unit, %error, "it stays in quarantine"),
            }
        }
    }
}

/// Of the others a person must look why it came to that.
fn curable(coordinator: &Coordinator) -> Vec<UnitId> {
    let is_curable = |owner: &Owner| matches!(owner, Owner::Quarantined(reason) if !reason.needs_operator());
    let entries = coordinator.ledger().entries().filter(|entry| is_curable(&entry.owner));
    entries.map(|entry| entry.unit.id).collect()
}
