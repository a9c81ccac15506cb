//! The command line of `tombolo`, whole: one definition feeds parsing, help and completions.
#![allow(missing_docs, reason = "the help texts are the documentation")]

mod balance;
mod beside;
mod handover;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tombolo_handover::PciAddress;

use crate::core::InstanceName;
use crate::core::policy::Target;
use crate::spawner::SpawnerKind;

pub use self::balance::{BalanceArgs, BalancePolicyArg};
pub use self::beside::{AdoptArgs, BesideCommand, CpuList, PoolChangeArgs};
pub use self::handover::{
    ApplyArgs, DiffArgs, DrainArgs, HandoverArgs, MoveArgs, MovedArgs, OpCommand, ResizeArgs, SizeChange,
};

const AFTER_HELP: &str = "\
Exit codes:
  0 done              3 not found    6 outcome unknown (timed out)   9 needs an operator
  1 failed            4 conflict     7 done in part                  130 interrupted
  2 usage             5 denied       8 daemon unreachable
  `exec` exits as its program did: 127 if there is none, 128 + N if signal N ended it

First steps:
  tombolod &                          start the daemon
  tombolo up web -- /usr/bin/my-app   create a kernel named web and start it
  tombolo ps                          look at it
  tombolo exec -it web -- /bin/sh     go inside
  tombolo policy allow web db:6379    let web connect to port 6379 of db";

/// Linux kernels beside this one: start them, look after them, go inside.
#[derive(Clone, Debug, Parser)]
#[command(name = "tombolo", version, after_help = AFTER_HELP, max_term_width = 110, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command understands.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// Folder of the daemon's sockets [default: /run/tombolo as root, else $XDG_RUNTIME_DIR/tombolo]
    #[arg(long, global = true, env = "TOMBOLO_RUNTIME_DIR", value_name = "DIR")]
    pub runtime_dir: Option<PathBuf>,
    /// The daemon's socket itself [default: DIR/tombolod.sock]
    #[arg(long, global = true, env = "TOMBOLO_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Print JSON: one document, or one line per item where items keep coming
    #[arg(long, global = true)]
    pub json: bool,
    /// How long to wait for an answer or for the wanted state, such as 500ms, 10s, 2m [default: 60s]
    #[arg(long, global = true, value_name = "TIME", value_parser = parse_duration)]
    pub timeout: Option<std::time::Duration>,
    /// Print nothing but data and errors
    #[arg(short, long, global = true)]
    pub quiet: bool,
}

/// The commands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Create what is missing and start it: one instance, or all of a fleet file
    Up(UpArgs),
    /// Record an instance without starting it
    Create(CreateArgs),
    /// Take over an instance that another program (kerf) made beside this kernel, with the CPUs and the memory that it has: from
    /// now on it is started, stopped and removed as the others
    Adopt(AdoptArgs),
    /// Start instances
    Start(StartArgs),
    /// Stop instances in good order: programs get SIGTERM, files are written, the kernel powers off
    Stop(StopArgs),
    /// Stop instances at once, by force; they stay stopped
    Kill(NamesArgs),
    /// Stop instances in good order and start them again
    Restart(StopArgs),
    /// Delete the records of instances that do not run
    Rm(RemoveArgs),
    /// List instances
    #[command(visible_alias = "ls")]
    Ps(PsArgs),
    /// Show everything known about an instance, its last words included
    Inspect(InspectArgs),
    /// Run a program inside an instance
    Exec(ExecArgs),
    /// List, follow, signal or forget programs started with `exec -d`
    Jobs(JobsArgs),
    /// Copy a file into an instance or out of it
    Cp(CopyArgs),
    /// Show what kernel, agent and programs of an instance wrote
    Logs(LogsArgs),
    /// Attach to the console of an instance
    Console(ConsoleArgs),
    /// Measure the round trip to an instance's agent
    Ping(PingArgs),
    /// Measure the link to an instance: calls, bytes both ways, beside what this host needs for a wake-up and a copy
    Bench(BenchArgs),
    /// Show what happened, and what happens
    Events(EventsArgs),
    /// Show load and health of all instances, again and again
    Top(TopArgs),
    /// Carry connections to a local port into an instance
    Forward(ForwardArgs),
    /// Connect stdin and stdout to a port of an instance (an ssh ProxyCommand, say)
    Connect(ConnectArgs),
    /// Wait until an instance is as wanted
    Wait(WaitArgs),
    /// Show how running instances differ from a fleet file, which is what `apply` would change; exits with 1 if they do
    #[command(visible_alias = "plan")]
    Diff(DiffArgs),
    /// Make running instances as a fleet file says: create and start what is missing, move memory and CPUs
    Apply(ApplyArgs),
    /// Show who has which memory, CPUs and devices, and what is free
    Pool,
    /// Look at what Multikernel Linux sets aside for kernels beside this one, and change it
    #[command(subcommand, visible_alias = "mk")]
    Multikernel(BesideCommand),
    /// Move memory, CPUs or a device from one running instance to another, or to and from `pool` (what is free) and `host`
    Move(MoveArgs),
    /// Give a running instance memory or CPUs, or take some from it
    Resize(ResizeArgs),
    /// Take from a running instance all memory, CPUs and devices that it can be without
    Drain(DrainArgs),
    /// Let CPUs move by themselves to instances whose programs wait for one; without options, show how that stands
    Balance(BalanceArgs),
    /// List, follow, call off and mend moves
    #[command(subcommand)]
    Op(OpCommand),
    /// Say who may connect to whom; between instances everything else is refused
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Tell what this host can run, what is missing and how to get it
    Doctor,
    /// Stop every instance and then the daemon
    Down(DownArgs),
    /// Make trouble on purpose, to test what stands upon instances
    #[command(subcommand, hide = true)]
    Debug(DebugCommand),
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the versions of this program and of the daemon
    Version,
}

