//! How long does a typed call take between two processes, beside a bare cache line and beside tarpc?
//!
//! Five ways take turns: two bare cache lines; tombolo-rpc on shared memory, both sides polling without a runtime; the
//! same under Tokio; tombolo-rpc on a Unix socket, under Tokio; and tarpc on a Unix socket. Each side has one Tokio
//! thread, on a core of its own. With `--bare` the shared memory is left out; with `--profile polling` or
//! `--profile tokio` that way alone is run, for long, and nothing is reported but its time.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::runtime::Runtime;
use tombolo_benches::calls::{self, Record, TouchBusyClient, TouchClient, rival};
use tombolo_benches::duo::{self, Follower, Leader, Role};
use tombolo_benches::fabric::{self, Fabric};
use tombolo_benches::floor::timed_ns;
use tombolo_benches::lines::{LINES_BYTES, Lines, Poll, Side};
use tombolo_benches::report::{Goal, Report, Series};
use tombolo_benches::rings;
use tombolo_rpc::{BusyClient, BusyServer, Link, LinkConfig, Router};
use tombolo_transport::{Addr, Cid, ListenOptions, Messages, Port};

const LINE_ROUNDS: u64 = 2_000;
const BUSY_CALLS: u64 = 1_000;
const SHM_CALLS: u64 = 500;
const SOCKET_CALLS: u64 = 100;
const BATCHES: usize = 101;
const PROFILE_BATCHES: usize = 2_000;
/// Where the polling server listens.
const BUSY_PORT: Port = Port(5001);

fn main() -> anyhow::Result<()> {
    match duo::role() {
        Role::Leads => lead(),
        Role::Follows(leader, args) => follow(leader, &args),
    }
}

/// Where the follower listens: the broker's socket (empty: no shared memory) and a directory for Unix sockets.
#[derive(Clone, Debug)]
struct Places {
    broker: PathBuf,
    dir: PathBuf,
}

impl Places {
    fn ours(&self) -> PathBuf {
        self.dir.join("tombolo.sock")
    }

    fn rival(&self) -> PathBuf {
        self.dir.join("tarpc.sock")
    }

    fn has_shm(&self) -> bool {
        !self.broker.as_os_str().is_empty()
    }
}

struct Clients {
    shm: Option<TouchClient>,
    socket: TouchClient,
    rival: rival::TouchClient,
    _links: Vec<Link>,
}

fn lead() -> anyhow::Result<()> {
    // The broker has a thread of its own, as in the daemon.
    let beside = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let bare = std::env::args().any(|arg| arg == "--bare");
    let fabric = if bare { None } else { Some(beside.block_on(Fabric::start())?) };
    let dir = Scratch::make()?;
    let broker = fabric.as_ref().map(Fabric::socket).unwrap_or_default();
    let places = Places { broker, dir: dir.0.clone() };
    let (file, path) = rings::shared_file(LINES_BYTES)?;
    let mut lines = Lines::map(&file, Side::Leader)?;
    let [path, broker, dir] = [&path, &places.broker, &places.dir].map(|path| path.to_string_lossy());
    let mut follower = Follower::start(&[&path, &broker, &dir])?;
    duo::pin_leader();
    let runtime = current_thread()?;
    follower.order("serve")?;
    let clients = runtime.block_on(connect(&places))?;
    let mut polling = None;
    if places.has_shm() {
        follower.order("busy listen")?;
        let messages = beside.block_on(async {
            let (endpoint, addr) = fabric::attach(&places.broker).await?;
            anyhow::Ok(endpoint.connect_messages(Addr::new(addr.cid, BUSY_PORT)).await?)
        })?;
        follower.order("busy accept")?;
        polling = Some(BusyClient::connect(messages, quiet("bench"))?);
    }
    if let Some(way) = profiled() {
        return profile(&way, &mut follower, &runtime, &clients, polling.as_mut());
    }
    let [mut floor, mut busy, mut shm, mut socket, mut tarpc] = std::array::from_fn(|_| Series::default());
    for batch in 0..=BATCHES {
        follower.order("lines hot")?;
        let hot_ns = timed_ns(LINE_ROUNDS, || lines.lead(LINE_ROUNDS, Poll::Hot));
        follower.order("lines pausing")?;
        let pausing_ns = timed_ns(LINE_ROUNDS, || lines.lead(LINE_ROUNDS, Poll::Pausing));
        let mut busy_ns = None;
        if let Some(client) = &mut polling {
            follower.order("busy serve")?;
            let mut result = Ok(());
            busy_ns = Some(timed_ns(BUSY_CALLS, || result = call_busy(client, BUSY_CALLS)));
            result?;
        }
        let shm_ns = match &clients.shm {
            Some(client) => Some(timed(&runtime, SHM_CALLS, call(client.clone(), SHM_CALLS))?),
            None => None,
        };
        let socket_ns = timed(&runtime, SOCKET_CALLS, call(clients.socket.clone(), SOCKET_CALLS))?;
        let rival_ns = timed(&runtime, SOCKET_CALLS, call_rival(clients.rival.clone(), SOCKET_CALLS))?;
        // The first batch of each warms up.
        if batch > 0 {
            floor.push(hot_ns.min(pausing_ns));
            busy_ns.into_iter().for_each(|ns| busy.push(ns));
            shm_ns.into_iter().for_each(|ns| shm.push(ns));
            socket.push(socket_ns);
            tarpc.push(rival_ns);
        }
    }
    let conditions = format!(
        "one typed call at a time, two processes on two cores; {BATCHES} interleaved batches of {SHM_CALLS} or {SOCKET_CALLS}"
    );
    let mut report = Report::new("rpc_round_trip", conditions);
    report.add("two cache lines (the floor)", "ns", &floor);
    report.add("tarpc, Unix socket", "ns", &tarpc);
    report.add("tombolo, Unix socket", "ns", &socket);
    report.add("tarpc / tombolo, both Unix socket", "x", &tarpc.over(&socket));
    if !bare {
        report.add("tombolo, shared memory, polling", "ns", &busy);
        let ratio = busy.over(&floor);
        report.add_with_goal("tombolo, shared memory, polling / floor", "x", &ratio, Goal::AtMost(6.0));
        report.add("tombolo, shared memory, Tokio", "ns", &shm);
        report.add("tombolo, shared memory, Tokio / floor", "x", &shm.over(&floor));
        let ratio = tarpc.over(&shm);
        report.add_with_goal(
            "tarpc on a Unix socket / tombolo on shared memory",
            "x",
            &ratio,
            Goal::AtLeast(10.0),
        );
    }
    report.print()
}

