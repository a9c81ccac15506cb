//! From the send of a message until a receiver that was parked runs with it.

use anyhow::ensure;
use tombolo_benches::fabric;
use tombolo_benches::payload::Payload;
use tombolo_benches::probe::{Probe, Reading};
use tombolo_benches::turns::{Following, Leading};

use crate::fabric_pair::{Far, Near, next_batch};

const SLEEP: &str = "sleep";

pub(crate) fn lead(leading: &mut Leading) -> anyhow::Result<Reading> {
    let Near { connection: mut messages, kept: _kept } = Near::messages(leading, None)?;
    let mut payload = Payload::new(leading.probe().bytes);
    leading.note("the sender's broker stands in the sender's process, on any core");
    leading.wakes(SLEEP, |number| {
        ensure!(messages.try_send(payload.numbered(number))?, "no room for one message");
        Ok(())
    })
}

pub(crate) fn follow(probe: &Probe, following: &mut Following) -> anyhow::Result<()> {
    let runtime = fabric::on_this_thread()?;
    let Far { connection, kept: _kept } = Far::messages(probe, following, Some(&runtime))?;
    let (_sender, mut receiver) = connection.split();
    let payload = Payload::new(probe.bytes);
    let mut received = Vec::with_capacity(probe.bytes);
    while let Some(order) = next_batch(following, SLEEP)? {
        following.wakes(&order, |number| {
            ensure!(runtime.block_on(receiver.recv_into(&mut received))?, "the other side has shut down");
            payload.check(&received, number)
        })?;
    }
    Ok(())
}
