//! The `qemu` spawner: real Linux kernels in emulated machines.
//!
//! The machine runs in its runtime folder. Its memory is in two parts, what it always has and what can leave or come ([`memory`]); the pool
//! is the memory of a PCI function (ivshmem-plain), the console its first serial line on stdio, the doorbell its second on the
//! descriptor that the keeper hands on, and everything else (agent, configuration, secret, modules) is in one initial archive. It is
//! run by KVM where that works, else emulated ([`accel`]). What of its CPUs and devices its kernel may use changes while it runs ([`cpu`], [`device`]).
//!
//! QEMU listens to orders on one monitor ([`qmp`]) and tells the keeper on a second what happens to the machine, from which that one
//! tells how it ended (`keeper/machine.rs`).
//!
//! Where it is to have AF_VSOCK to this host, the device for that is a program of its own, which its keeper starts first ([`vsock`]).
//!
//! The memory of a PCI function is a power of two. A pool of another length is made longer when its first machine is made: the
//! file is sparse, so that costs nothing, and nothing of the pool lies behind its own length.

mod accel;
mod cpu;
mod device;
mod image;
mod memory;
mod modules;
mod pin;
mod plug;
mod probe;
mod qmp;
mod sysrq;
mod version;
mod vsock;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use tokio::net::UnixStream;
use tombolo_agent::config::{Doorbell, PoolConfig};

use self::accel::Chooser;
pub use self::accel::{Acceleration, Accelerator, Prospect};
pub(super) use self::cpu::{Seen as CpuSeen, look as look_at_cpus};
pub(super) use self::device::{plug, plugged, unplug};
use self::image::Image;
use self::memory::Layout;
pub(super) use self::memory::{set as set_memory, state as memory_state};
pub(super) use self::pin::pin as pin_cpus;
use self::plug::Method;
pub(super) use self::plug::{plug as plug_cpu, unplug as unplug_cpu};
pub(super) use self::sysrq::{press, registers};
use self::version::Version;
use super::launch::Claim;
use super::{Availability, Kernel, KernelSpec, PoolFile, SpawnError, Spawner, SpawnerKind, initrd};
use crate::keeper::Job;

/// What this spawner adds to a runtime folder.
pub(super) const FILES: &[&str] = &[initrd::NAME, MONITOR, vsock::BACKEND, vsock::HYBRID];
/// QEMU's monitor, relative to the runtime folder.
const MONITOR: &str = "qmp.sock";
/// What QEMU calls the line of the console.
const CONSOLE: &str = "console";
/// How long the monitor may take to answer, or to appear.
const MONITOR_MAX: Duration = Duration::from_secs(5);

/// Least memory a kernel can boot with, besides its initial archive (packed and unpacked), in bytes.
const MEMORY_BYTES_MIN: u64 = 72 << 20;
/// Where the agent finds the pool: the memory of the ivshmem function.
const POOL_DEVICE: &str = "pci:1af4:1110";
/// Has a panic reported to the machine; a kernel that lacks it tells of one on its console alone.
const PANIC_MODULE: &str = "pvpanic_pci";
/// How often a running machine is looked at before it counts as one that takes no interrupts, and the pause between two looks.
const LOOKS: (u32, Duration) = (20, Duration::from_millis(10));

/// What is known of the next machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outlook {
    /// What runs its CPUs.
    pub prospect: Prospect,
    /// Why its CPUs would be parked when they are not lent, rather than unplugged; `None`: they are unplugged, or it is not known yet.
    pub parks_because: Option<&'static str>,
    /// The file that is to be removed to have KVM probed again.
    pub record: Option<PathBuf>,
}

/// Boots real Linux kernels in emulated machines.
#[derive(Clone, Debug)]
pub struct QemuSpawner {
    keeper_binary: PathBuf,
    vsock_device: Option<PathBuf>,
    pins_cpus: bool,
    plugs_cpus: bool,
    chooser: Chooser,
}

impl QemuSpawner {
    /// A spawner of emulated machines that runs `keeper_binary keeper ...` (normally `tombolod` itself) for each kernel.
    pub fn new(keeper_binary: impl Into<PathBuf>) -> Self {
        Self {
            keeper_binary: keeper_binary.into(),
            vsock_device: None,
            pins_cpus: false,
            plugs_cpus: false,
            chooser: Chooser::default(),
        }
    }

    /// Gives every machine that is started from now on AF_VSOCK to and from this host, through this program: vhost-device-vsock, by
    /// an absolute path.
    #[must_use]
    pub fn with_vsock_device(mut self, program: Option<PathBuf>) -> Self {
        self.vsock_device = program;
        self
    }