/// The one way to run, if `--profile` names one.
fn profiled() -> Option<String> {
    std::env::args().skip_while(|arg| arg != "--profile").nth(1)
}

/// Runs one way alone, for a profiler to look at.
fn profile(
    way: &str,
    follower: &mut Follower,
    runtime: &Runtime,
    clients: &Clients,
    mut polling: Option<&mut BusyClient<Messages>>,
) -> anyhow::Result<()> {
    let mut series = Series::default();
    for _ in 0..PROFILE_BATCHES {
        let ns = match (way, &mut polling, &clients.shm) {
            ("polling", Some(client), _) => {
                follower.order("busy serve")?;
                let mut result = Ok(());
                let ns = timed_ns(BUSY_CALLS, || result = call_busy(client, BUSY_CALLS));
                result?;
                ns
            }
            ("tokio", _, Some(client)) => timed(runtime, SHM_CALLS, call(client.clone(), SHM_CALLS))?,
            _ => bail!("there is no way `{way}`: polling or tokio, on shared memory"),
        };
        series.push(ns);
    }
    println!("{way}: min {:.0} ns, median {:.0} ns", series.min(), series.median());
    Ok(())
}

async fn connect(places: &Places) -> anyhow::Result<Clients> {
    let mut links = Vec::new();
    let mut shm = None;
    if places.has_shm() {
        let (endpoint, addr) = fabric::attach(&places.broker).await?;
        let link = link(endpoint.connect_messages(addr).await?).await?;
        shm = Some(TouchClient::new(link.clone()));
        links.push(link);
    }
    let stream = tokio::net::UnixStream::connect(places.ours()).await?;
    let link = link(framed(stream)).await?;
    let socket = TouchClient::new(link.clone());
    links.push(link);
    let rival = calls::connect_rival(&places.rival()).await?;
    Ok(Clients { shm, socket, rival, _links: links })
}

/// A link that sends nothing of its own accord, so that the frames of a batch can be counted.
fn quiet(role: &str) -> LinkConfig {
    let hour = Duration::from_secs(3600);
    LinkConfig { keepalive: hour, silence_max: 2 * hour, ..LinkConfig::new(role) }
}

async fn link(messages: Messages) -> anyhow::Result<Link> {
    Ok(Link::connect(messages, LinkConfig::new("bench"), Router::new()).await?)
}

fn framed(stream: tokio::net::UnixStream) -> Messages {
    let addr = Addr::new(Cid::HOST, Port::ANY);
    Messages::framed(stream, addr, addr, 1 << 20)
}

