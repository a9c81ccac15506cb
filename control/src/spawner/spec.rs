//! What a kernel is to be: the input of every spawner.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tombolo_agent::config::AgentConfig;
use tombolo_handover::PciAddress;

use super::{Device, TakenOver};

/// Which driver makes a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SpawnerKind {
    /// A real Linux kernel as an unprivileged process (User-mode Linux).
    Uml,
    /// A real Linux kernel in an emulated machine (QEMU).
    Qemu,
    /// A kernel of its own beside this one, on Multikernel Linux.
    Multikernel,
    /// The agent as a process in its own namespaces: **not** a kernel of its own.
    Process,
}

impl SpawnerKind {
    /// Whether what it makes are kernels, rather than processes of this one.
    pub fn makes_kernels(self) -> bool {
        match self {
            Self::Uml | Self::Qemu | Self::Multikernel => true,
            Self::Process => false,
        }
    }

    /// Whether what it makes are processes of this host, which end when they are killed. Where they are not, a process stands for each.
    pub fn makes_processes(self) -> bool {
        match self {
            Self::Uml | Self::Qemu | Self::Process => true,
            Self::Multikernel => false,
        }
    }

    /// Whether memory can be moved to and from its kernels while they run, where the ledger has such memory.
    pub fn can_move_memory(self) -> bool {
        match self {
            Self::Uml | Self::Qemu | Self::Multikernel => true,
            Self::Process => false,
        }
    }

    /// Whether CPUs can be moved to and from its kernels while they run, where the ledger has such CPUs.
    pub fn can_move_cpus(self) -> bool {
        match self {
            Self::Qemu | Self::Multikernel => true,
            Self::Uml | Self::Process => false,
        }
    }

    /// Whether devices can be moved to and from its kernels while they run, where the ledger has such devices.
    pub fn can_move_devices(self) -> bool {
        match self {
            Self::Qemu | Self::Multikernel => true,
            Self::Uml | Self::Process => false,
        }
    }

    /// One line for people: what stands behind an instance of this kind.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Uml => "real Linux kernels, each an unprivileged process (User-mode Linux)",
            Self::Qemu => "real Linux kernels, each in an emulated machine (QEMU)",
            Self::Multikernel => {
                "real Linux kernels beside this one, on CPUs and memory of their own (Multikernel Linux)"
            }
            Self::Process => {
                "processes in their own namespaces, NOT kernels: they share the kernel of this host"
            }
        }
    }
}

impl fmt::Display for SpawnerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uml => "uml",
            Self::Qemu => "qemu",
            Self::Multikernel => "multikernel",
            Self::Process => "process",
        })
    }
}

impl FromStr for SpawnerKind {
    type Err = String;

    fn from_str(input: &str) -> Result<Self, Self::Err> {
        match input {
            "uml" => Ok(Self::Uml),
            "qemu" => Ok(Self::Qemu),
            "multikernel" => Ok(Self::Multikernel),
            "process" => Ok(Self::Process),
            other => Err(format!("`{other}` is not a spawner: choose uml, qemu, multikernel or process")),
        }
    }
}

/// Whether a spawner can work on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum Availability {
    /// It can; `detail` says with what (kernel image and version, namespaces).
    Ready {
        /// One line for people.
        detail: String,
    },
    /// It cannot.
    Missing {
        /// What is missing.
        what: String,
        /// What to do to get it.
        remedy: String,
    },
}

impl Availability {
    /// Whether the spawner can be used now.
    pub fn is_ready(&self) -> bool {
        matches!(self, Self::Ready { .. })
    }
}

/// A file that a kernel finds at boot.
#[derive(Clone, Debug)]
pub struct InitrdFile {
    /// Absolute path inside the kernel. Missing folders are made (mode 0755).
    pub guest_path: String,
    /// Permission bits, such as `0o755`.
    pub mode: u32,
    /// What the file holds.
    pub content: FileContent,
}