    /// Has machines that are started from now on run on this. `state_dir`: where it is kept what a probe of KVM found, and where the probe
    /// boots; without one [`Accelerator::Auto`] is software emulation.
    #[must_use]
    pub fn with_accelerator(mut self, asked: Accelerator, state_dir: Option<PathBuf>) -> Self {
        self.chooser = Chooser::new(asked, state_dir);
        self
    }

    /// Has CPUs plugged into machines that are started from now on, also where that works only once for each (see [`plug`]): for tests of that.
    #[must_use]
    pub fn with_plugged_cpus(mut self) -> Self {
        self.plugs_cpus = true;
        self
    }

    /// How CPUs are to come to machines that run on this and leave them.
    async fn method(&self, image: &Image, acceleration: &Acceleration) -> Method {
        if self.plugs_cpus {
            return Method::Plugged;
        }
        // Under software emulation it does not matter, and asking takes a while.
        let version = if acceleration.kvm { Version::said(&image.version().await) } else { None };
        plug::method(version, acceleration.kvm)
    }

    /// Boots the kernel that machines would have in `folder`, which is made and removed, with `agent` as its first process and nothing else.
    ///
    /// # Errors
    /// What was seen, if it did not reach user space within `deadline`.
    pub async fn probe(
        &self,
        agent: &Path,
        acceleration: &Acceleration,
        folder: &Path,
        deadline: Duration,
    ) -> Result<(), String> {
        let image = image::find(None).map_err(|error| error.to_string())?;
        let machine =
            probe::Machine { image: &image, agent, keeper_binary: &self.keeper_binary, acceleration };
        machine.boot(folder, deadline).await
    }

    /// What the next machine would be like; `None` where there can be none.
    pub async fn outlook(&self) -> Option<Outlook> {
        let image = image::find(None).ok()?;
        let prospect = self.chooser.prospect(&image).await;
        let parks_because = match &prospect {
            Prospect::Known(acceleration) => match self.method(&image, acceleration).await {
                Method::Parked(reason) => Some(reason),
                Method::Plugged => None,
            },
            Prospect::Untried | Prospect::Refused(_) => None,
        };
        Some(Outlook { prospect, parks_because, record: self.chooser.record() })
    }

    /// Has every CPU of a machine that is started from now on run on that CPU of this host whose number is its name in the ledger, and on
    /// no other.
    #[must_use]
    pub fn with_pinned_cpus(mut self, pins_cpus: bool) -> Self {
        self.pins_cpus = pins_cpus;
        self
    }

    /// That program.
    pub fn vsock_device(&self) -> Option<&Path> {
        self.vsock_device.as_deref()
    }
}

impl Spawner for QemuSpawner {
    fn kind(&self) -> SpawnerKind {
        SpawnerKind::Qemu
    }

    async fn availability(&self) -> Availability {
        match image::find(None) {
            Ok(image) => Availability::Ready { detail: image.describe().await },
            Err(SpawnError::Unavailable { what, remedy, .. }) => Availability::Missing { what, remedy },
            Err(error) => Availability::Missing { what: error.to_string(), remedy: String::new() },
        }
    }

