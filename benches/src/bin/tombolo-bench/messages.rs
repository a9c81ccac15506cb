//! Messages: there and back, and in one direction.

use anyhow::{Context, ensure};
use tokio::runtime::Runtime;
use tombolo_benches::fabric;
use tombolo_benches::payload::{self, Payload};
use tombolo_benches::probe::{Probe, Reading, Test, Waiting};
use tombolo_benches::rounds::Rounds;
use tombolo_benches::turns::{Following, Leading};
use tombolo_transport::{MessageReceiver, MessageSender, Messages};

use crate::BARE;
use crate::fabric_pair::{Far, Near, next_batch};
use crate::pipe::{Bare, Connection, Pipe};
use crate::ready::look_until;

const ECHO: &str = "echo";
const DRAIN: &str = "drain";
/// Messages between two flushes, where they are sent in batches.
const BATCH: usize = 128;

pub(crate) fn lead_round_trips(leading: &mut Leading) -> anyhow::Result<Reading> {
    if leading.probe().way == BARE {
        let pipe = Bare::lead(leading)?;
        return lead_polling(leading, pipe);
    }
    if leading.probe().waiting != Waiting::Busy {
        return lead_on_runtime(leading);
    }
    let Near { connection, kept: _kept } = Near::messages(leading, None)?;
    let (sender, receiver) = connection.split();
    lead_polling(leading, Connection(sender, receiver))
}

fn lead_polling(leading: &mut Leading, mut pipe: impl Pipe) -> anyhow::Result<Reading> {
    let mut payload = Payload::new(leading.probe().bytes);
    let mut received = payload::room(leading.probe().bytes);
    let mut number = 0;
    leading.times(Some(ECHO), |mut rounds| {
        while rounds.another() {
            number += 1;
            ensure!(pipe.try_send(payload.numbered(number))?, "no room for one message");
            look_until(|| Ok(pipe.try_recv(&mut received)?.then_some(())))?;
            payload.check(&received, number)?;
        }
        Ok(rounds)
    })
}

pub(crate) fn follow(probe: &Probe, following: &mut Following) -> anyhow::Result<()> {
    if probe.way == BARE {
        let pipe = Bare::follow(following)?;
        return follow_polling(probe, following, pipe);
    }
    if probe.waiting != Waiting::Busy {
        return follow_on_runtime(probe, following);
    }
    let Far { connection, kept: _kept } = Far::messages(probe, following, None)?;
    let (sender, receiver) = connection.split();
    follow_polling(probe, following, Connection(sender, receiver))
}

