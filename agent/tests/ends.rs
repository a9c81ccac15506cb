//! How an agent process ends, asked to or not, in the middle of everything.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{Agent, Clients, Written, eventually, process_exists, shell, within};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tombolo_agent::api::agent::AgentMode;
use tombolo_agent::api::exec::ExecSpec;
use tombolo_agent::api::files::Put;
use tombolo_agent::api::forward::{ForwardRule, ForwardTarget};
use tombolo_rpc::Blob;

/// Writes its process id, and `bye` when it is asked to end.
fn entrypoint(dir: &Path) -> Value {
    let script = "trap 'echo bye > bye; exit 0' TERM; echo $$ > pid; while :; do sleep 0.02; done";
    json!({"argv": ["/bin/sh", "-c", script], "cwd": dir, "restart": "always"})
}

fn written(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok().filter(|text| text.ends_with('\n')).map(|text| text.trim().to_owned())
}

async fn pid_in(path: PathBuf) -> u32 {
    eventually("a process id is written", || written(&path).is_some()).await;
    written(&path).unwrap().parse().unwrap()
}

async fn ended(agent: &mut Agent) -> std::process::ExitStatus {
    let mut status = None;
    eventually("the agent ends", || {
        status = agent.process.try_wait().unwrap();
        status.is_some()
    })
    .await;
    status.unwrap()
}

/// A job, a detached job, a put and a forward, all in the middle.
struct Busy {
    jobs: Vec<u32>,
    target: PathBuf,
    socket: PathBuf,
    bridged: tokio::net::UnixStream,
    _calls: Box<dyn std::any::Any>,
}

async fn keep_busy(agent: &Agent, clients: &Clients) -> Busy {
    let (call, input, mut out) = clients.exec.run(shell("echo up.; exec sleep 1000"));
    let mut attached = Written::default();
    attached.read_until(&mut out, "up.").await;
    let detached = within(clients.exec.start(shell("exec sleep 1000"))).await.unwrap();

    let target = agent.path("target");
    std::fs::write(&target, "old").unwrap();
    let content = vec![7; 500_000];
    let request = Put {
        path: target.display().to_string(),
        mode: 0o644,
        len: content.len() as u64,
        blake3: *blake3::hash(&content).as_bytes(),
        resume_key: "key".into(),
        offset: 0,
        replace: true,
        parents: false,
    };
    let (put, pieces) = clients.files.put(request);
    within(pieces.send(Blob::from(content[..200_000].to_vec()))).await.unwrap();

    let echo = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let socket = agent.path("forward.sock");
    let rule = ForwardRule {
        listen: ForwardTarget::Unix { path: socket.display().to_string() },
        target: ForwardTarget::Tcp { host: "127.0.0.1".into(), port: echo.local_addr().unwrap().port() },
    };
    within(clients.forward.listen(rule)).await.unwrap();
    let mut bridged = tokio::net::UnixStream::connect(&socket).await.unwrap();
    bridged.write_all(b"ping").await.unwrap();
    let (mut far, _) = within(echo.accept()).await.unwrap();
    within(far.read_exact(&mut [0; 4])).await.unwrap();
    let calls: Box<dyn std::any::Any> = Box::new((call, input, out, put, pieces, far, echo));
    Busy { jobs: vec![attached.pid, detached.pid], target, socket, bridged, _calls: calls }
}

#[tokio::test]
async fn sigterm_in_the_middle_of_everything_ends_it_all_in_order() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let dir = tempfile::tempdir().unwrap();
        let mut agent = Agent::start(json!({ "entrypoint": entrypoint(dir.path()) }));
        let clients = agent.clients().await;
        let entrypoint = pid_in(dir.path().join("pid")).await;
        let mut busy = keep_busy(&agent, &clients).await;
        nix::sys::signal::kill(agent.pid(), signal).unwrap();
        assert!(ended(&mut agent).await.success(), "{signal}");
        assert_eq!(written(&dir.path().join("bye")).as_deref(), Some("bye"), "{signal}");
        for pid in busy.jobs.iter().chain([&entrypoint]) {
            assert!(!process_exists(*pid), "{signal}: {pid} is left");
        }
        assert_eq!(std::fs::read(&busy.target).unwrap(), b"old");
        assert!(!busy.socket.exists() && !agent.path("agent.sock").exists(), "{signal}: a socket is left");
        assert_eq!(within(busy.bridged.read(&mut [0; 1])).await.unwrap_or(0), 0, "{signal}");
    }
}

#[tokio::test]
async fn an_agent_that_was_started_to_outlive_its_terminal_does() {
    let mut agent = Agent::start_with(&["nohup"], json!({}));
    drop(agent.clients().await);
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap().trim();
    assert_eq!(u64::from_str_radix(ignored, 16).unwrap() & 1, 1, "it listens to SIGHUP: {ignored}");
    nix::sys::signal::kill(agent.pid(), Signal::SIGHUP).unwrap();
    nix::sys::signal::kill(agent.pid(), Signal::SIGTERM).unwrap();
    assert!(ended(&mut agent).await.success());
    assert!(agent.log().contains("SIGTERM: shutting down"), "{}", agent.log());
}

