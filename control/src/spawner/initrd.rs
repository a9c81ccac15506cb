//! The initial archive of a kernel: the agent as its first process, what it is told, modules, and the files of the specification.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use tombolo_agent::config::AgentConfig;

use super::{FileContent, InitrdFile, KernelSpec, SpawnError, cpio};

/// Its name in the runtime folder.
pub(super) const NAME: &str = "initrd.cpio";

/// Writes the archive of a kernel into its runtime folder; returns its length in bytes. `config` is what the agent is told, but for
/// the modules, which are listed here.
pub(super) async fn write(
    spec: &KernelSpec,
    mut config: AgentConfig,
    modules: &[PathBuf],
) -> Result<u64, SpawnError> {
    config.modules = modules.iter().enumerate().map(module_path).collect();
    let files = boot_files(spec, &config, modules);
    let path = spec.runtime_dir.join(NAME);
    let written = tokio::task::spawn_blocking({
        let path = path.clone();
        move || write_files(&path, &files)
    });
    let written = written.await.unwrap_or_else(|panicked| Err(io::Error::other(panicked)));
    written.map_err(|source| SpawnError::File { action: "write", path, source })
}

/// Refuses a kernel with less memory than `least_bytes` and its initial archive twice, packed and unpacked.
pub(super) fn check_memory(spec: &KernelSpec, initrd_bytes: u64, least_bytes: u64) -> Result<(), String> {
    let needed = least_bytes + 2 * initrd_bytes;
    if spec.memory_bytes >= needed {
        return Ok(());
    }
    let (have, mib) = (spec.memory_bytes >> 20, needed.div_ceil(1 << 20));
    Err(format!(
        "{have} MiB of memory are too little for its {} MiB of initial files: give it {mib} MiB or more",
        initrd_bytes.div_ceil(1 << 20)
    ))
}

/// Everything the kernel finds at boot.
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
fn write_files(path: &Path, files: &[InitrdFile]) -> io::Result<u64> {
    let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    cpio::write_archive(&mut out, files)?;
    out.flush()?;
    out.get_ref().metadata().map(|meta| meta.len())
}
