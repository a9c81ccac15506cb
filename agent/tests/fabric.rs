//! A real agent process in a real pool, with this test as the primary kernel.

mod common;

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{Agent, Clients, Written, eventually, process_exists, shell, spec, within};
use serde_json::{Value, json};
use tombolo_agent::api::agent::{AgentError, PolicyRule, Shutdown};
use tombolo_agent::api::exec::ExitStatus;
use tombolo_agent::api::files::{Get, Put};
use tombolo_agent::api::forward::{ForwardRule, ForwardTarget};
use tombolo_agent::api::health::{HealthReport, ProbeFailureKind as Kind, ProbeStatus, ProbeVerdict};
use tombolo_rpc::{Auth, Blob, CallError, Ctx, Link, LinkConfig, Router, health};
use tombolo_transport::pool::{Geometry, Phase, PoolSource};
use tombolo_transport::{
    Broker, BrokerConfig, BrokerHandle, Cid, Endpoint, Incarnation, ListenOptions, Member, MessageListener,
    Pool, Port,
};

const WEB: Member = Member(1);
const INCARNATION: Incarnation = Incarnation([1; 16]);

/// A pool in /dev/shm; removed when dropped.
struct Bed {
    dir: tempfile::TempDir,
    pool: Pool,
    /// Where it begins in its file.
    offset: u64,
}

/// The control plane's part, which a test may stop and start.
struct Primary {
    broker: BrokerHandle,
    endpoint: Endpoint,
    listener: MessageListener,
}

impl Bed {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("tombolo-test").tempdir_in("/dev/shm").unwrap();
        let geometry = Geometry { extent_bytes: 16 << 20, members_max: 4, ..Geometry::default() };
        let pool = Pool::create(&dir.path().join("pool"), geometry).unwrap();
        Self { dir, pool, offset: 0 }
    }

    /// The same inside of something bigger, as on a device of all memory.
    fn inside(offset: u64) -> Self {
        let dir = tempfile::Builder::new().prefix("tombolo-test").tempdir_in("/dev/shm").unwrap();
        let geometry = Geometry { extent_bytes: 16 << 20, members_max: 4, ..Geometry::default() };
        let (path, len) = (dir.path().join("pool"), geometry.pool_bytes().unwrap());
        std::fs::File::create(&path).unwrap().set_len(offset + len + 4096).unwrap();
        let pool = Pool::format(PoolSource::Path { path, offset, len }, geometry).unwrap();
        Self { dir, pool, offset }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("pool")
    }

    async fn primary(&self, line: &UnixStream) -> Primary {
        let (offset, len) = (self.offset, self.pool.len_bytes());
        let source = PoolSource::Path { path: self.path(), offset, len };
        let config = BrokerConfig::new(source, Member::PRIMARY);
        let broker = Broker::start(config).await.unwrap();
        broker.admit(WEB, Cid(3), "web", INCARNATION).await.unwrap();
        broker.add_line(WEB, line.try_clone().unwrap().into()).unwrap();
        let endpoint = broker.endpoint().await.unwrap();
        let listener = endpoint.listen_messages(Port::CONTROL, ListenOptions::default()).await.unwrap();
        Primary { broker, endpoint, listener }
    }

    /// An agent at the other end of the doorbell.
    fn agent(&self, doorbell: UnixStream, extra: Value) -> Agent {
        // The agent process is to inherit it under the number it has here.
        rustix::io::fcntl_setfd(&doorbell, rustix::io::FdFlags::empty()).unwrap();
        let mut fields = json!({
            "pool": {"path": self.path(), "len": self.pool.len_bytes(), "offset": self.offset},
            "doorbell": {"fd": doorbell.as_raw_fd()}, "heartbeat_ms": 20,
            "broker_socket": self.dir.path().join("broker.sock"),
        });
        fields.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        Agent::start(fields)
    }
}

impl Primary {
    /// Waits for the agent's call.
    async fn accept(&mut self) -> Clients {
        let (messages, from) = within(self.listener.accept()).await.unwrap();
        assert_eq!(from.cid, Cid(3));
        let config = LinkConfig::new("control").auth(Auth::Secret([7; 32]));
        Clients::new(within(Link::accept(messages, config, Router::new())).await.unwrap())
    }

    async fn stop(self) {
        drop((self.listener, self.endpoint));
        self.broker.stop().await;
    }
}

