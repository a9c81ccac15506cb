//! Messages of 56 B there and back, both sides busy: between two user-mode kernels, and between two processes of this one, in turns.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tombolo_tests::bed::Bed;
use tombolo_transport::mem::{ticks, ticks_in};
use tombolo_transport::{Addr, AttachOptions, Cid, Endpoint, ListenOptions, Messages, Port, TryRecv};

use crate::{median, tell};

const PORT: Port = Port(5056);
const BYTES: usize = 56;
const GUEST_PROGRAM: &str = "/bin/bench-kernels";
const GUEST_BROKER: &str = "/run/tombolo/broker.sock";
/// For the other side to be there.
const THERE_MAX: Duration = Duration::from_secs(60);
/// Nobody waits longer for one message.
const ANSWER_MAX: Duration = Duration::from_secs(20);
/// Looks between two looks at the clock, whose reading is a slow system call in a user-mode kernel.
const LOOKS_PER_CLOCK: u32 = 1 << 20;
/// The first rounds find cold caches.
const WARM_UP: usize = 1000;

pub(crate) fn measure(quick: bool) -> Result<()> {
    let (turns, rounds) = if quick { (3, 20_000) } else { (7, 200_000) };
    let bed = Bed::start("uml").context("there is no user-mode kernel, or its programs are not built")?;
    let program = std::env::current_exe()?;
    let file = format!("{}:{GUEST_PROGRAM}", program.display());
    let up = ["--memory", "160", "--restart", "never", "--file", &file];
    bed.must(&[&["up", "a"], &up[..]].concat());
    bed.must(&[&["up", "b"], &up[..], &["--", GUEST_PROGRAM, "echo", GUEST_BROKER]].concat());
    bed.must(&["policy", "allow", "a", "b"]);
    let in_b = bed.view("b")["cid"].as_u64().context("b has no cid")?.to_string();
    let here = bed.dir().join("run/broker.sock");
    let _echo = Echo::start(&program, &here)?;
    let (mut kernels, mut processes) = (Vec::new(), Vec::new());
    for _ in 0..turns {
        processes.push(beside(&program, &here, rounds)?);
        let rounds = rounds.to_string();
        let said = bed.must(&["exec", "a", "--", GUEST_PROGRAM, "ask", GUEST_BROKER, &in_b, &rounds]);
        kernels.push(Times::parse(&said.stdout)?);
    }
    let ratios = kernels.iter().zip(&processes).map(|(ours, floor)| ours.p50_ns / floor.p50_ns).collect();
    let of = |times: &[Times], which: fn(&Times) -> f64| median(times.iter().map(which).collect());
    let note = format!("p50 of {rounds} rounds, the middle of {turns} turns; both sides look without pause");
    tell("uml-56/kernels", of(&kernels, |times| times.p50_ns), "ns", &note);
    tell("uml-56/kernels-p99", of(&kernels, |times| times.p99_ns), "ns", &note);
    tell(
        "uml-56/processes",
        of(&processes, |times| times.p50_ns),
        "ns",
        "the same program, twice, in the primary kernel",
    );
    tell("uml-56/ratio", median(ratios), "x", "each turn by the one beside it");
    bed.nothing_is_left();
    Ok(())
}

/// How long rounds took.
#[derive(Clone, Copy, Debug)]
struct Times {
    p50_ns: f64,
    p99_ns: f64,
}

impl Times {
    /// Of what [`ask`] printed, in ticks: a kernel that counts its own time has no say in how long they are.
    fn parse(said: &str) -> Result<Self> {
        let line = said.lines().last().unwrap_or_default();
        let times: Value = serde_json::from_str(line).with_context(|| format!("not understood: {said}"))?;
        let ns_per_tick = 1e9 / ticks_in(Duration::from_secs(1)) as f64;
        let ns = |name: &str| {
            times[name].as_f64().map(|ticks| ticks * ns_per_tick).with_context(|| format!("no {name}"))
        };
        Ok(Self { p50_ns: ns("p50_ticks")?, p99_ns: ns("p99_ticks")? })
    }
}

/// The other process. It ends with this.
struct Echo(Child);

