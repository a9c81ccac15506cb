//! The `uml` spawner: real Linux kernels as unprivileged processes (User-mode Linux).
//!
//! The kernel's process runs in its runtime folder, where all names are short and relative: socket addresses have little
//! room. It gets its memory from `/dev/shm` or wherever else a file may be mapped executable, the pool as `/dev/mmapper`,
//! the doorbell as its serial line `/dev/ttyS0`, the console as its stdio, and everything else (agent, configuration, secret,
//! modules) in one initial archive.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::statvfs::{FsFlags, statvfs};
use rustix::fs::OFlags;
use tombolo_agent::config::{Doorbell, PoolConfig};

use super::distress::Key;
use super::image::{self, Image};
use super::launch::Claim;
use super::{
    Availability, Kernel, KernelSpec, MemoryWanted, SpawnError, Spawner, SpawnerKind, initrd, mconsole,
};
use crate::keeper::{Job, MemoryJob};

/// What this spawner adds to a runtime folder.
pub(super) const FILES: &[&str] = &[initrd::NAME, UML_DIR, EMPTY_DIR];
const UML_DIR: &str = "uml";
/// All of the host's file system that the kernel can see through hostfs: nothing.
const EMPTY_DIR: &str = "empty";
/// The management console, relative to the runtime folder.
const MCONSOLE: &str = "uml/k/mconsole";

/// Least memory a kernel can boot with, besides its initial archive (packed and unpacked), in bytes.
const MEMORY_BYTES_MIN: u64 = 24 << 20;

/// When a kernel that boots and does not answer is told something else.
const NUDGE_AFTER: Duration = Duration::from_millis(100);
/// How long the management console may take to appear: the kernel makes it within the first half second of its boot.
const MCONSOLE_MAX: Duration = Duration::from_secs(5);

/// Boots real Linux kernels as unprivileged processes.
#[derive(Clone, Debug)]
pub struct UmlSpawner {
    keeper_binary: PathBuf,
    image: Option<PathBuf>,
}

impl UmlSpawner {
    /// A spawner that runs `keeper_binary keeper ...` (normally `tombolod` itself) for each kernel.
    pub fn new(keeper_binary: impl Into<PathBuf>) -> Self {
        Self { keeper_binary: keeper_binary.into(), image: None }
    }

    /// Uses this kernel image where a spec names none. Default: the first found of `$TOMBOLO_UML_KERNEL`, `linux.uml` or
    /// `linux` on `$PATH`, and what `cargo xtask` unpacked into the user's cache folder.
    #[must_use]
    pub fn with_image(mut self, image: Option<PathBuf>) -> Self {
        self.image = image;
        self
    }

    fn image(&self, spec: &KernelSpec) -> Result<Image, SpawnError> {
        image::find(spec.image.as_deref().or(self.image.as_deref()))
    }
}

impl Spawner for UmlSpawner {
    fn kind(&self) -> SpawnerKind {
        SpawnerKind::Uml
    }

    async fn availability(&self) -> Availability {
        match image::find(self.image.as_deref()) {
            Ok(image) => Availability::Ready {
                detail: format!("{} ({})", image.path.display(), image.version().await),
            },
            Err(SpawnError::Unavailable { what, remedy, .. }) => Availability::Missing { what, remedy },
            Err(error) => Availability::Missing { what: error.to_string(), remedy: image::REMEDY.into() },
        }
    }

    async fn spawn(&self, spec: &KernelSpec) -> Result<Kernel, SpawnError> {
        let image = self.image(spec)?;
        let modules = image.modules(&spec.modules).await?;
        let name = &spec.agent_config.name;
        let bad_spec = |reason: String| SpawnError::BadSpec { name: name.clone(), reason };
        super::check_pool(spec).map_err(bad_spec)?;
        check_pool_len(spec.pool.as_ref().map_or(0, |pool| pool.len)).map_err(bad_spec)?;
        super::check_agent(spec)?;
        let user_archive = initrd::of_user(spec).await?;
        let claim = Claim::take(&spec.runtime_dir).await?;

        let mut config = spec.agent_config.clone();
        config.pool = spec.pool.as_ref().map(|pool| PoolConfig::new("/dev/mmapper", pool.len));
        config.doorbell = Some(Doorbell::Path("/dev/ttyS0".into()));
        let initrd = initrd::write(spec, user_archive, config, &modules).await?;
        initrd::check_memory(spec, initrd, MEMORY_BYTES_MIN).map_err(bad_spec)?;
        for dir in [UML_DIR, EMPTY_DIR] {
            let path = spec.runtime_dir.join(dir);
            std::fs::create_dir(&path).map_err(|source| SpawnError::File {
                action: "create the folder",
                path,
                source,
            })?;
        }
        let job = Job {
            name: name.clone(),
            kind: SpawnerKind::Uml,
            argv: arguments(spec, &image.path).map_err(bad_spec)?,
            env: vec![("TMPDIR".into(), memory_folder(&spec.runtime_dir, boot_bytes(spec)))],
            console_bytes_max: Job::CONSOLE_BYTES_MAX,
            memory: Some(MemoryJob { mconsole: MCONSOLE.into(), boot_bytes: boot_bytes(spec) }),
            cpus: Vec::new(),
            backend: None,
            runs_on: None,
        };
        let kernel = claim.launch(&self.keeper_binary, &job).await?;
        if boot_bytes(spec) > spec.memory_bytes
            && let Err(error) = leave_memory(&kernel, spec.memory_bytes).await
        {
            // It runs, with more than it was to have; whoever looks at its memory sees that, and can take it later.
            tracing::warn!(name, %error, "a kernel keeps all the memory that it booted with for now");
        }
        Ok(kernel)
    }

