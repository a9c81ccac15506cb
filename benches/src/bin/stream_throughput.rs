//! How many bytes a second does a stream carry between two processes, beside one thread's memcpy?
//!
//! Writes of 1 MiB, all bytes written by the one and read by the other. The bare byte ring (both sides polling) and
//! streams as applications have them (Tokio, through a broker) take turns with memcpy of 1 MiB on the leader's core.
//! With `--bare` the streams are left out.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;
use tombolo_benches::duo::{self, Follower, Leader, Role};
use tombolo_benches::fabric::{self, Fabric};
use tombolo_benches::floor::memcpy_gb_per_s;
use tombolo_benches::lines::Side;
use tombolo_benches::report::{Goal, Report, Series};
use tombolo_benches::rings::{self, BytesRx, BytesTx, Halves};
use tombolo_transport::ring::{HalfLayout, RingError};
use tombolo_transport::{ListenOptions, Stream};

const WRITE_BYTES: usize = 1 << 20;
/// Writes in one batch: about a millisecond, so that most are not interrupted by whatever else runs on these cores.
const WRITES: usize = 16;
const BATCHES: usize = 201;
const LAYOUT: HalfLayout = HalfLayout::STREAM;

fn main() -> anyhow::Result<()> {
    match duo::role() {
        Role::Leads => lead(),
        Role::Follows(leader, args) => follow(leader, &args),
    }
}

fn lead() -> anyhow::Result<()> {
    let runtime = runtime()?;
    let bare = std::env::args().any(|arg| arg == "--bare");
    let fabric = if bare { None } else { Some(runtime.block_on(Fabric::start())?) };
    let socket = fabric.as_ref().map(Fabric::socket).unwrap_or_default();
    let (file, path) = rings::shared_file(rings::halves_bytes(LAYOUT))?;
    let halves = Halves::make(&file, 0, LAYOUT, Side::Leader)?;
    let mut follower = Follower::start(&[&path.to_string_lossy(), &socket.to_string_lossy()])?;
    follower.order("halves")?;
    let (mut tx, mut rx) = halves.bytes()?;
    let mut stream = None;
    if !bare {
        follower.order("listen")?;
        stream = Some(runtime.block_on(async {
            let (endpoint, addr) = fabric::attach(&socket).await?;
            anyhow::Ok(endpoint.connect(addr).await?)
        })?);
        follower.order("accept")?;
    }
    duo::pin_leader();
    let chunk: Vec<u8> = (0..WRITE_BYTES).map(|at| at as u8).collect();
    let (mut copy, mut ring, mut connection) = (Series::default(), Series::default(), Series::default());
    for batch in 0..=BATCHES {
        let copy_rate = memcpy_gb_per_s(WRITE_BYTES, 1).median();
        follower.order("ring")?;
        let ring_rate = rate(|| write_ring(&mut tx, &mut rx, &chunk))?;
        let mut stream_rate = None;
        if let Some(stream) = &mut stream {
            follower.order("stream")?;
            stream_rate = Some(rate(|| runtime.block_on(write_stream(stream, &chunk)))?);
        }
        // The first batch of each warms up.
        if batch > 0 {
            copy.push(copy_rate);
            ring.push(ring_rate);
            stream_rate.into_iter().for_each(|rate| connection.push(rate));
        }
    }
    let conditions = format!(
        "1 MiB writes between two processes on two cores; {BATCHES} interleaved batches of {WRITES} MiB"
    );
    let mut report = Report::new("stream_throughput", conditions);
    report.add("memcpy of 1 MiB, one thread", "GB/s", &copy);
    report.add("bare byte ring", "GB/s", &ring);
    report.add("bare byte ring / memcpy", "x", &ring.over(&copy));
    if !bare {
        report.add("stream (Tokio)", "GB/s", &connection);
        report.add_with_goal("stream (Tokio) / memcpy", "x", &connection.over(&copy), Goal::AtLeast(0.5));
    }
    report.print()
}

fn rate(work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let began = Instant::now();
    work()?;
    Ok((WRITES * WRITE_BYTES) as f64 / began.elapsed().as_nanos() as f64)
}

