//! Being the first process of a kernel: for programs that are the whole user space of one.

use std::path::Path;

use anyhow::{Context as _, Result};
use rustix::mount::MountFlags;

/// What a kernel was told on its command line after `--`, which it hands its first process. It adds settings of its own there.
pub fn words() -> Vec<String> {
    std::env::args().skip(1).filter(|word| !word.contains('=')).collect()
}

/// Mounts what programs expect and loads every module in /lib/modules/tombolo, in the order of their names.
///
/// # Errors
/// Says what the kernel refused.
pub fn prepare_kernel() -> Result<()> {
    for (kind, target) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("tmpfs", "/tmp"), ("tmpfs", "/dev/shm")]
    {
        std::fs::create_dir_all(target)?;
        rustix::mount::mount(kind, target, kind, MountFlags::empty(), None)
            .with_context(|| format!("mounting {kind} on {target}"))?;
    }
    let mut modules: Vec<_> = match std::fs::read_dir("/lib/modules/tombolo") {
        Ok(dir) => dir.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error).context("reading /lib/modules/tombolo"),
    };
    modules.sort();
    modules.iter().try_for_each(|path| load_module(path))
}

/// Ends the kernel. Returns only if that does not let it.
pub fn power_off() {
    // What the console has not yet taken would be lost with the kernel.
    std::thread::sleep(std::time::Duration::from_millis(200));
    let error = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
    eprintln!("power-off failed: {error:?}");
}

fn load_module(path: &Path) -> Result<()> {
    let file = std::fs::File::open(path).with_context(|| format!("opening {}", path.display()))?;
    rustix::system::finit_module(&file, c"", 0).with_context(|| format!("loading {}", path.display()))
}
