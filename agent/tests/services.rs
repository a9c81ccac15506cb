//! Files, logs, health, forwards and the end, of a real agent process, over a link.

mod common;

use std::time::Duration;

use common::{Agent, Written, eventually, process_exists, shell, within};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tombolo_agent::api::agent::{AgentMode, ClockAction, Quiesce, Shutdown, SyncClock};
use tombolo_agent::api::exec::ExecError;
use tombolo_agent::api::files::{FileError, Get, Put};
use tombolo_agent::api::forward::{ForwardConnect, ForwardError, ForwardRule, ForwardTarget};
use tombolo_agent::api::health::{AgentPhase, EntrypointState, ProbeVerdict};
use tombolo_agent::api::logs::{LogItem, LogQuery, LogRecord, LogSource};
use tombolo_rpc::{Blob, CallError, LinkError, Receiver};

fn content(len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect()
}

fn put(agent: &Agent, content: &[u8], offset: u64) -> Put {
    Put {
        path: agent.path("sub/file").display().to_string(),
        mode: 0o644,
        len: content.len() as u64,
        blake3: *blake3::hash(content).as_bytes(),
        resume_key: "key".into(),
        offset,
        replace: true,
        parents: true,
    }
}

#[tokio::test]
async fn it_says_who_it_is_to_those_who_know_the_secret() {
    let agent = Agent::start(json!({}));
    let clients = agent.clients().await;
    let inventory = within(clients.agent.hello()).await.unwrap();
    assert_eq!((inventory.name.as_str(), inventory.cid, inventory.mode), ("web", 3, AgentMode::Service));
    assert_eq!(inventory.agent_pid, agent.process.id());
    let pong = within(clients.agent.ping()).await.unwrap();
    assert!(pong.monotonic_ns > 0 && pong.wall_ns > 0);
    let error = within(agent.try_link([8; 32])).await.unwrap_err();
    assert!(matches!(error, LinkError::NotAuthenticated(_)), "{error}");
}

#[tokio::test]
async fn a_service_says_how_far_its_clock_is_off_and_leaves_it() {
    let agent = Agent::start(json!({"may_set_clock": true}));
    let clients = agent.clients().await;
    let pong = within(clients.agent.ping()).await.unwrap();
    let wall_ns = pong.wall_ns + 3_600_000_000_000;
    let request = |step_beyond_ms| SyncClock { wall_ns, uncertainty_ns: 0, step_beyond_ms };
    let report = within(clients.agent.sync_clock(request(None))).await.unwrap();
    assert!((-3_600_000_000_000..-3_500_000_000_000).contains(&report.offset_ns), "{report:?}");
    assert_eq!(report.action, ClockAction::Left);
    let report = within(clients.agent.sync_clock(request(Some(500)))).await.unwrap();
    assert!(matches!(report.action, ClockAction::NotStepped { .. }), "{report:?}");
}

#[tokio::test]
async fn a_file_goes_in_and_comes_back_whole() {
    let agent = Agent::start(json!({}));
    let clients = agent.clients().await;
    let content = content(5_000_000);
    let (call, pieces) = clients.files.put(put(&agent, &content, 0));
    let send = async {
        for piece in content.chunks(256 * 1024) {
            pieces.send(Blob::from(piece.to_vec())).await.unwrap();
        }
        drop(pieces);
    };
    let (done, ()) = within(async { tokio::join!(call, send) }).await;
    assert_eq!(done.unwrap().len, content.len() as u64);

    let path = agent.path("sub/file").display().to_string();
    for offset in [0u64, 4_000_000] {
        let (call, mut pieces) = clients.files.get(Get { path: path.clone(), offset });
        let mut got = Vec::new();
        while let Some(piece) = within(pieces.recv()).await.unwrap() {
            got.extend_from_slice(&piece);
        }
        let done = within(call).await.unwrap();
        assert_eq!(done.blake3, *blake3::hash(&content).as_bytes());
        assert_eq!(got, content[offset as usize..]);
    }
    assert_eq!(within(clients.files.stat(path.clone())).await.unwrap().len, content.len() as u64);
    assert_eq!(within(clients.files.checksum(path)).await.unwrap().len, content.len() as u64);
    let (call, mut names) = clients.files.list(agent.path("sub").display().to_string());
    assert_eq!(within(names.recv()).await.unwrap().unwrap().name, "file");
    assert_eq!(within(call).await.unwrap(), 1);
}

