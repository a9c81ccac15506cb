//! The `process` spawner.

use std::path::Path;

use super::{Availability, Kernel, KernelSpec, SpawnError, Spawner, SpawnerKind};

/// The `process` spawner.
#[derive(Clone, Debug, Default)]
pub struct ProcessSpawner {}

impl Spawner for ProcessSpawner {
    fn kind(&self) -> SpawnerKind {
        SpawnerKind::Process
    }

    async fn availability(&self) -> Availability {
        Availability::Missing { what: "the keeper is not built yet".into(), remedy: "wait".into() }
    }

    async fn spawn(&self, spec: &KernelSpec) -> Result<Kernel, SpawnError> {
        Err(SpawnError::BadSpec { name: spec.name.clone(), reason: "the keeper is not built yet".into() })
    }

    async fn adopt(&self, runtime_dir: &Path) -> Result<Kernel, SpawnError> {
        Err(SpawnError::NotFound { runtime_dir: runtime_dir.to_owned() })
    }
}
