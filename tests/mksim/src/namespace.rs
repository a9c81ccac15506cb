//! The command's view of the files: a mount namespace of its own, in which the stand-in's files are where the kernel's are.
//!
//! `/sys/fs` and `/dev` have no place to mount them at. So each is covered by a tmpfs in which all that was there is bound
//! again, and the new beside it. Nothing outside sees any of it.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::Context as _;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::fuse::{CPUINFO_NAME, HEAP_NAME, IOMEM_NAME, MKTTY_NAME, TREE_NAME};

/// Leaves the mount namespace for a copy, from which nothing propagates. Before there is any other thread.
pub(crate) fn enter() -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace (this needs root)")?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).context("make all mounts private")
}

/// Puts the files under `files` in their places.
pub(crate) fn lay_out(files: &Path) -> anyhow::Result<()> {
    cover(Path::new("/sys/fs"))?;
    fs::create_dir("/sys/fs/multikernel").context("make the mount point")?;
    cover(Path::new("/dev"))?;
    keep_terminals()?;
    fs::create_dir_all("/dev/dma_heap").context("make /dev/dma_heap")?;
    for place in ["/dev/mktty", "/dev/dma_heap/multikernel"] {
        File::create(place).with_context(|| format!("make {place}"))?;
    }
    let places = [
        (TREE_NAME, "/sys/fs/multikernel"),
        (MKTTY_NAME, "/dev/mktty"),
        (IOMEM_NAME, "/proc/iomem"),
        (CPUINFO_NAME, "/proc/cpuinfo"),
        (HEAP_NAME, "/dev/dma_heap/multikernel"),
    ];
    for (name, place) in places {
        bind(&files.join(name), Path::new(place))?;
    }
    name_file_system(&files.with_file_name("filesystems"))
}

/// Opening /dev/ptmx looks for `pts` beside what is bound there, and finds none (`path_pts` in fs/namei.c); one of /dev/pts is as good.
fn keep_terminals() -> anyhow::Result<()> {
    let ptmx = Path::new("/dev/ptmx");
    if ptmx.is_symlink() || !Path::new("/dev/pts/ptmx").exists() {
        return Ok(());
    }
    if ptmx.exists() {
        umount2(ptmx, MntFlags::MNT_DETACH).context("unbind /dev/ptmx")?;
        fs::remove_file(ptmx).context("remove /dev/ptmx")?;
    }
    symlink("pts/ptmx", ptmx).context("link /dev/ptmx")
}

/// Has the list of file systems that the kernel knows name one more. `copy`: where the list is kept.
fn name_file_system(copy: &Path) -> anyhow::Result<()> {
    let place = Path::new("/proc/filesystems");
    let listed = fs::read_to_string(place).context("read /proc/filesystems")?;
    fs::write(copy, listed + "nodev\tmultikernel\n").with_context(|| format!("write {}", copy.display()))?;
    bind(copy, place)
}

/// Covers a folder by a tmpfs that has all it had.
fn cover(folder: &Path) -> anyhow::Result<()> {
    // While it is covered the folder is reached by this descriptor.
    let held = File::open(folder).with_context(|| format!("open {}", folder.display()))?;
    let old = Path::new("/proc/self/fd").join(held.as_raw_fd().to_string());
    let listed: Result<Vec<_>, _> = fs::read_dir(folder).and_then(Iterator::collect);
    let entries = listed.with_context(|| format!("list {}", folder.display()))?;
    mount(Some("mksim"), folder, Some("tmpfs"), MsFlags::MS_NOSUID, Some("mode=0755"))
        .with_context(|| format!("cover {}", folder.display()))?;
    for entry in entries {
        let (from, to) = (old.join(entry.file_name()), folder.join(entry.file_name()));
        let kind = entry.file_type().with_context(|| format!("look at {}", to.display()))?;
        if kind.is_symlink() {
            let target = fs::read_link(&from).with_context(|| format!("read {}", to.display()))?;
            symlink(target, &to).with_context(|| format!("link {}", to.display()))?;
            continue;
        }
        match kind.is_dir() {
            true => fs::create_dir(&to),
            false => File::create(&to).map(drop),
        }
        .with_context(|| format!("make {}", to.display()))?;
        bind(&from, &to)?;
    }
    Ok(())
}

fn bind(from: &Path, to: &Path) -> anyhow::Result<()> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(from), to, None::<&str>, flags, None::<&str>)
        .with_context(|| format!("bind {} to {}", from.display(), to.display()))
}

/// Takes the file system away, as far as it can be: the namespace goes with the last process in it.
pub(crate) fn take_down(files: &Path) {
    let _ = umount2(files, MntFlags::MNT_DETACH);
}