#[tokio::test]
async fn the_agent_calls_and_is_served_through_shared_memory() {
    let bed = Bed::new();
    let (near, far) = UnixStream::pair().unwrap();
    let mut primary = bed.primary(&near).await;
    let agent = bed.agent(far, json!({}));
    let clients = primary.accept().await;
    assert_eq!(clients.link.peer().incarnation, INCARNATION);
    assert_eq!(within(clients.agent.hello()).await.unwrap().cid, 3);

    let (call, _input, mut out) = clients.exec.run(shell("head -c 3000000 /dev/zero"));
    let mut written = Written::default();
    written.read_all(&mut out).await;
    assert_eq!((within(call).await.unwrap(), written.stdout.len()), (ExitStatus::Code(0), 3_000_000));

    let content: Vec<u8> = (0..4_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 9) as u8).collect();
    let path = agent.path("file").display().to_string();
    let blake3 = *blake3::hash(&content).as_bytes();
    let request = Put {
        path: path.clone(),
        mode: 0o600,
        len: content.len() as u64,
        blake3,
        resume_key: "k".into(),
        offset: 0,
        replace: false,
        parents: false,
    };
    let (call, pieces) = clients.files.put(request);
    for piece in content.chunks(256 * 1024) {
        within(pieces.send(Blob::from(piece.to_vec()))).await.unwrap();
    }
    drop(pieces);
    within(call).await.unwrap();
    let (call, mut pieces) = clients.files.get(Get { path, offset: 0 });
    let mut got = Vec::new();
    while let Some(piece) = within(pieces.recv()).await.unwrap() {
        got.extend_from_slice(&piece);
    }
    assert_eq!((within(call).await.unwrap().blake3, got == content), (blake3, true));
}

#[tokio::test]
async fn a_pool_inside_of_something_bigger_serves_as_any_other() {
    let bed = Bed::inside(0x20_3000);
    let (near, far) = UnixStream::pair().unwrap();
    let mut primary = bed.primary(&near).await;
    let _agent = bed.agent(far, json!({}));
    let clients = primary.accept().await;
    assert_eq!(within(clients.agent.hello()).await.unwrap().cid, 3);
    let first = bed.pool.heartbeat(WEB);
    eventually("it beats", || bed.pool.heartbeat(WEB).count > first.count + 5).await;
    assert!(bed.dir.path().join("broker.locks").exists(), "what is part of something is not locked itself");
}

#[tokio::test]
async fn the_heartbeat_goes_on_and_tells_the_phase() {
    let bed = Bed::new();
    let (near, far) = UnixStream::pair().unwrap();
    let mut primary = bed.primary(&near).await;
    let _agent = bed.agent(far, json!({}));
    let clients = primary.accept().await;
    let first = bed.pool.heartbeat(WEB);
    assert_eq!((first.incarnation, first.phase), (INCARNATION, Phase::Running));
    eventually("it beats", || bed.pool.heartbeat(WEB).count > first.count + 5).await;
    within(clients.agent.shutdown(Shutdown { grace_ms: 0 })).await.unwrap();
    eventually("it says that it has stopped", || bed.pool.heartbeat(WEB).phase == Phase::Stopped).await;
}

#[tokio::test]
async fn a_control_plane_that_restarts_finds_everything_as_it_was() {
    let bed = Bed::new();
    let (near, far) = UnixStream::pair().unwrap();
    let mut primary = bed.primary(&near).await;
    let agent = bed.agent(far, json!({}));
    let clients = primary.accept().await;
    let job = within(clients.exec.start(spec(&["sleep", "1000"]))).await.unwrap();
    clients.link.close("the control plane restarts");
    primary.stop().await;
    tokio::time::sleep(Duration::from_millis(300)).await;

    let mut primary = bed.primary(&near).await;
    let clients = primary.accept().await;
    assert_eq!(within(clients.agent.hello()).await.unwrap().agent_pid, agent.process.id());
    let jobs = within(clients.exec.list()).await.unwrap();
    assert_eq!((jobs[0].pid, jobs[0].exit), (job.pid, None));
    assert!(process_exists(job.pid));
}

#[tokio::test]
async fn the_black_box_of_a_killed_agent_holds_its_last_words() {
    let bed = Bed::new();
    let (near, far) = UnixStream::pair().unwrap();
    let mut primary = bed.primary(&near).await;
    let entrypoint = json!({"argv": ["/bin/sh", "-c", "echo these are my last words; exec sleep 1000"]});
    let mut agent = bed.agent(far, json!({ "entrypoint": entrypoint }));
    let _clients = primary.accept().await;
    let words =
        || bed.pool.black_box(WEB).into_iter().map(|record| record.text).collect::<Vec<_>>().join("\n");
    eventually("the words are written", || words().contains("stdout: these are my last words")).await;
    agent.process.kill().unwrap();
    agent.process.wait().unwrap();
    let words = words();
    assert!(
        words.contains("agent: agent runs") && words.contains("stdout: these are my last words"),
        "{words}"
    );
}

