//! The `multikernel` spawner: kernels of their own beside this one, on Multikernel Linux.
//!
//! The kernel's interface is a file system ([`interface`]): what is wanted is written to it as device tree overlays ([`overlay`]), what is
//! there is read from it as device trees ([`tree`]), and two system calls load and start ([`calls`]). None of its answers is believed:
//! a change is what can be read back ([`transaction`]). What was made for an instance is noted before it is made ([`record`], [`folder`]); that
//! what has its name is what we made the kernel's transactions tell ([`provenance`]). What a kernel that runs is asked, and may do late, is noted
//! as well ([`live`], [`memory`], [`devices`]). `docs/multikernel-traps.md` lists what the kernel's answers do not mean, and the test for each, on a model of it
//! (`model_tests`).
//!
//! A kernel here is no process, so a process stands for it: the [`warden`], which its keeper runs as it would run a kernel.
//!
//! ```text
//!   tombolod ─▶ keeper ─▶ warden ──/dev/mktty, status, doorbell──▶ kernel
//!      └── overlays/new, kexec_file_load(2) ─────────────────────────▲
//! ```
//!
//! Other programs (kerf) work on the same kernel. What they made is shown and never touched; changes are made under their lock ([`lock`]).

mod alive;
mod books;
mod calls;
mod clock;
mod console;
mod devices;
mod doubts;
mod ending;
mod folder;
mod functions;
mod hold;
mod holders;
mod host_pci;
mod ids;
mod image;
mod interface;
mod lease;
mod line;
mod live;
mod load;
mod lock;
mod look;
mod may_load;
mod memory;
mod mount;
mod overlay;
mod pool;
mod provenance;
mod record;
mod regions;
mod running;
mod settings;
pub(crate) mod shared;
mod taken_over;
mod transaction;
mod tree;
pub(crate) mod warden;

#[cfg(test)]
mod model_tests;

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, memfd_create};

pub(crate) use self::alive::{answers, probe};
pub(crate) use self::books::{PoolMemory, books, pool_cpus, pool_devices, pool_memory, shared_memory};
pub(crate) use self::devices::LiveDevice;
pub(crate) use self::host_pci::Unfit;
pub(crate) use self::lease::{LEASE_MAX, console_lent, lend_console};
pub(crate) use self::line::{can_be_called, vsock};
pub(crate) use self::live::{LiveCpu, LiveError};
pub(crate) use self::look::{
    InterfaceState, how_to_mount, interface_state, is_file_system, lock_left_behind, pool_functions,
    what_is_missing,
};
pub(crate) use self::may_load::{Obstacle, obstacle_by};
pub(crate) use self::mount::mount;
pub(super) use self::running::{
    LiveChange, change_cpu, change_device, cpus, devices, memory, moves_cpus, moves_devices, moves_memory,
    set_memory, settle_memory,
};
pub use self::settings::Settings;
pub(crate) use self::settings::{HostEnd, SharedPool};
pub use self::taken_over::TakenOver;
pub(crate) use self::taken_over::{Known, Offer, OfferError};

use self::doubts::Asked as _;
use self::hold::Hold;
use self::ids::{InstanceId, InstanceName, PhysicalCpu};
use self::image::{Arch, ImageError, KernelImage, Limits};
pub(super) use self::image::{Compression, first_bytes};
use self::interface::{InstanceStatus, Mounted};
use self::lease::Lease;
use self::load::Load;
use self::record::{Origin, Record};
use super::launch::Claim;
use super::{Availability, Kernel, KernelSpec, SpawnError, Spawner, SpawnerKind, initrd};
use crate::api::beside::PoolWish;
use crate::keeper::{Job, names};

/// What every transaction of ours carries.
const MARK: &str = "tombolo";

/// What sets CPUs and memory aside where nothing is.
pub(crate) const MAKE_A_POOL: &str =
    "tombolo multikernel pool --cpus LIST --memory SIZE, or kerf init --cpus=LIST --memory=SIZE";

/// What gives this host the vsock by which kernels beside it are reached.
pub(crate) const NEEDS_VSOCK: &str = "load the module of CONFIG_MULTIKERNEL_VSOCKETS, or set `pool` and `doorbell`, as docs/multikernel.md says";

