//! The memory that host and kernels have in common: where it comes from, what keeps it, and how kernels find it.
//!
//! | `pool =` | what it is | kept by | kernels map |
//! |---|---|---|---|
//! | `heap`, `auto` | a buffer of the kernel's DMA heap ([`iomem`] tells where that is) | a process ([`holder`]) | `/dev/mem` at its address |
//! | `mem` | physical memory that an operator names | nobody: it is nobody else's | `/dev/mem` at its address |
//! | `daxfs` | a file on a DAXFS that is mounted here ([`mounts`]) | that file system | that file, on a mount of their own |
//! | `path` | a file | its file system | what the settings name |
//!
//! What was made is noted ([`made`]) before a kernel is told of it, so that the next daemon finds the same. While kernels may use it nothing else is
//! made, whatever the settings say by then. It has its length and all its content before the first kernel starts, and never another length.

mod holder;
mod host;
pub(super) mod iomem;
mod made;
mod mounts;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use tombolo_transport::pool::PoolSource;

pub use holder::run as pool_holder;
pub(crate) use host::{Host, ThisHost};
pub(crate) use made::Made;

use self::made::What;
use super::settings::SharedPool;

/// How often a buffer is asked for when others get one at the same moment.
const TRIES: usize = 3;
/// The grain of a buffer, and of all physical memory, in bytes.
const PAGE: u64 = 4096;

/// What there is to share.
#[derive(Debug)]
pub(crate) struct Shared {
    memory: Memory,
    /// Where it is found here, for people and for those who look how long it is.
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    /// Whether there is nothing in it that anybody uses: it is to be formatted.
    pub(crate) is_new: bool,
    /// How kernels reach it.
    pub(crate) inside: SharedPool,
}

#[derive(Debug)]
enum Memory {
    Buffer(OwnedFd),
    Device { path: PathBuf, phys: u64 },
    File(PathBuf),
}

impl Shared {
    /// How it is opened here.
    pub(crate) fn source(&self) -> io::Result<PoolSource> {
        let len = self.bytes;
        Ok(match &self.memory {
            // Whatever part is asked for, a buffer maps its beginning.
            Memory::Buffer(fd) => PoolSource::Fd { fd: fd.try_clone()?, offset: 0, len },
            Memory::Device { path, phys } => PoolSource::Path { path: path.clone(), offset: *phys, len },
            Memory::File(path) => PoolSource::Path { path: path.clone(), offset: 0, len },
        })
    }

    /// Whether it can be opened once more by its path and is nothing else besides, so that locks can be on it.
    pub(crate) fn can_be_locked(&self) -> bool {
        matches!(self.memory, Memory::File(_))
    }
}

/// Why there is nothing to share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It cannot be had: kernels are reached over their one socket. Nothing was left behind.
    NotHad(String),
    /// Kernels may use what was made, and it cannot be had again.
    Lost(String),
}

/// What is wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish<'a> {
    /// What the settings say.
    pub(crate) pool: Option<&'a SharedPool>,
    /// The file that was named for the pool.
    pub(crate) file: &'a Path,
    /// How long the pool is, in bytes.
    pub(crate) bytes: u64,
    /// Whether kernels may use what there is.
    pub(crate) in_use: bool,
}

/// Finds what was made, or makes what is wanted; `None`: the pool is an ordinary file. `dir`: where that is noted.
pub(crate) fn take(host: &impl Host, dir: &Path, wish: Wish<'_>) -> Result<Option<Shared>, Refusal> {
    let noted = Made::read(dir).map_err(|error| {
        Refusal::Lost(format!("what was made to be shared cannot be told: {}: {error}", dir.display()))
    })?;
    let boot_id =
        host.boot_id().map_err(|error| Refusal::NotHad(format!("this boot has no name: {error}")))?;
    let is_of_this_boot = noted.as_ref().is_none_or(|made| made.boot_id == boot_id);
    if !is_of_this_boot {
        // Neither it nor who held it is there any more, nor is any kernel that used it.
        Made::remove(dir).map_err(|error| Refusal::NotHad(error.to_string()))?;
    }
    let noted = noted.filter(|_| is_of_this_boot);
    if wish.in_use && is_of_this_boot {
        return noted.map(|made| again(host, &made).map_err(Refusal::Lost)).transpose();
    }
    if let Some(made) = noted {
        if is_as_wanted(&made, wish)
            && let Ok(found) = again(host, &made)
        {
            return Ok(Some(Shared { is_new: true, ..found }));
        }
        give_back(host, dir).map_err(Refusal::NotHad)?;
    }
    let made = match wish.pool {
        None | Some(SharedPool::Path(_)) => return Ok(None),
        Some(SharedPool::Auto) => buffer(host, dir, Path::new(SharedPool::HEAP), None, wish.bytes),
        Some(SharedPool::Heap { device, inside }) => buffer(host, dir, device, inside.as_deref(), wish.bytes),
        Some(SharedPool::Mem { phys, size, device }) => range(host, dir, device, *phys, *size, wish.bytes),
        Some(pool @ SharedPool::Daxfs { .. }) => on_daxfs(host, dir, pool, wish),
    };
    let made = made.map_err(Refusal::NotHad)?;
    match again(host, &made) {
        Ok(found) => Ok(Some(Shared { is_new: true, ..found })),
        Err(reason) => {
            // It is of no use, then.
            let _ = give_back(host, dir);
            Err(Refusal::NotHad(reason))
        }
    }
}

