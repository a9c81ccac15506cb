//! `tombolo.control.Beside`.

use tombolo_rpc::Ctx;

use super::Session;
use crate::api::beside::{Beside, KernelBooks, PoolWish};
use crate::api::{ControlError, Role};
use crate::spawner::multikernel;

impl Beside for Session {
    async fn show(&self, _cx: &Ctx) -> Result<KernelBooks, ControlError> {
        let settings = self.shared.drivers.multikernel_settings().clone();
        let folders: Vec<_> =
            self.registry.all().iter().map(|handle| self.shared.places.instance(&handle.name)).collect();
        let read = tokio::task::spawn_blocking(move || multikernel::books(&settings, &folders)).await;
        let read = read.unwrap_or_else(|panicked| Err(panicked.to_string()));
        read.map_err(|reason| ControlError::failed("read the kernel's books", reason))
    }

    async fn change(&self, _cx: &Ctx, wish: PoolWish, dry_run: bool) -> Result<Vec<String>, ControlError> {
        let attempt = "change what is set aside for other kernels";
        if !dry_run {
            self.require(Role::Admin, attempt)?;
        }
        // It is not called off when the caller leaves: half a change is worse than one that nobody waits for.
        let changed = self.shared.drivers.change_multikernel_pool(wish, dry_run).await;
        let outcome = changed.map_err(|reason| ControlError::failed(attempt, reason));
        if !dry_run {
            self.audit("pool", None, &outcome).await;
        }
        outcome
    }
}