fn timed(
    runtime: &Runtime,
    count: u64,
    work: impl Future<Output = anyhow::Result<()>> + Send + 'static,
) -> anyhow::Result<f64> {
    // In a task of its own, as in a server. What `block_on` itself runs has to wait for up to 61 turns of the tasks.
    let mut result = None;
    let ns = timed_ns(count, || result = Some(runtime.block_on(runtime.spawn(work))));
    result.context("not run")???;
    Ok(ns)
}

async fn call(client: TouchClient, count: u64) -> anyhow::Result<()> {
    for _ in 0..count {
        let answer = client.touch(Record::sample()).await?;
        ensure!(answer.answers_sample(), "wrong answer {answer:?}");
    }
    Ok(())
}

fn call_busy(client: &mut BusyClient<Messages>, count: u64) -> anyhow::Result<()> {
    let mut client = TouchBusyClient::new(client);
    for _ in 0..count {
        let answer = client.touch(Record::sample())?;
        ensure!(answer.answers_sample(), "wrong answer {answer:?}");
    }
    Ok(())
}

async fn call_rival(client: rival::TouchClient, count: u64) -> anyhow::Result<()> {
    for _ in 0..count {
        let answer = client.touch(tarpc::context::current(), Record::sample()).await?;
        ensure!(answer.answers_sample(), "wrong answer {answer:?}");
    }
    Ok(())
}

fn follow(mut leader: Leader, args: &[String]) -> anyhow::Result<()> {
    let [path, broker, dir] = args else { bail!("started by hand") };
    let mut lines = Lines::map(rings::open_shared(path)?, Side::Follower)?;
    let places = Places { broker: broker.into(), dir: dir.into() };
    let beside = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let (mut listener, mut server) = (None, None);
    duo::pin_follower();
    while let Some(order) = leader.next_order()? {
        match order.join(" ").as_str() {
            "serve" => {
                // The server's thread inherits the core; it sleeps while the lines are measured.
                let (up, wait) = std::sync::mpsc::channel();
                let places = places.clone();
                std::thread::spawn(move || {
                    let served = current_thread().and_then(|runtime| runtime.block_on(serve(&places, &up)));
                    let _ = up.send(served);
                });
                wait.recv_timeout(Duration::from_secs(10)).context("the server does not come up")??;
                leader.ready()?;
            }
            "busy listen" => {
                listener = Some(beside.block_on(async {
                    let (endpoint, _) = fabric::attach(&places.broker).await?;
                    anyhow::Ok(endpoint.listen_messages(BUSY_PORT, ListenOptions::default()).await?)
                })?);
                leader.ready()?;
            }
            "busy accept" => {
                let listener = listener.as_mut().context("not listening")?;
                let (messages, _) = beside.block_on(listener.accept())?;
                leader.ready()?;
                server = Some(BusyServer::accept(messages, quiet("bench"), calls::router())?);
            }
            "busy serve" => {
                let server = server.as_mut().context("no polling server")?;
                leader.ready()?;
                let mut served = 0;
                while served < BUSY_CALLS {
                    served += u64::from(server.poll()?);
                }
            }
            "lines hot" => {
                leader.ready()?;
                lines.follow(LINE_ROUNDS, Poll::Hot);
            }
            "lines pausing" => {
                leader.ready()?;
                lines.follow(LINE_ROUNDS, Poll::Pausing);
            }
            other => bail!("unknown order `{other}`"),
        }
    }
    Ok(())
}

/// Serves everything, for ever; says so on `up`.
async fn serve(places: &Places, up: &std::sync::mpsc::Sender<anyhow::Result<()>>) -> anyhow::Result<()> {
    if places.has_shm() {
        let (endpoint, addr) = fabric::attach(&places.broker).await?;
        let mut listener = endpoint.listen_messages(addr.port, ListenOptions::default()).await?;
        tokio::spawn(async move {
            while let Ok((messages, _)) = listener.accept().await {
                tokio::spawn(serve_link(messages));
            }
        });
    }
    let listener = tokio::net::UnixListener::bind(places.ours())?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve_link(framed(stream)));
        }
    });
    let rival_path = places.rival();
    let rival = tokio::spawn(async move { calls::serve_rival(&rival_path).await });
    while !places.rival().exists() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    up.send(Ok(())).ok().context("nobody waits for the server")?;
    rival.await?
}

async fn serve_link(messages: Messages) {
    match Link::accept(messages, LinkConfig::new("bench"), calls::router()).await {
        Ok(link) => drop(link.closed().await),
        Err(error) => eprintln!("the server's link failed: {error}"),
    }
}

fn current_thread() -> anyhow::Result<Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// A directory that goes when the measurement ends.
struct Scratch(PathBuf);

impl Scratch {
    fn make() -> anyhow::Result<Self> {
        let dir = Path::new("/tmp").join(format!("tombolo-rpc-bench-{}", std::process::id()));
        std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        Ok(Self(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