#[tokio::test]
async fn the_children_of_an_entrypoint_have_the_rest_of_its_grace() {
    let dir = tempfile::tempdir().unwrap();
    let script = "(trap 'sleep 0.3; echo done > done; exit' TERM; echo $$ > pid; while :; do sleep 0.02; done) & \
        trap 'exit 0' TERM; wait";
    let mut agent =
        Agent::start(json!({"entrypoint": {"argv": ["/bin/sh", "-c", script], "cwd": dir.path()}}));
    let _clients = agent.clients().await;
    pid_in(dir.path().join("pid")).await;
    nix::sys::signal::kill(agent.pid(), Signal::SIGTERM).unwrap();
    assert!(ended(&mut agent).await.success());
    assert_eq!(written(&dir.path().join("done")).as_deref(), Some("done"));
}

#[tokio::test]
async fn sigkill_takes_along_what_it_started_and_a_new_agent_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut agent = Agent::start(json!({ "entrypoint": entrypoint(dir.path()) }));
    let clients = agent.clients().await;
    let entrypoint_pid = pid_in(dir.path().join("pid")).await;
    let busy = keep_busy(&agent, &clients).await;
    // What has arrived of the put is on its way to the partial file.
    let partial = agent.path(".target.key.partial");
    eventually("the first piece is there", || std::fs::metadata(&partial).is_ok_and(|m| m.len() == 200_000))
        .await;
    agent.process.kill().unwrap();
    agent.process.wait().unwrap();
    eventually("the entrypoint saw SIGTERM", || written(&dir.path().join("bye")).is_some()).await;
    eventually("nothing is left running", || {
        busy.jobs.iter().chain([&entrypoint_pid]).all(|pid| !process_exists(*pid))
    })
    .await;
    assert_eq!(std::fs::read(&busy.target).unwrap(), b"old");

    // The same configuration, and sockets of the dead one in its way.
    std::fs::remove_file(dir.path().join("pid")).unwrap();
    agent.restart();
    let clients = agent.clients().await;
    let again = pid_in(dir.path().join("pid")).await;
    assert!(process_exists(again) && again != entrypoint_pid);
    let path = busy.target.display().to_string();
    assert_eq!(within(clients.files.partial(path, "key".into())).await.unwrap(), 200_000);
    let rule = ForwardRule {
        listen: ForwardTarget::Unix { path: busy.socket.display().to_string() },
        target: ForwardTarget::Tcp { host: "127.0.0.1".into(), port: 1 },
    };
    within(clients.forward.listen(rule)).await.unwrap();
}

#[tokio::test]
async fn a_sigterm_while_it_boots_leaves_nothing() {
    for pause_ms in [0, 1, 2, 4, 8, 16, 32] {
        let dir = tempfile::tempdir().unwrap();
        let mut agent = Agent::start(json!({ "entrypoint": entrypoint(dir.path()) }));
        tokio::time::sleep(std::time::Duration::from_millis(pause_ms)).await;
        nix::sys::signal::kill(agent.pid(), Signal::SIGTERM).unwrap();
        ended(&mut agent).await;
        if let Some(pid) = written(&dir.path().join("pid")) {
            eventually("the entrypoint is gone", || !process_exists(pid.parse().unwrap())).await;
        }
        assert!(!agent.path("agent.sock").exists(), "after {pause_ms} ms");
    }
}

/// The arguments of unshare(1) that make the agent the first process of namespaces of its own.
const NAMESPACES: &[&str] =
    &["--user", "--map-root-user", "--pid", "--mount", "--uts", "--fork", "--kill-child", "--mount-proc"];

/// Whether there may be such namespaces; if not, it is said loudly.
fn namespaces_are_allowed() -> bool {
    let mut attempt = Command::new("unshare");
    attempt.args(NAMESPACES).arg("true").stdout(Stdio::null()).stderr(Stdio::null());
    let allowed = attempt.status().is_ok_and(|status| status.success());
    if !allowed {
        eprintln!("SKIPPED: no namespaces here");
    }
    allowed
}

/// The first process of the namespace that `unshare` made.
fn first_process(unshare: u32) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).ok()?;
    children.split_ascii_whitespace().next()?.parse().ok()
}

#[tokio::test]
async fn sigterm_to_a_first_process_in_the_middle_of_everything_ends_it_all_in_order() {
    if !namespaces_are_allowed() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // A child of another session, whose parent has gone: only the first process of a namespace finds it.
    let script = "setsid sleep 1000 & echo $! > orphan; exit 0";
    let mut agent = Agent::start_with(
        &[&["unshare"], NAMESPACES].concat(),
        json!({ "entrypoint": entrypoint(dir.path()) }),
    );
    let clients = agent.clients().await;
    let inventory = within(clients.agent.hello()).await.unwrap();
    assert_eq!((inventory.mode, inventory.agent_pid), (AgentMode::NamespaceInit, 1));
    pid_in(dir.path().join("pid")).await;
    within(clients.exec.start(ExecSpec { cwd: Some(dir.path().display().to_string()), ..shell(script) }))
        .await
        .unwrap();
    pid_in(dir.path().join("orphan")).await;
    let busy = keep_busy(&agent, &clients).await;
    let first = first_process(agent.process.id()).unwrap();
    let namespace = std::fs::read_link(format!("/proc/{first}/ns/pid")).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(first as i32), Signal::SIGTERM).unwrap();
    assert!(ended(&mut agent).await.success());
    assert_eq!(written(&dir.path().join("bye")).as_deref(), Some("bye"));
    assert_eq!(std::fs::read(&busy.target).unwrap(), b"old");
    assert!(!busy.socket.exists() && !agent.path("agent.sock").exists());
    let left = std::fs::read_dir("/proc").unwrap().flatten().filter(|process| {
        std::fs::read_link(process.path().join("ns/pid")).is_ok_and(|other| other == namespace)
    });
    assert_eq!(left.count(), 0, "nobody is left in the namespace");
}
