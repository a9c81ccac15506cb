//! A client that goes on through the death of its service, and says when it noticed and when it went on.

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tombolo_rpc::{Blob, CallError};
use tombolo_transport::Endpoint;

use super::measure::{connect, key};
use super::{KvClient, KvError, expected_value};

/// How often it says that it is alive.
const ALIVE: Duration = Duration::from_millis(10);

/// How long it waits before it tries to connect again.
const RETRY: Duration = Duration::from_millis(20);

/// How long a call may take before it counts as failed: far longer than the death of a kernel takes to notice.
const CALL_MAX: Duration = Duration::from_secs(5);

/// Calls the service `name` without end. Prints one JSON object per line: `alive` every 10 ms while calls succeed,
/// `failed` with the error when they no longer do, `resumed` when they do again. Each has the time by this kernel's
/// clock.
///
/// # Errors
/// When it cannot even begin.
pub async fn watch(broker: &Path, name: &str) -> Result<()> {
    let endpoint = Endpoint::attach(broker).await.context("could not attach to the fabric")?;
    let mut kv = KvClient::new(connect(&endpoint, name).await?);
    let mut round = 0;
    loop {
        let (calls, failed) = call_until_failure(&kv, &mut round).await?;
        let failed_at = Instant::now();
        say(
            &json!({ "event": "failed", "at_unix_ns": unix_ns(), "calls": calls, "error": failed.text, "kind": failed.kind, "outcome": failed.outcome }),
        )?;
        kv = loop {
            match connect(&endpoint, name).await {
                Ok(link) => break KvClient::new(link),
                Err(_) => tokio::time::sleep(RETRY).await,
            }
        };
        // Only a reply proves that it is back.
        if let Err(error) = checked_call(&kv, 0, round).await {
            say(&json!({ "event": "not-yet", "at_unix_ns": unix_ns(), "error": error.text }))?;
            continue;
        }
        let after_ms = failed_at.elapsed().as_secs_f64() * 1e3;
        say(&json!({ "event": "resumed", "at_unix_ns": unix_ns(), "after_ms": after_ms }))?;
    }
}

/// Calls until one fails; returns how many succeeded and the error.
async fn call_until_failure(kv: &KvClient, round: &mut u32) -> Result<(u64, Failed)> {
    let mut calls = 0_u64;
    let mut said = Instant::now();
    loop {
        *round = round.wrapping_add(1);
        for index in 0..16 {
            if let Err(error) = checked_call(kv, index, *round).await {
                return Ok((calls, error));
            }
            calls += 2;
        }
        if said.elapsed() >= ALIVE {
            said = Instant::now();
            say(&json!({ "event": "alive", "at_unix_ns": unix_ns(), "calls": calls }))?;
        }
    }
}

/// A call that did not do.
struct Failed {
    /// For people.
    text: String,
    /// The error's type.
    kind: String,
    /// Whether the call ran.
    outcome: String,
}

impl Failed {
    fn from(error: &CallError<KvError>) -> Self {
        let debug = match error {
            CallError::App(error) => format!("App{error:?}"),
            CallError::Failed(failure) => format!("{failure:?}"),
        };
        let kind = debug.split([' ', '(']).next().unwrap_or_default().to_owned();
        Self { text: error.to_string(), kind, outcome: format!("{:?}", error.outcome()).to_lowercase() }
    }
}

/// Writes and reads back one value.
async fn checked_call(kv: &KvClient, index: u32, round: u32) -> Result<(), Failed> {
    let expected = expected_value(index, round);
    let write = kv.write(key(index), Blob::from(expected.clone())).deadline(CALL_MAX);
    write.await.map_err(|error| Failed::from(&error))?;
    let read = kv.read(key(index)).deadline(CALL_MAX).await.map_err(|error| Failed::from(&error))?;
    if read.is_some_and(|value| value.0 == expected) {
        return Ok(());
    }
    Err(Failed { text: "the reply was wrong".into(), kind: "WrongReply".into(), outcome: "done".into() })
}

fn say(event: &Value) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{event}")?;
    Ok(stdout.flush()?)
}

fn unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
