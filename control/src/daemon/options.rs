//! The command line of `tombolod`.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use clap::Parser;
use tombolo_handover::Unit;

use super::StartError;
use super::handover::{CpuStock, device_of_kernels};
use crate::paths;
use crate::spawner::{Accelerator, Device, MultikernelSettings, SpawnerKind, multikernel};
use crate::topology::{self, Topology};

/// Default of [`Options::cpus`]. Most machines wait most of the time.
const CPUS_PER_HOST_CPU: u32 = 8;

/// The control plane of Tombolo: keeps Linux kernels running beside this one, watches them, and serves `tombolo`.
///
/// It stays in the foreground and logs to stderr (filter: RUST_LOG). SIGTERM or Ctrl-C ends it; kernels stay up and
/// the next daemon on the same state folder adopts them, unless --stop-kernels is given.
///
/// Exit codes: 0 ended in good order, 1 failed, 2 usage, 4 another daemon holds the folder.
#[derive(Clone, Debug, Parser)]
#[command(name = "tombolod", version, max_term_width = 110)]
pub struct Options {
    /// Where records, events and instance folders are kept [default: /var/lib/tombolo as root, else
    /// $XDG_STATE_HOME/tombolo]
    #[arg(long, env = "TOMBOLO_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Where sockets are made [default: /run/tombolo as root, else $XDG_RUNTIME_DIR/tombolo]
    #[arg(long, env = "TOMBOLO_RUNTIME_DIR", value_name = "DIR")]
    pub runtime_dir: Option<PathBuf>,
    /// The agent to boot kernels with: a static binary [default: tombolo-agent beside this program]
    #[arg(long, env = "TOMBOLO_AGENT", value_name = "FILE")]
    pub agent_binary: Option<PathBuf>,
    /// The kernel image for instances that name none [default: what the driver finds]
    #[arg(long, env = "TOMBOLO_UML_KERNEL", value_name = "FILE")]
    pub image: Option<PathBuf>,
    /// The driver for instances that name none: uml, qemu, multikernel or process [default: uml where it can run]
    #[arg(long, value_name = "DRIVER")]
    pub spawner: Option<SpawnerKind>,
    /// The file that is the pool: one that kernels can reach, on DAXFS say [default: one in /dev/shm]
    #[arg(long, env = "TOMBOLO_POOL", value_name = "FILE")]
    pub pool: Option<PathBuf>,
    /// Members of a new pool, the primary included: 2 to 1024
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(2..=1024), value_name = "N")]
    pub pool_members: u32,
    /// Shared memory of each member of a new pool, in MiB (sparse: what is not used costs nothing)
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..=65536), value_name = "MIB")]
    pub pool_extent: u64,
    /// How much memory the host keeps for itself, in MiB: no kernel is started with or given any of it [default: a sixteenth of what there is]
    #[arg(long, value_parser = clap::value_parser!(u64).range(0..=1 << 30), value_name = "MIB")]
    pub host_memory_min: Option<u64>,
    /// How many CPUs emulated machines (`qemu`) can have in all; they share this host's [default: 8 for each CPU of this host]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=4096), value_name = "N")]
    pub cpus: Option<u32>,
    /// Lend emulated machines (`qemu`) these CPUs of this host instead: a CPU of a machine runs on the one it was lent, and on no other. Any but
    /// the one that this host booted on, such as 2-7,10 [default: none]
    #[arg(long, conflicts_with = "cpus", value_name = "LIST")]
    pub host_cpus: Option<HostCpus>,
    /// What runs the CPUs of machines (`qemu`): kvm, tcg (software emulation), or auto: kvm if a probe boot of the first machine's kernel works,
    /// else tcg
    #[arg(long, env = "TOMBOLO_ACCEL", default_value = "auto", value_name = "ACCEL")]
    pub accel: Accelerator,
    /// A device that emulated machines (`qemu`) can have, one at a time: ADDRESS=nvme:FILE, ADDRESS=rng or ADDRESS=net, where the
    /// first address is 0000:01:00.0, the next 0000:02:00.0; may be repeated. Kernels beside this one (`multikernel`) are given none then
    #[arg(long = "device", value_name = "ADDRESS=KIND")]
    pub devices: Vec<Device>,
    /// Give emulated machines (`qemu`) AF_VSOCK to and from this host through this program, vhost-device-vsock; one without a folder is
    /// looked for on $PATH [default: none]
    #[arg(long, env = "TOMBOLO_VSOCK_DEVICE", value_name = "PROGRAM")]
    pub vsock_device: Option<PathBuf>,
    /// Settings of the `multikernel` spawner, a TOML file [default: those for a kernel with its interface at /sys/fs/multikernel]
    #[arg(long, env = "TOMBOLO_MULTIKERNEL", value_name = "FILE")]
    pub multikernel: Option<PathBuf>,
    /// Members of this group may run instances; others than root and our own user may only look
    #[arg(long, default_value = "tombolo", value_name = "GROUP")]
    pub operators: String,
    /// When ended by a signal, stop all kernels in good order first
    #[arg(long)]
    pub stop_kernels: bool,
    /// Die of SIGKILL as soon as so many steps of moves are recorded, to test that the next daemon goes on from there
    #[arg(long, hide = true, value_name = "N")]
    pub debug_die_after_steps: Option<u64>,
}