impl Echo {
    fn start(program: &Path, socket: &Path) -> Result<Self> {
        let mut command = Command::new(program);
        command.arg("echo").arg(socket).stdin(Stdio::null()).stdout(Stdio::null());
        Ok(Self(command.spawn().context("starting the other process")?))
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn beside(program: &Path, socket: &Path, rounds: usize) -> Result<Times> {
    let mut command = Command::new(program);
    command.arg("ask").arg(socket).arg(Cid::HOST.to_string()).arg(rounds.to_string());
    let output = command.stdin(Stdio::null()).output().context("starting a process")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "between two processes: {}", said.lines().last().unwrap_or_default());
    Times::parse(&String::from_utf8_lossy(&output.stdout))
}

/// Answers whoever connects, one at a time, busy while there is one.
pub(crate) fn echo(socket: &Path) -> Result<()> {
    let runtime = runtime()?;
    let endpoint = runtime.block_on(attach(socket.to_owned()))?;
    let mut listener = runtime.block_on(endpoint.listen_messages(PORT, ListenOptions::default()))?;
    loop {
        let (connection, _) = runtime.block_on(listener.accept())?;
        // One that broke off is no reason to end.
        if let Err(error) = answer(connection) {
            eprintln!("tombolo-bench-kernels: {error:#}");
        }
    }
}

fn answer(connection: Messages) -> Result<()> {
    let (mut sender, mut receiver) = connection.split();
    let mut message = Vec::with_capacity(BYTES);
    while look(|| receiver.try_recv(&mut message))? {
        ensure!(sender.try_send(&message)?, "no room for one message");
    }
    Ok(())
}

pub(crate) fn ask(socket: &Path, cid: u32, rounds: usize) -> Result<()> {
    let runtime = runtime()?;
    let endpoint = runtime.block_on(attach(socket.to_owned()))?;
    let connection = runtime.block_on(connect(&endpoint, Addr::new(Cid(cid), PORT)))?;
    let (mut sender, mut receiver) = connection.split();
    let mut message: Vec<u8> = (0..BYTES).map(|at| at as u8).collect();
    let mut received = Vec::with_capacity(BYTES);
    let mut stamps = Vec::with_capacity(rounds + WARM_UP + 1);
    stamps.push(ticks());
    for number in 0..(rounds + WARM_UP) as u64 {
        message[..8].copy_from_slice(&number.to_le_bytes());
        ensure!(sender.try_send(&message)?, "no room for one message");
        ensure!(look(|| receiver.try_recv(&mut received))?, "the other side has shut down");
        ensure!(received == message, "what came back is not message {number}");
        stamps.push(ticks());
    }
    let mut took: Vec<_> =
        stamps.windows(2).skip(WARM_UP).map(|pair| pair[1].saturating_sub(pair[0])).collect();
    took.sort_unstable();
    let at = |percent: usize| took.get(took.len() * percent / 100).copied().unwrap_or(0);
    println!("{}", json!({ "p50_ticks": at(50), "p99_ticks": at(99) }));
    Ok(())
}

/// Looks until there is a message (`true`) or there will be none.
#[inline]
fn look(mut look: impl FnMut() -> tombolo_transport::Result<TryRecv>) -> Result<bool> {
    let mut since = None;
    loop {
        for _ in 0..LOOKS_PER_CLOCK {
            match look()? {
                TryRecv::Message => return Ok(true),
                TryRecv::End => return Ok(false),
                TryRecv::Empty => {}
            }
        }
        if since.get_or_insert_with(Instant::now).elapsed() > ANSWER_MAX {
            bail!("nothing came from the other side for {ANSWER_MAX:?}");
        }
    }
}

async fn attach(socket: PathBuf) -> Result<Endpoint> {
    let options = AttachOptions { spin: Duration::from_secs(3600), ..AttachOptions::default() };
    Ok(Endpoint::attach_with(socket, options).await?)
}

/// Once the other side listens.
async fn connect(endpoint: &Endpoint, addr: Addr) -> Result<Messages> {
    let deadline = Instant::now() + THERE_MAX;
    loop {
        match endpoint.connect_messages(addr).await {
            Err(error) if Instant::now() > deadline => return Err(error).context("connecting to the echo"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            Ok(connection) => return Ok(connection),
        }
    }
}

/// For what is not timed, on a thread of its own.
fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?)
}