    async fn spawn(&self, spec: &KernelSpec) -> Result<Kernel, SpawnError> {
        let image = image::find(spec.image.as_deref())?;
        let name = &spec.agent_config.name;
        let bad_spec = |reason: String| SpawnError::BadSpec { name: name.clone(), reason };
        super::check_pool(spec).map_err(bad_spec)?;
        super::check_agent(spec)?;
        let user_archive = initrd::of_user(spec).await?;
        let can_change = Layout::new(spec, 0).can_change();
        let mut wanted: Vec<String> =
            if can_change { memory::MODULES.map(str::to_owned).to_vec() } else { Vec::new() };
        wanted.extend(device::modules(spec));
        if self.vsock_device.is_some() {
            wanted.extend(vsock::MODULES.map(str::to_owned));
        }
        wanted.extend(spec.modules.iter().cloned());
        let modules = image.modules(&wanted, &[PANIC_MODULE])?;
        let acceleration = self.chooser.choose(&image, &spec.agent_binary, &self.keeper_binary).await?;
        let method = self.method(&image, &acceleration).await;
        let claim = Claim::take(&spec.runtime_dir).await?;

        if let Some(pool) = &spec.pool {
            fit_for_a_function(pool).map_err(|source| SpawnError::File {
                action: "make the pool as long as a power of two",
                path: pool.path.clone(),
                source,
            })?;
        }
        let mut config = spec.agent_config.clone();
        config.pool = spec.pool.as_ref().map(|pool| PoolConfig::new(POOL_DEVICE, pool.len));
        config.doorbell = Some(Doorbell::Path("/dev/ttyS1".into()));
        let initrd = initrd::write(spec, user_archive, config, &modules).await?;
        initrd::check_memory(spec, initrd, MEMORY_BYTES_MIN).map_err(bad_spec)?;
        let layout = Layout::new(spec, MEMORY_BYTES_MIN + initrd.memory_bytes());
        let shares_memory = self.vsock_device.is_some();
        let mut argv =
            arguments(spec, &image, &layout, shares_memory, &acceleration, method).map_err(bad_spec)?;
        let backend = match &self.vsock_device {
            Some(program) => {
                argv.extend(vsock::OPTIONS.map(str::to_owned));
                Some(vsock::backend(&plain(program).map_err(bad_spec)?, spec.agent_config.cid))
            }
            None => None,
        };
        let job = Job {
            name: name.clone(),
            kind: SpawnerKind::Qemu,
            argv,
            env: image.environment(),
            console_bytes_max: Job::CONSOLE_BYTES_MAX,
            memory: None,
            cpus: cpu::leases(spec, self.pins_cpus),
            backend,
            runs_on: Some(acceleration.to_string()),
        };
        let kernel = claim.launch(&self.keeper_binary, &job).await?;
        if !self.pins_cpus {
            return Ok(kernel);
        }
        let pins: Vec<(u32, u32)> = (0..).zip(spec.cpus.iter().copied()).collect();
        match pin::pin(&spec.runtime_dir, kernel.pid(), &pins).await {
            Ok(()) => Ok(kernel),
            Err(reason) => {
                kernel.kill().await?;
                kernel.forget().await?;
                Err(bad_spec(reason))
            }
        }
    }

    async fn adopt(&self, runtime_dir: &Path) -> Result<Kernel, SpawnError> {
        super::adopt(SpawnerKind::Qemu, runtime_dir).await
    }
}

fn arguments(
    spec: &KernelSpec,
    image: &Image,
    layout: &Layout,
    shares_memory: bool,
    acceleration: &Acceleration,
    method: Method,
) -> Result<Vec<String>, String> {
    // QEMU separates options by commas, and takes two for one of a value's.
    let value = |path: &Path| plain(path).map(|text| text.replace(',', ",,"));
    let (cpus, cpus_started) = cpu::options(spec, method, acceleration.cpu_driver());
    let mut command_line = vec![
        "console=ttyS0".to_owned(),
        "quiet".into(),
        // A panic resets the machine at once, which ends it.
        "panic=-1".into(),
        "rdinit=/init".into(),
        // For whoever has to end it by force and wants to know first what it does.
        "sysrq_always_enabled".into(),
        "mitigations=off".into(),
        // Some distributions leave it to this whether the kernel measures how long programs wait, which balancing goes by.
        "psi=1".into(),
        cpus_started,
        // For people who look at the process table; the kernel ignores parameters with a dot that no module claims.
        format!("tombolo.name={}", spec.agent_config.name),
    ];
    if layout.can_change() {
        command_line.extend(memory::KERNEL_ARGUMENTS.map(str::to_owned));
    }
    command_line.extend(spec.extra_args.iter().cloned());
    let mut argv = vec![plain(&image.program)?];
    for folder in &image.firmware {
        argv.extend(["-L".to_owned(), plain(folder)?]);
    }
    let options = [
        ("-name", spec.agent_config.name.clone()),
        ("-machine", "q35,memory-backend=mem0".to_owned()),
        ("-display", "none".to_owned()),
        ("-chardev", format!("stdio,id={CONSOLE},signal=off")),
        ("-serial", format!("chardev:{CONSOLE}")),
        ("-chardev", "socket,id=doorbell,fd={doorbell}".to_owned()),
        ("-serial", "chardev:doorbell".to_owned()),
        ("-qmp", format!("unix:{MONITOR},server=on,wait=off")),
        ("-chardev", "socket,id=events,fd={events}".to_owned()),
        ("-mon", "chardev=events,mode=control".to_owned()),
        ("-device", "pvpanic-pci".to_owned()),
        // It could suspend itself, and nobody would wake it.
        ("-global", "ICH9-LPC.disable_s3=1".to_owned()),
        ("-global", "ICH9-LPC.disable_s4=1".to_owned()),
        ("-kernel", plain(&image.kernel)?),
        ("-initrd", initrd::NAME.to_owned()),
        ("-append", command_line.join(" ")),
    ];
    argv.extend(
        options
            .into_iter()
            .chain(acceleration.options())
            .chain(cpus)
            .chain(layout.options(shares_memory))
            .chain(device::options(spec))
            .flat_map(|(option, value)| [option.to_owned(), value]),
    );
    argv.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(str::to_owned));
    if let Some(pool) = &spec.pool {
        let (path, bytes) = (value(&pool.path)?, function_bytes(pool).map_err(|error| error.to_string())?);
        argv.extend([
            "-object".to_owned(),
            format!("memory-backend-file,id=pool,share=on,mem-path={path},size={bytes}"),
            "-device".to_owned(),
            "ivshmem-plain,memdev=pool".to_owned(),
        ]);
    }
    Ok(argv)
}

