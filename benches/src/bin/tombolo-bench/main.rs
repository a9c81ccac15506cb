//! Tombolo's own measurements, for `cargo xtask bench`: each is taken beside the floor of the same two processes.

mod calls;
mod fabric_pair;
mod loans;
mod messages;
mod pipe;
mod ready;
mod streams;
mod wakes;

use std::process::ExitCode;

use anyhow::bail;
use tombolo_benches::calls::RECORD_BYTES;
use tombolo_benches::probe::{Probe, Reading, Test, Waiting};
use tombolo_benches::program::{self, Means};
use tombolo_benches::turns::{Following, Leading};

/// What applications use: connections through a broker, and calls on them.
const TOMBOLO: &str = "tombolo";
/// The rings of such a connection and nothing around them.
const BARE: &str = "bare ring";

fn main() -> ExitCode {
    program::main(&Tombolo)
}

struct Tombolo;

impl Means for Tombolo {
    fn probes(&self) -> Vec<Probe> {
        use Test::*;
        use Waiting::*;
        let all: &[(Test, usize, Waiting, &[&str])] = &[
            (RoundTrip, 56, Busy, &[TOMBOLO, BARE]),
            (RoundTrip, 512, Busy, &[TOMBOLO]),
            (RoundTrip, 4096, Busy, &[TOMBOLO, BARE]),
            (RoundTrip, 56, Tokio, &[TOMBOLO]),
            (RoundTrip, 56, Asleep, &[TOMBOLO]),
            (OneWay, 64, Busy, &[TOMBOLO, BARE]),
            (OneWayBatched, 64, Busy, &[TOMBOLO, BARE]),
            (Stream, 4096, Busy, &[TOMBOLO]),
            (Stream, 64 << 10, Busy, &[TOMBOLO, BARE]),
            (Stream, 1 << 20, Busy, &[TOMBOLO, BARE]),
            (Stream, 64 << 10, Tokio, &[TOMBOLO]),
            (Stream, 1 << 20, Tokio, &[TOMBOLO]),
            (LoanRoundTrip, 1 << 20, Busy, &[TOMBOLO]),
            (LoanOneWay, 1 << 20, Busy, &[TOMBOLO]),
            (Call, RECORD_BYTES, Busy, &[TOMBOLO]),
            (Call, RECORD_BYTES, Tokio, &[TOMBOLO]),
            (CallsInFlight, RECORD_BYTES, Tokio, &[TOMBOLO]),
            (CallWithBytes, 64 << 10, Busy, &[TOMBOLO]),
            (CallWithBytes, 64 << 10, Tokio, &[TOMBOLO]),
            (Wake, 56, Asleep, &[TOMBOLO]),
        ];
        let one = |&(test, bytes, waiting, ways): &(Test, usize, Waiting, &[&str])| {
            ways.iter()
                .map(move |way| Probe { test, way: (*way).to_owned(), bytes, waiting })
                .collect::<Vec<_>>()
        };
        all.iter().flat_map(one).collect()
    }

    fn lead(&self, leading: &mut Leading) -> anyhow::Result<Reading> {
        let bare = leading.probe().way == BARE;
        match (leading.probe().test, bare) {
            (Test::RoundTrip, _) => messages::lead_round_trips(leading),
            (Test::OneWay | Test::OneWayBatched, _) => messages::lead_one_way(leading),
            (Test::Stream, false) => streams::lead(leading),
            (Test::Stream, true) => streams::lead_bare(leading),
            (Test::LoanRoundTrip, false) => loans::lead_round_trips(leading),
            (Test::LoanOneWay, false) => loans::lead_one_way(leading),
            (Test::Call | Test::CallsInFlight | Test::CallWithBytes, false) => calls::lead(leading),
            (Test::Wake, false) => wakes::lead(leading),
            (test, true) => bail!("a bare ring has no {test:?}"),
        }
    }

    fn follow(&self, probe: &Probe, following: &mut Following) -> anyhow::Result<()> {
        let bare = probe.way == BARE;
        match (probe.test, bare) {
            (Test::RoundTrip | Test::OneWay | Test::OneWayBatched, _) => messages::follow(probe, following),
            (Test::Stream, false) => streams::follow(probe, following),
            (Test::Stream, true) => streams::follow_bare(probe, following),
            (Test::LoanRoundTrip | Test::LoanOneWay, false) => loans::follow(probe, following),
            (Test::Call | Test::CallsInFlight | Test::CallWithBytes, false) => {
                calls::follow(probe, following)
            }
            (Test::Wake, false) => wakes::follow(probe, following),
            (test, true) => bail!("a bare ring has no {test:?}"),
        }
    }
}
