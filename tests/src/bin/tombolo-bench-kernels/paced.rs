//! The paced link over AF_VSOCK within one kernel, against AF_VSOCK alone there: bytes in one direction, each of them compared, in turns.
//!
//! A host's kernel seldom has the loopback of AF_VSOCK, so one is booted that has.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tombolo_transport::paced::{PacedConfig, PacedEndpoint, SocketKind, SocketsFrom, VsockDial};
use tombolo_transport::vsock::{VsockConfig, VsockEndpoint};
use tombolo_transport::{Addr, Cid, Endpoint, ListenOptions, Port};

use crate::median;

/// Kernel modules for AF_VSOCK within one kernel, in load order.
const MODULES: [&str; 3] = ["vsock", "vmw_vsock_virtio_transport_common", "vsock_loopback"];
/// Before each figure on the console, among what the kernel itself says.
const MARK: &str = "figure: ";
const TURNS: usize = 7;
const WRITE_BYTES: usize = 64 << 10;
/// What a frame carries at most where sockets are Multikernel's: sockets written in such pieces show what that costs.
const FRAME_BYTES: usize = 3980;
/// What the kernel keeps for each socket of the link in each direction, in place of 256 KiB: AF_VSOCK alone is measured with that, too.
const BUFFER_BYTES: u32 = 1 << 20;
/// Of the pattern that is sent again and again: prime, so that a piece that is lost or repeated is noticed wherever it is cut.
const PATTERN_BYTES: usize = 65_521;
/// A transfer that takes longer hangs.
const TRANSFER_MAX: Duration = Duration::from_secs(60);
const RAW_PORT: Port = Port(7100);
const LINK_PORT: Port = Port(710);
const PACED_PORT: Port = Port(5000);

/// Boots the kernel and passes its figures on.
pub(crate) fn measure(quick: bool) -> Result<()> {
    let image = std::env::var_os("TOMBOLO_UML_KERNEL").context("there is no user-mode kernel")?;
    let this = std::env::current_exe()?;
    let mut boot = Command::new(this.with_file_name("tombolo-boot"));
    boot.arg("--image").arg(image).arg("--init").arg(&this);
    boot.args(MODULES.iter().flat_map(|module| ["--module", module]));
    let mib = if quick { "4" } else { "32" };
    boot.args(["--", "paced-vsock", "guest", mib].iter().flat_map(|word| ["--arg", word]));
    let output = boot.stdin(Stdio::null()).output().context("could not run tombolo-boot")?;
    let console = String::from_utf8_lossy(&output.stdout);
    // The console's line ends have a carriage return.
    let figures = console.lines().filter_map(|line| line.trim().split_once(MARK));
    let mut told = 0;
    for (_, figure) in figures {
        let figure: Value =
            serde_json::from_str(figure).with_context(|| format!("not understood: {figure}"))?;
        println!("{figure}");
        told += 1;
    }
    let last: Vec<_> = console.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = last[last.len().saturating_sub(3)..].join(" | ");
    ensure!(output.status.success() && told > 0, "the kernel told no figures; its last words: {last}");
    Ok(())
}

/// Within the kernel.
pub(crate) fn inside(mib: u64) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(compare(mib << 20))
}