fn plain(path: &Path) -> Result<String, String> {
    path.to_str().map(str::to_owned).ok_or_else(|| format!("the path {} is not UTF-8", path.display()))
}

/// Memory of the PCI function that holds the pool.
fn function_bytes(pool: &PoolFile) -> io::Result<u64> {
    pool.len.checked_next_power_of_two().filter(|bytes| i64::try_from(*bytes).is_ok()).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("no PCI function has memory for a pool of {} bytes", pool.len),
        )
    })
}

/// Makes the file long enough for that. It is never made shorter: others may map it.
fn fit_for_a_function(pool: &PoolFile) -> io::Result<()> {
    let bytes = function_bytes(pool)?;
    let file = File::options().write(true).open(&pool.path)?;
    if file.metadata()?.len() < bytes { file.set_len(bytes) } else { Ok(()) }
}

/// Freezes or thaws the machine of `runtime_dir`. The error is for people.
pub(super) async fn set_frozen(runtime_dir: &Path, frozen: bool) -> Result<(), String> {
    let command = if frozen { "stop" } else { "cont" };
    let order = |mut session: qmp::Session<_>| async move { session.run(command, json!({})).await };
    once_it_listens(runtime_dir, order).await.map(drop).map_err(|error| error.to_string())
}

/// Does with the monitor of `runtime_dir` what `exchange` says, as soon as it is there: that of a machine that starts is not yet.
async fn once_it_listens<T, F>(
    runtime_dir: &Path,
    exchange: impl Fn(qmp::Session<UnixStream>) -> F,
) -> Result<T, qmp::QmpError>
where
    F: Future<Output = Result<T, qmp::QmpError>>,
{
    let until = tokio::time::Instant::now() + MONITOR_MAX;
    loop {
        match qmp::session(runtime_dir, MONITOR, MONITOR_MAX, &exchange).await {
            Err(qmp::QmpError::Absent(_)) if tokio::time::Instant::now() < until => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            outcome => return outcome,
        }
    }
}

/// Whether the kernel of `runtime_dir` would take an interrupt within `deadline`, whatever its user space does.
///
/// Nothing is asked of the kernel: a machine that runs delivers its timer's interrupt whenever a CPU allows interrupts, so
/// a CPU that is seen to allow them runs a kernel that answers. One that hangs keeps them off at every look.
pub(super) async fn answers(runtime_dir: &Path, deadline: Duration) -> Option<bool> {
    let look = |mut session: qmp::Session<_>| async move {
        let status = session.run("query-status", json!({})).await?;
        if status["running"] != json!(true) {
            return Ok(Some(false));
        }
        let (looks, pause) = LOOKS;
        let mut answers = None;
        for _ in 0..looks {
            let cpus = cpu::parse(&cpu::registers(&mut session).await?);
            answers = cpus.iter().map(|cpu| cpu.takes_interrupts).reduce(|any, one| any || one);
            if answers != Some(false) {
                break;
            }
            tokio::time::sleep(pause).await;
        }
        Ok(answers)
    };
    match qmp::session(runtime_dir, MONITOR, deadline, look).await {
        Ok(answers) => answers,
        Err(qmp::QmpError::Absent(error)) if is_absent(&error) => Some(false),
        Err(qmp::QmpError::Silent(_)) => Some(false),
        // We could not ask: no descriptors left, say.
        Err(_) => None,
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_becomes_as_long_as_a_power_of_two_and_never_shorter() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pool");
        let file = File::create(&path).unwrap();
        for (before, after) in [(12288, 16384), (16384, 16384), (1 << 20, 1 << 20)] {
            file.set_len(before).unwrap();
            fit_for_a_function(&PoolFile { path: path.clone(), len: before.min(12288) }).unwrap();
            assert_eq!(file.metadata().unwrap().len(), after);
        }
        for len in [u64::MAX, (1 << 62) + 1] {
            assert!(fit_for_a_function(&PoolFile { path: path.clone(), len }).is_err());
        }
    }
}
