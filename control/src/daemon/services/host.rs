//! `tombolo.control.Host`.

use tombolo_rpc::Ctx;

use super::{Session, ShutdownRequest};
use crate::api::host::{DaemonStatus, Diagnosis, Finding, Host, Level};
use crate::api::{ControlError, Role};
use crate::core::State;
use crate::topology::Topology;

impl Host for Session {
    async fn status(&self, _cx: &Ctx) -> Result<DaemonStatus, ControlError> {
        let (shared, views) = (&self.shared, self.registry.views());
        Ok(DaemonStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started_unix_ns: shared.started_unix_ns,
            state_dir: shared.places.state_dir.display().to_string(),
            runtime_dir: shared.places.runtime_dir.display().to_string(),
            pool_path: shared.places.pool.display().to_string(),
            pool_bytes: shared.pool_bytes,
            instances: views.len() as u32,
            running: views.iter().filter(|view| view.state == State::Running).count() as u32,
            store_refusal: shared.store.refusal(),
            last_event: *shared.store.watch_events().borrow(),
            your_role: self.caller.role,
        })
    }

    async fn doctor(&self, _cx: &Ctx) -> Result<Diagnosis, ControlError> {
        let places = &self.shared.places;
        let (image, qemu) = (self.shared.image.as_deref(), self.shared.drivers.qemu());
        let settings = self.shared.drivers.multikernel_settings();
        let looked =
            crate::doctor::diagnose(&places.keeper_binary, &places.agent_binary, image, qemu, settings);
        let mut diagnosis = looked.await;
        diagnosis.findings.push(match self.shared.store.refusal() {
            Some(reason) => Finding {
                subject: "store".into(),
                level: Level::Fail,
                detail: reason,
                remedy: "free the disk or make the folder writable; no restart is needed".into(),
            },
            None => Finding {
                subject: "store".into(),
                level: Level::Ok,
                detail: places.state_dir.join("state.redb").display().to_string(),
                remedy: String::new(),
            },
        });
        Ok(diagnosis)
    }

    async fn topology(&self, _cx: &Ctx) -> Result<Topology, ControlError> {
        Ok(Topology::of_this_host())
    }

    async fn shutdown(&self, _cx: &Ctx, stop_kernels: bool) -> Result<(), ControlError> {
        self.require(Role::Admin, "shut the daemon down")?;
        self.audit("shutdown", None, &Ok(())).await;
        self.shutdown
            .send(ShutdownRequest { stop_kernels })
            .await
            .map_err(|_| ControlError::failed("shut the daemon down", "it is ending already"))
    }
}