/// What this spawner adds to a runtime folder.
pub(super) const FILES: &[&str] = &[
    initrd::NAME,
    live::AskedCpu::NAME,
    memory::AskedRegion::NAME,
    devices::AskedDevice::NAME,
    Lease::NAME,
    Lease::KEPT,
];

/// Least memory a kernel can boot with, besides its initial archive (packed and unpacked), in bytes.
const MEMORY_BYTES_MIN: u64 = 24 << 20;

/// Starts kernels beside this one.
#[derive(Clone, Debug)]
pub struct MultikernelSpawner {
    keeper_binary: PathBuf,
    settings: Settings,
}

impl MultikernelSpawner {
    /// A spawner that runs `keeper_binary keeper ...` and `keeper_binary warden` (normally `tombolod` itself) for each kernel.
    pub fn new(keeper_binary: impl Into<PathBuf>, settings: Settings) -> Self {
        Self { keeper_binary: keeper_binary.into(), settings }
    }

    /// Makes the kernel's pool as it is wanted, or only says how. Returns what was done, a line each.
    /// `instances`: the folder of the runtime folders of all instances.
    ///
    /// # Errors
    /// A sentence that says what was attempted, why it failed and what was done before.
    pub async fn change_pool(
        &self,
        instances: PathBuf,
        wish: PoolWish,
        dry_run: bool,
    ) -> Result<Vec<String>, String> {
        let settings = self.settings.clone();
        let changed = tokio::task::spawn_blocking(move || pool::change(&settings, &instances, wish, dry_run));
        changed.await.unwrap_or_else(|panicked| Err(panicked.to_string()))
    }

    /// The first number from `least` on that no instance of the kernel has and none of `ours`; when they are used up, the first that was
    /// given back. Another program may still take it before it is used.
    pub(crate) async fn number_from(&self, least: u32, ours: Vec<u32>) -> u32 {
        let settings = self.settings.clone();
        let mut taken =
            tokio::task::spawn_blocking(move || books::numbers(&settings)).await.unwrap_or_default();
        taken.extend(ours);
        ids::free_number(least, &taken)
    }

    /// Those settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Looks whether an instance of the kernel that another program made can be taken over. Changes nothing.
    pub(crate) async fn offer(&self, name: String, force: bool) -> Result<Offer, OfferError> {
        let settings = self.settings.clone();
        let look = move || taken_over::offer(&Mounted::at(&settings.root), &settings, &name, force);
        let looked = tokio::task::spawn_blocking(look).await;
        looked.unwrap_or_else(|panicked| Err(OfferError::Failed(panicked.to_string())))
    }

    /// Whether a kernel runs, or may, in what there is of an instance in the kernel.
    pub(crate) async fn is_active(&self, known: Known) -> Result<bool, String> {
        let runs = |status| matches!(status, Some(InstanceStatus::Active | InstanceStatus::Failed));
        self.with_hold(known, move |hold| hold.ours().map(runs)).await.map(|runs| runs.unwrap_or(false))
    }

    /// Ends what runs in it by force.
    pub(crate) async fn end(&self, known: Known) -> Result<(), String> {
        self.with_hold(known, |hold| hold.end(|_| ())).await.map(drop)
    }

    /// Gives back what there is of it in the kernel. Refuses one that runs.
    pub(crate) async fn give_back(&self, known: Known) -> Result<(), String> {
        let folder = known.folder.clone();
        self.with_hold(known, move |hold| {
            hold.release(&folder, lock::WAIT_MAX, || false)?;
            Record::remove(&folder).map_err(|error| format!("could not forget what was given back: {error}"))
        })
        .await
        .map(drop)
    }

    /// Does something with what there is of an instance in the kernel; `None` if nothing is known of any.
    async fn with_hold<T: Send + 'static>(
        &self,
        known: Known,
        act: impl FnOnce(Hold<'_, Mounted>) -> Result<T, String> + Send + 'static,
    ) -> Result<Option<T>, String> {
        let settings = self.settings.clone();
        let acting = move || match known.record(&settings)? {
            Some(record) => act(Hold::on(&Mounted::at(&record.settings.root), &record)).map(Some),
            None => Ok(None),
        };
        let done = tokio::task::spawn_blocking(acting).await;
        done.unwrap_or_else(|panicked| Err(panicked.to_string()))
    }