impl Options {
    /// The devices that machines can be lent.
    ///
    /// # Errors
    /// If two have one address.
    pub(super) fn catalogue(&self) -> Result<Arc<[Device]>, StartError> {
        let twice = |(at, device): &(usize, &Device)| {
            self.devices[..*at].iter().any(|earlier| earlier.address == device.address)
        };
        match self.devices.iter().enumerate().find(twice) {
            None => Ok(self.devices.as_slice().into()),
            Some((_, device)) => Err(StartError::Host {
                attempt: format!("take {} into the ledger", device.address),
                reason: "two devices have that address".into(),
            }),
        }
    }

    /// The program that is the vsock device of machines, by its absolute path.
    ///
    /// # Errors
    /// If it is not there.
    pub(super) fn vsock_device(&self) -> Result<Option<PathBuf>, StartError> {
        let Some(asked) = &self.vsock_device else { return Ok(None) };
        let found = paths::program(asked).ok_or_else(|| StartError::Host {
            attempt: format!("use the vsock device {}", asked.display()),
            reason: format!("there is no such program; to get one: {}", crate::doctor::VSOCK_REMEDY),
        })?;
        Ok(Some(found))
    }

    /// The settings of the `multikernel` spawner.
    ///
    /// # Errors
    /// If the file cannot be read, or is not valid.
    pub(super) fn multikernel_settings(&self) -> Result<MultikernelSettings, StartError> {
        let read = self.multikernel.as_deref().map(MultikernelSettings::read);
        read.transpose()
            .map(Option::unwrap_or_default)
            .map_err(|reason| StartError::Host { attempt: "set up the spawner `multikernel`".into(), reason })
    }

    /// The memory that is moved, in bytes, if it is that which is set aside for kernels beside this one.
    ///
    /// # Errors
    /// If the settings of that spawner cannot be read.
    pub(super) fn kernels_memory_bytes(&self) -> Result<Option<u64>, StartError> {
        if !self.moves_what_kernels_have() {
            return Ok(None);
        }
        // What its pool has is looked at anew before anything is promised.
        let memory = multikernel::pool_memory(&self.multikernel_settings()?, &[]);
        Ok(Some(memory.map_or(0, |memory| memory.total_bytes)))
    }

    /// Whether it is units of kernels beside this one that are moved, rather than of machines.
    fn moves_what_kernels_have(&self) -> bool {
        self.spawner == Some(SpawnerKind::Multikernel) && self.host_cpus.is_none() && self.cpus.is_none()
    }

    /// Whether it is devices of kernels beside this one that are moved, rather than those of machines.
    pub(super) fn moves_devices_of_kernels(&self) -> bool {
        self.moves_what_kernels_have() && self.devices.is_empty()
    }

    /// The devices that are moved. `catalogue`: those of machines.
    ///
    /// # Errors
    /// If the settings of the spawner `multikernel` cannot be read.
    pub(super) fn device_stock(&self, catalogue: &[Device]) -> Result<Vec<Unit>, StartError> {
        if !self.moves_devices_of_kernels() {
            // A machine gets each anew.
            return Ok(catalogue.iter().map(|device| Unit::device(device.address, None, true)).collect());
        }
        // What its pool has is looked at anew before anything is promised.
        let devices = multikernel::pool_devices(&self.multikernel_settings()?).unwrap_or_default();
        Ok(devices.iter().map(device_of_kernels).collect())
    }

    /// The CPUs that machines can be lent, on a host of this kind.
    ///
    /// # Errors
    /// If one that was named is not online, or is the host's own.
    pub(super) fn cpu_stock(&self, host: &Topology) -> Result<CpuStock, StartError> {
        if self.moves_what_kernels_have() {
            // What its pool has is looked at anew before anything is promised.
            let cpus = multikernel::pool_cpus(&self.multikernel_settings()?).unwrap_or_default();
            return Ok(CpuStock::OfKernels(cpus.into_iter().map(|(cpu, _)| cpu).collect()));
        }
        let Some(HostCpus(ids)) = &self.host_cpus else {
            return Ok(CpuStock::Shared(self.cpus.unwrap_or_else(|| {
                let host = std::thread::available_parallelism().map_or(1, usize::from);
                CPUS_PER_HOST_CPU.saturating_mul(u32::try_from(host).unwrap_or(u32::MAX))
            })));
        };
        let refused = |id: &u32, reason: &str| StartError::Host {
            attempt: format!("lend CPU {id} of this host to machines (--host-cpus)"),
            reason: reason.to_owned(),
        };
        let look = |id: &u32| match host.cpu(*id) {
            None => Err(refused(id, "it is not online")),
            Some(cpu) if cpu.boot => Err(refused(id, "this host booted on it, and keeps it")),
            Some(cpu) => Ok(*cpu),
        };
        ids.iter().map(look).collect::<Result<_, _>>().map(CpuStock::OfHost)
    }
}

