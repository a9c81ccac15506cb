//! Real processes and what their deaths do. The test binary starts itself again, told by an environment variable to play a
//! part (see [`plays_its_part_when_started_as_a_child`]).

mod common;

use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{Fabric, WATCHDOG, allow_all};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tombolo_transport::pool::{BlackBoxLevel, Geometry, PoolSource};
use tombolo_transport::{
    Addr, Broker, BrokerConfig, Cid, Endpoint, Error, ListenOptions, Member, Messages, Pool, Port, ResetCause,
};

const PART: &str = "TOMBOLO_TEST_PART";
const SOCKET: &str = "TOMBOLO_TEST_SOCKET";
const POOL: &str = "TOMBOLO_TEST_POOL";
const PORT: Port = Port(7000);

/// A process of ours, killed when dropped.
struct Process(Child);

impl Process {
    /// Starts this binary as `part`; returns once it has said that it is ready.
    fn start(part: &str, environment: &[(&str, &Path)], stdin: Stdio) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["plays_its_part_when_started_as_a_child", "--exact", "--nocapture"])
            .env(PART, part)
            .envs(environment.iter().map(|(name, path)| (name, path.as_os_str())))
            .stdin(stdin)
            .stdout(Stdio::piped());
        let mut process = Self(command.spawn().unwrap());
        let lines = BufReader::new(process.0.stdout.take().unwrap()).lines();
        assert!(lines.map_while(Result::ok).any(|line| line.ends_with("ready")), "{part} never got ready");
        process
    }

    fn kill(&mut self) {
        self.0.kill().unwrap(); // SIGKILL
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a started child does. Without the environment variable this test is empty.
#[test]
fn plays_its_part_when_started_as_a_child() {
    let Some(part) = std::env::var_os(PART) else { return };
    let path = |name: &str| PathBuf::from(std::env::var_os(name).unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        match part.to_str().unwrap() {
            "echo" => echo(&path(SOCKET)).await,
            "caller" => call_again_and_again(&path(SOCKET)).await,
            "kernel" => kernel(&path(POOL)).await,
            other => panic!("no part is called {other}"),
        }
    });
}

fn ready() {
    println!("ready");
}

/// Echoes messages until it is killed.
async fn echo(socket: &Path) {
    let endpoint = Endpoint::attach(socket).await.unwrap();
    serve_echo(&endpoint).await;
}