#[derive(Clone, Debug, Args)]
pub struct NamesArgs {
    /// The instances
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<InstanceName>,
    /// Do not wait until it has happened
    #[arg(long)]
    pub no_wait: bool,
}

#[derive(Clone, Debug, Args)]
pub struct StartArgs {
    #[command(flatten)]
    pub names: NamesArgs,
    /// Wait until their programs are ready, not only until their agents report
    #[arg(long, conflicts_with = "no_wait")]
    pub ready: bool,
}

#[derive(Clone, Debug, Args)]
pub struct StopArgs {
    #[command(flatten)]
    pub names: NamesArgs,
    /// How long it may take before force is used [default: the grace of the instance's specification]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub grace: Option<std::time::Duration>,
}

#[derive(Clone, Debug, Args)]
pub struct RemoveArgs {
    /// The instances
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<InstanceName>,
    /// Kill those that run first
    #[arg(short, long)]
    pub force: bool,
}

#[derive(Clone, Debug, Args)]
pub struct UpArgs {
    /// Read instances and policy from this TOML file instead [default: tombolo.toml if no NAME is given]
    #[arg(short = 'f', long, value_name = "FILE", conflicts_with = "name")]
    pub fleet: Option<PathBuf>,
    /// The instance
    pub name: Option<InstanceName>,
    #[command(flatten)]
    pub spec: SpecArgs,
    /// Do not wait until the agents report
    #[arg(long)]
    pub no_wait: bool,
}

#[derive(Clone, Debug, Args)]
pub struct CreateArgs {
    /// The instance
    pub name: InstanceName,
    #[command(flatten)]
    pub spec: SpecArgs,
    /// A second request with this key gets the result of the first
    #[arg(long, value_name = "KEY")]
    pub idempotency_key: Option<String>,
}

