//! Runs the transport's conformance suite: one line per behaviour and direction, then `N passed, M failed, K skipped`. Exit
//! code 0 if some passed and none failed.
//!
//! As PID 1 it is the whole user space of a kernel that exists for this run: it prepares the kernel, does what the words on
//! its command line say (by default the suite on AF_VSOCK over its loopback, and on a paced link over that), and powers the kernel off.

mod device;
mod kernels;
mod relay;
mod stall;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tombolo_tests::guest;
use tombolo_transport::conformance::backends::{
    Between, Hybrid, Memory, Paced, PacedVsockLoopback, Shm, ShmKernels, VsockLoopback,
};
use tombolo_transport::conformance::relayed::{Relayed, RelayedKernels};
use tombolo_transport::conformance::{self, Backend, Counts, RemoteParty};
use tombolo_transport::paced::SocketKind;
use tombolo_transport::vsock::VsockConfig;
use tombolo_transport::{Cid, Endpoint};

const USAGE: &str = "\
usage: tombolo-conformance WORDS [--filter BEHAVIOUR]
  here BACKEND            both sides in this process: memory, hybrid, shm, paced, paced-sound, paced-faulty, relayed,
                          vsock-loopback or paced-vsock-loopback
  kernels [qemu]          shared memory between two real kernels, and between one and this one (boots them: user-mode ones,
                          or those of emulated machines)
  device PROGRAM [qemu]   hybrid here against AF_VSOCK in a real kernel (boots it: a user-mode one, or that of an emulated
                          machine), through PROGRAM: vhost-device-vsock
and within those kernels:
  peer shm SOCKET         work an endpoint of the broker at SOCKET for drivers elsewhere
  peer vsock              the same, an endpoint of AF_VSOCK
  between shm SOCKET CID  drive the suite through the broker at SOCKET, the other side being the peer in kernel CID
  deaf SOCKET             accept, and read nothing until asked to
  flood SOCKET CID        write to the deaf one in kernel CID until it stalls, then on; print what was seen as JSON";

/// How long a peer program in a kernel that boots may take to answer.
const PEER_MAX: Duration = Duration::from_secs(90);

fn main() -> ExitCode {
    let is_init = std::process::id() == 1;
    let words = if is_init { guest::words() } else { std::env::args().skip(1).collect() };
    let result = if is_init { guest::prepare_kernel() } else { Ok(()) };
    let result = result.and_then(|()| run(words, is_init));
    if let Err(error) = &result {
        eprintln!("tombolo-conformance: {error:#}");
    }
    if is_init {
        guest::power_off();
    }
    ExitCode::from(u8::from(result.is_err()))
}

fn run(mut words: Vec<String>, is_init: bool) -> Result<()> {
    let filter = match words.iter().position(|word| word == "--filter") {
        Some(at) => words.drain(at..).nth(1).context(USAGE)?,
        None => String::new(),
    };
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        match words[..] {
            [] if is_init => {
                // Both, whatever comes of the first.
                let vsock = suite(VsockLoopback, &filter).await;
                paced_vsock_loopback(&filter).await.and(vsock)
            }
            ["here", backend] => here(backend, &filter).await,
            ["kernels"] => kernels::run("uml", &filter).await,
            ["kernels", "qemu"] => kernels::run("qemu", &filter).await,
            ["device", program] => device::run(program.as_ref(), &filter).await,
            ["device", program, "qemu"] => device::run_with_machine(program.as_ref(), &filter).await,
            ["peer", "shm", socket] => peer(Endpoint::attach(socket).await?).await,
            ["peer", "vsock"] => peer(Endpoint::vsock(VsockConfig::default())?).await,
            ["between", "shm", socket, cid] => between_shm(socket.into(), Cid(cid.parse()?), &filter).await,
            ["deaf", socket] => stall::deaf(socket.as_ref()).await,
            ["flood", socket, cid] => stall::flood(socket.as_ref(), Cid(cid.parse()?)).await,
            _ => bail!("`{}` is not understood\n{USAGE}", words.join(" ")),
        }
    })
}

async fn here(backend: &str, filter: &str) -> Result<()> {
    match backend {
        "memory" => suite(Memory, filter).await,
        "hybrid" => {
            let dir = tempfile::tempdir()?;
            suite(Hybrid::in_dir(dir.path()), filter).await
        }
        "shm" => {
            for kernels in [ShmKernels::Same, ShmKernels::PrimaryAndSpawned, ShmKernels::TwoSpawned] {
                println!("shm, kernels: {kernels:?}");
                let dir = tempfile::tempdir_in("/dev/shm")?;
                suite(Shm::in_dir(dir.path(), kernels), filter).await?;
            }
            Ok(())
        }
        "paced" => suite(Paced::over_sound_sockets(SocketKind::Multikernel), filter).await,
        "paced-sound" => suite(Paced::over_sound_sockets(SocketKind::Sound), filter).await,
        "paced-faulty" => suite(Paced::over_faulty_sockets(SocketKind::Multikernel), filter).await,
        "relayed" => {
            for kernels in [
                RelayedKernels::Same,
                RelayedKernels::PrimaryAndApart,
                RelayedKernels::TwoApart,
                RelayedKernels::MemberAndApart,
            ] {
                println!("relayed, kernels: {kernels:?}");
                let dir = tempfile::tempdir_in("/dev/shm")?;
                suite(Relayed::in_dir(dir.path(), kernels), filter).await?;
            }
            Ok(())
        }
        "vsock-loopback" => suite(VsockLoopback, filter).await,
        "paced-vsock-loopback" => paced_vsock_loopback(filter).await,
        other => bail!("no backend is called `{other}`\n{USAGE}"),
    }
}

/// By links that know that it has a flow control, and by links that take it for one that has none.
async fn paced_vsock_loopback(filter: &str) -> Result<()> {
    let sound = suite(PacedVsockLoopback::new(SocketKind::Sound), filter).await;
    suite(PacedVsockLoopback::new(SocketKind::Multikernel), filter).await.and(sound)
}

async fn between_shm(socket: PathBuf, peer: Cid, filter: &str) -> Result<()> {
    wait_for_peer(&Endpoint::attach(&socket).await?, peer).await?;
    suite(Between::shm(socket, peer), filter).await
}

async fn peer(endpoint: Endpoint) -> Result<()> {
    let cid = endpoint.local_cid();
    let served = conformance::serve_peer(endpoint, || println!("peer of the suite: cid {cid}")).await;
    served.map_err(|failure| anyhow::anyhow!("the peer program ends: {failure}"))
}

async fn wait_for_peer(through: &Endpoint, peer: Cid) -> Result<()> {
    let deadline = tokio::time::Instant::now() + PEER_MAX;
    loop {
        let Err(failure) = RemoteParty::connect_to(through, peer).await else { return Ok(()) };
        ensure!(
            tokio::time::Instant::now() < deadline,
            "the peer in kernel {peer} does not answer: {failure}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Runs it, prints what comes of it, and fails unless all is well.
async fn suite(backend: impl Backend, filter: &str) -> Result<()> {
    let verdicts = conformance::run(&backend, filter, |verdict| println!("{verdict}")).await;
    let counts = Counts::of(&verdicts);
    println!("{counts}");
    ensure!(counts.failed == 0 && counts.passed > 0, "the suite did not pass: {counts}");
    Ok(())
}