#[tokio::test]
async fn a_put_that_was_cut_off_goes_on_where_it_stopped() {
    let agent = Agent::start(json!({}));
    let clients = agent.clients().await;
    let content = content(1_000_000);
    let (call, pieces) = clients.files.put(put(&agent, &content, 0));
    pieces.send(Blob::from(content[..600_000].to_vec())).await.unwrap();
    drop(pieces);
    let error = within(call).await.unwrap_err();
    assert!(matches!(error, CallError::App(FileError::Incomplete { received: 600_000, .. })), "{error}");

    let path = agent.path("sub/file").display().to_string();
    let there = within(clients.files.partial(path.clone(), "key".into())).await.unwrap();
    assert_eq!(there, 600_000);
    let (call, pieces) = clients.files.put(put(&agent, &content, there));
    pieces.send(Blob::from(content[600_000..].to_vec())).await.unwrap();
    drop(pieces);
    within(call).await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), content);
    assert_eq!(within(clients.files.partial(path, "key".into())).await.unwrap(), 0);
}

#[tokio::test]
async fn a_put_whose_checksum_differs_replaces_nothing() {
    let agent = Agent::start(json!({}));
    let clients = agent.clients().await;
    std::fs::create_dir(agent.path("sub")).unwrap();
    std::fs::write(agent.path("sub/file"), "old").unwrap();
    let (call, pieces) = clients.files.put(put(&agent, b"good", 0));
    pieces.send(Blob::from(&b"evil"[..])).await.unwrap();
    drop(pieces);
    let error = within(call).await.unwrap_err();
    assert!(matches!(error, CallError::App(FileError::ChecksumMismatch { .. })), "{error}");
    assert_eq!(std::fs::read(agent.path("sub/file")).unwrap(), b"old");
}

