//! The client's measurements, every reply checked.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tombolo_rpc::{Blob, BusyClient, Link, LinkConfig, Router};
use tombolo_transport::{ConnectOptions, Endpoint, Messages, Sizes, TryRecv};

use super::serve::{pattern, send_busy};
use super::timing::{self, RoundTrips};
use super::{KvBusyClient, KvClient, expected_value};

/// How long each thing is measured.
const DURATION: Duration = Duration::from_secs(1);

/// Calls under way at once where calls per second are counted.
const CALLERS: u32 = 32;

/// Keys that the client writes and reads.
const KEYS: u32 = 64;

/// Looks at an empty ring before a busy-polling client gives up: seconds, and only a dead peer takes so long.
const SPINS_MAX: u64 = 2_000_000_000;

/// Connects to the service `name` (such as `db/kv`).
///
/// # Errors
/// What the transport or the link says; refusals by policy among them.
pub async fn connect(endpoint: &Endpoint, name: &str) -> Result<Link> {
    let addr = endpoint.resolve(name).await.with_context(|| format!("could not find {name}"))?;
    let messages =
        endpoint.connect_messages(addr).await.with_context(|| format!("could not connect to {name}"))?;
    Link::connect(messages, LinkConfig::new("kv-client"), Router::new())
        .await
        .context("could not greet the service")
}

/// Measures everything about the service `name`.
///
/// # Errors
/// The first thing that does not work. Wrong replies are counted instead.
pub async fn measure(broker: &Path, name: &str) -> Result<Value> {
    let endpoint = Endpoint::attach(broker).await.context("could not attach to the fabric")?;
    let peer = endpoint.resolve(name).await?;
    let checked = Arc::new(Checked::default());

    let link = connect(&endpoint, name).await?;
    let kv = KvClient::new(link.clone());
    fill(&kv, &checked).await?;
    let tokio_rtt = tokio_round_trips(&kv, &checked).await?;
    let calls_per_s = calls_per_second(&kv, &checked).await?;
    link.close("measured");

    let rpc_rtt = busy_round_trips(&endpoint, &format!("{name}-busy"), &checked).await?;
    let message_rtt = message_round_trips(&endpoint, &format!("{name}-echo"), &checked).await?;
    let stream_gb_per_s = stream(&endpoint, &format!("{name}-bytes"), &checked).await?;
    Ok(json!({
        "peer": peer.to_string(),
        "replies": checked.right.load(Ordering::Relaxed),
        "wrong_replies": checked.wrong.load(Ordering::Relaxed),
        "message_rtt_ns_p50": message_rtt.p50_ns,
        "message_rtt_ns_p99": message_rtt.p99_ns,
        "rpc_rtt_ns_p50": rpc_rtt.p50_ns,
        "rpc_rtt_ns_p99": rpc_rtt.p99_ns,
        "tokio_rtt_ns_p50": tokio_rtt.p50_ns,
        "tokio_rtt_ns_p99": tokio_rtt.p99_ns,
        "rpc_calls_per_s": calls_per_s,
        "stream_gb_per_s": stream_gb_per_s,
    }))
}

/// Replies by whether they were what they had to be.
#[derive(Debug, Default)]
pub(super) struct Checked {
    right: AtomicU64,
    wrong: AtomicU64,
}

impl Checked {
    pub(super) fn check(&self, right: bool) {
        if right { &self.right } else { &self.wrong }.fetch_add(1, Ordering::Relaxed);
    }
}

pub(super) fn key(key: u32) -> String {
    format!("key-{key}")
}

async fn fill(kv: &KvClient, checked: &Checked) -> Result<()> {
    for index in 0..KEYS {
        kv.write(key(index), Blob::from(expected_value(index, 0))).await.context("a write failed")?;
        let read = kv.read(key(index)).await.context("a read failed")?;
        checked.check(read.is_some_and(|value| value.0 == expected_value(index, 0)));
    }
    Ok(())
}

