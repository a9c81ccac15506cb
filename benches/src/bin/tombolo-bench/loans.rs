//! Long messages by loan: nothing of them is written or read but their number.

use anyhow::{bail, ensure};
use tombolo_benches::probe::{Probe, Reading, Test};
use tombolo_benches::turns::{Following, Leading};
use tombolo_transport::{Messages, TryRead};

use crate::fabric_pair::{Far, Near, next_batch};
use crate::ready::look_until;

const ECHO: &str = "echo";
const DRAIN: &str = "drain";

pub(crate) fn lead_round_trips(leading: &mut Leading) -> anyhow::Result<Reading> {
    let Near { connection: mut messages, kept: _kept } = Near::messages(leading, None)?;
    let bytes = leading.probe().bytes;
    let mut number = 0;
    leading.times(Some(ECHO), |mut rounds| {
        while rounds.another() {
            number += 1;
            send(&mut messages, bytes, number)?;
            receive(&mut messages, number)?;
        }
        Ok(rounds)
    })
}

pub(crate) fn lead_one_way(leading: &mut Leading) -> anyhow::Result<Reading> {
    let Near { connection: mut messages, kept: _kept } = Near::messages(leading, None)?;
    let bytes = leading.probe().bytes;
    let mut number = 0;
    leading.rates(Some(DRAIN), |count| {
        for _ in 0..count {
            number += 1;
            send(&mut messages, bytes, number)?;
        }
        Ok(())
    })
}

pub(crate) fn follow(probe: &Probe, following: &mut Following) -> anyhow::Result<()> {
    let Far { connection: mut messages, kept: _kept } = Far::messages(probe, following, None)?;
    let answers = probe.test == Test::LoanRoundTrip;
    let mut number = 0;
    while let Some(order) = next_batch(following, if answers { ECHO } else { DRAIN })? {
        following.batch(&order, |count| {
            for _ in 0..count {
                number += 1;
                receive(&mut messages, number)?;
                if answers {
                    send(&mut messages, probe.bytes, number)?;
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[inline]
fn send(messages: &mut Messages, bytes: usize, number: u64) -> anyhow::Result<()> {
    let mut written = Ok(());
    look_until(|| {
        let sent = messages.try_send_in_place(bytes, |message| {
            written = message.write_at(0, &number.to_le_bytes());
        })?;
        Ok(sent.then_some(()))
    })?;
    Ok(written?)
}

#[inline]
fn receive(messages: &mut Messages, number: u64) -> anyhow::Result<()> {
    let mut found = [0; 8];
    look_until(|| match messages.try_recv_in_place(|message| message.read_at(0, &mut found))? {
        TryRead::Read(read) => Ok(Some(read?)),
        TryRead::Empty => Ok(None),
        TryRead::End => bail!("the other side has shut down"),
    })?;
    ensure!(u64::from_le_bytes(found) == number, "what arrived is not message {number}");
    Ok(())
}
