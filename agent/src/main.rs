//! `tombolo-agent`: first process of a spawned kernel, or an ordinary service.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use clap::{Parser, Subcommand};
use tombolo_agent::api::agent::AgentMode;
use tombolo_agent::blackbox::BlackBox;
use tombolo_agent::config::{AgentConfig, DEFAULT_PATH, Doorbell};
use tombolo_agent::console::Console;
use tombolo_agent::exec::ExecChild;
use tombolo_agent::logs::{Log, LogLayer};
use tombolo_agent::run::{Boot, run};
use tombolo_agent::{inventory, pid1};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// How long the last lines may take to reach the console.
const CONSOLE_FLUSH: Duration = Duration::from_millis(500);

/// The agent that runs inside every spawned kernel of Tombolo.
///
/// As the first process of a kernel it mounts the usual file systems, starts the entrypoint, reaps, and powers off in
/// order; anywhere else it does the rest as an ordinary service. The control plane in the primary kernel uses it to run
/// programs, move files, read logs, watch health and stop the kernel.
#[derive(Debug, Parser)]
#[command(name = "tombolo-agent", version, args_conflicts_with_subcommands = true)]
#[command(
    after_help = "It ends with code 0 after an orderly shutdown (SIGTERM, or an order of the control plane), \
    with 1 when it cannot do its work, with 2 when it was called wrongly."
)]
struct Arguments {
    /// The boot configuration, a JSON document. It holds a secret: keep it readable by the agent alone.
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
    config: PathBuf,
    /// Check the configuration, say what is wrong with it, and end.
    #[arg(long)]
    check: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print which kernel this is: uname, boot id, memory, CPUs.
    Info {
        /// As one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Become PROGRAM. Used by the agent itself between fork and exec.
    #[command(hide = true)]
    ExecChild(ExecChild),
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        // The kernel hands its first process whatever it did not understand of its own command line.
        Err(error) if std::process::id() == 1 => {
            eprintln!("tombolo-agent: ignoring arguments: {error}");
            Arguments { config: DEFAULT_PATH.into(), check: false, command: None }
        }
        Err(error) => error.exit(),
    };
    match arguments.command {
        Some(Command::Info { json }) => print_info(json),
        Some(Command::ExecChild(child)) => child.run(),
        None if arguments.check => check(&arguments.config),
        None => match live(&arguments.config) {
            Ok(mode) => pid1::finish(mode),
            Err(error) => {
                tracing::error!("the agent ends: {error:#}");
                eprintln!("tombolo-agent: {error:#}");
                ExitCode::FAILURE
            }
        },
    }
}

fn print_info(json: bool) -> ExitCode {
    let inventory = inventory::take(None, pid1::detect_mode(), 0);
    let text = if json {
        serde_json::to_string(&inventory).unwrap_or_default() + "\n"
    } else {
        inventory::describe(&inventory)
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn check(config: &Path) -> ExitCode {
    match AgentConfig::read(config) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tombolo-agent: {:#}", anyhow::Error::from(error));
            ExitCode::FAILURE
        }
    }
}

/// From the configuration to the moment when nothing is left but to power off.
fn live(path: &Path) -> anyhow::Result<AgentMode> {
    tombolo_agent::keep_inherited_fds();
    let mode = pid1::detect_mode();
    let not_mounted = if mode == AgentMode::Init { pid1::mount_basics() } else { Vec::new() };
    let config = AgentConfig::read(path)?;
    // First of all descriptors: see `take_doorbell`.
    let doorbell = take_doorbell(&config)?;
    let epoch = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_nanos() as u64);
    let black_box = BlackBox::default();
    let console = Console::start(std::io::stderr()).context("starting the console's thread")?;
    let log = Log::new(epoch, black_box.clone(), Some(console.clone()));
    start_tracing(&config.log_level, &log, &console)?;
    not_mounted.iter().for_each(|what| tracing::warn!("could not mount {what}"));
    pid1::set_up(mode, &config);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    let lived = runtime.block_on(run(Boot { config, mode, epoch, log, black_box, doorbell }));
    // Threads that block still must not hold up the end.
    runtime.shutdown_background();
    console.flush(CONSOLE_FLUSH);
    lived.map(|()| mode)
}

/// The inherited doorbell, taken before any other descriptor is opened, so that nothing else can have its number.
fn take_doorbell(config: &AgentConfig) -> anyhow::Result<Option<OwnedFd>> {
    match config.doorbell {
        Some(Doorbell::Fd(fd)) => {
            let fd = tombolo_agent::inherited_fd(fd).with_context(|| format!("taking over doorbell {fd}"))?;
            Ok(Some(fd))
        }
        _ => Ok(None),
    }
}

fn start_tracing(filter: &str, log: &Log, console: &Console) -> anyhow::Result<()> {
    let console = tracing_subscriber::fmt::layer().with_writer(console.clone()).with_ansi(false);
    let filter = tracing_subscriber::EnvFilter::try_new(filter).context("reading `log_level`")?;
    tracing_subscriber::registry().with(filter).with(console).with(LogLayer::new(log.clone())).init();
    // A panic is among the last words one wants to find in the black box.
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tracing::error!("panic: {panic}");
        usual(panic);
    }));
    Ok(())
}