async fn next_record(items: &mut Receiver<LogItem>) -> LogRecord {
    match within(items.recv()).await.unwrap() {
        Some(LogItem::Record(record)) => record,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn logs_are_followed_and_resumed_from_a_cursor() {
    let script = "echo one; echo two; while [ ! -e go ]; do sleep 0.02; done; echo three; sleep 1000";
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::start(json!({"entrypoint":
        {"argv": ["/bin/sh", "-c", script], "cwd": dir.path(), "restart": "never"}}));
    let clients = agent.clients().await;
    let query = LogQuery { sources: vec![LogSource::Stdout], follow: true, ..LogQuery::default() };
    let (call, mut items) = clients.logs.read(query.clone());
    assert_eq!(next_record(&mut items).await.text, "one");
    let cursor = next_record(&mut items).await.cursor;
    drop((call, items));
    clients.link.close("the test ends it");

    std::fs::write(dir.path().join("go"), "").unwrap();
    let clients = agent.clients().await;
    let (_call, mut items) = clients.logs.read(LogQuery { after: Some(cursor), ..query });
    assert_eq!(next_record(&mut items).await.text, "three");
    let all = LogQuery { sources: vec![LogSource::Agent], ..LogQuery::default() };
    let (call, mut items) = clients.logs.read(all);
    let mut text = String::new();
    while let Some(LogItem::Record(record)) = within(items.recv()).await.unwrap() {
        text += &record.text;
    }
    within(call).await.unwrap();
    assert!(text.contains("entrypoint started"), "{text}");
}

#[tokio::test]
async fn health_follows_probes_and_the_entrypoint() {
    let dir = tempfile::tempdir().unwrap();
    let fresh = dir.path().join("fresh");
    let agent = Agent::start(json!({
        "entrypoint": {"argv": ["sleep", "1000"], "restart": "always"},
        "probes": [{"name": "fresh", "kind": "readiness", "period_ms": 20, "failure_threshold": 1,
            "file_age": {"path": fresh, "max_age_ms": 3_600_000}}]}));
    let clients = agent.clients().await;
    let (_call, mut reports) = clients.health.watch(0);
    let report = loop {
        let report = within(reports.recv()).await.unwrap().unwrap();
        if report.probes[0].verdict == ProbeVerdict::Failing {
            break report;
        }
    };
    assert!(report.live && !report.ready && report.phase == AgentPhase::Running);
    std::fs::write(&fresh, "").unwrap();
    while !within(reports.recv()).await.unwrap().unwrap().ready {}
    let report = within(clients.health.status()).await.unwrap();
    let state = report.entrypoint.unwrap().state;
    assert!(matches!(state, EntrypointState::Running { .. }), "{state:?}");
    assert!(report.load.memory.total > 0);
}

#[tokio::test]
async fn a_quiesced_kernel_takes_on_no_work_until_it_resumes() {
    let agent = Agent::start(json!({}));
    let clients = agent.clients().await;
    let report = within(clients.agent.quiesce(Quiesce { auto_resume_ms: 0 })).await.unwrap();
    assert!(report.synced && report.jobs_running == 0);
    let error = within(clients.exec.start(shell("true"))).await.unwrap_err();
    assert!(matches!(error, CallError::App(ExecError::NotAccepting { .. })), "{error}");
    within(clients.agent.resume()).await.unwrap();
    within(clients.exec.start(shell("true"))).await.unwrap();
    within(clients.agent.quiesce(Quiesce { auto_resume_ms: 50 })).await.unwrap();
    let (_call, mut reports) = clients.health.watch(0);
    while within(reports.recv()).await.unwrap().unwrap().phase != AgentPhase::Running {}
}

#[tokio::test]
async fn an_orderly_shutdown_asks_first_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let script = "trap 'echo bye > bye; exit 0' TERM; echo $$ > pid; while :; do sleep 0.02; done";
    let mut agent = Agent::start(json!({"entrypoint":
        {"argv": ["/bin/sh", "-c", script], "cwd": dir.path(), "restart": "always"}}));
    let clients = agent.clients().await;
    // One that does not listen.
    let stubborn =
        within(clients.exec.start(shell("trap '' TERM; while :; do sleep 0.02; done"))).await.unwrap();
    // One that left its job behind.
    let (call, _input, mut out) = clients.exec.run(shell("setsid sleep 1000 & echo $!."));
    let mut left_behind = Written::default();
    left_behind.read_until(&mut out, ".\n").await;
    within(call).await.unwrap();
    let left_behind: u32 = left_behind.stdout_text().trim_end_matches(".\n").parse().unwrap();
    assert!(process_exists(left_behind));
    eventually("the entrypoint runs", || {
        std::fs::read_to_string(dir.path().join("pid")).is_ok_and(|p| p.ends_with('\n'))
    })
    .await;
    let accepted = within(clients.agent.shutdown(Shutdown { grace_ms: 300 })).await.unwrap();
    assert!(accepted.within_ms >= 300);
    let closed = within(clients.link.closed()).await;
    assert!(!matches!(closed, LinkError::Silent { .. }), "{closed}");
    let mut status = None;
    eventually("the agent ends", || {
        status = agent.process.try_wait().unwrap();
        status.is_some()
    })
    .await;
    assert!(status.unwrap().success());
    assert_eq!(std::fs::read_to_string(dir.path().join("bye")).unwrap(), "bye\n");
    let pid: u32 = std::fs::read_to_string(dir.path().join("pid")).unwrap().trim().parse().unwrap();
    assert!(!process_exists(pid) && !process_exists(stubborn.pid) && !process_exists(left_behind));
    assert!(!agent.path("agent.sock").exists());
}

#[tokio::test]
async fn sigterm_is_an_orderly_shutdown() {
    let mut agent = Agent::start(json!({"entrypoint": {"argv": ["sleep", "1000"]}}));
    let clients = agent.clients().await;
    let pid = nix::unistd::Pid::from_raw(agent.process.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    within(clients.link.closed()).await;
    let mut status = None;
    eventually("the agent ends", || {
        status = agent.process.try_wait().unwrap();
        status.is_some()
    })
    .await;
    assert!(status.unwrap().success());
}

#[tokio::test]
async fn a_connection_is_bridged_to_a_caller() {
    let agent = Agent::start(json!({}));
    let clients = agent.clients().await;
    let listener = tokio::net::UnixListener::bind(agent.path("echo.sock")).unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        stream.write_all(&all).await.unwrap();
    });
    let target = ForwardTarget::Unix { path: agent.path("echo.sock").display().to_string() };
    let (call, input, mut out) = clients.forward.connect(ForwardConnect { target, timeout_ms: 0 });
    assert!(within(out.recv()).await.unwrap().unwrap().is_empty());
    input.send(Blob::from(&b"hello"[..])).await.unwrap();
    drop(input);
    assert_eq!(&within(out.recv()).await.unwrap().unwrap()[..], b"hello");
    assert!(within(out.recv()).await.unwrap().is_none());
    let done = within(call).await.unwrap();
    assert_eq!((done.sent, done.received), (5, 5));

    let target = ForwardTarget::Tcp { host: "127.0.0.1".into(), port: 1 };
    let (call, _input, _out) = clients.forward.connect(ForwardConnect { target, timeout_ms: 0 });
    let error = within(call).await.unwrap_err();
    assert!(matches!(error, CallError::App(ForwardError::Unreachable { .. })), "{error}");
}