/// One call after the other, each awaited.
async fn tokio_round_trips(kv: &KvClient, checked: &Checked) -> Result<RoundTrips> {
    // `timing` is for code that does not wait; here the clock is read less than once per call.
    let ticks = tombolo_transport::mem::ticks;
    let mut taken = hdrhistogram::Histogram::<u64>::new(3)?;
    let expected = expected_value(0, 0);
    let (start, first) = (Instant::now(), ticks());
    let (mut before, mut made) = (first, 0);
    while start.elapsed() < DURATION {
        before = ticks();
        for _ in 0..64 {
            let read = kv.read(key(0)).await.context("a read failed")?;
            let after = ticks();
            taken.record(after.saturating_sub(before))?;
            checked.check(read.is_some_and(|value| value.0 == expected));
            before = ticks();
        }
        made += 64;
    }
    let ns_per_tick = start.elapsed().as_nanos() as f64 / before.saturating_sub(first).max(1) as f64;
    let ns = |quantile: f64| (taken.value_at_quantile(quantile) as f64 * ns_per_tick).round() as u64;
    Ok(RoundTrips { made, p50_ns: ns(0.5), p99_ns: ns(0.99) })
}

/// Typed calls, this thread and the service's spinning.
async fn busy_round_trips(endpoint: &Endpoint, name: &str, checked: &Checked) -> Result<RoundTrips> {
    let addr = endpoint.resolve(name).await?;
    let messages = endpoint.connect_messages(addr).await?;
    // Blocks the runtime's thread: nothing else of this process needs it meanwhile.
    let mut client = BusyClient::connect(messages, LinkConfig::new("kv-client"))?;
    let mut kv = KvBusyClient::new(&mut client);
    let expected = expected_value(0, 0);
    timing::measure(DURATION, || {
        let read = kv.read(key(0)).context("a read failed")?;
        checked.check(read.is_some_and(|value| value.0 == expected));
        Ok(())
    })
}

/// Many callers on one connection.
async fn calls_per_second(kv: &KvClient, checked: &Arc<Checked>) -> Result<f64> {
    let start = Instant::now();
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let (kv, checked) = (kv.clone(), Arc::clone(checked));
            tokio::spawn(async move {
                let (index, mut calls) = (caller % KEYS, 0_u64);
                let expected = expected_value(index, 0);
                while calls % 64 != 0 || start.elapsed() < DURATION {
                    let read = kv.read(key(index)).await.context("a read failed")?;
                    checked.check(read.is_some_and(|value| value.0 == expected));
                    calls += 1;
                }
                anyhow::Ok(calls)
            })
        })
        .collect();
    let mut calls = 0;
    for caller in callers {
        calls += caller.await??;
    }
    Ok((calls as f64 / start.elapsed().as_secs_f64()).round())
}

/// 56-byte messages there and back, this thread and the service's spinning.
async fn message_round_trips(endpoint: &Endpoint, name: &str, checked: &Checked) -> Result<RoundTrips> {
    let addr = endpoint.resolve(name).await?;
    let mut messages = endpoint.connect_messages(addr).await?;
    let mut message = vec![0x5a; 56];
    let mut answer = Vec::new();
    let mut number = 0_u64;
    timing::measure(DURATION, || {
        number += 1;
        message[..8].copy_from_slice(&number.to_le_bytes());
        ensure!(send_busy(&mut messages, &message), "the connection is gone");
        receive_busy(&mut messages, &mut answer)?;
        checked.check(answer == message);
        Ok(())
    })
}

fn receive_busy(messages: &mut Messages, answer: &mut Vec<u8>) -> Result<()> {
    for _ in 0..SPINS_MAX {
        match messages.try_recv(answer)? {
            TryRecv::Message => return Ok(()),
            TryRecv::Empty => std::hint::spin_loop(),
            TryRecv::End => bail!("the service left"),
        }
    }
    bail!("no answer came")
}

/// Reads the endless stream, and checks it block by block.
async fn stream(endpoint: &Endpoint, name: &str, checked: &Checked) -> Result<f64> {
    let addr = endpoint.resolve(name).await?;
    let options = ConnectOptions { sizes: Sizes::default(), ..ConnectOptions::default() };
    let mut stream = endpoint.connect_with(addr, &options).await?;
    let expected = pattern();
    let mut block = vec![0; expected.len()];
    for _ in 0..16 {
        stream.read_exact(&mut block).await?;
        checked.check(block == expected);
    }
    let start = Instant::now();
    let mut bytes = 0_u64;
    while start.elapsed() < DURATION {
        stream.read_exact(&mut block).await?;
        bytes += block.len() as u64;
    }
    let gb_per_s = bytes as f64 / 1e9 / start.elapsed().as_secs_f64();
    checked.check(block == expected);
    Ok((gb_per_s * 1000.0).round() / 1000.0)
}