/// What an instance is to be.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "What it is to be")]
pub struct SpecArgs {
    /// Begin with this specification (TOML, the table of one instance); options add to it
    #[arg(long, value_name = "FILE")]
    pub spec: Option<PathBuf>,
    /// The driver that makes its kernel: uml, qemu, multikernel or process [default: uml where it can run]
    #[arg(long, value_name = "DRIVER")]
    pub spawner: Option<SpawnerKind>,
    /// Memory of the kernel, in MiB [default: 64]
    #[arg(long, value_name = "MIB")]
    pub memory: Option<u64>,
    /// The least memory it is left with when memory is moved, in MiB [default: half of its memory]
    #[arg(long, value_name = "MIB")]
    pub memory_min: Option<u64>,
    /// The most memory it can be given while it runs, in MiB [default: its memory]
    #[arg(long, value_name = "MIB")]
    pub memory_max: Option<u64>,
    /// CPUs of the kernel [default: 1]; more only where they can be moved (`qemu`)
    #[arg(long, value_name = "N")]
    pub cpus: Option<u32>,
    /// The fewest CPUs it is left with when CPUs are moved [default: 1]
    #[arg(long, value_name = "N")]
    pub cpus_min: Option<u32>,
    /// The most CPUs it can be given while it runs [default: its CPUs]
    #[arg(long, value_name = "N")]
    pub cpus_max: Option<u32>,
    /// Let it give and get CPUs by itself, between these two, while `tombolo balance` is on
    #[arg(long)]
    pub balance: bool,
    /// A device that it is to have, such as 0000:01:00.0; it boots with it if that is free; may be repeated
    #[arg(long = "device", value_name = "ADDRESS")]
    pub devices: Vec<PciAddress>,
    /// The kernel image [default: the one the driver finds]
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,
    /// An initial archive (cpio, plain or packed) to unpack before ours, which wins: /init is always the agent
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Put a file of this host into the kernel
    #[arg(long = "file", value_name = "HOST:GUEST", value_parser = parse_file)]
    pub files: Vec<(PathBuf, String)>,
    /// Load a kernel module at boot
    #[arg(long = "module", value_name = "NAME")]
    pub modules: Vec<String>,
    /// Add an argument to the kernel's command line
    #[arg(long = "kernel-arg", value_name = "ARG", allow_hyphen_values = true)]
    pub kernel_args: Vec<String>,
    /// When to start the kernel again after it ended [default: on-failure]
    #[arg(long, value_name = "WHEN")]
    pub restart: Option<RestartWhen>,
    /// What to do when it hangs [default: report]
    #[arg(long, value_name = "WHAT")]
    pub on_hang: Option<OnHangWhat>,
    /// A variable for the program
    #[arg(short, long = "env", value_name = "K=V", value_parser = parse_variable)]
    pub env: Vec<(String, String)>,
    /// Whom the program runs as
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,
    /// When the agent starts the program again after it ended [default: never]
    #[arg(long, value_name = "WHEN")]
    pub program_restart: Option<RestartWhen>,
    /// The program to run in it, with its arguments
    #[arg(last = true, value_name = "ARGV")]
    pub argv: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RestartWhen {
    Never,
    OnFailure,
    Always,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnHangWhat {
    Report,
    Restart,
}

#[derive(Clone, Debug, Args)]
pub struct PsArgs {
    /// More columns
    #[arg(short, long)]
    pub wide: bool,
}

#[derive(Clone, Debug, Args)]
pub struct InspectArgs {
    /// The instance
    pub name: InstanceName,
}

#[derive(Clone, Debug, Args)]
pub struct ExecArgs {
    /// Pass stdin on to the program
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the program a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Start it and leave it running; prints the number of the job
    #[arg(short, long, conflicts_with_all = ["interactive", "tty"])]
    pub detach: bool,
    /// A variable for the program
    #[arg(short, long = "env", value_name = "K=V", value_parser = parse_variable)]
    pub env: Vec<(String, String)>,
    /// Its working directory
    #[arg(short = 'w', long, value_name = "DIR")]
    pub cwd: Option<String>,
    /// Whom it runs as
    #[arg(short, long, value_name = "USER")]
    pub user: Option<String>,
    /// The instance
    pub name: InstanceName,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGV")]
    pub argv: Vec<String>,
}

#[derive(Clone, Debug, Args)]
pub struct JobsArgs {
    /// The instance
    pub name: InstanceName,
    /// Follow the output of this job until it ends
    #[arg(long, value_name = "JOB", conflicts_with_all = ["kill", "forget"])]
    pub attach: Option<u64>,
    /// Send a signal to this job
    #[arg(long, value_name = "JOB", conflicts_with = "forget")]
    pub kill: Option<u64>,
    /// The signal, by number or name
    #[arg(long, value_name = "SIGNAL", default_value = "TERM", requires = "kill")]
    pub signal: String,
    /// Forget this job, which has ended
    #[arg(long, value_name = "JOB")]
    pub forget: Option<u64>,
}

#[derive(Clone, Debug, Args)]
pub struct CopyArgs {
    /// PATH on this host, or NAME:PATH inside an instance
    #[arg(value_name = "SRC")]
    pub source: String,
    /// PATH on this host, or NAME:PATH inside an instance
    #[arg(value_name = "DST")]
    pub target: String,
    /// Refuse to replace a file that is there
    #[arg(short, long)]
    pub no_clobber: bool,
}

#[derive(Clone, Debug, Args)]
pub struct LogsArgs {
    /// Go on with what comes
    #[arg(short, long)]
    pub follow: bool,
    /// Begin with the last N lines [default: all that is kept]
    #[arg(short = 'n', long, value_name = "N", conflicts_with = "cursor")]
    pub tail: Option<u32>,
    /// Go on after this place, as printed at the end with --show-cursor, or in `--json`
    #[arg(long, value_name = "EPOCH:SEQ", value_parser = parse_cursor)]
    pub cursor: Option<(u64, u64)>,
    /// Print the cursor after the last line, to stderr
    #[arg(long)]
    pub show_cursor: bool,
    /// Only what these wrote
    #[arg(long = "source", value_name = "WHO")]
    pub sources: Vec<LogSourceArg>,
    /// Show what the last kernel that died wrote to its black box, and the end of its console
    #[arg(long, conflicts_with_all = ["follow", "tail", "cursor", "sources"])]
    pub last_words: bool,
    /// Show what the kernel wrote to its console
    #[arg(long, conflicts_with_all = ["follow", "tail", "cursor", "sources", "last_words"])]
    pub console: bool,
    /// The instance
    pub name: InstanceName,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogSourceArg {
    Kernel,
    Agent,
    Stdout,
    Stderr,
}

#[derive(Clone, Debug, Args)]
pub struct ConsoleArgs {
    /// The instance
    pub name: InstanceName,
    /// Instead of attaching to it, let other programs (kerf console) have the console for so long, a day at most. What the kernel says meanwhile is not
    /// recorded, and a panic is not told from another sudden end. Only of kernels of `multikernel`
    #[arg(long, value_name = "TIME", value_parser = parse_duration, conflicts_with = "take_back")]
    pub lend: Option<std::time::Duration>,
    /// Instead of attaching to it, record it again before that time is over
    #[arg(long)]
    pub take_back: bool,
}

#[derive(Clone, Debug, Args)]
pub struct PingArgs {
    /// The instance
    pub name: InstanceName,
    /// How many round trips
    #[arg(short, long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub count: u32,
    /// Wait between them
    #[arg(short, long, value_name = "TIME", default_value = "10ms", value_parser = parse_duration)]
    pub interval: std::time::Duration,
}

#[derive(Clone, Debug, Args)]
pub struct BenchArgs {
    /// The instance
    pub name: InstanceName,
    /// For how long in all: a quarter each for calls in turn, calls whose ends sleep, bytes there and bytes back; 200ms to 30s
    #[arg(short, long, value_name = "TIME", default_value = "4s", value_parser = parse_duration)]
    pub time: std::time::Duration,
}

#[derive(Clone, Debug, Args)]
pub struct EventsArgs {
    /// Go on with what comes
    #[arg(short, long)]
    pub follow: bool,
    /// Begin after this number; 0 is everything that is kept
    #[arg(long, value_name = "SEQ", default_value_t = 0)]
    pub since: u64,
    /// Only those about this instance
    #[arg(long, value_name = "NAME")]
    pub instance: Option<InstanceName>,
}

#[derive(Clone, Debug, Args)]
pub struct TopArgs {
    /// Wait between looks
    #[arg(short, long, value_name = "TIME", default_value = "1s", value_parser = parse_duration)]
    pub interval: std::time::Duration,
    /// End after so many looks
    #[arg(short = 'n', long, value_name = "N")]
    pub count: Option<u64>,
}

#[derive(Clone, Debug, Args)]
pub struct ForwardArgs {
    /// Where to listen on this host: PORT, ADDRESS:PORT, or the path of a Unix socket
    pub listen: String,
    /// Where to connect: NAME:PORT or NAME/SERVICE of the fabric, NAME:tcp:PORT or NAME:unix:PATH inside the instance
    pub target: String,
}

#[derive(Clone, Debug, Args)]
pub struct ConnectArgs {
    /// CID:PORT, NAME:PORT or NAME/SERVICE of the fabric; NAME:tcp:PORT or NAME:unix:PATH inside the instance
    pub target: String,
}

#[derive(Clone, Debug, Args)]
pub struct WaitArgs {
    /// The instance
    pub name: InstanceName,
    /// What to wait for
    #[arg(long = "for", value_name = "WHAT", default_value = "ready")]
    pub condition: ConditionArg,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ConditionArg {
    /// Its agent has reported
    Running,
    /// It runs and its programs are ready
    Ready,
    /// It has ended
    Stopped,
    /// It is hung
    Hung,
    /// It has failed
    Failed,
    /// It has no record any more
    Gone,
}

#[derive(Clone, Debug, Subcommand)]
pub enum PolicyCommand {
    /// Let FROM connect to TARGET
    Allow(RuleArgs),
    /// Refuse FROM to connect to TARGET, even if another rule allows it
    Deny(RuleArgs),
    /// Remove rules
    Rm {
        #[command(flatten)]
        rule: RuleArgs,
        /// Remove the rule that denies, not the one that allows
        #[arg(long)]
        deny: bool,
    },
    /// List the rules
    Ls,
}

#[derive(Clone, Debug, Args)]
pub struct RuleArgs {
    /// The instance that connects, or `*`
    pub from: String,
    /// NAME:PORT, NAME:SERVICE, NAME (any port) or `*`
    pub target: Target,
}

#[derive(Clone, Debug, Args)]
pub struct DownArgs {
    /// Leave the kernels running, for the next daemon to adopt
    #[arg(long)]
    pub keep_kernels: bool,
}

#[derive(Clone, Debug, Subcommand)]
pub enum DebugCommand {
    /// Stop every instruction of an instance, as a hang would
    Freeze {
        /// The instance
        name: InstanceName,
    },
    /// Let a frozen instance go on
    Thaw {
        /// The instance
        name: InstanceName,
    },
    /// Kill the kernel of an instance as an accident would; its restart policy applies
    Crash {
        /// The instance
        name: InstanceName,
    },
}

/// `500ms`, `10s`, `2m`, `1h`, or a bare number of seconds.
pub fn parse_duration(input: &str) -> Result<std::time::Duration, String> {
    let wrong = || format!("`{input}` is not a time such as 500ms, 10s, 2m or 1h");
    let digits = input.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(input.len());
    let (number, unit) = input.split_at(digits);
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "us" => number / 1e6,
        "ms" => number / 1e3,
        "" | "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        _ => return Err(wrong()),
    };
    std::time::Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}

fn parse_file(input: &str) -> Result<(PathBuf, String), String> {
    match input.split_once(':') {
        Some((host, guest)) if !host.is_empty() && guest.starts_with('/') => Ok((host.into(), guest.into())),
        _ => Err(format!("`{input}` is not HOST:GUEST with an absolute GUEST path")),
    }
}

fn parse_variable(input: &str) -> Result<(String, String), String> {
    match input.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.into(), value.into())),
        _ => Err(format!("`{input}` is not of the form K=V")),
    }
}

