//! `tombolo.control.Beside`: what Multikernel Linux sets aside for kernels beside this one, and who has it, whoever made them.

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};
use tombolo_handover::PciAddress;
use tombolo_rpc::Ctx;

use super::{ControlError, InstanceView};

/// The kernel's own books.
#[tombolo_rpc::service(name = "tombolo.control.Beside")]
pub trait Beside {
    /// What the kernel says of its pool, instances and transactions, those of other programs included. With `probe` every kernel that is said to run
    /// is called, which takes up to a second.
    async fn show(&self, cx: &Ctx, probe: bool) -> Result<KernelBooks, ControlError>;
    /// Mounts the kernel's file system where the settings have it. Returns whether it was mounted now, and was not before.
    async fn mount(&self, cx: &Ctx) -> Result<bool, ControlError>;
    /// Makes the pool as it is wanted: takes CPUs, memory and PCI functions from the host, or gives them back. Returns what was done, or is to be done.
    async fn change(&self, cx: &Ctx, wish: PoolWish, dry_run: bool) -> Result<Vec<String>, ControlError>;
    /// Takes over an instance that another program made, as it is: from now on it is started, stopped and removed as one of ours. Nothing is
    /// changed in the kernel.
    async fn adopt(&self, cx: &Ctx, request: AdoptRequest) -> Result<InstanceView, ControlError>;
    /// Lends the console of an instance that runs to other programs for so long, a day at most; 0 takes it back. Returns once it is so.
    async fn lend_console(&self, cx: &Ctx, name: String, lend_ms: u64) -> Result<(), ControlError>;
}

/// Request of [`Beside::adopt`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct AdoptRequest {
    /// Its name, in the kernel and here.
    pub name: String,
    /// What it is to be once it is started: an [`InstanceSpec`](crate::core::InstanceSpec) as JSON, of which CPUs and memory are replaced by those
    /// that it has.
    pub spec_json: String,
    /// Also one that runs, which then goes on without an agent until it is killed; and one that a `tombolod` made that has left.
    pub force: bool,
}

/// What the pool is to have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct PoolWish {
    /// CPUs, by their physical numbers; `None`: as it is.
    pub cpus: Option<Vec<u32>>,
    /// Memory in all, in bytes, a multiple of the page size; `None`: as it is.
    pub memory_bytes: Option<u64>,
    /// All its PCI functions; `None`: as they are.
    pub devices: Option<Vec<WantedDevice>>,
    /// Whether it may have functions that no IOMMU keeps to the memory of the kernel that has them.
    pub allow_no_iommu: bool,
    /// Whether it may have functions that cannot be reset before another kernel gets them.
    pub allow_no_reset: bool,
}

/// A PCI function that the pool is to have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct WantedDevice {
    /// Where it is on this host.
    pub address: PciAddress,
    /// The name that kernels are to give to what they find in it, such as a network interface; 31 letters at most.
    pub alias: Option<String>,
}

/// What the kernel says of what it has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct KernelBooks {
    /// CPUs of the pool.
    pub cpus: Vec<PoolCpu>,
    /// Memory of the pool.
    pub chunks: Vec<PoolChunk>,
    /// PCI functions of the pool.
    pub devices: Vec<PoolDevice>,
    /// Why it is not known which functions the pool has; then [`KernelBooks::devices`] is empty.
    pub devices_unknown: Option<String>,
    /// Instances.
    pub instances: Vec<KernelInstance>,
    /// Transactions, which the kernel never forgets.
    pub transactions: Vec<KernelTransaction>,
    /// What kernels have in common with this one.
    pub shared_memory: SharedMemory,
}

/// The memory that host and kernels share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct SharedMemory {
    /// `heap`, `mem`, `daxfs` or `file`; `None`: there is none, and everything goes over each kernel's one socket.
    pub kind: Option<String>,
    /// Its length.
    pub bytes: u64,
    /// Its physical address, where that is known.
    pub phys: Option<u64>,
    /// The process that keeps it from being freed, where one does.
    pub held_by: Option<u32>,
    /// Why there is none although the settings ask for some.
    pub reason: Option<String>,
}

/// A CPU of the pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct PoolCpu {
    /// What its hardware calls it.
    pub physical: u32,
    /// Whether no instance has it.
    pub is_free: bool,
}

/// Contiguous memory of the pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct PoolChunk {
    /// Its physical address.
    pub base: u64,
    /// Its length.
    pub bytes: u64,
    /// The node it belongs to, where the kernel tells.
    pub numa_node: Option<u32>,
}

/// A PCI function of the pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct PoolDevice {
    /// Where it is on this host, and in every kernel that has it.
    pub address: PciAddress,
    /// The name that kernels give to what they find in it.
    pub alias: Option<String>,
    /// The instance that has it, whoever made that.
    pub held_by: Option<String>,
    /// Its IOMMU group, where there is one.
    pub iommu_group: Option<u32>,
    /// Whether it can be reset before another kernel gets it.
    pub can_reset: bool,
}

/// An instance in the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct KernelInstance {
    /// Its name.
    pub name: String,
    /// Its number, if its tree can be read.
    pub id: Option<u32>,
    /// `ready`, `loaded` or `active`, as the kernel says; none of it means that a kernel runs.
    pub status: String,
    /// Its CPUs, by their physical numbers.
    pub cpus: Vec<u32>,
    /// Its memory.
    pub memory_bytes: u64,
    /// Its PCI functions.
    pub devices: Vec<PciAddress>,
    /// Whether this daemon made it or took it over. Others are left alone.
    pub is_ours: bool,
    /// Whether another program made it, and this daemon took it over.
    pub is_taken_over: bool,
    /// For how long its console is still lent to other programs; `None`: it is not.
    pub console_lent_ms: Option<u64>,
    /// What came of a call to it, if that was asked for and it is said to run; `None` too where this host has no vsock to it.
    pub answers: Option<KernelAnswer>,
}

/// What came of a call to a kernel, at the port of kerf's agent, which says nothing and hangs up at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum KernelAnswer {
    /// Kerf's agent listens there: its user space is up.
    KerfAgent,
    /// The kernel refused it: it lives, and nobody listens there, as in kernels that Tombolo boots.
    Kernel,
    /// Nobody answered: it is dead, or hangs.
    Silent,
}

/// A transaction of the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct KernelTransaction {
    /// Such as `tx_2`.
    pub name: String,
    /// `applied`, `failed` and the like, as the kernel says.
    pub status: String,
    /// What it was to change.
    pub target: String,
    /// Whether it carries the mark of a `tombolod`.
    pub is_ours: bool,
}