/// Where the bytes of an [`InitrdFile`] come from.
#[derive(Clone, Debug)]
pub enum FileContent {
    /// A file of the host, read when the kernel is spawned.
    Path(PathBuf),
    /// These bytes.
    Bytes(Vec<u8>),
}

/// The shared-memory pool a kernel maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolFile {
    /// The host's file. It must have its full size before the kernel starts.
    pub path: PathBuf,
    /// Its length, in bytes.
    pub len: u64,
}

/// Everything a spawner needs to know to make one kernel.
#[derive(Clone, Debug)]
pub struct KernelSpec {
    /// The kernel image; `None` lets the spawner find one. Ignored by `process`.
    pub image: Option<PathBuf>,
    /// An initial archive of the user's, in any form that the kernel unpacks: what is in ours takes the place of what is in it. Refused by
    /// `process`, where nothing unpacks one.
    pub initrd: Option<PathBuf>,
    /// The kernel's memory, in bytes (at least 32 MiB, and twice the size of all initrd files; more if `initrd` is packed). Ignored by
    /// `process`.
    pub memory_bytes: u64,
    /// The least memory it can be left with while it runs, in bytes: `memory_bytes` or less. Where a kernel has to be told at its boot
    /// what can leave, that is what is beyond this.
    pub memory_min_bytes: u64,
    /// The most memory it can be given while it runs, in bytes: `memory_bytes` or more. Where the spawner can take memory from a
    /// running kernel, it boots with room for this much and is left with `memory_bytes`.
    pub memory_max_bytes: u64,
    /// The CPUs it boots with, by the ledger's names: its kernel boots on the first. Empty: one that has no name. Ignored where the
    /// spawner cannot move CPUs.
    pub cpus: Vec<u32>,
    /// How many CPUs it boots with, where they have no names in the ledger.
    pub cpus_started: u32,
    /// CPUs that it is not to be given, although they seem free: they may run in another kernel. Only of `multikernel`.
    pub cpus_withheld: Vec<u32>,
    /// The most CPUs it can be given while it runs: as many as `cpus` or more. Ignored where the spawner cannot move CPUs.
    pub cpus_max: u32,
    /// Every device that it can be given while it runs, or boots with. Ignored where the spawner cannot move devices.
    pub catalogue: Vec<Device>,
    /// The devices that it boots with: of the catalogue, or, where `devices_move`, of those set aside for kernels beside this one.
    pub devices: Vec<PciAddress>,
    /// Whether devices set aside for kernels beside this one are the ledger's to give, and to take while it runs. Only of `multikernel`.
    pub devices_move: bool,
    /// The agent: a static binary, `/init` in a kernel.
    pub agent_binary: PathBuf,
    /// The agent's configuration: who this kernel is, whom it trusts. The spawner overwrites `pool`, `doorbell` and
    /// `modules` (and for `process` the `broker_socket`): only it knows what they are called inside.
    pub agent_config: AgentConfig,
    /// Further files. Ignored by `process`, whose agent sees the host's files.
    pub initrd_files: Vec<InitrdFile>,
    /// Kernel modules to load at boot, by name and in order (such as `vsock`), found beside the image. Ignored by `process`.
    pub modules: Vec<String>,
    /// The pool to map; `None` for a kernel without shared memory.
    pub pool: Option<PoolFile>,
    /// A folder of this kernel alone, made if missing (mode 0700): sockets, console log, exit record.
    pub runtime_dir: PathBuf,
    /// Further kernel command-line arguments. Ignored by `process`.
    pub extra_args: Vec<String>,
    /// What another program made for it and was taken over: it boots in that as long as it is there. Only of `multikernel`.
    pub taken_over: Option<TakenOver>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spawner_kind_survives_printing_and_parsing() {
        for kind in [SpawnerKind::Uml, SpawnerKind::Qemu, SpawnerKind::Multikernel, SpawnerKind::Process] {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        assert!("kvm".parse::<SpawnerKind>().is_err());
    }
}
