//! Typed calls.

use std::time::Duration;

use anyhow::ensure;
use tombolo_benches::calls::{Record, TouchBusyClient, TouchClient, Toucher, receipt};
use tombolo_benches::payload::Payload;
use tombolo_benches::probe::{Probe, Reading, Test, Waiting};
use tombolo_benches::rounds::Rounds;
use tombolo_benches::turns::{Following, Leading};
use tombolo_benches::{duo, fabric};
use tombolo_rpc::{Blob, BusyClient, BusyServer, Link, LinkConfig, Router};

use crate::fabric_pair::{Far, Near, expect, next_batch};

const SERVE: &str = "serve";
/// Calls under way at any time, where there is more than one. Batches are multiples of it.
const IN_FLIGHT: u64 = 64;

pub(crate) fn lead(leading: &mut Leading) -> anyhow::Result<Reading> {
    match leading.probe().waiting {
        Waiting::Busy => lead_busy(leading),
        _ => lead_on_runtime(leading),
    }
}

pub(crate) fn follow(probe: &Probe, following: &mut Following) -> anyhow::Result<()> {
    match probe.waiting {
        Waiting::Busy => follow_busy(probe, following),
        _ => follow_on_runtime(probe, following),
    }
}

/// A link that sends nothing of its own accord, so that the frames of a batch can be counted.
fn quiet() -> LinkConfig {
    let hour = Duration::from_secs(3600);
    LinkConfig { keepalive: hour, silence_max: 2 * hour, ..LinkConfig::new("bench") }
}

fn lead_busy(leading: &mut Leading) -> anyhow::Result<Reading> {
    let Near { connection, kept: _kept } = Near::messages(leading, None)?;
    leading.order("link")?;
    let mut client = BusyClient::connect(connection, quiet())?;
    let bytes = bytes_to_call_with(leading.probe());
    leading.times(Some(SERVE), |mut rounds| {
        let mut client = TouchBusyClient::new(&mut client);
        while rounds.another() {
            match &bytes {
                None => check(&client.touch(Record::sample())?)?,
                Some(bytes) => ensure!(client.take(bytes.clone())? == receipt(bytes), "wrong answer"),
            }
        }
        Ok(rounds)
    })
}

fn follow_busy(probe: &Probe, following: &mut Following) -> anyhow::Result<()> {
    let Far { connection, kept: _kept } = Far::messages(probe, following, None)?;
    expect(following, "link")?;
    following.ready()?;
    let toucher = Toucher::default();
    let mut server = BusyServer::accept(connection, quiet(), toucher.router())?;
    while let Some(order) = next_batch(following, SERVE)? {
        following.batch(&order, |count| {
            let due = toucher.served() + count;
            while toucher.served() < due {
                server.poll()?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn bytes_to_call_with(probe: &Probe) -> Option<Blob> {
    (probe.test == Test::CallWithBytes).then(|| Blob::from(Payload::new(probe.bytes).numbered(1).to_vec()))
}

fn check(answer: &Record) -> anyhow::Result<()> {
    ensure!(answer.answers_sample(), "wrong answer {answer:?}");
    Ok(())
}

fn lead_on_runtime(leading: &mut Leading) -> anyhow::Result<Reading> {
    let runtime = fabric::on_this_thread()?;
    let Near { connection, kept: _kept } = Near::messages(leading, Some(&runtime))?;
    leading.order("link")?;
    let link = runtime.block_on(Link::connect(connection, quiet(), Router::new()))?;
    let client = TouchClient::new(link.clone());
    let bytes = bytes_to_call_with(leading.probe());
    // In tasks of their own, as in a server: what `block_on` itself runs has to wait for up to 61 turns of the tasks.
    if leading.probe().test == Test::CallsInFlight {
        return leading.rates(None, |count| {
            let task = || runtime.spawn(call(client.clone(), count / IN_FLIGHT));
            let tasks: Vec<_> = (0..IN_FLIGHT).map(|_| task()).collect();
            runtime.block_on(async {
                for task in tasks {
                    task.await??;
                }
                Ok(())
            })
        });
    }
    leading.times(None, |rounds| {
        runtime.block_on(runtime.spawn(call_timed(client.clone(), rounds, bytes.clone())))?
    })
}

async fn call(client: TouchClient, count: u64) -> anyhow::Result<()> {
    for _ in 0..count {
        check(&client.touch(Record::sample()).await?)?;
    }
    Ok(())
}

async fn call_timed(client: TouchClient, mut rounds: Rounds, bytes: Option<Blob>) -> anyhow::Result<Rounds> {
    while rounds.another() {
        match &bytes {
            None => check(&client.touch(Record::sample()).await?)?,
            Some(bytes) => ensure!(client.take(bytes.clone()).await? == receipt(bytes), "wrong answer"),
        }
    }
    Ok(rounds)
}

/// The server has a thread on the follower's core; it sleeps while the lines are measured.
fn follow_on_runtime(probe: &Probe, following: &mut Following) -> anyhow::Result<()> {
    let runtime = fabric::on_this_thread()?;
    let Far { connection, kept: _kept } = Far::messages(probe, following, Some(&runtime))?;
    expect(following, "link")?;
    std::thread::spawn(move || {
        duo::pin_follower();
        let served = runtime.block_on(async {
            let link = Link::accept(connection, quiet(), Toucher::default().router()).await?;
            anyhow::Ok(link.closed().await)
        });
        if let Err(error) = served {
            eprintln!("the server's link failed: {error:#}");
        }
    });
    following.ready()?;
    let more = following.next_order()?;
    ensure!(more.is_none(), "a server needs no orders");
    Ok(())
}