    async fn adopt(&self, runtime_dir: &Path) -> Result<Kernel, SpawnError> {
        super::adopt(SpawnerKind::Uml, runtime_dir).await
    }
}

/// What the kernel boots with: it can never be given more than that.
fn boot_bytes(spec: &KernelSpec) -> u64 {
    spec.memory_max_bytes.max(spec.memory_bytes)
}

/// Takes from a kernel that has just been started all memory but this much, as soon as it has a management console.
async fn leave_memory(kernel: &Kernel, bytes: u64) -> Result<(), SpawnError> {
    let deadline = tokio::time::Instant::now() + MCONSOLE_MAX;
    loop {
        match set_memory_at_boot(kernel, bytes).await {
            Err(SpawnError::Refused { .. }) if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(20)).await; // it boots
            }
            outcome => return outcome,
        }
    }
}

/// A kernel that boots makes its console's socket a moment before it listens to it, and hears of what came in that moment only with
/// what comes next: so it is told something else as long as it does not answer.
async fn set_memory_at_boot(kernel: &Kernel, bytes: u64) -> Result<(), SpawnError> {
    let mut setting = std::pin::pin!(kernel.set_memory(MemoryWanted::Exactly(bytes), mconsole::ANSWER_MAX));
    loop {
        tokio::select! {
            outcome = &mut setting => return outcome.map(drop),
            () = tokio::time::sleep(NUDGE_AFTER) => {
                let _ = mconsole::command(kernel.runtime_dir(), MCONSOLE, "version", NUDGE_AFTER).await;
            }
        }
    }
}

fn arguments(spec: &KernelSpec, image: &Path) -> Result<Vec<String>, String> {
    let text = |path: &Path| {
        // The kernel splits its command line at blanks, and `iomem` at the comma.
        let text = path.to_str().filter(|text| !text.contains([' ', ',', '\t', '\n', '"']));
        text.map(str::to_owned).ok_or_else(|| format!("the path {} has blanks or commas", path.display()))
    };
    let image =
        image.to_str().ok_or_else(|| format!("the path {} is not UTF-8", image.display()))?.to_owned();
    let mut argv = vec![
        image,
        format!("mem={}K", boot_bytes(spec) / 1024),
        format!("initrd={}", initrd::NAME),
        "rdinit=/init".into(),
        "quiet".into(),
        // A panic ends the process at once, so that the keeper sees it.
        "panic=-1".into(),
        // For whoever has to end it by force and wants to know first what it does.
        "sysrq_always_enabled".into(),
        "con=null".into(),
        "con0=fd:0,fd:1".into(),
        "ssl=null".into(),
        "ssl0=fd:{doorbell}".into(),
        format!("uml_dir={UML_DIR}/"),
        "umid=k".into(),
        format!("hostfs={}", text(&spec.runtime_dir.join(EMPTY_DIR))?),
        // For people who look at the process table; the kernel ignores parameters with a dot that no module claims.
        format!("tombolo.name={}", spec.agent_config.name),
    ];
    if let Some(pool) = &spec.pool {
        argv.push(format!("iomem=mmapper,{}", text(&pool.path)?));
    }
    argv.extend(spec.extra_args.iter().cloned());
    Ok(argv)
}

/// Where the kernel's memory file goes (unlinked as soon as it is made): somewhere it may be mapped executable, with
/// room, and in memory if that can be had.
fn memory_folder(runtime_dir: &Path, bytes: u64) -> String {
    let fits = |dir: &Path| {
        statvfs(dir).is_ok_and(|fs| {
            let free = fs.blocks_available() * fs.fragment_size();
            !fs.flags().contains(FsFlags::ST_NOEXEC) && free > bytes
        })
    };
    let temporary = std::env::temp_dir();
    let candidates = [Path::new("/dev/shm"), temporary.as_path(), runtime_dir];
    let found = candidates.into_iter().find(|dir| fits(dir)).unwrap_or(runtime_dir);
    found.display().to_string()
}

