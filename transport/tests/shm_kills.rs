//! `kill -9` of either side at every step: nobody hangs, every connection of the dead ends with a reset, and nothing of theirs is left.
//!
//! The survivor is this process: the primary's broker, the broker of kernel 1, and an application. The victims are processes: applications
//! of kernel 1 that call or are called, and kernel 2 as a whole. Each plays a script and kills itself before a step of it, or is killed
//! at some moment. `TOMBOLO_KILLS` says how many, `TOMBOLO_SEED` which steps and moments, `TOMBOLO_ERROR_WITHIN_MS` after which time
//! at most the survivor must know (by default it only must before the test gives up).

mod common;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{Fabric, WATCHDOG, allow_all};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tombolo_transport::pool::PoolSource;
use tombolo_transport::{
    Addr, Broker, BrokerConfig, Cid, ConnectOptions, Endpoint, Error, ListenOptions, Member, Messages, Port,
    ResetCause, Result, Sizes, Stream,
};

const PART: &str = "TOMBOLO_TEST_PART";
const PLACE: &str = "TOMBOLO_TEST_PLACE";
const STEP: &str = "TOMBOLO_TEST_STEP";
/// Where the victims listen, and the survivor: messages, streams.
const VICTIM: [Port; 2] = [Port(7000), Port(7001)];
const SURVIVOR: [Port; 2] = [Port(7002), Port(7003)];
/// Steps in the script of a victim.
const STEPS: u64 = 11;
const SIZES: Sizes =
    Sizes { slots: 8, ring_bytes: 8192, loans: 2, loan_bytes: 64 * 1024, message_bytes_max: 64 * 1024 };

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// An application of kernel 1 that calls.
    Caller,
    /// An application of kernel 1 that is called.
    Callee,
    /// Kernel 2, whose application is called.
    Kernel,
}