fn parse_cursor(input: &str) -> Result<(u64, u64), String> {
    let parse = || {
        let (epoch, seq) = input.split_once(':')?;
        Some((epoch.parse().ok()?, seq.parse().ok()?))
    };
    parse().ok_or_else(|| format!("`{input}` is not a cursor of the form EPOCH:SEQ"))
}

impl Command {
    /// What becomes of what it has begun when it is interrupted; empty if nothing is to be said.
    pub(super) fn when_interrupted(&self) -> &'static str {
        use Command::*;
        match self {
            Up(_) | Adopt(_) | Start(_) | Stop(_) | Kill(_) | Restart(_) | Rm(_) | Down(_) => {
                "what was begun goes on"
            }
            Move(args) if !args.how.dry_run => "a move that was begun goes on: see `tombolo op ls`",
            Apply(args) if !args.how.dry_run => "what was begun goes on",
            Drain(args) if !args.how.dry_run => "a move that was begun goes on: see `tombolo op ls`",
            Resize(args) if !args.how.dry_run => "a move that was begun goes on: see `tombolo op ls`",
            Multikernel(BesideCommand::Pool(args)) if !args.dry_run => "what was begun goes on",
            Cp(_) => "the same command goes on from here",
            Exec(args) if !args.detach => "the program inside is ended (one started with -d stays)",
            _ => "",
        }
    }
}

#[cfg(test)]
#[path = "args_tests.rs"]
mod tests;
