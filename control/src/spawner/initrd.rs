//! The initial archive of a kernel: the user's, if there is one, and behind it ours: the agent as its first process, what it is told,
//! modules, and the files of the specification.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use tombolo_agent::config::AgentConfig;

use super::user_archive::UserArchive;
use super::{FileContent, InitrdFile, KernelSpec, SpawnError, cpio};

/// Its name in the runtime folder.
pub(super) const NAME: &str = "initrd.cpio";

/// How many times as large as it is a packed archive is taken to be unpacked. Programs and modules are packed to a third, or a little less.
const UNPACKED_TIMES: u64 = 4;

/// What an initial archive takes of a kernel's memory when it boots, which has it packed and unpacked for a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    /// Its length, in bytes.
    bytes: u64,
    /// How much of that is packed, in bytes.
    packed_bytes: u64,
}

impl Size {
    /// All memory that it takes, in bytes; [`UNPACKED_TIMES`] is assumed of what is packed.
    pub(super) fn memory_bytes(self) -> u64 {
        let unpacked_bytes =
            (self.bytes - self.packed_bytes).saturating_add(self.packed_bytes.saturating_mul(UNPACKED_TIMES));
        self.bytes.saturating_add(unpacked_bytes)
    }
}

/// The user's archive, if the kernel is to have one, looked at before anything is made for it.
///
/// # Errors
/// Those of [`UserArchive::open`], and [`SpawnError::BadSpec`] for one that is larger than the kernel's memory.
pub(super) async fn of_user(spec: &KernelSpec) -> Result<Option<UserArchive>, SpawnError> {
    let Some(path) = spec.initrd.clone() else { return Ok(None) };
    let opening = tokio::task::spawn_blocking(move || UserArchive::open(&path));
    let archive = opening.await.unwrap_or_else(|panicked| Err(bad_spec(spec, panicked.to_string())))?;
    let size = Size { bytes: archive.bytes(), packed_bytes: archive.packed_bytes() };
    check_memory(spec, size, 0).map_err(|reason| bad_spec(spec, reason))?;
    Ok(Some(archive))
}

fn bad_spec(spec: &KernelSpec, reason: String) -> SpawnError {
    SpawnError::BadSpec { name: spec.agent_config.name.clone(), reason }
}

/// Writes the archive of a kernel into its runtime folder, behind that of the user; returns what it takes. `config` is what the agent
/// is told, but for the modules, which are listed here.
pub(super) async fn write(
    spec: &KernelSpec,
    user: Option<UserArchive>,
    mut config: AgentConfig,
    modules: &[PathBuf],
) -> Result<Size, SpawnError> {
    config.modules = modules.iter().enumerate().map(module_path).collect();
    let files = boot_files(spec, &config, modules);
    let path = spec.runtime_dir.join(NAME);
    let packed_bytes = user.as_ref().map_or(0, UserArchive::packed_bytes);
    let written = tokio::task::spawn_blocking({
        let path = path.clone();
        move || write_files(&path, user.as_ref(), &files)
    });
    let written = written.await.unwrap_or_else(|panicked| Err(io::Error::other(panicked)));
    let bytes = written.map_err(|source| SpawnError::File { action: "write", path, source })?;
    Ok(Size { bytes, packed_bytes })
}

/// Refuses a kernel with less memory than `least_bytes` and its initial archive, packed and unpacked.
pub(super) fn check_memory(spec: &KernelSpec, initrd: Size, least_bytes: u64) -> Result<(), String> {
    let needed = least_bytes.saturating_add(initrd.memory_bytes());
    if spec.memory_bytes >= needed {
        return Ok(());
    }
    let (have, mib) = (spec.memory_bytes >> 20, needed.div_ceil(1 << 20));
    let assumed = match initrd.packed_bytes {
        0 => String::new(),
        packed => format!(
            " ({} MiB of them packed, and taken to be {UNPACKED_TIMES} times as large unpacked)",
            packed.div_ceil(1 << 20)
        ),
    };
    Err(format!(
        "{have} MiB of memory are too little for its {} MiB of initial files{assumed}: give it {mib} MiB or more",
        initrd.bytes.div_ceil(1 << 20)
    ))
}

/// Everything the kernel finds at boot, but for what is in the user's archive.
fn boot_files(spec: &KernelSpec, config: &AgentConfig, modules: &[PathBuf]) -> Vec<InitrdFile> {
    let mut files = vec![
        InitrdFile {
            guest_path: "/init".into(),
            mode: 0o755,
            content: FileContent::Path(spec.agent_binary.clone()),
        },
        InitrdFile {
            guest_path: tombolo_agent::config::DEFAULT_PATH.into(),
            mode: 0o600,
            content: FileContent::Bytes(config.to_json().into_bytes()),
        },
    ];
    files.extend(modules.iter().enumerate().map(|(index, module)| InitrdFile {
        guest_path: module_path((index, module)).display().to_string(),
        mode: 0o644,
        content: FileContent::Path(module.clone()),
    }));
    files.extend(spec.initrd_files.iter().cloned());
    files
}

