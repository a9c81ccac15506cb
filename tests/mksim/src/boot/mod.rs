//! What gets booted: a User-mode Linux kernel per instance.
//!
//! ```text
//!  thread of the kernel ── guard ── init of a PID namespace ── linux (console = stdio, ssl0 = link)
//!        │ console                                                     │
//!        └─► terminals, DIR/console.<id>          link thread ◄────────┘ ◄──► DIR/link.<id>
//! ```
//!
//! Whatever ends the stand-in ends the guard, by the kernel's parent-death signal, and so the namespace with all in it.

mod alive;
mod arguments;
mod link;
mod mconsole;
mod ring;

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, waitid};

pub(crate) use self::link::Link;
pub(crate) use self::ring::Rings;
use crate::calls::Buffer;
use crate::model::Quirk;
use crate::world::World;

/// What is to be booted.
pub(crate) struct BootOrder {
    pub(crate) id: u32,
    pub(crate) name: String,
    pub(crate) memory_bytes: u64,
    pub(crate) cmdline: String,
    /// A buffer of the DMA heap, for `/dev/mmapper`.
    pub(crate) heap: Option<Arc<Buffer>>,
}

/// A kernel that runs, or ran.
pub(crate) struct Kernel {
    pub(crate) id: u32,
    folder: PathBuf,
    guard: Pid,
    link: Link,
    keyboard: Mutex<Option<ChildStdin>>,
    is_over: Mutex<bool>,
    over: Condvar,
    /// What it was booted with, in bytes: it can have less, and never more.
    boot_bytes: u64,
    /// What it was granted, in bytes.
    memory_bytes: Mutex<u64>,
}

/// How long a kernel that was killed may take to be gone.
const KILL_MAX: Duration = Duration::from_secs(10);
/// What a kernel says before anything else when it panics.
const PANIC: &[u8] = b"Kernel panic - not syncing";

const IMAGE: &str = "linux";
const INITRD: &str = "initrd";
const UML_DIR: &str = "uml";
const EMPTY_DIR: &str = "empty";

/// Held while descriptors are inheritable, so that no other child gets them.
static SPAWNING: Mutex<()> = Mutex::new(());

/// Where what instance `id` boots is kept.
pub(crate) fn folder(dir: &Path, id: u32) -> PathBuf {
    dir.join("kernels").join(id.to_string())
}

/// Puts what was loaded in place.
pub(crate) fn stage(dir: &Path, id: u32, image: &[u8], initrd: Option<&[u8]>) -> io::Result<()> {
    let folder = folder(dir, id);
    discard(dir, id);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join(IMAGE), crate::image::unwrap(image))?;
    fs::set_permissions(folder.join(IMAGE), fs::Permissions::from_mode(0o700))?;
    initrd.map_or(Ok(()), |initrd| fs::write(folder.join(INITRD), initrd))
}

/// Forgets what was loaded. A kernel that runs does not need it any more.
pub(crate) fn discard(dir: &Path, id: u32) {
    for name in [IMAGE, INITRD] {
        // It may not be there.
        let _ = fs::remove_file(folder(dir, id).join(name));
    }
}

impl Kernel {
    /// Starts the kernel that is in place. It is told to `world` when it ends.
    pub(crate) fn boot(world: &Arc<World>, order: BootOrder) -> anyhow::Result<Arc<Self>> {
        let folder = folder(&world.dir, order.id);
        let _ = fs::remove_dir_all(folder.join(UML_DIR));
        for name in [UML_DIR, EMPTY_DIR] {
            fs::create_dir_all(folder.join(name)).with_context(|| format!("create {name}"))?;
        }
        let console = File::options()
            .create(true)
            .append(true)
            .open(world.dir.join(format!("console.{}", order.id)))
            .context("open the console's log")?;
        let (started, start) = std::sync::mpsc::channel();
        let world = Arc::clone(world);
        // The parent-death signal is of the thread that starts a process: this one stays until the end.
        std::thread::Builder::new()
            .name(format!("kernel-{}", order.id))
            .spawn(move || run(&world, &order, folder, console, &started))
            .context("start a thread")?;
        start.recv().context("the thread of the kernel is gone")?
    }

    /// Bytes for its console. What it does not take is lost.
    pub(crate) fn type_in(&self, bytes: &[u8]) {
        if let Some(keyboard) = self.lock_keyboard().as_mut() {
            let _ = keyboard.write(bytes);
        }
    }

    /// Ends it with all its processes, and waits until they are gone.
    pub(crate) fn kill(&self) {
        let is_over = self.lock_over();
        if !*is_over {
            let _ = rustix::process::kill_process(self.guard, Signal::KILL);
        }
        drop(self.over.wait_timeout_while(is_over, KILL_MAX, |is_over| !*is_over));
    }

