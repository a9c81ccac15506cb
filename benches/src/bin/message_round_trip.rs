//! How long does a 56-byte message take there and back between two processes that poll, beside a bare cache line?
//!
//! Three ways take turns in the same two processes on the same two cores: two cache lines and nothing else; bare
//! rings; and connections as applications have them, through a broker. Each batch of a way is divided by the batch of
//! cache lines just before it. With `--bare` the third way is left out.

use std::path::Path;

use anyhow::{Context, bail};
use tokio::runtime::Runtime;
use tombolo_benches::duo::{self, Follower, Leader, Role};
use tombolo_benches::fabric::{self, Fabric};
use tombolo_benches::floor::timed_ns;
use tombolo_benches::lines::{LINES_BYTES, Lines, Poll, Side};
use tombolo_benches::report::{Goal, Report, Series};
use tombolo_benches::rings::{self, Halves};
use tombolo_transport::ListenOptions;
use tombolo_transport::ring::HalfLayout;

const MESSAGE: [u8; 56] = [0x5a; 56];
/// A batch is short, so that most are not interrupted by whatever else runs on these cores.
const ROUNDS: u64 = 2_000;
const BATCHES: usize = 401;
const LAYOUT: HalfLayout = HalfLayout::MESSAGES;

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
    let (file, path) = rings::shared_file(LINES_BYTES + rings::halves_bytes(LAYOUT))?;
    let mut lines = Lines::map(&file, Side::Leader)?;
    let halves = Halves::make(&file, LINES_BYTES, LAYOUT, Side::Leader)?;
    let socket = fabric.as_ref().map(Fabric::socket).unwrap_or_default();
    let (path, socket_arg) = (path.to_string_lossy(), socket.to_string_lossy());
    let mut follower = Follower::start(&[&path, &socket_arg])?;
    follower.order("halves")?;
    let (mut tx, mut rx) = halves.messages()?;
    let mut messages = None;
    if !bare {
        follower.order("listen")?;
        messages = Some(runtime.block_on(async {
            let (endpoint, addr) = fabric::attach(&socket).await?;
            anyhow::Ok(endpoint.connect_messages(addr).await?)
        })?);
        follower.order("accept")?;
    }
    duo::pin_leader();
    let (mut floor, mut ring, mut connection) = (Series::default(), Series::default(), Series::default());
    for batch in 0..=BATCHES {
        follower.order("lines hot")?;
        let hot_ns = timed_ns(ROUNDS, || lines.lead(ROUNDS, Poll::Hot));
        follower.order("lines pausing")?;
        let pausing_ns = timed_ns(ROUNDS, || lines.lead(ROUNDS, Poll::Pausing));
        follower.order("ring")?;
        let mut result = Ok(());
        let ring_ns = timed_ns(ROUNDS, || result = rings::lead(&mut tx, &mut rx, &MESSAGE, ROUNDS));
        result?;
        let mut connection_ns = None;
        if let Some(messages) = &mut messages {
            follower.order("connection")?;
            let mut result = Ok(());
            connection_ns = Some(timed_ns(ROUNDS, || result = fabric::lead(messages, &MESSAGE, ROUNDS)));
            result?;
        }
        // The first batch of each warms up.
        if batch > 0 {
            floor.push(hot_ns.min(pausing_ns));
            ring.push(ring_ns);
            connection_ns.into_iter().for_each(|ns| connection.push(ns));
        }
    }
    let conditions = format!(
        "56 B there and back, two processes on two cores, both polling; {BATCHES} interleaved batches of {ROUNDS}"
    );
    let mut report = Report::new("message_round_trip", conditions);
    report.add("two cache lines (the floor)", "ns", &floor);
    report.add("bare ring", "ns", &ring);
    report.add("bare ring / floor", "x", &ring.over(&floor));
    if !bare {
        report.add("connection", "ns", &connection);
        report.add_with_goal("connection / floor", "x", &connection.over(&floor), Goal::AtMost(2.0));
    }
    report.print()
}

fn follow(mut leader: Leader, args: &[String]) -> anyhow::Result<()> {
    let [path, socket] = args else { bail!("started by hand") };
    let runtime = runtime()?;
    let file = rings::open_shared(path)?;
    let mut lines = Lines::map(&file, Side::Follower)?;
    let (mut halves, mut ring, mut listener, mut messages) = (None, None, None, None);
    duo::pin_follower();
    while let Some(order) = leader.next_order()? {
        match order.join(" ").as_str() {
            "halves" => {
                halves = Some(Halves::make(&file, LINES_BYTES, LAYOUT, Side::Follower)?);
                leader.ready()?;
            }
            "listen" => {
                listener = Some(runtime.block_on(async {
                    let (endpoint, addr) = fabric::attach(Path::new(socket)).await?;
                    anyhow::Ok(endpoint.listen_messages(addr.port, ListenOptions::default()).await?)
                })?);
                leader.ready()?;
            }
            "accept" => {
                let listener = listener.as_mut().context("not listening")?;
                messages = Some(runtime.block_on(listener.accept())?.0);
                leader.ready()?;
            }
            "lines hot" => {
                leader.ready()?;
                lines.follow(ROUNDS, Poll::Hot);
            }
            "lines pausing" => {
                leader.ready()?;
                lines.follow(ROUNDS, Poll::Pausing);
            }
            "ring" => {
                if let Some(halves) = halves.take() {
                    ring = Some(halves.messages()?);
                }
                let (tx, rx) = ring.as_mut().context("no rings yet")?;
                leader.ready()?;
                rings::follow(tx, rx, ROUNDS)?;
            }
            "connection" => {
                let messages = messages.as_mut().context("not connected")?;
                leader.ready()?;
                fabric::follow(messages, ROUNDS)?;
            }
            other => bail!("unknown order `{other}`"),
        }
    }
    Ok(())
}

fn runtime() -> anyhow::Result<Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?)
}