/// CPUs of this host, by their numbers in Linux.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostCpus(Vec<u32>);

impl FromStr for HostCpus {
    type Err = String;

    /// Reads a list such as `2-7,10`, in order and each once.
    fn from_str(input: &str) -> Result<Self, Self::Err> {
        let list = topology::cpu_list(input).filter(|ids| !ids.is_empty());
        list.map(Self).ok_or_else(|| "expected numbers of CPUs in order, such as 2-7,10".to_owned())
    }
}

/// Where everything is, made out from [`Options`].
#[derive(Clone, Debug)]
pub struct Places {
    /// Records, events, instance folders.
    pub state_dir: PathBuf,
    /// Sockets.
    pub runtime_dir: PathBuf,
    /// The pool.
    pub pool: PathBuf,
    /// The agent.
    pub agent_binary: PathBuf,
    /// This program, to be run as a keeper.
    pub keeper_binary: PathBuf,
}

impl Places {
    /// Fills in what the options leave open.
    ///
    /// # Errors
    /// If this program cannot find itself, or a folder cannot be made absolute.
    pub fn new(options: &Options) -> std::io::Result<Self> {
        let state_dir = std::path::absolute(options.state_dir.clone().unwrap_or_else(paths::state_dir))?;
        let runtime_dir =
            std::path::absolute(options.runtime_dir.clone().unwrap_or_else(paths::runtime_dir))?;
        let keeper_binary = std::env::current_exe()?;
        let beside = |name: &str| keeper_binary.parent().unwrap_or_else(|| Path::new("/")).join(name);
        let agent_binary = match &options.agent_binary {
            Some(path) => std::path::absolute(path)?,
            None => beside("tombolo-agent"),
        };
        let pool = match &options.pool {
            Some(path) => std::path::absolute(path)?,
            None => paths::pool(&state_dir),
        };
        Ok(Self { pool, state_dir, runtime_dir, agent_binary, keeper_binary })
    }

    /// The socket for `tombolo`.
    pub fn control_socket(&self) -> PathBuf {
        self.runtime_dir.join(paths::CONTROL_SOCKET)
    }

    /// The socket for applications on this host.
    pub fn broker_socket(&self) -> PathBuf {
        self.runtime_dir.join(paths::BROKER_SOCKET)
    }

    /// Where the folders of instances are.
    pub fn instances(&self) -> PathBuf {
        self.state_dir.join("instances")
    }

    /// The folder of one instance.
    pub fn instance(&self, name: &crate::core::InstanceName) -> PathBuf {
        self.instances().join(name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::HostCpu;

    #[test]
    fn machines_have_no_vsock_device_unless_one_is_named_and_a_missing_one_is_told_with_its_remedy() {
        let options = |args: &[&str]| Options::parse_from([&["tombolod"], args].concat());
        let unasked = Options { vsock_device: None, ..options(&[]) };
        assert!(unasked.vsock_device().unwrap().is_none());
        let named = options(&["--vsock-device", "sh"]).vsock_device().unwrap().unwrap();
        assert!(named.is_absolute(), "{named:?}");
        let error = options(&["--vsock-device", "/no/such/device"]).vsock_device().unwrap_err().to_string();
        assert!(error.contains("/no/such/device") && error.contains("cargo install"), "{error}");
    }
    #[test]
    fn cpus_of_the_host_are_lent_as_they_are_there_and_the_one_it_booted_on_never_is() {
        let cpu = |id, core| HostCpu { id, core, package: Some(0), node: Some(0), boot: id == 0 };
        let host = Topology { cpus: vec![cpu(0, 0), cpu(1, 0), cpu(2, 2)], ..Topology::default() };
        let stock = |list: &str| {
            Options::parse_from(["tombolod", "--host-cpus", list]).cpu_stock(&host).map_err(|e| e.to_string())
        };
        let Ok(CpuStock::OfHost(cpus)) = stock("1-2") else { panic!("refused") };
        assert_eq!(cpus, [cpu(1, 0), cpu(2, 2)]);
        assert!(stock("0-1").unwrap_err().contains("booted on it"));
        assert!(stock("1,3").unwrap_err().contains("CPU 3 of this host"));
        let counted = Options::parse_from(["tombolod", "--cpus", "5"]).cpu_stock(&host).unwrap();
        assert!(matches!(counted, CpuStock::Shared(5)), "{counted:?}");
        for wrong in [&["--host-cpus", ""][..], &["--host-cpus", "2-1"], &["--host-cpus", "1", "--cpus", "2"]]
        {
            assert!(Options::try_parse_from([&["tombolod"], wrong].concat()).is_err(), "{wrong:?}");
        }
    }
}
