//! Callers that never read: what waits for them is bounded, and others are served meanwhile.

mod common;

use common::{Agent, Clients, shell, within};
use serde_json::json;
use tombolo_agent::api::exec::{Attach, ExecIn, ExecSpec};
use tombolo_agent::api::files::{FileError, Get};
use tombolo_agent::api::logs::{LogItem, LogQuery};
use tombolo_rpc::{Blob, CallError};

/// What the agent holds in memory, in bytes.
fn resident_bytes(agent: &Agent) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.process.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

async fn still_serves(agent: &Agent, clients: &Clients) {
    within(clients.agent.ping()).await.unwrap();
    let others = agent.clients().await;
    within(others.exec.start(shell("true"))).await.unwrap();
    within(others.health.status()).await.unwrap();
}

#[tokio::test]
async fn output_that_is_never_read_makes_an_attached_job_wait() {
    let agent = Agent::start(json!({}));
    let clients = agent.clients().await;
    within(clients.agent.hello()).await.unwrap();
    let before = resident_bytes(&agent);
    // Ten that write gigabytes, and are never read.
    let unread: Vec<_> = (0..10).map(|_| clients.exec.run(shell("head -c 1G /dev/zero; echo >&2"))).collect();
    let mut calls = Vec::new();
    for (call, input, out) in unread {
        calls.push((tokio::spawn(call), input, out));
    }
    let mut written = 0;
    let mut still = 0;
    while still < 20 {
        let jobs = within(clients.exec.list()).await.unwrap();
        let now: u64 = jobs.iter().map(|job| job.output_to).sum();
        still = if now == written && jobs.len() == 10 { still + 1 } else { 0 };
        written = now;
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert!(written < 10 * (1 << 20), "{written} bytes were taken from the jobs");
    let grown = resident_bytes(&agent).saturating_sub(before);
    assert!(grown < 24 << 20, "the agent has grown by {grown} bytes");
    still_serves(&agent, &clients).await;
}

#[tokio::test]
async fn a_detached_job_that_writes_byte_by_byte_costs_no_more_than_its_buffer() {
    let agent = Agent::start(json!({}));
    let clients = agent.clients().await;
    within(clients.agent.hello()).await.unwrap();
    let before = resident_bytes(&agent);
    // Each write is read on its own, for the most part.
    let script = "i=0; while [ $i -lt 60000 ]; do echo x; echo y >&2; i=$((i+1)); done";
    let mut jobs = Vec::new();
    for _ in 0..4 {
        jobs.push(within(clients.exec.start(shell(script))).await.unwrap().job);
    }
    for job in jobs {
        within(clients.exec.wait(job)).await.unwrap();
    }
    let grown = resident_bytes(&agent).saturating_sub(before);
    assert!(grown < 16 << 20, "the agent has grown by {grown} bytes");
}

#[tokio::test]
async fn logs_that_are_followed_and_never_read_cost_nothing_more() {
    let script = "while :; do echo 'a line of the entrypoint that somebody follows but does not read'; done";
    let agent = Agent::start(json!({"entrypoint": {"argv": ["/bin/sh", "-c", script]}, "log_level": "info"}));
    let clients = agent.clients().await;
    let follow = || clients.logs.read(LogQuery { follow: true, ..LogQuery::default() });
    let (call, mut items) = follow();
    let mut last = 0;
    // Until the buffer has wrapped: it is then as large as it gets.
    while last < 40_000 {
        if let Some(LogItem::Record(record)) = within(items.recv()).await.unwrap() {
            last = record.cursor.seq;
        }
    }
    drop((call, items));
    let before = resident_bytes(&agent);
    let unread: Vec<_> = (0..20).map(|_| follow()).map(|(call, items)| (tokio::spawn(call), items)).collect();
    still_serves(&agent, &clients).await;
    let end = async || {
        let query = LogQuery { tail: Some(1), ..LogQuery::default() };
        let (call, items) = clients.logs.read(query);
        drop(items);
        within(call).await.map_or(0, |cursor| cursor.seq)
    };
    let start = end().await;
    while end().await < start + 40_000 {}
    let grown = resident_bytes(&agent).saturating_sub(before);
    assert!(grown < 24 << 20, "the agent has grown by {grown} bytes");
    drop(unread);
}

#[tokio::test]
async fn files_that_are_got_and_never_read_keep_nobody_from_the_rest() {
    let agent = Agent::start(json!({}));
    let clients = agent.clients().await;
    let path = agent.path("large");
    std::fs::File::create(&path).unwrap().set_len(1 << 30).unwrap();
    let path = path.display().to_string();
    let get = || clients.files.get(Get { path: path.clone(), offset: 0 });
    let before = resident_bytes(&agent);
    let mut unread: Vec<_> =
        (0..16).map(|_| get()).map(|(call, items)| (tokio::spawn(call), items)).collect();
    // Those who come when there is no room are told so.
    let mut refused = false;
    for _ in 0..1000 {
        let (call, items) = get();
        let next = tokio::time::timeout(std::time::Duration::from_millis(20), call).await;
        if let Ok(Err(CallError::App(FileError::TooMany { limit: 16, .. }))) = next {
            refused = true;
            break;
        }
        drop(items);
    }
    assert!(refused);
    let grown = resident_bytes(&agent).saturating_sub(before);
    assert!(grown < 40 << 20, "the agent has grown by {grown} bytes");
    still_serves(&agent, &clients).await;
    within(clients.files.stat(path.clone())).await.unwrap();
    // One who goes away makes room.
    let (call, items) = unread.pop().unwrap();
    call.abort();
    drop(items);
    let mut served = false;
    eventually_async(async || {
        let (call, mut items) = get();
        served = within(items.recv()).await.is_ok_and(|item| item.is_some());
        drop(call);
        served
    })
    .await;
    drop(unread);
}

async fn eventually_async(mut condition: impl AsyncFnMut() -> bool) {
    for _ in 0..3000 {
        if condition().await {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("never");
}

#[tokio::test]
async fn a_reader_that_is_stuck_does_not_hide_the_end_of_a_job() {
    let agent = Agent::start(json!({}));
    let clients = agent.clients().await;
    // It leaves a child that holds its stdin, and ends with more output than anybody takes.
    let script = "exec 3<&0; sleep 60 <&3 >/dev/null 2>&1 & head -c 2000000 /dev/zero; sleep 0.2";
    let spec = ExecSpec { stdin: true, ..shell(script) };
    let job = within(clients.exec.start(spec)).await.unwrap().job;
    let (call, input, out) = clients.exec.attach(Attach { job, from_offset: 0 });
    let attached = tokio::spawn(call);
    // More than a pipe holds: the rest waits, for ever.
    for _ in 0..16 {
        let sent = input.send(ExecIn::Stdin(Blob::from(vec![0; 64 * 1024])));
        if tokio::time::timeout(std::time::Duration::from_millis(100), sent).await.is_err() {
            break;
        }
    }
    within(clients.exec.wait(job)).await.unwrap();
    assert!(within(clients.exec.list()).await.unwrap()[0].exit.is_some());
    attached.abort();
    drop(out);
}