#[tokio::test]
async fn policy_and_services_are_those_of_the_broker() {
    let bed = Bed::new();
    let (near, far) = UnixStream::pair().unwrap();
    let mut primary = bed.primary(&near).await;
    let agent = bed.agent(far, json!({}));
    let clients = primary.accept().await;
    let rule = |port: &str| PolicyRule { from: "host".into(), to: "*".into(), port: port.into(), deny: true };
    let error = within(clients.agent.set_policy(vec![rule("1"), rule("")])).await.unwrap_err();
    assert!(matches!(error, CallError::App(AgentError::InvalidPolicy { index: 1, .. })), "{error}");

    // A listener of the fabric, served by a TCP server that knows nothing of it.
    let echo = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = ForwardTarget::Tcp { host: "127.0.0.1".into(), port: echo.local_addr().unwrap().port() };
    let listen = ForwardTarget::Service { name: "echo".into() };
    within(clients.forward.listen(ForwardRule { listen, target })).await.unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = echo.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await
            });
        }
    });
    let services = within(clients.agent.services()).await.unwrap();
    assert!(services.iter().any(|service| service.name == "echo"), "{services:?}");
    let addr = within(primary.endpoint.resolve("web/echo")).await.unwrap();
    let mut stream = within(primary.endpoint.connect(addr)).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, b"ping").await.unwrap();
    let mut got = [0; 4];
    within(tokio::io::AsyncReadExt::read_exact(&mut stream, &mut got)).await.unwrap();
    assert_eq!(&got, b"ping");

    within(clients.agent.set_policy(vec![rule("echo")])).await.unwrap();
    let denied = within(primary.endpoint.connect(addr)).await;
    assert!(matches!(denied, Err(tombolo_transport::Error::Denied { .. })), "{denied:?}");
    drop(agent);
}

/// A program of kernel `web` that a test can have behave in any way.
struct Program {
    endpoint: Endpoint,
    serving: Option<tokio::task::JoinHandle<()>>,
}

/// How a program treats whoever connects.
#[derive(Clone, Copy)]
enum Manner {
    /// Serves `router` to anybody.
    Open,
    /// Wants a secret proven.
    Secret,
    /// Accepts and says nothing.
    Mute,
    /// Sends what is no frame of tombolo-rpc.
    Babble,
    /// Does not even accept.
    Busy,
}