    /// Stops it, so that it does nothing at all: a hang.
    pub(crate) fn freeze(&self) -> io::Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) -> io::Result<()> {
        self.signal(Signal::CONT)
    }

    /// Breaks its line's connection.
    pub(crate) fn cut_link(&self) {
        self.link.cut();
    }

    /// Has its line lose bytes, or no more.
    pub(crate) fn set_link_lossy(&self, is_lossy: bool) {
        self.link.set_lossy(is_lossy);
    }

    /// Its line.
    pub(crate) fn link(&self) -> &Link {
        &self.link
    }

    /// Makes it panic, if it listens.
    pub(crate) fn panic(&self) -> io::Result<()> {
        mconsole::send(&self.folder, "sysrq c")
    }

    /// Gives it memory or takes some. It may not listen, which is as with a kernel that is slow.
    pub(crate) fn change_memory(&self, bytes: u64, add: bool) {
        let mut total = self.memory_bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.boot_bytes.min(*total);
        *total = if add { total.saturating_add(bytes) } else { total.saturating_sub(bytes) };
        let after = self.boot_bytes.min(*total);
        let change = after.abs_diff(before) / 1024;
        if change > 0 {
            let sign = if after > before { '+' } else { '-' };
            let _ = mconsole::send(&self.folder, &format!("config mem={sign}{change}K"));
        }
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        // Only the kernel itself: its helpers are its tracees, and wait for it.
        let pid = self.main_process().ok_or(io::ErrorKind::NotFound)?;
        Ok(rustix::process::kill_process(pid, signal)?)
    }

    /// The kernel's own process: the child of the init of its namespace, which is the child of the guard.
    fn main_process(&self) -> Option<Pid> {
        let init = crate::guard::children_of(self.guard).into_iter().next()?;
        crate::guard::children_of(init).into_iter().next()
    }

    fn lock_over(&self) -> MutexGuard<'_, bool> {
        self.is_over.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_keyboard(&self) -> MutexGuard<'_, Option<ChildStdin>> {
        self.keyboard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread of a kernel: from its start to its end.
fn run(
    world: &Arc<World>,
    order: &BootOrder,
    folder: PathBuf,
    mut console: File,
    started: &std::sync::mpsc::Sender<anyhow::Result<Arc<Kernel>>>,
) {
    let (mut child, mut output, link) = match start(world, order, &folder) {
        Ok(started) => started,
        Err(error) => {
            let _ = started.send(Err(error));
            return;
        }
    };
    let keyboard = child.stdin.take();
    if let Some(keyboard) = &keyboard {
        let _ = rustix::io::ioctl_fionbio(keyboard, true);
    }
    let kernel = Arc::new(Kernel {
        id: order.id,
        folder,
        guard: Pid::from_child(&child),
        link,
        keyboard: Mutex::new(keyboard),
        is_over: Mutex::new(false),
        over: Condvar::new(),
        boot_bytes: order.memory_bytes,
        memory_bytes: Mutex::new(order.memory_bytes),
    });
    if let Err(error) = alive::spawn(&world.dir, order.id, Arc::downgrade(&kernel)) {
        world.log(&format!("instance {}: nobody can be asked whether it lives: {error}", order.id));
    }
    let _ = started.send(Ok(Arc::clone(&kernel)));

    // The pipe ends when the last of its processes does.
    let mut panicked = false;
    let mut tail: Vec<u8> = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(count) = output.read(&mut buffer) {
        if count == 0 {
            break;
        }
        let bytes = &buffer[..count];
        let to_latest = world.look(|machine| machine.config().quirks.has(Quirk::ConsoleOfLatest));
        world.terminals.deliver(order.id, bytes, to_latest);
        let _ = console.write_all(bytes);
        tail.extend_from_slice(bytes);
        panicked |= tail.windows(PANIC.len()).any(|window| window == PANIC);
        tail.drain(..tail.len().saturating_sub(PANIC.len()));
    }
    kernel.lock_keyboard().take();
    // It is reaped under the lock: whoever holds that and finds it not over may send it signals.
    let _ = waitid(WaitId::Pid(kernel.guard), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
    let status = {
        let mut is_over = kernel.lock_over();
        *is_over = true;
        child.wait()
    };
    kernel.over.notify_all();
    world.log(&format!("instance {}: its kernel ended: {status:?}, panicked: {panicked}", order.id));
    world.ended(&kernel, panicked);
}

fn start(world: &Arc<World>, order: &BootOrder, folder: &Path) -> anyhow::Result<(Child, File, Link)> {
    let image = folder.join(IMAGE);
    anyhow::ensure!(image.is_file(), "the image is not in place");
    let (link, link_of_kernel) = std::os::unix::net::UnixStream::pair().context("make the link")?;
    let (output, output_of_kernel) = io::pipe().context("make the console")?;
    let heap = order.heap.as_ref().map(|heap| heap.path().display().to_string());
    let argv = arguments::arguments(order, link_of_kernel.as_raw_fd(), folder, heap.as_deref());
    let mut command = Command::new("/proc/self/exe");
    command
        .args([crate::guard::KERNEL, "--"])
        .arg(&image)
        .args(argv)
        .current_dir(folder)
        .env("TMPDIR", memory_folder())
        .stdin(Stdio::piped())
        .stdout(output_of_kernel.try_clone().context("share the console")?)
        .stderr(output_of_kernel)
        .process_group(0);
    let link_of_kernel = OwnedFd::from(link_of_kernel);
    let child = {
        let _alone = SPAWNING.lock().unwrap_or_else(PoisonError::into_inner);
        rustix::io::fcntl_setfd(link_of_kernel.as_fd(), rustix::io::FdFlags::empty())
            .context("hand the link on")?;
        let child = command.spawn().context("start the kernel's guard");
        rustix::io::fcntl_setfd(link_of_kernel.as_fd(), rustix::io::FdFlags::CLOEXEC)
            .context("take the link back")?;
        child?
    };
    // The command holds the pipe's writing end.
    drop(command);
    drop(link_of_kernel);
    let link = Link::spawn(&world.dir, order.id, link).context("serve the link")?;
    Ok((child, File::from(OwnedFd::from(output)), link))
}

/// Where a kernel's memory goes: a place where it may be mapped executable.
fn memory_folder() -> PathBuf {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() }
}
