//! Runs the transport's conformance suite on one backend: one line per behaviour and direction, then
//! `N passed, M failed`. Exit code 0 if all passed.
//!
//! As PID 1 it is the whole user space of a kernel that exists for this run: it mounts /dev, /proc and /tmp, loads
//! every module in /lib/modules/tombolo (in the order of their names), runs the suite and powers the kernel off. That is how
//! AF_VSOCK is put to the test on machines without vsock_loopback.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use rustix::mount::MountFlags;
use tombolo_transport::conformance::backends::{Hybrid, Memory, Shm, ShmKernels, VsockLoopback};
use tombolo_transport::conformance::{self, Backend, Verdict};

const USAGE: &str = "usage: tombolo-conformance [--backend memory|hybrid|shm|vsock-loopback] [--filter NAME]";

struct Args {
    backend: String,
    filter: String,
}

fn main() -> ExitCode {
    let init = std::process::id() == 1;
    let failed = match run(init) {
        Ok(failed) => failed,
        Err(error) => {
            eprintln!("tombolo-conformance: {error:#}");
            true
        }
    };
    if init {
        // What the console has not yet taken would be lost with the kernel.
        std::thread::sleep(std::time::Duration::from_millis(200));
        let error = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
        eprintln!("tombolo-conformance: power-off failed: {error:?}");
    }
    ExitCode::from(u8::from(failed))
}

fn run(init: bool) -> anyhow::Result<bool> {
    if init {
        prepare_kernel()?;
    }
    let args = parse(std::env::args().skip(1), init)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let verdicts = runtime.block_on(async {
        match args.backend.as_str() {
            "memory" => Ok(verdicts(Memory, &args.filter).await),
            "hybrid" => {
                let dir = tempfile::tempdir()?;
                Ok(verdicts(Hybrid::in_dir(dir.path()), &args.filter).await)
            }
            "shm" => {
                let mut all = Vec::new();
                for kernels in [ShmKernels::Same, ShmKernels::PrimaryAndSpawned, ShmKernels::TwoSpawned] {
                    println!("shm, kernels: {kernels:?}");
                    let dir = tempfile::tempdir_in("/dev/shm")?;
                    all.extend(verdicts(Shm::in_dir(dir.path(), kernels), &args.filter).await);
                }
                Ok(all)
            }
            "vsock-loopback" => Ok(verdicts(VsockLoopback, &args.filter).await),
            other => bail!("no backend is called `{other}`\n{USAGE}"),
        }
    })?;
    let failed = verdicts.iter().filter(|verdict| verdict.outcome.is_err()).count();
    println!("{} passed, {failed} failed", verdicts.len() - failed);
    Ok(failed > 0 || verdicts.is_empty())
}

async fn verdicts(backend: impl Backend, filter: &str) -> Vec<Verdict> {
    conformance::run(&backend, filter, |verdict| println!("{verdict}")).await
}

fn parse(mut given: impl Iterator<Item = String>, init: bool) -> anyhow::Result<Args> {
    let mut args = Args { backend: "vsock-loopback".into(), filter: String::new() };
    while let Some(arg) = given.next() {
        let mut value = || given.next().with_context(|| format!("{arg} needs a value\n{USAGE}"));
        match arg.as_str() {
            "--backend" => args.backend = value()?,
            "--filter" => args.filter = value()?,
            // A kernel hands its init whatever words it did not understand itself.
            _ if init => {}
            _ => bail!("`{arg}` is not understood\n{USAGE}"),
        }
    }
    Ok(args)
}

fn prepare_kernel() -> anyhow::Result<()> {
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

fn load_module(path: &Path) -> anyhow::Result<()> {
    let file = std::fs::File::open(path).with_context(|| format!("opening {}", path.display()))?;
    rustix::system::finit_module(&file, c"", 0).with_context(|| format!("loading {}", path.display()))
}
