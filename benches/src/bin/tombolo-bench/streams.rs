//! Bytes in one direction: each write is copied from the writer's memory, and ends in a buffer of the reader's own.

use anyhow::{Context, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tombolo_benches::fabric;
use tombolo_benches::lines::Side;
use tombolo_benches::payload::{Payload, number_of};
use tombolo_benches::probe::{Probe, Reading, Waiting};
use tombolo_benches::rings::{self, BytesRx, Halves};
use tombolo_benches::turns::{Following, Leading};
use tombolo_transport::ring::{HalfLayout, RingError};

use crate::fabric_pair::{Far, Near, expect, next_batch};
use crate::ready::{look_until, poll_until_ready};

const DRAIN: &str = "drain";
const LAYOUT: HalfLayout = HalfLayout::STREAM;

pub(crate) fn lead(leading: &mut Leading) -> anyhow::Result<Reading> {
    let runtime = fabric::on_this_thread()?;
    let busy = leading.probe().waiting == Waiting::Busy;
    let home = (!busy).then_some(&runtime);
    let Near { connection: mut stream, kept: _kept } = Near::stream(leading, home)?;
    let mut payload = Payload::new(leading.probe().bytes);
    let mut number = 0;
    leading.rates(Some(DRAIN), |count| {
        let write = async {
            for _ in 0..count {
                number += 1;
                stream.write_all(payload.numbered(number)).await?;
            }
            stream.flush().await
        };
        let written = if busy { poll_until_ready(write)? } else { runtime.block_on(write) };
        Ok(written?)
    })
}

pub(crate) fn follow(probe: &Probe, following: &mut Following) -> anyhow::Result<()> {
    let runtime = fabric::on_this_thread()?;
    let busy = probe.waiting == Waiting::Busy;
    let home = (!busy).then_some(&runtime);
    let Far { connection: mut stream, kept: _kept } = Far::stream(probe, following, home)?;
    let mut arrived = Arrived::new(probe.bytes);
    while let Some(order) = next_batch(following, DRAIN)? {
        following.batch(&order, |count| {
            let read = async {
                for _ in 0..count {
                    stream.read_exact(&mut arrived.buffer).await?;
                    arrived.whole()?;
                }
                anyhow::Ok(())
            };
            if busy { poll_until_ready(read)? } else { runtime.block_on(read) }
        })?;
        arrived.check()?;
    }
    Ok(())
}

/// What a reader has got.
struct Arrived {
    buffer: Vec<u8>,
    payload: Payload,
    number: u64,
}

impl Arrived {
    fn new(bytes: usize) -> Self {
        Self { buffer: vec![0; bytes], payload: Payload::new(bytes), number: 0 }
    }

    /// The next write is in the buffer.
    #[inline]
    fn whole(&mut self) -> anyhow::Result<()> {
        self.number += 1;
        ensure!(
            number_of(&self.buffer) == Some(self.number),
            "write {} is not the one that arrived",
            self.number
        );
        Ok(())
    }

    /// Compares the last write: after the batch, so that it is in no figure.
    fn check(&mut self) -> anyhow::Result<()> {
        self.payload.check(&self.buffer, self.number)
    }
}

pub(crate) fn lead_bare(leading: &mut Leading) -> anyhow::Result<Reading> {
    let (file, path) = rings::shared_file(rings::halves_bytes(LAYOUT))?;
    let halves = Halves::make(&file, 0, LAYOUT, Side::Leader)?;
    leading.order(&format!("halves {}", path.display()))?;
    let (mut tx, _rx) = halves.bytes()?;
    leading.order("open")?;
    let mut payload = Payload::new(leading.probe().bytes);
    let mut number = 0;
    leading.rates(Some(DRAIN), |count| {
        for _ in 0..count {
            number += 1;
            let mut rest = payload.numbered(number);
            while !rest.is_empty() {
                let taken = look_until(|| match tx.try_write(rest) {
                    Ok(taken) => Ok(Some(taken)),
                    Err(RingError::WouldBlock) => Ok(None),
                    Err(error) => Err(error.into()),
                })?;
                rest = &rest[taken..];
                let _nobody_sleeps = tx.flush()?;
            }
        }
        Ok(())
    })
}

pub(crate) fn follow_bare(probe: &Probe, following: &mut Following) -> anyhow::Result<()> {
    let order = expect(following, "halves")?;
    let file = rings::open_shared(order.words.first().context("no file for the rings")?)?;
    let halves = Halves::make(&file, 0, LAYOUT, Side::Follower)?;
    following.ready()?;
    expect(following, "open")?;
    let (_tx, mut rx) = halves.bytes()?;
    following.ready()?;
    let mut arrived = Arrived::new(probe.bytes);
    while let Some(order) = next_batch(following, DRAIN)? {
        following.batch(&order, |count| {
            for _ in 0..count {
                let mut at = 0;
                while at < arrived.buffer.len() {
                    at += read(&mut rx, &mut arrived.buffer[at..])?;
                }
                arrived.whole()?;
            }
            Ok(())
        })?;
        arrived.check()?;
    }
    Ok(())
}

fn read(rx: &mut BytesRx, out: &mut [u8]) -> anyhow::Result<usize> {
    look_until(|| match rx.try_read(out) {
        Ok(0) => bail!("the other side has shut down"),
        Ok(read) => {
            let _nobody_sleeps = rx.flush();
            Ok(Some(read))
        }
        Err(RingError::WouldBlock) => Ok(None),
        Err(error) => Err(error.into()),
    })
}