async fn serve_echo(endpoint: &Endpoint) {
    let mut listener = endpoint.listen_messages(PORT, ListenOptions::default()).await.unwrap();
    ready();
    while let Ok((mut messages, _)) = listener.accept().await {
        tokio::spawn(async move {
            while let Ok(Some(message)) = messages.recv().await {
                if messages.send(&message).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// Connects [`CONNECTS_PER_LIFE`] times, drops three of four, and is in the midst of writing and connecting when it is killed.
async fn call_again_and_again(socket: &Path) {
    let endpoint = Endpoint::attach(socket).await.unwrap();
    let addr = Addr::new(Cid::HOST, PORT);
    let mut held = Vec::new();
    for index in 0..CONNECTS_PER_LIFE {
        let mut stream = endpoint.connect(addr).await.unwrap();
        stream.write_all(&[1; 3000]).await.unwrap();
        if index % 4 == 0 {
            held.push(stream);
        }
    }
    ready();
    loop {
        let connecting = endpoint.connect(addr);
        for stream in &mut held {
            let _ = stream.write_all(&[2; 3000]).await;
        }
        let _ = connecting.await;
    }
}

/// A kernel: a broker with its line on stdin, and an application in the same process.
async fn kernel(pool: &Path) {
    let source = || PoolSource::path(pool);
    let member = Pool::attach(source(), Member(1)).unwrap();
    member.black_box_writer().unwrap().record(BlackBoxLevel::Info, "my last words");
    let mut config = BrokerConfig::new(source(), Member(1));
    config.policy = allow_all();
    let broker = Broker::start(config).await.unwrap();
    let line: OwnedFd = rustix::io::dup(std::io::stdin()).unwrap();
    broker.add_line(Member::PRIMARY, line).unwrap();
    serve_echo(&broker.endpoint().await.unwrap()).await;
}

fn start_kernel(fabric: &Fabric) -> Process {
    let (near, far) = UnixStream::pair().unwrap();
    let process = Process::start("kernel", &[(POOL, &fabric.pool_path())], Stdio::from(OwnedFd::from(far)));
    fabric.brokers[0].add_line(Member(1), near.into()).unwrap();
    process
}

async fn round_trip(messages: &mut Messages, message: &[u8]) {
    messages.send(message).await.unwrap();
    let back = timeout(WATCHDOG, messages.recv()).await.expect("no echo").unwrap().unwrap();
    assert_eq!(back, message);
}

async fn talk_until_reset(mut messages: Messages) -> ResetCause {
    let talking = async {
        for index in 0u64.. {
            if let Err(error) = messages.send(&index.to_le_bytes()).await {
                return error;
            }
            match messages.recv().await {
                Ok(Some(back)) => assert_eq!(back, index.to_le_bytes()[..]),
                Ok(None) => panic!("an orderly end of a killed process"),
                Err(error) => return error,
            }
        }
        unreachable!("64 bits do not run out");
    };
    match timeout(WATCHDOG, talking).await.expect("a hang instead of an error") {
        Error::Reset { cause, .. } => cause,
        other => panic!("expected a reset, got {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_process_resets_its_connections_and_gives_its_memory_back() {
    let fabric = Fabric::new(1).await;
    for _ in 0..3 {
        let mut process = Process::start("echo", &[(SOCKET, &fabric.socket(Member(1)))], Stdio::null());
        let client = fabric.brokers[0].endpoint().await.unwrap();
        let addr = Addr::new(Cid(3), PORT);
        let mut busy = client.connect_messages(addr).await.unwrap();
        let mut idle = client.connect_messages(addr).await.unwrap();
        round_trip(&mut busy, b"hello").await;
        round_trip(&mut idle, &[7; 100_000]).await;
        let talking = tokio::spawn(talk_until_reset(busy));
        let sleeping = tokio::spawn(async move { idle.recv().await });
        tokio::time::sleep(Duration::from_millis(20)).await;
        process.kill();
        assert_eq!(talking.await.unwrap(), ResetCause::PeerClosed);
        let slept = timeout(WATCHDOG, sleeping).await.expect("nobody woke the sleeper").unwrap();
        assert!(matches!(slept, Err(Error::Reset { cause: ResetCause::PeerClosed, .. })), "{slept:?}");
        let refused = client.connect_messages(addr).await;
        assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
        fabric.wait_until_free(0).await;
        fabric.wait_until_free(1).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_kernel_is_fenced_and_comes_back_as_another() {
    let fabric = Fabric::new(0).await;
    let client = fabric.brokers[0].endpoint().await.unwrap();
    let mut last_generation = 0;
    for _ in 0..3 {
        let first = fabric.admit(Member(1)).await;
        let mut process = start_kernel(&fabric);
        let addr = Addr::new(Cid(3), PORT);
        let mut busy = client.connect_messages(addr).await.unwrap();
        let mut idle = client.connect_messages(addr).await.unwrap();
        round_trip(&mut busy, b"hello").await;
        round_trip(&mut idle, b"hello").await;
        let talking = tokio::spawn(talk_until_reset(busy));
        let sleeping = tokio::spawn(async move { idle.recv().await });
        tokio::time::sleep(Duration::from_millis(20)).await;
        process.kill();
        let generation = fabric.brokers[0].generation(Member(1));
        assert!(generation > last_generation);
        last_generation = generation;
        fabric.brokers[0].fence(Member(1), generation).await.unwrap();
        assert_eq!(talking.await.unwrap(), ResetCause::PeerKernelDied);
        let slept = timeout(WATCHDOG, sleeping).await.expect("nobody woke the sleeper").unwrap();
        assert!(matches!(slept, Err(Error::Reset { cause: ResetCause::PeerKernelDied, .. })), "{slept:?}");
        assert_eq!(fabric.brokers[0].generation(Member(1)), 0);
        fabric.wait_until_free(0).await;
        let words = fabric.brokers[0].pool().black_box(Member(1));
        assert_eq!(words.last().unwrap().text, "my last words");
        assert_ne!(first, fabric.admit(Member(1)).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_killed_and_started_again_is_a_new_generation() {
    let fabric = Fabric::new(0).await;
    fabric.admit(Member(1)).await;
    let client = fabric.brokers[0].endpoint().await.unwrap();
    let mut process = start_kernel(&fabric);
    let messages = client.connect_messages(Addr::new(Cid(3), PORT)).await.unwrap();
    let talking = tokio::spawn(talk_until_reset(messages));
    process.kill();
    // Nobody fences: the next life of the broker is what the peers notice.
    let _again = start_kernel(&fabric);
    assert_eq!(talking.await.unwrap(), ResetCause::PeerKernelDied);
    let mut messages = client.connect_messages(Addr::new(Cid(3), PORT)).await.unwrap();
    round_trip(&mut messages, b"hello again").await;
}

const LIVES: usize = 200;
const CONNECTS_PER_LIFE: usize = 50;

/// 200 processes make 50 connections each, drop most, and are killed amid further ones: not a byte of either heap is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_connects_with_two_hundred_kills_leave_every_byte_free() {
    let geometry = Geometry { extent_bytes: 64 << 20, ..Geometry::default() };
    let fabric = Fabric::with_geometry(1, geometry).await;
    let before: Vec<u64> = heaps(&fabric).await;
    let server = fabric.brokers[0].endpoint().await.unwrap();
    let mut listener =
        server.listen(PORT, ListenOptions { backlog: 1024, ..ListenOptions::default() }).await.unwrap();
    let accepting = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = vec![0; 1024];
                while matches!(stream.read(&mut buffer).await, Ok(n) if n > 0) {}
            });
        }
    });
    for life in 0..LIVES {
        let mut process = Process::start("caller", &[(SOCKET, &fabric.socket(Member(1)))], Stdio::null());
        // At some other moment each time.
        tokio::time::sleep(Duration::from_micros(life as u64 * 37 % 3000)).await;
        process.kill();
    }
    drop(server);
    accepting.abort();
    fabric.wait_until_free(0).await;
    fabric.wait_until_free(1).await;
    assert_eq!(heaps(&fabric).await, before);
}

async fn heaps(fabric: &Fabric) -> Vec<u64> {
    let mut free = Vec::new();
    for broker in &fabric.brokers {
        free.push(broker.status().await.unwrap().heap_free_bytes);
    }
    free
}
