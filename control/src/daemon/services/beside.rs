//! `tombolo.control.Beside`.

use std::time::Duration;

use tokio::task::JoinSet;
use tombolo_rpc::Ctx;

use super::Session;
use crate::api::beside::{AdoptRequest, Beside, KernelBooks, KernelInstance, PoolWish};
use crate::api::{ControlError, InstanceView, Role};
use crate::daemon::instance::Handle;
use crate::spawner::SpawnerKind;
use crate::spawner::multikernel::{self, Known, LEASE_MAX};

/// How long a kernel that is called may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(1);

impl Beside for Session {
    async fn show(&self, _cx: &Ctx, probe: bool) -> Result<KernelBooks, ControlError> {
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
        let mut books = read.map_err(|reason| ControlError::failed("read the kernel's books", reason))?;
        if probe {
            self.probe(&mut books.instances).await;
        }
        Ok(books)
    }

    async fn mount(&self, _cx: &Ctx) -> Result<bool, ControlError> {
        let attempt = "mount the kernel's interface";
        self.require(Role::Admin, attempt)?;
        let settings = self.shared.drivers.multikernel_settings().clone();
        let mounted = tokio::task::spawn_blocking(move || multikernel::mount(&settings)).await;
        let mounted = mounted.unwrap_or_else(|panicked| Err(panicked.to_string()));
        let outcome = mounted.map_err(|reason| ControlError::failed(attempt, reason));
        self.audit("mount", None, &outcome).await;
        outcome
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

    async fn lend_console(&self, _cx: &Ctx, name: String, lend_ms: u64) -> Result<(), ControlError> {
        let verb = if lend_ms == 0 { "take back the console of" } else { "lend the console of" };
        self.require(Role::Operator, verb)?;
        let outcome = self.lend(verb, &name, lend_ms).await;
        self.audit(verb, Some(&name), &outcome).await;
        outcome
    }
}

impl Session {
    async fn lend(&self, verb: &str, name: &str, lend_ms: u64) -> Result<(), ControlError> {
        let conflict = |reason: &str| ControlError::Conflict {
            verb: verb.to_owned(),
            name: name.to_owned(),
            reason: reason.to_owned(),
        };
        let kernel = self.find(name)?.face.borrow().kernel.clone();
        let kernel = kernel.ok_or_else(|| conflict("it has no kernel"))?;
        if kernel.kind() != SpawnerKind::Multikernel {
            return Err(conflict(
                "its console is nobody's but Tombolo's: only kernels of `multikernel` have one that other programs can read",
            ));
        }
        let most_ms = LEASE_MAX.as_millis() as u64;
        if lend_ms > most_ms {
            return Err(conflict("a console is lent for a day at most, and can be lent again"));
        }
        let time = (lend_ms > 0).then(|| Duration::from_millis(lend_ms));
        let lent = multikernel::lend_console(kernel.runtime_dir(), time).await;
        lent.map_err(|reason| ControlError::failed(format!("{verb} `{name}`"), reason))
    }

    /// Calls every kernel that is said to run, all at once.
    async fn probe(&self, instances: &mut [KernelInstance]) {
        let mut calls = JoinSet::new();
        for (at, instance) in instances.iter().enumerate() {
            let Some(id) = instance.id.filter(|_| instance.status == "active") else { continue };
            let settings = self.shared.drivers.multikernel_settings().clone();
            calls.spawn(async move { (at, multikernel::probe(&settings, id, ANSWER_MAX).await) });
        }
        while let Some(called) = calls.join_next().await {
            if let Ok((at, answer)) = called
                && let Some(instance) = instances.get_mut(at)
            {
                instance.answers = answer;
            }
        }
    }
}
