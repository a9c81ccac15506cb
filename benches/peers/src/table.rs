//! Which peer is measured at what.

use std::path::Path;

use anyhow::{Context, bail};
use tombolo_benches::calls::RECORD_BYTES;
use tombolo_benches::probe::Test::{
    Call, CallWithBytes, CallsInFlight, LoanOneWay, LoanRoundTrip, OneWay, OneWayBatched, RoundTrip, Stream,
    Wake,
};
use tombolo_benches::probe::Waiting::{Asleep, Busy, Tokio};
use tombolo_benches::probe::{Probe, Reading, Test, Waiting};
use tombolo_benches::turns::{Following, Leading};

use crate::calls;
use crate::link::{self, LEAVE};
use crate::messages::{iceoryx2, in_process, ipc_channel, shmipc, streams};

/// A way, how both ends wait, and what it is measured at.
pub(crate) struct Peer {
    way: &'static str,
    waiting: Waiting,
    tests: &'static [(Test, &'static [usize])],
    /// The leader's part; files go to the folder.
    pub(crate) lead: fn(&mut Leading, &Path) -> anyhow::Result<Reading>,
    /// The follower's part.
    pub(crate) follow: fn(&Probe, &mut Following) -> anyhow::Result<()>,
}

const SMALL: usize = 56;
const SLOT: usize = 64;
const PAGE: usize = 4 << 10;
const CHUNK: usize = 64 << 10;
const BLOCK: usize = 1 << 20;

const MESSAGES: &[(Test, &[usize])] =
    &[(RoundTrip, &[SMALL, PAGE]), (OneWay, &[SLOT]), (Stream, &[CHUNK, BLOCK])];
const MESSAGES_ALSO_BATCHED: &[(Test, &[usize])] =
    &[(RoundTrip, &[SMALL, PAGE]), (OneWay, &[SLOT]), (OneWayBatched, &[SLOT]), (Stream, &[CHUNK, BLOCK])];
const MESSAGES_ALSO_WAKES: &[(Test, &[usize])] =
    &[(RoundTrip, &[SMALL, PAGE]), (OneWay, &[SLOT]), (Stream, &[CHUNK, BLOCK]), (Wake, &[SMALL])];
const ALL_OF_MESSAGES: &[(Test, &[usize])] = &[
    (RoundTrip, &[SMALL, PAGE]),
    (OneWay, &[SLOT]),
    (OneWayBatched, &[SLOT]),
    (Stream, &[CHUNK, BLOCK]),
    (Wake, &[SMALL]),
];
const QUEUED: &[(Test, &[usize])] = &[(RoundTrip, &[SMALL, PAGE]), (OneWay, &[SLOT])];
const LOANS: &[(Test, &[usize])] = &[(LoanRoundTrip, &[BLOCK]), (LoanOneWay, &[BLOCK])];
const CALLS: &[(Test, &[usize])] =
    &[(Call, &[RECORD_BYTES]), (CallsInFlight, &[RECORD_BYTES]), (CallWithBytes, &[CHUNK])];

