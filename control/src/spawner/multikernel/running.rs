//! What is asked of a kernel that runs, by its runtime folder alone: its CPUs, its memory, its devices. None of it is done on the runtime's threads.

use std::path::Path;

use tombolo_handover::PciAddress;

use super::devices::{LiveDevice, LiveDevices};
use super::folder;
use super::ids::PhysicalCpu;
use super::interface::Mounted;
use super::live::{Live, LiveCpu, LiveError};
use super::memory::LiveMemory;
use super::record::Record;
use crate::keeper::MemoryState;
use crate::spawner::MemoryWanted;

/// The CPUs of the kernel of `runtime_dir`, which runs; `None` where they cannot be moved.
pub(in crate::spawner) async fn cpus(runtime_dir: &Path) -> Result<Option<Vec<LiveCpu>>, LiveError> {
    on_live(runtime_dir, |live| live.cpus()).await
}

/// Whether the kernel of `runtime_dir` has CPUs that can be moved: those that the ledger gave it.
pub(in crate::spawner) fn moves_cpus(runtime_dir: &Path) -> bool {
    let record = folder::read(runtime_dir).ok().flatten();
    record.is_some_and(|record| Live::on(&Mounted::at(&record.settings.root), &record, runtime_dir).is_some())
}

/// Does something about one of them, by its physical number.
pub(in crate::spawner) async fn change_cpu(
    runtime_dir: &Path,
    cpu: u32,
    change: LiveChange,
) -> Result<Option<()>, LiveError> {
    let cpu = PhysicalCpu(cpu);
    on_live(runtime_dir, move |live| match change {
        LiveChange::Give => live.give(cpu),
        LiveChange::Take => live.take(cpu),
        LiveChange::Settle => live.settle(cpu),
    })
    .await
}

/// Whether the kernel of `runtime_dir` has memory that can be moved: what the ledger gave it.
pub(in crate::spawner) fn moves_memory(runtime_dir: &Path) -> bool {
    let record = folder::read(runtime_dir).ok().flatten();
    record.is_some_and(|record| {
        LiveMemory::on(&Mounted::at(&record.settings.root), &record, runtime_dir).is_some()
    })
}

/// Asks that kernel again for memory that it was asked for and did not answer about.
pub(in crate::spawner) async fn settle_memory(runtime_dir: &Path) -> Result<Option<()>, LiveError> {
    on_memory(runtime_dir, |memory| memory.settle()).await
}

/// The memory of the kernel of `runtime_dir`, which runs; `None` where it cannot be moved.
pub(in crate::spawner) async fn memory(runtime_dir: &Path) -> Result<Option<MemoryState>, LiveError> {
    on_memory(runtime_dir, |memory| memory.state()).await
}

/// Makes it what is wanted, as far as that is to be had.
pub(in crate::spawner) async fn set_memory(
    runtime_dir: &Path,
    wanted: MemoryWanted,
) -> Result<Option<MemoryState>, LiveError> {
    on_memory(runtime_dir, move |memory| memory.set(wanted)).await
}

/// Whether devices can be moved to and from the kernel of `runtime_dir`: whether those that it has are the ledger's.
pub(in crate::spawner) fn moves_devices(runtime_dir: &Path) -> bool {
    let record = folder::read(runtime_dir).ok().flatten();
    record.is_some_and(|record| {
        LiveDevices::on(&Mounted::at(&record.settings.root), &record, runtime_dir).is_some()
    })
}

/// The devices of the kernel of `runtime_dir`, which runs; `None` where they cannot be moved.
pub(in crate::spawner) async fn devices(runtime_dir: &Path) -> Result<Option<Vec<LiveDevice>>, LiveError> {
    on_devices(runtime_dir, |devices| devices.all()).await
}

/// Does something about one of them.
pub(in crate::spawner) async fn change_device(
    runtime_dir: &Path,
    function: PciAddress,
    change: LiveChange,
) -> Result<Option<()>, LiveError> {
    on_devices(runtime_dir, move |devices| match change {
        LiveChange::Give => devices.give(function),
        LiveChange::Take => devices.take(function),
        LiveChange::Settle => devices.settle(function),
    })
    .await
}

/// What is to be done about a CPU or a device of a kernel that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::spawner) enum LiveChange {
    /// It is to come out of the pool.
    Give,
    /// It is to go back there.
    Take,
    /// What was asked of that kernel, and may still happen, is asked again.
    Settle,
}

async fn on_live<T: Send + 'static>(
    runtime_dir: &Path,
    act: impl FnOnce(Live<'_, Mounted>) -> Result<T, LiveError> + Send + 'static,
) -> Result<Option<T>, LiveError> {
    on_record(runtime_dir, |kernel, record, dir| Live::on(kernel, record, dir).map(act).transpose()).await
}

async fn on_memory<T: Send + 'static>(
    runtime_dir: &Path,
    act: impl FnOnce(LiveMemory<'_, Mounted>) -> Result<T, LiveError> + Send + 'static,
) -> Result<Option<T>, LiveError> {
    on_record(runtime_dir, |kernel, record, dir| LiveMemory::on(kernel, record, dir).map(act).transpose())
        .await
}

async fn on_devices<T: Send + 'static>(
    runtime_dir: &Path,
    act: impl FnOnce(LiveDevices<'_, Mounted>) -> Result<T, LiveError> + Send + 'static,
) -> Result<Option<T>, LiveError> {
    on_record(runtime_dir, |kernel, record, dir| LiveDevices::on(kernel, record, dir).map(act).transpose())
        .await
}

async fn on_record<T: Send + 'static>(
    runtime_dir: &Path,
    act: impl FnOnce(&Mounted, &Record, &Path) -> Result<T, LiveError> + Send + 'static,
) -> Result<T, LiveError> {
    let dir = runtime_dir.to_owned();
    let acting = move || {
        let Some(record) = folder::read(&dir).map_err(LiveError::Unknown)? else {
            return Err(LiveError::Refused("nothing was made for it in the kernel".into()));
        };
        act(&Mounted::at(&record.settings.root), &record, &dir)
    };
    let acted = tokio::task::spawn_blocking(acting).await;
    acted.unwrap_or_else(|panicked| Err(LiveError::Unknown(panicked.to_string())))
}