fn follow_polling(probe: &Probe, following: &mut Following, mut pipe: impl Pipe) -> anyhow::Result<()> {
    let answers = probe.test == Test::RoundTrip;
    let mut payload = Payload::new(probe.bytes);
    let mut received = payload::room(probe.bytes);
    let mut number = 0;
    while let Some(order) = next_batch(following, if answers { ECHO } else { DRAIN })? {
        following.batch(&order, |count| {
            if probe.test == Test::OneWayBatched {
                number = drain_batches(&payload, number, count, &mut pipe)?;
                return Ok(());
            }
            for _ in 0..count {
                number += 1;
                look_until(|| Ok(pipe.try_recv(&mut received)?.then_some(())))?;
                payload.check(&received, number)?;
                if answers {
                    ensure!(pipe.try_send(payload.numbered(number))?, "no room for one message");
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

pub(crate) fn lead_one_way(leading: &mut Leading) -> anyhow::Result<Reading> {
    if leading.probe().way == BARE {
        let pipe = Bare::lead(leading)?;
        return lead_one_way_by(leading, pipe);
    }
    let Near { connection, kept: _kept } = Near::messages(leading, None)?;
    let (sender, receiver) = connection.split();
    lead_one_way_by(leading, Connection(sender, receiver))
}

fn lead_one_way_by(leading: &mut Leading, pipe: impl Pipe) -> anyhow::Result<Reading> {
    match leading.probe().test {
        Test::OneWayBatched => lead_batches(leading, pipe),
        _ => lead_one_by_one(leading, pipe),
    }
}

fn lead_one_by_one(leading: &mut Leading, mut pipe: impl Pipe) -> anyhow::Result<Reading> {
    let mut payload = Payload::new(leading.probe().bytes);
    let mut number = 0;
    leading.rates(Some(DRAIN), |count| {
        for _ in 0..count {
            number += 1;
            let message = payload.numbered(number);
            look_until(|| Ok(pipe.try_send(message)?.then_some(())))?;
        }
        pipe.flush()
    })
}

fn lead_batches(leading: &mut Leading, mut pipe: impl Pipe) -> anyhow::Result<Reading> {
    let mut payloads = vec![Payload::new(leading.probe().bytes); BATCH];
    let mut number = 0;
    leading.rates(Some(DRAIN), |count| {
        let mut left = count;
        while left != 0 {
            let batch = &mut payloads[..BATCH.min(usize::try_from(left).unwrap_or(BATCH))];
            left -= batch.len() as u64;
            for payload in batch.iter_mut() {
                number += 1;
                payload.numbered(number);
            }
            let mut taken = 0;
            look_until(|| {
                taken += pipe.try_put_many(batch[taken..].iter().map(Payload::bytes))?;
                Ok((taken == batch.len()).then_some(()))
            })?;
            pipe.flush()?;
        }
        Ok(())
    })
}

/// Receives `count` messages, of which the first has the number after `number`. Returns that of the last.
fn drain_batches(payload: &Payload, number: u64, count: u64, pipe: &mut impl Pipe) -> anyhow::Result<u64> {
    let (mut number, last) = (number, number + count);
    let mut checked = Ok(());
    while number != last {
        look_until(|| {
            let found = pipe.try_recv_many(|message| {
                number += 1;
                if let Err(error) = payload.check(message, number) {
                    checked = Err(error);
                }
            })?;
            if found == 0 {
                std::hint::spin_loop();
            }
            Ok((found != 0).then_some(()))
        })?;
    }
    checked.map(|()| number)
}

/// A connection and what travels on it, for a task to have as its own.
struct Talk {
    sender: MessageSender,
    receiver: MessageReceiver,
    payload: Payload,
    received: Vec<u8>,
    number: u64,
}

impl Talk {
    fn new(messages: Messages, bytes: usize) -> Self {
        let (sender, receiver) = messages.split();
        Self { sender, receiver, payload: Payload::new(bytes), received: payload::room(bytes), number: 0 }
    }

    async fn ask(&mut self, mut rounds: Rounds) -> anyhow::Result<Rounds> {
        while rounds.another() {
            self.number += 1;
            self.sender.send(self.payload.numbered(self.number)).await?;
            self.receive().await?;
        }
        Ok(rounds)
    }

    async fn answer(&mut self, count: u64) -> anyhow::Result<()> {
        for _ in 0..count {
            self.number += 1;
            self.receive().await?;
            self.sender.send(self.payload.numbered(self.number)).await?;
        }
        Ok(())
    }

    async fn receive(&mut self) -> anyhow::Result<()> {
        ensure!(self.receiver.recv_into(&mut self.received).await?, "the other side has shut down");
        self.payload.check(&self.received, self.number)
    }
}

/// Runs `work` as a task of its own, as in a server: what `block_on` itself runs has to wait for up to 61 turns of the tasks.
fn on_task<S: Send + 'static, T: Send + 'static, F>(
    runtime: &Runtime,
    state: &mut Option<S>,
    work: impl FnOnce(S) -> F,
) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<(S, T)>> + Send + 'static,
{
    let taken = state.take().context("lost in a task that failed")?;
    let (back, result) = runtime.block_on(runtime.spawn(work(taken)))??;
    *state = Some(back);
    Ok(result)
}

fn lead_on_runtime(leading: &mut Leading) -> anyhow::Result<Reading> {
    let runtime = fabric::on_this_thread()?;
    let Near { connection, kept: _kept } = Near::messages(leading, Some(&runtime))?;
    let mut talk = Some(Talk::new(connection, leading.probe().bytes));
    leading.times(Some(ECHO), |rounds| {
        on_task(&runtime, &mut talk, async |mut talk| {
            let rounds = talk.ask(rounds).await?;
            Ok((talk, rounds))
        })
    })
}

fn follow_on_runtime(probe: &Probe, following: &mut Following) -> anyhow::Result<()> {
    let runtime = fabric::on_this_thread()?;
    let Far { connection, kept: _kept } = Far::messages(probe, following, Some(&runtime))?;
    let mut talk = Some(Talk::new(connection, probe.bytes));
    while let Some(order) = next_batch(following, ECHO)? {
        following.batch(&order, |count| {
            on_task(&runtime, &mut talk, async move |mut talk| {
                talk.answer(count).await?;
                Ok((talk, ()))
            })
        })?;
    }
    Ok(())
}