impl Program {
    async fn of(bed: &Bed) -> Self {
        let socket = bed.dir.path().join("broker.sock");
        let endpoint = loop {
            match Endpoint::attach(&socket).await {
                Ok(endpoint) => break endpoint,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        Self { endpoint, serving: None }
    }

    /// From now on there is a service `kv` that behaves so.
    async fn behave(&mut self, manner: Manner, router: Router) {
        self.vanish().await;
        let options = || ListenOptions { backlog: 2, ..ListenOptions::named("kv") };
        let mut listener = loop {
            // The name of the listener before is free once its end has been noticed.
            match self.endpoint.listen_messages(Port::ANY, options()).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        self.serving = Some(tokio::spawn(async move {
            let mut mute = Vec::new();
            loop {
                if let Manner::Busy = manner {
                    std::future::pending::<()>().await;
                }
                let Ok((mut messages, _)) = listener.accept().await else { return };
                match manner {
                    Manner::Mute | Manner::Busy => mute.push(messages),
                    Manner::Babble => {
                        let _ = messages.send(b"GET / HTTP/1.1").await;
                        mute.push(messages);
                    }
                    Manner::Open | Manner::Secret => {
                        let auth =
                            if let Manner::Secret = manner { Auth::Secret([1; 32]) } else { Auth::None };
                        let config = LinkConfig::new("kv").auth(auth);
                        let router = router.clone();
                        tokio::spawn(async move {
                            if let Ok(link) = Link::accept(messages, config, router).await {
                                link.closed().await;
                            }
                        });
                    }
                }
            }
        }));
    }

    async fn vanish(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
            let _ = serving.await;
        }
    }
}

/// Waits for a report in which the one probe is so.
async fn probed(
    reports: &mut tombolo_rpc::Receiver<HealthReport>,
    what: &str,
    wanted: impl Fn(&ProbeStatus) -> bool,
) -> ProbeStatus {
    let wait = async {
        loop {
            let status = reports.recv().await.unwrap().unwrap().probes.remove(0);
            if wanted(&status) {
                return status;
            }
        }
    };
    tokio::time::timeout(common::LIMIT, wait).await.unwrap_or_else(|_| panic!("never: {what}"))
}

fn rpc_probe(rpc: Value) -> Value {
    json!({"probes": [{"name": "kv", "kind": "readiness", "period_ms": 30, "timeout_ms": 300,
        "failure_threshold": 1, "rpc": rpc}]})
}

#[tokio::test(flavor = "multi_thread")]
async fn an_rpc_probe_needs_no_code_in_the_program_and_says_what_is_wrong() {
    let bed = Bed::new();
    let (near, far) = UnixStream::pair().unwrap();
    let mut primary = bed.primary(&near).await;
    let _agent = bed.agent(far, rpc_probe(json!({"target": "kv"})));
    let clients = primary.accept().await;
    let (_call, mut reports) = clients.health.watch(50);
    let mut program = Program::of(&bed).await;
    let fails = |kind: Kind| move |status: &ProbeStatus| status.last_failure_kind == Some(kind);

    let status = probed(&mut reports, "no such name", fails(Kind::NotFound)).await;
    assert!(status.last_failure.contains("kv"), "{status:?}");
    // Of each misbehaviour the program recovers: the probe has left nothing behind that would keep it from it.
    for (manner, kind, said) in [
        (Manner::Mute, Kind::TimedOut, "HELLO"),
        (Manner::Babble, Kind::NotRpc, "kv"),
        (Manner::Secret, Kind::NotAuthenticated, "secret"),
    ] {
        program.behave(manner, Router::new()).await;
        let status = probed(&mut reports, said, fails(kind)).await;
        assert!(status.last_failure.contains(said), "{status:?}");
        program.behave(Manner::Open, Router::new()).await;
        let passing = |status: &ProbeStatus| status.verdict == ProbeVerdict::Passing;
        let status = probed(&mut reports, "passing", passing).await;
        assert_eq!((status.last_failure.as_str(), status.last_failure_kind), ("", None));
    }
    program.behave(Manner::Busy, Router::new()).await;
    let stuck = [Kind::TimedOut, Kind::Refused];
    let is_stuck = |status: &ProbeStatus| status.last_failure_kind.is_some_and(|kind| stuck.contains(&kind));
    probed(&mut reports, "does not accept", is_stuck).await;
    program.vanish().await;
    probed(&mut reports, "gone", fails(Kind::NotFound)).await;
}

/// A program that knows how it is.
struct Moody(Arc<AtomicBool>);

impl health::Health for Moody {
    async fn serving(&self, _cx: &Ctx, service: String) -> Result<(), health::NotServing> {
        if self.0.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(health::NotServing { reason: format!("`{service}` is still loading") })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_rpc_probe_wants_its_service_and_asks_a_program_that_knows_how_it_is() {
    let bed = Bed::new();
    let (near, far) = UnixStream::pair().unwrap();
    let mut primary = bed.primary(&near).await;
    let _agent = bed.agent(far, rpc_probe(json!({"target": "web/kv", "service": "tombolo.Health"})));
    let clients = primary.accept().await;
    let (_call, mut reports) = clients.health.watch(50);
    let mut program = Program::of(&bed).await;

    program.behave(Manner::Open, Router::new()).await;
    let missing = |status: &ProbeStatus| status.last_failure_kind == Some(Kind::ServiceMissing);
    let status = probed(&mut reports, "the service is missing", missing).await;
    assert!(status.last_failure.contains("tombolo.Reflection"), "it says what there is: {status:?}");

    let well = Arc::new(AtomicBool::new(false));
    let router = Router::new().service(health::HealthServer::new(Moody(Arc::clone(&well))));
    program.behave(Manner::Open, router).await;
    let not_serving = |status: &ProbeStatus| status.last_failure_kind == Some(Kind::NotServing);
    let status = probed(&mut reports, "not serving", not_serving).await;
    assert!(status.last_failure.contains("`tombolo.Health` is still loading"), "{status:?}");
    well.store(true, Ordering::Relaxed);
    probed(&mut reports, "passing", |status| status.verdict == ProbeVerdict::Passing).await;
}
