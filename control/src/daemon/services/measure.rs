//! How fast the link to an agent is, beside what this host needs for a wake-up and for a copy.

use std::hint::black_box;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use tombolo_agent::api::agent::AgentClient;
use tombolo_agent::api::measure::{Give, MeasureClient};
use tombolo_rpc::{Blob, Link};

use super::Session;
use super::relay::told;
use crate::api::error::Refusal;
use crate::api::measure::{LinkFigures, LinkFloor, RoundTrips};
use crate::api::{ControlError, Role};

/// The shortest and the longest time to measure for, in ms.
const FOR_MS: std::ops::RangeInclusive<u32> = 200..=30_000;
/// Bytes of each item.
const CHUNK_BYTES: usize = 64 * 1024;
/// Long enough for both ends to have stopped looking (`AttachOptions::spin` is 2 ms at most by itself).
const PAUSE: Duration = Duration::from_millis(5);
/// Wake-ups that make the floor, and the pause before each.
const WAKES: usize = 200;
const WAKE_PAUSE: Duration = Duration::from_micros(300);
/// For how long is copied.
const COPY_TIME: Duration = Duration::from_millis(20);
/// Longest round trip that is told apart, in ns: a minute.
const LONGEST_NS: u64 = 60_000_000_000;

impl Session {
    /// A quarter of the time for each: calls in turn, calls with pauses, bytes there, bytes back.
    pub(super) async fn measure_link(&self, name: &str, for_ms: u32) -> Result<LinkFigures, ControlError> {
        self.require(Role::Operator, "measure a link")?;
        let failed = |kind, reason: String| ControlError::Inside { name: name.to_owned(), kind, reason };
        if !FOR_MS.contains(&for_ms) {
            let reason = format!("a link is measured for {} to {} ms", FOR_MS.start(), FOR_MS.end());
            return Err(failed(Refusal::Invalid, reason));
        }
        let link = self.agent(name).await?;
        let floor = tokio::task::spawn_blocking(floor).await;
        let floor = floor.map_err(|error| failed(Refusal::Failed, error.to_string()))?;
        let time = Duration::from_millis(for_ms.into()) / 4;
        Ok(LinkFigures {
            in_turn: round_trips(&link, name, time, Duration::ZERO).await?,
            asleep: round_trips(&link, name, time, PAUSE).await?,
            to_instance_bytes_per_s: bytes_there(&link, name, time).await?,
            from_instance_bytes_per_s: bytes_back(&link, name, time).await?,
            floor,
        })
    }
}

async fn round_trips(
    link: &Link,
    name: &str,
    time: Duration,
    pause: Duration,
) -> Result<RoundTrips, ControlError> {
    let agent = AgentClient::new(link.clone());
    let mut histogram = Histogram::<u64>::new_with_bounds(1, LONGEST_NS, 3).map_err(|error| {
        ControlError::Inside { name: name.to_owned(), kind: Refusal::Failed, reason: error.to_string() }
    })?;
    let started = Instant::now();
    while histogram.is_empty() || started.elapsed() < time {
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let sent = Instant::now();
        agent.ping().await.map_err(told(name, |_| Refusal::Failed))?;
        histogram.saturating_record(sent.elapsed().as_nanos() as u64);
    }
    let at = |quantile| histogram.value_at_quantile(quantile);
    Ok(RoundTrips {
        count: histogram.len(),
        min_ns: histogram.min(),
        p50_ns: at(0.5),
        p90_ns: at(0.9),
        p99_ns: at(0.99),
        max_ns: histogram.max(),
    })
}

async fn bytes_there(link: &Link, name: &str, time: Duration) -> Result<u64, ControlError> {
    let (call, input) = MeasureClient::new(link.clone()).take();
    let chunk = Bytes::from(vec![0xa5; CHUNK_BYTES]);
    let started = Instant::now();
    let sending =
        async move { while started.elapsed() < time && input.send(Blob(chunk.clone())).await.is_ok() {} };
    let (taken, ()) = tokio::join!(call.no_deadline(), sending);
    let taken = taken.map_err(told(name, |_| Refusal::Failed))?;
    Ok(per_second(taken, started.elapsed()))
}

async fn bytes_back(link: &Link, name: &str, time: Duration) -> Result<u64, ControlError> {
    let request = Give { chunk_bytes: CHUNK_BYTES as u32, for_ms: time.as_millis() as u32 };
    let (call, mut output) = MeasureClient::new(link.clone()).give(request);
    let started = Instant::now();
    let receiving = async move {
        let mut received = 0;
        while let Ok(Some(Blob(bytes))) = output.recv().await {
            received += bytes.len() as u64;
        }
        received
    };
    let (given, received) = tokio::join!(call.no_deadline(), receiving);
    given.map_err(told(name, |_| Refusal::Failed))?;
    Ok(per_second(received, started.elapsed()))
}

fn floor() -> LinkFloor {
    LinkFloor { wake_ns: wake().as_nanos() as u64, copy_bytes_per_s: copied_per_second() }
}

fn wake() -> Duration {
    let (send, receive) = mpsc::channel::<Instant>();
    let sleeper = thread::spawn(move || receive.iter().map(|sent| sent.elapsed()).collect::<Vec<_>>());
    for _ in 0..WAKES {
        thread::sleep(WAKE_PAUSE);
        let _ = send.send(Instant::now());
    }
    drop(send);
    let mut wakes = sleeper.join().unwrap_or_default();
    wakes.sort_unstable();
    wakes.get(wakes.len() / 2).copied().unwrap_or_default()
}

fn copied_per_second() -> u64 {
    let (from, mut to) = (vec![1_u8; CHUNK_BYTES], vec![0_u8; CHUNK_BYTES]);
    let (started, mut copied) = (Instant::now(), 0);
    while started.elapsed() < COPY_TIME {
        to.copy_from_slice(black_box(&from));
        black_box(&mut to);
        copied += CHUNK_BYTES as u64;
    }
    per_second(copied, started.elapsed())
}

fn per_second(bytes: u64, time: Duration) -> u64 {
    (bytes as f64 / time.as_secs_f64().max(1e-9)) as u64
}
