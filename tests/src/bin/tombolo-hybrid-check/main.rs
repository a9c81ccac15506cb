//! The hybrid backend against a monitor that is not ours: vhost-device-vsock, with a user-mode Linux kernel behind it.
//!
//! ```text
//! vhost-device-vsock --vm guest-cid=3,socket=vh.sock,uds-path=vm.vsock
//! tombolo-hybrid-check relay front.sock vh.sock
//! linux.uml initrd=... rdinit=/init virtio_uml.device=front.sock:19 ...     (/init: this binary; /modules: vsock,
//!                     vmw_vsock_virtio_transport_common, vmw_vsock_virtio_transport, so named that they sort in this order)
//! tombolo-hybrid-check host vm.vsock
//! ```
//!
//! `host` prints one line per check and `N passed, M failed`, and ends the guest. Not part of the tests that run by
//! themselves, because vhost-device-vsock is not on every machine. What vhost-device-vsock 0.3 does not do is not
//! checked: it takes a half-close for a close and drops what is still on its way back.

mod relay;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::mount::MountFlags;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tombolo_transport::hybrid::HybridConfig;
use tombolo_transport::vsock::VsockConfig;
use tombolo_transport::{Addr, Cid, Endpoint, ListenOptions, Port, Stream};

const GUEST: Cid = Cid(3);
/// The guest echoes bytes here until half-close.
const ECHO: Port = Port(5000);
/// The guest echoes messages here.
const ECHO_MESSAGES: Port = Port(5001);
/// A connection here makes the guest call the host's [`HOST`].
const CALL_BACK: Port = Port(5002);
/// A connection here ends the guest.
const END: Port = Port(5003);
/// Where the host listens.
const HOST: Port = Port(6000);
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let init = std::process::id() == 1;
    let words: Vec<String> = std::env::args().skip(1).collect();
    let result = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        _ if init => prepare_kernel().and_then(|()| runtime()?.block_on(guest())),
        ["guest"] => runtime().and_then(|runtime| runtime.block_on(guest())),
        ["relay", front, back] => relay::relay(Path::new(front), Path::new(back)),
        ["host", path] => runtime().and_then(|runtime| runtime.block_on(host(Path::new(path)))),
        _ => Err(anyhow::anyhow!("usage: tombolo-hybrid-check host PATH | guest | relay FRONT BACK")),
    };
    if let Err(error) = &result {
        eprintln!("tombolo-hybrid-check: {error:#}");
    }
    if init {
        let error = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
        eprintln!("tombolo-hybrid-check: power-off failed: {error:?}");
    }
    ExitCode::from(u8::from(result.is_err()))
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

async fn guest() -> anyhow::Result<()> {
    let endpoint = Endpoint::vsock(VsockConfig::default())?;
    println!("guest: cid {}", endpoint.local_cid());
    let options = ListenOptions::default;
    let mut echo = endpoint.listen(ECHO, options()).await?;
    let mut messages = endpoint.listen_messages(ECHO_MESSAGES, options()).await?;
    let mut call_back = endpoint.listen(CALL_BACK, options()).await?;
    let mut end = endpoint.listen(END, options()).await?;
    loop {
        tokio::select! {
            accepted = echo.accept() => { tokio::spawn(echo_bytes(accepted?.0)); }
            accepted = messages.accept() => {
                let mut messages = accepted?.0;
                tokio::spawn(async move {
                    while let Ok(Some(message)) = messages.recv().await {
                        messages.send(&message).await?;
                    }
                    messages.shutdown().await
                });
            }
            accepted = call_back.accept() => {
                let (mut asked, _) = accepted?;
                let answer = match endpoint.connect(Addr::new(Cid::HOST, HOST)).await {
                    Ok(stream) => { tokio::spawn(echo_bytes(stream)); 1 }
                    Err(error) => { println!("guest: {error}"); 0 }
                };
                asked.write_u8(answer).await?;
            }
            _ = end.accept() => return Ok(()),
        }
    }
}

async fn echo_bytes(stream: Stream) -> std::io::Result<()> {
    let (mut read, mut write) = stream.split();
    tokio::io::copy(&mut read, &mut write).await?;
    write.shutdown().await
}