/// Where the kernel finds a module. The names sort in load order, for programs that look for themselves.
fn module_path((index, module): (usize, &PathBuf)) -> PathBuf {
    let name = module.file_name().unwrap_or_default().display();
    PathBuf::from(format!("/lib/modules/tombolo/{index:02}-{name}"))
}

/// Readable by its owner alone: it holds the secret.
fn write_files(path: &Path, user: Option<&UserArchive>, files: &[InitrdFile]) -> io::Result<u64> {
    let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    if let Some(user) = user {
        user.copy_to(&mut out)?;
    }
    cpio::write_archive(&mut out, files)?;
    out.flush()?;
    out.get_ref().metadata().map(|meta| meta.len())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use tombolo_transport::{Cid, Incarnation, Member};

    use super::*;

    /// A kernel with 64 MiB in this folder, where its agent is.
    fn spec(dir: &Path, initrd: Option<&[u8]>) -> KernelSpec {
        fs::write(dir.join("agent"), "the agent").unwrap();
        let initrd = initrd.map(|content| {
            fs::write(dir.join("base.img"), content).unwrap();
            dir.join("base.img")
        });
        let incarnation = Incarnation::random().unwrap();
        KernelSpec {
            image: None,
            initrd,
            memory_bytes: 64 << 20,
            memory_min_bytes: 64 << 20,
            memory_max_bytes: 64 << 20,
            cpus: Vec::new(),
            cpus_started: 1,
            cpus_withheld: Vec::new(),
            cpus_max: 1,
            catalogue: Vec::new(),
            devices: Vec::new(),
            devices_move: false,
            agent_binary: dir.join("agent"),
            agent_config: AgentConfig::new("web", Cid(3), Member(1), incarnation, [9; 32]),
            initrd_files: Vec::new(),
            modules: Vec::new(),
            pool: None,
            runtime_dir: dir.to_owned(),
            extra_args: Vec::new(),
            taken_over: None,
        }
    }

    async fn written(spec: &KernelSpec) -> (Size, Vec<u8>) {
        let user = of_user(spec).await.unwrap();
        let size = write(spec, user, spec.agent_config.clone(), &[]).await.unwrap();
        (size, fs::read(spec.runtime_dir.join(NAME)).unwrap())
    }

    #[tokio::test]
    async fn ours_follows_the_archive_of_the_user_where_the_kernel_looks_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let alone = written(&spec(dir.path(), None)).await.1;
        for len in 3..7 {
            let user = &b"\x1f\x8b\x08\0\0\0\0"[..len];
            let (size, both) = written(&spec(dir.path(), Some(user))).await;
            assert_eq!((size.bytes, size.packed_bytes), (both.len() as u64, len as u64));
            assert!(both.starts_with(user), "it is as it was");
            let ours = both.len() - alone.len();
            assert!(ours % 4 == 0 && both[len..ours].iter().all(|byte| *byte == 0), "{ours}");
            assert!(both[ours..].starts_with(b"070701"));
            assert!(both[ours..].windows(9).any(|window| window == b"the agent"));
            let mode = fs::metadata(dir.path().join(NAME)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "it holds the secret");
        }
    }

    #[tokio::test]
    async fn archive_of_the_user_that_cannot_be_is_refused_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let refused = of_user(&spec(dir.path(), Some(b"no archive"))).await.unwrap_err();
        assert!(matches!(refused, SpawnError::NotAnArchive { .. }), "{refused}");
        let too_large = spec(dir.path(), Some(b"\x1f\x8b\x08"));
        fs::File::options().write(true).open(dir.path().join("base.img")).unwrap().set_len(13 << 20).unwrap();
        match of_user(&too_large).await.unwrap_err() {
            SpawnError::BadSpec { reason, .. } => assert!(
                reason.contains("13 MiB of them packed") && reason.contains("give it 65 MiB or more"),
                "{reason}"
            ),
            other => panic!("{other}"),
        }
        assert!(!dir.path().join(NAME).exists());
    }

    #[test]
    fn memory_is_counted_for_what_is_packed_and_for_what_comes_out_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let spec = spec(dir.path(), None);
        let check = |packed_mib: u64| {
            let size = Size { bytes: 10 << 20, packed_bytes: packed_mib << 20 };
            check_memory(&spec, size, 24 << 20)
        };
        check(0).unwrap();
        check(6).unwrap();
        let reason = check(7).unwrap_err();
        assert!(reason.contains("64 MiB of memory are too little"), "{reason}");
        assert!(
            reason.contains("4 times as large unpacked") && reason.contains("65 MiB or more"),
            "{reason}"
        );
    }
}
