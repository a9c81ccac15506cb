//! Typed calls between two processes: what a peer has to do, and how every peer is measured at it.
//!
//! Two calls are served, both over a Unix socket: `touch` takes a record of a number and a key and gives it back with the number one higher;
//! `swallow` takes bytes and gives back what says that they are there.

pub(crate) mod capnp;
pub(crate) mod iceoryx2;
pub(crate) mod postcard_rpc;
pub(crate) mod tarpc;
pub(crate) mod tonic;
pub(crate) mod ttrpc;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use futures_util::future::try_join_all;
use tokio::runtime::{Builder, Runtime};
use tokio::task::LocalSet;
use tombolo_benches::calls::{Record, receipt};
use tombolo_benches::duo;
use tombolo_benches::payload::{Payload, number_of};
use tombolo_benches::probe::{Reading, Test};
use tombolo_benches::turns::{Following, Leading};

use crate::link::LEAVE;

/// Calls under way at any time in [`Test::CallsInFlight`].
const IN_FLIGHT: u64 = 64;
/// For a server to be there, and for one that was just started to answer.
const CONNECT: Duration = Duration::from_secs(10);
const SERVE: &str = "serve";
const NOTE: &str = "over a Unix socket; its Tokio sleeps as soon as there is nothing to do";

/// What the callee answers to bytes, which it has where its framework puts them. Of the first call it reads every one.
pub(crate) fn swallowed(bytes: &[u8]) -> anyhow::Result<u64> {
    if number_of(bytes) == Some(0) {
        Payload::new(bytes.len()).check(bytes, 0)?;
    }
    Ok(receipt(bytes))
}

/// A framework for calls.
pub(crate) trait Framework {
    /// What calls.
    type Client;

    /// Serves at a Unix socket until it is dropped; `listening` is told when calls will be heard.
    fn serve(path: PathBuf, listening: Sender<()>) -> impl Future<Output = anyhow::Result<()>>;

    /// A client of what serves there.
    fn connect(path: &Path) -> impl Future<Output = anyhow::Result<Self::Client>>;

    /// Calls `touch`.
    fn touch(client: &Self::Client, record: Record) -> impl Future<Output = anyhow::Result<Record>>;

    /// Calls `swallow`. The bytes are copied to where they leave from.
    fn swallow(client: &Self::Client, bytes: &[u8]) -> impl Future<Output = anyhow::Result<u64>>;
}

fn runtime() -> anyhow::Result<Runtime> {
    Ok(Builder::new_current_thread().enable_all().build()?)
}

async fn touch<F: Framework + 'static>(client: &F::Client) -> anyhow::Result<()> {
    let answer = F::touch(client, Record::sample()).await?;
    ensure!(answer.answers_sample(), "wrong answer {answer:?}");
    Ok(())
}

/// The leader's part: calls, on one thread with the framework's client.
pub(crate) fn lead<F: Framework + 'static>(leading: &mut Leading, at: &Path) -> anyhow::Result<Reading> {
    leading.note(NOTE);
    let path = at.join("socket");
    leading.order(&format!("{SERVE} {}", path.display()))?;
    let (runtime, local) = (runtime()?, LocalSet::new());
    let client = local.block_on(&runtime, async {
        tokio::time::timeout(CONNECT, F::connect(&path)).await.context("connecting")?
    })?;
    let probe = leading.probe().clone();
    match probe.test {
        Test::Call => leading.times(None, |mut rounds| {
            local.block_on(&runtime, async {
                while rounds.another() {
                    touch::<F>(&client).await?;
                }
                Ok(rounds)
            })
        }),
        Test::CallsInFlight => leading.rates(None, |count| {
            local.block_on(&runtime, async {
                let mut callers = Vec::new();
                for caller in 0..IN_FLIGHT {
                    let client = &client;
                    callers.push(async move {
                        for _ in (caller..count).step_by(IN_FLIGHT as usize) {
                            touch::<F>(client).await?;
                        }
                        anyhow::Ok(())
                    });
                }
                try_join_all(callers).await?;
                Ok(())
            })
        }),
        Test::CallWithBytes => {
            let mut payload = Payload::new(probe.bytes);
            let mut next = 0;
            leading.times(None, |mut rounds| {
                local.block_on(&runtime, async {
                    while rounds.another() {
                        let bytes = payload.numbered(next);
                        let answer = F::swallow(&client, bytes).await?;
                        ensure!(answer == receipt(bytes), "wrong answer {answer} to the bytes of {next}");
                        next += 1;
                    }
                    Ok(rounds)
                })
            })
        }
        other => bail!("no measurement of {other:?} by calls"),
    }
}

/// The follower's part: a thread that serves, on the second core, while this one carries out orders.
pub(crate) fn follow<F: Framework + 'static>(following: &mut Following) -> anyhow::Result<()> {
    let order = following.next_order()?.context("no order to serve")?;
    let path = PathBuf::from(order.words.first().context("an order to serve without a place")?);
    let (listening, heard) = channel();
    std::thread::spawn(move || {
        duo::pin_follower();
        let served =
            runtime().and_then(|runtime| LocalSet::new().block_on(&runtime, F::serve(path, listening)));
        if let Err(error) = served {
            eprintln!("the server has ended: {error:#}");
            std::process::exit(1);
        }
    });
    heard.recv_timeout(CONNECT).context("the server does not listen")?;
    following.ready()?;
    match following.next_order()? {
        Some(order) if order.word != LEAVE => bail!("unknown order `{}`", order.word),
        _ => Ok(()),
    }
}
