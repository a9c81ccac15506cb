//! shmipc: streams whose bytes are in shared memory, told of by eventfds, under Tokio.

use std::os::unix::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use shmipc::config::{Config, SizePercentPair};
use shmipc::consts::MemMapType;
use shmipc::session::{SessionManager, SessionManagerConfig};
use shmipc::stream::Stream;
use shmipc::transport::{DefaultUnixConnect, DefaultUnixListen};
use shmipc::{Error, Listener};
use tokio::runtime::{Builder, Runtime};
use tombolo_benches::payload::{Payload, number_of};
use tombolo_benches::probe::{Probe, Reading, Test};
use tombolo_benches::turns::{Following, Leading};

use crate::link::LEAVE;

const MEET: &str = "meet";
const ECHO: &str = "echo";
const DRAIN: &str = "drain";
/// For the two ends to find each other.
const CONNECT: Duration = Duration::from_secs(10);

/// Slices are to hold a whole message, with the room that its own benchmark gives them.
const SLICE_HEAD: usize = 256;
/// Memory of a session, in slices of one size.
const POOL_BYTES: usize = 64 << 20;
/// Messages that are not yet acknowledged: without a window the sender runs out of slices, and the stream then goes over the socket for good.
const WINDOW_BYTES: usize = 16 << 20;
const WINDOW_MAX: u64 = 1024;
/// Of an acknowledgement.
const ACK_BYTES: usize = 8;

fn config(bytes: usize) -> Config {
    let mut config = Config::new();
    config.mem_map_type = MemMapType::MemMapTypeMemFd;
    config.share_memory_buffer_cap = POOL_BYTES as u32;
    config.buffer_slice_sizes = vec![SizePercentPair { size: (bytes + SLICE_HEAD) as u32, percent: 100 }];
    config.with_v4_eventfd()
}

fn address(path: &Path) -> anyhow::Result<SocketAddr> {
    Ok(SocketAddr::from_pathname(path)?)
}

fn runtime() -> anyhow::Result<Runtime> {
    Ok(Builder::new_current_thread().enable_all().build()?)
}

/// Its errors as ours.
fn said(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("shmipc said: {error}")
}

/// One end of a stream of messages.
struct Messages {
    stream: Stream,
    payload: Payload,
    bytes: usize,
    window: u64,
}

impl Messages {
    fn new(stream: Stream, bytes: usize) -> Self {
        let window = ((WINDOW_BYTES / bytes) as u64).clamp(2, WINDOW_MAX);
        Self { stream, payload: Payload::new(bytes), bytes, window }
    }

    async fn send(&mut self, number: u64) -> anyhow::Result<()> {
        self.stream.write_bytes(self.payload.numbered(number)).map_err(said)?;
        self.flush().await
    }

    async fn receive(&mut self, number: u64) -> anyhow::Result<()> {
        let message = self.stream.read_exact_bytes(self.bytes).await.map_err(said)?;
        self.payload.check(&message, number)?;
        drop(message);
        self.stream.release_read_and_reuse();
        Ok(())
    }

    /// Of a loan the number alone is written and read.
    async fn send_loan(&mut self, number: u64) -> anyhow::Result<()> {
        let loan = self.stream.reserve(self.bytes).map_err(said)?;
        loan[..size_of::<u64>()].copy_from_slice(&number.to_le_bytes());
        self.flush().await
    }

    async fn receive_loan(&mut self, number: u64) -> anyhow::Result<()> {
        let loan = self.stream.read_exact_bytes(self.bytes).await.map_err(said)?;
        let found = number_of(&loan);
        ensure!(found == Some(number), "loan {found:?} where {number} was due");
        drop(loan);
        self.stream.release_read_and_reuse();
        Ok(())
    }

    async fn flush(&mut self) -> anyhow::Result<()> {
        loop {
            match self.stream.flush(false).await {
                Ok(()) => break,
                Err(Error::QueueFull) => tokio::task::yield_now().await,
                Err(error) => return Err(said(error)),
            }
        }
        if self.stream.fallback_state() {
            bail!("the stream has fallen back to the socket: its figure would be the socket's");
        }
        Ok(())
    }

    /// Half of the window has arrived: the sender may go on.
    async fn acknowledge(&mut self) -> anyhow::Result<()> {
        self.stream.write_bytes(&[0; ACK_BYTES]).map_err(said)?;
        self.flush().await
    }