/// Freezes or thaws the kernel of `runtime_dir`. The error is for people.
pub(super) async fn set_frozen(runtime_dir: &Path, frozen: bool) -> Result<(), String> {
    let command = if frozen { "stop" } else { "go" };
    let deadline = tokio::time::Instant::now() + MCONSOLE_MAX;
    loop {
        match mconsole::command(runtime_dir, MCONSOLE, command, mconsole::ANSWER_MAX).await {
            Ok(_) => return Ok(()),
            // What the kernel says when it is already as wanted.
            Err(error) if error.kind() == io::ErrorKind::Other => {
                let said = error.to_string().to_lowercase();
                let already =
                    if frozen { said.contains("already stopped") } else { said.contains("not stopped") };
                return if already { Ok(()) } else { Err(format!("it answered `{command}` with: {error}")) };
            }
            Err(error) if is_absent(&error) && tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(20)).await; // it boots
            }
            Err(error) => return Err(format!("its management console does not take `{command}`: {error}")),
        }
    }
}

/// Presses magic SysRq keys, one after the other. The error is for people.
pub(super) async fn press(runtime_dir: &Path, keys: &[Key], limit: Duration) -> Result<(), String> {
    for key in keys {
        let command = format!("sysrq {}", key.key);
        let pressed = mconsole::command(runtime_dir, MCONSOLE, &command, limit).await;
        pressed.map_err(|error| format!("its management console does not take `{command}`: {error}"))?;
    }
    Ok(())
}

/// Whether the kernel that is process `pid` answers an interrupt within `deadline`, whatever its user space does.
///
/// Its management console answers `version` from the interrupt itself (`mconsole_interrupt` in
/// arch/um/drivers/mconsole_kern.c). It does so even while `stop` holds the kernel, which then reads nothing but its
/// console, and blocks on it: a console socket that blocks tells a kernel that is held from one that runs.
pub(super) async fn answers(runtime_dir: &Path, pid: u32, deadline: Duration) -> Option<bool> {
    match mconsole::command(runtime_dir, MCONSOLE, "version", deadline).await {
        Ok(_) => console_blocks(pid).map(|held| !held),
        Err(error) if is_absent(&error) || error.kind() == io::ErrorKind::TimedOut => Some(false),
        // We could not ask: no descriptors left, say.
        Err(_) => None,
    }
}

/// Whether process `pid` waits in its management console, as `mconsole_stop` does. `None` if /proc does not tell.
fn console_blocks(pid: u32) -> Option<bool> {
    let sockets = std::fs::read_to_string("/proc/net/unix").ok()?;
    let inode_of = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let inode = fields.nth(6)?;
        fields.next()?.ends_with(MCONSOLE).then(|| format!("socket:[{inode}]"))
    };
    let consoles: Vec<String> = sockets.lines().filter_map(inode_of).collect();
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let console = descriptors.filter_map(Result::ok).find(|entry| {
        let target = std::fs::read_link(entry.path()).unwrap_or_default();
        consoles.iter().any(|console| Path::new(console) == target)
    })?;
    let info = format!("/proc/{pid}/fdinfo/{}", console.file_name().display());
    is_blocking(&std::fs::read_to_string(info).ok()?)
}

/// Whether proc_pid_fdinfo(5) shows a descriptor without `O_NONBLOCK`.
fn is_blocking(info: &str) -> Option<bool> {
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
    let flags = u32::from_str_radix(flags.trim(), 8).ok()?;
    Some(!OFlags::from_bits_retain(flags).contains(OFlags::NONBLOCK))
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// A kernel that is given more does not come up: it counts the bytes in an `int` (`struct iomem_region` in arch/um/include/shared/mem_user.h).
fn check_pool_len(bytes: u64) -> Result<(), String> {
    if i32::try_from(bytes).is_ok() {
        return Ok(());
    }
    Err(format!(
        "the pool has {} MiB, and a user-mode kernel can map less than 2048: begin a new pool with fewer --pool-members or a smaller --pool-extent",
        bytes >> 20
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_that_no_user_mode_kernel_can_map_is_refused() {
        check_pool_len(0).unwrap();
        check_pool_len((2 << 30) - 4096).unwrap();
        let reason = check_pool_len(2 << 30).unwrap_err();
        assert!(reason.contains("2048 MiB") && reason.contains("--pool-extent"), "{reason}");
    }

    #[test]
    fn blocking_descriptor_is_told_from_its_flags() {
        let info = |flags: &str| format!("pos:\t0\nflags:\t{flags}\nmnt_id:\t9\nino:\t7\n");
        assert_eq!(is_blocking(&info("02020002")), Some(true));
        assert_eq!(is_blocking(&info("02024002")), Some(false));
        assert_eq!(is_blocking(&info("many")), None);
        assert_eq!(is_blocking("pos: 0"), None);
    }
}
