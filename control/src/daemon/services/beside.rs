//! `tombolo.control.Beside`.

use tombolo_rpc::Ctx;

use super::Session;
use crate::api::beside::{AdoptRequest, Beside, KernelBooks, PoolWish};
use crate::api::{ControlError, InstanceView, Role};
use crate::daemon::instance::Handle;
use crate::spawner::multikernel::{self, Known};

impl Beside for Session {
    async fn show(&self, _cx: &Ctx) -> Result<KernelBooks, ControlError> {
        let settings = self.shared.drivers.multikernel_settings().clone();
        let known = |handle: &Handle| {
            let face = handle.face.borrow();
            Known {
                folder: self.shared.places.instance(&handle.name),
                name: handle.name.to_string(),
                cid: face.view.cid,
                taken_over: face.taken_over.clone(),
            }
        };
        let instances: Vec<_> = self.registry.all().iter().map(known).collect();
        let (dir, bytes) = (self.shared.places.state_dir.clone(), self.shared.pool_bytes);
        let read = tokio::task::spawn_blocking(move || {
            let shared_memory = multikernel::shared_memory(&settings, &dir, bytes);
            Ok(KernelBooks { shared_memory, ..multikernel::books(&settings, &instances)? })
        })
        .await;
        let read = read.unwrap_or_else(|panicked| Err(panicked.to_string()));
        read.map_err(|reason| ControlError::failed("read the kernel's books", reason))
    }

    async fn change(&self, _cx: &Ctx, wish: PoolWish, dry_run: bool) -> Result<Vec<String>, ControlError> {
        let attempt = "change what is set aside for other kernels";
        if !dry_run {
            self.require(Role::Admin, attempt)?;
        }
        // It is not called off when the caller leaves: half a change is worse than one that nobody waits for.
        let takes_memory = wish.memory_bytes.is_some();
        let instances = self.shared.places.instances();
        let changed = self.shared.drivers.change_multikernel_pool(instances, wish, dry_run).await;
        let held = || {
            let (settings, places) = (self.shared.drivers.multikernel_settings(), &self.shared.places);
            let shared = multikernel::shared_memory(settings, &places.state_dir, self.shared.pool_bytes);
            let (phys, pid) = (shared.phys?, shared.held_by?);
            Some(format!(
                "; of that memory {} MiB at {phys:#x} are shared with kernels, and held by process {pid} until `tombolo down`",
                shared.bytes >> 20
            ))
        };
        let outcome = changed.map_err(|reason| {
            let held = takes_memory.then(held).flatten().unwrap_or_default();
            ControlError::failed(attempt, reason + &held)
        });
        if !dry_run {
            self.shared.ledger.compare().await;
            self.audit("pool", None, &outcome).await;
        }
        outcome
    }

    async fn adopt(&self, _cx: &Ctx, request: AdoptRequest) -> Result<InstanceView, ControlError> {
        self.require(Role::Admin, "adopt")?;
        let name = request.name.clone();
        let outcome = self.registry.adopt(request).await;
        self.audit("adopt", Some(&name), &outcome).await;
        outcome
    }
}