/// Gives back what was made. No kernel may use it any more.
pub(crate) fn give_back(host: &impl Host, dir: &Path) -> Result<(), String> {
    let told = |error: io::Error| format!("the shared memory of before could not be given back: {error}");
    let Some(made) = Made::read(dir).map_err(told)? else { return Ok(()) };
    if let What::Heap { holder, .. } = made.what {
        host.let_go(holder).map_err(told)?;
    }
    Made::remove(dir).map_err(told)
}

/// Whether what was made can be used for what is wanted now.
fn is_as_wanted(made: &Made, wish: Wish<'_>) -> bool {
    let wants = |heap: &Path| matches!(&made.what, What::Heap { device, .. } if device == heap);
    let is_it = match wish.pool {
        Some(SharedPool::Auto) => {
            wants(Path::new(SharedPool::HEAP)) && !matches!(made.inside, SharedPool::Path(_))
        }
        Some(SharedPool::Heap { device, inside: None }) => {
            wants(device) && !matches!(made.inside, SharedPool::Path(_))
        }
        Some(SharedPool::Heap { device, inside: Some(inside) }) => {
            wants(device) && made.inside == SharedPool::Path(inside.clone())
        }
        // These cost nothing to make anew, and are looked at again then.
        _ => false,
    };
    is_it && made.bytes == wish.bytes
}

/// What was made, found again.
fn again(host: &impl Host, made: &Made) -> Result<Shared, String> {
    let lost = |why: String| format!("the shared memory that was made is gone: {why}");
    let (memory, path) = match &made.what {
        What::Heap { holder, .. } => {
            let fd = host.held(*holder).map_err(|error| lost(error.to_string()))?;
            let file = File::from(fd);
            let has = file.metadata().map_err(|error| lost(error.to_string()))?.len();
            if has < made.bytes {
                return Err(lost(format!("what is held has {has} bytes, not {}", made.bytes)));
            }
            (Memory::Buffer(file.into()), PathBuf::from(format!("/proc/{}/fd/0", holder.pid)))
        }
        What::Mem { device, phys } => (Memory::Device { path: device.clone(), phys: *phys }, device.clone()),
        What::Daxfs { file } => {
            let has =
                std::fs::metadata(file).map_err(|error| lost(format!("{}: {error}", file.display())))?.len();
            if has != made.bytes {
                return Err(lost(format!("{} has {has} bytes, not {}", file.display(), made.bytes)));
            }
            (Memory::File(file.clone()), file.clone())
        }
    };
    Ok(Shared { memory, path, bytes: made.bytes, is_new: false, inside: made.inside.clone() })
}

/// Takes a buffer of the heap `device`.
fn buffer(
    host: &impl Host,
    dir: &Path,
    device: &Path,
    inside: Option<&Path>,
    bytes: u64,
) -> Result<Made, String> {
    let boot_id = host.boot_id().map_err(|error| error.to_string())?;
    for _ in 0..TRIES {
        let before = iomem::parse(&host.iomem().unwrap_or_default());
        let memory = host.allocate(device, bytes).map_err(|error| not_allocated(device, bytes, &error))?;
        let after = iomem::parse(&host.iomem().unwrap_or_default());
        let phys = iomem::new_buffer(&before, &after, bytes);
        let inside = match (inside, phys) {
            (Some(path), _) => SharedPool::Path(path.to_owned()),
            (None, Some(phys)) => SharedPool::Mem { phys, size: bytes, device: SharedPool::MEM.into() },
            // Freed, and asked for again: somebody else's came at the same moment.
            (None, None) => continue,
        };
        let mut made = None;
        let held = host.hold(memory, &mut |holder| {
            let what = What::Heap { device: device.to_owned(), phys, holder };
            let new = Made { boot_id: boot_id.clone(), bytes, what, inside: inside.clone() };
            new.write(dir)?;
            made = Some(new);
            Ok(())
        });
        return match (held, made) {
            (Ok(()), Some(made)) => Ok(made),
            (outcome, _) => {
                let why = outcome.err().map_or_else(|| "nothing was noted".into(), |error| error.to_string());
                // What was noted names a process that ends.
                let _ = Made::remove(dir);
                Err(format!(
                    "{bytes} bytes of {} could not be kept, and were given back: {why}",
                    device.display()
                ))
            }
        };
    }
    Err(format!(
        "{} gave memory of which the kernel does not tell where it is (/proc/iomem does not list it, or not to us), so that kernels could not find it; it was given back. Run tombolod as root, or name memory by its address (`pool = {{ mem = .. }}`)",
        device.display()
    ))
}