/// Ends when the follower has said that it read the last byte.
fn write_ring(tx: &mut BytesTx, rx: &mut BytesRx, chunk: &[u8]) -> anyhow::Result<()> {
    for _ in 0..WRITES {
        let mut rest = chunk;
        while !rest.is_empty() {
            match tx.try_write(rest) {
                Ok(taken) => rest = &rest[taken..],
                Err(RingError::WouldBlock) => continue,
                Err(error) => return Err(error.into()),
            }
            let _nobody_sleeps = tx.flush()?;
        }
    }
    let mut done = [0];
    while read_ring(rx, &mut done)? == 0 {}
    Ok(())
}

fn read_ring(rx: &mut BytesRx, out: &mut [u8]) -> anyhow::Result<usize> {
    match rx.try_read(out) {
        Ok(0) => bail!("the other side has shut down"),
        Ok(read) => {
            let _nobody_sleeps = rx.flush();
            Ok(read)
        }
        Err(RingError::WouldBlock) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

async fn write_stream(stream: &mut Stream, chunk: &[u8]) -> anyhow::Result<()> {
    for _ in 0..WRITES {
        stream.write_all(chunk).await?;
    }
    stream.flush().await?;
    stream.read_u8().await?;
    Ok(())
}

fn follow(mut leader: Leader, args: &[String]) -> anyhow::Result<()> {
    let [path, socket] = args else { bail!("started by hand") };
    let runtime = runtime()?;
    let file = rings::open_shared(path)?;
    let (mut halves, mut ring, mut listener, mut stream) = (None, None, None, None);
    let mut buffer = vec![0; WRITE_BYTES];
    duo::pin_follower();
    while let Some(order) = leader.next_order()? {
        match order.join(" ").as_str() {
            "halves" => {
                halves = Some(Halves::make(&file, 0, LAYOUT, Side::Follower)?);
                leader.ready()?;
            }
            "listen" => {
                listener = Some(runtime.block_on(async {
                    let (endpoint, addr) = fabric::attach(Path::new(socket)).await?;
                    anyhow::Ok(endpoint.listen(addr.port, ListenOptions::default()).await?)
                })?);
                leader.ready()?;
            }
            "accept" => {
                let listener = listener.as_mut().context("not listening")?;
                stream = Some(runtime.block_on(listener.accept())?.0);
                leader.ready()?;
            }
            "ring" => {
                if let Some(halves) = halves.take() {
                    ring = Some(halves.bytes()?);
                }
                let (tx, rx) = ring.as_mut().context("no rings yet")?;
                leader.ready()?;
                drain_ring(tx, rx, &mut buffer)?;
            }
            "stream" => {
                let stream = stream.as_mut().context("not connected")?;
                leader.ready()?;
                runtime.block_on(drain_stream(stream, &mut buffer))?;
            }
            other => bail!("unknown order `{other}`"),
        }
    }
    Ok(())
}

fn drain_ring(tx: &mut BytesTx, rx: &mut BytesRx, buffer: &mut [u8]) -> anyhow::Result<()> {
    let mut left = WRITES * WRITE_BYTES;
    let mut at = 0;
    while left > 0 {
        let read = read_ring(rx, &mut buffer[at..])?;
        left -= read;
        at = (at + read) % WRITE_BYTES;
    }
    ensure!(tx.try_write(&[1])? == 1, "no room for one byte");
    let _nobody_sleeps = tx.flush()?;
    check(buffer)
}

async fn drain_stream(stream: &mut Stream, buffer: &mut [u8]) -> anyhow::Result<()> {
    for _ in 0..WRITES {
        stream.read_exact(buffer).await?;
    }
    stream.write_u8(1).await?;
    stream.flush().await?;
    check(buffer)
}

/// That the last megabyte is what was sent. After the end was told, so that it is not measured.
fn check(buffer: &[u8]) -> anyhow::Result<()> {
    let same = buffer.iter().enumerate().all(|(at, byte)| *byte == at as u8);
    ensure!(same, "what arrived is not what was sent");
    Ok(())
}

/// On the main thread, which is pinned; one worker beside it for the broker.
fn runtime() -> anyhow::Result<Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?)
}