const PEERS: &[Peer] = &[
    Peer {
        way: "iceoryx2",
        waiting: Busy,
        tests: MESSAGES,
        lead: link::lead::<iceoryx2::InPlace>,
        follow: link::follow::<iceoryx2::InPlace>,
    },
    Peer {
        way: "iceoryx2",
        waiting: Busy,
        tests: LOANS,
        lead: link::lead_loans::<iceoryx2::InPlace>,
        follow: link::follow_loans::<iceoryx2::InPlace>,
    },
    Peer {
        way: "iceoryx2",
        waiting: Busy,
        tests: CALLS,
        lead: calls::iceoryx2::lead,
        follow: calls::iceoryx2::follow,
    },
    Peer {
        way: "iceoryx2",
        waiting: Asleep,
        tests: &[(Wake, &[SMALL])],
        lead: link::lead_wakes::<iceoryx2::Events>,
        follow: link::follow_wakes::<iceoryx2::Events>,
    },
    Peer {
        way: "iceoryx2 copying",
        waiting: Busy,
        tests: MESSAGES,
        lead: link::lead::<iceoryx2::Copying>,
        follow: link::follow::<iceoryx2::Copying>,
    },
    #[cfg(feature = "aeron")]
    Peer {
        way: "aeron",
        waiting: Busy,
        tests: MESSAGES_ALSO_BATCHED,
        lead: link::lead::<crate::messages::aeron::Ipc>,
        follow: link::follow::<crate::messages::aeron::Ipc>,
    },
    Peer { way: "shmipc", waiting: Tokio, tests: MESSAGES, lead: shmipc::lead, follow: shmipc::follow },
    Peer { way: "shmipc", waiting: Tokio, tests: LOANS, lead: shmipc::lead, follow: shmipc::follow },
    Peer {
        way: "ipc-channel",
        waiting: Busy,
        tests: MESSAGES,
        lead: link::lead::<ipc_channel::Channel>,
        follow: link::follow::<ipc_channel::Channel>,
    },
    Peer {
        way: "ipc-channel",
        waiting: Asleep,
        tests: MESSAGES_ALSO_WAKES,
        lead: link::lead::<ipc_channel::Channel>,
        follow: link::follow::<ipc_channel::Channel>,
    },
    Peer {
        way: "unix socket",
        waiting: Busy,
        tests: MESSAGES_ALSO_BATCHED,
        lead: link::lead::<streams::UnixSocket>,
        follow: link::follow::<streams::UnixSocket>,
    },
    Peer {
        way: "unix socket",
        waiting: Asleep,
        tests: ALL_OF_MESSAGES,
        lead: link::lead::<streams::UnixSocket>,
        follow: link::follow::<streams::UnixSocket>,
    },
    Peer {
        way: "tcp",
        waiting: Busy,
        tests: MESSAGES_ALSO_BATCHED,
        lead: link::lead::<streams::Tcp>,
        follow: link::follow::<streams::Tcp>,
    },
    Peer {
        way: "tcp",
        waiting: Asleep,
        tests: ALL_OF_MESSAGES,
        lead: link::lead::<streams::Tcp>,
        follow: link::follow::<streams::Tcp>,
    },
    Peer {
        way: "pipe",
        waiting: Busy,
        tests: MESSAGES_ALSO_BATCHED,
        lead: link::lead::<streams::Pipe>,
        follow: link::follow::<streams::Pipe>,
    },
    Peer {
        way: "pipe",
        waiting: Asleep,
        tests: ALL_OF_MESSAGES,
        lead: link::lead::<streams::Pipe>,
        follow: link::follow::<streams::Pipe>,
    },
    Peer {
        way: "rtrb",
        waiting: Busy,
        tests: MESSAGES_ALSO_BATCHED,
        lead: |leading, _| in_process::lead_rtrb(leading),
        follow: stand_by,
    },
    Peer {
        way: "crossbeam-channel",
        waiting: Busy,
        tests: QUEUED,
        lead: |leading, _| in_process::lead_channel(leading),
        follow: stand_by,
    },
    Peer {
        way: "crossbeam ArrayQueue",
        waiting: Busy,
        tests: QUEUED,
        lead: |leading, _| in_process::lead_queue(leading),
        follow: stand_by,
    },
    Peer {
        way: "tarpc",
        waiting: Tokio,
        tests: CALLS,
        lead: calls::lead::<calls::tarpc::Tarpc>,
        follow: |_, following| calls::follow::<calls::tarpc::Tarpc>(following),
    },
    Peer {
        way: "ttrpc",
        waiting: Tokio,
        tests: CALLS,
        lead: calls::lead::<calls::ttrpc::Ttrpc>,
        follow: |_, following| calls::follow::<calls::ttrpc::Ttrpc>(following),
    },
    Peer {
        way: "tonic",
        waiting: Tokio,
        tests: CALLS,
        lead: calls::lead::<calls::tonic::Tonic>,
        follow: |_, following| calls::follow::<calls::tonic::Tonic>(following),
    },
    Peer {
        way: "capnp-rpc",
        waiting: Tokio,
        tests: CALLS,
        lead: calls::lead::<calls::capnp::Capnp>,
        follow: |_, following| calls::follow::<calls::capnp::Capnp>(following),
    },
    Peer {
        way: "postcard-rpc",
        waiting: Tokio,
        tests: CALLS,
        lead: calls::lead::<calls::postcard_rpc::PostcardRpc>,
        follow: |_, following| calls::follow::<calls::postcard_rpc::PostcardRpc>(following),
    },
];

/// The follower of ways within the leader's process: it has a part in the floor alone.
fn stand_by(_: &Probe, following: &mut Following) -> anyhow::Result<()> {
    match following.next_order()?.context("the leader is gone")? {
        order if order.word == LEAVE => Ok(()),
        order => bail!("unknown order `{}`", order.word),
    }
}

/// All that can be measured.
pub(crate) fn probes() -> Vec<Probe> {
    PEERS.iter().flat_map(Peer::probes).collect()
}

/// Who is measured by `probe`.
pub(crate) fn peer(probe: &Probe) -> Option<&'static Peer> {
    PEERS.iter().find(|peer| peer.probes().contains(probe))
}

impl Peer {
    fn probes(&self) -> Vec<Probe> {
        let probes = self.tests.iter().flat_map(|(test, sizes)| {
            sizes.iter().map(|&bytes| Probe {
                test: *test,
                way: self.way.into(),
                bytes,
                waiting: self.waiting,
            })
        });
        probes.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_probe_is_there_twice() {
        let probes = probes();
        assert_eq!(probes.iter().collect::<BTreeSet<_>>().len(), probes.len());
    }
}