    /// The kernel to boot, looked at.
    async fn image(&self, spec: &KernelSpec) -> Result<KernelImage, SpawnError> {
        let path = spec.image.as_ref().or(self.settings.image.as_ref());
        let path = path.cloned().ok_or_else(|| SpawnError::BadSpec {
            name: spec.agent_config.name.clone(),
            reason:
                "no kernel to boot is named: set `image` in its specification or in the spawner's settings"
                    .into(),
        })?;
        let read = {
            let path = path.clone();
            move || KernelImage::read(&path, Arch::HOST, &Limits::default())
        };
        let reason = match tokio::task::spawn_blocking(read).await {
            Ok(Ok(image)) => return Ok(image),
            Ok(Err(ImageError::File { action, path, source })) => {
                return Err(SpawnError::File { action, path, source });
            }
            Ok(Err(error)) => error.to_string(),
            Err(panicked) => panicked.to_string(),
        };
        Err(SpawnError::NotAKernel { kind: SpawnerKind::Multikernel, path, reason })
    }

    /// Whether this host could reach a kernel at all; else what it lacks, and what to do.
    fn must_be_reachable(&self) -> Result<(), (String, String)> {
        if !self.settings.needs_vsock() {
            return Ok(());
        }
        can_be_called().map_err(|reason| {
            let what = format!("this host cannot be called over the vsock of Multikernel Linux: {reason}");
            (what, NEEDS_VSOCK.into())
        })
    }

    /// What is to be made for a kernel. Nothing is made yet.
    fn plan(&self, spec: &KernelSpec) -> Result<Record, String> {
        let name: InstanceName = spec.agent_config.name.parse()?;
        if name.is_reserved() {
            return Err(format!(
                "the name `{name}` belongs to kmorph, which keeps it for the kernel that it switches to"
            ));
        }
        let id = u16::try_from(spec.agent_config.cid.0).map_err(|error| error.to_string())?;
        let nonce = tombolo_transport::Incarnation::random().map_err(|error| error.to_string())?;
        Ok(Record {
            settings: self.settings.clone(),
            name,
            id: InstanceId::try_from(id)?,
            memory_bytes: spec.memory_bytes,
            cpus_wanted: spec.cpus_started.max(1),
            cpus: spec.cpus.iter().copied().map(PhysicalCpu).collect(),
            cpus_withheld: spec.cpus_withheld.iter().copied().map(PhysicalCpu).collect(),
            moves_cpus: !spec.cpus.is_empty(),
            // Whose CPUs are the ledger's, its memory is.
            memory_max_bytes: (!spec.cpus.is_empty()).then_some(spec.memory_max_bytes),
            devices: if spec.devices_move { spec.devices.clone() } else { Vec::new() },
            moves_devices: spec.devices_move,
            nonce: nonce.to_string(),
            origin: Origin::Made,
            keeper_binary: self.keeper_binary.clone(),
        })
    }
}

impl Spawner for MultikernelSpawner {
    fn kind(&self) -> SpawnerKind {
        SpawnerKind::Multikernel
    }

    async fn availability(&self) -> Availability {
        let missing = |what: String, remedy: &str| Availability::Missing { what, remedy: remedy.into() };
        match interface_state(&self.settings) {
            InterfaceState::Pool { cpus, cpus_free, memory_mib, .. } => Availability::Ready {
                detail: format!("a pool of {cpus} CPUs ({cpus_free} free) and {memory_mib} MiB"),
            },
            InterfaceState::Absent => {
                let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
                let (what, remedy) = what_is_missing(&filesystems, &self.settings.root);
                Availability::Missing { what, remedy }
            }
            InterfaceState::Old(why) => missing(
                format!("the kernel's interface is of an earlier form, which is not spoken here: {why}"),
                "boot a newer kernel",
            ),
            InterfaceState::Unreadable(why) => missing(why, "look at the kernel's log (dmesg)"),
            InterfaceState::NoPool => {
                missing("no CPU and no memory is set aside for other kernels".into(), MAKE_A_POOL)
            }
        }
    }

