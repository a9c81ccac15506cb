//! Boots one kernel with a program of one's own as its whole user space, shows its console, and ends as it ends.
//!
//! `tombolo-boot --image KERNEL --init PROGRAM [--memory MIB] [--module NAME]... [--arg WORD]...` exits 0 when the kernel powered off, 1
//! otherwise. `--machine DEVICE` boots it in an emulated machine that has AF_VSOCK through that program, `--dir` names its runtime
//! folder. As `tombolo-boot keeper ...` it is that kernel's keeper: what spawner tests use, too.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::io::AsyncReadExt as _;
use tombolo_agent::config::AgentConfig;
use tombolo_control::keeper::ExitHow;
use tombolo_control::spawner::{KernelSpec, QemuSpawner, Spawner as _, UmlSpawner};
use tombolo_transport::{Cid, Incarnation, Member};

const USAGE: &str = "usage: tombolo-boot --init PROGRAM [--image KERNEL] [--memory MIB] [--module NAME]... [--arg WORD]... \
     [--machine VSOCK-DEVICE] [--dir DIR]";

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    match args.first() {
        Some(first) if first == "keeper" => return tombolo_control::keeper::run(args.into_iter().skip(1)),
        Some(first) if first == "warden" => return tombolo_control::warden(),
        _ => {}
    }
    match run(args.into_iter().filter_map(|arg| arg.into_string().ok())) {
        Ok(ExitHow::PoweredOff) => ExitCode::SUCCESS,
        Ok(how) => {
            eprintln!("tombolo-boot: the kernel {how}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("tombolo-boot: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut args: impl Iterator<Item = String>) -> Result<ExitHow> {
    let (mut image, mut init, mut memory_mib) = (None, None, 256);
    let (mut modules, mut extra_args) = (Vec::new(), Vec::new());
    let (mut vsock_device, mut runtime_dir) = (None, None);
    while let Some(arg) = args.next() {
        let value = args.next().with_context(|| format!("{arg} needs a value\n{USAGE}"))?;
        match arg.as_str() {
            "--image" => image = Some(PathBuf::from(value)),
            "--init" => init = Some(PathBuf::from(value)),
            "--memory" => memory_mib = value.parse::<u64>()?,
            "--module" => modules.push(value),
            "--arg" => extra_args.push(value),
            "--machine" => vsock_device = Some(PathBuf::from(value)),
            "--dir" => runtime_dir = Some(PathBuf::from(value)),
            _ => bail!("`{arg}` is not understood\n{USAGE}"),
        }
    }
    let dir = tempfile::tempdir()?;
    let spec = KernelSpec {
        image,
        initrd: None,
        memory_bytes: memory_mib << 20,
        memory_min_bytes: memory_mib << 20,
        memory_max_bytes: memory_mib << 20,
        cpus: Vec::new(),
        cpus_started: 1,
        cpus_withheld: Vec::new(),
        cpus_max: 1,
        catalogue: Vec::new(),
        devices: Vec::new(),
        devices_move: false,
        agent_binary: init.context(USAGE)?,
        // There is no control plane: nobody asks for the secret.
        agent_config: AgentConfig::new("boot", Cid(3), Member(1), Incarnation::random()?, [0; 32]),
        initrd_files: Vec::new(),
        modules,
        pool: None,
        runtime_dir: runtime_dir.unwrap_or_else(|| dir.path().join("kernel")),
        extra_args,
        taken_over: None,
    };
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?
        .block_on(boot(&spec, vsock_device))
}

async fn boot(spec: &KernelSpec, vsock_device: Option<PathBuf>) -> Result<ExitHow> {
    let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let this = "/proc/self/exe";
    let kernel = match vsock_device {
        Some(device) => QemuSpawner::new(this).with_vsock_device(Some(device)).spawn(spec).await?,
        None => UmlSpawner::new(this).spawn(spec).await?,
    };
    let log = kernel.console_log();
    let shown = show_console(&log, kernel.exited());
    let exit = match tokio::select! {
        exit = shown => exit,
        _ = tokio::signal::ctrl_c() => kernel.kill().await,
        _ = terminated.recv() => kernel.kill().await,
    } {
        Ok(exit) => exit,
        Err(error) => {
            let _ = kernel.kill().await;
            return Err(error.into());
        }
    };
    kernel.forget().await?;
    Ok(exit.how)
}

/// Prints the console as it grows, until `end`.
async fn show_console<T>(log: &std::path::Path, end: impl Future<Output = T>) -> T {
    let mut end = std::pin::pin!(end);
    let mut file = None;
    loop {
        let ended = tokio::select! {
            ended = &mut end => Some(ended),
            () = tokio::time::sleep(Duration::from_millis(50)) => None,
        };
        if file.is_none() {
            file = tokio::fs::File::open(log).await.ok();
        }
        let mut new = Vec::new();
        if let Some(file) = &mut file
            && file.read_to_end(&mut new).await.is_ok()
        {
            let _ = std::io::stdout().write_all(&new);
        }
        if let Some(ended) = ended {
            return ended;
        }
    }
}