    async fn await_acknowledgement(&mut self) -> anyhow::Result<()> {
        drop(self.stream.read_exact_bytes(ACK_BYTES).await.map_err(said)?);
        self.stream.release_read_and_reuse();
        Ok(())
    }

    async fn send_many(&mut self, first: u64, count: u64, loans: bool) -> anyhow::Result<()> {
        let step = self.window / 2;
        let mut acknowledged = 0;
        for sent in 0..count {
            if sent >= acknowledged + self.window {
                self.await_acknowledgement().await?;
                acknowledged += step;
            }
            if loans { self.send_loan(first + sent).await? } else { self.send(first + sent).await? }
        }
        // Those that are still to come.
        for _ in acknowledged / step..count / step {
            self.await_acknowledgement().await?;
        }
        Ok(())
    }

    async fn receive_many(&mut self, first: u64, count: u64, loans: bool) -> anyhow::Result<()> {
        let step = self.window / 2;
        for received in 0..count {
            if loans {
                self.receive_loan(first + received).await?;
            } else {
                self.receive(first + received).await?;
            }
            if (received + 1) % step == 0 {
                self.acknowledge().await?;
            }
        }
        Ok(())
    }
}

fn is_of_loans(probe: &Probe) -> bool {
    matches!(probe.test, Test::LoanRoundTrip | Test::LoanOneWay)
}

/// The leader's part.
pub(crate) fn lead(leading: &mut Leading, at: &Path) -> anyhow::Result<Reading> {
    let probe = leading.probe().clone();
    let loans = is_of_loans(&probe);
    let path = at.join("socket");
    let runtime = runtime()?;
    leading.order(&format!("{MEET} {}", path.display()))?;
    let connecting = async {
        let config = SessionManagerConfig::new().with_config(config(probe.bytes)).with_session_num(1);
        let manager = SessionManager::new(config, DefaultUnixConnect, address(&path)?).await.map_err(said)?;
        let mut link = Messages::new(manager.get_stream().map_err(said)?, probe.bytes);
        link.send(0).await?;
        link.receive(0).await?;
        anyhow::Ok((manager, link))
    };
    let (_manager, mut link) = runtime
        .block_on(async { tokio::time::timeout(CONNECT, connecting).await })
        .context("connecting")?
        .context("connecting")?;
    let mut next = 0;
    match probe.test {
        Test::RoundTrip | Test::LoanRoundTrip => leading.times(Some(ECHO), |mut rounds| {
            runtime.block_on(async {
                while rounds.another() {
                    if loans {
                        link.send_loan(next).await?;
                        link.receive_loan(next).await?;
                    } else {
                        link.send(next).await?;
                        link.receive(next).await?;
                    }
                    next += 1;
                }
                Ok(rounds)
            })
        }),
        Test::OneWay | Test::Stream | Test::LoanOneWay => leading.rates(Some(DRAIN), |count| {
            runtime.block_on(link.send_many(next, count, loans))?;
            next += count;
            Ok(())
        }),
        other => bail!("no measurement of {other:?} by shmipc"),
    }
}

/// The follower's part.
pub(crate) fn follow(probe: &Probe, following: &mut Following) -> anyhow::Result<()> {
    let loans = is_of_loans(probe);
    let order = following.next_order()?.context("no order to meet")?;
    let path = PathBuf::from(order.words.first().context("an order to meet without a place")?);
    let runtime = runtime()?;
    let (address, config) = (address(&path)?, config(probe.bytes));
    let mut listener =
        runtime.block_on(Listener::new(DefaultUnixListen, address, config)).context("listening")?;
    following.ready()?;
    let mut link = runtime.block_on(async {
        let stream = tokio::time::timeout(CONNECT, listener.accept()).await.context("accepting")??;
        let mut link = Messages::new(stream, probe.bytes);
        link.receive(0).await?;
        link.send(0).await?;
        anyhow::Ok(link)
    })?;
    let mut next = 0;
    while let Some(order) = following.next_order()? {
        match order.word.as_str() {
            ECHO => following.batch(&order, |count| {
                runtime.block_on(async {
                    for number in next..next + count {
                        if loans {
                            link.receive_loan(number).await?;
                            link.send_loan(number).await?;
                        } else {
                            link.receive(number).await?;
                            link.send(number).await?;
                        }
                    }
                    anyhow::Ok(())
                })
            })?,
            DRAIN => {
                following.batch(&order, |count| runtime.block_on(link.receive_many(next, count, loans)))?;
            }
            LEAVE => break,
            other => bail!("unknown order `{other}`"),
        }
        next += order.count;
    }
    Ok(())
}