    async fn spawn(&self, spec: &KernelSpec) -> Result<Kernel, SpawnError> {
        if let Availability::Missing { what, remedy } = self.availability().await {
            return Err(SpawnError::Unavailable { kind: self.kind(), what, remedy });
        }
        if let Err((what, remedy)) = self.must_be_reachable() {
            return Err(SpawnError::Unavailable { kind: self.kind(), what, remedy });
        }
        let image = self.image(spec).await?;
        let name = &spec.agent_config.name;
        let bad_spec = |reason: String| SpawnError::BadSpec { name: name.clone(), reason };
        // A device does not tell how much memory it has; the daemon has mapped the pool through it.
        let is_device =
            |path: &Path| std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_char_device());
        if !spec.pool.as_ref().is_some_and(|pool| is_device(&pool.path)) {
            super::check_pool(spec).map_err(bad_spec)?;
        }
        super::check_agent(spec)?;
        let user_archive = initrd::of_user(spec).await?;
        let claim = Claim::take(&spec.runtime_dir).await?;
        let mut record = self.plan(spec).map_err(bad_spec)?;

        let mut config = spec.agent_config.clone();
        config.pool = spec.pool.as_ref().and_then(|pool| self.settings.pool_inside(pool));
        config.doorbell = self.settings.doorbell_inside(&record);
        config.paced = self.settings.link_inside();
        let size = initrd::write(spec, user_archive, config, &[]).await?;
        initrd::check_memory(spec, size, MEMORY_BYTES_MIN).map_err(bad_spec)?;
        let path = spec.runtime_dir.join(initrd::NAME);
        let initrd = File::open(&path).map_err(|source| SpawnError::File {
            action: "read the initial archive",
            path,
            source,
        })?;
        let job = Job {
            name: name.clone(),
            kind: SpawnerKind::Multikernel,
            argv: vec![text(&self.keeper_binary).map_err(bad_spec)?, "warden".into()],
            env: Vec::new(),
            console_bytes_max: Job::CONSOLE_BYTES_MAX,
            memory: None,
            cpus: Vec::new(),
            backend: None,
            runs_on: None,
        };
        let line = command_line(spec);
        image.check_command_line(&line).map_err(|error| bad_spec(error.to_string()))?;
        let dir = spec.runtime_dir.clone();
        let taken_over =
            spec.taken_over.clone().map(|it| Record { origin: Origin::TakenOver(it), ..record.clone() });
        tracing::info!(name, kernel = image.release().unwrap_or("of no known version"), "a kernel is loaded");
        let made = tokio::task::spawn_blocking(move || {
            // What is loaded is what was looked at, whatever becomes of the file.
            let aside = |bytes: &[u8]| {
                anonymous(bytes).map_err(|error| format!("could not set the kernel aside: {error}"))
            };
            let (unpacked, signed) = (aside(&image.bytes)?, image.signed_file().map(aside).transpose()?);
            let load = Load {
                image: unpacked.as_fd(),
                signed: signed.as_ref().map(File::as_fd),
                initrd: initrd.as_fd(),
                command_line: &line,
            };
            let kernel = Mounted::at(&record.settings.root);
            match taken_over {
                Some(mut taken_over) if Hold::on(&kernel, &taken_over).ours()?.is_some() => {
                    folder::load_taken_over(&kernel, &dir, &mut taken_over, load)
                }
                // It was given back since, or another program removed it.
                _ => folder::make(&kernel, &dir, &mut record, load),
            }
        });
        let made = made.await.unwrap_or_else(|panicked| Err(panicked.to_string()));
        let launched = match made {
            Ok(()) => claim.launch(&self.keeper_binary, &job).await,
            Err(reason) => Err(SpawnError::BadSpec { name: name.clone(), reason }),
        };
        if launched.is_err()
            && let Err(reason) = clear(&spec.runtime_dir).await
        {
            tracing::warn!(name, reason, "what was made for a kernel that did not start is not given back");
        }
        launched
    }

    async fn adopt(&self, runtime_dir: &Path) -> Result<Kernel, SpawnError> {
        match super::adopt(SpawnerKind::Multikernel, runtime_dir).await {
            // Its keeper died, and the process that stood for it: the kernel is neither's.
            Ok(kernel) if may_run(runtime_dir) && kernel.status().await.is_err() => {
                stand_again(runtime_dir).await
            }
            found => found,
        }
    }
}

