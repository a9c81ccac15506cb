//! Spawners: the drivers that make kernels exist.
//!
//! A [`Spawner`] turns a [`KernelSpec`] into a running [`Kernel`]. Four are here: [`MultikernelSpawner`] starts kernels
//! beside this one (Multikernel Linux), [`UmlSpawner`] boots real Linux kernels as unprivileged processes (User-mode Linux),
//! [`QemuSpawner`] boots them in an emulated machine, [`ProcessSpawner`] runs the agent as a process in its own namespaces (no kernel of its
//! own, and says so).
//!
//! None holds a kernel's file descriptors in the daemon. Each kernel gets a **keeper** (see [`crate::keeper`]): a
//! small process of its own session that owns the kernel's doorbell and console, reaps it and records how it ended.
//! A daemon that dies therefore cuts no kernel off, and its successor finds it again with [`Spawner::adopt`].
//!
//! ```text
//!   tombolod ──keeper.sock──▶ keeper ──doorbell, console, SIGCHLD──▶ kernel
//!      │                                                               ▲
//!      └──────── doorbell (a duplicate), freeze, thaw ─────────────────┘
//! ```

mod cpio;
mod device;
mod distress;
mod error;
mod image;
mod initrd;
mod keeper_link;
mod kernel;
mod launch;
pub(crate) mod mconsole;
pub(crate) mod multikernel;
mod process;
mod qemu;
mod spec;
mod uml;
mod units;
mod user_archive;

use std::future::Future;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

pub use device::{Device, DeviceModel};
pub use error::SpawnError;
pub use kernel::{Kernel, KernelStatus};
pub use multikernel::{MultikernelSpawner, Settings as MultikernelSettings, TakenOver};
pub use process::ProcessSpawner;
pub use qemu::{Acceleration, Accelerator, Outlook, Prospect, QemuSpawner};
pub use spec::{Availability, FileContent, InitrdFile, KernelSpec, PoolFile, SpawnerKind};
pub use uml::UmlSpawner;
pub(crate) use units::not_in_catalogue;
pub use units::{CpuState, DeviceState, MemoryWanted};

/// A driver that makes kernels exist.
pub trait Spawner {
    /// Which driver this is.
    fn kind(&self) -> SpawnerKind;

    /// Whether this host can run it, and if not, what is missing and how to get it.
    fn availability(&self) -> impl Future<Output = Availability> + Send;

    /// Starts a kernel. Returns when its keeper holds it; the agent inside has yet to boot and dial in.
    ///
    /// # Errors
    /// [`SpawnError`] says what was attempted. On any error nothing is left running and no file is left behind.
    ///
    /// # Cancel safety
    /// Dropping the future may leave a kernel running in `spec.runtime_dir`: adopt it, then kill and forget it.
    fn spawn(&self, spec: &KernelSpec) -> impl Future<Output = Result<Kernel, SpawnError>> + Send;

    /// Finds again the kernel whose keeper serves `runtime_dir`, after the daemon that spawned it has gone.
    ///
    /// # Errors
    /// [`SpawnError::NotFound`] when no kernel was ever started there or it was forgotten. A kernel that ended in
    /// the meantime is not an error: the [`Kernel`] says how it ended.
    fn adopt(&self, runtime_dir: &Path) -> impl Future<Output = Result<Kernel, SpawnError>> + Send;
}

/// What all spawners do to adopt: find the keeper, and make sure that the kernel is of this kind.
async fn adopt(kind: SpawnerKind, runtime_dir: &Path) -> Result<Kernel, SpawnError> {
    let kernel = Kernel::find(runtime_dir).await?;
    if kernel.kind() == kind {
        return Ok(kernel);
    }
    let reason = format!("the kernel there was made by the `{}` spawner, not by `{kind}`", kernel.kind());
    Err(SpawnError::Refused { action: "adopt", runtime_dir: runtime_dir.to_owned(), reason })
}

/// The pool must be there in full before a kernel maps it.
fn check_pool(spec: &KernelSpec) -> Result<(), String> {
    let Some(pool) = &spec.pool else { return Ok(()) };
    match std::fs::metadata(&pool.path) {
        Ok(meta) if meta.len() >= pool.len => Ok(()),
        Ok(meta) if meta.file_type().is_char_device() => Err(format!(
            "its pool is memory that only kernels of `multikernel` reach, at an address of {}: give this one a tombolod of its own",
            pool.path.display()
        )),
        Ok(meta) => {
            Err(format!("its pool {} has {} bytes, {} are needed", pool.path.display(), meta.len(), pool.len))
        }
        Err(error) => Err(format!("its pool {} cannot be used: {error}", pool.path.display())),
    }
}

/// The agent's program must be there.
fn check_agent(spec: &KernelSpec) -> Result<(), SpawnError> {
    let path = &spec.agent_binary;
    let opened = std::fs::File::open(path);
    opened.map(drop).map_err(|source| SpawnError::File {
        action: "read the agent's program",
        path: path.clone(),
        source,
    })
}