async fn host(path: &Path) -> anyhow::Result<()> {
    let endpoint = Endpoint::hybrid(HybridConfig::host(path, GUEST))?;
    wait_for_guest(&endpoint).await?;
    let mut failed = 0;
    let mut judge = |name: &str, outcome: anyhow::Result<()>| match outcome {
        Ok(()) => println!("ok     {name}"),
        Err(error) => {
            failed += 1;
            println!("FAILED {name}: {error:#}");
        }
    };
    judge("port_without_listener_refuses", within(refused(&endpoint)).await);
    judge("bytes_come_back", within(bytes(&endpoint)).await);
    judge("messages_keep_their_boundaries", within(messages(&endpoint)).await);
    judge("guest_calls_the_host", within(called_back(&endpoint)).await);
    judge("many_connections", within(many(&endpoint)).await);
    // The guest may be gone before it has answered.
    let _ = endpoint.connect(Addr::new(GUEST, END)).await;
    println!("{} passed, {failed} failed", 5 - failed);
    ensure!(failed == 0, "{failed} checks failed");
    Ok(())
}

async fn within(check: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::time::timeout(PATIENCE, check).await.context("silence")?
}

async fn wait_for_guest(endpoint: &Endpoint) -> anyhow::Result<()> {
    let mut last = String::new();
    for _ in 0..200 {
        match endpoint.connect(Addr::new(GUEST, ECHO)).await {
            Ok(_) => return Ok(()),
            Err(error) => last = error.to_string(),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bail!("the guest does not come up: {last}")
}

async fn refused(endpoint: &Endpoint) -> anyhow::Result<()> {
    match endpoint.connect(Addr::new(GUEST, Port(54_321))).await {
        Ok(_) => bail!("a connection was made"),
        Err(error) => {
            ensure!(error.kind() == std::io::ErrorKind::ConnectionRefused, "failed as {error}");
            Ok(())
        }
    }
}

async fn bytes(endpoint: &Endpoint) -> anyhow::Result<()> {
    let (mut read, mut write) = endpoint.connect(Addr::new(GUEST, ECHO)).await?.split();
    let sent = pattern(1_500_000);
    let mut back = vec![0; sent.len()];
    let (written, got) = tokio::join!(
        async {
            write.write_all(&sent).await?;
            write.flush().await
        },
        read.read_exact(&mut back),
    );
    written.context("writing")?;
    got.context("reading")?;
    ensure!(back == sent, "other bytes came back");
    Ok(())
}

async fn messages(endpoint: &Endpoint) -> anyhow::Result<()> {
    let mut messages = endpoint.connect_messages(Addr::new(GUEST, ECHO_MESSAGES)).await?;
    for len in [0, 1, 56, 57, 4096, 70_000, 300_000] {
        let sent = pattern(len);
        messages.send(&sent).await?;
        let back = messages.recv().await?.context("the end came")?;
        ensure!(back == sent, "a message of {len} bytes came back as another of {}", back.len());
    }
    Ok(())
}

async fn called_back(endpoint: &Endpoint) -> anyhow::Result<()> {
    let mut listener = endpoint.listen(HOST, ListenOptions::default()).await?;
    let mut asked = endpoint.connect(Addr::new(GUEST, CALL_BACK)).await?;
    let (mut called, from) = listener.accept().await?;
    ensure!(asked.read_u8().await? == 1, "the guest could not call");
    ensure!(from.cid == GUEST, "called by {from}");
    called.write_all(b"who is there").await?;
    called.flush().await?;
    let mut back = [0; 12];
    called.read_exact(&mut back).await?;
    ensure!(&back == b"who is there", "{} came back", back.escape_ascii());
    Ok(())
}

async fn many(endpoint: &Endpoint) -> anyhow::Result<()> {
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..16_u32 {
        let endpoint = endpoint.clone();
        tasks.spawn(async move {
            let mut stream = endpoint.connect(Addr::new(GUEST, ECHO)).await?;
            for _ in 0..20 {
                stream.write_u32(number).await?;
                stream.flush().await?;
                ensure!(stream.read_u32().await? == number, "connections are mixed up");
            }
            Ok(())
        });
    }
    while let Some(result) = tasks.join_next().await {
        result??;
    }
    Ok(())
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect()
}

fn prepare_kernel() -> anyhow::Result<()> {
    for (kind, target) in [("devtmpfs", "/dev"), ("proc", "/proc")] {
        std::fs::create_dir_all(target)?;
        rustix::mount::mount(kind, target, kind, MountFlags::empty(), None)
            .with_context(|| format!("mounting {kind} on {target}"))?;
    }
    let mut modules: Vec<_> = std::fs::read_dir("/modules")?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    modules.sort();
    for path in modules {
        let file = std::fs::File::open(&path)?;
        rustix::system::finit_module(&file, c"", 0).with_context(|| format!("loading {}", path.display()))?;
    }
    Ok(())
}
