//! Peers of Tombolo, each measured by the procedure that measures Tombolo: one probe at a time, beside the machine's floor.
//!
//! `tombolo-peers probes` lists what can be measured; `tombolo-peers take ..` measures. What both say is described at
//! `tombolo_benches::probe`.

mod calls;
mod link;
mod messages;
mod place;
mod table;

use std::process::ExitCode;

use anyhow::Context;
use tombolo_benches::probe::{Probe, Reading};
use tombolo_benches::program::{self, Means};
use tombolo_benches::turns::{Following, Leading};

use place::Place;

struct Peers;

impl Means for Peers {
    fn probes(&self) -> Vec<Probe> {
        table::probes()
    }

    fn lead(&self, leading: &mut Leading) -> anyhow::Result<Reading> {
        let peer = table::peer(leading.probe()).context("no such peer")?;
        let place = Place::make(leading)?;
        let reading = (peer.lead)(leading, place.path())?;
        leading.order(link::LEAVE)?;
        Ok(reading)
    }

    fn follow(&self, probe: &Probe, following: &mut Following) -> anyhow::Result<()> {
        let peer = table::peer(probe).context("no such peer")?;
        let _place = place::watch(following)?;
        (peer.follow)(probe, following)?;
        // What the peer held is gone, and with it its files.
        following.ready()
    }
}

fn main() -> ExitCode {
    program::main(&Peers)
}
