//! A peer that never reads, and a sender that finds out: what it can get rid of is bounded, its memory does not grow, and
//! nothing is lost when the peer reads after all.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tombolo_transport::{Addr, Cid, Endpoint, ListenOptions, Port};

const DEAF_PORT: Port = Port(7001);
/// A write that takes longer than this has stalled.
const STALL: Duration = Duration::from_secs(2);
/// What goes out after the stall, in bytes.
const AFTER_BYTES: u64 = 1 << 20;
const BLOCK_BYTES: usize = 4096;

/// Accepts, and reads only once somebody connects a second time; then answers there how many bytes came.
pub(crate) async fn deaf(socket: &Path) -> Result<()> {
    let endpoint = Endpoint::attach(socket).await?;
    let mut listener = endpoint.listen(DEAF_PORT, ListenOptions::default()).await?;
    println!("deaf");
    loop {
        let (mut unread, _) = listener.accept().await?;
        let (mut asked, _) = listener.accept().await?;
        let (mut block, mut bytes) = (vec![0; BLOCK_BYTES], 0);
        loop {
            let read = unread.read(&mut block).await?;
            if read == 0 {
                break;
            }
            for byte in &block[..read] {
                ensure!(*byte == expected(bytes), "byte {bytes} is {byte}, not {}", expected(bytes));
                bytes += 1;
            }
        }
        asked.write_u64_le(bytes).await?;
        asked.shutdown().await?;
    }
}

/// Writes to the deaf one of kernel `peer` until it stalls, and on once that reads. Prints what it saw as JSON.
pub(crate) async fn flood(socket: &Path, peer: Cid) -> Result<()> {
    let endpoint = Endpoint::attach(socket).await?;
    let addr = Addr::new(peer, DEAF_PORT);
    let mut stream = endpoint.connect(addr).await?;
    let before = anonymous_kib()?;
    let mut sent = 0;
    while let Ok(written) = tokio::time::timeout(STALL, stream.write(&block(sent))).await {
        sent += written.context("writing to a peer that does not read")? as u64;
    }
    let (stalled_at, grown_kib) = (sent, anonymous_kib()?.saturating_sub(before));
    let mut asking = endpoint.connect(addr).await?;
    while sent < stalled_at + AFTER_BYTES {
        sent += stream.write(&block(sent)).await? as u64;
    }
    stream.shutdown().await?;
    let received = asking.read_u64_le().await?;
    let seen = serde_json::json!({
        "stalled_at_bytes": stalled_at,
        "grown_kib": grown_kib,
        "sent_bytes": sent,
        "received_bytes": received,
    });
    println!("{seen}");
    Ok(())
}

fn expected(at: u64) -> u8 {
    (at % 251) as u8
}

fn block(at: u64) -> Vec<u8> {
    (at..at + BLOCK_BYTES as u64).map(expected).collect()
}

/// Memory of this process that is its alone.
fn anonymous_kib() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).context("the kernel tells no RssAnon")?;
    Ok(kib.parse()?)
}