fn not_allocated(heap: &Path, bytes: u64, error: &io::Error) -> String {
    let what_to_do = match error.raw_os_error() {
        Some(libc::ENOENT) => {
            "boot a kernel with CONFIG_DMABUF_HEAPS; kernels that make the heap only at boot need a pool by then"
        }
        Some(libc::ENOMEM) => {
            "set memory aside (tombolo multikernel pool --memory SIZE) or make the pool smaller (--pool-members, --pool-extent), then restart tombolod"
        }
        Some(libc::ENOTTY) => "it is no DMA heap",
        _ => "run tombolod as root",
    };
    format!("{} gave no {} MiB to share: {error}: {what_to_do}", heap.display(), bytes.div_ceil(1 << 20))
}

/// Takes the memory that an operator named, if nobody else is known to have it.
fn range(
    host: &impl Host,
    dir: &Path,
    device: &Path,
    phys: u64,
    size: u64,
    bytes: u64,
) -> Result<Made, String> {
    let named = format!("the {size} bytes at {phys:#x} (`pool = {{ mem = .. }}`)");
    if phys == 0 || size == 0 || !phys.is_multiple_of(PAGE) || !size.is_multiple_of(PAGE) {
        return Err(format!("{named} are no whole pages of {PAGE} bytes"));
    }
    let Some(end) = phys.checked_add(size) else { return Err(format!("{named} are beyond all addresses")) };
    if size < bytes {
        return Err(format!(
            "{named} are too few: the pool has {bytes}; name more, or make it smaller (--pool-members, --pool-extent)"
        ));
    }
    let iomem = host.iomem().map_err(|error| format!("{named}: /proc/iomem: {error}"))?;
    if let Some(why) = iomem::objection(&iomem::parse(&iomem), &(phys..end)) {
        return Err(format!("{named} are not to be written: {why}"));
    }
    let boot_id = host.boot_id().map_err(|error| error.to_string())?;
    let inside = SharedPool::Mem { phys, size, device: SharedPool::MEM.into() };
    let made = Made { boot_id, bytes, what: What::Mem { device: device.to_owned(), phys }, inside };
    made.write(dir).map_err(|error| format!("{named} could not be noted: {error}"))?;
    Ok(made)
}

/// Makes a file of its full length on a DAXFS.
fn on_daxfs(host: &impl Host, dir: &Path, pool: &SharedPool, wish: Wish<'_>) -> Result<Made, String> {
    let SharedPool::Daxfs { phys, size, mount, file: _ } = pool else {
        return Err("no DAXFS is named".into());
    };
    let named = wish.file.display();
    let mounts = host.mounts().map_err(|error| format!("/proc/self/mountinfo: {error}"))?;
    let found = mounts::daxfs_of(&mounts, wish.file)
        .ok_or_else(|| format!("{named} is on no DAXFS: mount one, and name a file there by --pool"))?;
    let (Some(phys), Some(size)) = (phys.or(found.phys), size.or(found.size)) else {
        return Err(format!(
            "the DAXFS of {named} was mounted from a buffer and does not tell where that is: name it in the settings (`pool = {{ daxfs = {{ phys = .., size = .. }} }}`); kerf notes it, /proc/iomem lists it"
        ));
    };
    let failed = |what: &str, error: io::Error| format!("could not {what} {named}: {error}");
    let opened = File::options().read(true).write(true).create(true).truncate(false).open(wish.file);
    let opened = opened.map_err(|error| failed("make", error))?;
    let has = opened.metadata().map_err(|error| failed("look at", error))?.len();
    match has {
        0 => opened.set_len(wish.bytes).map_err(|error| failed("give its length to", error))?,
        has if has == wish.bytes => {}
        has => {
            return Err(format!(
                "{named} has {has} bytes and the pool {}: what kernels may have seen is given no other length. Remove it where no kernel has its file system mounted, or make the pool as long (--pool-members, --pool-extent)",
                wish.bytes
            ));
        }
    }
    let boot_id = host.boot_id().map_err(|error| error.to_string())?;
    let inside = SharedPool::Daxfs {
        phys: Some(phys),
        size: Some(size),
        mount: mount.clone(),
        file: Some(found.file),
    };
    let made = Made { boot_id, bytes: wish.bytes, what: What::Daxfs { file: wish.file.to_owned() }, inside };
    made.write(dir).map_err(|error| failed("note", error))?;
    Ok(made)
}
