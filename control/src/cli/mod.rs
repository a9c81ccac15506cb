//! `tombolo`: what people type.
//!
//! [`args`] is the whole command line; every other file runs one group of commands. Data goes to stdout, everything
//! else to stderr; the exit code is [`crate::api::ExitKind`], but for `exec`, which ends as its program did.

mod apply;
pub mod args;
mod balance;
mod bench;
mod beside;
mod client;
mod connect;
mod console;
mod copy;
mod debug;
mod error;
mod events;
mod exec;
mod fleet;
mod forward;
mod handover;
mod host;
mod jobs;
mod logs;
mod operation;
mod output;
mod ping;
mod policy;
mod pool;
mod spec;
mod target;
mod terminal;
mod top;
mod up;

use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use self::args::{Cli, Command};
use self::client::Client;
use self::error::CliError;
use self::output::Output;
use crate::api::ExitKind;

/// What a command needs: where the daemon is, how to print, how long to wait.
#[derive(Clone, Debug)]
struct Context {
    global: args::Global,
    output: Output,
}

/// What every command comes to: the exit code, or an error that has one.
type Outcome = Result<ExitCode, CliError>;

/// Parses the command line and does what it says.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("tombolo: could not start: {error}");
            return ExitCode::from(ExitKind::Failed as u8);
        }
    };
    let context = Context { output: Output::new(&cli.global), global: cli.global };
    let left = cli.command.when_interrupted();
    let outcome = runtime.block_on(async {
        let (cancel, mut running) = begin(&context, cli.command);
        tokio::select! {
            outcome = &mut running => outcome.unwrap_or_else(|_| {
                Err(CliError::new(ExitKind::Failed, "an error in tombolo itself: please report it"))
            }),
            signal = told_to_end() => {
                drop(cancel);
                let _ = tokio::time::timeout(LEAVE_MAX, running).await;
                Err(CliError::interrupted(left).with_code(128 + signal))
            }
        }
    });
    terminal::restore();
    // A thread may sit in read(2) on our stdin or in write(2) on our stdout: it must not keep us.
    runtime.shutdown_background();
    match outcome {
        Ok(code) => code,
        Err(error) => error.report(&context.output),
    }
}

/// How long a command may take to leave when it is told to. It has nothing to wait for but a stdout that nobody reads.
const LEAVE_MAX: Duration = Duration::from_millis(200);

/// Runs a command on a thread of its own, so that one that hangs in write(2) can be ended all the same. It ends when the
/// sender is dropped.
fn begin(cx: &Context, command: Command) -> (oneshot::Sender<()>, oneshot::Receiver<Outcome>) {
    let (cancel, cancelled) = oneshot::channel::<()>();
    let (done, running) = oneshot::channel();
    let (cx, runtime) = (cx.clone(), Handle::current());
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                outcome = run(&cx, command) => drop(done.send(outcome)),
                _ = cancelled => {}
            }
        });
    });
    (cancel, running)
}

/// Waits for a signal that ends us, and gives its number. We take our leave ourselves: a terminal must not stay raw, nor
/// a socket's file behind.
async fn told_to_end() -> u8 {
    let under_nohup = is_hangup_ignored();
    let wait = async |kind: SignalKind| match signal(kind) {
        Ok(mut signal) if kind != SignalKind::hangup() || !under_nohup => drop(signal.recv().await),
        _ => std::future::pending().await,
    };
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let number = |kind: SignalKind| u8::try_from(kind.as_raw_value()).unwrap_or(0);
    tokio::select! {
        () = wait(kinds[0]) => number(kinds[0]),
        () = wait(kinds[1]) => number(kinds[1]),
        () = wait(kinds[2]) => number(kinds[2]),
    }
}

/// Whether we were started with SIGHUP ignored, as nohup(1) does: then we outlive our terminal.
fn is_hangup_ignored() -> bool {
    // proc_pid_status(5): one bit for each signal, the lowest for signal 1, which is SIGHUP.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

async fn run(cx: &Context, command: Command) -> Outcome {
    match command {
        Command::Up(args) => up::up(cx, args).await,
        Command::Create(args) => fleet::create(cx, args).await,
        Command::Adopt(args) => beside::adopt(cx, args).await,
        Command::Start(args) => fleet::start(cx, args).await,
        Command::Stop(args) => fleet::stop(cx, args).await,
        Command::Kill(args) => fleet::kill(cx, args).await,
        Command::Restart(args) => fleet::restart(cx, args).await,
        Command::Rm(args) => fleet::remove(cx, args).await,
        Command::Ps(args) => fleet::list(cx, args).await,
        Command::Inspect(args) => fleet::inspect(cx, args).await,
        Command::Wait(args) => fleet::wait(cx, args).await,
        Command::Exec(args) => exec::exec(cx, args).await,
        Command::Jobs(args) => jobs::jobs(cx, args).await,
        Command::Cp(args) => copy::copy(cx, args).await,
        Command::Logs(args) => logs::logs(cx, args).await,
        Command::Console(args) => console::console(cx, args).await,
        Command::Ping(args) => ping::ping(cx, args).await,
        Command::Bench(args) => bench::bench(cx, args).await,
        Command::Events(args) => events::events(cx, args).await,
        Command::Top(args) => top::top(cx, args).await,
        Command::Forward(args) => forward::forward(cx, args).await,
        Command::Connect(args) => connect::connect(cx, args).await,
        Command::Pool => pool::pool(cx).await,
        Command::Multikernel(command) => beside::multikernel(cx, command).await,
        Command::Move(args) => handover::move_units(cx, args).await,
        Command::Resize(args) => handover::resize(cx, args).await,
        Command::Diff(args) => apply::diff(cx, args).await,
        Command::Apply(args) => apply::apply(cx, args).await,
        Command::Drain(args) => handover::drain(cx, args).await,
        Command::Balance(args) => balance::balance(cx, args).await,
        Command::Op(command) => handover::op(cx, command).await,
        Command::Policy(command) => policy::policy(cx, command).await,
        Command::Debug(command) => debug::debug(cx, command).await,
        Command::Doctor => host::doctor(cx).await,
        Command::Down(args) => host::down(cx, args).await,
        Command::Version => host::version(cx).await,
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "tombolo", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
    }
}

impl Context {
    /// Connects to the daemon.
    async fn client(&self) -> Result<Client, CliError> {
        Client::connect(&self.global).await
    }
}