/// What a started child does. Without the environment variable this test is empty.
#[test]
fn plays_its_part_when_started_as_a_child() {
    let Ok(part) = std::env::var(PART) else { return };
    let place = PathBuf::from(std::env::var_os(PLACE).unwrap());
    let mut steps = Steps { left: std::env::var(STEP).unwrap().parse().unwrap() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // If the survivor goes first, what is asked of it fails: no matter.
    let _ = runtime.block_on(async {
        match part.as_str() {
            "Caller" => caller(&Endpoint::attach(&place).await?, &mut steps).await,
            "Callee" => callee(&Endpoint::attach(&place).await?, &mut steps).await,
            "Kernel" => {
                let mut config = BrokerConfig::new(PoolSource::path(&place), Member(2));
                config.policy = allow_all();
                let broker = Broker::start(config).await?;
                let line: OwnedFd = rustix::io::dup(std::io::stdin()).unwrap();
                broker.add_line(Member::PRIMARY, line)?;
                callee(&broker.endpoint().await?, &mut steps).await
            }
            other => panic!("no part is called {other}"),
        }
    });
}

/// Counts steps, and kills this process before the one that was chosen.
struct Steps {
    left: u64,
}

impl Steps {
    fn next(&mut self) {
        if self.left == 0 {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
        self.left -= 1;
    }
}

async fn caller(endpoint: &Endpoint, steps: &mut Steps) -> Result<()> {
    println!("ready");
    let options = ConnectOptions { sizes: SIZES, ..ConnectOptions::default() };
    steps.next();
    let messages = endpoint.connect_messages_with(Addr::new(Cid::HOST, SURVIVOR[0]), &options).await?;
    steps.next();
    let stream = endpoint.connect_with(Addr::new(Cid::HOST, SURVIVOR[1]), &options).await?;
    talk(messages, stream, steps).await
}

async fn callee(endpoint: &Endpoint, steps: &mut Steps) -> Result<()> {
    let options = || ListenOptions { sizes: SIZES, ..ListenOptions::default() };
    let mut listener = endpoint.listen_messages(VICTIM[0], options()).await?;
    let mut streams = endpoint.listen(VICTIM[1], options()).await?;
    println!("ready");
    steps.next();
    let (messages, _) = listener.accept().await?;
    steps.next();
    let (stream, _) = streams.accept().await?;
    talk(messages, stream, steps).await
}

/// All shapes of messages, and a stream; then they are held, dropped, and slept on.
async fn talk(mut messages: Messages, mut stream: Stream, steps: &mut Steps) -> Result<()> {
    steps.next();
    messages.send(&[1; 56]).await?;
    steps.next();
    messages.send(&[2; 5000]).await?;
    steps.next();
    let mut loan = messages.loan(50_000).await?;
    steps.next();
    loan.write_at(0, &[3; 1000])?;
    messages.send_loan(loan).await?;
    steps.next();
    let mut held = Vec::new();
    for _ in 0..3 {
        held.extend(messages.recv_loan().await?);
    }
    steps.next();
    // Less than both rings hold: the survivor gives back what it gets, and we do not read meanwhile.
    let _ = stream.write_all(&[4; 12_000]).await;
    steps.next();
    drop(held);
    let _ = stream.read(&mut [0; 3000]).await;
    steps.next();
    let _ = stream.shutdown().await;
    drop(stream);
    steps.next();
    // Both ends asleep, until somebody kills us.
    while messages.recv().await?.is_some() {}
    Ok(())
}

/// The survivor's end of messages: gives back what comes, until the end or an error.
async fn echo(messages: Messages) -> Option<Error> {
    let (mut sender, mut receiver) = messages.split();
    loop {
        match receiver.recv().await {
            Ok(Some(message)) => {
                if let Err(error) = sender.send(&message).await {
                    return Some(error);
                }
            }
            Ok(None) => return None,
            Err(error) => return Some(error),
        }
    }
}

async fn echo_bytes(mut stream: Stream) -> Option<Error> {
    let mut buffer = vec![0; 4096];
    loop {
        let done = match stream.read(&mut buffer).await {
            Ok(0) => return None,
            Ok(n) => stream.write_all(&buffer[..n]).await,
            Err(error) => Err(error),
        };
        if let Err(error) = done {
            // The stream's own error travels inside.
            return Some(match error.downcast::<Error>() {
                Ok(error) => error,
                Err(error) => panic!("no error of a connection: {error:?}"),
            });
        }
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

struct Survivor {
    fabric: Fabric,
    endpoint: Endpoint,
    /// What it does for the present victim.
    talks: JoinSet<Option<Error>>,
    accepted: tokio::sync::mpsc::UnboundedReceiver<Connection>,
    slowest: Duration,
}

enum Connection {
    Messages(Messages),
    Stream(Stream),
}

impl Survivor {
    async fn new() -> Self {
        let fabric = Fabric::new(1).await;
        let endpoint = fabric.brokers[0].endpoint().await.unwrap();
        let options = || ListenOptions { sizes: SIZES, ..ListenOptions::default() };
        let mut messages = endpoint.listen_messages(SURVIVOR[0], options()).await.unwrap();
        let mut streams = endpoint.listen(SURVIVOR[1], options()).await.unwrap();
        let (to_messages, accepted) = tokio::sync::mpsc::unbounded_channel();
        let to_streams = to_messages.clone();
        tokio::spawn(async move {
            while let Ok((accepted, _)) = messages.accept().await {
                let _ = to_messages.send(Connection::Messages(accepted));
            }
        });
        tokio::spawn(async move {
            while let Ok((accepted, _)) = streams.accept().await {
                let _ = to_streams.send(Connection::Stream(accepted));
            }
        });
        Self { fabric, endpoint, talks: JoinSet::new(), accepted, slowest: Duration::ZERO }
    }

    /// One victim, from its start to the last trace of it.
    async fn live_and_die(&mut self, part: Part, step: u64, moment: Duration) {
        let mut child = self.start(part, step).await;
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut is_ready = false;
        while let Ok(Some(line)) = lines.next_line().await {
            if line.ends_with("ready") {
                is_ready = true;
                break;
            }
        }
        if is_ready && part != Part::Caller {
            let cid = if part == Part::Kernel { Cid(4) } else { Cid(3) };
            self.call(cid);
        }
        let dying = async {
            if step >= STEPS {
                tokio::time::sleep(moment).await;
                child.start_kill().unwrap(); // SIGKILL
            }
            let end = timeout(WATCHDOG, child.wait()).await;
            end.unwrap_or_else(|_| panic!("{part:?} never got to step {step}")).unwrap();
        };
        tokio::pin!(dying);
        loop {
            tokio::select! {
                () = &mut dying => break,
                connection = self.accepted.recv() => self.take(connection.unwrap()),
            }
        }
        let died = Instant::now();
        if part == Part::Kernel {
            let generation = self.fabric.brokers[0].generation(Member(2));
            self.fabric.brokers[0].fence(Member(2), generation).await.unwrap();
        }
        let ended = async {
            loop {
                while let Ok(connection) = self.accepted.try_recv() {
                    self.take(connection);
                }
                match self.talks.join_next().await {
                    Some(end) => is_an_end(end.unwrap()),
                    None => return,
                }
            }
        };
        timeout(WATCHDOG, ended).await.expect("a connection of the dead that never ends");
        self.slowest = self.slowest.max(died.elapsed());
    }

    fn take(&mut self, connection: Connection) {
        match connection {
            Connection::Messages(messages) => self.talks.spawn(echo(messages)),
            Connection::Stream(stream) => self.talks.spawn(echo_bytes(stream)),
        };
    }

    /// Calls a victim, which may be dead by now.
    fn call(&mut self, cid: Cid) {
        let options = ConnectOptions { sizes: SIZES, ..ConnectOptions::default() };
        let (endpoint, with) = (self.endpoint.clone(), options.clone());
        self.talks.spawn(async move {
            match endpoint.connect_messages_with(Addr::new(cid, VICTIM[0]), &with).await {
                Ok(messages) => echo(messages).await,
                Err(error) => Some(error),
            }
        });
        let endpoint = self.endpoint.clone();
        self.talks.spawn(async move {
            match endpoint.connect_with(Addr::new(cid, VICTIM[1]), &options).await {
                Ok(stream) => echo_bytes(stream).await,
                Err(error) => Some(error),
            }
        });
    }

    async fn start(&self, part: Part, step: u64) -> Child {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["plays_its_part_when_started_as_a_child", "--exact", "--nocapture"])
            .env(PART, format!("{part:?}"))
            .env(STEP, step.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        if part == Part::Kernel {
            self.fabric.admit(Member(2)).await;
            let (near, far) = StdUnixStream::pair().unwrap();
            self.fabric.brokers[0].add_line(Member(2), near.into()).unwrap();
            command.env(PLACE, self.fabric.pool_path()).stdin(Stdio::from(OwnedFd::from(far)));
        } else {
            command.env(PLACE, self.fabric.socket(Member(1)));
        }
        command.spawn().unwrap()
    }

    /// What a victim must not leave behind: descriptors, mappings of the pool, memory, connections, attachments.
    async fn traces(&self) -> Vec<u64> {
        self.fabric.wait_until_free(0).await;
        self.fabric.wait_until_free(1).await;
        let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
        let mappings = std::fs::read_to_string("/proc/self/maps").unwrap();
        let mut traces = vec![
            descriptors,
            mappings.lines().filter(|line| maps(line, &self.fabric.pool_path())).count() as u64,
        ];
        for broker in &self.fabric.brokers {
            let status = broker.status().await.unwrap();
            traces.extend([status.heap_free_bytes, status.clients as u64, status.bad_records]);
        }
        traces
    }
}

fn maps(line: &str, pool: &Path) -> bool {
    line.ends_with(pool.to_str().unwrap())
}

/// What the survivor may see of a death: an end, if the victim had closed before, or a reset, or nobody there. Never misbehaviour.
fn is_an_end(error: Option<Error>) {
    let is_fine = match &error {
        None | Some(Error::Refused { .. }) => true,
        Some(Error::Reset { cause, .. }) => {
            matches!(cause, ResetCause::PeerClosed | ResetCause::PeerKernelDied)
        }
        Some(_) => false,
    };
    assert!(is_fine, "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn either_side_killed_at_every_step_leaves_nothing_behind() {
    let (kills, mut seed) = (number("TOMBOLO_KILLS", 130), number("TOMBOLO_SEED", 1));
    let mut survivor = Survivor::new().await;
    let parts = [Part::Caller, Part::Callee, Part::Kernel];
    let mut before = None;
    for kill in 0..kills {
        // Every step of every part in turn; of every four rounds of steps one is of random moments.
        let (part, step) = (parts[kill as usize % 3], kill / 3 % (STEPS + 4));
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let moment = Duration::from_micros((seed >> 33) % 8000);
        survivor.live_and_die(part, step, moment).await;
        if kill == 5 {
            before = Some(survivor.traces().await);
        }
    }
    assert_eq!(
        Some(survivor.traces().await),
        before,
        "descriptors, mappings, then of each broker heap, clients, bad records"
    );
    println!("{kills} kills, the slowest was known after {:?}", survivor.slowest);
    let bound = Duration::from_millis(number("TOMBOLO_ERROR_WITHIN_MS", u64::MAX));
    assert!(survivor.slowest <= bound, "a death was known after {:?} only", survivor.slowest);
}