async fn compare(bytes: u64) -> Result<()> {
    let loopback = VsockConfig { local_cid: Some(Cid::LOCAL), ..VsockConfig::default() };
    let large = VsockEndpoint::new(VsockConfig { buffer_bytes: Some(BUFFER_BYTES), ..loopback.clone() })?;
    let vsock = VsockEndpoint::new(loopback)?;
    // What an operator says of a socket with flow control.
    let config = PacedConfig { sockets: SocketKind::Sound, ..PacedConfig::default() };
    // Every socket of a loopback comes from that CID, so that is the child's.
    let parent = PacedEndpoint::new(Cid(0), config)?;
    parent.serve(large.listen(LINK_PORT, 16)?, SocketsFrom::PrivilegedPorts);
    parent.expect(Cid::LOCAL)?;
    let child = PacedEndpoint::new(Cid::LOCAL, config)?;
    child.dial(Cid(0), VsockDial::new(large.clone(), Addr::new(Cid::LOCAL, LINK_PORT)))?;
    let (parent, child) = (Endpoint::paced(parent), Endpoint::paced(child));
    let [mut raw, mut raw_in_frames, mut raw_large, mut paced] = [const { Vec::new() }; 4];
    for _ in 0..=TURNS {
        raw.push(over_sockets(&vsock, bytes, WRITE_BYTES).await.context("AF_VSOCK alone")?);
        raw_in_frames
            .push(over_sockets(&vsock, bytes, FRAME_BYTES).await.context("AF_VSOCK alone, in small writes")?);
        raw_large
            .push(over_sockets(&large, bytes, WRITE_BYTES).await.context("AF_VSOCK alone, large buffers")?);
        paced.push(over_the_link(&child, &parent, bytes).await.context("the paced link")?);
    }
    // The first turn warms up.
    for figures in [&mut raw, &mut raw_in_frames, &mut raw_large, &mut paced] {
        figures.remove(0);
    }
    let by = |floor: &[f64]| median(floor.iter().zip(&paced).map(|(floor, paced)| paced / floor).collect());
    let (ratio, ratio_large) = (by(&raw), by(&raw_large));
    let note = format!(
        "{bytes} bytes in one direction, each compared; the middle of {TURNS} turns, in a user-mode kernel"
    );
    for (name, value, unit) in [
        ("paced-vsock/link", median(paced), "MB/s"),
        ("paced-vsock/raw", median(raw), "MB/s"),
        ("paced-vsock/raw-in-frames", median(raw_in_frames), "MB/s"),
        ("paced-vsock/raw-in-large-buffers", median(raw_large), "MB/s"),
        ("paced-vsock/ratio", ratio, "x"),
        ("paced-vsock/ratio-in-large-buffers", ratio_large, "x"),
    ] {
        println!("{MARK}{}", json!({ "name": name, "value": value, "unit": unit, "note": note }));
    }
    Ok(())
}

async fn over_sockets(vsock: &VsockEndpoint, bytes: u64, write_bytes: usize) -> Result<f64> {
    let listener = vsock.listen(RAW_PORT, 1)?;
    let (near, far) =
        tokio::try_join!(vsock.connect(Addr::new(Cid::LOCAL, RAW_PORT), TRANSFER_MAX), listener.accept())?;
    transfer(near, far, bytes, write_bytes).await
}

async fn over_the_link(child: &Endpoint, parent: &Endpoint, bytes: u64) -> Result<f64> {
    let mut listener = parent.listen(PACED_PORT, ListenOptions::default()).await?;
    let (near, far) = tokio::join!(child.connect(Addr::new(Cid(0), PACED_PORT)), listener.accept());
    transfer(near?, far?.0, bytes, WRITE_BYTES).await
}

/// Sends so many bytes and compares each. Returns how many went through, in MB/s.
async fn transfer(
    mut near: impl AsyncWrite + Unpin + Send + 'static,
    mut far: impl AsyncRead + Unpin,
    bytes: u64,
    write_bytes: usize,
) -> Result<f64> {
    // Twice, so that a piece may begin anywhere.
    let pattern: Vec<u8> = (0..2 * PATTERN_BYTES + WRITE_BYTES).map(|at| noise(at % PATTERN_BYTES)).collect();
    let outgoing = pattern.clone();
    let began = Instant::now();
    let writing = tokio::spawn(async move {
        let mut sent = 0;
        while sent < bytes {
            let len = (bytes - sent).min(write_bytes as u64) as usize;
            let from = (sent % PATTERN_BYTES as u64) as usize;
            near.write_all(&outgoing[from..from + len]).await?;
            sent += len as u64;
        }
        near.shutdown().await?;
        std::io::Result::Ok(near)
    });
    let reading = async {
        let (mut received, mut piece) = (0_u64, vec![0; WRITE_BYTES]);
        loop {
            let len = far.read(&mut piece).await?;
            if len == 0 {
                break;
            }
            let from = (received % PATTERN_BYTES as u64) as usize;
            if piece[..len] != pattern[from..from + len] {
                bail!("of the {len} bytes from byte {received} on, some are not those that were sent");
            }
            received += len as u64;
        }
        ensure!(received == bytes, "{received} of {bytes} bytes came through");
        Ok(began.elapsed())
    };
    let took = tokio::time::timeout(TRANSFER_MAX, reading).await.context("it hangs")??;
    drop(writing.await??);
    Ok(bytes as f64 / took.as_secs_f64() / 1e6)
}

/// A byte that says little of its neighbours.
fn noise(at: usize) -> u8 {
    ((at as u32).wrapping_mul(0x9E37_79B1) >> 13) as u8
}