/// A file without a name that holds this.
fn anonymous(content: &[u8]) -> std::io::Result<File> {
    let fd = memfd_create("tombolo-vmlinux", MemfdFlags::CLOEXEC)?;
    let mut file = File::from(fd);
    file.write_all(content)?;
    Ok(file)
}

/// The kernel's command line. Nothing secret is on it: the host prints it into its log.
fn command_line(spec: &KernelSpec) -> String {
    let mut words = vec![
        "console=mktty0".to_owned(),
        "quiet".into(),
        "rdinit=/init".into(),
        // For whoever has to end it by force and wants to know first what it does.
        "sysrq_always_enabled".into(),
        // For people; the kernel ignores parameters with a dot that no module claims.
        format!("tombolo.name={}", spec.agent_config.name),
    ];
    words.extend(spec.extra_args.iter().cloned());
    words.join(" ")
}

/// Gives back what there is in the kernel of the instance of `runtime_dir`, if there is anything. Refuses one that runs.
pub(super) async fn release(runtime_dir: &Path) -> Result<(), String> {
    on_kernel_of(runtime_dir, folder::release).await
}

/// The same to make room for another kernel, for which what was taken over stays as it is.
pub(super) async fn clear(runtime_dir: &Path) -> Result<(), String> {
    on_kernel_of(runtime_dir, folder::clear).await
}

async fn on_kernel_of(
    runtime_dir: &Path,
    act: fn(&Mounted, &Path) -> Result<(), String>,
) -> Result<(), String> {
    let dir = runtime_dir.to_owned();
    let acted = tokio::task::spawn_blocking(move || match kernel_of(&dir)? {
        Some(kernel) => act(&kernel, &dir),
        None => Ok(()),
    });
    acted.await.unwrap_or_else(|panicked| Err(panicked.to_string()))
}

/// Ends the kernel of `runtime_dir` from here, whoever stands for it.
pub(super) fn end(runtime_dir: &Path) -> Result<(), String> {
    kernel_of(runtime_dir)?.map_or(Ok(()), |kernel| folder::end(&kernel, runtime_dir))
}

/// Whether the kernel of `runtime_dir` was started and has told of no end. As long as that cannot be found out, it may run.
pub(crate) fn may_run(runtime_dir: &Path) -> bool {
    match kernel_of(runtime_dir) {
        Ok(kernel) => kernel.is_some_and(|kernel| folder::may_run(&kernel, runtime_dir)),
        Err(reason) => {
            tracing::warn!(dir = %runtime_dir.display(), reason, "it is not known whether a kernel runs");
            true
        }
    }
}

/// Over what everything goes to and from the kernel of `runtime_dir`; `None` where it shares memory.
pub(super) fn link_of(runtime_dir: &Path) -> Option<HostEnd> {
    let record = Record::read(runtime_dir).ok().flatten()?;
    record.settings.link_outside(record.id)
}

/// The kernel's interface through which something was made for `runtime_dir`, if anything was.
fn kernel_of(runtime_dir: &Path) -> Result<Option<Mounted>, String> {
    let record = folder::read(runtime_dir)?;
    Ok(record.map(|record| Mounted::at(&record.settings.root)))
}

fn text(path: &Path) -> Result<String, String> {
    path.to_str().map(str::to_owned).ok_or_else(|| format!("the path {} is not UTF-8", path.display()))
}

/// A process that stands for the kernel of `runtime_dir` again, after its keeper has died.
pub(super) async fn stand_again(runtime_dir: &Path) -> Result<Kernel, SpawnError> {
    let failed = |reason: String| SpawnError::KeeperFailed { runtime_dir: runtime_dir.to_owned(), reason };
    let record = Record::read(runtime_dir).map_err(|error| failed(error.to_string()))?;
    let record = record.ok_or_else(|| SpawnError::NotFound { runtime_dir: runtime_dir.to_owned() })?;
    let job = std::fs::read(runtime_dir.join(names::JOB)).map_err(|error| failed(error.to_string()))?;
    let job: Job = serde_json::from_slice(&job).map_err(|error| failed(error.to_string()))?;
    let claim = Claim::take_again(runtime_dir)?;
    claim.launch(&record.keeper_binary, &job).await
}