#[tokio::test]
async fn a_listener_inside_the_kernel_is_bridged_to_its_target() {
    let agent = Agent::start(json!({}));
    let clients = agent.clients().await;
    let echo = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = echo.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = echo.accept().await.unwrap();
        let (mut read, mut write) = stream.split();
        tokio::io::copy(&mut read, &mut write).await.unwrap();
    });
    let rule = ForwardRule {
        listen: ForwardTarget::Unix { path: agent.path("in.sock").display().to_string() },
        target: ForwardTarget::Tcp { host: "127.0.0.1".into(), port },
    };
    let info = within(clients.forward.listen(rule.clone())).await.unwrap();
    let mut stream = tokio::net::UnixStream::connect(agent.path("in.sock")).await.unwrap();
    stream.write_all(b"ping").await.unwrap();
    let mut got = [0; 4];
    within(stream.read_exact(&mut got)).await.unwrap();
    assert_eq!(&got, b"ping");
    let listed = within(clients.forward.list()).await.unwrap();
    assert_eq!((listed[0].id, listed[0].open, listed[0].total), (info.id, 1, 1));
    within(clients.forward.unlisten(info.id)).await.unwrap();
    eventually("the listener is gone", || !agent.path("in.sock").exists()).await;
    stream.write_all(b"more").await.unwrap();
    within(stream.read_exact(&mut got)).await.unwrap();
    assert_eq!(&got, b"more", "open connections stay");
    let fabric = ForwardRule { listen: ForwardTarget::Service { name: "x".into() }, ..rule };
    let error = within(clients.forward.listen(fabric)).await.unwrap_err();
    assert!(matches!(error, CallError::App(ForwardError::NoFabric { .. })), "{error}");
}

#[tokio::test]
async fn two_callers_at_a_time_are_served() {
    let agent = Agent::start(json!({}));
    let (first, second) = (agent.clients().await, agent.clients().await);
    let (_call, _input, _out) = first.exec.run(shell("sleep 1000"));
    let hello = tokio::time::timeout(Duration::from_secs(10), second.agent.hello()).await.unwrap();
    assert_eq!(hello.unwrap().name, "web");
}
