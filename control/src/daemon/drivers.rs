//! The spawners of this host behind one face.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::api::beside::PoolWish;
use crate::core::InstanceSpec;
use crate::spawner::{
    Availability, Kernel, KernelSpec, MultikernelSettings, MultikernelSpawner, ProcessSpawner, QemuSpawner,
    SpawnError, Spawner, SpawnerKind, UmlSpawner,
};

/// The spawners.
#[derive(Clone, Debug)]
pub(crate) struct Drivers {
    uml: UmlSpawner,
    qemu: QemuSpawner,
    multikernel: MultikernelSpawner,
    process: ProcessSpawner,
    default: Option<SpawnerKind>,
    /// Whether `uml` was once found able to run: finding out starts its kernel, which takes a second.
    uml_ready: OnceLock<()>,
}

impl Drivers {
    pub(crate) fn new(
        keeper_binary: &Path,
        image: Option<&Path>,
        default: Option<SpawnerKind>,
        qemu: QemuSpawner,
        multikernel: MultikernelSettings,
    ) -> Self {
        Self {
            uml: UmlSpawner::new(keeper_binary).with_image(image.map(Path::to_owned)),
            qemu,
            multikernel: MultikernelSpawner::new(keeper_binary, multikernel),
            process: ProcessSpawner::new(keeper_binary),
            default,
            uml_ready: OnceLock::new(),
        }
    }

    /// The driver for an instance: what it names, what the daemon was told, or the best that can run.
    pub(crate) async fn choose(&self, spec: &InstanceSpec) -> SpawnerKind {
        match spec.spawner.or(self.default) {
            Some(kind) => kind,
            None if self.uml_can_run().await => SpawnerKind::Uml,
            None => SpawnerKind::Process,
        }
    }

    async fn uml_can_run(&self) -> bool {
        if self.uml_ready.get().is_some() {
            return true;
        }
        let ready = self.availability(SpawnerKind::Uml).await.is_ready();
        if ready {
            let _ = self.uml_ready.set(());
        }
        ready
    }

    /// The spawner of machines.
    pub(crate) fn qemu(&self) -> &QemuSpawner {
        &self.qemu
    }

    /// How the kernel's interface is reached, of the spawner `multikernel`.
    pub(crate) fn multikernel_settings(&self) -> &MultikernelSettings {
        self.multikernel.settings()
    }

    /// Makes what is set aside for kernels beside this one as it is wanted, or only says how. `instances`: where the folders of ours are.
    pub(crate) async fn change_multikernel_pool(
        &self,
        instances: PathBuf,
        wish: PoolWish,
        dry_run: bool,
    ) -> Result<Vec<String>, String> {
        self.multikernel.change_pool(instances, wish, dry_run).await
    }

    /// What drives kernels beside this one.
    pub(crate) fn multikernel(&self) -> &MultikernelSpawner {
        &self.multikernel
    }

    /// The first number from `least` on that a new instance can have: where kernels run beside this one there are few, and other programs give
    /// numbers as well. `ours`: those of our instances.
    pub(crate) async fn number_from(&self, kind: SpawnerKind, least: u32, ours: Vec<u32>) -> u32 {
        match kind {
            SpawnerKind::Multikernel => self.multikernel.number_from(least, ours).await,
            SpawnerKind::Uml | SpawnerKind::Qemu | SpawnerKind::Process => least,
        }
    }

    pub(crate) async fn availability(&self, kind: SpawnerKind) -> Availability {
        match kind {
            SpawnerKind::Uml => self.uml.availability().await,
            SpawnerKind::Qemu => self.qemu.availability().await,
            SpawnerKind::Multikernel => self.multikernel.availability().await,
            SpawnerKind::Process => self.process.availability().await,
        }
    }

    pub(crate) async fn spawn(&self, kind: SpawnerKind, spec: &KernelSpec) -> Result<Kernel, SpawnError> {
        match kind {
            SpawnerKind::Uml => self.uml.spawn(spec).await,
            SpawnerKind::Qemu => self.qemu.spawn(spec).await,
            SpawnerKind::Multikernel => self.multikernel.spawn(spec).await,
            SpawnerKind::Process => self.process.spawn(spec).await,
        }
    }

    pub(crate) async fn adopt(&self, kind: SpawnerKind, runtime_dir: &Path) -> Result<Kernel, SpawnError> {
        match kind {
            SpawnerKind::Uml => self.uml.adopt(runtime_dir).await,
            SpawnerKind::Qemu => self.qemu.adopt(runtime_dir).await,
            SpawnerKind::Multikernel => self.multikernel.adopt(runtime_dir).await,
            SpawnerKind::Process => self.process.adopt(runtime_dir).await,
        }
    }
}
