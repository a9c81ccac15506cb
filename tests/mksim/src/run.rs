//! `tombolo-mksim run`: a command on the stand-in, from start to end.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::Context as _;
use fuser::{Config, MountOption, Session, SessionACL};
use nix::sys::signal::{SigSet, Signal};
use rustix::process::Pid;

use crate::boot::Rings;
use crate::calls;
use crate::ctl;
use crate::fuse::Files;
use crate::guard;
use crate::model::{Machine, MachineConfig};
use crate::namespace;
use crate::world::World;

/// What to run, and on what machine.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where control socket, links, logs and images go. Default: a temporary folder, removed at the end.
    pub dir: Option<PathBuf>,
    /// The machine.
    pub machine: MachineConfig,
    /// What every kernel has as `/dev/mmapper` while the DMA heap has no buffer. It may be made after the start.
    pub share: Option<PathBuf>,
    /// How many seconds of the machine pass in one. Positive. Default 1.
    pub clock_speed: f64,
    /// Whether each write of the command is looked at, so that one to a kernel whose ring is full can fail.
    pub sees_writes: bool,
    /// The command and its arguments.
    pub command: Vec<std::ffi::OsString>,
}

/// How often it is looked for readers with signals, and for buffers that nobody uses.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Runs the command and gives its exit code, 128 + N if signal N ended it. To be called before there is any other thread.
///
/// # Errors
/// What could not be set up; the command did not run then, or was killed.
pub fn run(options: Options) -> anyhow::Result<u8> {
    anyhow::ensure!(
        options.clock_speed > 0.0 && options.clock_speed.is_finite(),
        "the clock must go forward"
    );
    eprintln!("tombolo-mksim: {}", crate::BANNER);
    // Signals that are passed on are blocked in all threads that follow.
    let passed_on = SigSet::from_iter([Signal::SIGTERM, Signal::SIGHUP]);
    passed_on.thread_block().context("block signals")?;
    // What comes of looking whether a buffer is used, when somebody opens it at that moment.
    SigSet::from(Signal::SIGIO).thread_block().context("block signals")?;
    namespace::enter()?;
    let temporary = match options.dir {
        Some(_) => None,
        None => Some(tempfile::Builder::new().prefix("mksim.").tempdir().context("make a folder")?),
    };
    let dir = options.dir.as_deref().or_else(|| temporary.as_ref().map(|dir| dir.path()));
    let dir = std::path::absolute(dir.unwrap_or_else(|| Path::new("."))).context("resolve the folder")?;
    std::fs::create_dir_all(dir.join("mnt")).with_context(|| format!("make {}", dir.display()))?;
    eprintln!("tombolo-mksim: STAND-IN: control with `tombolo-mksim ctl --dir {}`", dir.display());

    let rings = Rings::new(options.sees_writes);
    let world = World::new(Machine::new(options.machine), &dir, options.share, options.clock_speed, rings);
    let files = dir.join("mnt");
    let session = Session::new(Files::new(Arc::clone(&world)), &files, &mount_options())
        .context("mount the file system (this needs /dev/fuse)")?;
    let session = session.spawn().context("serve the file system")?;
    namespace::lay_out(&files)?;
    spawn("clock", {
        let world = Arc::clone(&world);
        move || world.keep_time()
    })?;
    spawn("looks", {
        let world = Arc::clone(&world);
        move || {
            loop {
                std::thread::sleep(LOOK_EVERY);
                world.terminals.interrupt_signalled();
                world.release_heap();
            }
        }
    })?;
    ctl::serve(&world)?;
    let code = run_command(&world, options.command, options.sees_writes, passed_on);
    world.kill_all();
    // The session's thread waits for requests that may not end; the process does.
    std::mem::forget(session);
    namespace::take_down(&files);
    code
}

/// The thread that has the filter starts the command, which inherits it, and stays: the command dies with it.
fn run_command(
    world: &Arc<World>,
    command: Vec<std::ffi::OsString>,
    sees_writes: bool,
    passed_on: SigSet,
) -> anyhow::Result<u8> {
    let (send_listener, listener) = mpsc::channel();
    let (send_child, child) = mpsc::channel::<anyhow::Result<Pid>>();
    let starter = std::thread::Builder::new().name("command".into()).spawn(move || {
        let listener = calls::install(sees_writes).context("install the filter of system calls")?;
        let _ = send_listener.send(listener);
        let started = start(&command);
        match started {
            Ok(mut process) => {
                let _ = send_child.send(Ok(Pid::from_child(&process)));
                let status = process.wait().context("wait for the command")?;
                Ok(guard::code_of(status))
            }
            Err(error) => Err(error),
        }
    });
    let starter = starter.context("start a thread")?;
    if let Ok(listener) = listener.recv() {
        let world = Arc::clone(world);
        spawn("calls", move || calls::serve(&world, listener))?;
    }
    if let Ok(Ok(pid)) = child.recv() {
        spawn("signals", move || pass_on(passed_on, pid))?;
    }
    starter.join().map_err(|_| anyhow::anyhow!("the thread of the command panicked"))?
}

fn start(command: &[std::ffi::OsString]) -> anyhow::Result<Child> {
    let mut process = Command::new("/proc/self/exe");
    process.args([guard::COMMAND, "--"]).args(command);
    process.spawn().context("start the command")
}

fn pass_on(signals: SigSet, pid: Pid) {
    while let Ok(signal) = signals.wait() {
        if let Some(signal) = rustix::process::Signal::from_named_raw(signal as i32) {
            // It may have ended.
            let _ = rustix::process::kill_process(pid, signal);
        }
    }
}

fn mount_options() -> Config {
    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.mount_options = vec![
        MountOption::FSName("STAND-IN.tombolo-mksim".into()),
        MountOption::Subtype("mksim".into()),
        MountOption::DefaultPermissions,
        MountOption::NoSuid,
        MountOption::NoExec,
    ];
    config
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    std::thread::Builder::new().name(name.into()).spawn(run).context("start a thread")?;
    Ok(())
}
